//! Every interpolation method, with its parameters and the frequencies it gives.

use std::f64::consts::TAU;

use crate::scaling::rescale::{self, YarnRamp};
use crate::scaling::{ConfigError, Geometry};

/// How the frequencies of a model are rescaled for contexts beyond the one it was trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Scaling {
    /// No interpolation.
    Default,
    /// Position interpolation (arXiv 2306.15595): every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware interpolation with a fixed factor: the base becomes `theta * factor^(d/(d-2))`.
    NtkAware {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// NTK-aware interpolation that follows the length of the sequence (Hugging Face's `dynamic`).
    DynamicNtk {
        /// The strength: at `n` times the original length the base grows by `(factor * n - (factor - 1))^(d/(d-2))`.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn(Yarn),
    /// The rescaling of Llama 3.1.
    Llama3(Llama3),
    /// LongRoPE (arXiv 2402.13753).
    LongRope(LongRope),
}

/// YaRN: frequencies mixed between kept and interpolated, and a temperature on the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How much longer the context becomes.
    pub factor: f64,
    /// Where the ramp from kept to interpolated lies.
    pub ramp: YarnRamp,
    /// The attention factor, if not computed from the rest.
    pub attention_factor: Option<f64>,
    /// Weights of `ln factor` above and below the fraction bar of the attention factor (DeepSeek's `mscale` and
    /// `mscale_all_dim`); used only when both are set and not zero.
    pub mscale: Option<f64>,
    /// See `mscale`.
    pub mscale_all_dim: Option<f64>,
}

impl Yarn {
    /// YaRN with the paper's ramp and attention factor.
    pub fn new(factor: f64) -> Self {
        Self { factor, ramp: YarnRamp::default(), attention_factor: None, mscale: None, mscale_all_dim: None }
    }

    fn gain(&self) -> f64 {
        let at = |mscale| rescale::yarn_attention_factor(self.factor, mscale);
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(explicit), _, _) => explicit,
            (None, Some(above), Some(below)) if above != 0.0 && below != 0.0 => at(above) / at(below),
            _ => at(1.0),
        }
    }
}

/// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth passage between.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3 {
    /// The divisor of the long wavelengths.
    pub factor: f64,
    /// Wavelengths above `L0 / low_frequency_factor` are divided.
    pub low_frequency_factor: f64,
    /// Wavelengths below `L0 / high_frequency_factor` are kept.
    pub high_frequency_factor: f64,
}

/// LongRoPE: one divisor per pair, in two sets, with first tokens that keep their frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors up to the original length, one per pair.
    pub short_factor: Vec<f64>,
    /// Divisors beyond the original length, one per pair.
    pub long_factor: Vec<f64>,
    /// How much longer the context becomes; the attention factor comes from it. Usually the ratio of the lengths.
    pub factor: f64,
    /// The attention factor, if not `sqrt(1 + ln factor / ln L0)`. The same with short and with long factors.
    pub attention_factor: Option<f64>,
    /// How many first positions keep the plain frequencies and a gain of 1 (n_hat; 0 in all released models).
    pub first_tokens: u64,
}

impl Scaling {
    /// Checks every parameter against `geometry`. `path` is where the parameters stand, for messages.
    pub(crate) fn validate(&self, geometry: &Geometry, path: &str) -> Result<(), ConfigError> {
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(ConfigError::invalid(format!("{path}.{name}"), value, "a finite number above 0")),
        };
        match self {
            Self::Default => Ok(()),
            Self::Linear { factor } | Self::NtkAware { factor } => positive("factor", *factor),
            Self::DynamicNtk { factor } => match *factor >= 1.0 && factor.is_finite() {
                true => Ok(()),
                // Below 1 the base would fall, and turn negative, as the sequence grows.
                false => {
                    Err(ConfigError::invalid(format!("{path}.factor"), factor, "a finite number from 1"))
                }
            },
            Self::Yarn(yarn) => {
                positive("factor", yarn.factor)?;
                positive("beta_fast", yarn.ramp.beta_fast)?;
                positive("beta_slow", yarn.ramp.beta_slow)?;
                for (name, value) in [("mscale", yarn.mscale), ("mscale_all_dim", yarn.mscale_all_dim)] {
                    if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                        return Err(ConfigError::invalid(
                            format!("{path}.{name}"),
                            value,
                            "a finite number from 0",
                        ));
                    }
                }
                yarn.attention_factor.map_or(Ok(()), |value| positive("attention_factor", value))
            }
            Self::Llama3(llama3) => {
                positive("factor", llama3.factor)?;
                positive("low_freq_factor", llama3.low_frequency_factor)?;
                positive("high_freq_factor", llama3.high_frequency_factor)?;
                if llama3.high_frequency_factor <= llama3.low_frequency_factor {
                    return Err(ConfigError::invalid(
                        format!("{path}.high_freq_factor"),
                        llama3.high_frequency_factor,
                        format!("more than low_freq_factor ({})", llama3.low_frequency_factor),
                    ));
                }
                Ok(())
            }
            Self::LongRope(longrope) => {
                for (name, factors) in
                    [("short_factor", &longrope.short_factor), ("long_factor", &longrope.long_factor)]
                {
                    if factors.len() != geometry.pairs() {
                        return Err(ConfigError::invalid(
                            format!("{path}.{name}"),
                            format!("a list of {}", factors.len()),
                            format!("{} numbers, one per pair of the rotary dimension", geometry.pairs()),
                        ));
                    }
                    for (i, &factor) in factors.iter().enumerate() {
                        positive(&format!("{name}[{i}]"), factor)?;
                    }
                }
                positive("factor", longrope.factor)?;
                if longrope.attention_factor.is_none()
                    && longrope.factor > 1.0
                    && geometry.original_length() < 2
                {
                    return Err(ConfigError::invalid(
                        "original_max_position_embeddings",
                        geometry.original_length(),
                        "at least 2, since the attention factor divides by its logarithm",
                    ));
                }
                longrope.attention_factor.map_or(Ok(()), |value| positive("attention_factor", value))
            }
        }
    }

    /// The frequencies in radians a token for a sequence of `length` tokens. Those of `LongRope` are its long ones
    /// beyond the original length, else its short ones.
    pub(crate) fn frequencies(&self, geometry: &Geometry, length: u64) -> Vec<f64> {
        let plain = geometry.frequencies();
        let divided = |factors: &[f64]| plain.iter().zip(factors).map(|(f, lambda)| f / lambda).collect();
        match self {
            Self::Default => plain,
            Self::Linear { factor } => divided(&rescale::linear(geometry, *factor)),
            Self::NtkAware { factor } => divided(&rescale::ntk_aware(geometry, *factor)),
            Self::DynamicNtk { factor } => {
                let growth = dynamic_growth(*factor, length, geometry.original_length());
                divided(&rescale::ntk_aware(geometry, growth))
            }
            Self::Yarn(yarn) => divided(&rescale::yarn(geometry, yarn.factor, &yarn.ramp)),
            Self::Llama3(llama3) => plain.iter().map(|&f| llama3.frequency(f, geometry)).collect(),
            Self::LongRope(longrope) if length > geometry.original_length() => divided(&longrope.long_factor),
            Self::LongRope(longrope) => divided(&longrope.short_factor),
        }
    }

    /// What cosine and sine are multiplied by.
    pub(crate) fn gain(&self, geometry: &Geometry) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.gain(),
            Self::LongRope(longrope) => longrope.attention_factor.unwrap_or_else(|| {
                rescale::longrope_attention_factor(longrope.factor, geometry.original_length())
            }),
            _ => 1.0,
        }
    }
}

/// The scale that dynamic NTK uses at `length`: 1 up to the original length.
pub(crate) fn dynamic_growth(factor: f64, length: u64, original_length: u64) -> f64 {
    let length = length.max(original_length);
    factor * length as f64 / original_length as f64 - (factor - 1.0)
}

impl Llama3 {
    fn frequency(&self, frequency: f64, geometry: &Geometry) -> f64 {
        let turns = geometry.original_length() as f64 * frequency / TAU; // L0 over the wavelength
        if turns < self.low_frequency_factor {
            frequency / self.factor
        } else if turns > self.high_frequency_factor {
            frequency
        } else {
            let kept = (turns - self.low_frequency_factor)
                / (self.high_frequency_factor - self.low_frequency_factor);
            frequency * ((1.0 - kept) / self.factor + kept)
        }
    }
}
