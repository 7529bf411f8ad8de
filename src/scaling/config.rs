//! A model's rotary embedding as a whole: geometry, longest context, interpolation method.

use crate::scaling::{ConfigError, FactorSet, FactorSets, Geometry, LongRope, Scaling, parity};

/// The rotary embedding of a model: what it was trained with, and how it is rescaled for longer contexts.
///
/// ```
/// use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling};
///
/// let geometry = Geometry::new(128, 96, 1e4, 4096)?;
/// let long_factor = (0..48).map(|i| 32f64.powf(i as f64 / 47.0)).collect();
/// let config = RopeConfig::new(geometry, 131_072, Scaling::LongRope(LongRope {
///     short_factor: vec![1.0; 48],
///     long_factor,
///     factor: 32.0,
///     attention_factor: None,
///     first_tokens: 0,
/// }))?;
/// assert!((config.attention_factor() - 1.190_238).abs() < 1e-6);
/// // Exactly the original length uses the short factors.
/// assert_eq!(config.frequencies(4096), geometry.frequencies());
/// assert!(config.frequencies(4097)[47] < geometry.frequencies()[47] / 31.9);
/// # Ok::<(), longrope::scaling::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    geometry: Geometry,
    max_length: u64,
    scaling: Scaling,
}

impl RopeConfig {
    /// A rotary embedding for contexts of up to `max_length` tokens (`max_position_embeddings`).
    ///
    /// # Errors
    /// `max_length` zero, or a parameter of `scaling` that does not fit the geometry. Factors need be neither monotone
    /// nor at least 1: published sets are neither.
    pub fn new(geometry: Geometry, max_length: u64, scaling: Scaling) -> Result<Self, ConfigError> {
        Self::at_path(geometry, max_length, scaling, "rope_scaling")
    }

    pub(crate) fn at_path(
        geometry: Geometry,
        max_length: u64,
        scaling: Scaling,
        path: &str,
    ) -> Result<Self, ConfigError> {
        if max_length == 0 {
            return Err(ConfigError::invalid("max_position_embeddings", max_length, "at least 1"));
        }
        scaling.validate(&geometry, path)?;
        let config = Self { geometry, max_length, scaling };
        // Every frequency is checked here once, so that nothing made for lengths up to the maximum can fail later.
        config.factor_sets(max_length)?;
        Ok(config)
    }

    /// Head dimensions, base and original length.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The longest context the model is configured for, in tokens.
    pub fn max_length(&self) -> u64 {
        self.max_length
    }

    /// The interpolation method.
    pub fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// The frequencies, in radians a token, of a sequence of `length` tokens in all.
    pub fn frequencies(&self, length: u64) -> Vec<f64> {
        self.scaling.frequencies(&self.geometry, length)
    }

    /// The inverse frequencies in f32, by the operations of Hugging Face transformers in their order: equal to within
    /// one unit in the last place.
    pub fn inverse_frequencies_f32(&self, length: u64) -> Vec<f32> {
        parity::inverse_frequencies(&self.geometry, &self.scaling, length)
    }

    /// What cosine and sine are multiplied by, of queries and of keys, at every length.
    pub fn attention_factor(&self) -> f64 {
        self.scaling.gain(&self.geometry)
    }

    /// How many first positions keep the plain frequencies (n_hat).
    pub fn first_tokens(&self) -> u64 {
        match &self.scaling {
            Scaling::LongRope(longrope) => longrope.first_tokens,
            _ => 0,
        }
    }

    /// What each frequency is divided by in a sequence of `length` tokens: the lambda of LongRoPE, one per pair.
    pub fn divisors(&self, length: u64) -> Vec<f64> {
        match &self.scaling {
            Scaling::LongRope(longrope) if length > self.geometry.original_length() => {
                longrope.long_factor.clone()
            }
            Scaling::LongRope(longrope) => longrope.short_factor.clone(),
            _ => {
                let plain = self.geometry.frequencies();
                plain.iter().zip(self.frequencies(length)).map(|(plain, rescaled)| plain / rescaled).collect()
            }
        }
    }

    /// The same rotary embedding written as LongRoPE: divisors of every pair, and the attention factor as a number. A
    /// configuration that is LongRoPE already stays as it is; of another, short and long factors are equal, since it has
    /// one set for every length.
    ///
    /// # Errors
    /// Dynamic NTK, whose frequencies are others at every length.
    pub fn to_longrope(&self) -> Result<Self, ConfigError> {
        match self.scaling {
            Scaling::LongRope(_) => return Ok(self.clone()),
            Scaling::DynamicNtk { .. } => {
                return Err(ConfigError::invalid(
                    "rope_scaling.rope_type",
                    "dynamic",
                    "a method with the same factors at every length beyond the original one",
                ));
            }
            _ => {}
        }
        let factors = self.divisors(self.max_length);
        let scaling = Scaling::LongRope(LongRope {
            short_factor: factors.clone(),
            long_factor: factors,
            factor: self.max_length as f64 / self.geometry.original_length() as f64,
            attention_factor: Some(self.attention_factor()),
            first_tokens: 0,
        });
        Self::new(self.geometry, self.max_length, scaling)
    }

    /// The exact sets for sequences of up to `length` tokens: plain, short (up to the original length) and long. Only
    /// dynamic NTK depends on `length`: its long set is that of a sequence of exactly `length` tokens.
    ///
    /// # Errors
    /// Dynamic NTK at a `length` where the base overflows. For the other methods and for lengths up to
    /// [`max_length`](Self::max_length) it can't fail.
    pub fn factor_sets(&self, length: u64) -> Result<FactorSets, ConfigError> {
        let (original, gain) = (self.geometry.original_length(), self.attention_factor());
        FactorSets::new(
            FactorSet::exact(&self.geometry.frequencies(), 1.0)?,
            FactorSet::exact(&self.frequencies(original), gain)?,
            FactorSet::exact(&self.frequencies(length.max(original.saturating_add(1))), gain)?,
            original,
            self.first_tokens(),
        )
    }

    /// The sets of [`factor_sets`](Self::factor_sets), in parity with Hugging Face's f32 angle.
    ///
    /// # Errors
    /// As [`factor_sets`](Self::factor_sets).
    pub fn parity_sets(&self, length: u64) -> Result<FactorSets, ConfigError> {
        let (original, gain) = (self.geometry.original_length(), self.attention_factor());
        let plain = parity::inverse_frequencies(&self.geometry, &Scaling::Default, original);
        let long = self.inverse_frequencies_f32(length.max(original.saturating_add(1)));
        FactorSets::new(
            FactorSet::parity(&plain, 1.0)?,
            FactorSet::parity(&self.inverse_frequencies_f32(original), gain)?,
            FactorSet::parity(&long, gain)?,
            original,
            self.first_tokens(),
        )
    }
}
