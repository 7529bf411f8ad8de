//! Gradients of attention.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Shape};
use candle_core::{Device, Result, Storage, Tensor};
use longrope::cpu::{self, AttentionGradients, TensorMut};
use longrope::descriptor::Attention;

use crate::attention::{Lse, NAME};
use crate::cpu::Values;
use crate::error;
use crate::layout::contiguous;
use crate::rotary::Rotary;

/// Gradients by q, k and v, of their types and shapes, where they are. If `rotary` is how q and k were rotated, those by q and k
/// are of what these were before; positions are those of `attention`, whatever the rotary's offset.
pub(crate) fn gradients(
    attention: &Attention,
    rotary: Option<&Rotary>,
    lse: &Lse,
    [q, k, v, out, d_out]: [&Tensor; 5],
) -> Result<[Tensor; 3]> {
    match lse {
        Lse::Cpu(lse) => on_cpu(attention, rotary, lse, [q, k, v, out, d_out]),
        #[cfg(feature = "cuda")]
        Lse::Cuda(lse) => {
            let op = GradientsOp { attention: *attention, rotary, lse, out, d_out };
            let all = q.apply_op3_no_bwd(k, v, &op)?;
            let mut start = 0;
            let mut part = |x: &Tensor| {
                let of = all.narrow(0, start, x.elem_count())?.reshape(x.shape());
                start += x.elem_count();
                of
            };
            Ok([part(q)?, part(k)?, part(v)?])
        }
    }
}

fn on_cpu(
    attention: &Attention,
    rotary: Option<&Rotary>,
    lse: &[f32],
    inputs: [&Tensor; 5],
) -> Result<[Tensor; 3]> {
    let [q, k, v, ..] = inputs;
    let storages = inputs.map(Tensor::storage_and_layout);
    let mut values = Vec::with_capacity(5);
    for ((storage, layout), name) in storages.iter().zip(["q", "k", "v", "out", "d_out"]) {
        let Storage::Cpu(storage) = &**storage else {
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        values.push(Values::new(name, storage, layout)?);
    }
    let [queries, keys, values, out, d_out] = &values[..] else { unreachable!("as many values as tensors") };
    let mut delta = vec![0.0; lse.len()];
    cpu::attention_delta(out.tensor(), d_out.tensor(), &mut delta).map_err(error)?;
    let shapes = [queries, keys, values].map(|x| contiguous(x.layout().shape()));
    let [mut dq, mut dk, mut dv] = shapes.map(|shape| vec![0.0; shape.shape().iter().product::<usize>()]);
    let gradients = AttentionGradients {
        dq: TensorMut::new(&mut dq, shapes[0]),
        dk: TensorMut::new(&mut dk, shapes[1]),
        dv: TensorMut::new(&mut dv, shapes[2]),
    };
    let [queries, keys, values, d_out] = [queries, keys, values, d_out].map(Values::tensor);
    cpu::attention_backward(attention, queries, keys, values, d_out, lse, &delta, gradients)
        .map_err(error)?;
    if let Some(rotary) = rotary {
        for (gradient, shape, offset) in
            [(&mut dq, shapes[0], attention.query_offset), (&mut dk, shapes[1], attention.key_offset)]
        {
            let back = rotary.at(offset).transposed();
            cpu::rotary_in_place(&back.descriptor(), TensorMut::new(gradient, shape)).map_err(error)?;
        }
    }
    let like =
        |values: Vec<f32>, x: &Tensor| Tensor::from_vec(values, x.shape(), &Device::Cpu)?.to_dtype(x.dtype());
    Ok([like(dq, q)?, like(dk, k)?, like(dv, v)?])
}

/// The gradients on a GPU as an operation of candle, which has one result: all three, one after the other, flat.
#[cfg(feature = "cuda")]
struct GradientsOp<'a> {
    attention: Attention,
    rotary: Option<&'a Rotary>,
    lse: &'a crate::cuda::Rows,
    out: &'a Tensor,
    d_out: &'a Tensor,
}

#[cfg(feature = "cuda")]
impl CustomOp3 for GradientsOp<'_> {
    fn name(&self) -> &'static str {
        NAME
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
        Err(candle_core::Error::BackwardNotSupported { op: NAME })
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (out, d_out) = (self.out.storage_and_layout(), self.d_out.storage_and_layout());
        let (Storage::Cuda(out_storage), Storage::Cuda(d_out_storage)) = (&*out.0, &*d_out.0) else {
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        let inputs = [
            ("q", q, q_layout),
            ("k", k, k_layout),
            ("v", v, v_layout),
            ("out", out_storage, out.1),
            ("d_out", d_out_storage, d_out.1),
        ];
        let size: usize =
            [q_layout, k_layout, v_layout].iter().map(|layout| layout.shape().elem_count()).sum();
        let gradients = crate::cuda::attention_backward(&self.attention, self.rotary, self.lse, inputs)?;
        Ok((gradients, Shape::from(size)))
    }
}
