//! The Llama on candle computes what transformers computes: the bundled model, from a Hugging Face directory.

#[path = "shared/mod.rs"]
mod shared;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor, safetensors};
use longrope::scaling::{RopeConfig, SetChoice};
use longrope_drivers::model::{self, AttentionKind, Llama};
use longrope_drivers::text;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::{Distance, Golden, log_sum_exp, repository};
use tempfile::TempDir;

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| Golden::parse(include_str!("../../tests/data/tiny_logits.json")));

const TINY: &str = "data/models/tiny";

/// A copy of the bundled model's directory, with the fields of `fragment` put over those of its configuration.
fn directory_with(fragment: &Value) -> TempDir {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), repository(TINY));
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(tiny.join(file), dir.path().join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    if fragment.get("rope_parameters").is_some() {
        // The newer spelling holds the base itself.
        config.as_object_mut().unwrap().remove("rope_theta");
    }
    config.as_object_mut().unwrap().extend(fragment.as_object().unwrap().clone());
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn load(dir: &Path) -> Llama {
    model::load(dir).unwrap().0
}

/// All weights of the bundled model.
fn weights() -> HashMap<String, Tensor> {
    safetensors::load(repository(TINY).join("model.safetensors"), &Device::Cpu).unwrap()
}

/// The losses of the prompt without interpolation.
fn losses(model: &Llama) -> Vec<f64> {
    let sets = model.config().rope.factor_sets(256).unwrap();
    model.losses(&GOLDEN.prompt_ids, &sets, SetChoice::Short).unwrap()
}

#[test]
fn the_golden_file_is_of_the_bundled_weights() {
    let weights = fs::read(repository(TINY).join("model.safetensors")).unwrap();
    let digest: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, GOLDEN.model_sha256, "scripts/golden/tiny.py is to be run again");
}

#[test]
fn the_golden_file_covers_every_method_above_and_below_the_context() {
    let names: Vec<&str> = GOLDEN.cases.iter().map(|case| case.name.as_str()).collect();
    let expected = "none linear-8 dynamic-8 yarn-8 llama3-8 longrope-8 longrope-8-short-prompt";
    assert_eq!(names.join(" "), expected);
    assert!(GOLDEN.case("longrope-8").n_tokens > 256);
    assert!(GOLDEN.case("longrope-8-short-prompt").n_tokens <= 256);
}

#[test]
fn every_method_gives_the_logits_of_transformers() {
    for case in &GOLDEN.cases {
        let model = load(directory_with(&case.config).path());
        for (angles, distance) in GOLDEN.exact_and_parity(&model, case, &model.config().rope) {
            assert!(distance.is_allowed(), "{} {angles}: {distance:?}", case.name);
        }
    }
}

#[test]
fn the_comparison_notices_every_method_and_each_of_the_two_factor_sets() {
    let model = load(&repository(TINY));
    let plain = model.config().rope.factor_sets(2048).unwrap();
    let noticed = |distance: Distance| distance.logit > 100.0 * Distance::ALLOWED.logit;
    for case in GOLDEN.cases.iter().filter(|case| case.name != "none") {
        let distance = GOLDEN.distance(&model, case, &plain, SetChoice::Long);
        assert!(noticed(distance), "{} without interpolation: {distance:?}", case.name);
    }
    for (name, wrong) in [("longrope-8", SetChoice::Short), ("longrope-8-short-prompt", SetChoice::Long)] {
        let case = GOLDEN.case(name);
        let rope = longrope::scaling::RopeConfig::from_hf(&case.config).unwrap();
        let distance = GOLDEN.distance(&model, case, &rope.factor_sets(2048).unwrap(), wrong);
        assert!(noticed(distance), "{name} with {wrong:?}: {distance:?}");
    }
}

#[test]
fn a_token_of_the_bundled_tokenizer_is_a_byte() {
    let (_, tokenizer) = model::load(&repository(TINY)).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    assert_eq!(&tokens[..GOLDEN.prompt_ids.len()], GOLDEN.prompt_ids);
    let text = "naïve \u{1f600} 1849\r\n\t<|im_start|>";
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(tokenizer.encode(text, false).unwrap().get_ids(), bytes);
    assert_eq!(tokenizer.decode(&bytes, false).unwrap(), text);
}

#[test]
fn wider_weights_and_several_files_change_nothing() {
    let expected = losses(&load(&repository(TINY)));
    for dtype in [DType::F32, DType::F64] {
        let dir = directory_with(&json!({}));
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let (mut first, mut second) = (HashMap::new(), HashMap::new());
        for (i, (name, tensor)) in weights().into_iter().enumerate() {
            let half = if i % 2 == 0 { &mut first } else { &mut second };
            half.insert(name, tensor.to_dtype(dtype).unwrap());
        }
        safetensors::save(&first, dir.path().join("model-00001-of-00002.safetensors")).unwrap();
        safetensors::save(&second, dir.path().join("model-00002-of-00002.safetensors")).unwrap();
        assert_eq!(losses(&load(dir.path())), expected, "{dtype:?}");
    }
}

#[test]
fn an_output_matrix_of_its_own_is_used() {
    let expected = losses(&load(&repository(TINY)));
    let dir = directory_with(&json!({ "tie_word_embeddings": false }));
    let mut weights = weights();
    let embedding = weights["model.embed_tokens.weight"].clone();
    let with_output = |weights: &mut HashMap<String, Tensor>, output: Tensor| {
        weights.insert("lm_head.weight".to_owned(), output);
        safetensors::save(weights, dir.path().join("model.safetensors")).unwrap();
        load(dir.path())
    };
    let same = with_output(&mut weights, embedding.clone());
    assert_eq!(losses(&same), expected);
    assert_eq!(same.config().parameters(), load(&repository(TINY)).config().parameters() + 256 * 256);
    // Logits of zero: every token is as likely as any of the 256.
    let uniform = with_output(&mut weights, embedding.zeros_like().unwrap());
    for loss in losses(&uniform) {
        assert!((loss - 256f64.ln()).abs() < 1e-12, "{loss}");
    }
}

#[test]
fn a_loss_depends_on_no_later_token() {
    let model = load(&repository(TINY));
    let sets = model.config().rope.factor_sets(256).unwrap();
    let prompt = &GOLDEN.prompt_ids;
    let whole = model.losses(prompt, &sets, SetChoice::Short).unwrap();
    for n in [2, 3, 64, 255] {
        let part = model.losses(&prompt[..n], &sets, SetChoice::Short).unwrap();
        assert_eq!(part.len(), n - 1);
        for (found, expected) in part.iter().zip(&whole) {
            assert!((found - expected).abs() < 1e-4, "{n} tokens: {found}, of the whole {expected}");
        }
    }
}

#[test]
fn logits_made_in_pieces_give_the_losses_of_one_piece() {
    // More tokens than logits are made at a time.
    let (model, tokenizer) = model::load(&repository(TINY)).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let tokens = &tokens[..2 * Llama::LOGIT_ROWS + 3];
    let sets = model.config().rope.factor_sets(256).unwrap();
    let losses = model.losses(tokens, &sets, SetChoice::Long).unwrap();
    assert_eq!(losses.len(), tokens.len() - 1);
    let hidden = model.hidden(tokens, &sets, SetChoice::Long).unwrap();
    for i in [0, Llama::LOGIT_ROWS - 1, Llama::LOGIT_ROWS, 2 * Llama::LOGIT_ROWS, losses.len() - 1] {
        let row = model.logits(&hidden, i..i + 1).unwrap().remove(0);
        let expected = log_sum_exp(&row) - f64::from(row[tokens[i + 1] as usize]);
        assert!((losses[i] - expected).abs() < 1e-4, "token {i}: {} is not {expected}", losses[i]);
    }
}

#[test]
fn a_sequence_in_chunks_gives_the_losses_of_one_pass() {
    let (model, tokenizer) = model::load(&repository(TINY)).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let tokens = &tokens[..700];
    // The un-interpolated first tokens are those of the sequence, not of every chunk.
    let mut rope: Value = json!({
        "head_dim": model.config().head_dim(), "max_position_embeddings": 2048,
        "original_max_position_embeddings": 256, "rope_theta": 10000.0,
    });
    let factors: Vec<f64> = (0..model.config().head_dim() / 2).map(|i| 1.0 + i as f64 / 5.0).collect();
    rope["rope_scaling"] = json!({
        "rope_type": "longrope", "short_factor": vec![1.0; factors.len()], "long_factor": factors, "factor": 8.0,
        "n_hat": 150,
    });
    let sets = RopeConfig::from_hf_json(&rope.to_string()).unwrap().factor_sets(700).unwrap();
    let choice = SetChoice::ByLength(700);
    let whole = model.losses(tokens, &sets, choice).unwrap();
    let mut model = model;
    for kind in [AttentionKind::Fused, AttentionKind::Composed] {
        // A last chunk of one token, one that is full, chunks of one token; no chunk is as the sequence at least.
        for chunk in [233, 350, 1, 699, 700] {
            let tokens = if chunk == 1 { &tokens[..90] } else { tokens };
            model = model.with_attention(kind).with_chunk(chunk);
            let found = model.losses(tokens, &sets, choice).unwrap();
            assert_eq!(found.len(), tokens.len() - 1);
            for (i, (found, expected)) in found.iter().zip(&whole).enumerate() {
                assert!((found - expected).abs() < 1e-4, "{chunk}, token {i}: {found} is not {expected}");
            }
        }
    }
}
