//! Views `[batch, length, heads, head_dim]` of tensors that lie otherwise in memory.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

/// How a view lies in its storage.
#[derive(Debug, Clone, Copy)]
pub enum View {
    /// As it is read.
    Contiguous,
    /// Transposed from `[batch, heads, length, head_dim]`.
    HeadsFirst,
    /// Transposed from `[batch, heads, head_dim, length]`: the head dimension is strided.
    LengthLast,
    /// Cut out of a tensor that is larger in every dimension: an offset, and gaps everywhere.
    Cut,
    /// The middle third of a packed `[batch, length, 3 * heads, head_dim]`.
    Packed,
}

pub fn view() -> impl Strategy<Value = View> {
    prop_oneof![
        Just(View::Contiguous),
        Just(View::HeadsFirst),
        Just(View::LengthLast),
        Just(View::Cut),
        Just(View::Packed)
    ]
}

/// `values`, in row-major order, as a view of this kind.
pub fn place(
    values: &[f32],
    shape: [usize; 4],
    dtype: DType,
    device: &Device,
    view: View,
) -> candle_core::Result<Tensor> {
    let [_, length, heads, _] = shape;
    let dense = Tensor::from_slice(values, &shape, &Device::Cpu)?.to_dtype(dtype)?;
    let moved = |x: Tensor| x.contiguous()?.to_device(device);
    let placed = match view {
        View::Contiguous => moved(dense)?,
        View::HeadsFirst => moved(dense.transpose(1, 2)?)?.transpose(1, 2)?,
        View::LengthLast => moved(dense.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))?,
        View::Cut => {
            let mut cut = dense;
            for dim in 0..4 {
                cut = cut.pad_with_zeros(dim, 1, 2)?;
            }
            let mut cut = moved(cut)?;
            for (dim, size) in shape.into_iter().enumerate() {
                cut = cut.narrow(dim, 1, size)?;
            }
            cut
        }
        View::Packed => {
            let other = dense.zeros_like()?;
            moved(Tensor::cat(&[&other, &dense, &other], 2)?)?.narrow(2, heads, heads)?
        }
    };
    assert_eq!(placed.dims(), shape);
    let strided = !matches!(view, View::Contiguous) && length > 1 && heads > 1;
    assert!(!strided || !placed.is_contiguous() || placed.elem_count() == 0, "{view:?} of {shape:?}");
    Ok(placed)
}
