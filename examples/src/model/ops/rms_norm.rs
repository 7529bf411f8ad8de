//! The RMS norm of rows, with gradients.

use candle_core::{D, DType, Result, Tensor};

/// `x / sqrt(mean(x^2) + epsilon) * weight` for `x` `[rows, width]` and `weight` `[width]`, computed in f32 and rounded once.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return x.contiguous()?.apply_op2(&weight.contiguous()?, fused::RmsNorm(epsilon as f32));
    }
    let wide = x.to_dtype(DType::F32)?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?.recip()?;
    let normed = wide.broadcast_mul(&scale)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    normed.to_dtype(x.dtype())
}

#[cfg(feature = "cuda")]
mod fused {
    use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

    use crate::model::ops::launch_gradients as launch;

    /// In one launch; so is its gradient by x.
    pub struct RmsNorm(pub f32);

    fn size(x: &Layout, weight: &Layout) -> Result<(usize, usize)> {
        match (x.dims(), weight.dims()) {
            ([rows, width], [count]) if width == count && x.is_contiguous() && weight.is_contiguous() => {
                Ok((*rows, *width))
            }
            _ => bail!(
                "rms-norm: {x:?}, {weight:?} are not valid; expected contiguous [rows, width] and [width]"
            ),
        }
    }

    impl CustomOp2 for RmsNorm {
        fn name(&self) -> &'static str {
            "rms-norm"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            bail!("rms-norm is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            x: &CudaStorage,
            x_layout: &Layout,
            weight: &CudaStorage,
            weight_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, width) = size(x_layout, weight_layout)?;
            let out = launch::rms_norm([(x, x_layout), (weight, weight_layout)], None, rows, width, self.0)?;
            Ok((out, Shape::from((rows, width))))
        }

        fn bwd(
            &self,
            x: &Tensor,
            weight: &Tensor,
            _: &Tensor,
            d_out: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let (x, fixed, d_out) = (x.detach(), weight.detach(), d_out.contiguous()?.detach());
            let by_x = x.apply_op3_no_bwd(&fixed, &d_out, &ByX(self.0))?;
            // Of a weight that stays nobody asks.
            if !weight.track_op() {
                return Ok((Some(by_x), None));
            }
            let parts = x.apply_op2_no_bwd(&d_out, &ByWeight(self.0))?;
            Ok((Some(by_x), Some(parts.sum(0)?.to_dtype(weight.dtype())?)))
        }
    }

    struct ByX(f32);

    impl CustomOp3 for ByX {
        fn name(&self) -> &'static str {
            "rms-norm-by-x"
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
            bail!("rms-norm is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            x: &CudaStorage,
            x_layout: &Layout,
            weight: &CudaStorage,
            weight_layout: &Layout,
            d_out: &CudaStorage,
            d_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, width) = size(x_layout, weight_layout)?;
            size(d_layout, weight_layout)?;
            let inputs = [(x, x_layout), (weight, weight_layout)];
            let out = launch::rms_norm(inputs, Some((d_out, d_layout)), rows, width, self.0)?;
            Ok((out, Shape::from((rows, width))))
        }
    }

    /// In parts of rows, which are to be summed.
    struct ByWeight(f32);

    impl CustomOp2 for ByWeight {
        fn name(&self) -> &'static str {
            "rms-norm-by-weight"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            bail!("rms-norm is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            x: &CudaStorage,
            x_layout: &Layout,
            d_out: &CudaStorage,
            d_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, width) = x_layout.shape().dims2()?;
            if d_layout.dims() != x_layout.dims() || !x_layout.is_contiguous() || !d_layout.is_contiguous() {
                bail!("rms-norm: {x_layout:?}, {d_layout:?} are not valid; expected the same, contiguous");
            }
            let inputs = [(x, x_layout), (d_out, d_layout)];
            let (out, parts) = launch::rms_norm_weight_gradient(inputs, rows, width, self.0)?;
            Ok((out, Shape::from((parts, width))))
        }
    }
}
