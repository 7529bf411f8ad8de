//! Hugging Face configurations that are unusual, broken or hostile.

use longrope::scaling::hf::Generation;
use longrope::scaling::{Geometry, RopeConfig, Scaling};
use serde_json::{Value, json};

fn longrope() -> Value {
    json!({
        "head_dim": 8, "max_position_embeddings": 32768, "rope_theta": 10000.0,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 4.0, 8.0]
        }
    })
}

/// The message for the LongRoPE configuration with one field replaced (a JSON pointer) or removed (`None`).
fn message(pointer: &str, value: Option<Value>) -> String {
    let mut config = longrope();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(fields), Some(value)) => drop(fields.insert(key.to_owned(), value)),
        (Value::Object(fields), None) => drop(fields.remove(key)),
        (Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
    RopeConfig::from_hf(&config).unwrap_err().to_string()
}

#[test]
fn the_unchanged_configuration_is_good() {
    let config = RopeConfig::from_hf(&longrope()).unwrap();
    assert_eq!(config.geometry(), &Geometry::new(8, 8, 1e4, 4096).unwrap());
    assert!(matches!(config.scaling(), Scaling::LongRope(longrope) if longrope.factor == 8.0));
}

#[test]
fn a_bad_field_is_named_by_its_path() {
    for (pointer, value, expected) in [
        ("/rope_scaling/long_factor", Some(json!([1.0, 2.0])), "rope_scaling.long_factor: a list of 2"),
        ("/rope_scaling/long_factor/2", Some(json!(0)), "rope_scaling.long_factor[2]: 0 "),
        ("/rope_scaling/long_factor/2", Some(json!(-4.5)), "rope_scaling.long_factor[2]: -4.5 "),
        ("/rope_scaling/long_factor/2", Some(json!("4")), "rope_scaling.long_factor[2]: \"4\" "),
        ("/rope_scaling/long_factor/2", Some(Value::Null), "rope_scaling.long_factor[2]: null "),
        ("/rope_scaling/long_factor", Some(json!(8.0)), "rope_scaling.long_factor: 8.0 "),
        ("/rope_scaling/long_factor", None, "rope_scaling.long_factor: missing"),
        ("/rope_scaling/short_factor", None, "rope_scaling.short_factor: missing"),
        ("/rope_scaling/type", Some(json!("yarnn")), "rope_scaling.rope_type: \"yarnn\" "),
        ("/rope_scaling/type", Some(json!(7)), "rope_scaling.type: 7 "),
        ("/rope_scaling/attention_factor", Some(json!(true)), "rope_scaling.attention_factor: true "),
        ("/rope_scaling/n_hat", Some(json!(-1)), "rope_scaling.n_hat: -1 "),
        ("/rope_scaling/n_hat", Some(json!(1.5)), "rope_scaling.n_hat: 1.5 "),
        ("/rope_scaling", Some(json!([1])), "rope_scaling: a list "),
        ("/head_dim", None, "head_dim: missing"),
        ("/head_dim", Some(json!(7)), "rotary_dim: 7 "),
        ("/head_dim", Some(json!(1e18)), "head_dim: "),
        ("/max_position_embeddings", None, "max_position_embeddings: missing"),
        ("/max_position_embeddings", Some(json!("32768")), "max_position_embeddings: \"32768\" "),
        ("/original_max_position_embeddings", Some(json!(0)), "original_max_position_embeddings: 0 "),
        ("/original_max_position_embeddings", Some(json!(1)), "original_max_position_embeddings: 1 "),
        ("/rope_theta", Some(json!(0.5)), "rope_theta: 0.5 "),
        ("/partial_rotary_factor", Some(json!(1.5)), "partial_rotary_factor: 1.5 "),
        ("/partial_rotary_factor", Some(json!(0.5)), "rope_scaling.short_factor: a list of 4 "),
    ] {
        let found = message(pointer, value);
        assert!(found.starts_with(expected), "{pointer}: {found}");
    }
}

#[test]
fn missing_keys_of_every_type_are_named() {
    for (kind, field) in [
        ("linear", "factor"),
        ("dynamic", "factor"),
        ("llama3", "factor"),
        ("longrope", "short_factor"),
        ("su", "short_factor"),
    ] {
        let config = json!({
            "head_dim": 8, "max_position_embeddings": 100, "rope_parameters": {"rope_type": kind}
        });
        let found = RopeConfig::from_hf(&config).unwrap_err().to_string();
        assert!(found.starts_with(&format!("rope_parameters.{field}: missing")), "{kind}: {found}");
    }
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    let message = |text: &str| RopeConfig::from_hf_json(text).unwrap_err().to_string();
    assert!(message("").starts_with("not valid JSON"));
    assert!(message("{\"head_dim\": 8,").contains("line 1"));
    assert!(message("[]").starts_with("configuration: a list"));
    assert!(message("{\"head_dim\": NaN}").starts_with("not valid JSON"));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert!(message(&deep).contains("recursion limit"), "{}", message(&deep));
    let huge = format!("{{\"x\": \"{}\"}}", "x".repeat(17 << 20));
    assert!(message(&huge).starts_with("configuration: 17825801 bytes"), "{}", message(&huge));
    let overflow = "{\"head_dim\": 8, \"max_position_embeddings\": 10, \"rope_theta\": 1e999}";
    assert!(message(overflow).contains("number out of range"), "{}", message(overflow));
}

#[test]
fn one_entry_per_layer_type_is_read_by_its_name() {
    let config = json!({
        "head_dim": 8, "max_position_embeddings": 8192,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
        }
    });
    let message = RopeConfig::from_hf(&config).unwrap_err().to_string();
    assert!(message.contains("full_attention, sliding_attention"), "{message}");
    let full = RopeConfig::from_hf_layer(&config, "full_attention").unwrap();
    assert_eq!(full.scaling(), &Scaling::Linear { factor: 8.0 });
    assert_eq!(full.geometry().theta(), 1e6);
    let sliding = RopeConfig::from_hf_layer(&config, "sliding_attention").unwrap();
    assert_eq!(sliding.scaling(), &Scaling::Default);
    let message = RopeConfig::from_hf_layer(&config, "other").unwrap_err().to_string();
    assert!(message.starts_with("rope_parameters.other: missing"), "{message}");
}

#[test]
fn first_tokens_survive_a_round_trip_and_appear_only_if_there_are_some() {
    let mut json = longrope();
    assert!(
        !RopeConfig::from_hf(&json).unwrap().to_hf(Generation::RopeScaling).to_string().contains("n_hat")
    );
    json["rope_scaling"]["n_hat"] = json!(64);
    let config = RopeConfig::from_hf(&json).unwrap();
    assert_eq!(config.first_tokens(), 64);
    assert_eq!(RopeConfig::from_hf(&config.to_hf(Generation::RopeParameters)).unwrap(), config);
}

#[test]
fn partial_heads_survive_a_round_trip() {
    for head_dim in 2..=400 {
        for rotary_dim in (2..=head_dim).step_by(2) {
            let geometry = Geometry::new(head_dim, rotary_dim, 1e4, 4096).unwrap();
            let config = RopeConfig::new(geometry, 4096, Scaling::Linear { factor: 2.0 }).unwrap();
            for generation in [Generation::RopeScaling, Generation::RopeParameters] {
                assert_eq!(RopeConfig::from_hf(&config.to_hf(generation)).unwrap(), config);
            }
        }
    }
}

#[test]
fn ntk_aware_scaling_is_written_as_the_base_it_stands_for() {
    let geometry = Geometry::new(64, 64, 1e4, 4096).unwrap();
    let config = RopeConfig::new(geometry, 32_768, Scaling::NtkAware { factor: 8.0 }).unwrap();
    let read = RopeConfig::from_hf(&config.to_hf(Generation::RopeScaling)).unwrap();
    assert_eq!(read.scaling(), &Scaling::Default);
    for (a, b) in read.frequencies(1).iter().zip(config.frequencies(1)) {
        assert!((a / b - 1.0).abs() < 1e-14);
    }
}
