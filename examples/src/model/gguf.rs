//! GGUF files of Llama models: dequantised weights, the tokenizer's metadata, and the configuration they imply.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use longrope::descriptor::Pairing;

use super::config::LlamaConfig;
use super::weights::{Weights, check_shape};
use crate::gguf::{Header, rope_config};

/// An open GGUF file.
pub struct GgufFile {
    content: Content,
    reader: Mutex<BufReader<File>>,
    header: Header,
    file: Mutex<File>,
}

impl GgufFile {
    /// Reads the header of the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("{}: can't be read", path.display()))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .with_context(|| format!("{}: not a valid GGUF file", path.display()))?;
        let (header, file) = Header::open(path)?;
        Ok(Self { content, reader: Mutex::new(reader), header, file: Mutex::new(file) })
    }

    /// A metadata value, if present.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A metadata string.
    pub(super) fn text(&self, key: &str) -> Result<&str> {
        match self.value(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => bail!("{key}: not a string"),
            None => bail!("{key}: missing"),
        }
    }

    /// A metadata list.
    pub(super) fn list(&self, key: &str) -> Result<&[Value]> {
        match self.value(key) {
            Some(Value::Array(list)) => Ok(list),
            Some(_) => bail!("{key}: not a list"),
            None => bail!("{key}: missing"),
        }
    }

    fn whole(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = match value {
            Value::I32(number) => u64::try_from(*number).ok(),
            Value::I64(number) => u64::try_from(*number).ok(),
            other => other.to_u64().ok(),
        };
        number.map(|number| Some(number as usize)).ok_or_else(|| anyhow!("{key}: not a whole number from 0"))
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.whole(key)?.ok_or_else(|| anyhow!("{key}: missing"))
    }

    /// The tokens that begin and end a document.
    pub(super) fn special_tokens(&self) -> [Option<u32>; 2] {
        ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"]
            .map(|key| self.value(key)?.to_u32().ok())
    }

    /// The type that most of the weights were quantised to, as in `Q4_1`; none if most were not.
    pub fn quantisation(&self) -> Option<String> {
        let mut elements = std::collections::BTreeMap::<String, usize>::new();
        for info in self.content.tensor_infos.values() {
            *elements.entry(format!("{:?}", info.ggml_dtype)).or_default() += info.shape.elem_count();
        }
        let (name, _) = elements.into_iter().max_by_key(|(_, count)| *count)?;
        name.starts_with('Q').then_some(name)
    }

    /// The shape and rotary embedding of the model.
    pub fn config(&self) -> Result<LlamaConfig> {
        let architecture = self.text("general.architecture")?;
        ensure!(
            architecture == "llama",
            "general.architecture: {architecture:?} is not supported; expected \"llama\""
        );
        let query_heads = self.required("llama.attention.head_count")?;
        let hidden_size = self.required("llama.embedding_length")?;
        ensure!(query_heads > 0, "llama.attention.head_count: 0 is not valid; expected at least 1");
        let rope = {
            let mut file = self.file.lock().map_err(|_| anyhow!("the file is poisoned"))?;
            rope_config(&self.header, &mut file)?
        };
        let config = LlamaConfig {
            hidden_size,
            intermediate_size: self.required("llama.feed_forward_length")?,
            layers: self.required("llama.block_count")?,
            query_heads,
            key_heads: self.whole("llama.attention.head_count_kv")?.unwrap_or(query_heads),
            vocab_size: match self.whole("llama.vocab_size")? {
                Some(size) => size,
                None => self.list("tokenizer.ggml.tokens")?.len(),
            },
            norm_epsilon: self.header.number("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            tied_embeddings: !self.content.tensor_infos.contains_key("output.weight"),
            // The converter permutes the query and key rows of Llama models so that pairs are neighbours.
            pairing: Pairing::Interleaved,
            rope,
        };
        config.check()?;
        Ok(config)
    }
}

impl Weights for GgufFile {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = gguf_name(name);
        let context = || name.clone();
        if let Some(info) = self.content.tensor_infos.get(&name) {
            // Before reading: sizes that are wrong may be too large for memory.
            check_shape(info.shape.dims(), shape).with_context(context)?;
        }
        let mut reader = self.reader.lock().map_err(|_| anyhow!("the reader is poisoned"))?;
        let tensor = self.content.tensor(&mut *reader, &name, &Device::Cpu).with_context(context)?;
        tensor.dequantize(&Device::Cpu).with_context(context)
    }
}

/// GGUF's name of a weight.
fn gguf_name(name: &str) -> String {
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => other,
        }
        .to_owned();
    };
    let rest = match rest.strip_suffix(".weight").unwrap_or(rest) {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{rest}.weight")
}
