//! What the examples print, from the f64 reference.

use longrope::reference::rotary::rotate;
use longrope::reference::{Pairing, Problem};
use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling};

/// A line of what an example prints: its name, and its numbers, each with its bound.
pub type Line = (String, Vec<(f64, f64)>);

/// A configuration of LongRoPE.
fn config(max_length: u64, long_factor: Vec<f64>) -> RopeConfig {
    RopeConfig::new(
        Geometry::new(8, 8, 1e4, 4096).unwrap(),
        max_length,
        Scaling::LongRope(LongRope {
            short_factor: vec![1.0; 4],
            long_factor,
            factor: max_length as f64 / 4096.0,
            attention_factor: None,
            first_tokens: 0,
        }),
    )
    .unwrap()
}

/// The configuration that the examples have as JSON: its frequencies at a length of 100,003, and its gain.
fn frequencies() -> (Vec<f64>, f64) {
    let config = config(131_072, vec![1.0, 2.0, 8.0, 32.0]);
    (config.frequencies(100_003), f64::from(config.attention_factor() as f32))
}

/// What the examples print of the rotation, from the f64 reference.
pub fn rotated() -> Vec<Line> {
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
pub fn attended() -> Vec<Line> {
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

/// What the example of decoding prints of the last token of each sequence, from the f64 reference.
pub fn decoded() -> Vec<Line> {
    let factors: Vec<f64> = (0..32).map(|i| 16f64.powf(f64::from(i) / 31.0)).collect();
    let geometry = Geometry::new(64, 64, 1e4, 44).unwrap();
    let scaling = Scaling::LongRope(LongRope {
        short_factor: vec![1.0; 32],
        long_factor: factors,
        factor: 16.0,
        attention_factor: None,
        first_tokens: 0,
    });
    let config = RopeConfig::new(geometry, 704, scaling).unwrap();
    let gain = f64::from(config.attention_factor() as f32);
    // The first is beyond the original length, the second is not.
    [(0i64, 48usize), (1, 29)]
        .map(|(sequence, length)| {
            let frequencies = config.frequencies(length as u64);
            let rows = |tokens: std::ops::Range<usize>, heads: i64, of: i64, turn: bool| -> Vec<f64> {
                let row = |token: i64, head: i64| -> Vec<f64> {
                    let number = |i| (sequence * 31 + token * 5 + i * 7 + token * i % 11 + of * 3) % 17 - 8;
                    let x: Vec<f64> = (head * 64..head * 64 + 64).map(|i| number(i) as f64 / 16.0).collect();
                    match turn {
                        true => rotate(&x, token, &frequencies, gain, Pairing::HalfSplit).unwrap(),
                        false => x,
                    }
                };
                tokens.flat_map(|token| (0..heads).flat_map(move |head| row(token as i64, head))).collect()
            };
            let problem = Problem {
                query_heads: 4,
                key_heads: 2,
                query_length: 1,
                key_length: length,
                head_dim: 64,
                scale: 1.0 / 8.0,
                causal: true,
                window: None,
                query_offset: length as i64 - 1,
                key_offset: 0,
            };
            let (q, k) = (rows(length - 1..length, 4, 0, true), rows(0..length, 2, 1, true));
            let exact = problem.forward(&q, &k, &rows(0..length, 2, 2, false)).unwrap();
            // Logits are below 3 and values at most 1/2: f32 is off by less than 1e-6.
            let values = exact.out[..4].iter().map(|value| (*value, 1e-6)).collect();
            (format!("sequence {sequence}, token {}:", length - 1), values)
        })
        .into()
}

/// How far the example of decoding may be from the CPU form on a GPU, as [`BF16_ATTENTION`]: logits below 3, values to 1/2.
pub const BF16_DECODING: f64 = 2.0 * 0.5 * 3.0 / 256.0 + 0.5 / 512.0;

/// How far the example of attention may be from the CPU form on a GPU. bf16 rounds queries and keys by 2^-9 of them, and
/// |q| |k| / sqrt(8) is below 3.5: logits are off by less than 3.5 * 2^-8, and so is the log-sum-exp; means of values from
/// -1 to 1 by twice that, and by the weights' own 2^-9.
pub const BF16_ATTENTION: f64 = 2.0 * 3.5 / 256.0 + 1.0 / 512.0;

/// Checks a program's output, and returns what it says of the GPU.
pub fn check(text: &str, expected: Vec<Line>) -> String {
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

/// What an example says of the GPU: that the result there is that of the CPU.
pub fn check_difference(gpu: &str, bound: f64) {
    let difference = gpu.strip_prefix(DIFFERENCE).unwrap_or_else(|| panic!("{gpu}"));
    assert!(difference.parse::<f64>().unwrap() < bound, "{gpu}");
}

const DIFFERENCE: &str = "largest difference from the CPU ";

/// What the example of configurations prints: what it found, and the configuration that it wrote.
pub fn check_config(text: &str) {
    let exact = config(131_072, vec![1.0, 2.0, 8.0, 32.0]);
    let extended = config(524_288, vec![2.0, 4.0, 16.0, 64.0]);
    let (found, written) = text.split_once('{').unwrap();
    let lines: Vec<&str> = found.lines().collect();
    let gain = exact.attention_factor();
    let first = format!(
        "4 pairs of a head of 8, base 10000, 4096 tokens extended to 131072, attention factor {gain:.16}"
    );
    assert_eq!(lines[0], first);
    assert_eq!(lines[1..3], ["factors, short: 1 1 1 1", "factors, long: 1 2 8 32"]);
    let key = lines[3].strip_prefix("key of ones at 262144:").unwrap();
    let key: Vec<f64> = key.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let (frequencies, gain) = (extended.frequencies(262_145), f64::from(extended.attention_factor() as f32));
    let turned = rotate(&[1.0; 8], 262_144, &frequencies, gain, Pairing::HalfSplit).unwrap();
    assert_eq!(key.len(), 8);
    for (found, exact) in key.iter().zip(turned) {
        assert!((found - exact).abs() <= 2.4e-7 * gain * 2f64.sqrt() + 1e-8, "{found} is not {exact}");
    }
    assert_eq!(RopeConfig::from_hf_json(&format!("{{{written}")).unwrap(), extended);
}
