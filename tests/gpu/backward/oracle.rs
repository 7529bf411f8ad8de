//! What a backward pass must give: the gradients of the f64 reference, and how far from them a kernel may be.
//!
//! # The bound
//! With w the exact weights, dP_ij = Σ_d dO_id v_jd, G_ij = Σ_d |dO_id v_jd|, L as in `attention::oracle`, d the head dimension
//! and u the relative roundoff of the inputs' 16 bits:
//!
//! - A logit is off by 2^-17.6 L, as in the forward pass. The product with the scale, the difference to the log-sum-exp, that
//!   number's rounding to f32 and its product with 1 / ln 2, and the exponential add 2^-22 (1 + L) + 2^-22 |lse|. So a weight
//!   is off by at most r = 2^-17 (1 + L) + 2^-21 |lse|, relatively.
//! - dP is a sum on the tensor cores of 16 products at a time to a running sum: 17 addends, each cut off 2^-24 below the largest,
//!   which G passes, in d / 16 steps: t G with t = 17 ⌈d / 16⌉ 2^-24.
//! - delta is off by e: a number from outside by its rounding to f32. Where the kernel sums out · dO, the output was rounded
//!   (u' of its type, and 2^-25 absolutely for f16), and d sums in f32 round: (u' + d 2^-24) Σ |out dO| + 2^-25 Σ |dO|.
//! - So dS = w (dP - delta) is off by w ((r + t + 2^-21) (G + |delta|) + e), with a hundredth more for products of errors; then
//!   it is rounded to 16 bits: u |dS|. Of f16 each row of a tile is scaled such that what lies below the smallest normal number is
//!   off by 2^-39 of the row's largest (attention_backward.cuh), which is at most 2 ‖dO‖ ‖v‖ of the longest rows.
//! - P is rounded likewise: u w, and 2^-40 for an f16, which is times 2^15.
//! - Sums of a tile are cut off at most (4 · 17) 2^-24 below the sum of magnitudes, and tiles are added by roundings of 2^-24
//!   each: below 2^-14 of the sum of magnitudes for up to 900 tiles. Hopper's kernels leave up to 4,096 terms to the tensor cores
//!   before they fold them. By the same rule of one addend that is cut off a step of 16, which is the sum so far, that is 256
//!   times 2^-24 and the roundings of as many folds: below 2^-15.
//!
//! Where output and log-sum-exp are the forward kernel's, the latter has an error of r of its own, and the former the bound of
//! `attention::oracle`: (u + 2 r) A, with A = Σ w |v|. So r doubles, and e has (u + 2 r) Σ A |dO| beside the rounding.
//!
//! Each of these is a factor of an element of dS or P; its product with k, q or dO is summed by magnitude. Accumulation and an
//! f32 result add a rounding of 2^-23 of what is written; a result of 16 bits is a rounding of what is within the bound.

use longrope::device::Dtype;
use longrope::reference::{Format, Gradients, Problem};
use rayon::prelude::*;

use crate::attention::oracle::{norm, unit_roundoff};
use crate::buffer::format;

/// The exact result of one sequence.
pub struct Exact {
    /// Of the forward pass, `[query_length, query_heads, head_dim]` and `[query_length, query_heads]`.
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    /// Σ out · dO, `[query_length, query_heads]`.
    pub delta: Vec<f64>,
    pub gradients: Gradients,
    /// How far off each gradient may be, before a last rounding.
    pub bounds: Gradients,
}

/// Where the kernel has delta from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delta {
    /// From outside.
    Given,
    /// From the output, of this type: the exact one, rounded.
    OfOutput(Dtype),
    /// From the output of the forward kernel, of this type, and so the log-sum-exp.
    OfKernel(Dtype),
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_of_magnitudes(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

fn add(sums: &mut [f64], factor: f64, x: &[f64]) {
    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x.abs());
}

/// The longest row of so many dimensions.
fn longest(x: &[f64], dim: usize) -> f64 {
    x.chunks(dim).map(norm).fold(0.0, f64::max)
}

/// Runs the reference, by parts of the queries.
pub fn exact(problem: &Problem, inputs: Dtype, from: Delta, [q, k, v, d_out]: [&[f64]; 4]) -> Exact {
    const PARTS: usize = 16;
    let width = problem.query_heads * problem.head_dim;
    let rows = problem.query_length.div_ceil(PARTS).max(1);
    let largest = longest(d_out, problem.head_dim);
    // No query is a part too.
    let parts: Vec<Exact> = (0..problem.query_length.div_ceil(rows).max(1))
        .into_par_iter()
        .map(|part| {
            let first = part * rows;
            let query_length = rows.min(problem.query_length - first);
            let query_offset = problem.query_offset + first as i64;
            let at = first * width..(first + query_length) * width;
            let one = Problem { query_length, query_offset, ..*problem };
            exact_part(&one, inputs, from, [&q[at.clone()], k, v, &d_out[at]], largest)
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut whole = parts.next().expect("at least one part");
    for part in parts {
        whole.out.extend(part.out);
        whole.lse.extend(part.lse);
        whole.delta.extend(part.delta);
        for (whole, part) in [(&mut whole.gradients, part.gradients), (&mut whole.bounds, part.bounds)] {
            whole.dq.extend(part.dq);
            whole.dk.iter_mut().zip(part.dk).for_each(|(sum, x)| *sum += x);
            whole.dv.iter_mut().zip(part.dv).for_each(|(sum, x)| *sum += x);
        }
    }
    whole
}

/// The same for some queries; `largest` is the longest row of dO of all.
fn exact_part(
    problem: &Problem,
    inputs: Dtype,
    from: Delta,
    [q, k, v, d_out]: [&[f64]; 4],
    largest: f64,
) -> Exact {
    let forward = problem.forward(q, k, v).unwrap();
    let gradients = problem.backward(q, k, v, d_out, None).unwrap();
    let dim = problem.head_dim;
    let delta: Vec<f64> = forward.out.chunks(dim).zip(d_out.chunks(dim)).map(|(a, b)| dot(a, b)).collect();
    let magnitudes: Vec<f64> = v.iter().map(|x| x.abs()).collect();
    let sizes = matches!(from, Delta::OfKernel(_)).then(|| problem.forward(q, k, &magnitudes).unwrap().out);
    let mut bounds = Gradients { dq: vec![0.0; q.len()], dk: vec![0.0; k.len()], dv: vec![0.0; v.len()] };
    let (largest_key, scale) = (longest(k, dim), problem.scale.abs());
    let flush = 2f64.powi(-39) * 2.0 * largest * longest(v, dim);
    let (u, t) = (unit_roundoff(inputs), 17.0 * dim.div_ceil(16) as f64 * 2f64.powi(-24));
    let sums = 2f64.powi(-14);
    for (row, &lse) in forward.lse.iter().enumerate() {
        let (query, head) = (row / problem.query_heads, row % problem.query_heads);
        if lse == f64::NEG_INFINITY {
            continue;
        }
        let rows = row * dim..(row + 1) * dim;
        let (q_row, d_out_row) = (&q[rows.clone()], &d_out[rows.clone()]);
        let r = 2f64.powi(-17) * (1.0 + scale * norm(q_row) * largest_key) + 2f64.powi(-21) * lse.abs();
        let of_kernel = sizes.as_ref().map_or(0.0, |sizes| {
            (unit_roundoff(inputs) + 2.0 * r) * dot_of_magnitudes(&sizes[rows.clone()], d_out_row)
        });
        let r = if sizes.is_some() { 2.0 * r } else { r };
        let e = match from {
            Delta::Given => 2f64.powi(-24) * delta[row].abs(),
            Delta::OfOutput(dtype) | Delta::OfKernel(dtype) => {
                let out_row = &forward.out[rows.clone()];
                let tiny = if dtype == Dtype::F16 { 2f64.powi(-25) } else { 0.0 };
                (unit_roundoff(dtype) + dim as f64 * 2f64.powi(-24)) * dot_of_magnitudes(out_row, d_out_row)
                    + of_kernel
                    + tiny * d_out_row.iter().map(|x| x.abs()).sum::<f64>()
            }
        };
        let key_head = head / (problem.query_heads / problem.key_heads);
        for key in (0..problem.key_length).filter(|&key| problem.allows(query, key)) {
            let keys =
                (key * problem.key_heads + key_head) * dim..(key * problem.key_heads + key_head + 1) * dim;
            let (k_row, v_row) = (&k[keys.clone()], &v[keys.clone()]);
            let w = (problem.scale * dot(q_row, k_row) - lse).exp();
            let g = dot_of_magnitudes(d_out_row, v_row);
            let ds = w * (dot(d_out_row, v_row) - delta[row]).abs();
            let made = 1.01 * w * ((r + t + 2f64.powi(-21)) * (g + delta[row].abs()) + e);
            let off = scale * ((u + sums) * ds + made + flush);
            add(&mut bounds.dq[rows.clone()], off, k_row);
            add(&mut bounds.dk[keys.clone()], off, q_row);
            add(&mut bounds.dv[keys], w * (u + sums + 1.01 * r) + 2f64.powi(-40), d_out_row);
        }
    }
    Exact { out: forward.out, lse: forward.lse, delta, gradients, bounds }
}

/// What a gradient is checked against: `[rows, head_dim]`, and what lay there before, if it is added to.
pub struct Expected<'a> {
    pub name: &'a str,
    pub exact: &'a [f64],
    pub bound: &'a [f64],
    pub before: Option<&'a [f64]>,
}

/// Checks the bits of a gradient, of a type.
pub fn check(expected: &Expected<'_>, dtype: Dtype, found: &[u32]) -> Result<(), String> {
    let Expected { name, exact, bound, before } = *expected;
    if found.len() != exact.len() {
        return Err(format!("{name} is of another size than the reference's"));
    }
    for (i, &bits) in found.iter().enumerate() {
        let before = before.map_or(0.0, |before| before[i]);
        let wanted = exact[i] + before;
        let value = format(dtype).decode(bits);
        let good = match format(dtype) {
            Format::F32 => {
                let rounding = 2f64.powi(-23) * (exact[i].abs() + wanted.abs()) + 2f64.powi(-126);
                (value - wanted).abs() <= bound[i] + rounding
            }
            format => format.within(bits, wanted, bound[i] + 2f64.powi(-126)).unwrap(),
        };
        if !good {
            let error = (value - wanted).abs();
            return Err(format!(
                "{name}[{i}]: {value} against {wanted}, off by {error:e}, allowed {:e}",
                bound[i]
            ));
        }
    }
    Ok(())
}
