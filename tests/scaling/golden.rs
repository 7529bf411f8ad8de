//! Golden values made by transformers (`scripts/golden/rope.py`).

use longrope::scaling::{RopeConfig, Scaling};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("../data/rope_golden.json")).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn name(case: &Value) -> &str {
    case["name"].as_str().unwrap()
}

/// The cases that this crate reads, with the length transformers was given. An attention factor of 0 would erase
/// queries and keys, so it is an error here.
fn readable() -> impl Iterator<Item = (Value, RopeConfig, u64)> {
    cases().into_iter().filter(|case| case["attention_factor"] != 0.0).map(|case| {
        let config = RopeConfig::from_hf(&case["config"]).unwrap_or_else(|e| panic!("{}: {e}", name(&case)));
        let length = case["seq_len"].as_u64().unwrap_or(1);
        (case, config, length)
    })
}

fn expected(case: &Value) -> Vec<f32> {
    let bits = case["inv_freq_bits"].as_array().unwrap();
    bits.iter().map(|bits| f32::from_bits(bits.as_u64().unwrap() as u32)).collect()
}

/// How many floats apart two positive numbers are.
fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn the_golden_file_covers_every_type() {
    let count = |kind: &str| cases().iter().filter(|case| case["rope_type"] == kind).count();
    for kind in ["default", "linear", "dynamic", "yarn", "llama3", "longrope"] {
        assert!(count(kind) >= 5, "{kind}");
    }
    assert_eq!(cases().len() - readable().count(), 2, "only the attention factors of 0 are left out");
}

#[test]
fn f32_inverse_frequencies_are_those_of_transformers_to_one_ulp() {
    for (case, config, length) in readable() {
        let (found, expected) = (config.inverse_frequencies_f32(length), expected(&case));
        assert_eq!(found.len(), expected.len(), "{}", name(&case));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let apart = ulps(*found, *expected);
            assert!(apart <= 1, "{} pair {i}: {found} is {apart} ulp from {expected}", name(&case));
        }
    }
}

#[test]
fn f64_frequencies_agree_with_transformers_to_the_rounding_of_its_f32_operations() {
    for (case, config, length) in readable() {
        for (found, expected) in config.frequencies(length).iter().zip(expected(&case)) {
            let relative = (found / f64::from(expected) - 1.0).abs();
            assert!(relative < 2e-6, "{}: {found} against {expected}", name(&case));
        }
    }
}

#[test]
fn attention_factors_are_those_of_transformers() {
    for (case, config, _) in readable() {
        let expected = case["attention_factor"].as_f64().unwrap();
        let found = config.attention_factor();
        assert!((found - expected).abs() <= 1e-15 * expected, "{}: {found} against {expected}", name(&case));
    }
}

#[test]
fn an_attention_factor_of_zero_is_an_error() {
    for case in cases().iter().filter(|case| case["attention_factor"] == 0.0) {
        let message = RopeConfig::from_hf(&case["config"]).unwrap_err().to_string();
        assert!(message.contains("attention_factor: 0 is not valid"), "{message}");
    }
}

#[test]
fn every_golden_configuration_survives_a_round_trip_in_both_spellings() {
    use longrope::scaling::hf::Generation;
    for (case, config, _) in readable() {
        for generation in [Generation::RopeScaling, Generation::RopeParameters] {
            let written = config.to_hf(generation);
            let read = RopeConfig::from_hf(&written).unwrap_or_else(|e| panic!("{}: {e}", name(&case)));
            assert_eq!(read, config, "{} as {generation:?}", name(&case));
            let text = RopeConfig::from_hf_json(&written.to_string()).unwrap();
            assert_eq!(text, config, "{} through text", name(&case));
        }
    }
}

#[test]
fn exact_and_parity_tables_hold_what_the_configuration_gives() {
    use longrope::scaling::{Angles, FactorSet, SetChoice};
    for (case, config, length) in readable() {
        let exact = config.factor_sets(length).unwrap();
        let choice = SetChoice::ByLength(length);
        let dynamic = matches!(config.scaling(), Scaling::DynamicNtk { .. });
        let frequencies = config.frequencies(length);
        let set = FactorSet::exact(&frequencies, config.attention_factor()).unwrap();
        assert_eq!(exact.at(1 << 40, choice), &set, "{} (dynamic: {dynamic})", name(&case));
        let parity = config.parity_sets(length).unwrap();
        let Angles::Parity(found) = parity.at(1 << 40, choice).angles() else { panic!("parity angles") };
        assert_eq!(found, &config.inverse_frequencies_f32(length), "{}", name(&case));
    }
}

#[test]
fn what_convert_writes_has_the_same_angles_in_transformers() {
    use longrope::scaling::hf::Generation;
    let golden: Value = serde_json::from_str(include_str!("../data/export_golden.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 12);
    for case in cases {
        let config = RopeConfig::from_hf(&case["source"]).unwrap();
        let generation = match case["to"].as_str().unwrap() {
            "hf-old" => Generation::RopeScaling,
            "hf-new" => Generation::RopeParameters,
            other => panic!("{other}"),
        };
        // The file that transformers was given is the one that is written today.
        for (key, value) in config.to_hf(generation).as_object().unwrap() {
            assert_eq!(&case["exported"][key], value, "{}: {key}", name(case));
        }
        assert_eq!(RopeConfig::from_hf(&case["exported"]).unwrap(), config, "{}", name(case));
        let original = case["original_length"].as_u64().unwrap();
        for (key, length) in [("short_bits", original), ("long_bits", original + 1)] {
            let found = config.inverse_frequencies_f32(length);
            let expected = case[key].as_array().unwrap();
            assert_eq!(found.len(), expected.len(), "{}", name(case));
            for (found, bits) in found.iter().zip(expected) {
                let expected = f32::from_bits(bits.as_u64().unwrap() as u32);
                assert!(ulps(*found, expected) <= 1, "{} {key}: {found} is not {expected}", name(case));
            }
        }
        let expected = case["attention_factor"].as_f64().unwrap();
        assert!((config.attention_factor() - expected).abs() <= 1e-15 * expected, "{}", name(case));
    }
}
