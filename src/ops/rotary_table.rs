//! Rotary embedding by any number of factor sets: a table in device memory, and an index into it for each sequence.

use crate::Error;
use crate::device::params::{LONGROPE_MAX_PAIRS, longrope_factor_set, longrope_rotary_table_params};
use crate::device::{Context, Stream};
use crate::ops::factors::{factor_set, is_parity};
use crate::ops::rotary::{DeviceChoices, Rotary, RotaryTensor, pointer};
use crate::ops::rotary_launch::{Launch, Source};
use crate::scaling::{Angles, FactorSet};

/// Factor sets as they lie in device memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetTable {
    words: Vec<u64>,
    count: usize,
    pairs: usize,
    parity: bool,
}

impl SetTable {
    /// 64-bit words of a set.
    const SET_WORDS: usize = size_of::<longrope_factor_set>() / size_of::<u64>();

    /// The table of `sets`, in their order.
    ///
    /// # Errors
    /// No set, or more than 2^31 - 1; sets that differ in their pairs or in the source of their angles; more than 128 pairs.
    pub fn new(sets: &[FactorSet]) -> Result<Self, Error> {
        let Some(first) = sets.first() else {
            return Err(Error::argument("sets", "none", "at least one set"));
        };
        if sets.len() > i32::MAX as usize {
            return Err(Error::argument("sets", sets.len(), "at most 2^31 - 1 sets"));
        }
        let (pairs, parity) = (first.pairs(), has_parity(first));
        if pairs > LONGROPE_MAX_PAIRS as usize {
            let expected = format!("at most {LONGROPE_MAX_PAIRS}, a rotary dimension of 256");
            return Err(Error::argument("sets[0]", format!("{pairs} pairs"), expected));
        }
        let mut words = Vec::with_capacity(sets.len() * Self::SET_WORDS);
        for (i, set) in sets.iter().enumerate() {
            if set.pairs() != pairs {
                let expected = format!("{pairs}, as sets[0]");
                return Err(Error::argument(
                    format!("sets[{i}]"),
                    format!("{} pairs", set.pairs()),
                    expected,
                ));
            }
            if has_parity(set) != parity {
                let kind = |parity| if parity { "angles in parity mode" } else { "exact angles" };
                let expected = format!("{}, as sets[0]", kind(parity));
                return Err(Error::argument(format!("sets[{i}]"), kind(!parity), expected));
            }
            // In the order of `longrope_factor_set`.
            let set = factor_set(set);
            words.extend(set.step);
            words.push(set.gain.to_bits());
        }
        Ok(Self { words, count: sets.len(), pairs, parity })
    }

    /// What device memory must hold, at an address that is a multiple of 8.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Sets in it.
    pub fn count(&self) -> usize {
        self.count
    }
}

fn has_parity(set: &FactorSet) -> bool {
    matches!(set.angles(), Angles::Parity(_))
}

/// A rotation of which each sequence uses a set of a table.
#[derive(Debug, Clone, Copy)]
pub struct RotaryByTable<'a> {
    /// The rotation. Its choices must be by index, which is one into the table; of its sets, the plain one is used for first
    /// tokens.
    pub rotary: Rotary<'a>,
    /// The table.
    pub table: &'a SetTable,
    /// The address of the table's words in device memory, read when the kernel runs.
    pub address: u64,
}

impl RotaryByTable<'_> {
    /// Whether it can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`RotaryByTable::run`], but for those of the driver.
    pub fn supported(&self, tensors: &[RotaryTensor]) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// Launches the rotation. An index outside of the table sets [`BAD_CHOICE`](crate::ops::BAD_CHOICE), and the tokens of
    /// that sequence are not written.
    ///
    /// # Errors
    /// As [`Rotary::run`]; choices that are not by index; a table that differs from the rotation's sets in its pairs or in
    /// the source of its angles, or whose address is null or not a multiple of 8.
    ///
    /// # Safety
    /// As [`Rotary::run`], and `address` must be that of as many words as the table has, as it made them.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &[RotaryTensor],
        stream: Stream,
    ) -> Result<(), Error> {
        let Some((launch, params)) = self.plan(tensors)? else { return Ok(()) };
        // SAFETY: the name is that of a kernel by table, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(launch.kernel, launch.grid, &params, stream) }?)
    }

    fn plan(
        &self,
        tensors: &[RotaryTensor],
    ) -> Result<Option<(Launch, longrope_rotary_table_params)>, Error> {
        let (sets, table) = (self.rotary.sets, self.table);
        if !matches!(self.rotary.choices, DeviceChoices::ByIndex(_)) {
            let found = format!("{:?}", self.rotary.choices);
            return Err(Error::argument("rotary.choices", found, "ByIndex, the indices into the table"));
        }
        if (table.pairs, table.parity) != (sets.pairs(), is_parity(sets)) {
            let kind = |pairs, parity| {
                format!("{pairs} pairs of {}", if parity { "angles in parity mode" } else { "exact angles" })
            };
            let expected = format!("{}, as rotary.sets", kind(sets.pairs(), is_parity(sets)));
            return Err(Error::argument("table", kind(table.pairs, table.parity), expected));
        }
        if self.address == 0 || !self.address.is_multiple_of(8) {
            let found = format!("address {:#x}", self.address);
            return Err(Error::argument("address", found, "a multiple of 8 in device memory"));
        }
        Ok(self.rotary.plan(tensors, Source::Table)?.map(|(launch, rotary)| {
            let table = pointer(self.address).cast();
            (launch, longrope_rotary_table_params { rotary, table, count: self.table.count as i64 })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Direction, Layout, Pairing};
    use crate::device::{DeviceTensor, Dtype};
    use crate::ops::DevicePositions;
    use crate::scaling::{FactorSets, SetChoice};

    fn set(pairs: usize, gain: f64) -> FactorSet {
        FactorSet::exact(&vec![0.25; pairs], gain).unwrap()
    }

    #[test]
    fn a_set_is_its_steps_and_its_gain_as_the_kernel_reads_them() {
        let table = SetTable::new(&[set(3, 1.0), set(3, 1.5)]).unwrap();
        assert_eq!((table.count(), table.words().len()), (2, 2 * 129));
        let Angles::Exact(steps) = set(3, 1.5).angles().clone() else { panic!("exact angles") };
        let second = &table.words()[129..];
        assert_eq!(second[..3], steps);
        assert!(second[3..128].iter().all(|step| *step == 0));
        assert_eq!(f64::from_bits(second[128]), 1.5);
        assert_eq!(std::mem::offset_of!(longrope_factor_set, gain), 128 * 8);
    }

    #[test]
    fn sets_that_do_not_belong_into_one_table_are_named() {
        let error = |sets: &[FactorSet]| SetTable::new(sets).unwrap_err().to_string();
        assert!(error(&[]).starts_with("sets: none"));
        assert!(error(&[set(3, 1.0), set(4, 1.0)]).starts_with("sets[1]: 4 pairs"));
        assert!(error(&[set(129, 1.0)]).starts_with("sets[0]: 129 pairs"));
        let parity = FactorSet::parity(&[0.5; 3], 1.0).unwrap();
        assert!(error(&[set(3, 1.0), parity]).starts_with("sets[1]: angles in parity mode"));
    }

    #[test]
    fn what_a_table_does_not_fit_is_refused() {
        let (sets, table) = (FactorSets::uniform(set(4, 1.0)), SetTable::new(&[set(4, 1.0)]).unwrap());
        let rotary = Rotary {
            sets: &sets,
            pairing: Pairing::HalfSplit,
            direction: Direction::Forward,
            positions: DevicePositions::Offset(0),
            choices: DeviceChoices::ByIndex(256),
            status: None,
        };
        let layout = Layout::bshd(1, 2, 1, 8);
        let tensors = [RotaryTensor::in_place(DeviceTensor { address: 256, dtype: Dtype::F32, layout })];
        let good = RotaryByTable { rotary, table: &table, address: 512 };
        assert!(good.supported(&tensors).is_ok());
        let refused = |rotary: RotaryByTable<'_>| rotary.supported(&tensors).unwrap_err().to_string();
        let by_value = Rotary { choices: DeviceChoices::All(SetChoice::Long), ..rotary };
        assert!(refused(RotaryByTable { rotary: by_value, ..good }).starts_with("rotary.choices: "));
        assert!(refused(RotaryByTable { address: 0, ..good }).starts_with("address: "));
        assert!(refused(RotaryByTable { address: 516, ..good }).starts_with("address: "));
        let other = SetTable::new(&[set(3, 1.0)]).unwrap();
        let message = refused(RotaryByTable { table: &other, ..good });
        assert_eq!(
            message,
            "table: 3 pairs of exact angles is not valid; expected 4 pairs of exact angles, as rotary.sets"
        );
    }
}
