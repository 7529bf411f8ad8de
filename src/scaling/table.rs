//! What an operation takes: the angles of each pair, in one set or in three of which one is chosen by length.

use crate::scaling::{ConfigError, phase_step};

/// Where the angle of a pair comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Angles {
    /// The exact phase: one step per pair, in units of 2^-64 turns a token ([`phase_step`]).
    Exact(Vec<u64>),
    /// Parity with Hugging Face: the caller's f32 inverse frequency times the position rounded to f32. Its error grows
    /// with the position, to 0.12 rad below 2^21; use it to compare, not to compute.
    Parity(Vec<f32>),
}

/// The angles of one set of factors, and the gain that multiplies cosine and sine.
#[derive(Debug, Clone, PartialEq)]
pub struct FactorSet {
    angles: Angles,
    gain: f32,
}

impl FactorSet {
    /// The exact phase of `frequencies` (radians a token, one per pair) with the attention factor `gain`.
    ///
    /// # Errors
    /// A frequency or the gain out of range.
    pub fn exact(frequencies: &[f64], gain: f64) -> Result<Self, ConfigError> {
        let steps = frequencies.iter().map(|&f| phase_step(f)).collect::<Result<_, _>>()?;
        Self::new(Angles::Exact(steps), gain)
    }

    /// The exact phase of frequencies that were rounded to f32, which is what a checkpoint's configuration yields in
    /// Hugging Face's arithmetic.
    ///
    /// # Errors
    /// A frequency or the gain out of range.
    pub fn exact_from_f32(inverse_frequencies: &[f32], gain: f64) -> Result<Self, ConfigError> {
        let widened: Vec<f64> = inverse_frequencies.iter().map(|&f| f64::from(f)).collect();
        Self::exact(&widened, gain)
    }

    /// Parity mode: the angle is `position as f32 * inverse_frequency` in f32.
    ///
    /// # Errors
    /// A frequency or the gain out of range.
    pub fn parity(inverse_frequencies: &[f32], gain: f64) -> Result<Self, ConfigError> {
        if let Some(bad) = inverse_frequencies.iter().find(|f| !(f.is_finite() && **f >= 0.0)) {
            return Err(ConfigError::invalid("inverse_frequencies", bad, "finite numbers from 0"));
        }
        Self::new(Angles::Parity(inverse_frequencies.to_vec()), gain)
    }

    fn new(angles: Angles, gain: f64) -> Result<Self, ConfigError> {
        let narrow = gain as f32;
        if !(narrow.is_finite() && narrow > 0.0) {
            return Err(ConfigError::invalid("attention_factor", gain, "a finite number above 0"));
        }
        Ok(Self { angles, gain: narrow })
    }

    /// The angles, one entry per pair.
    pub fn angles(&self) -> &Angles {
        &self.angles
    }

    /// The attention factor: multiplies cosine and sine, of queries and of keys.
    pub fn gain(&self) -> f32 {
        self.gain
    }

    /// Pairs of dimensions that turn.
    pub fn pairs(&self) -> usize {
        match &self.angles {
            Angles::Exact(steps) => steps.len(),
            Angles::Parity(frequencies) => frequencies.len(),
        }
    }

    fn is_exact(&self) -> bool {
        matches!(self.angles, Angles::Exact(_))
    }
}

/// Which set a sequence uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetChoice {
    /// The short factors, whatever the length.
    Short,
    /// The long factors, whatever the length.
    Long,
    /// The set for a sequence of this many tokens in all: long if it exceeds the original length, else short.
    ByLength(u64),
}

/// The three sets of a LongRoPE model: plain for the first tokens, short up to the original length, long beyond it.
///
/// The choice is made for a whole sequence from its total length, not for a chunk of it, and never splits a sequence,
/// but for the first `first_tokens` positions, which keep the plain frequencies (arXiv 2402.13753, eq. 3).
#[derive(Debug, Clone, PartialEq)]
pub struct FactorSets {
    plain: FactorSet,
    short: FactorSet,
    long: FactorSet,
    original_length: u64,
    first_tokens: u64,
}

impl FactorSets {
    /// Three sets over the same pairs.
    ///
    /// # Errors
    /// The sets differ in their number of pairs, or mix exact and parity angles.
    pub fn new(
        plain: FactorSet,
        short: FactorSet,
        long: FactorSet,
        original_length: u64,
        first_tokens: u64,
    ) -> Result<Self, ConfigError> {
        for (path, set) in [("short", &short), ("long", &long)] {
            if set.pairs() != plain.pairs() {
                return Err(ConfigError::invalid(
                    path,
                    format!("{} pairs", set.pairs()),
                    format!("{} pairs, as in the plain set", plain.pairs()),
                ));
            }
            if set.is_exact() != plain.is_exact() {
                return Err(ConfigError::invalid(
                    path,
                    "a mixture of exact and parity angles",
                    "the same source of the angle in all three sets",
                ));
            }
        }
        Ok(Self { plain, short, long, original_length, first_tokens })
    }

    /// One set for every position and length.
    pub fn uniform(set: FactorSet) -> Self {
        Self { plain: set.clone(), short: set.clone(), long: set, original_length: u64::MAX, first_tokens: 0 }
    }

    /// The set that rotates `position` of a sequence with this `choice`.
    pub fn at(&self, position: i64, choice: SetChoice) -> &FactorSet {
        // Positions below zero come before the first token, so they count among the first tokens.
        if i128::from(position) < i128::from(self.first_tokens) && self.first_tokens > 0 {
            return &self.plain;
        }
        match choice {
            SetChoice::Short => &self.short,
            SetChoice::Long => &self.long,
            SetChoice::ByLength(length) if length > self.original_length => &self.long,
            SetChoice::ByLength(_) => &self.short,
        }
    }

    /// The un-interpolated set of the first tokens.
    pub fn plain(&self) -> &FactorSet {
        &self.plain
    }

    /// The set of sequences up to the original length.
    pub fn short(&self) -> &FactorSet {
        &self.short
    }

    /// The set of sequences beyond the original length.
    pub fn long(&self) -> &FactorSet {
        &self.long
    }

    /// Pairs of dimensions that turn.
    pub fn pairs(&self) -> usize {
        self.plain.pairs()
    }

    /// The longest sequence that uses the short set, in tokens (L0): exactly this length stays short.
    pub fn original_length(&self) -> u64 {
        self.original_length
    }

    /// How many first positions take the plain set (n_hat).
    pub fn first_tokens(&self) -> u64 {
        self.first_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(first_tokens: u64) -> FactorSets {
        let set = |f: f64, gain| FactorSet::exact(&[f], gain).unwrap();
        FactorSets::new(set(1.0, 1.0), set(0.5, 1.1), set(0.25, 1.1), 4096, first_tokens).unwrap()
    }

    #[test]
    fn exactly_the_original_length_stays_short() {
        let sets = sets(0);
        assert_eq!(sets.at(9, SetChoice::ByLength(4096)), sets.short());
        assert_eq!(sets.at(9, SetChoice::ByLength(4097)), sets.long());
        assert_eq!(sets.at(9, SetChoice::Long), sets.long());
        assert_eq!(sets.at(9999, SetChoice::Short), sets.short());
        assert_eq!(sets.at(-5, SetChoice::Short), sets.short());
    }

    #[test]
    fn the_first_tokens_keep_the_plain_set_and_its_gain() {
        let sets = sets(16);
        assert_eq!(sets.at(15, SetChoice::Long), sets.plain());
        assert_eq!(sets.at(15, SetChoice::Long).gain(), 1.0);
        assert_eq!(sets.at(16, SetChoice::Long), sets.long());
    }

    #[test]
    fn sets_that_do_not_fit_together_are_refused() {
        let one = FactorSet::exact(&[1.0], 1.0).unwrap();
        let two = FactorSet::exact(&[1.0, 0.5], 1.0).unwrap();
        let parity = FactorSet::parity(&[1.0], 1.0).unwrap();
        let error = FactorSets::new(one.clone(), one.clone(), two, 1, 0).unwrap_err();
        assert_eq!(error.to_string(), "long: 2 pairs is not valid; expected 1 pairs, as in the plain set");
        assert!(FactorSets::new(one.clone(), parity, one, 1, 0).is_err());
        assert!(FactorSet::exact(&[1.0], 0.0).is_err());
        assert!(FactorSet::parity(&[f32::NAN], 1.0).is_err());
    }
}
