//! Products with matrices that are trained, that stay, or that stay beside a trained adapter.

use std::ops::Deref;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};

use super::parameters::Parameter;

/// A tensor of the model.
pub(super) enum Weight {
    /// It stays as it is.
    Frozen(Tensor),
    /// The parameter of this index.
    Trained(usize),
}

/// A low-rank change of a matrix: `scale * up * down`, with the indices of its parameters.
pub(super) struct Adapter {
    /// `[rank, in]`.
    pub(super) down: usize,
    /// `[out, rank]`.
    pub(super) up: usize,
    pub(super) scale: f64,
}

/// A matrix `[out, in]`, with an adapter or without.
pub(super) struct Linear {
    pub(super) weight: Weight,
    pub(super) adapter: Option<Adapter>,
}

/// The parameters as a pass sees them: those whose gradients it records, or none.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) parameters: &'a [Parameter],
    pub(super) recorded: bool,
}

impl View<'_> {
    /// A tensor of the model.
    pub(super) fn get(&self, weight: &Weight) -> Tensor {
        match weight {
            Weight::Frozen(tensor) => tensor.clone(),
            Weight::Trained(index) => self.parameter(*index),
        }
    }

    fn parameter(&self, index: usize) -> Tensor {
        self.parameters[index].working(self.recorded)
    }
}

impl Weight {
    /// The index of its parameter, if it is trained.
    pub(super) fn index(&self) -> Option<usize> {
        match self {
            Self::Frozen(_) => None,
            Self::Trained(index) => Some(*index),
        }
    }
}

impl Linear {
    /// `x w^T` for `x` `[tokens, in]`.
    pub(super) fn forward(&self, x: &Tensor, view: View<'_>) -> Result<Tensor> {
        let product = match &self.weight {
            Weight::Frozen(weight) => frozen_product(x, weight)?,
            trained => x.matmul(&view.get(trained).t()?)?,
        };
        let Some(adapter) = &self.adapter else { return Ok(product) };
        let (down, up) = (view.parameter(adapter.down), view.parameter(adapter.up));
        // Scaled where it is small.
        product + (x.matmul(&down.t()?)? * adapter.scale)?.matmul(&up.t()?)?
    }

    /// The indices of its parameters.
    pub(super) fn parameters(&self) -> impl Iterator<Item = usize> {
        let adapter = self.adapter.iter().flat_map(|adapter| [adapter.down, adapter.up]);
        self.weight.index().into_iter().chain(adapter)
    }
}

/// `x w^T` for a `w` that stays. candle's own product would make the gradient of `w` too, as much work as that of `x`.
fn frozen_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(FrozenProduct(weight.clone()))
}

struct FrozenProduct(Tensor);

impl FrozenProduct {
    /// Rows, and the sizes of the matrix.
    fn sizes(&self, x: &Layout) -> Result<(usize, usize, usize)> {
        let ((rows, width), (out, inner)) = (x.shape().dims2()?, self.0.dims2()?);
        if width != inner {
            bail!("frozen-product: [{rows}, {width}] is not valid; expected [{rows}, {inner}]");
        }
        Ok((rows, out, inner))
    }
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, out, inner) = self.sizes(layout)?;
        let (weight, weight_layout) = self.0.storage_and_layout();
        let Storage::Cpu(weight) = weight.deref() else {
            bail!("frozen-product: the matrix is not on the CPU")
        };
        let transposed = weight_layout.transpose(0, 1)?;
        let product = storage.matmul(weight, (1, rows, out, inner), layout, &transposed)?;
        Ok((product, Shape::from((rows, out))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, out, inner) = self.sizes(layout)?;
        let (weight, weight_layout) = self.0.storage_and_layout();
        let Storage::Cuda(weight) = weight.deref() else {
            bail!("frozen-product: the matrix is not on the GPU")
        };
        let transposed = weight_layout.transpose(0, 1)?;
        let product = storage.matmul(weight, (1, rows, out, inner), layout, &transposed)?;
        Ok((product, Shape::from((rows, out))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.matmul(&self.0)?))
    }
}

/// A scalar whose backward pass gives `x` this gradient: where a backward pass starts that continues a later one. A product
/// with the gradient and its sum would be as right, and a pass over memory for a number that nobody reads.
pub(super) fn continued(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if x.dims() != gradient.dims() || x.dtype() != gradient.dtype() {
        bail!(
            "the gradient of {:?} {:?} can't be {:?} {:?}",
            x.dtype(),
            x.dims(),
            gradient.dtype(),
            gradient.dims()
        );
    }
    x.apply_op1(Continued(gradient.detach()))
}

struct Continued(Tensor);

impl CustomOp1 for Continued {
    fn name(&self) -> &'static str {
        "continued"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.device().zeros_impl(&Shape::from(()), DType::F32)?, Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((storage.device().zeros_impl(&Shape::from(()), DType::F32)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
