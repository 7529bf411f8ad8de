//! Keys and values of sequences that grow, and which of their tokens are new.

use crate::Error;
use crate::device::params::{
    LONGROPE_DEVICE_BAD_LENGTH, LONGROPE_DEVICE_BAD_PAGE, longrope_cache, longrope_new_tokens,
};
use crate::device::{DeviceTensor, Dtype};
use crate::ops::attention_arguments::{Starts, check_address, pointer};

/// The bit of the status word that a bad length sets: it is below 0, below the sequence's new tokens but not 0, or beyond what
/// the cache holds for the sequence. Nothing of that sequence is read or written.
pub const BAD_LENGTH: u32 = LONGROPE_DEVICE_BAD_LENGTH;

/// The bit of the status word that a bad page sets: an id that is needed is none of the cache's pages.
pub const BAD_PAGE: u32 = LONGROPE_DEVICE_BAD_PAGE;

/// Keys and values of sequences that grow. Token `t` of a sequence lies in row `t % page_size` of the page that its row of the
/// page table names at `t / page_size`; without a table sequence `i` is page `i`, as long as the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Keys, `[pages, page_size, key_heads, head_dim]`; without a table `[sequences, capacity, key_heads, head_dim]`.
    pub k: DeviceTensor,
    /// Values, of the same type and shape.
    pub v: DeviceTensor,
    /// Which pages hold which sequence; `None` if each sequence is contiguous.
    pub pages: Option<PageTable>,
    /// The tokens of each sequence.
    pub lengths: DeviceLengths,
}

/// `i32` page ids in device memory, `[sequences, width]` (known elsewhere as a block table). Ids of pages that are not needed
/// are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageTable {
    /// The address of the first id.
    pub address: u64,
    /// How many sequences there are.
    pub sequences: usize,
    /// Pages of a sequence, at most.
    pub width: usize,
    /// From the ids of a sequence to those of the next, in elements.
    pub stride: i64,
}

/// The address of the tokens of each sequence, `[sequences]` in device memory, the new ones included. A sequence of length 0
/// takes no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceLengths {
    /// `i32`, as PyTorch has them.
    I32(u64),
    /// `i64`.
    I64(u64),
}

/// Which tokens are new: the last of each sequence's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTokens {
    /// As many of each sequence: tensors are `[sequences, tokens, heads, head_dim]`.
    Dense,
    /// Any number of each sequence, one sequence after the other: tensors are `[1, total, heads, head_dim]`.
    Packed(PackedTokens),
}

/// New tokens of sequences, one after the other. Those of sequence `i` are `starts[i]` to before `starts[i + 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedTokens {
    /// The address of `sequences + 1` numbers in device memory.
    pub starts: u64,
    /// The type of the starts.
    pub kind: Starts,
    /// No sequence has more new tokens; a longer one sets [`BAD_SEQUENCE`](crate::ops::BAD_SEQUENCE).
    pub most: usize,
}

/// Rows that a kernel takes at once: they lie in one page.
const PAGE_UNIT: usize = 16;
/// The largest page.
const MAX_PAGE: usize = 256;

impl Cache {
    /// How many sequences there are.
    pub(super) fn sequences(&self) -> usize {
        self.pages.map_or(self.k.layout.batch(), |pages| pages.sequences)
    }

    /// The tokens that there is room for of each sequence.
    pub(super) fn capacity(&self) -> usize {
        let page_size = self.k.layout.length();
        self.pages.map_or(page_size, |pages| pages.width.saturating_mul(page_size))
    }

    /// Bytes of the keys and values of so many tokens.
    pub(super) fn bytes(&self, tokens: usize) -> usize {
        let [_, _, heads, head_dim] = self.k.layout.shape();
        tokens.saturating_mul(heads).saturating_mul(2 * head_dim * self.k.dtype.size())
    }

    /// Whether the cache means something, be it offered or not, and fits a tensor of this name. `idle`: there is nothing to do, so
    /// that no address is needed.
    pub(super) fn check(&self, name: &str, tensor: &DeviceTensor, idle: bool) -> Result<(), Error> {
        let Self { k, v, .. } = self;
        if k.layout.head_dim() != tensor.layout.head_dim() {
            let expected = format!("{}, as {name}", tensor.layout.head_dim());
            return Err(Error::argument("cache.k.head_dim", k.layout.head_dim(), expected));
        }
        if v.layout.shape() != k.layout.shape() {
            return Err(Error::argument(
                "cache.v",
                format!("shape {:?}", v.layout.shape()),
                format!("{:?}, as k", k.layout.shape()),
            ));
        }
        for (part, one) in [("cache.k", k), ("cache.v", v)] {
            if one.dtype != tensor.dtype {
                let expected = format!("{:?}, as {name}", tensor.dtype);
                return Err(Error::argument(format!("{part}.dtype"), format!("{:?}", one.dtype), expected));
            }
            let needs_none = idle || one.layout.is_empty();
            check_address(part, Some(one.address), one.dtype.size() as u64, needs_none)?;
        }
        if let Some(pages) = self.pages {
            check_address("cache.pages", Some(pages.address), 4, idle || pages.width == 0)?;
            if pages.stride < 0 {
                return Err(Error::argument("cache.pages.stride", pages.stride, "at least 0"));
            }
        }
        let (lengths, size) = match self.lengths {
            DeviceLengths::I32(address) => (address, 4),
            DeviceLengths::I64(address) => (address, 8),
        };
        check_address("cache.lengths", Some(lengths), size, idle)
    }

    /// What there are kernels for.
    pub(super) fn check_offered(&self) -> Result<(), Error> {
        check_vectors("cache.k", &self.k)?;
        check_vectors("cache.v", &self.v)?;
        if self.sequences() > i32::MAX as usize {
            return Err(Error::unsupported(
                "cache",
                format!("{} sequences", self.sequences()),
                "fewer than 2^31",
            ));
        }
        let Some(pages) = self.pages else { return Ok(()) };
        let size = self.k.layout.length();
        if !(PAGE_UNIT..=MAX_PAGE).contains(&size) || !size.is_multiple_of(PAGE_UNIT) {
            let expected = format!("pages of a multiple of {PAGE_UNIT} tokens up to {MAX_PAGE}");
            return Err(Error::unsupported("cache.k.length", size, expected));
        }
        let ids = i64::try_from(pages.sequences).ok().and_then(|count| pages.stride.checked_mul(count));
        if ids.is_none_or(|ids| ids > 1 << 48) {
            let expected = format!("a table of at most 2^48 ids, of {} sequences", pages.sequences);
            return Err(Error::unsupported("cache.pages.stride", pages.stride, expected));
        }
        // The kernels count the tokens of a table in 32 bits.
        if pages.width.checked_mul(size).is_none_or(|capacity| capacity > 1 << 31) {
            let expected = format!("at most 2^31 tokens of a sequence, in pages of {size}");
            return Err(Error::unsupported("cache.pages.width", pages.width, expected));
        }
        Ok(())
    }

    /// What a kernel is told, of a cache that was checked.
    pub(super) fn params(&self) -> longrope_cache {
        let [pages, page_size, key_heads, _] = self.k.layout.shape();
        let (lengths, lengths_are_wide) = match self.lengths {
            DeviceLengths::I32(address) => (address, 0),
            DeviceLengths::I64(address) => (address, 1),
        };
        longrope_cache {
            k: pointer(self.k.address).cast_mut(),
            v: pointer(self.v.address).cast_mut(),
            k_stride: self.k.layout.strides(),
            v_stride: self.v.layout.strides(),
            page_table: pointer(self.pages.map_or(0, |table| table.address)).cast(),
            table_stride: self.pages.map_or(0, |table| table.stride),
            pages: pages as i64,
            page_size: page_size as i64,
            capacity: self.capacity() as i64,
            lengths: pointer(lengths),
            lengths_are_wide,
            sequences: self.sequences() as i32,
            key_heads: key_heads as i32,
            padding: 0,
        }
    }
}

impl NewTokens {
    /// The new tokens of a sequence, at most.
    pub(super) fn most(&self, q: &DeviceTensor) -> usize {
        match self {
            Self::Dense => q.layout.length(),
            // What was said, not what the batch has: a sequence's kernel is not to depend on the batch around it.
            Self::Packed(packed) => packed.most,
        }
    }

    /// Whether a tensor of new tokens, of this name, fits the sequences; `idle` as in [`Cache::check`].
    pub(super) fn check(
        &self,
        name: &str,
        tensor: &DeviceTensor,
        sequences: usize,
        idle: bool,
    ) -> Result<(), Error> {
        let batch = tensor.layout.batch();
        let wrong = |expected| Err(Error::argument(format!("{name}.batch"), batch, expected));
        match self {
            Self::Dense if batch != sequences => wrong(format!("{sequences}, the sequences of the cache")),
            Self::Dense => Ok(()),
            Self::Packed(_) if batch != 1 => wrong("1, since the new tokens are packed".to_owned()),
            Self::Packed(packed) => {
                let size = if packed.kind == Starts::I64 { 8 } else { 4 };
                check_address("tokens.starts", Some(packed.starts), size, idle)
            }
        }
    }

    /// What a kernel is told.
    pub(super) fn params(&self, q: &DeviceTensor) -> longrope_new_tokens {
        let packed = match self {
            Self::Dense => None,
            Self::Packed(packed) => Some(packed),
        };
        longrope_new_tokens {
            starts: pointer(packed.map_or(0, |packed| packed.starts)),
            total: q.layout.length() as i64,
            // No limit, if it is beyond 63 bits.
            most: i64::try_from(self.most(q)).unwrap_or(i64::MAX),
            starts_are_wide: i32::from(packed.is_some_and(|packed| packed.kind == Starts::I64)),
            padding: 0,
        }
    }
}

/// That 16 bytes of a tensor can be moved at once.
pub(super) fn check_vectors(name: &str, tensor: &DeviceTensor) -> Result<(), Error> {
    if tensor.layout.is_empty() || tensor.is_vectorizable() {
        return Ok(());
    }
    Err(Error::unsupported(
        name,
        format!("address {:#x} with strides {:?}", tensor.address, tensor.layout.strides()),
        "a head dimension of stride 1 and rows at multiples of 16 bytes",
    ))
}

/// What every operation on a cache asks of its types and sizes.
pub(super) fn check_elements(name: &str, tensor: &DeviceTensor) -> Result<(), Error> {
    if tensor.dtype == Dtype::F32 {
        return Err(Error::unsupported(format!("{name}.dtype"), "F32", "F16 or Bf16"));
    }
    let (heads, head_dim) = (tensor.layout.heads(), tensor.layout.head_dim());
    if !head_dim.is_multiple_of(8) || head_dim > 256 {
        return Err(Error::unsupported(format!("{name}.head_dim"), head_dim, "a multiple of 8 up to 256"));
    }
    if heads > 1 << 20 {
        return Err(Error::unsupported(format!("{name}.heads"), heads, "at most 2^20 heads"));
    }
    Ok(())
}
