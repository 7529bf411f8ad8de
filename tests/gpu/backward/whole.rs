//! A million tokens under a causal mask, as in training: the forward kernel's log-sum-exp and output, delta of it, all gradients.
//!
//! Rows of everything are held against f64: log-sum-exp and delta by themselves, rows of the gradients given what the kernels had found
//! of these. Everything is random, so that an error of a term, relatively, is one of a sum of terms of either sign: the bound is that of
//! `long`. For the log-sum-exp the weights' sum is to be right to 1e-4.

use std::time::Instant;

use cudarc::driver::CudaSlice;
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Attention, AttentionBackward, AttentionBackwardTensors, AttentionDelta, AttentionTensors, Workspace,
};
use rayon::prelude::*;

use crate::attention::long::random;
use crate::attention::oracle::{self, unit_roundoff};
use crate::backward::long::Sums;
use crate::buffer::{Gpu, format};

pub const TESTS: &[crate::Test] =
    &[("sampled_rows_of_a_million_tokens_and_of_their_gradients", a_million_tokens)];

const TOKENS: usize = 1 << 20;
const QUERY_HEADS: usize = 2;
const DIM: usize = 128;
const DTYPE: Dtype = Dtype::Bf16;
/// Queries and keys that are looked at. The first query's gradient is nothing but rounding: its only weight is 1.
const QUERIES: [usize; 5] = [4_099, 70_001, 524_287, 1_000_000, TOKENS - 1];
const KEYS: [usize; 5] = [0, 70_001, 524_287, 1_000_000, TOKENS - 2];

/// Queries and gradients `[TOKENS, QUERY_HEADS, DIM]`, keys and values of one head.
struct Inputs {
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
    d_out: Vec<u16>,
    /// What a 16-bit number is.
    decoded: Vec<f64>,
}

/// What the kernels gave: `out` in 16 bits, all else in f32.
struct Found {
    out: Vec<u16>,
    lse: Vec<f32>,
    delta: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Inputs {
    fn new() -> Self {
        let random = |seed, heads| random(DTYPE, seed, TOKENS * heads * DIM, 1.0);
        Self {
            q: random(1, QUERY_HEADS),
            k: random(2, 1),
            v: random(3, 1),
            d_out: random(4, QUERY_HEADS),
            decoded: (0..1u32 << 16).map(|bits| format(DTYPE).decode(bits)).collect(),
        }
    }

    fn row<'a>(&'a self, x: &'a [u16], row: usize) -> impl Iterator<Item = f64> + Clone + 'a {
        x[row * DIM..][..DIM].iter().map(|&bits| self.decoded[usize::from(bits)])
    }

    fn dot(&self, a: &[u16], row_a: usize, b: &[u16], row_b: usize) -> f64 {
        self.row(a, row_a).zip(self.row(b, row_b)).map(|(a, b)| a * b).sum()
    }

    /// The logit of a row of queries, `query * QUERY_HEADS + head`, and a key.
    fn logit(&self, row: usize, key: usize) -> f64 {
        f64::from(1.0 / (DIM as f32).sqrt()) * self.dot(&self.q, row, &self.k, key)
    }

    /// The weight of a key by the log-sum-exp that was found, the gradient of its logit, and by how much either may be off, relatively.
    fn weight(&self, found: &Found, row: usize, key: usize) -> (f64, f64, f64) {
        let lse = f64::from(found.lse[row]);
        // As in `long`: logits are below 128 / √128.
        let r = 2f64.powi(-17) * 12.0 + 2f64.powi(-21) * lse.abs();
        let weight = (self.logit(row, key) - lse).exp();
        let gradient = weight * (self.dot(&self.d_out, row, &self.v, key) - f64::from(found.delta[row]));
        (weight, gradient, unit_roundoff(DTYPE) + 2.0 * r)
    }

    fn check_row(&self, found: &Found, row: usize) {
        let keys = row / QUERY_HEADS + 1;
        let sum: f64 = (0..keys).into_par_iter().map(|key| self.logit(row, key).exp()).sum();
        let error = (f64::from(found.lse[row]) - sum.ln()).abs();
        assert!(error <= 1e-4, "log-sum-exp of row {row}: {} against {}", found.lse[row], sum.ln());

        let terms = self.row(&found.out, row).zip(self.row(&self.d_out, row)).map(|(a, b)| a * b);
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
        let error = (f64::from(found.delta[row]) - sum).abs();
        assert!(
            error <= (DIM + 1) as f64 * 2f64.powi(-24) * size,
            "delta of row {row}: {} against {sum}",
            found.delta[row]
        );

        let scale = f64::from(1.0 / (DIM as f32).sqrt());
        let add = |mut sums: Sums, key: usize| {
            let (_, gradient, off) = self.weight(found, row, key);
            sums.add(scale * gradient, self.row(&self.k, key), off);
            sums
        };
        let none = || Sums::new(DIM);
        let exact = (0..keys).into_par_iter().fold(none, add).reduce(none, Sums::merge);
        exact.check_random("dq", &found.dq, row);
    }

    fn check_key(&self, found: &Found, key: usize) {
        let scale = f64::from(1.0 / (DIM as f32).sqrt());
        let add = |(mut dk, mut dv): (Sums, Sums), row: usize| {
            let (weight, gradient, off) = self.weight(found, row, key);
            dk.add(scale * gradient, self.row(&self.q, row), off);
            dv.add(weight, self.row(&self.d_out, row), off);
            (dk, dv)
        };
        let none = || (Sums::new(DIM), Sums::new(DIM));
        let merge = |a: (Sums, Sums), b: (Sums, Sums)| (a.0.merge(b.0), a.1.merge(b.1));
        let rows = key * QUERY_HEADS..TOKENS * QUERY_HEADS;
        let (dk, dv) = rows.into_par_iter().fold(none, add).reduce(none, merge);
        dk.check_random("dk", &found.dk, key);
        dv.check_random("dv", &found.dv, key);
    }

    /// Forward, delta, backward. Tells how long the last took, and with how much workspace.
    fn run(&self, gpu: &Gpu, fast: bool) -> Found {
        let tensor = |address, dtype, heads, dims| DeviceTensor {
            address,
            dtype,
            layout: Layout::bshd(1, TOKENS, heads, dims),
        };
        let input = |memory: &CudaSlice<u16>, heads| tensor(gpu.address(memory), DTYPE, heads, DIM);
        let result =
            |memory: &CudaSlice<f32>, heads, dims| tensor(gpu.address(memory), Dtype::F32, heads, dims);
        let [q, k, v, d_out] = [&self.q, &self.k, &self.v, &self.d_out].map(|x| gpu.upload(x));
        let out = gpu.upload(&vec![0u16; self.q.len()]);
        let [lse, delta] = [(); 2].map(|()| gpu.upload(&vec![f32::NAN; TOKENS * QUERY_HEADS]));
        let [dq, dk, dv] = [QUERY_HEADS, 1, 1].map(|heads| gpu.upload(&vec![f32::NAN; TOKENS * heads * DIM]));

        let causal = descriptor::Attention::causal();
        let tensors = AttentionTensors {
            q: input(&q, QUERY_HEADS),
            k: input(&k, 1),
            v: input(&v, 1),
            out: input(&out, QUERY_HEADS),
            lse: Some(result(&lse, QUERY_HEADS, 1)),
        };
        // SAFETY: the memory is as large as the layouts say, and lives until the results were read. So below.
        unsafe { oracle::launch(gpu, &Attention::new(causal), &tensors) };
        let rows = result(&delta, QUERY_HEADS, 1);
        let of_output = AttentionDelta { out: tensors.out, d_out: input(&d_out, QUERY_HEADS), delta: rows };
        // SAFETY: as above.
        unsafe { of_output.run(&gpu.kernels, gpu.raw_stream()) }.unwrap();

        let tensors = AttentionBackwardTensors {
            q: tensors.q,
            k: tensors.k,
            v: tensors.v,
            out: None,
            lse: result(&lse, QUERY_HEADS, 1),
            delta: Some(rows),
            d_out: of_output.d_out,
            dq: result(&dq, QUERY_HEADS, DIM),
            dk: result(&dk, 1, DIM),
            dv: result(&dv, 1, DIM),
        };
        let backward = AttentionBackward { fast, ..AttentionBackward::new(causal) };
        let scratch = gpu.upload(&vec![0xffu8; backward.workspace_size(&tensors).unwrap().max(1)]);
        let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
        // Waits for what came before.
        gpu.download(&delta);
        let started = Instant::now();
        // SAFETY: as above.
        unsafe { backward.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.unwrap();
        let dv = gpu.download(&dv);
        let seconds = started.elapsed().as_secs_f64();
        let operations = 5.0 * (TOKENS as f64).powi(2) * (QUERY_HEADS * DIM) as f64;
        println!(
            "{TOKENS} tokens, {QUERY_HEADS}/1 heads of {DIM}, {}: {seconds:.2} s, {:.0} TFLOP/s, {} bytes of workspace",
            if fast { "fast" } else { "in one order" },
            operations / seconds / 1e12,
            workspace.bytes
        );
        let [lse, delta, dq, dk] = [&lse, &delta, &dq, &dk].map(|x| gpu.download(x));
        let found = Found { out: gpu.download(&out), lse, delta, dq, dk, dv };
        let all = [&found.lse, &found.delta, &found.dq, &found.dk, &found.dv];
        assert!(all.iter().all(|x| x.par_iter().all(|x| x.is_finite())), "every row is written");
        found
    }
}

fn a_million_tokens(gpu: &Gpu) {
    let inputs = Inputs::new();
    for fast in [false, true] {
        let found = inputs.run(gpu, fast);
        for (i, query) in QUERIES.into_iter().enumerate() {
            inputs.check_row(&found, query * QUERY_HEADS + i % QUERY_HEADS);
        }
        KEYS.into_iter().for_each(|key| inputs.check_key(&found, key));
    }
}
