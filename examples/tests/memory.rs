//! The estimate of the memory that a run needs, against what one takes. Alone in its program: the peak is the process's.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;

use longrope::scaling::SetChoice;
use longrope_drivers::memory;
use longrope_drivers::model::{self, Llama, Place};

const TOKENS: usize = 8192;

/// The most memory that this process has held so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_long_sequence_takes_about_the_memory_that_was_estimated() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let before = peak();
    let (model, _) = model::load(&data.join("models/tiny")).unwrap();
    let text = fs::read(data.join("texts/moby-dick-search.txt")).unwrap();
    let tokens: Vec<u32> = text[..TOKENS].iter().map(|&byte| byte.into()).collect();
    let sets = model.config().rope.factor_sets(256).unwrap();
    let losses = model.losses(&tokens, &sets, SetChoice::Long).unwrap();
    assert!(losses.iter().all(|loss| loss.is_finite()));

    let (taken, estimate) =
        (peak() - before, memory::required(model.config(), TOKENS, Llama::CHUNK, &Place::cpu()));
    let mib = |bytes: u64| bytes / (1 << 20);
    // Neither the file of the weights nor what each thread works in is counted.
    let allowed = estimate / 2..=estimate + estimate / 2;
    assert!(allowed.contains(&taken), "{} MiB taken, {} MiB estimated", mib(taken), mib(estimate));
}
