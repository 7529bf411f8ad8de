//! A Llama for evaluation: Hugging Face directories and GGUF files, any rotary scaling, on the CPU in f32 or on a GPU in 16
//! bits.

mod attention;
mod config;
mod gguf;
mod llama;
pub mod ops;
mod place;
mod timing;
mod tokenizer;
mod weights;

pub use attention::AttentionKind;
pub(crate) use attention::COMPOSED_ROWS;
pub use config::LlamaConfig;
pub use llama::Llama;
pub use place::{DeviceKind, Place, WeightType};
pub use timing::{Part, Split};

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokenizers::Tokenizer;

/// Loads the model and the tokenizer at `path` on the CPU: a Hugging Face directory (`config.json`, `*.safetensors`,
/// `tokenizer.json`) or a GGUF file.
pub fn load(path: &Path) -> Result<(Llama, Tokenizer)> {
    load_at(path, &Place::cpu())
}

/// As [`load`], to run at `place`.
pub fn load_at(path: &Path, place: &Place) -> Result<(Llama, Tokenizer)> {
    if path.is_dir() {
        let config = LlamaConfig::from_dir(path)?;
        let weights = weights::SafeTensors::open(path)?;
        let tokenizer = tokenizer::from_dir(path)?;
        Ok((Llama::new(config, &weights, place)?, tokenizer))
    } else if path.is_file() {
        let file = gguf::GgufFile::open(path)?;
        let context = || format!("{}", path.display());
        let tokenizer = tokenizer::from_gguf(&file).with_context(context)?;
        let config = file.config().with_context(context)?;
        Ok((Llama::new(config, &file, place).with_context(context)?, tokenizer))
    } else {
        bail!("{}: no such file or directory; expected a model directory or a GGUF file", path.display())
    }
}

/// The dequantised weights' origin for tables, as in `Q4_1`, where the file holds quantised ones.
pub fn quantisation(path: &Path) -> Result<Option<String>> {
    match path.is_file() {
        true => Ok(gguf::GgufFile::open(path)?.quantisation()),
        false => Ok(None),
    }
}
