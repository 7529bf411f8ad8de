//! Blockwise attention.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use longrope::cpu::{self, TensorMut};
use longrope::descriptor::Attention;

use crate::cpu::{Values, into_storage};
use crate::error;
use crate::layout::{contiguous, same_kind};

/// Attention of `q` `[batch, query_length, query_heads, head_dim]` over `k` and `v`
/// `[batch, key_length, key_heads, head_dim]`, of one type on one device; the result has the shape of `q`.
///
/// Query head `h` uses key head `h / (query_heads / key_heads)`. A row whose keys are all masked is zero. Memory beyond the
/// result does not grow with the square of the length.
///
/// # Errors
/// Shapes or types that do not belong together, an invalid descriptor, or an error of the device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Result<Tensor> {
    same_kind(("q", q), &[("k", k), ("v", v)])?;
    q.apply_op3(k, v, AttentionOp(*attention))
}

/// The operation as candle records it.
struct AttentionOp(Attention);

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "longrope-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (queries, keys, values) =
            (Values::new("q", q, q_layout)?, Values::new("k", k, k_layout)?, Values::new("v", v, v_layout)?);
        let mut out = vec![0.0; q_layout.shape().elem_count()];
        let out_tensor = TensorMut::new(&mut out, contiguous(queries.layout().shape()));
        cpu::attention(&self.0, queries.tensor(), keys.tensor(), values.tensor(), out_tensor, None)
            .map_err(error)?;
        Ok((into_storage(out, q), q_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_layout: &Layout,
        k: &candle_core::CudaStorage,
        k_layout: &Layout,
        v: &candle_core::CudaStorage,
        v_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let inputs = [("q", q, q_layout), ("k", k, k_layout), ("v", v, v_layout)];
        Ok((crate::cuda::attention(&self.0, inputs)?, q_layout.shape().clone()))
    }
}
