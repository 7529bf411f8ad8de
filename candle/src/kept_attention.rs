//! Rotary embedding and attention in a forward pass that is made again for its gradients.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};
use longrope::Error;
use longrope::descriptor::Attention;

use crate::error;
use crate::rotary::Rotary;
use crate::rotary_attention::{self, RotaryAttentionOp};

/// The result of a [`rotary_attention`](crate::rotary_attention()), kept with its log-sum-exp, for activations that are made again
/// in the backward pass rather than kept (gradient checkpointing): all of a layer but its attention, which is most of the work of a
/// long sequence. It is as large as the queries.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use longrope_candle::{Attention, KeptAttention, Rotary};
/// # use longrope_candle::scaling::{RopeConfig, SetChoice};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = RopeConfig::from_hf_json(r#"{"head_dim": 8, "max_position_embeddings": 4096}"#)?;
/// # let rotary = Rotary::new(config.factor_sets(16)?, SetChoice::ByLength(16));
/// let x = Tensor::randn(0f32, 1.0, (1, 16, 2, 8), &Device::Cpu)?;
/// // In the forward pass nothing is recorded.
/// let kept = KeptAttention::new(&x, &x, &x, &rotary, &Attention::causal())?;
/// // In the backward pass queries, keys and values are made again, and recorded.
/// let x = Var::from_tensor(&x)?;
/// let out = kept.again(&x, &x, &x)?;
/// assert!(out.backward()?.get(&x).is_some());
/// # Ok(())
/// # }
/// ```
pub struct KeptAttention {
    op: Arc<RotaryAttentionOp>,
    out: Tensor,
    /// The shape of keys and values.
    keys: Shape,
}

impl KeptAttention {
    /// The [`rotary_attention`](crate::rotary_attention()) of these tensors, not recorded for a backward pass.
    ///
    /// # Errors
    /// As there.
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, rotary: &Rotary, attention: &Attention) -> Result<Self> {
        let op = Arc::new(rotary_attention::operation(q, k, v, rotary, attention)?);
        let out = q.apply_op3_no_bwd(k, v, &*op)?;
        Ok(Self { op, out, keys: k.shape().clone() })
    }

    /// The result.
    pub fn out(&self) -> &Tensor {
        &self.out
    }

    /// The same result as one of these tensors, which must have the values that it was made of; their gradients are those of
    /// [`rotary_attention`](crate::rotary_attention()).
    ///
    /// # Errors
    /// Tensors of other shapes, of another type or on another device.
    pub fn again(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        for (name, x, shape) in [("q", q, self.out.shape()), ("k", k, &self.keys), ("v", v, &self.keys)] {
            if x.shape() != shape
                || x.dtype() != self.out.dtype()
                || !x.device().same_device(self.out.device())
            {
                let told = |dtype, shape: &Shape, x: &Tensor| {
                    format!("{dtype:?} {:?} on {:?}", shape.dims(), x.device().location())
                };
                let found = told(x.dtype(), x.shape(), x);
                let expected = told(self.out.dtype(), shape, &self.out);
                return Err(error(Error::argument(name, found, format!("{expected}, as before"))));
            }
        }
        q.apply_op3(k, v, Again { op: self.op.clone(), out: self.out.clone() })
    }
}

/// The operation whose result is there already.
struct Again {
    op: Arc<RotaryAttentionOp>,
    out: Tensor,
}

impl CustomOp3 for Again {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match storage.deref() {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("{}: the result is not on the CPU", self.name()),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.op.bwd(q, k, v, out, d_out)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match storage.deref() {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("{}: the result is not on the GPU", self.name()),
        }
    }
}
