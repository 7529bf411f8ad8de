//! Where a model comes from: its files, and an adapter's.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::adapter::{Adapted, LoraAdapter};
use super::{Llama, Opened, Place, open};
use crate::files;

/// A model on disk, with an adapter or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// A Hugging Face directory, or a GGUF file.
    pub model: PathBuf,
    /// The folder of an adapter in PEFT's format.
    pub adapter: Option<PathBuf>,
}

impl From<&Path> for Origin {
    fn from(model: &Path) -> Self {
        Self { model: model.to_owned(), adapter: None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model.display())?;
        match &self.adapter {
            Some(adapter) => write!(f, " with {}", adapter.display()),
            None => Ok(()),
        }
    }
}

impl Origin {
    /// Loads the model and its tokenizer, to run at `place`. The adapter is part of the weights.
    ///
    /// # Errors
    /// A file that is missing or not valid, or an adapter of another model.
    pub fn load_at(&self, place: &Place) -> Result<(Llama, Tokenizer)> {
        let Opened { config, mut weights, tokenizer, .. } = open(&self.model)?;
        if let Some(adapter) = &self.adapter {
            weights = Box::new(Adapted::new(weights, &config, LoraAdapter::open(adapter)?)?);
        }
        let model = Llama::new(config, &*weights, place);
        // A directory's errors name the file in it.
        let is_file = self.model.is_file();
        let model =
            if is_file { model.with_context(|| format!("{}", self.model.display()))? } else { model? };
        Ok((model, tokenizer))
    }

    /// Adds the contents of its files to a hash.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn add_to(&self, hash: &mut Sha256) -> Result<()> {
        for path in model_files(&self.model)? {
            files::add_to(hash, &path)?;
        }
        if let Some(adapter) = &self.adapter {
            for name in [super::adapter::CONFIG, super::adapter::WEIGHTS] {
                hash.update(name);
                files::add_to(hash, &adapter.join(name))?;
            }
        }
        Ok(())
    }
}

/// The files that make up a model, in a fixed order.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let entries = std::fs::read_dir(model).with_context(|| format!("{}: can't be read", model.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name == "config.json" || name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    Ok(paths)
}
