//! The examples in C and C++, compiled strictly, linked in both ways, and run.

use longrope::reference::rotary::rotate;
use longrope::reference::{Pairing, Problem};
use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling};

use crate::library::{Language, Link, Program, stdout};

/// A line of what an example prints: its name, and its numbers, each with its bound.
type Line = (String, Vec<(f64, f64)>);

/// The configuration that the examples have as JSON: its frequencies at a length of 100,003, and its gain.
fn frequencies() -> (Vec<f64>, f64) {
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
    (config.frequencies(100_003), f64::from(config.attention_factor() as f32))
}

/// What the examples print of the rotation, from the f64 reference.
fn rotated() -> Vec<Line> {
    let (frequencies, gain) = frequencies();
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

/// What the example of attention prints, from the f64 reference.
fn attended() -> Vec<Line> {
    let (frequencies, gain) = frequencies();
    let x = |tokens: i64, heads: i64, modulus, middle, scale| -> Vec<f64> {
        (0..tokens * heads * 8).map(|i| ((i % modulus) as f64 - middle) / scale).collect()
    };
    let rotated = |x: Vec<f64>, tokens: i64, heads: i64| -> Vec<f64> {
        let rows = x.chunks(8).zip(0i64..);
        rows.flat_map(|(row, i)| {
            let position = 100_003 - tokens + i / heads;
            rotate(row, position, &frequencies, gain, Pairing::HalfSplit).unwrap()
        })
        .collect()
    };
    let (q, k) = (rotated(x(3, 2, 7, 3.0, 2.0), 3, 2), rotated(x(8, 1, 5, 2.0, 2.0), 8, 1));
    let problem = Problem {
        query_heads: 2,
        key_heads: 1,
        query_length: 3,
        key_length: 8,
        head_dim: 8,
        scale: 1.0 / 8f64.sqrt(),
        causal: true,
        window: None,
        query_offset: 100_000,
        key_offset: 99_995,
    };
    let exact = problem.forward(&q, &k, &x(8, 1, 9, 4.0, 4.0)).unwrap();
    let rows = exact.out.chunks(8).zip(exact.lse).enumerate();
    // Logits are below 3.5 and values at most 1: f32 is off by less than 1e-5.
    rows.map(|(row, (out, lse))| {
        let name = format!("out[{}][{}]:", row / 2, row % 2);
        (name, out.iter().chain([&lse]).map(|exact| (*exact, 1e-5)).collect())
    })
    .collect()
}

/// Checks a program's output, and returns what it says of the GPU.
fn check(text: &str, expected: Vec<Line>) -> String {
    let mut lines = text.lines();
    for (name, values) in expected {
        let line = lines.next().unwrap();
        let printed = line.strip_prefix(&name).unwrap_or_else(|| panic!("{line:?} is not {name}"));
        let printed = printed.replace("lse:", "");
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

/// On a GPU the result is that of the CPU; without one there is a reason.
fn check_gpu(gpu: &str, bound: f64) {
    if let Some(difference) = gpu.strip_prefix("largest difference from the CPU ") {
        assert!(difference.parse::<f64>().unwrap() < bound, "{gpu}");
    } else {
        let reasons =
            ["no NVIDIA driver", "this build has no device code", "the NVIDIA driver supports", "device 0"];
        assert!(reasons.iter().any(|reason| gpu.starts_with(reason)), "{gpu}");
    }
}

/// Compiles and runs an example of rotation.
#[track_caller]
fn rotates(language: Language, source: &str, link: Link) {
    let program = Program::new(language, source, link);
    check_gpu(&check(&stdout(&mut program.command(None)), rotated()), 1e-6);
}

#[test]
fn the_c_example_rotates_as_the_reference_does() {
    rotates(Language::C99, "examples/rotary.c", Link::Shared);
}

#[test]
fn the_c_example_is_also_c11_and_links_the_archive() {
    rotates(Language::C11, "examples/rotary.c", Link::Static);
}

#[test]
fn the_cpp_example_rotates_as_the_reference_does() {
    for link in [Link::Shared, Link::Static] {
        rotates(Language::Cpp17, "examples/rotary.cpp", link);
    }
}

#[test]
fn the_example_of_attention_attends_as_the_reference_does() {
    for (language, link) in [(Language::C99, Link::Shared), (Language::C11, Link::Static)] {
        let program = Program::new(language, "examples/attention.c", link);
        // bf16 rounds queries and keys by 2^-9 of them, and |q| |k| / sqrt(8) is below 3.5: logits are off by less than
        // 3.5 * 2^-8, and so is the log-sum-exp; means of values from -1 to 1 by twice that, and by the weights' own 2^-9.
        let bound = 2.0 * 3.5 / 256.0 + 1.0 / 512.0;
        check_gpu(&check(&stdout(&mut program.command(None)), attended()), bound);
    }
}
