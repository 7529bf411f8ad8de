//! The shape of a Llama, from a Hugging Face `config.json`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use longrope::descriptor::Pairing;
use longrope::scaling::RopeConfig;
use serde_json::Value;

use crate::files;

/// The shape of a Llama and its rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub query_heads: usize,
    /// Key and value heads.
    pub key_heads: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// The epsilon of the RMS norms.
    pub norm_epsilon: f64,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// Which dimensions of a head form a pair.
    pub pairing: Pairing,
    /// The rotary embedding, with the scaling that the checkpoint asks for.
    pub rope: RopeConfig,
}

impl LlamaConfig {
    /// Reads `config.json` of a Hugging Face directory.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = files::read_text(&path)?;
        Self::from_json(&text).with_context(|| format!("{}", path.display()))
    }

    /// Reads the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let rope = RopeConfig::from_hf_json(text)?;
        let json: Value = serde_json::from_str(text)?;
        check_architecture(&json)?;
        let required = |key: &str| {
            let value = json.get(key).and_then(Value::as_u64);
            value.ok_or_else(|| anyhow!("{key}: missing or not a whole number")).map(|value| value as usize)
        };
        let query_heads = required("num_attention_heads")?;
        let config = Self {
            hidden_size: required("hidden_size")?,
            intermediate_size: required("intermediate_size")?,
            layers: required("num_hidden_layers")?,
            query_heads,
            key_heads: match json.get("num_key_value_heads") {
                None | Some(Value::Null) => query_heads,
                Some(_) => required("num_key_value_heads")?,
            },
            vocab_size: required("vocab_size")?,
            norm_epsilon: json.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            tied_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            pairing: Pairing::HalfSplit,
            rope,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that the sizes belong together.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.query_heads),
            ("num_key_value_heads", self.key_heads),
            ("vocab_size", self.vocab_size),
        ] {
            ensure!((1..1 << 32).contains(&value), "{name}: {value} is not valid; expected 1 to 2^32");
        }
        ensure!(
            self.query_heads.is_multiple_of(self.key_heads),
            "num_key_value_heads: {} is not valid; expected a divisor of num_attention_heads ({})",
            self.key_heads,
            self.query_heads
        );
        Ok(())
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.rope.geometry().head_dim()
    }

    /// The length the model was trained on, in tokens.
    pub fn original_length(&self) -> usize {
        self.rope.geometry().original_length() as usize
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        let attention = 2 * self.hidden_size * self.head_dim() * (self.query_heads + self.key_heads);
        let block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size;
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        self.layers * block + embeddings * self.vocab_size * self.hidden_size + self.hidden_size
    }
}

/// The tokens that begin and end a document, by the `config.json` of a directory. Where several end one, the first of them.
pub(super) fn special_tokens(dir: &Path) -> Result<[Option<u32>; 2]> {
    let json: Value = serde_json::from_str(&files::read_text(&dir.join("config.json"))?)?;
    Ok(["bos_token_id", "eos_token_id"].map(|key| {
        let value = json.get(key)?;
        let first = value.as_array().map_or(Some(value), |list| list.first())?;
        first.as_u64().and_then(|token| u32::try_from(token).ok())
    }))
}

fn check_architecture(json: &Value) -> Result<()> {
    let architecture = json.pointer("/architectures/0").and_then(Value::as_str);
    let model_type = json.get("model_type").and_then(Value::as_str);
    match (architecture, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => {}
        (None, None) => bail!("architectures: missing; expected [\"LlamaForCausalLM\"]"),
        (found, model_type) => bail!(
            "architectures: {:?} is not supported; expected \"LlamaForCausalLM\"",
            found.or(model_type).unwrap_or_default()
        ),
    }
    for key in ["attention_bias", "mlp_bias"] {
        ensure!(json.get(key) != Some(&Value::Bool(true)), "{key}: true is not supported; expected false");
    }
    let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    ensure!(activation == "silu", "hidden_act: {activation:?} is not supported; expected \"silu\"");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(change: impl Fn(&mut Value)) -> String {
        let mut json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
            "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": true
        });
        change(&mut json);
        json.to_string()
    }

    #[test]
    fn a_llama_configuration_is_read() {
        let config = LlamaConfig::from_json(&json(|_| {})).unwrap();
        assert_eq!((config.head_dim(), config.original_length(), config.key_heads), (16, 128, 2));
        assert_eq!(config.parameters(), 2 * (2 * 64 * 16 * 6 + 3 * 64 * 128 + 128) + 256 * 64 + 64);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message =
            |change: &dyn Fn(&mut Value)| format!("{:#}", LlamaConfig::from_json(&json(change)).unwrap_err());
        let wrong = message(&|json| json["architectures"] = serde_json::json!(["MambaForCausalLM"]));
        assert_eq!(
            wrong,
            "architectures: \"MambaForCausalLM\" is not supported; expected \"LlamaForCausalLM\""
        );
        assert!(message(&|json| json["attention_bias"] = true.into()).starts_with("attention_bias"));
        assert!(message(&|json| json["hidden_act"] = "gelu".into()).starts_with("hidden_act"));
        assert!(message(&|json| json["num_key_value_heads"] = 3.into()).starts_with("num_key_value_heads"));
        assert!(message(&|json| json["vocab_size"] = Value::Null).starts_with("vocab_size"));
    }
}
