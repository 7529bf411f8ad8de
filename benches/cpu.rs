//! The CPU form on all threads of the current rayon pool (`RAYON_NUM_THREADS` sets how many).
//!
//! Rotary is counted in bytes read and written, attention in floating-point operations: criterion's "Gelem/s" is then
//! GFLOP/s. An operation is counted once for every query and key that the mask lets meet: 2 for each dimension of the
//! logit and 2 for each of the output. The exponential is not counted.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor::{Attention, Choices, Direction, Layout, Pairing, Positions, Rotary};
use longrope::scaling::{FactorSet, FactorSets, Geometry, SetChoice};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Values from -1 to 1.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Few samples: a call takes long enough to be measured alone.
fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group
}

fn rotary(c: &mut Criterion) {
    const TOKENS: usize = 4096;
    const HEADS: usize = 8;
    let mut group = group(c, "cpu/rotary, 4096 tokens, 8 heads");
    for head_dim in [64, 128] {
        let geometry = Geometry::new(head_dim, head_dim, 1e4, 4096).expect("the geometry is valid");
        let set = FactorSet::exact(&geometry.frequencies(), 1.0).expect("the frequencies are valid");
        let sets = FactorSets::uniform(set);
        let layout = Layout::bshd(1, TOKENS, HEADS, head_dim);
        let x = values(1, TOKENS * HEADS * head_dim);
        let mut out = vec![0.0; x.len()];
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let rotary = Rotary {
                sets: &sets,
                pairing,
                direction: Direction::Forward,
                positions: Positions::Offset(1 << 20),
                choices: Choices::All(SetChoice::Short),
            };
            group.throughput(Throughput::Bytes(2 * size_of_val(x.as_slice()) as u64));
            group.bench_function(format!("head_dim {head_dim}, {pairing:?}"), |b| {
                b.iter(|| cpu::rotary(&rotary, Tensor::new(&x, layout), TensorMut::new(&mut out, layout)));
            });
        }
    }
    group.finish();
}

/// Causal self-attention of one sequence.
struct Case {
    tokens: usize,
    query_heads: usize,
    key_heads: usize,
    head_dim: usize,
}

impl Case {
    fn name(&self) -> String {
        let Self { tokens, query_heads, key_heads, head_dim } = self;
        format!("{tokens} tokens, {query_heads} query and {key_heads} key heads of {head_dim}")
    }

    fn operations(&self) -> u64 {
        let meetings = self.query_heads * self.tokens * (self.tokens + 1) / 2;
        4 * (meetings * self.head_dim) as u64
    }
}

fn attention(c: &mut Criterion) {
    let mut group = group(c, "cpu/attention, causal");
    for (tokens, key_heads, head_dim) in
        [(1024, 8, 64), (1024, 8, 128), (4096, 8, 64), (4096, 8, 128), (4096, 2, 128)]
    {
        let case = Case { tokens, query_heads: 8, key_heads, head_dim };
        let query_layout = Layout::bshd(1, tokens, case.query_heads, head_dim);
        let key_layout = Layout::bshd(1, tokens, key_heads, head_dim);
        let q = values(1, tokens * case.query_heads * head_dim);
        let k = values(2, tokens * key_heads * head_dim);
        let v = values(3, tokens * key_heads * head_dim);
        let mut out = vec![0.0; q.len()];
        group.throughput(Throughput::Elements(case.operations()));
        group.bench_function(case.name(), |b| {
            b.iter(|| {
                cpu::attention(
                    &Attention::causal(),
                    Tensor::new(&q, query_layout),
                    Tensor::new(&k, key_layout),
                    Tensor::new(&v, key_layout),
                    TensorMut::new(&mut out, query_layout),
                    None,
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rotary, attention);
criterion_main!(benches);
