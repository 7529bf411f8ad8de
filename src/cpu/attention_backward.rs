//! Gradients of attention, block by block, from the log-sum-exp that the forward pass gave.
//!
//! The weights are not kept but made again: P = exp(scale q k^T - lse) (FlashAttention, arXiv 2205.14135, algorithm 4). There are
//! two passes, so that every sum has one order and no two threads add to the same number: items of the first are blocks of queries
//! and give dQ, items of the second are blocks of keys and give dK and dV. Memory is a few tiles a thread.

use pulp::Arch;
use rayon::prelude::*;

use crate::Error;
use crate::cpu::exponential::exponentials;
use crate::cpu::tensor::{RowsMut, Tensor, TensorMut};
use crate::cpu::tile::{Matrix, multiply};
use crate::descriptor::{Attention, Layout};

/// Queries of a step.
const QUERY_BLOCK: usize = 64;
/// Keys of a step.
const KEY_BLOCK: usize = 128;

/// Where gradients go: each of the shape of what it is the gradient of, any strides.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Of the queries.
    pub dq: TensorMut<'a>,
    /// Of the keys: summed over the query heads that share a key head.
    pub dk: TensorMut<'a>,
    /// Of the values, likewise.
    pub dv: TensorMut<'a>,
}

/// The sum over the head dimension of `out * d_out`, `[batch, query_length, query_heads]`, contiguous: what
/// [`attention_backward`] takes as `delta`.
///
/// Where only a part of the keys is at hand, as in a ring of devices, `out` and `lse` are those of all keys, and so is `delta`.
/// A gradient of the log-sum-exp itself is subtracted from it.
///
/// # Errors
/// Shapes that differ, a layout outside its buffer, or a `delta` of another size. Nothing is written then.
pub fn attention_delta(out: Tensor<'_>, d_out: Tensor<'_>, delta: &mut [f32]) -> Result<(), Error> {
    same_shape("d_out", &d_out.layout, &out.layout, "out")?;
    out.check("out")?;
    d_out.check("d_out")?;
    let rows = rows_of(&out.layout);
    check_rows("delta", delta.len(), rows)?;
    let (length, heads, dim) = (out.layout.length(), out.layout.heads(), out.layout.head_dim() as isize);
    let (a_step, b_step) = (out.layout.dim_stride(), d_out.layout.dim_stride());
    delta.par_iter_mut().enumerate().with_min_len(64).for_each(|(row, delta)| {
        let (batch, token, head) = (row / heads / length, row / heads % length, row % heads);
        let (a, b) = (out.row(batch, token, head), d_out.row(batch, token, head));
        // SAFETY: both were checked to lie in their buffers.
        *delta = (0..dim).map(|d| unsafe { *a.offset(d * a_step) * *b.offset(d * b_step) }).sum();
    });
    Ok(())
}

/// Gradients of [`attention`](super::attention()) by `q`, `k` and `v`, given those of its output, `d_out`, in the shape of `q`:
///
/// ```text
/// P  = exp(scale q k^T - lse)       dV = P^T dO
/// dS = P * (dO V^T - delta)         dQ = scale dS K       dK = scale dS^T Q
/// ```
///
/// `lse` is what [`attention`](super::attention()) gave, and `delta` what [`attention_delta`] gives, each
/// `[batch, query_length, query_heads]`, contiguous. A row whose `lse` is minus infinity saw no key, and adds nothing. A value that
/// is not finite may also reach gradients of the same block of 64 queries and 128 keys that do not depend on it. The same inputs
/// give the same bits, whatever the number of threads.
///
/// # Errors
/// Shapes that do not belong together, a layout outside its buffer, an output that overlaps itself, or an invalid descriptor.
/// Nothing is written then.
#[expect(clippy::too_many_arguments, reason = "they are what the formulas have")]
pub fn attention_backward(
    attention: &Attention,
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    d_out: Tensor<'_>,
    lse: &[f32],
    delta: &[f32],
    gradients: AttentionGradients<'_>,
) -> Result<(), Error> {
    attention.validate(&q.layout, &k.layout, &v.layout, &q.layout)?;
    same_shape("d_out", &d_out.layout, &q.layout, "q")?;
    for (name, tensor) in [("q", &q), ("k", &k), ("v", &v), ("d_out", &d_out)] {
        tensor.check(name)?;
    }
    let AttentionGradients { dq, dk, dv } = gradients;
    for (name, gradient, of, whose) in
        [("dq", &dq, &q.layout, "q"), ("dk", &dk, &k.layout, "k"), ("dv", &dv, &v.layout, "v")]
    {
        same_shape(name, &gradient.layout(), of, whose)?;
        gradient.check(name)?;
    }
    let rows = rows_of(&q.layout);
    check_rows("lse", lse.len(), rows)?;
    check_rows("delta", delta.len(), rows)?;
    let (batch, key_length, key_heads) = (k.layout.batch(), k.layout.length(), k.layout.heads());
    let (query_length, heads) = (q.layout.length(), q.layout.heads());
    let (dq, dk, dv) = (dq.into_rows(), dk.into_rows(), dv.into_rows());
    let job = Job { attention, q, k, v, d_out, lse, delta, arch: Arch::new() };
    if rows > 0 {
        let blocks = query_length.div_ceil(QUERY_BLOCK);
        // The last blocks of a causal attention have the most keys, so they come first in each thread's share.
        (0..rows / query_length * blocks).into_par_iter().for_each_init(Scratch::default, |scratch, item| {
            let (block, rest) = (blocks - 1 - item / (batch * heads), item % (batch * heads));
            job.queries(scratch, [rest / heads, rest % heads], block * QUERY_BLOCK, &dq);
        });
    }
    if !k.layout.is_empty() {
        let blocks = key_length.div_ceil(KEY_BLOCK);
        // And the first keys have the most queries.
        (0..batch * key_heads * blocks).into_par_iter().for_each_init(Scratch::default, |scratch, item| {
            let (block, rest) = (item / (batch * key_heads), item % (batch * key_heads));
            job.keys(scratch, [rest / key_heads, rest % key_heads], block * KEY_BLOCK, [&dk, &dv]);
        });
    }
    Ok(())
}

fn same_shape(name: &str, found: &Layout, expected: &Layout, whose: &str) -> Result<(), Error> {
    match found.shape() == expected.shape() {
        true => Ok(()),
        false => {
            let expected = format!("{:?}, as {whose}", expected.shape());
            Err(Error::argument(format!("{name}.shape"), format!("{:?}", found.shape()), expected))
        }
    }
}

/// Rows of queries or outputs. Not empty, their elements lie in a buffer: then the product fits.
fn rows_of(layout: &Layout) -> usize {
    if layout.is_empty() { 0 } else { layout.batch() * layout.length() * layout.heads() }
}

fn check_rows(name: &str, found: usize, rows: usize) -> Result<(), Error> {
    match found == rows {
        true => Ok(()),
        false => Err(Error::argument(
            name,
            format!("{found} values"),
            format!("{rows} [batch, query_length, query_heads]"),
        )),
    }
}

struct Job<'a> {
    attention: &'a Attention,
    q: Tensor<'a>,
    k: Tensor<'a>,
    v: Tensor<'a>,
    d_out: Tensor<'a>,
    lse: &'a [f32],
    delta: &'a [f32],
    arch: Arch,
}

/// The tiles of a thread.
#[derive(Default)]
struct Scratch {
    /// Queries times the scale, `[query, head_dim]`.
    queries: Vec<f32>,
    /// Gradients of their outputs, `[query, head_dim]`.
    d_out: Vec<f32>,
    /// Weights (P), `[query, key]`.
    weights: Vec<f32>,
    /// Gradients of the logits (dS), `[query, key]`.
    d_logits: Vec<f32>,
    /// Running sums of gradients, `[query or key, head_dim]`.
    sums: [Vec<f32>; 2],
}

fn row_major(first: &[f32], step: usize) -> Matrix {
    Matrix { first: first.as_ptr(), row_step: step as isize, column_step: 1 }
}

fn transposed(first: &[f32], step: usize) -> Matrix {
    Matrix { first: first.as_ptr(), row_step: 1, column_step: step as isize }
}

impl Job<'_> {
    /// dQ of a block of queries, over the keys that it sees.
    fn queries(&self, scratch: &mut Scratch, [batch, head]: [usize; 2], first: usize, dq: &RowsMut<'_>) {
        let dim = self.q.layout.head_dim();
        let rows = QUERY_BLOCK.min(self.q.layout.length() - first);
        self.load(scratch, [batch, head], first, rows);
        reset(&mut scratch.sums[0], rows * dim);
        // What the block sees: from the first key that any of its queries sees to the last.
        let seen = (first..first + rows).map(|query| self.visible(query)).filter(|(a, b)| a < b);
        let (start, end) = seen.fold((usize::MAX, 0), |(start, end), (a, b)| (start.min(a), end.max(b)));
        for key in (start..end).step_by(KEY_BLOCK) {
            let keys = KEY_BLOCK.min(end - key);
            self.weights(scratch, [batch, head], [first, rows], [key, keys]);
            let Scratch { d_logits, sums: [sum, _], .. } = &mut *scratch;
            let k = self.matrix(&self.k, batch, key, self.key_head(head));
            // SAFETY: `k` was checked, and `key + keys` is at most its length.
            unsafe { multiply([rows, dim, keys], row_major(d_logits, keys), k, sum, dim, true) };
        }
        let scale = self.attention.scale_for(dim);
        // SAFETY: `dq` was checked to lie in its buffer with distinct elements; these rows are this item's.
        unsafe { store(&scratch.sums[0], dq, [batch, head], first, dim, scale) };
    }

    /// dK and dV of a block of keys, over all queries that see any of it.
    fn keys(
        &self,
        scratch: &mut Scratch,
        [batch, key_head]: [usize; 2],
        key: usize,
        [dk, dv]: [&RowsMut<'_>; 2],
    ) {
        let dim = self.q.layout.head_dim();
        let keys = KEY_BLOCK.min(self.k.layout.length() - key);
        let ratio = self.q.layout.heads() / self.k.layout.heads();
        scratch.sums.iter_mut().for_each(|sum| reset(sum, keys * dim));
        // Later queries begin and end with later keys, so those that see the block follow each other.
        let start = self.first_query(|(_, end)| end > key);
        let end = self.first_query(|(start, _)| start >= key + keys);
        for head in key_head * ratio..(key_head + 1) * ratio {
            for first in (start..end).step_by(QUERY_BLOCK) {
                let rows = QUERY_BLOCK.min(end - first);
                self.load(scratch, [batch, head], first, rows);
                self.weights(scratch, [batch, head], [first, rows], [key, keys]);
                let Scratch { queries, d_out, weights, d_logits, sums: [dk, dv] } = &mut *scratch;
                // SAFETY: the tiles have these shapes.
                unsafe {
                    multiply(
                        [keys, dim, rows],
                        transposed(weights, keys),
                        row_major(d_out, dim),
                        dv,
                        dim,
                        true,
                    );
                    // The queries are times the scale already.
                    multiply(
                        [keys, dim, rows],
                        transposed(d_logits, keys),
                        row_major(queries, dim),
                        dk,
                        dim,
                        true,
                    );
                }
            }
        }
        // SAFETY: `dk` and `dv` were checked to lie in their buffers with distinct elements; these rows are this item's.
        unsafe {
            store(&scratch.sums[0], dk, [batch, key_head], key, dim, 1.0);
            store(&scratch.sums[1], dv, [batch, key_head], key, dim, 1.0);
        }
    }

    fn key_head(&self, head: usize) -> usize {
        head / (self.q.layout.heads() / self.k.layout.heads())
    }

    fn visible(&self, query: usize) -> (usize, usize) {
        self.attention.visible(self.attention.query_offset + query as i64, self.k.layout.length())
    }

    /// The first query whose visible keys are `late`, which all queries after it are too; or how many there are.
    fn first_query(&self, late: impl Fn((usize, usize)) -> bool) -> usize {
        let (mut low, mut high) = (0, self.q.layout.length());
        while low < high {
            let middle = low + (high - low) / 2;
            if late(self.visible(middle)) { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// Rows of keys or values as a matrix `[key, head_dim]`.
    fn matrix(&self, tensor: &Tensor<'_>, batch: usize, key: usize, head: usize) -> Matrix {
        Matrix {
            first: tensor.row(batch, key, head),
            row_step: tensor.layout.strides()[1] as isize,
            column_step: tensor.layout.dim_stride(),
        }
    }

    /// Queries times the scale, and the gradients of their outputs.
    fn load(&self, scratch: &mut Scratch, [batch, head]: [usize; 2], first: usize, rows: usize) {
        let dim = self.q.layout.head_dim();
        let copy = |to: &mut Vec<f32>, tensor: &Tensor<'_>, factor: f32| {
            to.clear();
            let step = tensor.layout.dim_stride();
            for row in (first..first + rows).map(|token| tensor.row(batch, token, head)) {
                // SAFETY: the tensor was checked to lie in its buffer.
                to.extend((0..dim as isize).map(|d| unsafe { *row.offset(d * step) } * factor));
            }
        };
        copy(&mut scratch.queries, &self.q, self.attention.scale_for(dim));
        copy(&mut scratch.d_out, &self.d_out, 1.0);
    }

    /// P and dS of the loaded queries and a block of keys.
    fn weights(
        &self,
        scratch: &mut Scratch,
        [batch, head]: [usize; 2],
        [first, rows]: [usize; 2],
        [key, keys]: [usize; 2],
    ) {
        let (dim, key_head) = (self.q.layout.head_dim(), self.key_head(head));
        let Scratch { queries, d_out, weights, d_logits, .. } = scratch;
        for (rows_of, tensor, product) in
            [(&*queries, &self.k, &mut *weights), (&*d_out, &self.v, &mut *d_logits)]
        {
            let Matrix { first, row_step, column_step } = self.matrix(tensor, batch, key, key_head);
            let turned = Matrix { first, row_step: column_step, column_step: row_step };
            product.resize(rows * keys, 0.0);
            // SAFETY: the tensor was checked, and `key + keys` is at most its length.
            unsafe { multiply([rows, keys, dim], row_major(rows_of, dim), turned, product, keys, false) };
        }
        let (length, heads) = (self.q.layout.length(), self.q.layout.heads());
        let tiles = weights.chunks_exact_mut(keys).zip(d_logits.chunks_exact_mut(keys));
        for (query, (weights, d_logits)) in (first..).zip(tiles) {
            let row = (batch * length + query) * heads + head;
            let (lse, delta) = (self.lse[row], self.delta[row]);
            let (start, end) = self.visible(query);
            let (start, end) = (start.clamp(key, key + keys) - key, end.clamp(key, key + keys) - key);
            if lse == f32::NEG_INFINITY || start >= end {
                weights.fill(0.0);
                d_logits.fill(0.0);
                continue;
            }
            exponentials(self.arch, &mut weights[start..end], lse);
            for (d, weight) in d_logits[start..end].iter_mut().zip(&weights[start..end]) {
                *d = weight * (*d - delta);
            }
            // What is masked has no part in any sum, not even where it is not finite.
            for tile in [weights, d_logits] {
                tile[..start].fill(0.0);
                tile[end..].fill(0.0);
            }
        }
    }
}

fn reset(sum: &mut Vec<f32>, elements: usize) {
    sum.clear();
    sum.resize(elements, 0.0);
}

/// Writes rows of sums, times a factor.
///
/// # Safety
/// The rows of `out` from token `first` on were checked, and no one else uses them.
unsafe fn store(
    sums: &[f32],
    out: &RowsMut<'_>,
    [batch, head]: [usize; 2],
    first: usize,
    dim: usize,
    factor: f32,
) {
    let step = out.dim_stride();
    for (token, row) in (first..).zip(sums.chunks_exact(dim)) {
        let to = out.row(batch, token, head);
        for (d, x) in (0isize..).zip(row) {
            // SAFETY: by this function's contract.
            unsafe { *to.offset(d * step) = x * factor };
        }
    }
}
