//! What a run leaves for others: a model in Hugging Face's format, and an adapter in PEFT's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device};
use longrope::scaling::hf::Generation;
use serde_json::{Value, json};

use super::llama::{Lora, TrainableLlama};
use super::parameters::check_value;
use super::safetensors;
use crate::convert::{self, Loss, Source};
use crate::files;
use crate::model::{LlamaConfig, Opened};

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

const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// What PEFT puts before the name of a weight.
const PEFT: &str = "base_model.model.";

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

/// Writes the adapter to `dir`, which [`read_adapter`] and PEFT read.
pub fn adapter(model: &TrainableLlama, lora: &Lora, base: &Path, dir: &Path) -> Result<()> {
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
    files::replace(&dir.join(ADAPTER_WEIGHTS), |file| {
        safetensors::write(file, &BTreeMap::from([("format", "pt".to_owned())]), &tensors)
    })?;
    files::write_atomically(&dir.join(ADAPTER_CONFIG), &pretty(&config)?)
}

/// Gives the model the adapter in `dir`, which must be of the same matrices, rank and scale.
///
/// # Errors
/// A file that is missing or not valid, or an adapter of another kind, with its path.
pub fn read_adapter(model: &TrainableLlama, lora: &Lora, dir: &Path) -> Result<()> {
    let path = dir.join(ADAPTER_CONFIG);
    let shown = || format!("{}", path.display());
    let config: Value = serde_json::from_str(&files::read_text(&path)?)
        .with_context(|| format!("{}: not valid JSON", shown()))?;
    for (key, flag, expected) in [("r", "--lora", lora.rank as f64), ("lora_alpha", "--alpha", lora.alpha)] {
        let found = config.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        ensure!(found == expected, "{}: {key}: {found} is not valid; expected {expected}, {flag}", shown());
    }
    let path = dir.join(ADAPTER_WEIGHTS);
    let shown = || format!("{}", path.display());
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .with_context(|| format!("{}: can't be read", shown()))?;
    let expected = model.parameters().len();
    ensure!(
        tensors.len() == expected,
        "{}: {} tensors are not valid; expected {expected}, those of --lora-targets",
        shown(),
        tensors.len()
    );
    let mut values = Vec::new();
    for parameter in model.parameters() {
        let name = format!("{PEFT}{}", parameter.name());
        let value = tensors.get(&name).ok_or_else(|| anyhow!("{}: {name}: missing", shown()))?;
        let value = value.to_dtype(DType::F32)?;
        check_value(parameter, &value).with_context(shown)?;
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
