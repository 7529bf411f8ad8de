//! The synchronous check of what kernels on a cache find on the device.

use crate::Error;
use crate::device::{Address, DeviceTensor, Stream, download};
use crate::ops::attention_arguments::Starts;
use crate::ops::cache::{Cache, DeviceLengths, NewTokens, PageTable};
use crate::ops::cache_rotary::{CacheChoices, CacheRotary};

/// The numbers of an operation.
pub(super) struct Numbers<'a> {
    pub(super) cache: &'a Cache,
    /// The rotations, by their names.
    pub(super) rotary: Vec<(&'static str, CacheRotary<'a>)>,
}

impl Numbers<'_> {
    /// Checks all of them. `new`: the new tokens, and a tensor of them. `first`: the first token of a sequence whose page is needed,
    /// by its length and its new tokens.
    ///
    /// # Safety
    /// The addresses must be of device memory of the stream's context, as large as the shapes say.
    pub(super) unsafe fn validate(
        &self,
        new: Option<(&NewTokens, &DeviceTensor)>,
        first: impl Fn(i64, i64) -> i64,
        stream: Stream,
    ) -> Result<(), Error> {
        let sequences = self.cache.sequences();
        let (address, wide) = match self.cache.lengths {
            DeviceLengths::I32(address) => (address, false),
            DeviceLengths::I64(address) => (address, true),
        };
        // SAFETY: the caller's promise.
        let lengths = unsafe { numbers(address, wide, sequences, stream) }?;
        // SAFETY: as above.
        let fresh = unsafe { fresh(new, sequences, stream) }?;
        let capacity = self.cache.capacity() as i64;
        for (i, (&length, &fresh)) in lengths.iter().zip(&fresh).enumerate() {
            if length != 0 && !(fresh..=capacity).contains(&length) || length < 0 {
                let least =
                    if fresh > 0 { format!("0, or {fresh} (its new tokens)") } else { "0".to_owned() };
                let expected = format!("{least} to {capacity} (what the cache holds of a sequence)");
                return Err(Error::argument(format!("cache.lengths[{i}]"), length, expected));
            }
        }
        // Of what takes no part, nothing is looked at.
        let takes_part = |i: usize| lengths[i] > 0 && (new.is_none() || fresh[i] > 0);
        for (name, rotary) in &self.rotary {
            let CacheChoices::ByIndex(address) = rotary.choices else { continue };
            // SAFETY: as above.
            let choices = unsafe { numbers(address, false, sequences, stream) }?;
            for (i, &choice) in choices.iter().enumerate().filter(|(i, _)| takes_part(*i)) {
                if !(0..2).contains(&choice) {
                    let name = format!("{name}.choices[{i}]");
                    return Err(Error::argument(name, choice, "0 (short) or 1 (long)"));
                }
            }
        }
        let Some(table) = self.cache.pages else { return Ok(()) };
        for i in (0..sequences).filter(|i| takes_part(*i)) {
            let first = first(lengths[i], fresh[i]).max(0);
            // SAFETY: as above.
            unsafe { self.check_pages(&table, i, first, lengths[i], stream) }?;
        }
        Ok(())
    }

    /// Checks the ids of the pages of one sequence's tokens.
    ///
    /// # Safety
    /// As above.
    unsafe fn check_pages(
        &self,
        table: &PageTable,
        sequence: usize,
        first: i64,
        end: i64,
        stream: Stream,
    ) -> Result<(), Error> {
        let (size, pages) = (self.cache.k.layout.length() as i64, self.cache.k.layout.batch() as i64);
        let (first, end) = (first / size, (end + size - 1) / size);
        if first >= end {
            return Ok(());
        }
        let at = table.address.wrapping_add_signed((sequence as i64 * table.stride + first) * 4);
        // SAFETY: the caller's promise.
        let ids = unsafe { numbers(at, false, (end - first) as usize, stream) }?;
        for (page, id) in (first..).zip(ids) {
            if !(0..pages).contains(&id) {
                let name = format!("cache.pages[{sequence}][{page}]");
                return Err(Error::argument(name, id, format!("0 to {}, a page of the cache", pages - 1)));
            }
        }
        Ok(())
    }
}

/// How many new tokens each sequence has, of starts that are good.
///
/// # Safety
/// As [`Numbers::validate`].
unsafe fn fresh(
    new: Option<(&NewTokens, &DeviceTensor)>,
    sequences: usize,
    stream: Stream,
) -> Result<Vec<i64>, Error> {
    let Some((tokens, tensor)) = new else { return zeros(sequences) };
    let total = tensor.layout.length() as i64;
    let NewTokens::Packed(packed) = tokens else {
        let mut all = zeros(sequences)?;
        all.fill(total);
        return Ok(all);
    };
    // SAFETY: the caller's promise.
    let starts = unsafe { numbers(packed.starts, packed.kind == Starts::I64, sequences + 1, stream) }?;
    let mut before = 0;
    for (i, &start) in starts.iter().enumerate() {
        if !(before..=total).contains(&start) {
            let expected = format!("{before} to {total}: starts rise, and end within the tensors");
            return Err(Error::argument(format!("tokens.starts[{i}]"), start, expected));
        }
        if i > 0 && start - before > packed.most as i64 {
            let expected =
                format!("at most {}: {before} and the most new tokens", before + packed.most as i64);
            return Err(Error::argument(format!("tokens.starts[{i}]"), start, expected));
        }
        before = start;
    }
    Ok(starts.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

/// Whole numbers in device memory, `i64` or `i32`.
///
/// # Safety
/// As [`Numbers::validate`].
unsafe fn numbers(address: Address, wide: bool, count: usize, stream: Stream) -> Result<Vec<i64>, Error> {
    if wide {
        let mut found = zeros::<i64>(count)?;
        // SAFETY: the caller's promise.
        unsafe { download(&mut found, address, stream) }?;
        return Ok(found);
    }
    let mut narrow = zeros::<i32>(count)?;
    // SAFETY: as above.
    unsafe { download(&mut narrow, address, stream) }?;
    let mut found = zeros::<i64>(count)?;
    found.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = i64::from(narrow));
    Ok(found)
}

/// So many zeros, or an error where there is no memory for them: a number of sequences may be anything.
fn zeros<T: Clone + Default>(count: usize) -> Result<Vec<T>, Error> {
    let mut zeros = Vec::new();
    if zeros.try_reserve_exact(count).is_err() {
        let expected = "as many as there is memory of the host for, to check them";
        return Err(Error::unsupported("cache", format!("{count} numbers"), expected));
    }
    zeros.resize(count, T::default());
    Ok(zeros)
}
