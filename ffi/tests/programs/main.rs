//! What engines do, on a GPU: the examples in C, C++ and for PyTorch, and contexts of CUDA's that are not the primary one.
//!
//! Without a GPU all show as ignored; with `LONGROPE_REQUIRE_GPU=1` that is a failure. `LONGROPE_BUNDLE` names the folder that
//! `scripts/gpu-bundle` made, with the library and the compiled programs, for a host without Rust; the examples in Python are
//! then those below the working folder. Otherwise all is built here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use longrope::device::Context;

#[path = "../c_abi/expected.rs"]
mod expected;
#[path = "../c_abi/library.rs"]
#[allow(dead_code, reason = "c_abi needs more of it")]
mod library;

use expected::{
    BF16_ATTENTION, BF16_DECODING, attended, check, check_config, check_difference, decoded, rotated,
};
use library::{Language, Link, Program, built, package, stdout, succeed};

/// What a test runs, and what it does with what that printed.
type Test = (&'static str, &'static str, fn(&str));

const TESTS: [Test; 8] = [
    ("the_c_example_of_rotation", "examples/rotary/rotary.c", rotation),
    ("the_cpp_example_of_rotation", "examples/rotary/rotary.cpp", rotation),
    ("the_example_of_attention", "examples/attention/attention.c", |text| {
        check_difference(&check(text, attended()), BF16_ATTENTION);
    }),
    ("the_example_of_configurations", "examples/config/config.c", check_config),
    ("the_example_of_decoding", "examples/decode/decode.cpp", |text| {
        check_difference(&check(text, decoded()), BF16_DECODING);
    }),
    ("contexts_that_are_not_the_primary_one", "tests/programs/second_context.c", |text| {
        assert_eq!(text, "each in its own\n");
    }),
    ("attention_for_pytorch_beside_its_own", "examples/pytorch/attention.py", |text| {
        assert_eq!(text.lines().last(), Some("as PyTorch's"), "{text}");
    }),
    ("rotation_for_pytorch_beside_that_of_phi_3", "examples/pytorch/rotary.py", |text| {
        assert!(text.starts_with("on the GPU\n"), "{text}");
        assert_eq!(text.lines().last(), Some("as Phi-3's"), "{text}");
    }),
];

fn rotation(text: &str) {
    check_difference(&check(text, rotated()), 1e-6);
}

/// What a program of this package prints.
fn run(source: &str, bundle: Option<&Path>) -> String {
    if source.ends_with(".py") {
        let (folder, library) = match bundle {
            Some(bundle) => (Path::new("ffi"), bundle.join("liblongrope.so")),
            None => (package(), built().shared.clone()),
        };
        let mut command = Command::new("python3");
        command.arg(folder.join(source)).arg("--library").arg(library).env("PYTHONDONTWRITEBYTECODE", "1");
        if source.ends_with("attention.py") {
            command.arg("--check");
        }
        // PyTorch may warn of what is not ours.
        return String::from_utf8(succeed(&mut command).stdout).unwrap();
    }
    let Some(bundle) = bundle else {
        let language = if source.ends_with(".cpp") { Language::Cpp17 } else { Language::C99 };
        return stdout(&mut Program::new(language, source, Link::Shared).command(None));
    };
    // The name that the loader looks for.
    let folder = tempfile::tempdir().unwrap();
    let library = bundle.join("liblongrope.so").canonicalize().unwrap();
    std::os::unix::fs::symlink(library, folder.path().join("liblongrope.so.0.1")).unwrap();
    let name = Path::new(source).file_name().unwrap().to_str().unwrap().replace('.', "-");
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let others = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    let paths = std::env::join_paths([folder.path().to_owned()].into_iter().chain(others)).unwrap();
    stdout(Command::new(bundle.join("examples").join(name)).env("LD_LIBRARY_PATH", paths))
}

fn main() {
    let bundle = std::env::var_os("LONGROPE_BUNDLE").map(PathBuf::from).map(Arc::new);
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let missing = Context::new(0).err().map(|error| error.to_string());
    let trials = TESTS.map(|(name, source, judge)| {
        let (bundle, missing) = (bundle.clone(), missing.clone());
        let ignored = missing.is_some() && !required;
        let test = move || {
            missing.map_or(Ok(()), |reason| Err(Failed::from(reason)))?;
            judge(&run(source, bundle.as_ref().map(|bundle| bundle.as_path())));
            Ok(())
        };
        Trial::test(format!("linking::{name}"), test).with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.into()).exit();
}
