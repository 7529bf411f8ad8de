//! Models that can't be loaded: one line names the file and what is wrong with it, before anything is written.

use std::fs;
use std::path::PathBuf;

use candle_core::quantized::gguf_file;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::command::{Flags, data};
use super::tiny_gguf::Gguf;

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

/// A copy of the bundled model to be spoilt.
struct Model(TempDir);

/// A weight of a safetensors file.
struct Weight {
    name: String,
    dtype: String,
    shape: Value,
    bytes: Vec<u8>,
}

impl Model {
    fn copy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(data("models/tiny").join(file), dir.path().join(file)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// What the program says of the model, without the path that it begins with, which is that of `file`.
    fn error(&self, file: &str) -> String {
        let error = Flags::quick().with("--model", self.0.path()).refused();
        let path = if file.is_empty() { self.0.path().to_owned() } else { self.path(file) };
        let prefix = format!("{}: ", path.display());
        error.strip_prefix(&prefix).unwrap_or_else(|| panic!("no path: {error}")).to_owned()
    }

    /// With a field of config.json set.
    fn with_config(self, key: &str, value: Value) -> Self {
        let text = fs::read_to_string(self.path("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[key] = value;
        fs::write(self.path("config.json"), config.to_string()).unwrap();
        self
    }

    /// With the contents of a file replaced.
    fn with_file(self, file: &str, contents: &[u8]) -> Self {
        fs::write(self.path(file), contents).unwrap();
        self
    }

    /// With one weight changed, in a safetensors file written by hand.
    fn with_weight(self, change: impl Fn(&mut Weight)) -> Self {
        let file = fs::read(self.path("model.safetensors")).unwrap();
        let (length, rest) = file.split_at(8);
        let (header, bytes) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
        let (mut new_header, mut new_bytes) = (Map::new(), Vec::new());
        for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let mut weight = Weight {
                dtype: entry["dtype"].as_str().unwrap().to_owned(),
                shape: entry["shape"].clone(),
                bytes: bytes[at(0)..at(1)].to_vec(),
                name,
            };
            if weight.name == WEIGHT {
                change(&mut weight);
            }
            let start = new_bytes.len();
            new_bytes.extend(weight.bytes);
            let entry = json!({
                "dtype": weight.dtype, "shape": weight.shape, "data_offsets": [start, new_bytes.len()]
            });
            new_header.insert(weight.name, entry);
        }
        let header = Value::Object(new_header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes(), &new_bytes].concat();
        self.with_file("model.safetensors", &file)
    }
}

/// What the program says of a model file with these contents, without its path.
fn file_error(contents: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, contents).unwrap();
    let error = Flags::quick().with("--model", &path).refused();
    let prefix = format!("{}: ", path.display());
    error.strip_prefix(&prefix).unwrap_or_else(|| panic!("no path: {error}")).to_owned()
}

#[test]
fn a_copy_written_by_hand_without_a_change_is_accepted() {
    let model = Model::copy().with_weight(|_| {});
    let flags = Flags::quick().with("--length", "300").with("--evaluations", "3");
    assert_eq!(flags.clone().with("--model", model.0.path()).finish().results(), flags.finish().results());
}

#[test]
fn another_architecture_is_refused() {
    let mamba = Model::copy().with_config("architectures", json!(["MambaForCausalLM"]));
    let expected = "architectures: \"MambaForCausalLM\" is not supported; expected \"LlamaForCausalLM\"";
    assert_eq!(mamba.error("config.json"), expected);
    for (key, value) in [
        ("attention_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("num_key_value_heads", json!(3)),
        ("hidden_size", json!("wide")),
        ("head_dim", json!(1u64 << 40)),
        ("max_position_embeddings", json!(0)),
        ("vocab_size", json!(-1)),
    ] {
        let error = Model::copy().with_config(key, value).error("config.json");
        // Without another field, the original length is that of max_position_embeddings.
        assert!(error.split(':').next().unwrap().ends_with(key), "{key}: {error}");
    }
    let scaling = Model::copy().with_config("rope_scaling", json!({"rope_type": "spiral"}));
    assert!(scaling.error("config.json").starts_with("rope_scaling.rope_type: \"spiral\""));
}

#[test]
fn a_context_of_any_size_is_compared_with_the_length() {
    let flags = |model: &Model| Flags::default().with("--model", model.0.path());
    let huge = Model::copy().with_config("max_position_embeddings", json!(1u64 << 62));
    let error = flags(&huge).with("--length", "512").refused();
    assert!(
        error.starts_with("--length: 512 is not valid; expected more than the model's own context"),
        "{error}"
    );
    // 8 times the context is more than a number holds.
    let error = flags(&huge).refused();
    assert!(error.contains("--length"), "{error}");
}

#[test]
fn files_that_are_missing_or_no_json_are_named() {
    for (file, named) in
        [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json"), ("model.safetensors", "")]
    {
        let model = Model::copy();
        fs::remove_file(model.path(file)).unwrap();
        let expected =
            if named.is_empty() { "no *.safetensors file in it" } else { "can't be read: No such file" };
        let error = model.error(named);
        assert!(error.starts_with(expected), "{error}");
    }
    let error = Model::copy().with_file("config.json", b"{\n\"a\":\n").error("config.json");
    assert!(error.starts_with("not valid JSON: "), "{error}");
    let error = Model::copy().with_file("tokenizer.json", b"{}").error("tokenizer.json");
    assert!(error.starts_with("not a valid tokenizer: "), "{error}");
}

#[test]
fn a_weight_of_another_dtype_is_named() {
    for (dtype, numerator, denominator) in [
        ("I64", 8, 1),
        ("I32", 4, 1),
        ("U8", 1, 1),
        ("F8_E4M3", 1, 1),
        ("BOOL", 1, 1),
        ("U16", 2, 1),
        ("F4", 1, 2),
    ] {
        let model = Model::copy().with_weight(|weight| {
            // As many bytes as the dtype takes; 2 an element before.
            let elements = weight.bytes.len() / 2;
            weight.dtype = dtype.to_owned();
            weight.bytes = vec![0; elements * numerator / denominator];
        });
        let error = model.error("model.safetensors");
        let expected = format!("dtype {dtype} is not supported; expected F32, F16, BF16 or F64");
        assert_eq!(error, format!("{WEIGHT}: {expected}"));
    }
    let unknown = Model::copy().with_weight(|weight| weight.dtype = "Q4".to_owned());
    let error = unknown.error("model.safetensors");
    assert!(error.starts_with("not a valid safetensors file: ") && error.contains("Q4"), "{error}");
}

#[test]
fn a_missing_weight_is_named() {
    let renamed = Model::copy().with_weight(|weight| weight.name.push_str(".old"));
    assert_eq!(renamed.error(""), format!("{WEIGHT}: no such weight in its *.safetensors files"));
    let deeper = Model::copy().with_config("num_hidden_layers", json!(5));
    assert!(deeper.error("").starts_with("model.layers.4."), "{}", deeper.error(""));
    let untied = Model::copy().with_config("tie_word_embeddings", json!(false));
    assert!(untied.error("").starts_with("lm_head.weight: "), "{}", untied.error(""));
}

#[test]
fn a_weight_of_another_shape_is_named() {
    let turned = Model::copy().with_weight(|weight| weight.shape = json!([256, 688]));
    let expected =
        format!("{WEIGHT}: shape [256, 688] is not valid; expected [688, 256] by the configuration");
    assert_eq!(turned.error("model.safetensors"), expected);
    let flat = Model::copy().with_weight(|weight| weight.shape = json!([256 * 688]));
    assert!(flat.error("model.safetensors").starts_with(&format!("{WEIGHT}: shape [176128] is not valid")));
    let wider = Model::copy().with_config("hidden_size", json!(4_294_967_295u64));
    let error = wider.error("model.safetensors");
    assert!(error.starts_with("model.embed_tokens.weight: shape [256, 256] is not valid"), "{error}");
}

#[test]
fn a_corrupt_safetensors_file_is_named() {
    let whole = fs::read(data("models/tiny/model.safetensors")).unwrap();
    let mut longer_header = whole.clone();
    longer_header[..8].fill(0x7f);
    let mut no_text = whole.clone();
    no_text[8..40].fill(0xff);
    let cut = &whole[..whole.len() - 1];
    for contents in [&b""[..], &whole[..5], &whole[..1000], cut, &longer_header, &no_text] {
        let error = Model::copy().with_file("model.safetensors", contents).error("model.safetensors");
        assert!(error.starts_with("not a valid safetensors file: "), "{error}");
    }
}

#[test]
fn a_corrupt_gguf_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(Gguf::tiny().write(dir.path())).unwrap();
    let mut many_entries = whole.clone();
    many_entries[16..24].fill(0x7f);
    for contents in [&b""[..], b"GGUF", b"not a model of any kind", &whole[..2000], &many_entries] {
        let error = file_error(contents);
        assert!(error.starts_with("not a valid GGUF file: "), "{error}");
    }
    let cut = file_error(&whole[..whole.len() / 2]);
    assert!(cut.contains(".weight: ") && cut.contains("remaining in file"), "{cut}");
}

#[test]
fn a_gguf_file_of_another_architecture_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mamba = gguf_file::Value::String("mamba".to_owned());
    let path = Gguf::tiny().with("general.architecture", mamba).write(dir.path());
    let expected = "general.architecture: \"mamba\" is not supported; expected \"llama\"";
    assert_eq!(file_error(&fs::read(path).unwrap()), expected);
}
