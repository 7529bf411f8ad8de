//! The synchronous check of what kernels on a cache find on the device.

use std::ops::Range;

use crate::Error;
use crate::device::{Address, Context, DeviceTensor, Stream, download};
use crate::ops::attention_arguments::Starts;
use crate::ops::cache::{Cache, DeviceLengths, NewTokens, PageTable};
use crate::ops::cache_rotary::{CacheChoices, CacheRotary};

/// Numbers that are copied at a time: a number of sequences may be anything, and memory of the host is to suffice.
const CHUNK: usize = 1 << 16;

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
        context: &Context,
        new: Option<(&NewTokens, &DeviceTensor)>,
        first: impl Fn(i64, i64) -> i64,
        stream: Stream,
    ) -> Result<(), Error> {
        let _entered = context.enter(stream)?;
        for sequences in chunks(0..self.cache.sequences()) {
            // SAFETY: the caller's promise.
            unsafe { self.check_sequences(sequences, new, &first, stream) }?;
        }
        Ok(())
    }

    /// Checks what belongs to some sequences.
    ///
    /// # Safety
    /// As above.
    unsafe fn check_sequences(
        &self,
        sequences: Range<usize>,
        new: Option<(&NewTokens, &DeviceTensor)>,
        first: impl Fn(i64, i64) -> i64,
        stream: Stream,
    ) -> Result<(), Error> {
        let (address, wide) = match self.cache.lengths {
            DeviceLengths::I32(address) => (address, false),
            DeviceLengths::I64(address) => (address, true),
        };
        // SAFETY: the caller's promise.
        let lengths = unsafe { numbers(address, wide, sequences.clone(), stream) }?;
        // SAFETY: as above.
        let fresh = unsafe { fresh(new, sequences.clone(), stream) }?;
        let capacity = self.cache.capacity() as i64;
        for ((i, &length), &fresh) in sequences.clone().zip(&lengths).zip(&fresh) {
            if length != 0 && !(fresh..=capacity).contains(&length) || length < 0 {
                let least =
                    if fresh > 0 { format!("0, or {fresh} (its new tokens)") } else { "0".to_owned() };
                let expected = format!("{least} to {capacity} (what the cache holds of a sequence)");
                return Err(Error::argument(format!("cache.lengths[{i}]"), length, expected));
            }
        }
        // Of what takes no part, nothing is looked at.
        let taking_part = || {
            let all = sequences.clone().zip(lengths.iter().copied().zip(fresh.iter().copied()));
            all.filter(|(_, (length, fresh))| *length > 0 && (new.is_none() || *fresh > 0))
        };
        for (name, rotary) in &self.rotary {
            let CacheChoices::ByIndex(address) = rotary.choices else { continue };
            // SAFETY: as above.
            let choices = unsafe { numbers(address, false, sequences.clone(), stream) }?;
            for (i, _) in taking_part() {
                let choice = choices[i - sequences.start];
                if !(0..2).contains(&choice) {
                    let name = format!("{name}.choices[{i}]");
                    return Err(Error::argument(name, choice, "0 (short) or 1 (long)"));
                }
            }
        }
        let Some(table) = self.cache.pages else { return Ok(()) };
        for (i, (length, fresh)) in taking_part() {
            let first = first(length, fresh).max(0);
            // SAFETY: as above.
            unsafe { self.check_pages(&table, i, first, length, stream) }?;
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
        let row = table.address.wrapping_add_signed(sequence as i64 * table.stride * 4);
        for places in chunks(first as usize..end as usize) {
            // SAFETY: the caller's promise.
            let ids = unsafe { numbers(row, false, places.clone(), stream) }?;
            for (page, id) in places.zip(ids) {
                if !(0..pages).contains(&id) {
                    let name = format!("cache.pages[{sequence}][{page}]");
                    return Err(Error::argument(
                        name,
                        id,
                        format!("0 to {}, a page of the cache", pages - 1),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The parts of a range that are looked at one after another.
fn chunks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(CHUNK).map(move |first| first..range.end.min(first + CHUNK))
}

/// How many new tokens each of some sequences has, of starts that are good.
///
/// # Safety
/// As [`Numbers::validate`].
unsafe fn fresh(
    new: Option<(&NewTokens, &DeviceTensor)>,
    sequences: Range<usize>,
    stream: Stream,
) -> Result<Vec<i64>, Error> {
    let Some((tokens, tensor)) = new else { return Ok(vec![0; sequences.len()]) };
    let total = tensor.layout.length() as i64;
    let NewTokens::Packed(packed) = tokens else { return Ok(vec![total; sequences.len()]) };
    let places = sequences.start..sequences.end + 1;
    // SAFETY: the caller's promise.
    let starts = unsafe { numbers(packed.starts, packed.kind == Starts::I64, places.clone(), stream) }?;
    let mut before = 0;
    for (i, &start) in places.zip(&starts) {
        if !(before..=total).contains(&start) {
            let expected = format!("{before} to {total}: starts rise, and end within the tensors");
            return Err(Error::argument(format!("tokens.starts[{i}]"), start, expected));
        }
        // The first start has nothing before it, or was looked at with the sequences before.
        if i > sequences.start && start - before > packed.most as i64 {
            let expected =
                format!("at most {}: {before} and the most new tokens", before + packed.most as i64);
            return Err(Error::argument(format!("tokens.starts[{i}]"), start, expected));
        }
        before = start;
    }
    Ok(starts.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

/// Whole numbers in device memory, `i64` or `i32`, of some places of an array.
///
/// # Safety
/// As [`Numbers::validate`].
unsafe fn numbers(
    array: Address,
    wide: bool,
    places: Range<usize>,
    stream: Stream,
) -> Result<Vec<i64>, Error> {
    let at = |size: usize| array.wrapping_add((places.start * size) as u64);
    if wide {
        let mut found = vec![0i64; places.len()];
        // SAFETY: the caller's promise.
        unsafe { download(&mut found, at(8), stream) }?;
        return Ok(found);
    }
    let mut found = vec![0i32; places.len()];
    // SAFETY: as above.
    unsafe { download(&mut found, at(4), stream) }?;
    Ok(found.into_iter().map(i64::from).collect())
}
