//! The interpolation methods that a search is compared with.

use anyhow::Result;
use longrope::scaling::{LongRope, RopeConfig, Scaling, Yarn};
use longrope::search::Candidate;

/// An interpolation method under the name of its row in the table.
pub struct Method {
    /// As shown.
    pub name: &'static str,
    /// The model's rotary embedding by this method.
    pub rope: RopeConfig,
}

/// No interpolation, position interpolation, NTK-aware and YaRN for contexts of `length` tokens, each configured for
/// that length as a user of the method would: one fixed factor, whatever the length of the sequence.
pub fn baselines(base: &RopeConfig, length: usize) -> Result<Vec<Method>> {
    let factor = scale(base, length);
    let method = |name, scaling| -> Result<Method> {
        Ok(Method { name, rope: RopeConfig::new(*base.geometry(), length as u64, scaling)? })
    };
    Ok(vec![
        Method { name: "none", rope: base.clone() },
        method("PI", Scaling::Linear { factor })?,
        method("NTK-aware", Scaling::NtkAware { factor })?,
        method("YaRN", Scaling::Yarn(Yarn::new(factor)))?,
    ])
}

/// NTK-aware interpolation that follows the length of the sequence, as Hugging Face's `dynamic` with the factor of `length`.
pub fn dynamic_ntk(base: &RopeConfig, length: usize) -> Result<Method> {
    let scaling = Scaling::DynamicNtk { factor: scale(base, length).max(1.0) };
    Ok(Method { name: "dynamic NTK", rope: RopeConfig::new(*base.geometry(), length as u64, scaling)? })
}

/// LongRoPE with the candidate's factors beyond the original length, and none up to it.
pub fn longrope(base: &RopeConfig, length: usize, candidate: &Candidate) -> Result<RopeConfig> {
    let scaling = Scaling::LongRope(LongRope {
        short_factor: vec![1.0; base.geometry().pairs()],
        long_factor: candidate.factors.clone(),
        factor: scale(base, length),
        attention_factor: candidate.attention_factor,
        first_tokens: candidate.first_tokens,
    });
    Ok(RopeConfig::new(*base.geometry(), length as u64, scaling)?)
}

/// How many times longer than the original length.
pub fn scale(base: &RopeConfig, length: usize) -> f64 {
    length as f64 / base.geometry().original_length() as f64
}
