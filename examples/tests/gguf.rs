//! GGUF files: the bundled model written as one gives the same losses, and the metadata the same configurations as a
//! `config.json`. A real, quantised file is tested in `smollm2.rs`.

mod tiny_gguf;

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};
use longrope::scaling::{RopeConfig, SetChoice};
use longrope_drivers::model;
use serde_json::json;
use tiny_gguf::Gguf;

const PROMPT: &str = "CHAPTER 108. Ahab and the Carpenter. The deck, first night watch; 1,851 blows.";

fn tiny() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/tiny"))
}

/// The losses of the prompt, tokenised and run by the model at `path`.
fn losses(path: &Path) -> Vec<f64> {
    let (model, tokenizer) = model::load(path).unwrap_or_else(|error| panic!("{error:#}"));
    let tokens = tokenizer.encode(PROMPT, false).unwrap();
    assert_eq!(tokens.len(), PROMPT.len());
    let sets = model.config().rope.factor_sets(256).unwrap();
    model.losses(tokens.get_ids(), &sets, SetChoice::Short).unwrap()
}

/// The rotary embedding that the metadata of a file describes.
fn rope(gguf: &Gguf) -> RopeConfig {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) = model::load(&gguf.write(dir.path())).unwrap_or_else(|error| panic!("{error:#}"));
    model.config().rope.clone()
}

/// The rotary embedding of a `config.json` with this block, for a context of 2048 tokens after one of 256.
fn from_json(block: serde_json::Value) -> RopeConfig {
    let config = json!({
        "model_type": "llama", "max_position_embeddings": 2048, "original_max_position_embeddings": 256,
        "head_dim": 64, "rope_theta": 1e4, "rope_scaling": block
    });
    RopeConfig::from_hf(&config).unwrap()
}

/// The bundled model with a context extended to 2048 tokens.
fn extended() -> Gguf {
    Gguf::tiny()
        .with("llama.context_length", Value::U32(2048))
        .with("llama.rope.scaling.original_context_length", Value::U32(256))
}

/// The file with another tensor.
fn with_tensor(mut gguf: Gguf, name: &str, tensor: Tensor) -> Gguf {
    gguf.tensors.insert(name.to_owned(), tensor);
    gguf
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn factors(list: &[f64]) -> Tensor {
    Tensor::from_vec(list.iter().map(|&x| x as f32).collect(), list.len(), &Device::Cpu).unwrap()
}

/// 32 factors of f32 precision, no two alike.
fn rising(last: f64) -> Vec<f64> {
    (0..32).map(|i| f64::from((1.0 + (last - 1.0) * f64::from(i) / 31.0) as f32)).collect()
}

/// What loading the file says.
fn error(gguf: &Gguf) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf.write(dir.path());
    let message = match model::load(&path) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => format!("{error:#}"),
    };
    let prefix = format!("{}: ", path.display());
    message.strip_prefix(&prefix).unwrap_or_else(|| panic!("no path: {message}")).to_owned()
}

#[test]
fn pairs_that_are_neighbours_give_the_losses_of_pairs_in_halves() {
    let expected = losses(tiny());
    let dir = tempfile::tempdir().unwrap();
    let found = losses(&Gguf::tiny().write(dir.path()));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        // Dot products over a head are summed in another order.
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
}

#[test]
fn an_output_matrix_of_its_own_is_used() {
    let zero = Tensor::zeros((256, 256), candle_core::DType::F32, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for loss in losses(&with_tensor(Gguf::tiny(), "output.weight", zero).write(dir.path())) {
        assert!((loss - 256f64.ln()).abs() < 1e-12, "{loss}");
    }
}

#[test]
fn no_scaling_is_that_of_the_config_json() {
    let (model, _) = model::load(tiny()).unwrap();
    assert_eq!(rope(&Gguf::tiny()), model.config().rope);
    assert_eq!(rope(&Gguf::tiny().with("llama.rope.scaling.type", text("none"))), model.config().rope);
}

#[test]
fn linear_and_yarn_are_those_of_a_config_json() {
    let scaled = |kind: &str| extended().with("llama.rope.scaling.type", text(kind));
    let factor = |gguf: Gguf| gguf.with("llama.rope.scaling.factor", Value::F32(8.0));
    let linear = rope(&factor(Gguf::tiny().with("llama.rope.scaling.type", text("linear"))));
    assert_eq!(linear.frequencies(300), from_json(json!({"type": "linear", "factor": 8.0})).frequencies(300));
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256});
    assert_eq!(rope(&factor(scaled("yarn"))), from_json(yarn.clone()));
    // A missing factor is the quotient of the lengths.
    assert_eq!(rope(&scaled("yarn")), from_json(yarn));
}

#[test]
fn factor_tensors_are_the_longrope_of_a_config_json() {
    let (short, long) = (rising(1.25), rising(9.5));
    let gguf = with_tensor(extended(), "rope_factors_short.weight", factors(&short));
    let gguf = with_tensor(gguf, "rope_factors_long.weight", factors(&long));
    let block = json!({"rope_type": "longrope", "short_factor": short, "long_factor": long});
    assert_eq!(rope(&gguf), from_json(block.clone()));
    let mut named = block;
    named["attention_factor"] = json!(1.5);
    assert_eq!(rope(&gguf.with("llama.rope.scaling.attn_factor", Value::F32(1.5))), from_json(named));
}

#[test]
fn the_divisors_of_llama_3_divide_at_every_length() {
    let divisors = rising(8.0);
    let found = rope(&with_tensor(extended(), "rope_freqs.weight", factors(&divisors)));
    let plain = found.geometry().frequencies();
    for length in [100, 256, 257, 2048] {
        let frequencies = found.frequencies(length);
        for ((frequency, plain), divisor) in frequencies.iter().zip(&plain).zip(&divisors) {
            assert!((frequency * divisor / plain - 1.0).abs() < 1e-12, "{length}: {frequency}");
        }
    }
    assert_eq!(found.attention_factor(), 1.0);
}

#[test]
fn what_is_not_supported_is_named_with_the_path() {
    let said = |key: &str, value: Value| error(&Gguf::tiny().with(key, value));
    for (key, value, expected) in [
        ("general.architecture", text("mamba"), "\"mamba\" is not supported; expected \"llama\""),
        ("llama.rope.scaling.type", text("dynamic"), "\"dynamic\" is not supported"),
        ("llama.rope.scaling.factor", Value::U32(8), "not a floating-point number"),
        ("tokenizer.ggml.model", text("llama"), "\"llama\" is not supported; expected \"gpt2\""),
        ("tokenizer.ggml.pre", text("qwen2"), "\"qwen2\" is not supported"),
        ("tokenizer.ggml.tokens", Value::Array(vec![Value::U8(1)]), "not a list of strings"),
        ("tokenizer.ggml.merges", Value::Array(vec![text("one")]), "\"one\" is not a pair"),
        ("llama.block_count", Value::I32(-1), "not a whole number"),
        ("llama.block_count", text("four"), "not a whole number"),
        ("llama.attention.head_count", Value::U32(0), "0 is not valid"),
    ] {
        let message = said(key, value);
        assert!(message.starts_with(&format!("{key}: ")) && message.contains(expected), "{key}: {message}");
    }
    let mut file = Gguf::tiny();
    file.metadata.remove("llama.context_length");
    assert_eq!(error(&file), "llama.context_length: missing");
}

#[test]
fn weights_that_are_missing_or_of_another_shape_are_named_with_the_path() {
    let mut missing = Gguf::tiny();
    missing.tensors.remove("blk.2.ffn_up.weight");
    assert!(error(&missing).starts_with("blk.2.ffn_up.weight: "), "{}", error(&missing));
    let narrow = with_tensor(Gguf::tiny(), "blk.2.ffn_up.weight", factors(&[1.0; 256]));
    let expected = "shape [256] is not valid; expected [688, 256] by the configuration";
    assert_eq!(error(&narrow), format!("blk.2.ffn_up.weight: {expected}"));
    let few = with_tensor(extended(), "rope_factors_long.weight", factors(&[1.0; 7]));
    let few = with_tensor(few, "rope_factors_short.weight", factors(&[1.0; 32]));
    assert!(error(&few).starts_with("rope_factors_long.weight: shape [7] is not valid"), "{}", error(&few));
}

#[test]
fn sizes_beyond_memory_are_refused_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = Gguf::tiny().write(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // The two dimensions follow the name and their number.
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4;
    bytes[at..at + 16].fill(0x7f);
    std::fs::write(&path, bytes).unwrap();
    let message = format!("{:#}", model::load(&path).err().expect("a refusal"));
    let expected = format!("{}: token_embd.weight: shape [9187201950435737471, ", path.display());
    assert!(message.starts_with(&expected), "{message}");
}
