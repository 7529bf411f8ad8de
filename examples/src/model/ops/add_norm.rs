//! The residual sum and the RMS norm that follows it.

use candle_core::{Result, Tensor};
use candle_nn::ops::rms_norm;

/// `x + y`, and its RMS norm times `weight`: `x` and `y` `[rows, width]`, `weight` `[width]`, all contiguous.
pub fn add_norm(x: &Tensor, y: &Tensor, weight: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let both = x.apply_op3(y, weight, fused::AddNorm(epsilon))?;
        return Ok((both.get(0)?, both.get(1)?));
    }
    let sum = (x + y)?;
    let normed = rms_norm(&sum, weight, epsilon)?;
    Ok((sum, normed))
}

#[cfg(feature = "cuda")]
mod fused {
    use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, bail};

    /// Both results in one launch: `[2, rows, width]`.
    pub struct AddNorm(pub f32);

    impl CustomOp3 for AddNorm {
        fn name(&self) -> &'static str {
            "add-norm"
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
            bail!("add-norm is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            x: &CudaStorage,
            x_layout: &Layout,
            y: &CudaStorage,
            y_layout: &Layout,
            weight: &CudaStorage,
            weight_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, width) = x_layout.shape().dims2()?;
            let fits = y_layout.dims() == [rows, width] && weight_layout.dims() == [width];
            if !(fits && [x_layout, y_layout, weight_layout].iter().all(|layout| layout.is_contiguous())) {
                bail!(
                    "add-norm: {x_layout:?}, {y_layout:?}, {weight_layout:?} are not valid; expected two contiguous \
                     [rows, width] and [width]"
                );
            }
            let inputs = [(x, x_layout), (y, y_layout), (weight, weight_layout)];
            let out = crate::model::ops::launch::add_norm(inputs, rows, width, self.0)?;
            Ok((out, Shape::from((2, rows, width))))
        }
    }
}
