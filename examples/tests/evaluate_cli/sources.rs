//! What `evaluate` measures with and on: adapters, texts that are one, and what follows a passage.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use longrope::scaling::SetChoice;
use longrope_drivers::choices::{ANSWER, questions};
use longrope_drivers::model::{Origin, Place, Projection};
use longrope_drivers::{corpus, methods, model, text};

use super::options::{cell, done, file};
use super::paths::repository;
use super::refused;

/// An adapter of the bundled model: a change of the values of its first layer.
fn adapter(dir: &Path) -> String {
    let (model, _) = model::load(&repository("data/models/tiny")).unwrap();
    let [rows, columns] = Projection::V.shape(model.config());
    let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.v_proj.lora_{part}.weight");
    let ones = |shape: &[usize]| Tensor::full(0.1f32, shape, &Device::Cpu).unwrap();
    let tensors = HashMap::from([(name("A"), ones(&[2, columns])), (name("B"), ones(&[rows, 2]))]);
    let folder = dir.join("adapter");
    fs::create_dir(&folder).unwrap();
    candle_core::safetensors::save(&tensors, folder.join("adapter_model.safetensors")).unwrap();
    let config = r#"{ "peft_type": "LORA", "r": 2, "lora_alpha": 4 }"#;
    fs::write(folder.join("adapter_config.json"), config).unwrap();
    folder.display().to_string()
}

#[test]
fn an_adapter_is_part_of_the_model_and_of_what_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let path = adapter(dir.path());
    let flags = ["--lengths", "300", "--windows", "1", "--text", "moby-dick-eval", "--methods", "PI"];
    done(dir.path(), &flags);
    let perplexity = || cell(&file(dir.path(), "perplexity.csv"), "300,PI,", 2);
    let plain = perplexity();
    let adapter_in_json = || {
        let json: serde_json::Value = serde_json::from_str(&file(dir.path(), "perplexity.json")).unwrap();
        assert_eq!(json["perplexities"][0]["perplexity"].as_f64().unwrap(), perplexity());
        json["adapter"].clone()
    };
    assert!(adapter_in_json().is_null());
    // What was measured without it is not taken for it.
    let (stdout, stderr) = done(dir.path(), &[&flags[..], &["--adapter", &path, "--resume"]].concat());
    assert!(
        stdout.starts_with(&format!("Perplexity of tiny, with the adapter {path}, on the CPU")),
        "{stdout}"
    );
    assert!(stderr.contains(&format!("tiny with {path}: 1 evaluations")), "{stderr}");
    assert_eq!(adapter_in_json(), path.as_str());
    let origin = Origin { model: repository("data/models/tiny"), adapter: Some(path.into()) };
    let (model, tokenizer) = origin.load_at(&Place::cpu()).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let linear = methods::baselines(&model.config().rope, 300).unwrap().swap_remove(1).rope;
    let sets = linear.factor_sets(300).unwrap();
    let losses = model.losses(&tokens[..300], &sets, SetChoice::ByLength(300)).unwrap();
    let expected = (losses.iter().sum::<f64>() / 299.0).exp();
    assert!((perplexity() / expected - 1.0).abs() < 1e-6, "{} is not {expected}", perplexity());
    assert!((plain / expected - 1.0).abs() > 1e-3);
    let missing = refused(&["--adapter", "nowhere"]);
    assert!(missing.starts_with("nowhere/adapter_config.json: can't be read"), "{missing}");
}

#[test]
fn joined_texts_hold_windows_longer_than_each() {
    let names = ["state-of-the-union-eval", "moby-dick-eval"];
    let (_, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let texts = names.map(|name| {
        let path = repository(&format!("data/texts/{name}.txt"));
        (name.to_owned(), text::read_tokens(&path, &tokenizer).unwrap())
    });
    let [first, second] = [texts[0].1.len(), texts[1].1.len()];
    // One token more than the longer one has.
    let longer = (first.max(second) + 1).to_string();
    let flags = ["--windows", "1", "--methods", "PI", "--text", names[0], "--text", names[1]];
    let apart = refused(&[&flags[..], &["--lengths", &longer]].concat());
    assert!(apart.contains("do not fit the texts without overlap"), "{apart}");
    let (name, joined) = corpus::joined(texts.into());
    assert_eq!((name.as_str(), joined.len()), ("state-of-the-union-eval + moby-dick-eval", first + second));
    let dir = tempfile::tempdir().unwrap();
    let (stdout, _) = done(dir.path(), &[&flags[..], &["--lengths", "300", "--join"]].concat());
    assert!(stdout.contains(&format!(", on {name} (1 window")), "{stdout}");
    let windows = file(dir.path(), "windows.csv");
    assert!(windows.lines().nth(1).unwrap().starts_with(&format!("300,PI,{name},0,")), "{windows}");
}

#[test]
fn questions_are_answered_by_the_lowest_loss() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--lengths", "128", "--target", "512", "--text", "moby-dick-eval", "--methods", "none,PI"];
    let (stdout, stderr) = done(dir.path(), &[&flags[..], &["--choices", "4"]].concat());
    assert!(stderr.contains("8 evaluations on the CPU"), "{stderr}");
    assert!(stdout.starts_with("What follows a passage of moby-dick-eval, by tiny"), "{stdout}");
    assert_eq!(file(dir.path(), "choices.txt"), stdout);
    let csv = file(dir.path(), "choices.csv");
    assert_eq!(csv.lines().count(), 1 + 2 * 4);
    let json: serde_json::Value = serde_json::from_str(&file(dir.path(), "choices.json")).unwrap();
    assert_eq!(json["choices"][1]["questions"][3]["losses"].as_array().unwrap().len(), 4);

    let (model, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let texts = [("moby-dick-eval".to_owned(), tokens)];
    let linear = methods::baselines(&model.config().rope, 512).unwrap().swap_remove(1).rope;
    let sets = linear.factor_sets(128).unwrap();
    for question in questions(&texts, 128, 4, 0).unwrap() {
        let row = format!("128,PI,moby-dick-eval,{},", question.window.start);
        let losses: Vec<f64> = question
            .options
            .iter()
            .map(|option| {
                let all = model.losses(option, &sets, SetChoice::ByLength(128)).unwrap();
                all[all.len() - ANSWER..].iter().sum::<f64>() / ANSWER as f64
            })
            .collect();
        for (option, loss) in losses.iter().enumerate() {
            assert!((cell(&csv, &row, 5 + option) - loss).abs() < 1e-6, "{row} {option}: {loss}");
        }
        let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(cell(&csv, &row, 4) == 1.0, losses[0] == lowest, "{row} {losses:?}");
    }
    assert!(refused(&["--choices", "0"]).ends_with("expected 1 to 4096"));
}
