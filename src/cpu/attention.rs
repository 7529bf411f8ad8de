//! Attention forward, block by block with the online softmax.
//!
//! A work item is a block of queries of one head. It walks over the blocks of keys that its mask leaves: logits of the
//! block, the running maximum m and sum l, and the running output O rescaled by exp(m_old - m_new) before P V is added
//! (FlashAttention, arXiv 2205.14135, algorithm 1). Memory is a few tiles a thread, whatever the length.

use pulp::Arch;
use rayon::prelude::*;

use crate::Error;
use crate::cpu::exponential::{exponentials, maximum};
use crate::cpu::tensor::{RowsMut, Tensor, TensorMut};
use crate::cpu::tile::{Matrix, multiply};
use crate::descriptor::Attention;

/// Queries of a work item.
const QUERY_BLOCK: usize = 64;
/// Keys of a step: with 64 queries the logits take 64 KiB and stay in the second-level cache.
const KEY_BLOCK: usize = 256;

/// Attention of `q` `[batch, query_length, query_heads, head_dim]` over `k` and `v`
/// `[batch, key_length, key_heads, head_dim]`, any strides, into `out` of `q`'s shape.
///
/// Query head `h` uses key head `h / (query_heads / key_heads)`. `lse`, if given, is `[batch, query_length,
/// query_heads]`, contiguous, and receives the natural logarithm of each row's sum of exponentials. A row without a
/// visible key gives zeros and minus infinity. A row that sees a NaN, or whose logits overflow, becomes NaN; a value that
/// is not finite may also reach rows of the same block of 64 queries that do not see it.
///
/// # Errors
/// Shapes that do not belong together, a layout outside its buffer, an output that overlaps itself, or an invalid
/// descriptor. Nothing is written then.
pub fn attention(
    attention: &Attention,
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    out: TensorMut<'_>,
    lse: Option<&mut [f32]>,
) -> Result<(), Error> {
    attention.validate(&q.layout, &k.layout, &v.layout, &out.layout())?;
    q.check("q")?;
    k.check("k")?;
    v.check("v")?;
    out.check("out")?;
    let (batch, length, heads) = (q.layout.batch(), q.layout.length(), q.layout.heads());
    // Not empty, its elements lie in a buffer: then the product fits.
    let rows = if q.layout.is_empty() { 0 } else { batch * length * heads };
    let lse = match lse {
        Some(lse) if lse.len() != rows => {
            return Err(Error::argument(
                "lse",
                format!("{} values", lse.len()),
                format!("{rows} [batch, query_length, query_heads]"),
            ));
        }
        lse => lse.map(LsePointer::new),
    };
    if rows == 0 {
        return Ok(());
    }
    let job = Job { attention, q, k, v, out: out.into_rows(), lse, arch: Arch::new() };
    let blocks = length.div_ceil(QUERY_BLOCK);
    // The last blocks of a causal attention have the most keys, so they come first in each thread's share.
    (0..batch * heads * blocks).into_par_iter().for_each_init(Scratch::default, |scratch, item| {
        let (block, rest) = (blocks - 1 - item / (batch * heads), item % (batch * heads));
        job.run(scratch, rest / heads, rest % heads, block * QUERY_BLOCK);
    });
    Ok(())
}

/// The caller's LSE buffer, shared between threads of which each writes rows of its own.
struct LsePointer(*mut f32);

impl LsePointer {
    fn new(lse: &mut [f32]) -> Self {
        Self(lse.as_mut_ptr())
    }
}

// SAFETY: the pointer stands for an exclusive borrow that outlives the job; each row is written by one thread.
unsafe impl Send for LsePointer {}
// SAFETY: as above.
unsafe impl Sync for LsePointer {}

struct Job<'a> {
    attention: &'a Attention,
    q: Tensor<'a>,
    k: Tensor<'a>,
    v: Tensor<'a>,
    out: RowsMut<'a>,
    lse: Option<LsePointer>,
    arch: Arch,
}

/// The tiles of a thread.
#[derive(Default)]
struct Scratch {
    /// Queries times the scale, `[query, head_dim]`.
    queries: Vec<f32>,
    /// Logits, then weights, `[query, key]`.
    weights: Vec<f32>,
    /// The running output, `[query, head_dim]`.
    output: Vec<f32>,
    /// The running maximum and sum of each query.
    state: Vec<(f32, f32)>,
}

impl Job<'_> {
    fn run(&self, scratch: &mut Scratch, batch: usize, head: usize, first: usize) {
        let dim = self.q.layout.head_dim();
        let rows = QUERY_BLOCK.min(self.q.layout.length() - first);
        let key_head = head / (self.q.layout.heads() / self.k.layout.heads());
        self.load_queries(scratch, batch, head, first, rows);
        scratch.output.clear();
        scratch.output.resize(rows * dim, 0.0);
        scratch.state.clear();
        scratch.state.resize(rows, (f32::NEG_INFINITY, 0.0));

        let visible: Vec<(usize, usize)> = (first..first + rows)
            .map(|i| self.attention.visible(self.attention.query_offset + i as i64, self.k.layout.length()))
            .collect();
        // What a block sees: from the first key that any of its queries sees to the last.
        let start = visible.iter().filter(|(a, b)| a < b).map(|(a, _)| *a).min().unwrap_or(0);
        let end = visible.iter().filter(|(a, b)| a < b).map(|(_, b)| *b).max().unwrap_or(0);
        for key in (start..end).step_by(KEY_BLOCK) {
            self.step(scratch, &visible, batch, key_head, key, KEY_BLOCK.min(end - key));
        }
        self.store(scratch, batch, head, first, rows);
    }

    fn load_queries(&self, scratch: &mut Scratch, batch: usize, head: usize, first: usize, rows: usize) {
        let (dim, step) = (self.q.layout.head_dim(), self.q.layout.dim_stride());
        let scale = self.attention.scale_for(dim);
        scratch.queries.clear();
        for i in first..first + rows {
            let row = self.q.row(batch, i, head);
            // SAFETY: `q` was checked to lie in its buffer.
            scratch.queries.extend((0..dim as isize).map(|d| unsafe { *row.offset(d * step) } * scale));
        }
    }

    /// One block of keys: `key .. key + keys`.
    fn step(
        &self,
        scratch: &mut Scratch,
        visible: &[(usize, usize)],
        batch: usize,
        head: usize,
        key: usize,
        keys: usize,
    ) {
        let (rows, dim) = (visible.len(), self.q.layout.head_dim());
        let Scratch { queries, weights, output, state } = scratch;
        weights.resize(rows * keys, 0.0);
        let row_major = |first, step| Matrix { first, row_step: step as isize, column_step: 1 };
        let transposed_keys = Matrix {
            first: self.k.row(batch, key, head),
            row_step: self.k.layout.dim_stride(),
            column_step: self.k.layout.strides()[1] as isize,
        };
        // SAFETY: `k` was checked, and `key + keys` is at most its length.
        unsafe {
            multiply(
                [rows, keys, dim],
                row_major(queries.as_ptr(), dim),
                transposed_keys,
                &mut weights[..rows * keys],
                keys,
                false,
            );
        }
        for (r, ((row, state), &(start, end))) in
            weights.chunks_exact_mut(keys).zip(state.iter_mut()).zip(visible).enumerate()
        {
            let (start, end) = (start.clamp(key, key + keys) - key, end.clamp(key, key + keys) - key);
            row[..start].fill(f32::NEG_INFINITY);
            row[end.max(start)..].fill(f32::NEG_INFINITY);
            let (old_maximum, old_sum) = *state;
            let new_maximum = old_maximum.max(maximum(self.arch, row));
            if new_maximum == f32::NEG_INFINITY {
                // Nothing visible yet, and all weights are zero; or all that is visible is NaN.
                if row.iter().any(|x| x.is_nan()) {
                    state.1 = f32::NAN;
                }
                row.fill(0.0);
                continue;
            }
            let correction = (old_maximum - new_maximum).exp();
            let sum = exponentials(self.arch, row, new_maximum);
            *state = (new_maximum, old_sum * correction + sum);
            if correction != 1.0 {
                output[r * dim..(r + 1) * dim].iter_mut().for_each(|x| *x *= correction);
            }
        }
        let values = Matrix {
            first: self.v.row(batch, key, head),
            row_step: self.v.layout.strides()[1] as isize,
            column_step: self.v.layout.dim_stride(),
        };
        // SAFETY: `v` was checked, and has as many tokens as `k`.
        unsafe {
            multiply([rows, dim, keys], row_major(weights.as_ptr(), keys), values, output, dim, true);
        }
    }

    fn store(&self, scratch: &Scratch, batch: usize, head: usize, first: usize, rows: usize) {
        let (dim, step) = (self.q.layout.head_dim(), self.out.dim_stride());
        let (length, heads) = (self.q.layout.length(), self.q.layout.heads());
        for r in 0..rows {
            let (maximum, sum) = scratch.state[r];
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let row = self.out.row(batch, first + r, head);
            for (d, x) in (0isize..).zip(&scratch.output[r * dim..(r + 1) * dim]) {
                // SAFETY: `out` was checked to lie in its buffer with distinct elements; this row is this item's.
                unsafe { *row.offset(d * step) = x * inverse };
            }
            if let Some(lse) = &self.lse {
                let index = (batch * length + first + r) * heads + head;
                // SAFETY: the buffer has batch * length * heads elements; this one is this item's.
                unsafe {
                    *lse.0.add(index) = if sum == 0.0 { f32::NEG_INFINITY } else { maximum + sum.ln() }
                };
            }
        }
    }
}
