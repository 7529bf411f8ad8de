//! A hash of all that an evaluation depends on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{Samples, Task};
use crate::model::Place;
use crate::target::Purpose;

impl Task<'_> {
    /// A hash of all that an evaluation depends on: the model's files, the samples, the target, on a GPU the type.
    pub fn fingerprint(&self, model: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        add_model(&mut hash, model)?;
        match &self.samples {
            Samples::Text { windows, last } => {
                windows.iter().copied().flatten().for_each(|token| hash.update(token.to_le_bytes()));
                if let Some(last) = last {
                    hash.update(format!("the last {last}"));
                }
            }
            Samples::Passkeys(prompts) => {
                prompts
                    .iter()
                    .flat_map(|prompt| &prompt.tokens)
                    .for_each(|token| hash.update(token.to_le_bytes()));
                hash.update("passkeys");
            }
        }
        hash.update(self.target.length().to_le_bytes());
        if *self.target.purpose() != Purpose::Extend {
            hash.update(format!("{:?}", self.target.purpose()));
        }
        add_place(&mut hash, self.model.place());
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Adds the files of a model.
pub(crate) fn add_model(hash: &mut Sha256, model: &Path) -> Result<()> {
    for path in model_files(model)? {
        let mut file = fs::File::open(&path).with_context(|| format!("{}: can't be read", path.display()))?;
        std::io::copy(&mut file, &mut HashWriter(hash))?;
    }
    Ok(())
}

/// Adds a GPU's type: 16-bit weights give other values. The GPU's name does not matter.
pub(crate) fn add_place(hash: &mut Sha256, place: &Place) {
    if place.is_gpu() {
        hash.update(format!("{:?} on a GPU", place.dtype));
    }
}

/// Lets `std::io::copy` feed a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The files that make up a model, in a fixed order.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let entries = fs::read_dir(model).with_context(|| format!("{}: can't be read", model.display()))?;
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
