//! Tests on a GPU. Without one they show as ignored; with `LONGROPE_REQUIRE_GPU=1` that is a failure.
//!
//! A test is named after its family of kernels, so that `rotary::` as a filter runs one family. The files of a family are
//! a folder or begin with its name: scripts/gpu-suite goes by that. Those beside this one are of all families.

mod attention;
mod backward;
mod buffer;
mod cache;
mod decode;
#[path = "../cpu/random.rs"]
mod random;
mod rotary;

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use buffer::Gpu;

/// A test: its name within its family, and what it does on a GPU.
type Test = (&'static str, fn(&Gpu));

fn main() {
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let (gpu, missing) = match Gpu::open() {
        Ok(gpu) => (Some(Arc::new(gpu)), String::new()),
        Err(reason) => (None, reason),
    };
    let families = [
        ("rotary", rotary::tests()),
        ("attention", attention::tests()),
        ("backward", backward::tests()),
        ("decode", decode::tests()),
        ("cache", cache::tests()),
    ];
    let tests =
        families.into_iter().flat_map(|(family, tests)| tests.into_iter().map(move |test| (family, test)));
    let trials = tests
        .map(|(family, (name, test)): (&str, Test)| {
            let (gpu, missing) = (gpu.clone(), missing.clone());
            let ignored = gpu.is_none() && !required;
            Trial::test(format!("{family}::{name}"), move || match gpu {
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

/// 256 cases, or as many as `PROPTEST_CASES` says.
fn runner() -> TestRunner {
    TestRunner::new(Config { failure_persistence: None, ..Config::default() })
}

/// As many cases of a property, spread over the processor's cores, for where the reference takes longer than the GPU. Few
/// cases, as under a sanitizer, stay on one core.
fn check_cases<S: Strategy>(
    gpu: &Gpu,
    strategy: impl Fn() -> S + Sync,
    test: impl Fn(S::Value) -> Result<(), TestCaseError> + Sync,
) {
    const LEAST: usize = 16;
    let config = Config { failure_persistence: None, ..Config::default() };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(config.cases as usize / LEAST).max(1);
    let run = |thread: usize| {
        gpu.cuda.bind_to_thread().map_err(|error| error.to_string())?;
        let cases = ((config.cases as usize + thread) / threads) as u32;
        let mut runner = TestRunner::new(Config { cases, ..config.clone() });
        runner.run(&strategy(), &test).map_err(|error| error.to_string())
    };
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("proptest catches what panics")).collect()
    });
    results.into_iter().for_each(|result| result.unwrap_or_else(|error| panic!("{error}")));
}
