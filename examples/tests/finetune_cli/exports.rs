//! What a run leaves is what another begins with: adapters, models, factors of a search, GGUF files.

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as GgufValue;
use longrope::scaling::hf::Generation;
use longrope::scaling::{Bucket, Schedule, SetChoice};
use longrope::search::Candidate;
use longrope_drivers::model::{LlamaConfig, Origin, Place, TrainedOn};
use longrope_drivers::{methods, model};
use serde_json::Value;

use super::command::{Flags, losses, names};
use super::paths::repository;
use super::tiny_gguf::Gguf;

#[test]
fn an_adapter_and_the_merged_model_go_on_with_the_same_loss() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let (before, after) = losses(&Flags::quick().finish_in(&first));
    assert!(after < before, "{before} before, {after} after");
    assert_eq!(
        names(&first.join("adapter")),
        ["adapter_config.json", "adapter_model.safetensors", "trained_on.json"]
    );
    let config: Value =
        serde_json::from_slice(&fs::read(first.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&Value::from(4), &Value::from(8.0)));
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "k_proj", "v_proj", "o_proj"]));
    let second = Flags::quick().with("--adapter", first.join("adapter"));
    assert_eq!(losses(&second.finish_in(&dir.path().join("second"))).0, after);
    let third = Flags::quick().with("--model", first.join("model"));
    assert_eq!(losses(&third.finish_in(&dir.path().join("third"))).0, after);
    // At another length, where both take YaRN's factors.
    let [longer, other] =
        [&second, &third].map(|flags| flags.clone().with("--length", "320").with("--steps", "1"));
    let before = |flags: Flags, name: &str| losses(&flags.finish_in(&dir.path().join(name))).0;
    assert_eq!(before(longer, "longer"), before(other, "other"));
    // No step: the adapter is merged, and that is all.
    let merged = dir.path().join("merged");
    assert_eq!(losses(&second.clone().with("--steps", "0").finish_in(&merged)), (after, after));
    let weights = |dir: &Path| fs::read(dir.join("model/model.safetensors")).unwrap();
    assert!(weights(&merged) == weights(&first));
    assert!(!merged.join("loss.svg").exists());
    let error = second.with("--lora", "5").refused();
    assert!(error.ends_with("adapter_config.json: r: 4 is not valid; expected 5, --lora"), "{error}");
}

#[test]
fn an_adapter_of_a_gguf_model_is_measured_as_the_merged_model_is() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::tiny().write(dir.path());
    let out = dir.path().join("out");
    // Queries and keys among them, whose rows the file has in another order than the adapter.
    Flags::quick().with("--model", &gguf).with("--lora-targets", "q,k,up").finish_in(&out);
    let adapter = Some(out.join("adapter"));
    let losses = |origin: Origin| {
        let (model, tokenizer) = origin.load_at(&Place::cpu()).unwrap();
        let tokens = tokenizer.encode("The whale, and the sea.", false).unwrap().get_ids().to_vec();
        let sets = model.config().rope.factor_sets(64).unwrap();
        model.losses(&tokens, &sets, SetChoice::Short).unwrap()
    };
    let adapted = losses(Origin { model: gguf.clone(), adapter: adapter.clone() });
    let merged = losses(Origin::from(&*out.join("model")));
    let plain = losses(Origin::from(&*gguf));
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // Pairs in another order are sums in another order.
    assert!(difference(&adapted, &merged) < 1e-4, "{adapted:?} {merged:?}");
    assert!(difference(&adapted, &plain) > 1e-2, "{adapted:?} {plain:?}");
    // What it was trained on, and then on what else.
    let texts = |adapter: &Path| TrainedOn::of(adapter).unwrap().unwrap().texts;
    assert_eq!(texts(&out.join("adapter")), ["moby-dick-search"]);
    let flags = Flags::quick().with("--model", &gguf).with("--lora-targets", "q,k,up").with("--steps", "1");
    let own = dir.path().join("own.txt");
    fs::write(&own, "Call me Ishmael. ".repeat(200)).unwrap();
    let flags = flags.with("--adapter", out.join("adapter")).with("--text", &own);
    let second = dir.path().join("second");
    flags.finish_in(&second);
    assert_eq!(texts(&second.join("adapter")), ["moby-dick-search", own.to_str().unwrap()]);
}

#[test]
fn factors_of_a_search_and_of_a_schedule_are_trained_with_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, _) = model::load(&repository("data/models/tiny")).unwrap();
    let base = &tiny.config().rope;
    let factors: Vec<f64> = (0..32).map(|i| 1.0 + f64::from(i) / 32.0).collect();
    let candidate = Candidate { factors: factors.clone(), first_tokens: 0, attention_factor: Some(1.1) };
    let rope = methods::longrope(base, 512, &candidate).unwrap();
    let rope_file = dir.path().join("rope_scaling.json");
    fs::write(&rope_file, rope.to_hf(Generation::RopeScaling).to_string()).unwrap();
    let bucket = |max_length, scale: f64| Bucket {
        max_length,
        factors: factors.iter().map(|factor| factor * scale).collect(),
        attention_factor: 1.1,
        first_tokens: 0,
    };
    let buckets = vec![bucket(128, 1.0), bucket(300, 1.25), bucket(512, 1.5)];
    let schedule = Schedule::new(*base.geometry(), buckets).unwrap();
    let schedule_file = dir.path().join("schedule.json");
    fs::write(&schedule_file, schedule.to_json().to_string()).unwrap();

    let flags = Flags::quick().with("--length", "300").with("--steps", "1");
    let run = |name: &str, file: &Path| {
        let out = dir.path().join(name);
        let report = flags.clone().with("--rope-scaling", file).finish_in(&out);
        (out.join("model"), losses(&report).0)
    };
    let (with_rope, rope_loss) = run("rope", &rope_file);
    let (with_schedule, schedule_loss) = run("schedule", &schedule_file);
    assert_ne!(rope_loss, schedule_loss);
    let exported = |path| model::load(path).unwrap().0.config().rope.clone();
    assert_eq!(exported(&with_rope), rope);
    assert_eq!(exported(&with_schedule), schedule.to_config(512).unwrap());
    let kept =
        Schedule::from_json(&fs::read_to_string(with_schedule.join("schedule.json")).unwrap()).unwrap();
    assert_eq!(kept, schedule);
    let error = flags.with("--rope-scaling", &rope_file).with("--length", "600").refused();
    assert!(error.ends_with("factors for up to 512 tokens are not valid; expected at least 600, --length"));
}

#[test]
fn a_gguf_model_becomes_a_hugging_face_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = Gguf::tiny().with("tokenizer.ggml.bos_token_id", GgufValue::U32(7)).write(dir.path());
    let flags = Flags::quick().with("--steps", "2");
    let from_gguf = losses(&flags.clone().with("--model", &path).finish_in(&dir.path().join("gguf")));
    let from_directory = losses(&flags.finish_in(&dir.path().join("directory")));
    assert_eq!(from_gguf, from_directory);
    let [gguf, directory] = ["gguf", "directory"].map(|name| dir.path().join(name).join("model"));
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&gguf), expected);
    let ((one, one_tokenizer), (other, other_tokenizer)) =
        (model::load(&gguf).unwrap(), model::load(&directory).unwrap());
    let config: Value = serde_json::from_slice(&fs::read(gguf.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&Value::from(7), &Value::Null));
    // GGUF holds the epsilon in f32.
    assert_eq!(one.config().norm_epsilon as f32, other.config().norm_epsilon as f32);
    let same_but_for_it = LlamaConfig { norm_epsilon: 1e-5, ..one.config().clone() };
    assert_eq!(&same_but_for_it, other.config());
    let [tokens, same] = [&one_tokenizer, &other_tokenizer].map(|tokenizer| {
        tokenizer.encode("Call me Ishmael. Ünder 7 seas", false).unwrap().get_ids().to_vec()
    });
    assert_eq!(tokens, same);
    let sets = one.config().rope.factor_sets(64).unwrap();
    let losses = |model: &model::Llama| model.losses(&tokens, &sets, SetChoice::Short).unwrap();
    assert_eq!(losses(&one), losses(&other));
}
