//! Each cell of the table, against the perplexity under the configuration that a user of the method would write.

use longrope::scaling::{RopeConfig, SetChoice};
use longrope_drivers::{model, text};
use serde_json::{Value, json};

use super::command::{Flags, data};

/// The bundled model's rotary embedding with this block, for 512 tokens.
fn configuration(base: f64, block: Value) -> RopeConfig {
    let config = json!({
        "model_type": "llama", "head_dim": 64, "max_position_embeddings": 512, "rope_theta": base,
        "rope_scaling": block
    });
    RopeConfig::from_hf(&config).unwrap()
}

#[test]
fn every_cell_is_the_perplexity_under_the_configuration_of_its_method() {
    let run = Flags::quick().with("--eval-windows", "2").finish();
    let found = serde_json::from_str(&run.files["rope_scaling.json"]).unwrap();
    let methods = [
        ("none", configuration(1e4, Value::Null)),
        ("PI", configuration(1e4, json!({"rope_type": "linear", "factor": 2.0}))),
        // A larger base, so that the slowest pair turns half as fast.
        ("NTK-aware", configuration(1e4 * 2f64.powf(64.0 / 62.0), Value::Null)),
        ("YaRN", configuration(1e4, json!({"rope_type": "yarn", "original_max_position_embeddings": 256}))),
        ("LongRoPE", RopeConfig::from_hf(&found).unwrap()),
    ];
    let (model, tokenizer) = model::load(&data("models/tiny")).unwrap();
    let tokens = text::read_tokens(&data("texts/moby-dick-eval.txt"), &tokenizer).unwrap();

    let mut cells = run.table().into_iter();
    for length in [256, 512] {
        // The first and the last tokens of the text.
        let windows = [&tokens[..length], &tokens[tokens.len() - length..]];
        for (method, rope) in &methods {
            let sets = rope.factor_sets(length as u64).unwrap();
            let losses = windows.map(|window| {
                let losses = model.losses(window, &sets, SetChoice::ByLength(length as u64)).unwrap();
                losses.iter().sum::<f64>() / losses.len() as f64
            });
            let expected = ((losses[0] + losses[1]) / 2.0).exp();
            let (found_length, found_method, cell) = cells.next().unwrap();
            assert_eq!((found_length, found_method.as_str()), (length, *method));
            assert!((cell / expected - 1.0).abs() < 1e-4, "{method} at {length}: {cell} is not {expected}");
        }
    }
    assert_eq!(cells.next(), None);
}
