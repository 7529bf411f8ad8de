//! What an attention must give: the f64 reference, and how far from it a kernel may be.
//!
//! # The bound
//! Of one row, with w the exact weights (their sum is 1), A = Σ w_j |v_j| for a dimension, L = |scale| ‖q‖ max ‖k_j‖, which no
//! logit and no sum of the magnitudes of its terms passes, and d the head dimension:
//!
//! - Each weight is rounded once to 16 bits. A rounding is off by at most u, relatively: 2^-8 for bf16, 2^-11 for f16. The
//!   weights are summed before they are rounded. Together at most u A.
//! - An f16 weight below 2^-14 is off by 2^-25 absolutely instead. The largest is 2^15 (softmax.cuh), so against a largest of 1
//!   that is 2^-40 for each key.
//! - A logit is a sum of exact products on the tensor cores, 16 at a time to a running sum: 17 addends, cut off 2^-24 below
//!   the largest of them, in d/16 steps. The largest is the running sum, a random walk: below 5 L / √d in all but a millionth
//!   of rows of random signs. 17 d/16 2^-24 5 L / √d is at most 2^-17.6 L for d up to 256.
//!   The product with the scale, the difference to the maximum and the exponential add four roundings: 2^-22 (1 + L).
//! - Sums of weights and of weighted values round after each tile: below 2^-17 for up to 1024 keys, relatively to A.
//!
//! So what enters a weight is off by at most r = 2^-17 (1 + L), relatively; a quotient has that above and below. The output is
//! within (u + 2 r) A + 2^-40 keys of the exact one, and the log-sum-exp within r + 2^-21 |lse|.

use cudarc::driver::CudaSlice;
use longrope::device::Dtype;
use longrope::ops::{Attention, AttentionTensors, Workspace};
use longrope::reference::{Format, Problem};
use rayon::prelude::*;

use crate::buffer::{Gpu, format};
use crate::random::values;

/// The exact result of one sequence, by rows: queries times heads.
#[derive(Default)]
pub struct Exact {
    /// `[query_length, query_heads, head_dim]`.
    pub out: Vec<f64>,
    /// A of the bound, in the same shape.
    pub size: Vec<f64>,
    /// `[query_length, query_heads]`.
    pub lse: Vec<f64>,
    /// L of the bound, in the same shape.
    pub logit: Vec<f64>,
    pub key_length: usize,
}

/// Runs the reference, a query at a time.
pub fn exact(problem: &Problem, q: &[f64], k: &[f64], v: &[f64]) -> Exact {
    let magnitudes: Vec<f64> = v.iter().map(|x| x.abs()).collect();
    let largest_key = k.chunks(problem.head_dim).map(norm).fold(0.0, f64::max);
    let width = problem.query_heads * problem.head_dim;
    let rows: Vec<_> = (0..problem.query_length)
        .into_par_iter()
        .map(|query| {
            let one =
                Problem { query_length: 1, query_offset: problem.query_offset + query as i64, ..*problem };
            let q = &q[query * width..(query + 1) * width];
            (one.forward(q, k, v).unwrap(), one.forward(q, k, &magnitudes).unwrap().out)
        })
        .collect();
    let mut exact = Exact { key_length: problem.key_length, ..Exact::default() };
    for (output, size) in rows {
        exact.out.extend(output.out);
        exact.lse.extend(output.lse);
        exact.size.extend(size);
    }
    exact.logit = q.chunks(problem.head_dim).map(|q| problem.scale.abs() * norm(q) * largest_key).collect();
    exact
}

pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// u of the bound.
pub fn unit_roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 2f64.powi(-8),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::F32 => 2f64.powi(-24),
    }
}

/// r of the bound, for one call of the kernel.
pub const ONE_CALL: f64 = 1.0 / (1u32 << 17) as f64;

/// Checks the bits of a sequence's output, of type `out.0`, and of its log-sum-exp, from inputs of type `inputs`. `rounding`
/// is r of the bound without (1 + L).
pub fn check(
    exact: &Exact,
    inputs: Dtype,
    rounding: f64,
    out: (Dtype, &[u32]),
    lse: Option<&[u32]>,
) -> Result<(), String> {
    if out.1.len() != exact.out.len() || lse.is_some_and(|lse| lse.len() != exact.lse.len()) {
        return Err("output of another size than the reference's".to_owned());
    }
    let (dtype, head_dim) = (format(out.0), exact.out.len() / exact.lse.len().max(1));
    for (row, &exact_lse) in exact.lse.iter().enumerate() {
        let r = rounding * (1.0 + exact.logit[row]);
        if let Some(lse) = lse {
            let found = f64::from(f32::from_bits(lse[row]));
            let good = match exact_lse == f64::NEG_INFINITY {
                true => found == exact_lse,
                false => (found - exact_lse).abs() <= r + 2f64.powi(-21) * exact_lse.abs(),
            };
            if !good {
                return Err(format!("row {row}: lse {found} against {exact_lse}"));
            }
        }
        for i in row * head_dim..(row + 1) * head_dim {
            let (found, exact_out) = (dtype.decode(out.1[i]), exact.out[i]);
            let eps =
                (unit_roundoff(inputs) + 2.0 * r) * exact.size[i] + 2f64.powi(-40) * exact.key_length as f64;
            let good = match dtype {
                _ if exact_lse == f64::NEG_INFINITY => found == 0.0,
                // One more rounding than that of the weights.
                Format::F32 => (found - exact_out).abs() <= eps + 2f64.powi(-23) * exact_out.abs(),
                _ => dtype.within(out.1[i], exact_out, eps).unwrap(),
            };
            if !good {
                let dim = i % head_dim;
                return Err(format!("row {row}, dimension {dim}: {found} against {exact_out}, bound {eps}"));
            }
        }
    }
    Ok(())
}

/// The bits of random numbers of a type, of up to `largest` in magnitude.
pub fn random_bits(dtype: Dtype, seed: u64, count: usize, largest: f64) -> Vec<u32> {
    let format = format(dtype);
    values(seed, count).iter().map(|&x| format.round(f64::from(x) * largest)).collect()
}

pub fn decode(dtype: Dtype, bits: &[u32]) -> Vec<f64> {
    bits.iter().map(|&bits| format(dtype).decode(bits)).collect()
}

/// The memory that launches want beside these tensors, with poison in it.
pub fn scratch(gpu: &Gpu, attention: &Attention, tensors: &AttentionTensors) -> CudaSlice<u8> {
    gpu.upload(&vec![0xffu8; attention.workspace_size(tensors).unwrap().max(1)])
}

/// Launches on the test's stream. Its scratch memory is freed there too, after the launch.
///
/// # Safety
/// As [`Attention::run`]: the tensors' memory is valid until the kernel ended, and as large as the layouts say.
pub unsafe fn launch(gpu: &Gpu, attention: &Attention, tensors: &AttentionTensors) {
    let scratch = scratch(gpu, attention, tensors);
    let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
    // SAFETY: the caller's promise.
    unsafe { attention.run(&gpu.kernels, tensors, workspace, gpu.raw_stream()) }.unwrap();
}
