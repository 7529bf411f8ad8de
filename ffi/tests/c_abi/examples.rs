//! The examples: in C and C++, compiled strictly, linked in both ways, and run; in Python, run where there is one.

use std::process::Command;

use crate::api::api;
use crate::expected::{BF16_ATTENTION, BF16_DECODING, attended, check, check_config, decoded, rotated};
use crate::library::{Language, Link, Program, built, package, stdout};
use crate::reason::check_gpu;

/// Compiles and runs an example of rotation.
#[track_caller]
fn rotates(language: Language, source: &str, link: Link) {
    let program = Program::new(language, source, link);
    check_gpu(&check(&stdout(&mut program.command(None)), rotated()), 1e-6);
}

#[test]
fn the_c_example_rotates_as_the_reference_does() {
    rotates(Language::C99, "examples/rotary/rotary.c", Link::Shared);
}

#[test]
fn the_c_example_is_also_c11_and_links_the_archive() {
    rotates(Language::C11, "examples/rotary/rotary.c", Link::Static);
}

#[test]
fn the_cpp_example_rotates_as_the_reference_does() {
    for link in [Link::Shared, Link::Static] {
        rotates(Language::Cpp17, "examples/rotary/rotary.cpp", link);
    }
}

#[test]
fn the_example_of_attention_attends_as_the_reference_does() {
    for (language, link) in [(Language::C99, Link::Shared), (Language::C11, Link::Static)] {
        let program = Program::new(language, "examples/attention/attention.c", link);
        check_gpu(&check(&stdout(&mut program.command(None)), attended()), BF16_ATTENTION);
    }
}

#[test]
fn the_example_of_configurations_writes_the_extended_one() {
    for (language, link) in [(Language::C99, Link::Shared), (Language::C11, Link::Static)] {
        let program = Program::new(language, "examples/config/config.c", link);
        check_config(&stdout(&mut program.command(None)));
    }
}

#[test]
fn the_example_of_decoding_decodes_as_the_reference_does() {
    for link in [Link::Shared, Link::Static] {
        let program = Program::new(Language::Cpp17, "examples/decode/decode.cpp", link);
        check_gpu(&check(&stdout(&mut program.command(None)), decoded()), BF16_DECODING);
    }
}

/// The last line that an example for PyTorch prints; none where there is no Python, or nothing to launch.
#[track_caller]
fn last_of_python(name: &str, arguments: &[&str]) -> Option<String> {
    // SAFETY: no arguments.
    if Command::new("python3").arg("--version").output().is_err() || unsafe { (api().has_device_code)() } == 0
    {
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(package().join("examples/pytorch").join(name)).args(arguments);
    command.arg("--library").arg(&built().shared).env("PYTHONDONTWRITEBYTECODE", "1");
    stdout(&mut command).lines().last().map(str::to_owned)
}

#[test]
fn the_example_for_pytorch_compares_itself_or_says_that_there_is_no_gpu() {
    if let Some(last) = last_of_python("attention.py", &["--check"]) {
        assert!(last == "as PyTorch's" || last.starts_with("no GPU"), "{last}");
    }
}

#[test]
fn the_rotation_for_pytorch_is_that_of_phi_3_or_there_is_none_to_compare_with() {
    if let Some(last) = last_of_python("rotary.py", &[]) {
        assert!(last == "as Phi-3's" || last.starts_with("nothing to compare with"), "{last}");
    }
}
