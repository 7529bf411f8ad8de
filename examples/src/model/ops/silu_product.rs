//! The activation of the feed-forward layer, with gradients.

use candle_core::{Result, Tensor};

/// `silu(gate) * up`, both `[rows, inner]`.
pub fn silu_product(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, fused::SiluProduct);
    }
    gate.silu()? * up
}

#[cfg(feature = "cuda")]
mod fused {
    use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

    use crate::model::ops::launch_gradients as launch;

    /// In one launch; so are its gradients.
    pub struct SiluProduct;

    fn size(layouts: &[&Layout]) -> Result<(usize, usize)> {
        let same = |layout: &&Layout| layout.is_contiguous() && layout.dims() == layouts[0].dims();
        match layouts[0].dims() {
            [rows, inner] if layouts.iter().all(same) => Ok((*rows, *inner)),
            _ => bail!("silu-product: {layouts:?} are not valid; expected contiguous [rows, inner]"),
        }
    }

    impl CustomOp2 for SiluProduct {
        fn name(&self) -> &'static str {
            "silu-product"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            bail!("silu-product is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            gate: &CudaStorage,
            gate_layout: &Layout,
            up: &CudaStorage,
            up_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, inner) = size(&[gate_layout, up_layout])?;
            let out = launch::silu_product([(gate, gate_layout), (up, up_layout)], rows, inner)?;
            Ok((out, Shape::from((rows, inner))))
        }

        fn bwd(
            &self,
            gate: &Tensor,
            up: &Tensor,
            _: &Tensor,
            d_out: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let d_out = d_out.contiguous()?.detach();
            let both = gate.detach().apply_op3_no_bwd(&up.detach(), &d_out, &Gradients)?;
            Ok((Some(both.get(0)?), Some(both.get(1)?)))
        }
    }

    /// Both in one launch: `[2, rows, inner]`.
    struct Gradients;

    impl CustomOp3 for Gradients {
        fn name(&self) -> &'static str {
            "silu-product-gradients"
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
            bail!("silu-product is for GPUs; the CPU composes it")
        }

        fn cuda_fwd(
            &self,
            gate: &CudaStorage,
            gate_layout: &Layout,
            up: &CudaStorage,
            up_layout: &Layout,
            d_out: &CudaStorage,
            d_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (rows, inner) = size(&[gate_layout, up_layout, d_layout])?;
            let inputs = [(gate, gate_layout), (up, up_layout), (d_out, d_layout)];
            let out = launch::silu_product_gradient(inputs, rows, inner)?;
            Ok((out, Shape::from((2, rows, inner))))
        }
    }
}
