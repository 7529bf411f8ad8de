//! The flags that the drivers share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::model::{DeviceKind, Origin, Place, WeightType};

/// The model that the repository ships.
const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/tiny");

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Model: a Hugging Face directory or a GGUF file [default: the byte-level Llama of the repository]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Where the model runs [default: a GPU where this build can use one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceKind>,
    /// Type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<WeightType>,
}

impl ModelArguments {
    /// The model, with an adapter or without.
    pub fn origin(&self, adapter: Option<&Path>) -> Origin {
        let model = self.model.clone().unwrap_or_else(|| PathBuf::from(BUNDLED));
        Origin { model, adapter: adapter.map(Path::to_owned) }
    }

    /// Where it runs.
    ///
    /// # Errors
    /// A device that is not there, or a type that it can't compute in.
    pub fn place(&self) -> Result<Place> {
        Place::choose(self.device, self.dtype)
    }
}
