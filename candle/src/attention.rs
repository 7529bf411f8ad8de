//! Blockwise attention.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor};
use longrope::cpu::{self, AttentionGradients, TensorMut};
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
/// On the CPU a backward pass gives the gradients of all three; it makes the weights again, from the log-sum-exp that is kept with
/// the result. On a GPU a backward pass is an error for now.
///
/// # Errors
/// Shapes or types that do not belong together, an invalid descriptor, or an error of the device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Result<Tensor> {
    same_kind(("q", q), &[("k", k), ("v", v)])?;
    q.apply_op3(k, v, AttentionOp { attention: *attention, lse: OnceLock::new() })
}

/// The operation as candle records it.
struct AttentionOp {
    attention: Attention,
    /// What the forward pass leaves for the backward one: the log-sum-exp of each row.
    lse: OnceLock<Vec<f32>>,
}

const NAME: &str = "longrope-attention";

/// Runs `compute` on the values of tensors on the CPU.
fn on_cpu<const N: usize, T>(
    tensors: [(&str, &Tensor); N],
    compute: impl FnOnce([Values<'_>; N]) -> Result<T>,
) -> Result<T> {
    let storages = tensors.map(|(name, tensor)| (name, tensor.storage_and_layout()));
    let mut values = Vec::with_capacity(N);
    for (name, (storage, layout)) in &storages {
        let Storage::Cpu(storage) = &**storage else {
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        values.push(Values::new(name, storage, layout)?);
    }
    match values.try_into() {
        Ok(values) => compute(values),
        Err(_) => unreachable!("as many values as tensors"),
    }
}

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
        self.lse.get_or_init(|| lse);
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
            // It ran on a GPU.
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        let inputs = [("q", q), ("k", k), ("v", v), ("out", out), ("d_out", d_out)];
        let gradients = on_cpu(inputs, |[q, k, v, out, d_out]| {
            let mut delta = vec![0.0; lse.len()];
            cpu::attention_delta(out.tensor(), d_out.tensor(), &mut delta).map_err(error)?;
            let shapes = [&q, &k, &v].map(|x| contiguous(x.layout().shape()));
            let [mut dq, mut dk, mut dv] =
                shapes.map(|shape| vec![0.0; shape.shape().iter().product::<usize>()]);
            let gradients = AttentionGradients {
                dq: TensorMut::new(&mut dq, shapes[0]),
                dk: TensorMut::new(&mut dk, shapes[1]),
                dv: TensorMut::new(&mut dv, shapes[2]),
            };
            let [q, k, v, d_out] = [&q, &k, &v, &d_out].map(Values::tensor);
            cpu::attention_backward(&self.attention, q, k, v, d_out, lse, &delta, gradients)
                .map_err(error)?;
            Ok([dq, dk, dv])
        })?;
        let like = |values: Vec<f32>, x: &Tensor| {
            Tensor::from_vec(values, x.shape(), &Device::Cpu)?.to_dtype(x.dtype()).map(Some)
        };
        let [dq, dk, dv] = gradients;
        Ok((like(dq, q)?, like(dk, k)?, like(dv, v)?))
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
        Ok((crate::cuda::attention(&self.attention, inputs)?, q_layout.shape().clone()))
    }
}
