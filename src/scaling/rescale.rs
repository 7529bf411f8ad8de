//! The general interpolation methods as rescale factors: one divisor of the frequency per pair.
//!
//! LongRoPE (arXiv 2402.13753, eq. 3) writes every method as a vector lambda: pair `i` turns by
//! `theta^(-2i/d) / lambda_i` radians a token. Written so, the methods compare, and seed a search.

use std::f64::consts::PI;

use crate::scaling::{ConfigError, Geometry};

/// Position interpolation (arXiv 2306.15595): every pair is slowed down by `scale`.
pub fn linear(geometry: &Geometry, scale: f64) -> Vec<f64> {
    vec![scale; geometry.pairs()]
}

/// NTK-aware interpolation: the base becomes `theta * scale^(d/(d-2))`, so that the fastest pair keeps its frequency
/// and the slowest is slowed down by exactly `scale`: `lambda_i = scale^(2i/(d-2))`.
pub fn ntk_aware(geometry: &Geometry, scale: f64) -> Vec<f64> {
    let d = geometry.rotary_dim() as f64;
    (0..geometry.pairs())
        .map(|i| match i {
            0 => 1.0,
            _ => scale.powf(2.0 * i as f64 / (d - 2.0)),
        })
        .collect()
}

/// Where YaRN ramps from extrapolation to interpolation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnRamp {
    /// Pairs that turn at least this often within the original length keep their frequency. Default 32.
    pub beta_fast: f64,
    /// Pairs that turn at most this often within the original length are slowed down by the whole scale. Default 1.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are rounded outwards to whole pairs. Default `true`.
    pub truncate: bool,
}

impl Default for YarnRamp {
    fn default() -> Self {
        Self { beta_fast: 32.0, beta_slow: 1.0, truncate: true }
    }
}

impl YarnRamp {
    /// The pairs, possibly fractional, between which the ramp rises: kept up to the first, interpolated from the
    /// second on.
    ///
    /// The pair that turns `r` times within L0 is `d ln(L0 / 2 pi r) / (2 ln theta)` (arXiv 2309.00071, section 3.2).
    pub fn ends(&self, geometry: &Geometry) -> (f64, f64) {
        let d = geometry.rotary_dim() as f64;
        let pair_turning = |turns: f64| {
            d * (geometry.original_length() as f64 / (turns * 2.0 * PI)).ln() / (2.0 * geometry.theta().ln())
        };
        let (mut low, mut high) = (pair_turning(self.beta_fast), pair_turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }

    /// The share of interpolation of each pair, 0 (keep the frequency) to 1 (divide it by the scale).
    pub fn interpolation(&self, geometry: &Geometry) -> Vec<f64> {
        let (low, high) = self.ends(geometry);
        (0..geometry.pairs()).map(|i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }
}

/// YaRN (arXiv 2309.00071, "NTK-by-parts"): the frequency is mixed linearly between kept and divided by `scale`.
pub fn yarn(geometry: &Geometry, scale: f64, ramp: &YarnRamp) -> Vec<f64> {
    ramp.interpolation(geometry).into_iter().map(|share| 1.0 / ((1.0 - share) + share / scale)).collect()
}

/// The theoretical critical pair of LongRoPE2 (arXiv 2502.20082, eq. 7): the first whose period does not fit `periods`
/// times into the original length. From there on the model never saw a whole turn. `periods` is 1 in the paper's
/// equation, and 10 for the fastest candidate of its search.
pub fn critical_pair(geometry: &Geometry, periods: f64) -> usize {
    let turns = geometry.original_length() as f64 / (2.0 * PI * periods);
    let pair = geometry.pairs() as f64 * turns.ln() / geometry.theta().ln();
    (pair.ceil().max(0.0) as usize).min(geometry.pairs())
}

/// LongRoPE2's factors (arXiv 2502.20082, section 3.2): the `tail` from the critical pair on, and below it the NTK-aware
/// rise whose base makes it meet the tail: `lambda_i = tail[0]^(i / critical)` with `critical = pairs - tail.len()`.
///
/// # Errors
/// `tail` empty, longer than the pairs, or with a factor that is not a finite number above 0.
pub fn ntk_left(geometry: &Geometry, tail: &[f64]) -> Result<Vec<f64>, ConfigError> {
    if tail.is_empty() || tail.len() > geometry.pairs() {
        return Err(ConfigError::invalid(
            "tail",
            format!("{} factors", tail.len()),
            format!("1 to {}, the number of pairs", geometry.pairs()),
        ));
    }
    if let Some(i) = tail.iter().position(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(ConfigError::invalid(format!("tail[{i}]"), tail[i], "a finite number above 0"));
    }
    let critical = geometry.pairs() - tail.len();
    let rise = (0..critical).map(|i| tail[0].powf(i as f64 / critical as f64));
    Ok(rise.chain(tail.iter().copied()).collect())
}

/// The factors of a second search on top of those that a model was fine-tuned with: `lambda_i = first_i * second_i`.
///
/// In progressive extension (arXiv 2402.13753, section 3.3) a model is fine-tuned with the factors of a first search, and
/// a second search interpolates that model further: it divides the frequencies that are divided already.
///
/// # Errors
/// Lists of different lengths, or a factor that is not a finite number above 0.
pub fn second_interpolation(first: &[f64], second: &[f64]) -> Result<Vec<f64>, ConfigError> {
    if first.len() != second.len() {
        return Err(ConfigError::invalid(
            "second",
            format!("{} factors", second.len()),
            format!("{}, as many as in the first search", first.len()),
        ));
    }
    for (name, factors) in [("first", first), ("second", second)] {
        if let Some(i) = factors.iter().position(|f| !(f.is_finite() && *f > 0.0)) {
            return Err(ConfigError::invalid(format!("{name}[{i}]"), factors[i], "a finite number above 0"));
        }
    }
    Ok(first.iter().zip(second).map(|(first, second)| first * second).collect())
}

/// The attention factor of LongRoPE, `sqrt(1 + ln s / ln L0)`, or 1 where `scale` does not exceed 1. It multiplies
/// both cosine and sine, of queries and of keys, so logits grow by its square.
pub fn longrope_attention_factor(scale: f64, original_length: u64) -> f64 {
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / (original_length as f64).ln()).sqrt() }
}

/// The attention factor of YaRN, `0.1 m ln s + 1` with the weight `m` (`mscale`), or 1 where `scale` does not exceed 1.
pub fn yarn_attention_factor(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}
