//! Factor sets as the kernels take them.

use crate::Error;
use crate::device::params::{LONGROPE_MAX_PAIRS, longrope_factor_set, longrope_factor_sets};
use crate::scaling::{Angles, FactorSet, FactorSets};

/// The parameter block of `sets`.
pub(super) fn factor_sets(sets: &FactorSets) -> Result<longrope_factor_sets, Error> {
    if sets.pairs() > LONGROPE_MAX_PAIRS as usize {
        return Err(Error::unsupported(
            "sets",
            format!("{} pairs", sets.pairs()),
            format!("at most {LONGROPE_MAX_PAIRS}, a rotary dimension of 256"),
        ));
    }
    // Lengths beyond 2^63 do not occur, so a larger bound means the same.
    let bounded = |length: u64| i64::try_from(length).unwrap_or(i64::MAX);
    Ok(longrope_factor_sets {
        plain_set: factor_set(sets.plain()),
        short_set: factor_set(sets.short()),
        long_set: factor_set(sets.long()),
        original_length: bounded(sets.original_length()),
        first_tokens: bounded(sets.first_tokens()),
    })
}

/// Whether the angles are f32 products.
pub(super) fn is_parity(sets: &FactorSets) -> bool {
    matches!(sets.plain().angles(), Angles::Parity(_))
}

pub(super) fn factor_set(set: &FactorSet) -> longrope_factor_set {
    let mut step = [0; LONGROPE_MAX_PAIRS as usize];
    match set.angles() {
        Angles::Exact(steps) => step[..steps.len()].copy_from_slice(steps),
        Angles::Parity(frequencies) => {
            step.iter_mut().zip(frequencies).for_each(|(step, f)| *step = u64::from(f.to_bits()));
        }
    }
    longrope_factor_set { step, gain: f64::from(set.gain()) }
}
