//! A low-rank adapter (LoRA, Hu et al. 2021) in PEFT's format, and a model's weights with what it changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use longrope::descriptor::Pairing;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::LlamaConfig;
use super::projection::{Projection, interleaved};
use super::weights::{Weights, check_shape};
use crate::files;

/// The adapter's numbers.
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
/// Its rank and scale, as PEFT writes them.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// What it was trained on: no part of PEFT's format.
pub(crate) const TRAINED_ON: &str = "trained_on.json";
/// What PEFT puts before the name of a weight.
pub(crate) const PEFT: &str = "base_model.model.";

/// Keys of PEFT's configuration that mean a change of another kind, where they are not empty.
const NOT_OFFERED: [&str; 10] = [
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layers_pattern",
    "layer_replication",
    "trainable_token_indices",
];

/// The texts that an adapter was trained on, all runs together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedOn {
    /// Names in the manifest, or paths.
    pub texts: Vec<String>,
}

impl TrainedOn {
    /// What the adapter in `dir` says of it; `None` where it says nothing.
    ///
    /// # Errors
    /// A file that is not valid.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(TRAINED_ON);
        if !path.exists() {
            return Ok(None);
        }
        let found = serde_json::from_str(&files::read_text(&path)?)
            .with_context(|| format!("{}: not valid", path.display()))?;
        Ok(Some(found))
    }
}

/// An adapter on disk: `scale * up * down` for some matrices of a model.
pub struct LoraAdapter {
    dir: PathBuf,
    rank: usize,
    alpha: f64,
    /// In f32, by names as in `model.layers.0.self_attn.q_proj.lora_A.weight`.
    tensors: BTreeMap<String, Tensor>,
}

impl LoraAdapter {
    /// Reads the adapter in `dir`.
    ///
    /// # Errors
    /// A file that is missing or not valid, or a kind of change that is not offered, with the file's path.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let shown = || format!("{}", path.display());
        let config: Value = serde_json::from_str(&files::read_text(&path)?)
            .with_context(|| format!("{}: not valid JSON", shown()))?;
        let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        ensure!(kind == "LORA", "{}: peft_type: {kind:?} is not supported; expected \"LORA\"", shown());
        for key in NOT_OFFERED {
            let value = config.get(key).unwrap_or(&Value::Null);
            ensure!(
                is_empty(value),
                "{}: {key}: {value} is not supported; expected it not to be there",
                shown()
            );
        }
        let number = |key: &str| {
            let found = config.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
            ensure!(
                found > 0.0 && found.is_finite(),
                "{}: {key}: {found} is not valid; expected a positive number",
                shown()
            );
            Ok(found)
        };
        let (rank, alpha) = (number("r")?, number("lora_alpha")?);
        let path = dir.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .with_context(|| format!("{}: can't be read", path.display()))?;
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| {
                let Some(own) = name.strip_prefix(PEFT) else {
                    bail!("{}: {name} is not valid as a name; expected {PEFT}...", path.display())
                };
                Ok((own.to_owned(), tensor.to_dtype(DType::F32)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_owned(), rank: rank as usize, alpha, tensors })
    }

    /// Rows of `down`, columns of `up`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The scale, times the rank.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// How many tensors it has: two for each matrix that it changes.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The file with its configuration, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// The file with its numbers, for messages.
    pub fn weights_path(&self) -> PathBuf {
        self.dir.join(WEIGHTS)
    }

    /// One of its tensors, by a name as in `model.layers.0.self_attn.q_proj.lora_A.weight`.
    ///
    /// # Errors
    /// It is missing.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| anyhow!("{}: {PEFT}{name}: missing", self.weights_path().display()))
    }
}

/// Nothing, no, or without members.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(members) => members.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// The weights of a model with what an adapter changes.
pub(super) struct Adapted {
    weights: Box<dyn Weights>,
    adapter: LoraAdapter,
    /// Of what is changed, by the name of the weight.
    projections: BTreeMap<String, Projection>,
    /// Where pairs are neighbours, which they never are in an adapter.
    interleaved: bool,
    head_dim: usize,
}

impl Adapted {
    /// # Errors
    /// A tensor of the adapter that belongs to no matrix of the model, or to one whose other tensor is missing.
    pub(super) fn new(weights: Box<dyn Weights>, config: &LlamaConfig, adapter: LoraAdapter) -> Result<Self> {
        let interleaved = config.pairing == Pairing::Interleaved;
        if interleaved {
            let (found, all) = (config.rope.geometry().rotary_dim(), config.head_dim());
            ensure!(
                found == all,
                "rotary_dim: {found} is not supported in a GGUF file beside an adapter; expected {all}"
            );
        }
        let matrices = (0..config.layers).flat_map(|layer| {
            Projection::ALL
                .map(|projection| (format!("model.layers.{layer}.{}", projection.name()), projection))
        });
        let mut projections = BTreeMap::new();
        for (matrix, projection) in matrices {
            let [down, up] = ["lora_A", "lora_B"].map(|part| format!("{matrix}.{part}.weight"));
            if adapter.tensors.contains_key(&down) || adapter.tensors.contains_key(&up) {
                adapter.get(&down)?;
                adapter.get(&up)?;
                projections.insert(format!("{matrix}.weight"), projection);
            }
        }
        let known = |name: &&String| {
            let matrix = name.split_once(".lora_").map_or("", |(matrix, _)| matrix);
            !projections.contains_key(&format!("{matrix}.weight"))
        };
        if let Some(name) = adapter.tensors.keys().find(known) {
            bail!(
                "{}: {PEFT}{name} is not supported; expected changes of {} of the model's {} layers",
                adapter.weights_path().display(),
                Projection::ALL.map(Projection::name).join(", "),
                config.layers
            );
        }
        Ok(Self { weights, adapter, projections, interleaved, head_dim: config.head_dim() })
    }
}

impl Weights for Adapted {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let weight = self.weights.get(name, shape)?;
        let Some(projection) = self.projections.get(name) else { return Ok(weight) };
        let (rows, columns) = weight.dims2()?;
        let matrix = name.strip_suffix(".weight").unwrap_or(name);
        let part = |part: &str, shape: [usize; 2]| {
            let name = format!("{matrix}.{part}.weight");
            let tensor = self.adapter.get(&name)?;
            let path = self.adapter.weights_path();
            check_shape(tensor.dims(), &shape)
                .with_context(|| format!("{}: {PEFT}{name}", path.display()))?;
            Ok::<_, anyhow::Error>(tensor)
        };
        let rank = self.adapter.rank;
        let change = part("lora_B", [rows, rank])?.matmul(part("lora_A", [rank, columns])?)?;
        let change = match self.interleaved && projection.is_rotated() {
            true => interleaved(&change, self.head_dim)?,
            false => change,
        };
        Ok((weight + (change * (self.adapter.alpha / rank as f64))?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use serde_json::json;

    use super::*;

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny")
    }

    /// An adapter of rank 1 with tensors of these names and shapes, all of ones.
    fn write(dir: &Path, config: &Value, tensors: &[(&str, [usize; 2])]) {
        fs::write(dir.join(CONFIG), config.to_string()).unwrap();
        let ones = |shape: &[usize; 2]| Tensor::ones(&shape[..], DType::F32, &Device::Cpu).unwrap();
        let tensors: HashMap<&str, Tensor> =
            tensors.iter().map(|(name, shape)| (*name, ones(shape))).collect();
        candle_core::safetensors::save(&tensors, dir.join(WEIGHTS)).unwrap();
    }

    fn adapted(dir: &Path) -> Result<Adapted> {
        let opened = crate::model::open(&tiny()).unwrap();
        Adapted::new(opened.weights, &opened.config, LoraAdapter::open(dir)?)
    }

    const DOWN: &str = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
    const UP: &str = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight";

    #[test]
    fn the_change_is_that_of_both_matrices_times_its_scale() {
        let dir = tempfile::tempdir().unwrap();
        let opened = crate::model::open(&tiny()).unwrap();
        let (config, name) = (&opened.config, "model.layers.0.mlp.down_proj.weight");
        let [rows, columns] = Projection::Down.shape(config);
        let lora = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 0.5, "modules_to_save": null });
        write(dir.path(), &lora, &[(DOWN, [1, columns]), (UP, [rows, 1])]);
        let values = |weights: &dyn Weights, name: &str, shape: &[usize]| {
            weights.get(name, shape).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let changed = adapted(dir.path()).unwrap();
        let expected: Vec<f32> =
            values(&*opened.weights, name, &[rows, columns]).into_iter().map(|value| value + 0.5).collect();
        assert_eq!(values(&changed, name, &[rows, columns]), expected);
        let (norm, hidden) = ("model.norm.weight", [config.hidden_size]);
        assert_eq!(values(&changed, norm, &hidden), values(&*opened.weights, norm, &hidden));
    }

    #[test]
    fn what_is_no_adapter_of_the_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let opened = crate::model::open(&tiny()).unwrap();
        let [rows, columns] = Projection::Down.shape(&opened.config);
        let right = [(DOWN, [1, columns]), (UP, [rows, 1])];
        let lora = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1 });
        let message = |config: &Value, tensors: &[(&str, [usize; 2])]| {
            write(dir.path(), config, tensors);
            let weights = adapted(dir.path());
            let get = |weights: Adapted| weights.get("model.layers.0.mlp.down_proj.weight", &[rows, columns]);
            format!("{:#}", weights.and_then(get).unwrap_err())
        };
        let with = |key: &str, value: Value| {
            let mut config = lora.clone();
            config[key] = value;
            config
        };
        for (config, end) in [
            (with("peft_type", json!("IA3")), "peft_type: \"IA3\" is not supported; expected \"LORA\""),
            (with("use_dora", json!(true)), "use_dora: true is not supported; expected it not to be there"),
            (
                with("rank_pattern", json!({"a": 1})),
                "rank_pattern: {\"a\":1} is not supported; expected it not to be there",
            ),
            (with("r", json!(0)), "adapter_config.json: r: 0 is not valid; expected a positive number"),
            (with("lora_alpha", Value::Null), "lora_alpha: NaN is not valid; expected a positive number"),
        ] {
            let message = message(&config, &right);
            assert!(message.ends_with(end), "{message}");
        }
        let message = |tensors: &[(&str, [usize; 2])]| message(&lora, tensors);
        let short = message(&[(DOWN, [1, columns]), (UP, [rows - 1, 1])]);
        assert!(short.contains(&format!("lora_B.weight: shape [{}, 1] is not valid", rows - 1)), "{short}");
        assert!(message(&right[..1]).ends_with("lora_B.weight: missing"));
        let layer = "base_model.model.model.layers.99.mlp.down_proj.lora_A.weight";
        let unknown = message(&[right[0], right[1], (layer, [1, 1])]);
        assert!(
            unknown.contains(&format!("{layer} is not supported; expected changes of self_attn.q_proj")),
            "{unknown}"
        );
        let foreign = message(&[("lm_head.lora_A.weight", [1, 1])]);
        assert!(foreign.contains("lm_head.lora_A.weight is not valid as a name"), "{foreign}");
        fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        assert!(
            format!("{:#}", adapted(dir.path()).err().unwrap())
                .contains("adapter_model.safetensors: can't be read")
        );
    }
}
