//! A Llama for evaluation: Hugging Face directories and GGUF files, float32 on the CPU, any rotary scaling.

mod attention;
mod config;
mod gguf;
mod llama;
mod tokenizer;
mod weights;

pub use config::LlamaConfig;
pub use llama::Llama;

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokenizers::Tokenizer;

/// Loads the model and the tokenizer at `path`: a Hugging Face directory (`config.json`, `*.safetensors`,
/// `tokenizer.json`) or a GGUF file.
pub fn load(path: &Path) -> Result<(Llama, Tokenizer)> {
    if path.is_dir() {
        let config = LlamaConfig::from_dir(path)?;
        let weights = weights::SafeTensors::open(path)?;
        let tokenizer = tokenizer::from_dir(path)?;
        Ok((Llama::new(config, &weights)?, tokenizer))
    } else if path.is_file() {
        let file = gguf::GgufFile::open(path)?;
        let context = || format!("{}", path.display());
        let tokenizer = tokenizer::from_gguf(&file).with_context(context)?;
        let config = file.config().with_context(context)?;
        Ok((Llama::new(config, &file).with_context(context)?, tokenizer))
    } else {
        bail!("{}: no such file or directory; expected a model directory or a GGUF file", path.display())
    }
}
