//! The loss of each token, and its gradient by the logits.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The negative log-likelihood in nats of `targets` `[rows]` (u32) under `logits` `[rows, vocabulary]`, contiguous: `[rows]`
/// in f64. A target beyond the vocabulary gives NaN.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    computable(logits)?.apply_op2(targets, CrossEntropy)
}

/// In f32 on the CPU, which computes in no other type.
fn computable(logits: &Tensor) -> Result<Tensor> {
    if logits.device().is_cpu() { logits.to_dtype(DType::F32) } else { Ok(logits.clone()) }
}

struct CrossEntropy;

/// Rows and the size of the vocabulary.
fn size(logits: &Layout, targets: &Layout) -> Result<(usize, usize)> {
    match (logits.dims(), targets.dims()) {
        ([rows, vocabulary], [count])
            if rows == count && *vocabulary > 0 && logits.is_contiguous() && targets.is_contiguous() =>
        {
            Ok((*rows, *vocabulary))
        }
        _ => bail!(
            "cross-entropy: {logits:?}, {targets:?} are not valid; expected contiguous [rows, vocabulary] and [rows]"
        ),
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, vocabulary) = size(logits_layout, targets_layout)?;
        let logits = super::values(self.name(), logits, logits_layout)?;
        let CpuStorage::U32(targets) = targets else { bail!("cross-entropy: targets are not u32") };
        let start = targets_layout.start_offset();
        let losses = logits
            .par_chunks(vocabulary)
            .zip(&targets[start..start + rows])
            .map(|(row, &target)| {
                row.get(target as usize).map_or(f64::NAN, |logit| log_sum_exp(row) - f64::from(*logit))
            })
            .collect();
        Ok((CpuStorage::F64(losses), Shape::from(rows)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &candle_core::CudaStorage,
        logits_layout: &Layout,
        targets: &candle_core::CudaStorage,
        targets_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, vocabulary) = size(logits_layout, targets_layout)?;
        let out = super::launch::cross_entropy(
            (logits, logits_layout),
            (targets, targets_layout),
            rows,
            vocabulary,
        )?;
        Ok((out, Shape::from(rows)))
    }
}

/// The gradient of the sum of [`cross_entropy`] times `counted` `[rows]` (f32), by the logits and of their type: the softmax of each
/// row, less one at its target, times the row's number.
pub fn cross_entropy_gradient(logits: &Tensor, targets: &Tensor, counted: &Tensor) -> Result<Tensor> {
    let gradient = computable(logits)?.apply_op3_no_bwd(targets, counted, &CrossEntropyGradient)?;
    gradient.to_dtype(logits.dtype())
}

struct CrossEntropyGradient;

impl CustomOp3 for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross-entropy-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
        counted: &CpuStorage,
        counted_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, vocabulary) = size(logits_layout, targets_layout)?;
        size(logits_layout, counted_layout)?;
        let logits = super::values(self.name(), logits, logits_layout)?;
        let counted = super::values(self.name(), counted, counted_layout)?;
        let CpuStorage::U32(targets) = targets else { bail!("cross-entropy: targets are not u32") };
        let start = targets_layout.start_offset();
        let mut out = vec![0f32; rows * vocabulary];
        out.par_chunks_mut(vocabulary)
            .zip(logits.par_chunks(vocabulary))
            .zip(&targets[start..start + rows])
            .zip(counted)
            .for_each(|(((out, row), &target), &counted)| {
                let whole = log_sum_exp(row) as f32;
                for (i, (out, logit)) in out.iter_mut().zip(row).enumerate() {
                    let weight = (logit - whole).exp() * counted;
                    *out = if i == target as usize { weight - counted } else { weight };
                }
            });
        Ok((CpuStorage::F32(out), Shape::from((rows, vocabulary))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &candle_core::CudaStorage,
        logits_layout: &Layout,
        targets: &candle_core::CudaStorage,
        targets_layout: &Layout,
        counted: &candle_core::CudaStorage,
        counted_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, vocabulary) = size(logits_layout, targets_layout)?;
        size(logits_layout, counted_layout)?;
        let inputs = [(logits, logits_layout), (targets, targets_layout), (counted, counted_layout)];
        let out = super::launch_gradients::cross_entropy_gradient(inputs, rows, vocabulary)?;
        Ok((out, Shape::from((rows, vocabulary))))
    }
}

/// The natural logarithm of the sum of exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - largest).exp())).sum();
    f64::from(largest) + sum.ln()
}
