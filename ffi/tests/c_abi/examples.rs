//! The examples in C and C++, compiled strictly, linked in both ways, and run.

use crate::expected::{
    BF16_ATTENTION, BF16_DECODING, attended, check, check_config, check_gpu, decoded, rotated,
};
use crate::library::{Language, Link, Program, stdout};

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
