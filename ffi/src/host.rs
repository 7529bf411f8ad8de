//! What a descriptor points to in host memory, for the CPU forms.
//!
//! Tensors are the caller's, of any stride, and may overlap in memory; so they are not seen as slices, but element by element.

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use longrope::device::DeviceTensor;

/// A number of an array.
///
/// # Safety
/// The address is of an array of `T`, aligned and longer than `index`.
pub unsafe fn number<T: Copy>(array: u64, index: usize) -> T {
    // SAFETY: by this function's contract.
    unsafe { with_exposed_provenance::<T>(array as usize).add(index).read() }
}

/// Sets bits of a status word, if there is one.
///
/// # Safety
/// The address is of a `u32` that no one else uses.
pub unsafe fn set_bits(status: Option<u64>, bits: u32) {
    if let Some(status) = status {
        // SAFETY: by this function's contract.
        unsafe { *with_exposed_provenance_mut::<u32>(status as usize) |= bits };
    }
}

/// The elements of a part of a tensor.
pub struct Elements {
    first: *mut f32,
    stride: [isize; 4],
}

impl Elements {
    /// Those from a sequence, a token and a head on.
    pub fn new(tensor: &DeviceTensor, sequence: usize, token: usize, head: usize) -> Self {
        let stride = tensor.layout.strides().map(|stride| stride as isize);
        let at = |index: usize, dim: usize| (index as isize).wrapping_mul(stride[dim]);
        let offset = at(sequence, 0).wrapping_add(at(token, 1)).wrapping_add(at(head, 2));
        let data = with_exposed_provenance_mut::<f32>(tensor.address as usize);
        Self { first: data.wrapping_offset(offset), stride }
    }

    /// Visits tokens, heads and dimensions in this order.
    pub fn each(&self, [tokens, heads, dims]: [usize; 3], mut visit: impl FnMut(*mut f32)) {
        let [_, by_token, by_head, by_dim] = self.stride;
        for token in 0..tokens as isize {
            for head in 0..heads as isize {
                let row = token.wrapping_mul(by_token).wrapping_add(head.wrapping_mul(by_head));
                let row = self.first.wrapping_offset(row);
                (0..dims as isize).for_each(|dim| visit(row.wrapping_offset(dim.wrapping_mul(by_dim))));
            }
        }
    }
}
