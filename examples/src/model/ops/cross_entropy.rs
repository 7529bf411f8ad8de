//! The loss of each token.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The negative log-likelihood in nats of `targets` `[rows]` (u32) under `logits` `[rows, vocabulary]`, contiguous: `[rows]`
/// in f64. A target beyond the vocabulary gives NaN.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    logits.apply_op2(targets, CrossEntropy)
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

/// The natural logarithm of the sum of exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - largest).exp())).sum();
    f64::from(largest) + sum.ln()
}
