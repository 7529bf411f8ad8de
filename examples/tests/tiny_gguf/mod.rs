//! The bundled model as a GGUF file, written as llama.cpp's converter does.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, safetensors};

/// A GGUF file about to be written.
pub struct Gguf {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, Tensor>,
}

impl Gguf {
    /// The bundled model.
    pub fn tiny() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny");
        let weights = safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
        let tensors = weights
            .into_iter()
            .map(|(name, tensor)| {
                let tensor = tensor.to_dtype(DType::F32).unwrap();
                match name.split('.').nth_back(1) {
                    Some("q_proj") => (converted(&name), permuted(&tensor, 4)),
                    Some("k_proj") => (converted(&name), permuted(&tensor, 2)),
                    _ => (converted(&name), tensor),
                }
            })
            .collect();
        let text = |text: &str| Value::String(text.to_owned());
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.context_length", Value::U32(256)),
            ("llama.embedding_length", Value::U32(256)),
            ("llama.feed_forward_length", Value::U32(688)),
            ("llama.block_count", Value::U32(4)),
            ("llama.attention.head_count", Value::U32(4)),
            ("llama.attention.head_count_kv", Value::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(1e4)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.tokens", Value::Array((0..=255).map(byte_token).collect())),
            ("tokenizer.ggml.merges", Value::Array(vec![])),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { metadata, tensors }
    }

    /// The same with another metadata value.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    /// Writes `dir/model.gguf`, unquantised.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), QTensor::quantize(tensor, GgmlDType::F32).unwrap()))
            .collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let path = dir.join("model.gguf");
        let mut file = BufWriter::new(File::create(&path).unwrap());
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        path
    }
}

/// GGUF's name of a weight, by the table of llama.cpp's converter.
fn converted(name: &str) -> String {
    [
        ("model.layers.", "blk."),
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The rows of a query or key matrix in the order that makes the two dimensions of a pair neighbours.
fn permuted(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let split = weight.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

/// GPT-2's printable character for a byte: itself, or one from U+0100 on where it is a blank or a control character.
fn byte_token(byte: u8) -> Value {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let character = match printable(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
            char::from_u32(0x100 + before).unwrap()
        }
    };
    Value::String(character.to_string())
}
