//! The examples in C and C++, compiled strictly, linked in both ways, and run.

use longrope::reference::Pairing;
use longrope::reference::rotary::rotate;
use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling};

use crate::library::{Language, Link, Program, stdout};

/// What the examples print of the rotation, by row: from the f64 reference, with the bound of each element.
fn expected() -> Vec<(String, Vec<(f64, f64)>)> {
    let config = RopeConfig::new(
        Geometry::new(8, 8, 1e4, 4096).unwrap(),
        131_072,
        Scaling::LongRope(LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 2.0, 8.0, 32.0],
            factor: 32.0,
            attention_factor: None,
            first_tokens: 0,
        }),
    )
    .unwrap();
    let (frequencies, gain) = (config.frequencies(100_003), f64::from(config.attention_factor() as f32));
    let mut rows = Vec::new();
    for (name, heads, modulus, middle, scale) in [("q", 2, 7, 3.0, 4.0), ("k", 1, 5, 2.0, 2.0)] {
        for row in 0..3 * heads {
            let x: Vec<f64> = (0..8).map(|i| (f64::from((row * 8 + i) % modulus) - middle) / scale).collect();
            let position = i64::from(100_000 + row / heads);
            let y = rotate(&x, position, &frequencies, gain, Pairing::HalfSplit).unwrap();
            let bound = |i: usize| 2.4e-7 * gain * x[i % 4].hypot(x[i % 4 + 4]) + 1e-9;
            let row_name = format!("{name}[{}][{}]:", row / heads, row % heads);
            rows.push((row_name, y.into_iter().enumerate().map(|(i, y)| (y, bound(i))).collect()));
        }
    }
    rows
}

/// Checks a program's output, and returns what it says of the GPU.
fn check(text: &str) -> String {
    let mut lines = text.lines();
    for (name, values) in expected() {
        let line = lines.next().unwrap();
        let printed = line.strip_prefix(&name).unwrap_or_else(|| panic!("{line:?} is not {name}"));
        let printed: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(printed.len(), values.len(), "{line}");
        for (found, (exact, bound)) in printed.iter().zip(values) {
            assert!((found - exact).abs() <= bound, "{line}: {found} is not {exact}");
        }
    }
    let gpu = lines.next().unwrap().strip_prefix("gpu: ").unwrap().to_owned();
    assert_eq!(lines.next(), None);
    gpu
}

/// On a GPU the rotation is that of the CPU; without one there is a reason.
fn check_gpu(gpu: &str) {
    if let Some(difference) = gpu.strip_prefix("largest difference from the CPU ") {
        assert!(difference.parse::<f64>().unwrap() < 1e-6, "{gpu}");
    } else {
        let reasons =
            ["no NVIDIA driver", "this build has no device code", "the NVIDIA driver supports", "device 0"];
        assert!(reasons.iter().any(|reason| gpu.starts_with(reason)), "{gpu}");
    }
}

#[test]
fn the_c_example_rotates_as_the_reference_does() {
    let program = Program::new(Language::C99, "examples/rotary.c", Link::Shared);
    check_gpu(&check(&stdout(&mut program.command(None))));
}

#[test]
fn the_c_example_is_also_c11_and_links_the_archive() {
    let program = Program::new(Language::C11, "examples/rotary.c", Link::Static);
    check_gpu(&check(&stdout(&mut program.command(None))));
}

#[test]
fn the_cpp_example_rotates_as_the_reference_does() {
    for link in [Link::Shared, Link::Static] {
        let program = Program::new(Language::Cpp17, "examples/rotary.cpp", link);
        check_gpu(&check(&stdout(&mut program.command(None))));
    }
}
