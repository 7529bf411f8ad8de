//! Tensors in device memory.

use std::ops::Range;

use crate::descriptor::Layout;

/// An address in device memory, as the driver's `CUdeviceptr`.
pub(crate) type Address = u64;

/// The type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A tensor in device memory: the address of its first element, its type and its layout. It owns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTensor {
    /// The address of the element at index 0 of every dimension.
    pub address: u64,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Shape and strides.
    pub layout: Layout,
}

impl DeviceTensor {
    /// Some sequences of the batch, and some heads of them.
    pub(crate) fn part(&self, batch: Range<usize>, heads: Range<usize>) -> Self {
        let [_, length, _, head_dim] = self.layout.shape();
        let strides = self.layout.strides();
        let first = (batch.start as i64)
            .wrapping_mul(strides[0])
            .wrapping_add((heads.start as i64).wrapping_mul(strides[2]));
        Self {
            address: self.address.wrapping_add_signed(first.wrapping_mul(self.dtype.size() as i64)),
            layout: Layout::strided([batch.len(), length, heads.len(), head_dim], strides),
            ..*self
        }
    }

    /// Whether every 16 bytes along the head dimension can be read at once: unit stride there, and a first element and
    /// strides that keep the alignment.
    pub(crate) fn is_vectorizable(&self) -> bool {
        let lanes = (16 / self.dtype.size()) as i64;
        let [batch, length, heads, dim] = self.layout.strides();
        let aligned = |stride: i64, size: usize| size <= 1 || stride % lanes == 0;
        self.address.is_multiple_of(16)
            && dim == 1
            && aligned(batch, self.layout.batch())
            && aligned(length, self.layout.length())
            && aligned(heads, self.layout.heads())
    }
}
