//! What the oracle costs: how many angles and rows a test can afford.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longrope::reference::{Angle, Pairing, Problem, rotary};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Values from -1 to 1.
fn values(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn angle(c: &mut Criterion) {
    let mut group = c.benchmark_group("reference/angle");
    // The long division has a step for each bit of the quotient, so a far position costs more.
    for position in [100i64, 1 << 21, 1 << 40] {
        group.bench_with_input(BenchmarkId::new("position", position), &position, |b, &position| {
            b.iter(|| Angle::of(black_box(position), black_box(0.749_894_2)));
        });
    }
    group.finish();
}

fn rotation(c: &mut Criterion) {
    let row = values(1, 128);
    let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
    c.bench_function("reference/rotate a row of 128", |b| {
        b.iter(|| rotary::rotate(black_box(&row), 1 << 21, &frequencies, 1.0, Pairing::HalfSplit));
    });
}

fn attention(c: &mut Criterion) {
    let problem = Problem {
        query_heads: 4,
        key_heads: 2,
        query_length: 64,
        key_length: 64,
        head_dim: 64,
        scale: 0.125,
        causal: true,
        window: None,
        query_offset: 0,
        key_offset: 0,
    };
    let (q, k, v) = (values(2, 64 * 4 * 64), values(3, 64 * 2 * 64), values(4, 64 * 2 * 64));
    let d_out = values(5, 64 * 4 * 64);
    let mut group = c.benchmark_group("reference/attention, 64 tokens, 4 and 2 heads of 64");
    // Rows of queries: what a test of sampled rows counts.
    group.throughput(Throughput::Elements(64 * 4)).sample_size(20);
    group.bench_function("forward", |b| b.iter(|| problem.forward(black_box(&q), &k, &v)));
    group.bench_function("backward", |b| b.iter(|| problem.backward(black_box(&q), &k, &v, &d_out, None)));
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = angle, rotation, attention
}
criterion_main!(benches);
