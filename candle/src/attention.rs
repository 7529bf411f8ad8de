//! Blockwise attention.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use longrope::cpu::{self, TensorMut};
use longrope::descriptor::Attention;

use crate::attention_backward;
use crate::cpu::{Values, into_storage};
use crate::error;
use crate::layout::{contiguous, same_kind};

/// Attention of `q` `[batch, query_length, query_heads, head_dim]` over `k` and `v`
/// `[batch, key_length, key_heads, head_dim]`, of one type on one device; the result has the shape of `q`.
///
/// Query head `h` uses key head `h / (query_heads / key_heads)`. A row whose keys are all masked is zero. Memory beyond the
/// result does not grow with the square of the length.
///
/// A backward pass gives the gradients of all three; it makes the weights again, from the log-sum-exp that is kept with the result.
/// It can't be differentiated in its turn: that is an error.
///
/// # Errors
/// Shapes or types that do not belong together, an invalid descriptor, or an error of the device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Result<Tensor> {
    same_kind(("q", q), &[("k", k), ("v", v)])?;
    q.apply_op3(k, v, AttentionOp::new(*attention))
}

/// The operation as candle records it.
pub(crate) struct AttentionOp {
    pub(crate) attention: Attention,
    /// What the forward pass leaves for the backward one.
    pub(crate) lse: OnceLock<Lse>,
}

impl AttentionOp {
    pub(crate) fn new(attention: Attention) -> Self {
        Self { attention, lse: OnceLock::new() }
    }
}

/// The log-sum-exp of each row, where the result is.
pub(crate) enum Lse {
    Cpu(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Rows),
}

pub(crate) const NAME: &str = "longrope-attention";

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        NAME
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
        let [batch, length, heads, _] = queries.layout().shape();
        let mut lse = vec![0.0; if out.is_empty() { 0 } else { batch * length * heads }];
        let out_tensor = TensorMut::new(&mut out, contiguous(queries.layout().shape()));
        let (queries, keys, values) = (queries.tensor(), keys.tensor(), values.tensor());
        cpu::attention(&self.attention, queries, keys, values, out_tensor, Some(&mut lse)).map_err(error)?;
        self.lse.get_or_init(|| Lse::Cpu(lse));
        Ok((into_storage(out, q), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(lse) = self.lse.get() else {
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        let [dq, dk, dv] = attention_backward::gradients(&self.attention, None, lse, [q, k, v, out, d_out])?;
        Ok((Some(dq), Some(dk), Some(dv)))
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
        let (out, lse) = crate::cuda::attention(&self.attention, inputs)?;
        self.lse.get_or_init(|| Lse::Cuda(lse));
        Ok((out, q_layout.shape().clone()))
    }
}
