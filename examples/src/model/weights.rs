//! Weights by name, as f32.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

/// Where a model's weights come from. Names are Hugging Face's, as in `model.layers.0.mlp.up_proj.weight`.
pub trait Weights {
    /// The weight `name` in f32, checked to have this shape.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
}

/// Checks the shape of a weight.
pub(super) fn check_shape(found: &[usize], shape: &[usize]) -> Result<()> {
    ensure!(found == shape, "shape {found:?} is not valid; expected {shape:?} by the configuration");
    Ok(())
}

/// The `*.safetensors` files of a Hugging Face directory, mapped into memory.
pub struct SafeTensors {
    files: Vec<(PathBuf, MmapedSafetensors)>,
    index: HashMap<String, usize>,
    dir: PathBuf,
}

impl SafeTensors {
    /// Maps all `*.safetensors` files of `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let entries = fs::read_dir(dir).with_context(|| format!("{}: can't be read", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        paths.sort();
        ensure!(!paths.is_empty(), "{}: no *.safetensors file in it", dir.display());
        let (mut files, mut index) = (Vec::new(), HashMap::new());
        for path in paths {
            // SAFETY: the mapping is read only, and the files are the user's own; one that changes while the program
            // runs gives other weights, as with any reader.
            let file = unsafe { MmapedSafetensors::new(&path) }
                .with_context(|| format!("{}: not a valid safetensors file", path.display()))?;
            index.extend(file.tensors().into_iter().map(|(name, _)| (name, files.len())));
            files.push((path, file));
        }
        Ok(Self { files, index, dir: dir.to_owned() })
    }
}

impl Weights for SafeTensors {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let found = self.index.get(name).ok_or_else(|| {
            anyhow!("{}: {name}: no such weight in its *.safetensors files", self.dir.display())
        })?;
        let (path, file) = &self.files[*found];
        let context = || format!("{}: {name}", path.display());
        let view = file.get(name).with_context(context)?;
        check_shape(view.shape(), shape).with_context(context)?;
        // Asked of the file: candle widens some integers as it loads them.
        let dtype = view.dtype();
        ensure!(
            matches!(DType::try_from(dtype), Ok(DType::F32 | DType::F16 | DType::BF16 | DType::F64)),
            "{}: dtype {dtype:?} is not supported; expected F32, F16, BF16 or F64",
            context()
        );
        let tensor = file.load(name, &Device::Cpu).with_context(context)?;
        Ok(tensor.to_dtype(DType::F32)?)
    }
}
