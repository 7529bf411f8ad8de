//! candle's layouts as longrope's.

use candle_core::{Layout as CandleLayout, Result, Tensor};
use longrope::Error;
use longrope::descriptor::Layout;

use crate::error;

/// Shape and strides of a tensor `[batch, length, heads, head_dim]`; the offset of its first element stays candle's.
pub(crate) fn layout(name: &str, layout: &CandleLayout) -> Result<Layout> {
    let found = || format!("shape {:?} with strides {:?}", layout.dims(), layout.stride());
    let wrong = |expected: &str| error(Error::argument(name, found(), expected));
    let shape: [usize; 4] =
        layout.dims().try_into().map_err(|_| wrong("four dimensions: [batch, length, heads, head_dim]"))?;
    let mut strides = [0i64; 4];
    for (stride, candle) in strides.iter_mut().zip(layout.stride()) {
        *stride = i64::try_from(*candle).map_err(|_| wrong("strides that fit 63 bits"))?;
    }
    Ok(Layout::strided(shape, strides))
}

/// The contiguous layout of a shape.
pub(crate) fn contiguous(shape: [usize; 4]) -> Layout {
    let [batch, length, heads, head_dim] = shape;
    Layout::bshd(batch, length, heads, head_dim)
}

/// Fails unless the tensors share type and device. candle itself would compare storages, and name neither.
pub(crate) fn same_kind(first: (&str, &Tensor), others: &[(&str, &Tensor)]) -> Result<()> {
    let (first_name, first) = first;
    for (name, other) in others {
        if other.dtype() != first.dtype() {
            let expected = format!("{:?}, as {first_name}", first.dtype());
            return Err(error(Error::argument(*name, format!("type {:?}", other.dtype()), expected)));
        }
        if !other.device().same_device(first.device()) {
            let expected = format!("{:?}, as {first_name}", first.device().location());
            let found = format!("a tensor on {:?}", other.device().location());
            return Err(error(Error::argument(*name, found, expected)));
        }
    }
    Ok(())
}
