//! By which factors the tokens of cached sequences are rotated.

use crate::Error;
use crate::descriptor::Pairing;
use crate::device::params::{
    LONGROPE_CHOICE_BY_INDEX, LONGROPE_CHOICE_BY_LENGTH, LONGROPE_CHOICE_LONG, LONGROPE_CHOICE_SHORT,
    longrope_cache_rotary,
};
use crate::ops::attention_arguments::{check_address, pointer};
use crate::ops::factors::{factor_sets, is_parity};
use crate::scaling::{FactorSets, SetChoice};

/// The rotation of cached sequences: token `t` of a sequence stands at position `t`, and is rotated by the set of its sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheRotary<'a> {
    /// The angles and gains of the first `2 * pairs` dimensions; the others are left as they are.
    pub sets: &'a FactorSets,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Which set each sequence uses.
    pub choices: CacheChoices,
}

/// Which factor set each cached sequence uses. What lies on the device is read when the kernel runs, so that a replayed graph can
/// switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheChoices {
    /// One choice for every sequence, made now.
    All(SetChoice),
    /// By the sequence's length in the cache: long beyond the original length, else short.
    ByLength,
    /// By number, `[sequences]` of `i32` at this address: 0 short, 1 long; anything else sets
    /// [`BAD_CHOICE`](crate::ops::BAD_CHOICE).
    ByIndex(u64),
}

impl CacheRotary<'_> {
    /// Whether it means something for heads of this dimension. `idle`: there is nothing to do.
    pub(super) fn check(&self, name: &str, head_dim: usize, idle: bool) -> Result<(), Error> {
        let rotary_dim = 2 * self.sets.pairs();
        if rotary_dim == 0 || rotary_dim > head_dim {
            return Err(Error::argument(
                format!("{name}.sets"),
                format!("{} pairs", self.sets.pairs()),
                format!("1 to {}, half of the head dimension", head_dim / 2),
            ));
        }
        match self.choices {
            CacheChoices::ByIndex(address) => {
                check_address(&format!("{name}.choices"), Some(address), 4, idle)
            }
            _ => Ok(()),
        }
    }

    /// That its angles are exact ones.
    pub(super) fn check_exact(&self, name: &str) -> Result<(), Error> {
        match is_parity(self.sets) {
            true => Err(Error::unsupported(format!("{name}.sets"), "angles in parity mode", "exact angles")),
            false => Ok(()),
        }
    }

    /// What a kernel is told.
    pub(super) fn params(&self) -> Result<longrope_cache_rotary, Error> {
        let original = self.sets.original_length();
        let (choice_kind, choices) = match self.choices {
            CacheChoices::All(SetChoice::Short) => (LONGROPE_CHOICE_SHORT, 0),
            CacheChoices::All(SetChoice::Long) => (LONGROPE_CHOICE_LONG, 0),
            CacheChoices::All(SetChoice::ByLength(length)) if length > original => (LONGROPE_CHOICE_LONG, 0),
            CacheChoices::All(SetChoice::ByLength(_)) => (LONGROPE_CHOICE_SHORT, 0),
            CacheChoices::ByLength => (LONGROPE_CHOICE_BY_LENGTH, 0),
            CacheChoices::ByIndex(address) => (LONGROPE_CHOICE_BY_INDEX, address),
        };
        Ok(longrope_cache_rotary {
            choices: pointer(choices),
            choice_kind: choice_kind as i32,
            pairs: self.sets.pairs() as i32,
            interleaved: i32::from(self.pairing == Pairing::Interleaved),
            parity: i32::from(is_parity(self.sets)),
            sets: factor_sets(self.sets)?,
        })
    }
}
