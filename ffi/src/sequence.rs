//! The sequences of an attention in host memory: where they lie in its tensors, and copies of them.

use std::ops::Range;

use longrope::Error;
use longrope::descriptor::Layout;
use longrope::device::DeviceTensor;
use longrope::ops::{Packed, Sequences, Starts};

use crate::host::{Elements, number};
use crate::status::Failure;

/// No query or key stands further from 0.
const FAR: i64 = 1 << 62;

/// What is said of the sequences of an attention.
pub struct Told<'a> {
    pub sequences: Sequences,
    pub query_offset: i64,
    pub query_offsets: Option<u64>,
    pub q: &'a DeviceTensor,
    pub k: &'a DeviceTensor,
}

/// Where a sequence lies in its tensors, and where its first query stands.
pub struct Sequence {
    pub batch: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    pub position: i64,
}

impl Told<'_> {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self.sequences {
            Sequences::Dense => self.q.layout.batch(),
            Sequences::Packed(packed) => packed.count,
        }
    }

    /// A sequence by its number, as the kernels read it; `None` if what is said of it is bad.
    ///
    /// # Safety
    /// The addresses are of host memory, aligned, and valid for the number of sequences.
    pub unsafe fn sequence(&self, index: usize) -> Option<Sequence> {
        let (queries, keys) = (self.q.layout.length(), self.k.layout.length());
        let (batch, queries, keys) = match self.sequences {
            Sequences::Dense => (index, 0..queries, 0..keys),
            Sequences::Packed(packed) => {
                // SAFETY: by this function's contract.
                let span = |starts, length| unsafe { span(&packed, starts, index, length) };
                let (queries, keys) = (span(packed.query_starts, queries)?, span(packed.key_starts, keys)?);
                if queries.len() > packed.max_query_length {
                    return None;
                }
                (0, queries, keys)
            }
        };
        let mut position = self.query_offset;
        if let Some(offsets) = self.query_offsets {
            // SAFETY: by this function's contract.
            position = position.saturating_add(unsafe { number::<i64>(offsets, index) });
        }
        let last = position.checked_add_unsigned(queries.len() as u64)?;
        (position >= -FAR && last <= FAR).then_some(Sequence { batch, queries, keys, position })
    }
}

/// Where a packed sequence lies in a tensor of `length` tokens, if it does.
///
/// # Safety
/// `starts` is the address of the starts, valid for `index + 2` of them.
unsafe fn span(packed: &Packed, starts: u64, index: usize, length: usize) -> Option<Range<usize>> {
    let start = |index| match packed.starts {
        // SAFETY: by this function's contract.
        Starts::I32 => i64::from(unsafe { number::<i32>(starts, index) }),
        // SAFETY: as above.
        Starts::I64 => unsafe { number::<i64>(starts, index) },
    };
    let (start, end) = (usize::try_from(start(index)).ok()?, usize::try_from(start(index + 1)).ok()?);
    (start <= end && end <= length).then_some(start..end)
}

/// An empty buffer with room for `elements`. A shape may be larger than the memory it is of, by strides of 0.
fn buffer(name: &str, elements: usize) -> Result<Vec<f32>, Failure> {
    let mut buffer = Vec::new();
    match buffer.try_reserve_exact(elements) {
        Ok(()) => Ok(buffer),
        Err(_) => Err(too_large(name, format!("a sequence of {elements} elements"))),
    }
}

fn too_large(name: &str, found: String) -> Failure {
    Error::unsupported(name, found, "what fits the memory of this machine a second time").into()
}

/// Zeros, as many as there are elements of another copy.
pub fn zeros(name: &str, like: &[f32]) -> Result<Vec<f32>, Failure> {
    let mut zeros = buffer(name, like.len())?;
    zeros.resize(like.len(), 0.0);
    Ok(zeros)
}

/// A copy of some tokens of a tensor, which messages call `name`, and its layout.
///
/// # Safety
/// The tensor is f32 and valid for its shape; the tokens are some of it.
pub unsafe fn gather(
    name: &str,
    tensor: &DeviceTensor,
    batch: usize,
    tokens: &Range<usize>,
) -> Result<(Vec<f32>, Layout), Failure> {
    let (heads, head_dim) = (tensor.layout.heads(), tensor.layout.head_dim());
    let elements = tokens.len().checked_mul(heads).and_then(|rows| rows.checked_mul(head_dim));
    let elements = elements.ok_or_else(|| too_large(name, format!("shape {:?}", tensor.layout.shape())))?;
    let mut copy = buffer(name, elements)?;
    let part = Elements::new(tensor, batch, tokens.start, 0);
    // SAFETY: by this function's contract.
    part.each([tokens.len(), heads, head_dim], |element| copy.push(unsafe { element.cast_const().read() }));
    Ok((copy, Layout::bshd(1, tokens.len(), heads, head_dim)))
}

/// Writes some tokens of a tensor, or with `add` adds to what is there.
///
/// # Safety
/// As [`gather`].
pub unsafe fn scatter(values: &[f32], tensor: &DeviceTensor, batch: usize, tokens: &Range<usize>, add: bool) {
    let mut values = values.iter();
    let shape = [tokens.len(), tensor.layout.heads(), tensor.layout.head_dim()];
    Elements::new(tensor, batch, tokens.start, 0).each(shape, |element| {
        if let Some(value) = values.next() {
            // SAFETY: by this function's contract.
            unsafe { element.write(if add { element.read() + value } else { *value }) };
        }
    });
}

/// Writes zeros to some tokens of a tensor.
///
/// # Safety
/// As [`gather`].
pub unsafe fn clear(tensor: &DeviceTensor, batch: usize, tokens: &Range<usize>) {
    let shape = [tokens.len(), tensor.layout.heads(), tensor.layout.head_dim()];
    // SAFETY: by this function's contract.
    Elements::new(tensor, batch, tokens.start, 0).each(shape, |element| unsafe { element.write(0.0) });
}
