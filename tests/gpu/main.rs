//! Tests on a GPU. Without one they show as ignored; with `LONGROPE_REQUIRE_GPU=1` that is a failure.

mod buffer;
mod contract;
mod few;
mod large;
mod rerotate;
mod rotary;
mod slices;

use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use buffer::Gpu;

/// A test: its name and what it does on a GPU.
type Test = (&'static str, fn(&Gpu));

fn main() {
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let (gpu, missing) = match Gpu::open() {
        Ok(gpu) => (Some(Arc::new(gpu)), String::new()),
        Err(reason) => (None, reason),
    };
    let tests =
        [rotary::TESTS, few::TESTS, rerotate::TESTS, contract::TESTS, slices::TESTS, large::TESTS].concat();
    let trials = tests
        .into_iter()
        .map(|(name, test): Test| {
            let (gpu, missing) = (gpu.clone(), missing.clone());
            let ignored = gpu.is_none() && !required;
            Trial::test(name, move || match gpu {
                Some(gpu) => {
                    test(&gpu);
                    Ok(())
                }
                None => Err(Failed::from(missing)),
            })
            .with_ignored_flag(ignored)
        })
        .collect();
    let mut arguments = Arguments::from_args();
    // One GPU, and tests that fill it: one at a time.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}
