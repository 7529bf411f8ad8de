//! A million keys, and a million queries: sampled rows against f64, and sums that must not drift.
//!
//! Half of the dimensions of q and k make the logits; there k or q, whose sums are taken, are random. In the other half the one is
//! zero and the other constant, and so is the gradient of the output. Values are such that dP is one positive number c; and delta,
//! which is given, is 0. So every dS is P c > 0, and sums over the constant dimensions have terms of one sign: what drifts, shows.
//!
//! # The bounds
//! In the constant dimensions, 2e-4 relatively: what the crate promises. A rounding of P or dS to 16 bits goes up as often as down,
//! so that a million of them are far below: u / √(10^6), and their mean is below u².
//!
//! In the random ones, an error of up to e of each term, relatively, and of either sign, is a sum of independent terms of mean 0,
//! which passes 6 e √(Σ term²) with a probability of 3e-8 (Hoeffding); e = u + 2 r, with r as in `oracle`. To it 2e-4 of the sum.

use cudarc::driver::CudaSlice;
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors};
use rayon::prelude::*;

use crate::attention::long::random;
use crate::attention::oracle::unit_roundoff;
use crate::backward::problem::launch;
use crate::buffer::{Gpu, format};

pub const TESTS: &[crate::Test] = &[
    ("sampled_rows_over_a_million_keys_do_not_drift", million_keys),
    ("sampled_rows_over_a_million_queries_do_not_drift", million_queries),
];

/// What every relative error of a sum is below.
const DRIFT: f64 = 2e-4;
/// dP: values are this over the number of constant dimensions, and gradients of the output 1 there.
const GRADIENT: f64 = 0.5;

struct Problem {
    dtype: Dtype,
    queries: usize,
    keys: usize,
    query_heads: usize,
    key_heads: usize,
    dim: usize,
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
    d_out: Vec<u16>,
    /// `[queries, query_heads]`.
    lse: Vec<f32>,
    /// What a 16-bit number is.
    decoded: Vec<f64>,
}

/// A gradient of some rows: the exact sums, √(Σ term²) of each, and the relative error of a term.
pub struct Sums {
    sum: Vec<f64>,
    square: Vec<f64>,
    off: f64,
}

impl Sums {
    pub fn new(dim: usize) -> Self {
        Self { sum: vec![0.0; dim], square: vec![0.0; dim], off: 0.0 }
    }

    pub fn add(&mut self, factor: f64, x: impl Iterator<Item = f64>, off: f64) {
        for ((sum, square), x) in self.sum.iter_mut().zip(&mut self.square).zip(x) {
            *sum += factor * x;
            *square += (factor * x).powi(2);
        }
        self.off = self.off.max(off);
    }

    pub fn merge(mut self, other: Self) -> Self {
        for (a, b) in self.sum.iter_mut().zip(other.sum).chain(self.square.iter_mut().zip(other.square)) {
            *a += b;
        }
        self.off = self.off.max(other.off);
        self
    }

    /// Compares with a row of so many dimensions, all of whose terms are of either sign.
    pub fn check_random(&self, what: &str, found: &[f32], row: usize) {
        let dim = self.sum.len();
        for (dim, (&found, &wanted)) in found[row * dim..][..dim].iter().zip(&self.sum).enumerate() {
            let error = (f64::from(found) - wanted).abs();
            let allowed = DRIFT * wanted.abs() + 6.0 * self.off * self.square[dim].sqrt();
            assert!(
                error <= allowed,
                "{what} of row {row}, dimension {dim}: {found} against {wanted}, off by {error:e}, allowed {allowed:e}",
            );
        }
    }
}

impl Problem {
    /// Keys have zeros in the second half of their dimensions if queries have ones there, and the other way round.
    fn new(
        dtype: Dtype,
        [queries, keys]: [usize; 2],
        [query_heads, key_heads]: [usize; 2],
        dim: usize,
        queries_are_constant: bool,
    ) -> Self {
        let half = dim / 2;
        let bits = |x: f64| format(dtype).round(x) as u16;
        let with = |mut x: Vec<u16>, constant: f64| {
            let constant = bits(constant);
            x.par_chunks_mut(dim).for_each(|row| row[half..].fill(constant));
            x
        };
        let (of_q, of_k) = if queries_are_constant { (1.0, 0.0) } else { (0.0, 1.0) };
        let q = with(random(dtype, 1, queries * query_heads * dim, 3.0), of_q);
        let k = with(random(dtype, 2, keys * key_heads * dim, 1.0), of_k);
        let d_out = with(random(dtype, 3, queries * query_heads * dim, 1.0), 1.0);
        let value = bits(GRADIENT / half as f64);
        let mut v = vec![0u16; keys * key_heads * dim];
        v.par_chunks_mut(dim).for_each(|row| row[half..].fill(value));
        let decoded = (0..1u32 << 16).map(|bits| format(dtype).decode(bits)).collect();
        let mut problem = Self {
            dtype,
            queries,
            keys,
            query_heads,
            key_heads,
            dim,
            q,
            k,
            v,
            d_out,
            lse: Vec::new(),
            decoded,
        };
        problem.lse = problem.log_sum_exps();
        problem
    }

    fn row<'a>(&'a self, x: &'a [u16], heads: usize, token: usize, head: usize) -> &'a [u16] {
        &x[(token * heads + head) * self.dim..][..self.dim]
    }

    fn scale(&self) -> f64 {
        f64::from(1.0 / (self.dim as f32).sqrt())
    }

    /// The logit of a query and a key, by the dimensions that make it.
    fn logit(&self, query: usize, head: usize, key: usize) -> f64 {
        let q = self.row(&self.q, self.query_heads, query, head);
        let k = self.row(&self.k, self.key_heads, key, head / (self.query_heads / self.key_heads));
        let product = |(&a, &b): (&u16, &u16)| self.decoded[usize::from(a)] * self.decoded[usize::from(b)];
        self.scale() * q.iter().zip(k).take(self.dim / 2).map(product).sum::<f64>()
    }

    /// Logits are below 3 · 1 · 128 / √256 = 24, so that no maximum is needed.
    fn log_sum_exps(&self) -> Vec<f32> {
        const PIECE: usize = 1 << 14;
        let row = |row: usize| {
            let pieces = (0..self.keys.div_ceil(PIECE)).into_par_iter().map(|piece| {
                let keys = piece * PIECE..self.keys.min((piece + 1) * PIECE);
                keys.map(|key| self.logit(row / self.query_heads, row % self.query_heads, key).exp())
                    .sum::<f64>()
            });
            pieces.sum::<f64>().ln() as f32
        };
        (0..self.queries * self.query_heads).into_par_iter().map(row).collect()
    }

    /// The weight of a key, and by how much it may be off, relatively: u + 2 r, with L at most 24.
    fn weight(&self, query: usize, head: usize, key: usize) -> (f64, f64) {
        let lse = f64::from(self.lse[query * self.query_heads + head]);
        let r = 2f64.powi(-17) * 25.0 + 2f64.powi(-21) * lse.abs();
        ((self.logit(query, head, key) - lse).exp(), unit_roundoff(self.dtype) + 2.0 * r)
    }

    fn values<'a>(&'a self, row: &'a [u16]) -> impl Iterator<Item = f64> + 'a {
        row.iter().map(|&x| self.decoded[usize::from(x)])
    }

    /// dP of every query and key: exact, since values and gradients of the output are powers of two or zero, or near it.
    fn gradient(&self) -> f64 {
        let half = self.dim / 2;
        self.decoded[usize::from(self.v[half])] * half as f64
    }

    /// dQ of a row.
    fn dq(&self, query: usize, head: usize) -> Sums {
        let ds = self.scale() * self.gradient();
        let key_head = head / (self.query_heads / self.key_heads);
        let key = |mut sums: Sums, key: usize| {
            let (w, off) = self.weight(query, head, key);
            sums.add(w * ds, self.values(self.row(&self.k, self.key_heads, key, key_head)), off);
            sums
        };
        (0..self.keys)
            .into_par_iter()
            .fold(|| Sums::new(self.dim), key)
            .reduce(|| Sums::new(self.dim), Sums::merge)
    }

    /// dK and dV of a row.
    fn dk_dv(&self, key: usize, key_head: usize) -> (Sums, Sums) {
        let (ds, group) = (self.scale() * self.gradient(), self.query_heads / self.key_heads);
        let none = || (Sums::new(self.dim), Sums::new(self.dim));
        let query = |(mut dk, mut dv): (Sums, Sums), query: usize| {
            for head in key_head * group..(key_head + 1) * group {
                let (w, off) = self.weight(query, head, key);
                dk.add(w * ds, self.values(self.row(&self.q, self.query_heads, query, head)), off);
                dv.add(w, self.values(self.row(&self.d_out, self.query_heads, query, head)), off);
            }
            (dk, dv)
        };
        let merge = |a: (Sums, Sums), b: (Sums, Sums)| (a.0.merge(b.0), a.1.merge(b.1));
        (0..self.queries).into_par_iter().fold(none, query).reduce(none, merge)
    }

    /// The gradients, f32 `[tokens, heads, dim]`.
    fn run(&self, gpu: &Gpu, fast: bool) -> [Vec<f32>; 3] {
        let tensor = |address, dtype, length, heads, dim| DeviceTensor {
            address,
            dtype,
            layout: Layout::bshd(1, length, heads, dim),
        };
        let [q, k, v, d_out] = [&self.q, &self.k, &self.v, &self.d_out].map(|x| gpu.upload(x));
        let lse = gpu.upload(&self.lse);
        let delta = gpu.upload(&vec![0f32; self.lse.len()]);
        let (queries, keys) = ((self.queries, self.query_heads), (self.keys, self.key_heads));
        let outputs = [queries, keys, keys]
            .map(|(length, heads)| gpu.upload(&vec![f32::NAN; length * heads * self.dim]));
        let input = |memory: &CudaSlice<u16>, (length, heads)| {
            tensor(gpu.address(memory), self.dtype, length, heads, self.dim)
        };
        let rows = |memory: &CudaSlice<f32>| {
            tensor(gpu.address(memory), Dtype::F32, self.queries, self.query_heads, 1)
        };
        let output =
            |i: usize, (length, heads)| tensor(gpu.address(&outputs[i]), Dtype::F32, length, heads, self.dim);
        let tensors = AttentionBackwardTensors {
            q: input(&q, queries),
            k: input(&k, keys),
            v: input(&v, keys),
            out: None,
            lse: rows(&lse),
            delta: Some(rows(&delta)),
            d_out: input(&d_out, queries),
            dq: output(0, queries),
            dk: output(1, keys),
            dv: output(2, keys),
        };
        let backward = AttentionBackward { fast, ..AttentionBackward::new(descriptor::Attention::default()) };
        // SAFETY: the memory is as large as the layouts say, and lives until the gradients were read.
        unsafe { launch(gpu, &backward, &tensors) };
        let found = outputs.map(|output| gpu.download(&output));
        assert!(found.iter().all(|found| found.par_iter().all(|x| x.is_finite())), "every row is written");
        found
    }

    /// Compares a row with what it must be.
    fn check(&self, what: &str, found: &[f32], row: usize, exact: &Sums) {
        let found = &found[row * self.dim..(row + 1) * self.dim];
        for (dim, (&found, &wanted)) in found.iter().zip(&exact.sum).enumerate() {
            let error = (f64::from(found) - wanted).abs();
            let random = if dim < self.dim / 2 { 6.0 * exact.off * exact.square[dim].sqrt() } else { 0.0 };
            let allowed = DRIFT * wanted.abs() + random;
            assert!(
                error <= allowed,
                "{:?}, {what} of row {row}, dimension {dim}: {found} against {wanted}, off by {error:e}, allowed {allowed:e}",
                self.dtype,
            );
        }
    }

    /// Rows of dQ by query and head, and of dK and dV by key and key head.
    fn check_all(&self, gpu: &Gpu, queries: &[(usize, usize)], keys: &[(usize, usize)]) {
        let exact_dqs: Vec<Sums> = queries.iter().map(|&(query, head)| self.dq(query, head)).collect();
        let exact_others: Vec<(Sums, Sums)> = keys.iter().map(|&(key, head)| self.dk_dv(key, head)).collect();
        // With sums of any order too, where there is such a kernel.
        let both = if self.dtype == Dtype::Bf16 { &[false, true][..] } else { &[false] };
        for &fast in both {
            let [dq, dk, dv] = self.run(gpu, fast);
            for (&(query, head), exact) in queries.iter().zip(&exact_dqs) {
                self.check("dq", &dq, query * self.query_heads + head, exact);
            }
            for (&(key, head), (exact_dk, exact_dv)) in keys.iter().zip(&exact_others) {
                let row = key * self.key_heads + head;
                self.check("dk", &dk, row, exact_dk);
                self.check("dv", &dv, row, exact_dv);
            }
        }
    }
}

fn million_keys(gpu: &Gpu) {
    for (dtype, dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 256), (Dtype::Bf16, 256)] {
        let problem = Problem::new(dtype, [6, 1 << 20], [2, 1], dim, false);
        problem.check_all(gpu, &[(0, 0), (3, 1), (5, 0)], &[]);
    }
}

fn million_queries(gpu: &Gpu) {
    for (dtype, dim, heads) in [
        (Dtype::Bf16, 128, [2, 1]),
        (Dtype::F16, 64, [2, 1]),
        (Dtype::F16, 256, [1, 1]),
        (Dtype::Bf16, 256, [1, 1]),
    ] {
        let problem = Problem::new(dtype, [1 << 20, 10], heads, dim, true);
        problem.check_all(gpu, &[], &[(0, 0), (4, 0), (9, 0)]);
    }
}
