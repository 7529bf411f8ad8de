//! Configurations through the C ABI, against the core's.

use std::ptr::{null, null_mut};

use longrope::scaling::hf::Generation;
use longrope::scaling::{RopeConfig, Scaling};
use proptest::prelude::*;

use crate::abi::{Angles, Choices, RotaryDesc, Status, TensorIo};
use crate::api::{IN_PLACE, Sets, api, message, rotary, status, tensor};
use crate::config_abi::{ConfigInfo, Factors};

const LONG_ROPE: &str = r#"{
    "head_dim": 10, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    "rope_theta": 50000.0, "partial_rotary_factor": 0.8,
    "rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1.5, 2, 2.5], "long_factor": [1.1, 2, 8.7, 32],
        "n_hat": 3}
}"#;

/// One of each method.
const OTHERS: [&str; 5] = [
    r#"{"head_dim": 8, "max_position_embeddings": 4096}"#,
    r#"{"head_dim": 8, "max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4}}"#,
    r#"{"head_dim": 8, "max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4}}"#,
    r#"{"head_dim": 8, "max_position_embeddings": 65536, "rope_scaling": {"rope_type": "yarn", "factor": 16,
        "original_max_position_embeddings": 4096}}"#,
    r#"{"head_dim": 8, "max_position_embeddings": 65536, "rope_scaling": {"rope_type": "llama3", "factor": 8,
        "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
];

/// A configuration of the library's, freed at the end.
struct Config(*mut RopeConfig);

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made by the library, and freed once.
        unsafe { (api().config_destroy)(self.0) };
    }
}

type Outcome<T> = Result<T, (Status, String)>;

fn outcome(found: i32) -> Outcome<()> {
    match status(found) {
        Status::Ok => Ok(()),
        other => Err((other, message())),
    }
}

impl Config {
    fn from_json(json: &str) -> Outcome<Self> {
        let mut config = std::ptr::dangling_mut();
        // SAFETY: the text is as long as it says; the result goes to a variable.
        let found = unsafe { (api().config_from_json)(json.as_ptr().cast(), json.len(), &mut config) };
        assert_eq!(found == 0, !config.is_null(), "a result where there is no error, and only there");
        outcome(found).map(|()| Self(config))
    }

    fn from_factors(factors: &Factors) -> Outcome<Self> {
        let mut config = std::ptr::dangling_mut();
        // SAFETY: the tests' arrays are as long as they say.
        let found = unsafe { (api().config_from_factors)(factors, &mut config) };
        assert_eq!(found == 0, !config.is_null(), "a result where there is no error, and only there");
        outcome(found).map(|()| Self(config))
    }

    fn info(&self) -> ConfigInfo {
        let mut info = info();
        // SAFETY: a struct of the size that it says.
        outcome(unsafe { (api().config_info_get)(self.0, &mut info) }).unwrap();
        info
    }

    fn frequencies(&self, length: i64, pairs: usize) -> Outcome<Vec<f64>> {
        let mut out = vec![f64::NAN; pairs];
        // SAFETY: room for as many numbers as are asked for.
        outcome(unsafe { (api().config_frequencies)(self.0, length, out.as_mut_ptr(), pairs as i64) })?;
        Ok(out)
    }

    fn factors(&self, length: i64, pairs: usize) -> Outcome<Vec<f64>> {
        let mut out = vec![f64::NAN; pairs];
        // SAFETY: as above.
        outcome(unsafe { (api().config_factors)(self.0, length, out.as_mut_ptr(), pairs as i64) })?;
        Ok(out)
    }

    fn to_json(&self, spelling: i32) -> String {
        let mut bytes = usize::MAX;
        // SAFETY: no room, and none is used.
        outcome(unsafe { (api().config_to_json)(self.0, spelling, null_mut(), 0, &mut bytes) }).unwrap();
        let mut text = vec![0xffu8; bytes + 3];
        // SAFETY: room for as many bytes as are said.
        let written = unsafe {
            (api().config_to_json)(self.0, spelling, text.as_mut_ptr().cast(), bytes + 1, &mut bytes)
        };
        outcome(written).unwrap();
        assert_eq!(text[bytes..], [0, 0xff, 0xff], "a final zero, and nothing behind it");
        text.truncate(bytes);
        String::from_utf8(text).unwrap()
    }
}

fn info() -> ConfigInfo {
    // SAFETY: numbers may be zero.
    let zero: ConfigInfo = unsafe { std::mem::zeroed() };
    ConfigInfo { struct_size: size_of::<ConfigInfo>() as u32, ..zero }
}

/// Factors with every field at its default.
fn factors(long: &[f64], original_length: i64, max_length: i64) -> Factors {
    Factors {
        struct_size: size_of::<Factors>() as u32,
        head_dim: 0,
        pairs: long.len() as i64,
        short_factors: null(),
        long_factors: long.as_ptr(),
        theta: 0.0,
        original_length,
        max_length,
        attention_factor: 0.0,
        first_tokens: 0,
    }
}

/// Everything that can be asked of a configuration is what the core says.
fn agrees(config: &Config, exact: &RopeConfig) {
    let info = config.info();
    let geometry = exact.geometry();
    assert_eq!(info.head_dim as usize, geometry.head_dim());
    assert_eq!(info.pairs as usize, geometry.pairs());
    assert_eq!(info.theta, geometry.theta());
    assert_eq!(info.original_length as u64, geometry.original_length());
    assert_eq!(info.max_length as u64, exact.max_length());
    assert_eq!(info.attention_factor, exact.attention_factor());
    assert_eq!(info.first_tokens as u64, exact.first_tokens());
    let pairs = geometry.pairs();
    for length in [0, 1, info.original_length, info.original_length + 1, 2 * info.max_length] {
        let asked = if length == 0 { exact.max_length() } else { length as u64 };
        let frequencies = exact.frequencies(asked);
        assert_eq!(config.frequencies(length, pairs).unwrap(), frequencies);
        let factors = config.factors(length, pairs).unwrap();
        for ((factor, plain), scaled) in factors.iter().zip(geometry.frequencies()).zip(frequencies) {
            assert!((plain / factor / scaled - 1.0).abs() < 1e-14, "{plain} / {factor} is not {scaled}");
        }
    }
}

#[test]
fn a_configuration_is_that_of_the_core() {
    for json in OTHERS.into_iter().chain([LONG_ROPE]) {
        let exact = RopeConfig::from_hf_json(json).unwrap();
        let config = Config::from_json(json).unwrap();
        agrees(&config, &exact);
        for (number, generation) in [(0, Generation::RopeScaling), (1, Generation::RopeParameters)] {
            let text = config.to_json(number);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value, exact.to_hf(generation));
            assert_eq!(RopeConfig::from_hf_json(&text).unwrap(), exact);
            agrees(&Config::from_json(&text).unwrap(), &exact);
            // And it is what factor sets are made of.
            assert_eq!(Sets::from_json(&text, 0, 0).is_ok(), Sets::from_json(json, 0, 0).is_ok());
        }
    }
}

#[test]
fn factors_are_handed_out_as_they_were_given() {
    let config = Config::from_json(LONG_ROPE).unwrap();
    assert_eq!(config.factors(4096, 4).unwrap(), [1.0, 1.5, 2.0, 2.5]);
    assert_eq!(config.factors(4097, 4).unwrap(), [1.1, 2.0, 8.7, 32.0]);
    assert_eq!(config.factors(0, 4).unwrap(), [1.1, 2.0, 8.7, 32.0]);
    assert_eq!(config.info().first_tokens, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn factors_become_json_and_come_back(
        long in prop::collection::vec(1.0f64..100.0, 1..70),
        short in prop::option::of(1.0f64..4.0),
        (original, scale) in (2i64..100_000, 1i64..100),
        gain in prop_oneof![Just(0.0), 0.5f64..2.0],
        theta in prop_oneof![Just(0.0), 2.0f64..1e7],
        first_tokens in 0i64..300,
        (extra, spelling) in (0i32..20, 0i32..2),
    ) {
        let short = short.map(|value| vec![value; long.len()]);
        let given = Factors {
            head_dim: if extra == 0 { 0 } else { 2 * long.len() as i32 + extra },
            short_factors: short.as_ref().map_or(null(), |short| short.as_ptr()),
            theta,
            attention_factor: gain,
            first_tokens,
            ..factors(&long, original, original * scale)
        };
        let config = Config::from_factors(&given).unwrap();
        let exact = RopeConfig::from_hf_json(&config.to_json(spelling)).unwrap();
        agrees(&config, &exact);
        let Scaling::LongRope(found) = exact.scaling() else { panic!("{exact:?}") };
        prop_assert_eq!(&found.long_factor, &long);
        prop_assert_eq!(&found.short_factor, &short.unwrap_or(vec![1.0; long.len()]));
        prop_assert_eq!(found.attention_factor, (gain != 0.0).then_some(gain));
        prop_assert_eq!(found.first_tokens, first_tokens as u64);
        prop_assert_eq!(exact.geometry().theta(), if theta == 0.0 { 1e4 } else { theta });
        prop_assert_eq!(config.info().pairs, long.len() as i64);
    }
}

/// The bits of what sets make of ones, at positions among the first tokens and far beyond, by short and by long factors.
fn rotated(sets: &Sets, pairs: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for choice in [Choices::Short, Choices::Long] {
        for position in [0, 1, 2, 3, 4095, 131_071, (1 << 40) + 1] {
            let mut ones = vec![1.0f32; 2 * pairs];
            let input = tensor(ones.as_mut_ptr(), [1, 1, 1, 2 * pairs as i64]);
            let desc = RotaryDesc { position_offset: position, choice_kind: choice as i32, ..rotary(sets) };
            // SAFETY: one tensor of the size that it says.
            outcome(unsafe { (api().rotary_cpu)(&desc, &TensorIo { input, output: IN_PLACE }, 1) }).unwrap();
            bits.extend(ones.iter().map(|value| value.to_bits()));
        }
    }
    bits
}

const ANGLES: [Angles; 3] = [Angles::Exact, Angles::Parity, Angles::ExactOfF32];

#[test]
fn sets_of_a_configuration_have_the_bits_of_those_of_its_text() {
    for json in OTHERS.into_iter().chain([LONG_ROPE]) {
        let config = Config::from_json(json).unwrap();
        let mut kinds = Vec::new();
        for angles in ANGLES {
            for length in [0, 1, 4096, 100_000] {
                let by_text = Sets::from_json(json, length, angles as i32).unwrap();
                // SAFETY: a configuration.
                let made = unsafe { Sets::from_config(config.0, length, angles as i32) }.unwrap();
                assert_eq!(rotated(&made, 4), rotated(&by_text, 4), "{angles:?} {length} {json}");
                kinds.push(rotated(&made, 4));
            }
        }
        assert!(kinds[0] != kinds[4] && kinds[4] != kinds[8] && kinds[8] != kinds[0], "{json}");
        // Dynamic NTK depends on the length.
        assert_eq!(kinds[3] != kinds[0], json.contains("dynamic"), "{json}");
    }
}

#[test]
fn sets_outlive_the_configuration_that_they_are_of() {
    let config = Config::from_factors(&factors(&[1.0, 2.0, 8.0], 4096, 32_768)).unwrap();
    let text = config.to_json(0);
    // SAFETY: a configuration.
    let made = unsafe { Sets::from_config(config.0, 0, Angles::Exact as i32) }.unwrap();
    drop(config);
    assert_eq!(rotated(&made, 3), rotated(&Sets::from_json(&text, 0, Angles::Exact as i32).unwrap(), 3));
}

#[track_caller]
fn refused<T>(found: Outcome<T>, expected: Status, start: &str) {
    let Err((found, message)) = found else { panic!("taken, but {start:?} was expected") };
    assert_eq!(found, expected, "{message}");
    assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
}

use Status::{InvalidArgument as Invalid, InvalidConfig};

#[test]
fn wrong_factors_are_named() {
    let long = [1.0, 2.0, 4.0];
    let good = || factors(&long, 4096, 32_768);
    assert!(Config::from_factors(&good()).is_ok());
    let odd = long.as_ptr().wrapping_byte_add(1);
    let wrong = [
        (Factors { struct_size: 71, ..good() }, Invalid, "factors.struct_size: 71 "),
        (Factors { pairs: 0, ..good() }, Invalid, "factors.pairs: 0 "),
        (Factors { pairs: -1, ..good() }, Invalid, "factors.pairs: -1 "),
        (Factors { pairs: 8193, ..good() }, Invalid, "factors.pairs: 8193 "),
        (Factors { pairs: i64::MIN, ..good() }, Invalid, "factors.pairs: -9223372036854775808 "),
        (Factors { head_dim: -8, ..good() }, Invalid, "factors.head_dim: -8 "),
        (Factors { head_dim: 4, ..good() }, InvalidConfig, "rotary_dim: 6 "),
        (Factors { long_factors: null(), ..good() }, Invalid, "factors.long_factors: NULL "),
        (Factors { long_factors: odd, ..good() }, Invalid, "factors.long_factors: address 0x"),
        (Factors { short_factors: odd, ..good() }, Invalid, "factors.short_factors: address 0x"),
        (Factors { theta: f64::NAN, ..good() }, InvalidConfig, "rope_theta: NaN "),
        (Factors { theta: 1.0, ..good() }, InvalidConfig, "rope_theta: 1 "),
        (Factors { original_length: 0, ..good() }, InvalidConfig, "original_max_position_embeddings: 0 "),
        (Factors { original_length: -1, ..good() }, Invalid, "factors.original_length: -1 "),
        (Factors { max_length: 4095, ..good() }, Invalid, "factors.max_length: 4095 "),
        (Factors { max_length: -5, ..good() }, Invalid, "factors.max_length: -5 "),
        (Factors { attention_factor: -1.0, ..good() }, InvalidConfig, "rope_scaling.attention_factor: -1 "),
        (
            Factors { attention_factor: f64::INFINITY, ..good() },
            InvalidConfig,
            "rope_scaling.attention_factor: inf ",
        ),
        (Factors { first_tokens: -1, ..good() }, Invalid, "factors.first_tokens: -1 "),
    ];
    for (factors, expected, start) in wrong {
        refused(Config::from_factors(&factors), expected, start);
    }
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let long = [1.0, bad, 4.0];
        let start = format!("rope_scaling.long_factor[1]: {bad} ");
        refused(Config::from_factors(&factors(&long, 4096, 32_768)), InvalidConfig, &start);
    }
}

#[test]
fn wrong_questions_are_named() {
    let config = Config::from_json(LONG_ROPE).unwrap();
    refused(config.frequencies(0, 3), Invalid, "count: 3 is not valid; expected 4, the number of pairs");
    refused(config.factors(0, 5), Invalid, "count: 5 ");
    refused(config.frequencies(-1, 4), Invalid, "length: -1 ");
    let mut room = [0.0f64; 5];
    let odd = room.as_mut_ptr().wrapping_byte_add(4);
    let mut bytes = 7usize;
    let mut text = [1i8; 8];
    // SAFETY: pointers are null, or right, or refused before they are used.
    unsafe {
        refused(outcome((api().config_frequencies)(null(), 0, odd, 4)), Invalid, "config: NULL ");
        refused(
            outcome((api().config_frequencies)(config.0, 0, null_mut(), 4)),
            Invalid,
            "frequencies: NULL ",
        );
        refused(outcome((api().config_factors)(config.0, 0, odd, 4)), Invalid, "factors: address 0x");
        refused(outcome((api().config_factors)(config.0, 0, odd, i64::MIN)), Invalid, "count: -92");
        refused(outcome((api().config_info_get)(null(), &mut info())), Invalid, "config: NULL ");
        refused(outcome((api().config_info_get)(config.0, null_mut())), Invalid, "info: NULL ");
        let mut small = ConfigInfo { struct_size: 8, ..info() };
        refused(outcome((api().config_info_get)(config.0, &mut small)), Invalid, "info.struct_size: 8 ");
        let json = |spelling, text, capacity, bytes| {
            outcome((api().config_to_json)(config.0, spelling, text, capacity, bytes))
        };
        refused(json(2, null_mut(), 0, &mut bytes), Invalid, "spelling: 2 ");
        refused(json(0, null_mut(), 0, null_mut()), Invalid, "json_bytes: NULL ");
        assert_eq!(bytes, 7);
        refused(json(0, null_mut(), 9, &mut bytes), Invalid, "json: NULL ");
        refused(json(0, text.as_mut_ptr().cast(), 8, &mut bytes), Invalid, "capacity: 8 ");
        // What is needed is said all the same, and nothing is written.
        assert_eq!(bytes, config.to_json(0).len());
        assert_eq!(text, [1; 8]);
        // A text without room for its final zero is too long.
        let mut almost = vec![1i8; bytes];
        refused(json(0, almost.as_mut_ptr().cast(), almost.len(), &mut bytes), Invalid, "capacity: ");
        assert!(almost.iter().all(|byte| *byte == 1));
        refused(outcome((api().config_from_json)(null(), 0, &mut null_mut())), Invalid, "json: NULL ");
        refused(outcome((api().config_from_json)(c"{}".as_ptr(), 2, null_mut())), Invalid, "config: NULL ");
        refused(outcome((api().config_from_factors)(null(), &mut null_mut())), Invalid, "factors: NULL ");
        refused(Sets::from_config(null(), 0, 0), Invalid, "config: NULL ");
        refused(Sets::from_config(config.0, -1, 0), Invalid, "length: -1 ");
        refused(Sets::from_config(config.0, i64::MIN, 0), Invalid, "length: -9223372036854775808 ");
        refused(Sets::from_config(config.0, 0, 3), Invalid, "angles: 3 ");
        refused(Sets::from_config(config.0, 0, -1), Invalid, "angles: -1 ");
        refused(outcome((api().factor_sets_from_config)(config.0, 0, 0, null_mut())), Invalid, "sets: NULL ");
        // Destroying nothing does nothing.
        (api().config_destroy)(null_mut());
    }
    refused(Config::from_json("{"), InvalidConfig, "not valid JSON: ");
    refused(Config::from_json("{}"), InvalidConfig, "");
}

#[test]
fn a_longer_info_is_filled_as_far_as_it_is_known() {
    #[repr(C)]
    struct Longer {
        known: ConfigInfo,
        unknown: [u64; 2],
    }
    let mut longer =
        Longer { known: ConfigInfo { struct_size: size_of::<Longer>() as u32, ..info() }, unknown: [5, 6] };
    let config = Config::from_json(LONG_ROPE).unwrap();
    // SAFETY: as many bytes as it says.
    outcome(unsafe { (api().config_info_get)(config.0, &raw mut longer.known) }).unwrap();
    assert_eq!(longer.unknown, [5, 6]);
    assert_eq!(longer.known.struct_size as usize, size_of::<Longer>());
    assert_eq!((longer.known.pairs, longer.known.head_dim), (4, 10));
}
