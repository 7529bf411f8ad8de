//! Tensor maps, by which Hopper's copy engine (TMA) is told of a tensor.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::device::driver::{DeviceError, check};
use crate::device::params::longrope_tensor_map;
use crate::device::{Address, DeviceTensor, Dtype};

/// Dimensions of a box: 128 bytes of 16-bit elements, which the engine swizzles.
const BOX_DIMS: u32 = 64;

const _: () = assert!(size_of::<longrope_tensor_map>() == size_of::<sys::CUtensorMap>());

/// Whether a tensor of 16 bits can be described: its strides are multiples of 16 bytes from 0 to below 2^40, as far as they
/// matter, and no dimension has 2^31 places.
pub(crate) fn can_describe(tensor: &DeviceTensor) -> bool {
    tensor.is_vectorizable()
        && tensor.layout.shape().iter().all(|&size| size < 1 << 31)
        && strides(tensor).iter().all(|&stride| stride < 1 << 40)
}

/// Describes `[batch, length, heads, head_dim]` in boxes of 64 dimensions and so many rows of a head. `nowhere` is an address that
/// stands for that of a tensor without elements, of which nothing will be read.
pub(crate) fn describe(
    tensor: &DeviceTensor,
    rows: u32,
    nowhere: Address,
) -> Result<longrope_tensor_map, DeviceError> {
    let is_empty = tensor.layout.is_empty();
    let address = if is_empty { nowhere } else { tensor.address };
    let [batch, length, heads, head_dim] = tensor.layout.shape().map(|size| size.max(1) as u64);
    let sizes = [head_dim, length, heads, batch];
    let strides = strides(tensor);
    let (boxes, steps) = ([BOX_DIMS, rows, 1, 1], [1; 4]);
    let dtype = match tensor.dtype {
        Dtype::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    /// As aligned as the driver wants it.
    #[repr(align(128))]
    struct Aligned(longrope_tensor_map);
    let mut map = Aligned(longrope_tensor_map::default());
    // SAFETY: the map has the size and alignment of the driver's; the arrays are of four sizes, three strides, four boxes and
    // four steps, as the rank says. The driver does not read the tensor.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut map.0).cast(),
            dtype,
            4,
            address as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", encoded)?;
    Ok(map.0)
}

/// Bytes from a row to the next, from a head, and from a batch. Of a dimension with one place any will do.
fn strides(tensor: &DeviceTensor) -> [u64; 3] {
    let [batch, length, heads, _] = tensor.layout.strides();
    let sizes = tensor.layout.shape();
    let bytes = |stride: i64, size: usize| match size {
        0 | 1 => 16,
        // A stride below zero becomes one that is too large.
        _ => (stride as u64).saturating_mul(tensor.dtype.size() as u64),
    };
    [bytes(length, sizes[1]), bytes(heads, sizes[2]), bytes(batch, sizes[0])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Layout;

    fn tensor(shape: [usize; 4], strides: [i64; 4]) -> DeviceTensor {
        DeviceTensor { address: 0x100, dtype: Dtype::Bf16, layout: Layout::strided(shape, strides) }
    }

    #[test]
    fn what_the_engine_cannot_step_over_is_not_described() {
        for (strides, expected) in [
            ([1024, 256, 128, 1], true),
            ([0, 0, 0, 1], true),
            ([1 << 38, 256, 128, 1], true),
            ([1 << 39, 256, 128, 1], false),
            ([1024, -256, 128, 1], false),
            ([1024, 260, 128, 1], false),
            ([1024, 256, 128, 2], false),
        ] {
            assert_eq!(can_describe(&tensor([2, 4, 2, 64], strides)), expected, "{strides:?}");
        }
        // Strides of a single place don't matter.
        assert!(can_describe(&tensor([1, 4, 1, 64], [-3, 64, -5, 1])));
        assert!(!can_describe(&tensor([1, 1 << 31, 1, 64], [0, 64, 0, 1])));
    }
}
