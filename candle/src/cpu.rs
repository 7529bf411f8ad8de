//! Values in candle's CPU storage, as the f32 buffers that longrope computes on.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout as CandleLayout, Result};
use half::{bf16, f16};
use longrope::Error;
use longrope::cpu::Tensor;
use longrope::descriptor::Layout;

use crate::error;
use crate::layout::{contiguous, layout};

/// A tensor's values in f32: where they lie, or widened to a buffer of their own.
pub(crate) struct Values<'a> {
    data: Cow<'a, [f32]>,
    offset: usize,
    layout: Layout,
}

impl<'a> Values<'a> {
    /// The values of `storage` that `candle` lays out as `[batch, length, heads, head_dim]`.
    pub(crate) fn new(name: &str, storage: &'a CpuStorage, candle: &CandleLayout) -> Result<Self> {
        let strided = layout(name, candle)?;
        // Only what the tensor shows: its storage may be much larger.
        let widened = |values: Vec<f32>| Self {
            data: Cow::Owned(values),
            offset: 0,
            layout: contiguous(strided.shape()),
        };
        let start = candle.start_offset();
        let indices = || indices(strided).map(|index| start + index);
        Ok(match storage {
            CpuStorage::F32(values) => Self { data: Cow::Borrowed(values), offset: start, layout: strided },
            CpuStorage::F16(values) => widened(indices().map(|i| values[i].to_f32()).collect()),
            CpuStorage::BF16(values) => widened(indices().map(|i| values[i].to_f32()).collect()),
            other => return Err(wrong_dtype(name, dtype(other))),
        })
    }

    pub(crate) fn tensor(&self) -> Tensor<'_> {
        Tensor::at(&self.data, self.offset, self.layout)
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }
}

/// Where the elements lie, in row-major order, from the first. candle's strides are not negative.
fn indices(layout: Layout) -> impl Iterator<Item = usize> {
    let ([batch, length, heads, dim], [b, s, h, d]) =
        (layout.shape(), layout.strides().map(|stride| stride as usize));
    let rows = (0..batch * length * heads).map(move |row| {
        let (token, head) = (row / heads, row % heads);
        token / length * b + token % length * s + head * h
    });
    rows.flat_map(move |row| (0..dim).map(move |i| row + i * d))
}

/// Values as storage of a type that [`Values`] reads, rounded to nearest, ties to even.
pub(crate) fn into_storage(values: Vec<f32>, like: &CpuStorage) -> CpuStorage {
    match like {
        CpuStorage::F16(_) => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
        CpuStorage::BF16(_) => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
        _ => CpuStorage::F32(values),
    }
}

fn dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// The error for a tensor of a type that nothing is computed in.
pub(crate) fn wrong_dtype(name: &str, found: DType) -> candle_core::Error {
    error(Error::argument(name, format!("type {found:?}"), "F32, F16 or BF16"))
}
