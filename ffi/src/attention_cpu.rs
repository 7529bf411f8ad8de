//! Attention on the CPU, from the descriptor of a launch.
//!
//! The tensors of a sequence are copied into buffers of the library's, and the result is copied out.

use std::ops::Range;

use longrope::Error;
use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, BAD_SEQUENCE, Packed, Sequences, Starts};

use crate::abi::{self, AttentionDesc, Status};
use crate::attention::{in_c, read};
use crate::host::{Elements, number, set_bits};
use crate::status::{Failure, guard};
use crate::threads;

/// No query or key stands further from 0.
const FAR: i64 = 1 << 62;

/// Attention in host memory.
///
/// # Safety
/// As `longrope_attention_supported`; all addresses are of host memory, valid for what the shapes say, and used by no one else
/// during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_cpu(
    desc: *const AttentionDesc,
    tensors: *const abi::AttentionTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (attention, tensors) = unsafe { read(desc, tensors) }?;
        attention.validate(&tensors).map_err(in_c)?;
        if tensors.q.dtype != Dtype::F32 {
            let found = format!("{:?}", tensors.q.dtype);
            return Err(in_c(Error::unsupported("q.dtype", found, "F32, which is what the CPU form takes")));
        }
        for (argument, is_asked) in
            [("carry.out", attention.carry.is_some()), ("query_rotary", attention.query_rotary.is_some())]
        {
            if is_asked {
                return Err(in_c(Error::unsupported(argument, "one", "none, since the CPU form takes none")));
            }
        }
        let count = match attention.sequences {
            Sequences::Dense => tensors.q.layout.batch(),
            Sequences::Packed(packed) => packed.count,
        };
        if tensors.q.layout.is_empty() {
            return Ok(());
        }
        // SAFETY: the addresses were checked, and are valid by this function's contract.
        threads::run(|| unsafe { attend(&attention, &tensors, count) })
    })
}

/// Attention of so many sequences.
///
/// # Safety
/// The addresses are of host memory, aligned, and valid for the shapes and the number of sequences.
unsafe fn attend(attention: &Attention<'_>, tensors: &AttentionTensors, count: usize) -> Result<(), Failure> {
    for index in 0..count {
        // SAFETY: by this function's contract.
        match unsafe { Sequence::read(attention, tensors, index) } {
            // SAFETY: as above, and the sequence lies within the tensors.
            Some(sequence) => unsafe { sequence.attend(&attention.attention, tensors) }?,
            // SAFETY: as above.
            None => unsafe { set_bits(attention.status, BAD_SEQUENCE) },
        }
    }
    Ok(())
}

/// Where a sequence lies in its tensors, and where its first query stands.
struct Sequence {
    batch: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    position: i64,
}

impl Sequence {
    /// A sequence by its number, as the kernels read it; `None` if what is said of it is bad.
    ///
    /// # Safety
    /// The addresses are of host memory, aligned, and valid for the number of sequences.
    unsafe fn read(attention: &Attention<'_>, tensors: &AttentionTensors, index: usize) -> Option<Self> {
        let (queries, keys) = (tensors.q.layout.length(), tensors.k.layout.length());
        let (batch, queries, keys) = match attention.sequences {
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
        let mut position = attention.attention.query_offset;
        if let Some(offsets) = attention.query_offsets {
            // SAFETY: by this function's contract.
            position = position.saturating_add(unsafe { number::<i64>(offsets, index) });
        }
        let last = position.checked_add_unsigned(queries.len() as u64)?;
        (position >= -FAR && last <= FAR).then_some(Self { batch, queries, keys, position })
    }

    /// Attention of its queries over its keys.
    ///
    /// # Safety
    /// The tensors are f32, of shapes that belong together, and valid for them; the sequence lies within.
    unsafe fn attend(
        &self,
        attention: &descriptor::Attention,
        tensors: &AttentionTensors,
    ) -> Result<(), Failure> {
        let Self { batch, queries, keys, position } = self;
        if queries.is_empty() {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        let read = |name, tensor, tokens| unsafe { gather(name, tensor, *batch, tokens) };
        let (q, q_layout) = read("q", &tensors.q, queries)?;
        let (k, k_layout) = read("k", &tensors.k, keys)?;
        let (v, v_layout) = read("v", &tensors.v, keys)?;
        let mut out = buffer("out", q.len())?;
        out.resize(q.len(), 0.0);
        let mut lse = Vec::new();
        if tensors.lse.is_some() {
            lse.resize(queries.len() * q_layout.heads(), 0.0);
        }
        cpu::attention(
            &descriptor::Attention { query_offset: *position, ..*attention },
            Tensor::new(&q, q_layout),
            Tensor::new(&k, k_layout),
            Tensor::new(&v, v_layout),
            TensorMut::new(&mut out, q_layout),
            tensors.lse.is_some().then_some(&mut lse[..]),
        )
        .map_err(in_c)?;
        // SAFETY: as above.
        unsafe { scatter(&out, &tensors.out, *batch, queries) };
        if let Some(tensor) = &tensors.lse {
            // SAFETY: as above.
            unsafe { scatter(&lse, tensor, *batch, queries) };
        }
        Ok(())
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
    in_c(Error::unsupported(name, found, "what fits the memory of this machine a second time"))
}

/// A copy of some tokens of a tensor, and its layout.
///
/// # Safety
/// The tensor is f32 and valid for its shape; the tokens are some of it.
unsafe fn gather(
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

/// Writes some tokens of a tensor.
///
/// # Safety
/// As [`gather`].
unsafe fn scatter(values: &[f32], tensor: &DeviceTensor, batch: usize, tokens: &Range<usize>) {
    let mut values = values.iter();
    let shape = [tokens.len(), tensor.layout.heads(), tensor.layout.head_dim()];
    Elements::new(tensor, batch, tokens.start, 0).each(shape, |element| {
        if let Some(value) = values.next() {
            // SAFETY: by this function's contract.
            unsafe { element.write(*value) };
        }
    });
}
