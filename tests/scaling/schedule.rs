//! Schedules: factor sets by length.

use longrope::scaling::{
    Bucket, ConfigError, Geometry, LongRope, RopeConfig, Scaling, Schedule, SetChoice, Yarn,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn geometry() -> Geometry {
    Geometry::new(8, 8, 1e4, 4096).unwrap()
}

fn bucket(max_length: u64, last: f64) -> Bucket {
    Bucket { max_length, factors: vec![1.0, 1.0, 1.5, last], attention_factor: 1.25, first_tokens: 4 }
}

fn longrope(max_length: u64, short: f64, long: f64) -> RopeConfig {
    let scaling = Scaling::LongRope(LongRope {
        short_factor: vec![short; 4],
        long_factor: vec![1.0, 1.0, 1.5, long],
        factor: max_length as f64 / 4096.0,
        attention_factor: None,
        first_tokens: 0,
    });
    RopeConfig::new(geometry(), max_length, scaling).unwrap()
}

fn lengths(schedule: &Schedule) -> Vec<u64> {
    schedule.buckets().iter().map(|bucket| bucket.max_length).collect()
}

#[test]
fn a_sequence_takes_the_first_bucket_that_holds_it() {
    let schedule = Schedule::new(geometry(), vec![bucket(4096, 2.0), bucket(8192, 4.0)]).unwrap();
    for (length, expected) in [(1, 2.0), (4096, 2.0), (4097, 4.0), (8192, 4.0)] {
        assert_eq!(schedule.choose(length).unwrap().factors[3], expected, "{length}");
    }
    let message = schedule.choose(8193).unwrap_err().to_string();
    assert_eq!(
        message,
        "length: 8193 is not valid; expected at most 8192, that of the schedule's last bucket"
    );
}

#[test]
fn the_sets_are_those_of_a_configuration_with_the_buckets_factors() {
    let schedule = Schedule::new(geometry(), vec![bucket(4096, 2.0), bucket(8192, 4.0)]).unwrap();
    for (length, last) in [(4000, 2.0), (5000, 4.0)] {
        let factors = vec![1.0, 1.0, 1.5, last];
        let scaling = Scaling::LongRope(LongRope {
            short_factor: factors.clone(),
            long_factor: factors,
            factor: 2.0,
            attention_factor: Some(1.25),
            first_tokens: 4,
        });
        let config = RopeConfig::new(geometry(), 8192, scaling).unwrap();
        assert_eq!(schedule.factor_sets(length).unwrap(), config.factor_sets(8192).unwrap());
    }
    let sets = schedule.factor_sets(5000).unwrap();
    assert_eq!(sets.at(3, SetChoice::Long), sets.plain());
    assert_eq!(sets.at(4, SetChoice::Short), sets.at(4, SetChoice::Long));
}

#[test]
fn configurations_become_buckets_and_the_shortest_gives_the_one_of_the_original_length() {
    let configs = [longrope(32_768, 1.0, 8.0), longrope(8192, 1.0, 2.0), longrope(16_384, 1.0, 4.0)];
    let schedule = Schedule::from_configs(&configs).unwrap();
    assert_eq!(lengths(&schedule), [4096, 8192, 16_384, 32_768]);
    assert_eq!(schedule.choose(100).unwrap().factors, [1.0; 4]);
    assert_eq!(schedule.choose(100).unwrap().attention_factor, configs[1].attention_factor());
    for config in &configs {
        let bucket = schedule.choose(config.max_length()).unwrap();
        assert_eq!(bucket.factors, config.divisors(config.max_length()));
        assert_eq!(bucket.attention_factor, config.attention_factor());
    }
    // A configuration of its own for the original length, of another method.
    let yarn = RopeConfig::new(geometry(), 4096, Scaling::Yarn(Yarn::new(2.0))).unwrap();
    let schedule = Schedule::from_configs(&[configs[0].clone(), yarn.clone()]).unwrap();
    assert_eq!(lengths(&schedule), [4096, 32_768]);
    assert_eq!(schedule.choose(100).unwrap().factors, yarn.divisors(4096));
}

#[test]
fn configurations_that_do_not_go_together_are_named() {
    let message = |configs: &[RopeConfig]| Schedule::from_configs(configs).unwrap_err().to_string();
    assert!(message(&[]).starts_with("configurations: an empty list"));
    let other = Geometry::new(8, 8, 5e5, 4096).unwrap();
    let other = RopeConfig::new(other, 8192, Scaling::Default).unwrap();
    assert!(message(&[longrope(8192, 1.0, 2.0), other]).starts_with("configurations[1]: Geometry"));
    let short = message(&[longrope(8192, 1.0, 2.0), longrope(16_384, 1.5, 4.0)]);
    assert!(short.starts_with("configurations[1].short_factor: [1.5, "), "{short}");
    let twice = message(&[longrope(8192, 1.0, 2.0), longrope(8192, 1.0, 4.0)]);
    assert!(twice.starts_with("buckets[2].max_length: 8192 is not valid; expected at least 8193"), "{twice}");
    let dynamic = RopeConfig::new(geometry(), 8192, Scaling::DynamicNtk { factor: 2.0 }).unwrap();
    assert!(message(&[dynamic]).starts_with("rope_scaling.rope_type: dynamic"));
}

#[test]
fn a_configuration_holds_two_buckets_and_gives_them_back() {
    let config = longrope(8192, 1.25, 2.0);
    let schedule = Schedule::from_configs(std::slice::from_ref(&config)).unwrap();
    assert_eq!(schedule.to_config(8192).unwrap(), config);
    assert_eq!(schedule.to_config(5000).unwrap(), config);
    let named = Schedule::new(geometry(), vec![bucket(8192, 2.0)]).unwrap().to_config(8192).unwrap();
    assert_eq!((named.attention_factor(), named.first_tokens()), (1.25, 4));
}

/// A good file.
fn file() -> Value {
    Schedule::new(geometry(), vec![bucket(4096, 2.0), bucket(8192, 4.0)]).unwrap().to_json()
}

#[test]
fn a_bad_field_is_named_by_its_path() {
    for (pointer, value, expected) in [
        ("/format", json!("longrope"), "format: \"longrope\" is not valid; expected longrope-schedule"),
        ("/version", json!(2), "version: 2 is not valid; expected 1"),
        ("/rotary_dim", json!(7), "rotary_dim: 7 is not valid"),
        ("/rope_theta", json!("1e4"), "rope_theta: \"1e4\" is not valid"),
        ("/buckets", json!([]), "buckets: an empty list"),
        ("/buckets", json!(3), "buckets: missing"),
        ("/buckets/1", json!([]), "buckets[1]: a list is not valid"),
        ("/buckets/0/max_length", json!(0), "buckets[0].max_length: 0 is not valid; expected at least 1"),
        (
            "/buckets/1/max_length",
            json!(4096),
            "buckets[1].max_length: 4096 is not valid; expected at least 4097",
        ),
        ("/buckets/1/factors", json!([1.0, 2.0]), "buckets[1].factors: a list of 2"),
        ("/buckets/1/factors/2", json!(0.0), "buckets[1].factors[2]: 0 is not valid"),
        ("/buckets/1/factors/2", json!(null), "buckets[1].factors[2]: null is not valid"),
        ("/buckets/1/attention_factor", json!(-1.0), "buckets[1].attention_factor: -1 is not valid"),
        ("/buckets/1/n_hat", json!(-1), "buckets[1].n_hat: -1 is not valid"),
        ("/buckets/0/factors/0", json!(1e-300), "frequency: "),
    ] {
        let mut json = file();
        *json.pointer_mut(pointer).unwrap() = value;
        let message = Schedule::from_json(&json.to_string()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{pointer}: {message}");
    }
    for key in ["format", "version", "head_dim", "rotary_dim", "rope_theta", "buckets"] {
        let mut json = file();
        json.as_object_mut().unwrap().remove(key);
        let message = Schedule::from_json(&json.to_string()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{key}: missing")), "{key}: {message}");
    }
    let mut json = file();
    json["buckets"][1]["attention_scale"] = json!(1.0);
    let message = Schedule::from_json(&json.to_string()).unwrap_err().to_string();
    assert!(message.starts_with("buckets[1].attention_scale: an unknown field"), "{message}");
    assert!(matches!(Schedule::from_json("{"), Err(ConfigError::Syntax { .. })));
}

proptest! {
    #[test]
    fn a_schedule_survives_its_file(
        pairs in 1usize..40,
        theta in 2.0f64..1e7,
        sizes in prop::collection::vec(1u64..1 << 20, 1..6),
        seed in prop::collection::vec(1e-3f64..1e3, 6 * 40),
        gain in 0.5f64..2.0,
        first_tokens in 0u64..300,
    ) {
        let mut length = 0;
        let buckets = sizes.iter().enumerate().map(|(i, size)| {
            length += size;
            Bucket {
                max_length: length,
                factors: seed[i * pairs..][..pairs].to_vec(),
                attention_factor: gain + i as f64,
                first_tokens,
            }
        });
        let geometry = Geometry::new(2 * pairs + 2, 2 * pairs, theta, 4096).unwrap();
        let schedule = Schedule::new(geometry, buckets.collect()).unwrap();
        let text = serde_json::to_string_pretty(&schedule.to_json()).unwrap();
        prop_assert_eq!(Schedule::from_json(&text).unwrap(), schedule);
    }
}
