//! The closed forms of the interpolation methods.

use std::f64::consts::TAU;

use approx::assert_relative_eq;
use longrope::scaling::rescale::{self, YarnRamp};
use longrope::scaling::{Geometry, Llama3, LongRope, RopeConfig, Scaling, Yarn};
use proptest::prelude::*;

fn llama2() -> Geometry {
    Geometry::new(128, 128, 1e4, 4096).unwrap()
}

fn config(scaling: Scaling) -> RopeConfig {
    RopeConfig::new(llama2(), 32_768, scaling).unwrap()
}

/// By how much each frequency is divided.
fn lambda(config: &RopeConfig, length: u64) -> Vec<f64> {
    let plain = config.geometry().frequencies();
    plain.iter().zip(config.frequencies(length)).map(|(plain, scaled)| plain / scaled).collect()
}

#[test]
fn plain_frequencies_fall_from_one_to_nearly_one_over_theta() {
    let frequencies = config(Scaling::Default).frequencies(1);
    assert_eq!(frequencies[0], 1.0);
    assert_relative_eq!(frequencies[32], 0.01, max_relative = 1e-14);
    assert_relative_eq!(frequencies[63], 1e4f64.powf(-126.0 / 128.0), max_relative = 1e-14);
}

#[test]
fn position_interpolation_slows_every_pair_by_the_factor() {
    assert!(lambda(&config(Scaling::Linear { factor: 8.0 }), 1).iter().all(|l| (l - 8.0).abs() < 1e-12));
}

#[test]
fn ntk_aware_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor() {
    let lambda = lambda(&config(Scaling::NtkAware { factor: 8.0 }), 1);
    assert_eq!(lambda[0], 1.0);
    assert_relative_eq!(lambda[63], 8.0, max_relative = 1e-12);
    // The same as raising the base to theta * 8^(d/(d-2)).
    let raised = Geometry::new(128, 128, 1e4 * 8f64.powf(128.0 / 126.0), 4096).unwrap();
    for (found, expected) in
        config(Scaling::NtkAware { factor: 8.0 }).frequencies(1).iter().zip(raised.frequencies())
    {
        assert_relative_eq!(*found, expected, max_relative = 1e-13);
    }
}

#[test]
fn dynamic_ntk_follows_the_length_and_starts_at_the_original_one() {
    let dynamic = config(Scaling::DynamicNtk { factor: 2.0 });
    assert_eq!(dynamic.frequencies(1), llama2().frequencies());
    assert_eq!(dynamic.frequencies(4096), llama2().frequencies());
    // Four times the length at factor 2 is a scale of 2 * 4 - 1.
    assert_eq!(dynamic.frequencies(16_384), config(Scaling::NtkAware { factor: 7.0 }).frequencies(1));
}

#[test]
fn yarn_ramps_between_the_pairs_of_the_paper() {
    let yarn = config(Scaling::Yarn(Yarn::new(16.0)));
    let lambda = lambda(&yarn, 1);
    // LLaMA-2: pairs up to 20 turn 32 times or more, pairs from 46 on at most once.
    assert!(lambda[..=20].iter().all(|l| *l == 1.0) && lambda[21] > 1.0);
    assert!(lambda[46..].iter().all(|l| (l - 16.0).abs() < 1e-12) && lambda[45] < 16.0);
    assert_relative_eq!(yarn.attention_factor(), 0.1 * 16f64.ln() + 1.0);
    assert_eq!(YarnRamp::default().ends(&llama2()), (20.0, 46.0));
}

#[test]
fn yarn_has_two_forms_of_its_attention_factor_and_an_explicit_one() {
    let gain = |yarn: Yarn| config(Scaling::Yarn(yarn)).attention_factor();
    let both = Yarn { mscale: Some(0.5), mscale_all_dim: Some(2.0), ..Yarn::new(40.0) };
    assert_relative_eq!(gain(both.clone()), (0.05 * 40f64.ln() + 1.0) / (0.2 * 40f64.ln() + 1.0));
    assert_relative_eq!(gain(Yarn { mscale_all_dim: None, ..both.clone() }), 0.1 * 40f64.ln() + 1.0);
    assert_eq!(gain(Yarn { attention_factor: Some(1.25), ..both }), 1.25);
    assert_eq!(gain(Yarn::new(1.0)), 1.0);
}

#[test]
fn a_ramp_that_is_not_truncated_ends_between_pairs() {
    let ramp = YarnRamp { truncate: false, ..YarnRamp::default() };
    let (low, high) = ramp.ends(&llama2());
    assert!((20.0..21.0).contains(&low) && (45.0..46.0).contains(&high), "{low} {high}");
}

#[test]
fn llama3_keeps_short_wavelengths_divides_long_ones_and_passes_smoothly() {
    let geometry = Geometry::new(128, 128, 5e5, 8192).unwrap();
    let llama3 = Llama3 { factor: 8.0, low_frequency_factor: 1.0, high_frequency_factor: 4.0 };
    let config = RopeConfig::new(geometry, 131_072, Scaling::Llama3(llama3)).unwrap();
    for (plain, lambda) in geometry.frequencies().iter().zip(lambda(&config, 1)) {
        let wavelength = TAU / plain;
        match wavelength {
            w if w < 2048.0 => assert_relative_eq!(lambda, 1.0, max_relative = 1e-14),
            w if w > 8192.0 => assert_relative_eq!(lambda, 8.0, max_relative = 1e-14),
            _ => assert!((1.0..=8.0).contains(&lambda)),
        }
    }
    assert_eq!(config.attention_factor(), 1.0);
}

#[test]
fn longrope_attention_factors_are_those_of_the_specification() {
    for (original, scale, expected) in [
        (4096u64, 2.0, 1.040833),
        (4096, 8.0, 1.118034),
        (4096, 16.0, 1.154701),
        (4096, 32.0, 1.190238),
        (4096, 64.0, 1.224745),
        (4096, 512.0, 1.322876),
        (8192, 16.0, 1.143544),
    ] {
        let found = rescale::longrope_attention_factor(scale, original);
        assert!((found - expected).abs() < 5e-7, "{original} x {scale}: {found}");
    }
    assert_eq!(rescale::longrope_attention_factor(1.0, 4096), 1.0);
}

#[test]
fn bad_parameters_are_named_by_their_path() {
    let message = |scaling| RopeConfig::new(llama2(), 32_768, scaling).unwrap_err().to_string();
    let longrope = |short: Vec<f64>, long: Vec<f64>, factor, attention_factor| {
        Scaling::LongRope(LongRope {
            short_factor: short,
            long_factor: long,
            factor,
            attention_factor,
            first_tokens: 0,
        })
    };
    let mut zero = vec![1.0; 64];
    zero[3] = 0.0;
    assert_eq!(
        message(longrope(vec![1.0; 64], zero, 8.0, None)),
        "rope_scaling.long_factor[3]: 0 is not valid; expected a finite number above 0"
    );
    assert_eq!(
        message(longrope(vec![1.0; 48], vec![1.0; 64], 8.0, None)),
        "rope_scaling.short_factor: a list of 48 is not valid; expected 64 numbers, one per pair of the rotary \
         dimension"
    );
    assert!(message(longrope(vec![1.0; 64], vec![1.0; 64], f64::NAN, None)).contains(".factor: NaN"));
    assert!(
        message(longrope(vec![1.0; 64], vec![1.0; 64], 8.0, Some(-1.0))).contains("attention_factor: -1")
    );
    assert!(message(longrope(vec![1.0; 64], vec![1e-300; 64], 8.0, None)).contains("frequency"));
    assert!(message(Scaling::Linear { factor: -2.0 }).contains("rope_scaling.factor: -2"));
    assert!(message(Scaling::DynamicNtk { factor: 0.5 }).contains("rope_scaling.factor: 0.5"));
    let llama3 = Llama3 { factor: 8.0, low_frequency_factor: 4.0, high_frequency_factor: 4.0 };
    assert!(message(Scaling::Llama3(llama3)).contains("high_freq_factor: 4"));
    let mut yarn = Yarn::new(8.0);
    yarn.ramp.beta_fast = f64::INFINITY;
    assert!(message(Scaling::Yarn(yarn)).contains("beta_fast: inf"));
}

#[test]
fn bad_geometries_are_named() {
    let message = |h, r, theta, l| Geometry::new(h, r, theta, l).unwrap_err().to_string();
    assert!(message(64, 63, 1e4, 1).starts_with("rotary_dim: 63"));
    assert!(message(64, 66, 1e4, 1).starts_with("rotary_dim: 66"));
    assert!(message(64, 0, 1e4, 1).starts_with("rotary_dim: 0"));
    assert!(message(usize::MAX, 2, 1e4, 1).starts_with("head_dim"));
    assert!(message(64, 64, 1.0, 1).starts_with("rope_theta: 1"));
    assert!(message(64, 64, f64::NAN, 1).starts_with("rope_theta: NaN"));
    assert!(message(64, 64, 1e4, 0).starts_with("original_max_position_embeddings: 0"));
}

proptest! {
    #[test]
    fn every_method_slows_pairs_by_factors_between_one_and_the_scale(
        pairs in 1usize..65, theta in 1e2..1e7, original in 16u64..100_000, scale in 1.0..512.0
    ) {
        let geometry = Geometry::new(2 * pairs, 2 * pairs, theta, original).unwrap();
        for factors in [
            rescale::linear(&geometry, scale),
            rescale::ntk_aware(&geometry, scale),
            rescale::yarn(&geometry, scale, &YarnRamp::default()),
        ] {
            prop_assert_eq!(factors.len(), pairs);
            for factor in factors {
                prop_assert!(factor >= 1.0 - 1e-12 && factor <= scale * (1.0 + 1e-12), "{}", factor);
            }
        }
    }
}
