//! The model that is trained: which of its tensors are parameters, and their first values.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use longrope::descriptor::Pairing;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::block::Block;
use super::linear::{Adapter, Linear, Weight};
use super::parameters::Parameter;
use crate::memory;
use crate::model::{LlamaConfig, Place, Projection, Weights, half_split};

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Every weight.
    Full,
    /// A low-rank change of some matrices, of which all else stays.
    Lora(Lora),
}

/// LoRA (Hu et al. 2021): a matrix `W` becomes `W + alpha / rank * up * down`, and `up` begins at zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Rows of `down`, columns of `up`.
    pub rank: usize,
    /// The scale, times the rank.
    pub alpha: f64,
    /// Which matrices of each block.
    pub projections: Vec<Projection>,
}

impl Lora {
    /// By what a change is multiplied.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// A Llama with parameters. Its pairs are half-split, whatever the file's were.
pub struct TrainableLlama {
    config: LlamaConfig,
    place: Place,
    method: Method,
    pub(super) embedding: Weight,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Weight,
    /// `None` where the output matrix is the embedding.
    head: Option<Weight>,
    parameters: Vec<Parameter>,
    /// How many rows of logits are made at a time.
    pub(super) logit_rows: usize,
    keeps_attention: bool,
}

impl TrainableLlama {
    /// Loads a model. The first values of `down` are drawn from `seed`.
    ///
    /// # Errors
    /// A weight that is missing or of another shape, or a rank that no matrix has.
    pub fn new(
        mut config: LlamaConfig,
        weights: &dyn Weights,
        place: &Place,
        method: Method,
        seed: u64,
    ) -> Result<Self> {
        let interleaved = config.pairing == Pairing::Interleaved;
        if interleaved {
            let (found, all) = (config.rope.geometry().rotary_dim(), config.head_dim());
            ensure!(found == all, "rotary_dim: {found} is not supported in a GGUF file; expected {all}");
        }
        config.pairing = Pairing::HalfSplit;
        if let Method::Lora(lora) = &method {
            let smallest = lora.projections.iter().flat_map(|projection| projection.shape(&config)).min();
            let largest = smallest.unwrap_or(0);
            ensure!(
                (1..=largest).contains(&lora.rank),
                "--lora: {} is not valid; expected a rank of 1 to {largest}, the smallest side of the matrices",
                lora.rank
            );
        }
        let mut loader = Loader {
            config: &config,
            weights,
            place,
            method: &method,
            interleaved,
            random: ChaCha8Rng::seed_from_u64(seed),
            parameters: Vec::new(),
        };
        let hidden = config.hidden_size;
        let embedding = loader.weight("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let blocks = (0..config.layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let norm = loader.weight("model.norm.weight", &[hidden])?;
        let head = match config.tied_embeddings {
            true => None,
            false => Some(loader.weight("lm_head.weight", &[config.vocab_size, hidden])?),
        };
        let parameters = loader.parameters;
        // Five tensors of so many rows in f32 are there at once: 49,152 tokens of a vocabulary take 4 GB of a GPU.
        let logit_rows = if place.is_gpu() { 4096 } else { 256 };
        let place = place.clone();
        let keeps_attention = true;
        Ok(Self {
            config,
            place,
            method,
            embedding,
            blocks,
            norm,
            head,
            parameters,
            logit_rows,
            keeps_attention,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What is trained.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// What is trained, in an order that is always the same.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether a block's attention is kept for the backward pass, rather than made again. The gradients are the same.
    pub fn keeps_attention(&self) -> bool {
        self.keeps_attention
    }

    /// The same model, whose attention is kept or not.
    pub fn keeping_attention(self, keeps_attention: bool) -> Self {
        Self { keeps_attention, ..self }
    }

    /// The same model, whose attention is kept if sequences of `length` tokens then fit memory.
    ///
    /// # Errors
    /// They do not fit even without it.
    pub fn fitted(self, length: usize) -> Result<Self> {
        let what = format!("training on {length} tokens");
        let needed = memory::of_training(&self.config, length, self.trained(), &self.place);
        let kept = memory::of_kept_attention(&self.config, length, &self.place);
        memory::check(&what, needed, &self.place)?;
        let fits = memory::check(&what, needed.saturating_add(kept), &self.place).is_ok();
        Ok(self.keeping_attention(fits))
    }

    /// How many numbers are trained.
    pub fn trained(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.value().elem_count()).sum()
    }

    /// The output matrix.
    pub(super) fn output(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every weight of the model under its name, in f32, with what LoRA changes.
    pub fn merged(&self) -> Result<Vec<(String, Tensor)>> {
        let value = |weight: &Weight| -> Result<Tensor> {
            Ok(match weight {
                Weight::Frozen(tensor) => tensor.to_dtype(DType::F32)?,
                Weight::Trained(index) => self.parameters[*index].value(),
            })
        };
        let mut all = vec![("model.embed_tokens.weight".to_owned(), value(&self.embedding)?)];
        for (layer, block) in self.blocks.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            all.push((name("input_layernorm"), value(&block.attention_norm)?));
            all.push((name("post_attention_layernorm"), value(&block.feed_forward_norm)?));
            for (linear, projection) in block.linears().into_iter().zip(Projection::ALL) {
                let mut weight = value(&linear.weight)?;
                if let Some(Adapter { down, up, scale }) = &linear.adapter {
                    let change = self.parameters[*up].value().matmul(&self.parameters[*down].value())?;
                    weight = (weight + (change * *scale)?)?;
                }
                all.push((name(projection.name()), weight));
            }
        }
        all.push(("model.norm.weight".to_owned(), value(&self.norm)?));
        if let Some(head) = &self.head {
            all.push(("lm_head.weight".to_owned(), value(head)?));
        }
        Ok(all)
    }
}

/// Loads weights one after the other, and makes parameters of those that are trained.
struct Loader<'a> {
    config: &'a LlamaConfig,
    weights: &'a dyn Weights,
    place: &'a Place,
    method: &'a Method,
    interleaved: bool,
    random: ChaCha8Rng,
    parameters: Vec<Parameter>,
}

impl Loader<'_> {
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.weights.get(name, shape)?;
        self.placed(name, weight)
    }

    fn placed(&mut self, name: &str, weight: Tensor) -> Result<Weight> {
        Ok(match self.method {
            Method::Full => Weight::Trained(self.parameter(name.to_owned(), &weight)?),
            Method::Lora(_) => {
                Weight::Frozen(weight.to_dtype(self.place.dtype)?.to_device(&self.place.device)?)
            }
        })
    }

    fn parameter(&mut self, name: String, value: &Tensor) -> Result<usize> {
        self.parameters.push(Parameter::new(name, value, self.place)?);
        Ok(self.parameters.len() - 1)
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let hidden = self.config.hidden_size;
        let norm = |part: &str| format!("model.layers.{layer}.{part}.weight");
        Ok(Block {
            attention_norm: self.weight(&norm("input_layernorm"), &[hidden])?,
            query: self.linear(layer, Projection::Q)?,
            key: self.linear(layer, Projection::K)?,
            value: self.linear(layer, Projection::V)?,
            output: self.linear(layer, Projection::O)?,
            feed_forward_norm: self.weight(&norm("post_attention_layernorm"), &[hidden])?,
            gate: self.linear(layer, Projection::Gate)?,
            up: self.linear(layer, Projection::Up)?,
            down: self.linear(layer, Projection::Down)?,
        })
    }

    fn linear(&mut self, layer: usize, projection: Projection) -> Result<Linear> {
        let [rows, columns] = projection.shape(self.config);
        let matrix = format!("model.layers.{layer}.{}", projection.name());
        let name = format!("{matrix}.weight");
        let mut weight = self.weights.get(&name, &[rows, columns])?;
        if self.interleaved && projection.is_rotated() {
            weight = half_split(&weight, self.config.head_dim())?;
        }
        let weight = self.placed(&name, weight)?;
        let lora = match self.method {
            Method::Lora(lora) if lora.projections.contains(&projection) => lora.clone(),
            _ => return Ok(Linear { weight, adapter: None }),
        };
        // As PEFT draws them.
        let bound = 1.0 / (columns as f32).sqrt();
        let values: Vec<f32> =
            (0..lora.rank * columns).map(|_| self.random.random_range(-bound..bound)).collect();
        let down = Tensor::from_vec(values, (lora.rank, columns), &Device::Cpu)?;
        let up = Tensor::zeros((rows, lora.rank), DType::F32, &Device::Cpu)?;
        let adapter = Adapter {
            down: self.parameter(format!("{matrix}.lora_A.weight"), &down)?,
            up: self.parameter(format!("{matrix}.lora_B.weight"), &up)?,
            scale: lora.scale(),
        };
        Ok(Linear { weight, adapter: Some(adapter) })
    }
}
