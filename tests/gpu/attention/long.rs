//! A million keys and more: sampled rows against the reference, and sums that must not drift.
//!
//! # The bound of a sampled row
//! Over so many keys the bound of `oracle` says little: roundings of weights, each up to u, add up to u A only if all have the
//! sign of their value. Here the values are random and independent of the weights, with both signs equally likely. So an error
//! of up to e of each weight, relatively, shifts the output by a sum of independent terms of mean 0 and sizes up to
//! e w_j |v_j|, which passes 6 e √(Σ w_j² v_j²) with a probability of 2 exp(-18) (Hoeffding), 3e-8. Here e = u + 2 r, with r as
//! in `oracle`. The sum of the weights is to be right to 1e-4, which is what the crate promises at 2^21 keys.

use cudarc::driver::CudaSlice;
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors};
use longrope::reference::{Output, Problem, merge};
use rayon::prelude::*;

use crate::attention::oracle::{self, ONE_CALL, norm, unit_roundoff};
use crate::buffer::{Gpu, format};

pub const TESTS: &[crate::Test] = &[
    ("sampled_rows_over_a_million_keys_are_exact", one_million),
    ("sampled_rows_over_two_million_keys_are_exact", two_million),
    ("constant_values_do_not_drift_over_two_million_keys", drift),
    ("two_million_weak_keys_count_beside_a_strong_one", dominant),
    ("sampled_rows_of_a_long_causal_prefill_are_exact", prefill),
    ("sampled_rows_of_a_long_prefill_with_a_window_are_exact", window),
];

/// What every relative error at 2^21 keys is below.
const DRIFT: f64 = 1e-4;

/// A sequence of one batch, `[length, heads, head_dim]` each of q, k and v.
pub struct Sequence {
    pub dtype: Dtype,
    pub queries: usize,
    pub keys: usize,
    pub query_heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub attention: descriptor::Attention,
    pub q: Vec<u16>,
    pub k: Vec<u16>,
    pub v: Vec<u16>,
}

/// Random numbers between -`largest` and `largest`, as 16 bits.
pub fn random(dtype: Dtype, seed: u64, count: usize, largest: f64) -> Vec<u16> {
    let value = |i: u32| format(dtype).round((f64::from(i) / 32_767.5 - 1.0) * largest) as u16;
    let table: Vec<u16> = (0..1 << 16).map(value).collect();
    // splitmix64 of the index.
    let hash = |i: usize| {
        let mut x = (i as u64).wrapping_add(seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) >> 48
    };
    (0..count).into_par_iter().map(|i| table[hash(i) as usize]).collect()
}

/// What was computed, `[queries, query_heads, head_dim]` and `[queries, query_heads]`.
#[derive(PartialEq)]
pub struct Found {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

/// The exact result of a row.
struct Row {
    out: Vec<f64>,
    lse: f64,
    /// √(Σ w² v²), by dimension.
    spread: Vec<f64>,
    /// Σ w |v|, by dimension.
    size: Vec<f64>,
    /// L of the bound.
    logit: f64,
}

impl Sequence {
    /// Queries at the end of the sequence, causal.
    pub fn at_the_end(dtype: Dtype, keys: usize, queries: usize, heads: [usize; 2], head_dim: usize) -> Self {
        let [query_heads, key_heads] = heads;
        let attention = descriptor::Attention {
            query_offset: (keys - queries) as i64,
            ..descriptor::Attention::causal()
        };
        Self {
            dtype,
            queries,
            keys,
            query_heads,
            key_heads,
            head_dim,
            attention,
            q: random(dtype, 1, queries * query_heads * head_dim, 3.0),
            k: random(dtype, 2, keys * key_heads * head_dim, 1.0),
            v: random(dtype, 3, keys * key_heads * head_dim, 1.0),
        }
    }

    /// Runs with an f32 output, which must be written everywhere.
    pub fn run(&self, gpu: &Gpu) -> Found {
        self.run_on(gpu, None)
    }

    /// The same on so many multiprocessors at most.
    pub fn run_on(&self, gpu: &Gpu, max_multiprocessors: Option<u32>) -> Found {
        let tensor = |memory: &CudaSlice<u16>, length, heads| DeviceTensor {
            address: gpu.address(memory),
            dtype: self.dtype,
            layout: Layout::bshd(1, length, heads, self.head_dim),
        };
        let (q, k, v) = (gpu.upload(&self.q), gpu.upload(&self.k), gpu.upload(&self.v));
        let rows = self.queries * self.query_heads;
        let out = gpu.upload(&vec![f32::NAN; rows * self.head_dim]);
        let lse = gpu.upload(&vec![f32::NAN; rows]);
        let result = |memory: &CudaSlice<f32>, dims| DeviceTensor {
            address: gpu.address(memory),
            dtype: Dtype::F32,
            layout: Layout::bshd(1, self.queries, self.query_heads, dims),
        };
        let mut values = tensor(&v, self.keys, self.key_heads);
        if self.v.len() < self.k.len() {
            // One token stands for all.
            let strides = [0, 0, self.head_dim as i64, 1];
            values.layout = Layout::strided(values.layout.shape(), strides);
        }
        let tensors = AttentionTensors {
            q: tensor(&q, self.queries, self.query_heads),
            k: tensor(&k, self.keys, self.key_heads),
            v: values,
            out: result(&out, self.head_dim),
            lse: Some(result(&lse, 1)),
        };
        let attention = Attention { max_multiprocessors, ..Attention::new(self.attention) };
        // SAFETY: the memory is as large as the layouts say, and lives until the results were read.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        let found = Found { out: gpu.download(&out), lse: gpu.download(&lse) };
        assert!(found.out.iter().chain(&found.lse).all(|x| x.is_finite()), "every row is written");
        found
    }

    /// The exact row of a query and a head: of pieces of the keys, merged.
    fn exact(&self, query: usize, head: usize, decoded: &[f64]) -> Row {
        const PIECE: usize = 1 << 15;
        let (dim, key_head) = (self.head_dim, head / (self.query_heads / self.key_heads));
        let decode = |bits: &[u16]| -> Vec<f64> { bits.iter().map(|&x| decoded[usize::from(x)]).collect() };
        let first = (query * self.query_heads + head) * dim;
        let q = decode(&self.q[first..first + dim]);
        let scale = f64::from(self.attention.scale.unwrap_or(1.0 / (dim as f32).sqrt()));
        let pieces: Vec<_> = (0..self.keys.div_ceil(PIECE))
            .into_par_iter()
            .map(|piece| {
                let keys = piece * PIECE..self.keys.min((piece + 1) * PIECE);
                let rows = |x: &[u16]| -> Vec<f64> {
                    let row = |key| (key * self.key_heads + key_head) * dim;
                    keys.clone().flat_map(|key| decode(&x[row(key)..row(key) + dim])).collect()
                };
                let problem = Problem {
                    query_heads: 1,
                    key_heads: 1,
                    query_length: 1,
                    key_length: keys.len(),
                    head_dim: dim,
                    scale,
                    causal: self.attention.causal,
                    window: self.attention.window,
                    query_offset: self.attention.query_offset + query as i64,
                    key_offset: self.attention.key_offset + keys.start as i64,
                };
                let (k, v) = (rows(&self.k), rows(&self.v));
                let output = problem.forward(&q, &k, &v).unwrap();
                let magnitudes: Vec<f64> = v.iter().map(|v| v.abs()).collect();
                let size = problem.forward(&q, &k, &magnitudes).unwrap();
                // Weights of twice the logits are the squares of the weights, but for their sum.
                let squares: Vec<f64> = v.iter().map(|v| v * v).collect();
                let twice = Problem { scale: 2.0 * scale, ..problem };
                let squared = twice.forward(&q, &k, &squares).unwrap();
                let largest = k.chunks(dim).map(norm).fold(0.0, f64::max);
                (output, size, squared, largest)
            })
            .collect();
        let merged = |which: fn(&(Output, Output, Output, f64)) -> &Output| {
            let parts: Vec<Output> = pieces.iter().map(|piece| which(piece).clone()).collect();
            merge::merge(1, dim, &parts).unwrap()
        };
        let (output, squared) = (merged(|piece| &piece.0), merged(|piece| &piece.2));
        // Σ w² v²: what `squared` is an average over, times Σ w².
        let squares = (squared.lse[0] - 2.0 * output.lse[0]).exp();
        Row {
            spread: squared.out.iter().map(|x| (squares * x).sqrt()).collect(),
            size: merged(|piece| &piece.1).out,
            logit: scale.abs() * norm(&q) * pieces.iter().map(|piece| piece.3).fold(0.0, f64::max),
            out: output.out,
            lse: output.lse[0],
        }
    }

    /// Compares rows, by query and head, with the reference, each dimension within its bound.
    fn check(&self, found: &Found, rows: &[(usize, usize)], bound: impl Fn(&Row, usize) -> f64) {
        let decoded: Vec<f64> = (0..1 << 16).map(|bits| format(self.dtype).decode(bits)).collect();
        for &(query, head) in rows {
            let exact = self.exact(query, head, &decoded);
            let row = query * self.query_heads + head;
            let (lse, r) = (f64::from(found.lse[row]), ONE_CALL * (1.0 + exact.logit));
            let eps = r + DRIFT + 2f64.powi(-21) * exact.lse.abs();
            let what = format!("{:?}, query {query}, head {head}", self.dtype);
            assert!((lse - exact.lse).abs() <= eps, "{what}: lse {lse} against {}", exact.lse);
            let out = &found.out[row * self.head_dim..(row + 1) * self.head_dim];
            for (dim, (&found, &exact_out)) in out.iter().zip(&exact.out).enumerate() {
                let (error, eps) = ((f64::from(found) - exact_out).abs(), bound(&exact, dim));
                assert!(
                    error <= eps,
                    "{what}, dimension {dim}: {found} against {exact_out}, off by {error}, allowed {eps}"
                );
            }
        }
    }

    /// The same, by the bound for random values.
    pub fn check_random(&self, found: &Found, rows: &[(usize, usize)]) {
        self.check(found, rows, |row, dim| {
            let e = unit_roundoff(self.dtype) + 2.0 * ONE_CALL * (1.0 + row.logit);
            6.0 * e * row.spread[dim] + DRIFT * row.out[dim].abs()
        });
    }
}

/// Query rows beside the ends of tiles, and heads of each group.
const SAMPLED: [(usize, usize); 8] =
    [(0, 0), (1, 3), (63, 1), (64, 2), (127, 3), (128, 0), (200, 2), (299, 3)];

fn one_million(gpu: &Gpu) {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let sequence = Sequence::at_the_end(dtype, 1 << 20, 300, [4, 2], 128);
        sequence.check_random(&sequence.run(gpu), &SAMPLED);
    }
}

fn two_million(gpu: &Gpu) {
    for (dtype, heads, head_dim) in [(Dtype::F16, [4, 2], 128), (Dtype::Bf16, [4, 1], 64)] {
        let sequence = Sequence::at_the_end(dtype, 1 << 21, 300, heads, head_dim);
        sequence.check_random(&sequence.run(gpu), &SAMPLED);
    }
}

/// Whatever the weights, their sum is 1: the output is the value.
fn drift(gpu: &Gpu) {
    // Hopper has a kernel of its own for up to 2^19 keys at 128.
    for (dtype, keys, head_dim) in [
        (Dtype::Bf16, 1 << 21, 128),
        (Dtype::F16, 1 << 21, 128),
        (Dtype::F16, 1 << 19, 128),
        (Dtype::F16, 1 << 21, 64),
        (Dtype::F16, 1 << 21, 256),
    ] {
        // As many blocks of queries as make Hopper's kernel not divide the keys.
        let mut sequence = Sequence::at_the_end(dtype, keys, 128, [132, 1], head_dim);
        // From 0.5 to 1, another in each dimension.
        let value = |i: usize| format(dtype).round(0.5 + i as f64 / (2 * head_dim) as f64) as u16;
        sequence.v = (0..head_dim).map(value).collect();
        let found = sequence.run(gpu);
        for (row, out) in found.out.chunks(head_dim).enumerate() {
            for (dim, (&x, &value)) in out.iter().zip(&sequence.v).enumerate() {
                let value = format(dtype).decode(u32::from(value));
                let error = (f64::from(x) / value - 1.0).abs();
                assert!(error <= DRIFT, "{dtype:?}, row {row}, dimension {dim}: {x} for {value}");
            }
        }
    }
}

/// One key has a weight of 1, the others of about 2^-25.3 each and 5 % together, with values unlike the strong one's. As an f16
/// most of the weak weights would be 0, were the largest 1.
fn dominant(gpu: &Gpu) {
    const DIM: usize = 128;
    let (keys, heads) = (1 << 21, 3);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let mut sequence = Sequence::at_the_end(dtype, keys, 2, [heads, heads], DIM);
        sequence.attention = descriptor::Attention::default();
        let bits = |x: f64| format(dtype).round(x) as u16;
        // A query of ones makes the sum of a key's dimensions, by √128: for the strong one 17.7, for the weak ones a random
        // number of standard deviation 0.58.
        sequence.q.fill(bits(1.0));
        let shifted: Vec<u16> = (0..1u32 << 16).map(|x| bits(1.0 + 0.5 * format(dtype).decode(x))).collect();
        sequence.v.par_iter_mut().for_each(|v| *v = shifted[usize::from(*v)]);
        // In each head elsewhere: the first of all, one in the middle, the last.
        for (head, key) in [0, (1 << 20) + 37, keys - 1].into_iter().enumerate() {
            let row = (key * heads + head) * DIM;
            sequence.k[row..row + DIM].fill(bits(1.5625));
            sequence.v[row..row + DIM].copy_from_slice(&random(dtype, 9, DIM, 1.0));
        }
        let found = sequence.run(gpu);
        sequence.check(&found, &[(0, 0), (1, 1), (0, 2)], |row, dim| DRIFT * row.size[dim]);
    }
}

/// Rows of a prefill of 131,072 tokens: the first and last of blocks, and in between.
const PREFILL: [(usize, usize); 10] = [
    (0, 0),
    (1, 1),
    (63, 0),
    (64, 1),
    (127, 0),
    (128, 1),
    (65_535, 0),
    (100_001, 1),
    (131_008, 1),
    (131_071, 0),
];

fn prefill(gpu: &Gpu) {
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 96)] {
        let sequence = Sequence::at_the_end(dtype, 1 << 17, 1 << 17, [2, 1], head_dim);
        sequence.check_random(&sequence.run(gpu), &PREFILL);
    }
}

fn window(gpu: &Gpu) {
    let mut sequence = Sequence::at_the_end(Dtype::F16, 1 << 17, 1 << 17, [2, 1], 128);
    sequence.attention.window = Some(4097);
    sequence.check_random(&sequence.run(gpu), &PREFILL);
}
