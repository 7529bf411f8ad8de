//! What a run leaves for others: a model in Hugging Face's format, and an adapter in PEFT's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::DType;
use longrope::scaling::hf::Generation;
use serde_json::{Value, json};

use super::llama::{Lora, TrainableLlama};
use super::parameters::check_value;
use super::safetensors;
use crate::convert::{self, Loss, Source};
use crate::files;
use crate::model::adapter::{self, PEFT};
use crate::model::{LlamaConfig, LoraAdapter, Opened, TrainedOn};

/// Files beside a model's weights that its tokenizer and its defaults of generation are in.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes the model to `dir`: weights in the type that it computes in, with what LoRA changed; the configuration with the factors
/// of `source`; the tokenizer. `path` is where it came from. Gives a line for everything that the configuration can't hold.
pub fn merged(
    model: &TrainableLlama,
    path: &Path,
    opened: &Opened,
    source: &Source,
    dir: &Path,
) -> Result<Vec<String>> {
    fs::create_dir_all(dir).with_context(|| format!("{}: can't be made", dir.display()))?;
    let dtype = model.place().dtype;
    let mut tensors = Vec::new();
    for (name, tensor) in model.merged()? {
        tensors.push((name, tensor.to_dtype(dtype)?));
    }
    let own = match path.is_dir() {
        true => files::read_text(&path.join("config.json"))?,
        false => configuration(model.config(), opened).to_string(),
    };
    // Their lengths are in the schedule, which is kept beside.
    let written = convert::hugging_face(
        source,
        Generation::RopeScaling,
        Some(&own),
        &[Loss::OtherLengths, Loss::FirstTokens],
    )?;
    let mut config = written.contents;
    if let Value::Object(fields) = &mut config {
        fields.remove("dtype");
        fields.insert("torch_dtype".to_owned(), json!(type_name(dtype)));
    }
    files::replace(&dir.join("model.safetensors"), |file| {
        safetensors::write(file, &BTreeMap::from([("format", "pt".to_owned())]), &tensors)
    })?;
    files::write_atomically(&dir.join("config.json"), &pretty(&config)?)?;
    if let Source::Schedule(schedule) = source {
        files::write_atomically(&dir.join("schedule.json"), &pretty(&schedule.to_json())?)?;
    }
    match path.is_dir() {
        true => copy_tokenizer(path, dir)?,
        false => {
            let text = opened.tokenizer.to_string(true).map_err(|error| anyhow!("the tokenizer: {error}"))?;
            files::write_atomically(&dir.join("tokenizer.json"), &text)?;
            let class = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
            files::write_atomically(&dir.join("tokenizer_config.json"), &pretty(&class)?)?;
        }
    }
    Ok(written.dropped)
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in COPIED {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_file() {
            files::replace(&to, |file| {
                let mut source = fs::File::open(&from).with_context(|| format!("{}", from.display()))?;
                std::io::copy(&mut source, file)?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The `config.json` of a model that came without one, but for its rotary embedding.
fn configuration(config: &LlamaConfig, opened: &Opened) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_dim(),
        "hidden_act": "silu",
        "max_position_embeddings": config.rope.geometry().original_length(),
        "rope_theta": config.rope.geometry().theta(),
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": opened.start_token,
        "eos_token_id": opened.end_token,
    })
}

fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

/// Writes the adapter to `dir`, which [`read_adapter`] and PEFT read, and what it was `trained_on` where that is known.
pub fn adapter(
    model: &TrainableLlama,
    lora: &Lora,
    base: &Path,
    trained_on: Option<&TrainedOn>,
    dir: &Path,
) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{}: can't be made", dir.display()))?;
    let tensors: Vec<_> = model
        .parameters()
        .iter()
        .map(|parameter| (format!("{PEFT}{}", parameter.name()), parameter.value()))
        .collect();
    let modules: Vec<&str> = lora.projections.iter().filter_map(|p| p.name().split('.').nth(1)).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": modules,
    });
    files::replace(&dir.join(adapter::WEIGHTS), |file| {
        safetensors::write(file, &BTreeMap::from([("format", "pt".to_owned())]), &tensors)
    })?;
    if let Some(trained_on) = trained_on {
        files::write_atomically(&dir.join(adapter::TRAINED_ON), &pretty(&json!(trained_on))?)?;
    }
    files::write_atomically(&dir.join(adapter::CONFIG), &pretty(&config)?)
}

/// Gives the model an adapter, which must be of the same matrices, rank and scale.
///
/// # Errors
/// An adapter of another kind, with the file's path.
pub fn read_adapter(model: &TrainableLlama, lora: &Lora, adapter: &LoraAdapter) -> Result<()> {
    let found = [("r", adapter.rank() as f64), ("lora_alpha", adapter.alpha())];
    let expected = [("--lora", lora.rank as f64), ("--alpha", lora.alpha)];
    for ((key, found), (flag, expected)) in found.into_iter().zip(expected) {
        let path = adapter.config_path();
        ensure!(
            found == expected,
            "{}: {key}: {found} is not valid; expected {expected}, {flag}",
            path.display()
        );
    }
    let path = adapter.weights_path();
    let expected = model.parameters().len();
    ensure!(
        adapter.len() == expected,
        "{}: {} tensors are not valid; expected {expected}, those of --lora-targets",
        path.display(),
        adapter.len()
    );
    let mut values = Vec::new();
    for parameter in model.parameters() {
        let value = adapter.get(parameter.name())?;
        check_value(parameter, value).with_context(|| format!("{}", path.display()))?;
        values.push(value);
    }
    for (parameter, value) in model.parameters().iter().zip(values) {
        parameter.set(&value.to_device(&model.place().device)?)?;
    }
    Ok(())
}

fn pretty(json: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(json)? + "\n")
}
