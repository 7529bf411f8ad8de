//! A Llama for evaluation: Hugging Face directories and GGUF files, any rotary scaling, on the CPU in f32 or on a GPU in 16
//! bits.

pub(crate) mod adapter;
mod attention;
mod config;
mod gguf;
mod llama;
pub mod ops;
mod origin;
mod place;
mod projection;
mod timing;
mod tokenizer;
mod weights;

pub use adapter::{LoraAdapter, TrainedOn};
pub use attention::AttentionKind;
pub(crate) use attention::COMPOSED_ROWS;
pub use config::LlamaConfig;
pub use llama::Llama;
pub use origin::Origin;
pub use place::{DeviceKind, Place, WeightType};
pub use projection::Projection;
pub(crate) use projection::half_split;
pub use timing::{Part, Split};
pub use weights::Weights;

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
    Origin::from(path).load_at(place)
}

/// A model on disk: its weights are there to be read.
pub struct Opened {
    /// Its shape and rotary embedding.
    pub config: LlamaConfig,
    /// Its weights by name.
    pub weights: Box<dyn Weights>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The token that begins a document, if it has one.
    pub start_token: Option<u32>,
    /// The token that ends a document, if it has one.
    pub end_token: Option<u32>,
}

/// Opens the model at `path`: a Hugging Face directory, or a GGUF file.
pub fn open(path: &Path) -> Result<Opened> {
    if path.is_dir() {
        let config = LlamaConfig::from_dir(path)?;
        let weights = Box::new(weights::SafeTensors::open(path)?);
        let tokenizer = tokenizer::from_dir(path)?;
        let [start_token, end_token] = config::special_tokens(path)?;
        Ok(Opened { config, weights, tokenizer, start_token, end_token })
    } else if path.is_file() {
        let file = gguf::GgufFile::open(path)?;
        let context = || format!("{}", path.display());
        let tokenizer = tokenizer::from_gguf(&file).with_context(context)?;
        let config = file.config().with_context(context)?;
        let [start_token, end_token] = file.special_tokens();
        Ok(Opened { config, weights: Box::new(file), tokenizer, start_token, end_token })
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
