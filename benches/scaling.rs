//! What is done once a model: reading its configuration, and making the steps of its pairs.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use longrope::scaling::{RopeConfig, phase_step};
use serde_json::json;

/// A `config.json` of 64 pairs, extended 32-fold, as a LongRoPE model has it.
fn config_json() -> String {
    let long: Vec<f64> = (0..64).map(|i| 32f64.powf(f64::from(i) / 63.0)).collect();
    let config = json!({
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "rope_scaling": { "rope_type": "longrope", "short_factor": vec![1.0; 64], "long_factor": long },
    });
    config.to_string()
}

fn scaling(c: &mut Criterion) {
    let text = config_json();
    let config = RopeConfig::from_hf_json(&text).expect("the configuration is valid");
    let mut group = c.benchmark_group("scaling");
    group.bench_function("config.json of 64 pairs, parsed", |b| {
        b.iter(|| RopeConfig::from_hf_json(black_box(&text)));
    });
    group.bench_function("factor_sets of 64 pairs", |b| {
        b.iter(|| black_box(&config).factor_sets(black_box(131_072)));
    });
    group.bench_function("parity_sets of 64 pairs", |b| {
        b.iter(|| black_box(&config).parity_sets(black_box(131_072)));
    });
    group.bench_function("phase_step", |b| b.iter(|| phase_step(black_box(0.749_894_2))));
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = scaling
}
criterion_main!(benches);
