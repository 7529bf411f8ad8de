//! Formats that hold everything give it back; of the others, what they can't hold is an error unless it is let go.

use longrope::scaling::{LongRope, RopeConfig, Scaling, Yarn, factors_from_csv};
use serde_json::Value;

use super::command::{Dir, config, geometry, json, longrope, tiny};

#[test]
fn both_spellings_and_a_csv_give_the_factors_back() {
    let rope = config(longrope());
    let dir = Dir::new().with("a.json", &json(&rope));
    let said = dir.run("--from a.json --to hf-new --output new.json");
    assert_eq!(
        said,
        "read a Hugging Face configuration, a.json: 32 pairs, 256 to 2048 tokens, attention factor 1.1726\n\
         wrote new.json\n"
    );
    dir.run("--from new.json --to hf-old --output old.json");
    dir.run("--from old.json --to csv --output a.csv");
    dir.run(&format!("--from 2048=a.csv --model {} --to hf-new --output merged.json", tiny()));
    for name in ["new.json", "old.json", "merged.json"] {
        assert_eq!(dir.config(name), rope, "{name}");
    }
    let json = |name: &str| serde_json::from_str::<Value>(&dir.read(name)).unwrap();
    assert!(
        json("new.json").get("rope_parameters").is_some() && json("new.json").get("rope_scaling").is_none()
    );
    assert!(
        json("old.json").get("rope_scaling").is_some() && json("old.json").get("rope_parameters").is_none()
    );
    assert_eq!(factors_from_csv(&dir.read("a.csv"), 32).unwrap(), [longrope().long_factor]);
}

#[test]
fn a_models_own_fields_stay_beside_the_factors() {
    let dir = Dir::new().with("a.json", &json(&config(longrope())));
    let own: Value =
        serde_json::from_str(&std::fs::read_to_string(tiny() + "/config.json").unwrap()).unwrap();
    for (generation, block, other) in
        [("hf-new", "rope_parameters", "rope_scaling"), ("hf-old", "rope_scaling", "rope_parameters")]
    {
        dir.run(&format!("--from a.json --to {generation} --model {} --output out.json", tiny()));
        let merged: Value = serde_json::from_str(&dir.read("out.json")).unwrap();
        assert!(merged.get(block).is_some() && merged.get(other).is_none(), "{generation}");
        assert_eq!(merged["max_position_embeddings"], 2048);
        for (key, value) in own.as_object().unwrap() {
            if !key.contains("rope")
                && !key.contains("max_position_embeddings")
                && key != "partial_rotary_factor"
            {
                assert_eq!(&merged[key], value, "{generation}: {key}");
            }
        }
        assert_eq!(dir.config("out.json"), config(longrope()));
    }
}

#[test]
fn first_tokens_are_an_error_unless_they_are_dropped() {
    let rope = config(LongRope { first_tokens: 16, ..longrope() });
    let dir = Dir::new().with("a.json", &json(&rope));
    for to in ["hf-new", "hf-old", "csv"] {
        let found = dir.refused(&format!("--from a.json --to {to} --output out"));
        let expected = "can't hold the first 16 tokens, which keep the plain frequencies; --drop first-tokens leaves that out";
        assert!(found.ends_with(expected), "{to}: {found}");
        let said = dir.run(&format!("--from a.json --to {to} --drop first-tokens --output out"));
        assert!(
            said.contains("\ndropped: the first 16 tokens, which keep the plain frequencies\n"),
            "{said}"
        );
        if to != "csv" {
            assert_eq!(dir.config("out"), config(longrope()));
            assert!(!dir.read("out").contains("n_hat"));
        }
        std::fs::remove_file(dir.path("out")).unwrap();
    }
}

#[test]
fn a_csv_holds_one_set_and_the_attention_factor_of_the_lengths() {
    let rope = config(LongRope { short_factor: vec![1.25; 32], attention_factor: Some(1.5), ..longrope() });
    let dir = Dir::new().with("a.json", &json(&rope));
    let found = dir.refused("--from a.json --to csv --output a.csv");
    assert!(found.contains("the factors up to 256 tokens") && found.contains("--drop short-set"), "{found}");
    let found = dir.refused("--from a.json --to csv --drop short-set --output a.csv");
    assert!(
        found.contains("the attention factor 1.5 ") && found.contains("--drop attention-factor"),
        "{found}"
    );
    let said = dir.run("--from a.json --to csv --drop short-set,attention-factor --output a.csv");
    assert_eq!(said.matches("dropped: ").count(), 2, "{said}");
    assert_eq!(factors_from_csv(&dir.read("a.csv"), 32).unwrap(), [longrope().long_factor]);
    dir.run("--from a.json --to csv --drop long-set --drop attention-factor --output a.csv");
    assert_eq!(factors_from_csv(&dir.read("a.csv"), 32).unwrap(), [vec![1.25; 32]]);
    std::fs::remove_file(dir.path("a.csv")).unwrap();
    let found = dir.refused("--from a.json --to csv --drop long-set,short-set --output a.csv");
    assert_eq!(found, "--drop: short-set and long-set leave nothing");
}

#[test]
fn another_method_is_written_as_factors_where_the_format_has_no_other() {
    let yarn = RopeConfig::new(geometry(), 2048, Scaling::Yarn(Yarn::new(8.0))).unwrap();
    let dir = Dir::new().with("a.json", &json(&yarn));
    dir.run("--from a.json --to hf-new --output new.json");
    assert_eq!(dir.config("new.json"), yarn);
    // YaRN interpolates short sequences too, and has an attention factor of its own.
    let said = dir.run("--from a.json --to csv --drop short-set,attention-factor --output a.csv");
    assert_eq!(said.matches("dropped: ").count(), 2, "{said}");
    assert_eq!(factors_from_csv(&dir.read("a.csv"), 32).unwrap(), [yarn.divisors(2048)]);
    let dynamic = RopeConfig::new(geometry(), 256, Scaling::DynamicNtk { factor: 8.0 }).unwrap();
    let dir = Dir::new().with("a.json", &json(&dynamic));
    let found = dir.refused("--from a.json --to csv --output a.csv");
    assert!(found.starts_with("rope_scaling.rope_type: dynamic is not valid"), "{found}");
}
