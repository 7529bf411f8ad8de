//! The estimate of the memory that training needs, against what a sequence takes. Alone in its program: the peak is the process's.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;

use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use longrope_drivers::memory;
use longrope_drivers::model::{self, Place};
use longrope_drivers::training::{Gradients, Method, Pack, TrainableLlama, loss_and_gradients};

const TOKENS: usize = 3072;

/// The most memory that this process has held so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn training_on_a_long_sequence_takes_about_the_memory_that_was_estimated() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let opened = model::open(&data.join("models/tiny")).unwrap();
    let config = opened.config.clone();
    let before = peak();
    let model = TrainableLlama::new(config, &*opened.weights, &Place::cpu(), Method::Full, 0).unwrap();
    let text = fs::read(data.join("texts/moby-dick-search.txt")).unwrap();
    let tokens: Vec<u32> = text[..TOKENS].iter().map(|&byte| byte.into()).collect();
    let rotary = Rotary::new(model.config().rope.factor_sets(256).unwrap(), SetChoice::Long);
    let mut gradients = Gradients::new(model.parameters().len());
    let loss = loss_and_gradients(&model, &Pack::one(tokens), &rotary, &mut gradients).unwrap();
    assert!(loss.tokens == TOKENS - 1 && loss.mean().is_finite());

    let taken = peak() - before;
    let estimate = memory::of_training(model.config(), TOKENS, model.trained(), &Place::cpu())
        + memory::of_kept_attention(model.config(), TOKENS, &Place::cpu());
    let mib = |bytes: u64| bytes / (1 << 20);
    // The moments are not there yet, nor is what each thread works in counted.
    let allowed = estimate / 2..=estimate + estimate / 4;
    assert!(allowed.contains(&taken), "{} MiB taken, {} MiB estimated", mib(taken), mib(estimate));
}
