//! The activation of the feed-forward layer.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `silu(gate) * up` for rows `[gate, up]`: `[rows, 2 * inner]` contiguous to `[rows, inner]`.
pub fn gated_silu(packed: &Tensor) -> Result<Tensor> {
    packed.apply_op1(GatedSilu)
}

struct GatedSilu;

/// Rows and the width of a half.
fn size(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims() {
        [rows, width] if width % 2 == 0 && layout.is_contiguous() => Ok((*rows, width / 2)),
        _ => bail!("gated-silu: {layout:?} is not valid; expected contiguous rows of even width"),
    }
}

impl CustomOp1 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = size(layout)?;
        let packed = super::values(self.name(), storage, layout)?;
        let mut out = vec![0f32; rows * inner];
        if inner > 0 {
            out.par_chunks_mut(inner).zip(packed.par_chunks(2 * inner)).for_each(|(out, packed)| {
                let (gate, up) = packed.split_at(inner);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + (-gate).exp()) * up;
                }
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, inner))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, inner) = size(layout)?;
        Ok((super::launch::gated_silu(storage, layout, rows, inner)?, Shape::from((rows, inner))))
    }
}
