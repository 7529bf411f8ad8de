//! What attention forward and backward have in common: how sequences are told of, what is checked of queries, keys and values,
//! and what the kernels are told of them.

use crate::Error;
use crate::descriptor;
use crate::device::params::{
    LONGROPE_DEVICE_BAD_SEQUENCE, LONGROPE_SEQUENCES_DENSE, LONGROPE_SEQUENCES_PACKED,
    longrope_attention_params,
};
use crate::device::{Address, DeviceTensor, Dtype};

/// The bit of the status word that a bad packed sequence sets: its starts do not rise, lie beyond the tensor, or span more
/// queries than was said; or its position is beyond 2^62. Its rows are not written.
pub const BAD_SEQUENCE: u32 = LONGROPE_DEVICE_BAD_SEQUENCE;

/// How the tensors hold the sequences of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sequences {
    /// They are the batch dimension, and all as long as the tensors.
    #[default]
    Dense,
    /// They follow one another along the length of tensors with a batch of 1, and may be empty.
    Packed(Packed),
}

/// Sequences of any lengths, one after the other. Sequence `i` has the queries `query_starts[i]` to before
/// `query_starts[i + 1]`, and its keys likewise (known elsewhere as `cu_seqlens`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// How many there are.
    pub count: usize,
    /// The address of `count + 1` numbers in device memory.
    pub query_starts: u64,
    /// The same for keys and values.
    pub key_starts: u64,
    /// The type of the starts.
    pub starts: Starts,
    /// No sequence has more queries; a longer one sets [`BAD_SEQUENCE`]. It bounds the blocks that are launched.
    pub max_query_length: usize,
}

/// The type of the starts of packed sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    /// `i32`, as PyTorch has them.
    I32,
    /// `i64`.
    I64,
}

/// Queries, keys and values, and what is asked of them.
pub(super) struct Arguments<'a> {
    pub(super) attention: &'a descriptor::Attention,
    pub(super) sequences: Sequences,
    pub(super) query_offsets: Option<u64>,
    pub(super) status: Option<u64>,
    pub(super) q: &'a DeviceTensor,
    pub(super) k: &'a DeviceTensor,
    pub(super) v: &'a DeviceTensor,
}

impl Arguments<'_> {
    /// Types and addresses. Shapes were checked.
    pub(super) fn check_tensors(&self) -> Result<(), Error> {
        let Self { q, k, v, .. } = self;
        for (name, tensor) in [("k", k), ("v", v)] {
            check_dtype(name, tensor, q, "q", false)?;
        }
        for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
            let needs_none = tensor.layout.is_empty() || q.layout.is_empty();
            check_address(name, Some(tensor.address), tensor.dtype.size() as u64, needs_none)?;
        }
        Ok(())
    }

    /// What is read for each sequence.
    pub(super) fn check_sequences(&self) -> Result<(), Error> {
        let batch = self.q.layout.batch();
        check_address("query_offsets", self.query_offsets, 8, batch == 0)?;
        check_address("status", self.status, 4, batch == 0)?;
        let Sequences::Packed(packed) = self.sequences else { return Ok(()) };
        if batch != 1 {
            return Err(Error::argument("q.batch", batch, "1, since the sequences are packed"));
        }
        let size = if packed.starts == Starts::I64 { 8 } else { 4 };
        check_address("sequences.query_starts", Some(packed.query_starts), size, packed.count == 0)?;
        check_address("sequences.key_starts", Some(packed.key_starts), size, packed.count == 0)
    }

    /// What there are kernels for.
    pub(super) fn check_offered(&self) -> Result<(), Error> {
        let q = self.q;
        if q.dtype == Dtype::F32 {
            return Err(Error::unsupported("q.dtype", "F32", "F16 or Bf16"));
        }
        let (heads, head_dim) = (q.layout.heads(), q.layout.head_dim());
        if !head_dim.is_multiple_of(8) || head_dim > 256 {
            return Err(unsupported_head_dim(head_dim));
        }
        if heads > 1 << 20 {
            return Err(Error::unsupported("q.heads", heads, "at most 2^20 heads"));
        }
        match self.sequences {
            Sequences::Packed(Packed { count, .. }) if count > i32::MAX as usize => {
                Err(Error::unsupported("sequences.count", count, "fewer than 2^31 sequences"))
            }
            _ => Ok(()),
        }
    }

    /// How many sequences there are, and the queries of the longest.
    pub(super) fn sequences(&self) -> (usize, usize) {
        let length = self.q.layout.length();
        match self.sequences {
            Sequences::Dense => (self.q.layout.batch(), length),
            Sequences::Packed(packed) => (packed.count, packed.max_query_length.min(length)),
        }
    }

    /// The factor of the logits.
    pub(super) fn scale(&self) -> f32 {
        self.attention.scale_for(self.q.layout.head_dim())
    }

    /// The parameters of a kernel, but for the output, the log-sum-exp, and how its blocks are numbered.
    pub(super) fn params(&self) -> longrope_attention_params {
        let Self { q, k, v, .. } = self;
        let packed = match self.sequences {
            Sequences::Dense => None,
            Sequences::Packed(packed) => Some(packed),
        };
        let (sequences, longest) = self.sequences();
        let (heads, scale) = (q.layout.heads(), self.scale());
        longrope_attention_params {
            q: pointer(q.address),
            k: pointer(k.address),
            v: pointer(v.address),
            q_stride: q.layout.strides(),
            k_stride: k.layout.strides(),
            v_stride: v.layout.strides(),
            query_length: q.layout.length() as i64,
            key_length: k.layout.length() as i64,
            query_starts: pointer(packed.map_or(0, |packed| packed.query_starts)),
            key_starts: pointer(packed.map_or(0, |packed| packed.key_starts)),
            query_offset: self.attention.query_offset,
            query_offsets: self.query_offsets.unwrap_or(0) as *const i64,
            key_offset: self.attention.key_offset,
            // A window beyond 63 bits reaches everything.
            window: self.attention.window.map_or(0, |window| i64::try_from(window).unwrap_or(i64::MAX)),
            status: self.status.unwrap_or(0) as *mut u32,
            max_query_length: longest as i64,
            sequences: sequences as i32,
            query_heads: heads as i32,
            group: (heads / k.layout.heads()) as i32,
            head_dim: q.layout.head_dim() as i32,
            sequence_kind: match packed {
                None => LONGROPE_SEQUENCES_DENSE,
                Some(_) => LONGROPE_SEQUENCES_PACKED,
            } as i32,
            starts_are_wide: i32::from(packed.is_some_and(|packed| packed.starts == Starts::I64)),
            causal: i32::from(self.attention.causal),
            // Above zero, so that -inf times it is -inf; so small, all logits are 0.
            scale_log2: (scale.abs() * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE),
            negate: i32::from(scale < 0.0),
            ..longrope_attention_params::default()
        }
    }
}

/// Query heads that are worked on together: whole groups, and so many that their keys and values (`key_bytes` each, of one head)
/// fit the second-level cache beside what else is there.
pub(super) fn section_heads(key_bytes: usize, keys: usize, key_heads: usize, heads: usize) -> usize {
    const CACHE_BYTES: usize = 32 << 20;
    let bytes = key_bytes.saturating_mul(keys).max(1);
    let sections = key_heads.div_ceil((CACHE_BYTES / bytes).clamp(1, key_heads));
    // Of equal size, as far as that goes.
    key_heads.div_ceil(sections) * (heads / key_heads)
}

/// The product of numbers of blocks, as long as a grid can have so many.
pub(super) fn blocks_of(factors: &[usize]) -> Option<u32> {
    let blocks = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor))?;
    u32::try_from(blocks).ok().filter(|blocks| *blocks < 1 << 31)
}

pub(super) fn unsupported_head_dim(head_dim: usize) -> Error {
    Error::unsupported("q.head_dim", head_dim, "a multiple of 8 up to 256")
}

/// That a tensor is of the type of another, or also f32.
pub(super) fn check_dtype(
    name: &str,
    tensor: &DeviceTensor,
    of: &DeviceTensor,
    whose: &str,
    or_f32: bool,
) -> Result<(), Error> {
    if tensor.dtype == of.dtype || or_f32 && tensor.dtype == Dtype::F32 {
        return Ok(());
    }
    let expected = format!("{:?}, as {whose}{}", of.dtype, if or_f32 { ", or F32" } else { "" });
    Err(Error::argument(format!("{name}.dtype"), format!("{:?}", tensor.dtype), expected))
}

/// That a tensor has a number for each row of the queries, and is there.
pub(super) fn check_row_numbers(name: &str, tensor: &DeviceTensor, q: &DeviceTensor) -> Result<(), Error> {
    if tensor.dtype != Dtype::F32 {
        return Err(Error::argument(format!("{name}.dtype"), format!("{:?}", tensor.dtype), "F32"));
    }
    let [batch, length, heads, _] = q.layout.shape();
    if tensor.layout.shape() != [batch, length, heads, 1] {
        return Err(Error::argument(
            name,
            format!("shape {:?}", tensor.layout.shape()),
            format!("{:?}, a number for each row of q", [batch, length, heads, 1]),
        ));
    }
    check_address(name, Some(tensor.address), 4, tensor.layout.is_empty())
}

/// The strides of a tensor with a number for each row.
pub(super) fn row_strides(tensor: &DeviceTensor) -> [i64; 3] {
    let [batch, length, heads, _] = tensor.layout.strides();
    [batch, length, heads]
}

/// That an address is there, unless nothing is read, and is a multiple of the size of its elements.
pub(super) fn check_address(
    name: &str,
    address: Option<u64>,
    size: u64,
    may_be_null: bool,
) -> Result<(), Error> {
    match address {
        Some(0) if !may_be_null => Err(Error::argument(name, "a null address", "the address of an element")),
        Some(address) if !address.is_multiple_of(size) => Err(Error::argument(
            name,
            format!("address {address:#x}"),
            format!("a multiple of {size}, the size of an element"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn pointer(address: Address) -> *const std::ffi::c_void {
    address as *const std::ffi::c_void
}
