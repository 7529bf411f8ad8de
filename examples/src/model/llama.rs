//! The forward pass of a Llama over one sequence, with any rotary angles.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::rms_norm;
use longrope::scaling::{FactorSets, SetChoice};
use longrope_candle::Rotary;

use super::attention::{AttentionKind, attended, rotary, rotated};
use super::config::LlamaConfig;
use super::ops::{add_norm, cross_entropy, gated_silu};
use super::place::Place;
use super::timing::{Part, Split, Timer};
use super::weights::Weights;
use crate::interrupt;

/// A Llama with its weights on a device.
pub struct Llama {
    config: LlamaConfig,
    place: Place,
    attention: AttentionKind,
    chunk: usize,
    embedding: Tensor,
    blocks: Vec<Block>,
    /// The norm before the first block; that before every other is the last one of the block before it.
    first_norm: Tensor,
    output: Tensor,
}

/// One transformer block. Matrices are `[out, in]`.
struct Block {
    /// Queries, keys and values, one below the other.
    query_key_value: Tensor,
    output: Tensor,
    feed_forward_norm: Tensor,
    /// Gate and up, one below the other.
    gate_up: Tensor,
    down: Tensor,
    /// The attention norm of the next block, or the model's own after the last.
    next_norm: Tensor,
}

/// `x w^T` for `x` `[tokens, in]` and `w` `[out, in]`.
fn linear(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&w.t()?)
}

impl Llama {
    /// On the CPU logits are made for this many tokens at a time: those of a long sequence over a large vocabulary would not
    /// fit.
    pub const LOGIT_ROWS: usize = 1024;
    /// As before on a GPU, where short products leave processors idle. 49,152 tokens of a vocabulary take 0.8 GB.
    pub const LOGIT_ROWS_GPU: usize = 8192;

    /// A longer sequence goes through the model in chunks of so many tokens, each over a cache of the keys and values before it, so
    /// that beside the cache nothing grows with the sequence but its hidden states.
    pub const CHUNK: usize = 131_072;

    /// Loads a model.
    pub(super) fn new(config: LlamaConfig, weights: &dyn Weights, place: &Place) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query_width = config.query_heads * config.head_dim();
        let key_width = config.key_heads * config.head_dim();
        // Converted before it travels, which halves the way.
        let placed = |x: Tensor| -> Result<Tensor> { Ok(x.to_dtype(place.dtype)?.to_device(&place.device)?) };
        let load = |name: &str, shape: &[usize]| placed(weights.get(name, shape)?);
        let norm = |layer: usize| match layer < config.layers {
            true => load(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden]),
            false => load("model.norm.weight", &[hidden]),
        };
        let embedding = load("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let first_norm = norm(0)?;
        let blocks = (0..config.layers)
            .map(|layer| {
                let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
                let get = |part: &str, shape: &[usize]| load(&name(part), shape);
                let stacked = |parts: &[(&str, usize)]| -> Result<Tensor> {
                    let parts: Vec<Tensor> = parts
                        .iter()
                        .map(|(part, rows)| weights.get(&name(part), &[*rows, hidden]))
                        .collect::<Result<_>>()?;
                    placed(Tensor::cat(&parts, 0)?)
                };
                Ok(Block {
                    query_key_value: stacked(&[
                        ("self_attn.q_proj", query_width),
                        ("self_attn.k_proj", key_width),
                        ("self_attn.v_proj", key_width),
                    ])?,
                    output: get("self_attn.o_proj", &[hidden, query_width])?,
                    feed_forward_norm: get("post_attention_layernorm", &[hidden])?,
                    gate_up: stacked(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)])?,
                    down: get("mlp.down_proj", &[hidden, inner])?,
                    next_norm: norm(layer + 1)?,
                })
            })
            .collect::<Result<_>>()?;
        let output = match config.tied_embeddings {
            true => embedding.clone(),
            false => load("lm_head.weight", &[config.vocab_size, hidden])?,
        };
        let attention = AttentionKind::default();
        let (place, chunk) = (place.clone(), Self::CHUNK);
        Ok(Self { config, place, attention, chunk, embedding, blocks, first_norm, output })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The same model with this attention.
    pub fn with_attention(self, attention: AttentionKind) -> Self {
        Self { attention, ..self }
    }

    /// The same model with chunks of so many tokens, at least one, in place of [`Llama::CHUNK`].
    pub fn with_chunk(self, tokens: usize) -> Self {
        Self { chunk: tokens.max(1), ..self }
    }

    /// The normalised hidden states `[tokens, hidden_size]` of a sequence that starts at position 0. On a GPU the work may
    /// still be under way.
    ///
    /// Fails with [`interrupt::Interrupted`] between two blocks once Ctrl-C was pressed.
    pub fn hidden(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<Tensor> {
        self.forward(tokens, sets, choice, &Timer::off())
    }

    fn forward(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice, timer: &Timer) -> Result<Tensor> {
        let vocabulary = self.config.vocab_size;
        // A GPU would read past the embedding.
        let wrong = tokens.iter().find(|token| **token as usize >= vocabulary);
        ensure!(
            wrong.is_none(),
            "tokens: {} is not valid; expected 0 to {}, the vocabulary of the model",
            wrong.unwrap_or(&0),
            vocabulary - 1
        );
        let rotary = rotary(&self.config, sets, choice);
        if tokens.len() <= self.chunk {
            return self.chunk_pass(tokens, &rotary, None, timer);
        }
        let mut caches: Vec<_> = self.blocks.iter().map(|_| KvCache::new(1, tokens.len())).collect();
        let chunks = tokens.chunks(self.chunk).enumerate().map(|(i, chunk)| {
            let rotary = rotary.at((i * self.chunk) as i64);
            self.chunk_pass(chunk, &rotary, Some(&mut caches), timer)
        });
        Ok(Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The hidden states of a chunk, whose keys and values go into the caches of the blocks, if there are any.
    fn chunk_pass(
        &self,
        tokens: &[u32],
        rotary: &Rotary,
        mut caches: Option<&mut [KvCache]>,
        timer: &Timer,
    ) -> Result<Tensor> {
        let epsilon = self.config.norm_epsilon as f32;
        let ids = Tensor::new(tokens, &self.place.device)?;
        let product = |x: &Tensor, w: &Tensor| timer.time(Part::Products, || linear(x, w));
        let sum =
            |x: &Tensor, y: &Tensor, norm: &Tensor| timer.time(Part::Rest, || add_norm(x, y, norm, epsilon));
        let (mut x, mut normed) = timer.time(Part::Rest, || {
            let x = self.embedding.index_select(&ids, 0)?;
            let normed = rms_norm(&x, &self.first_norm, epsilon)?;
            Ok((x, normed))
        })?;
        for (layer, block) in self.blocks.iter().enumerate() {
            interrupt::check()?;
            // Blocks, so that what is not needed any more is freed.
            let attended = {
                let qkv = product(&normed, &block.query_key_value)?;
                let [q, k, v] = timer.time(Part::Rotation, || rotated(&self.config, rotary, &qkv))?;
                let (k, v) = match &mut caches {
                    None => (k, v),
                    Some(caches) => timer.time(Part::Rest, || caches[layer].append(&k, &v.contiguous()?))?,
                };
                timer.time(Part::Attention, || attended(self.attention, [&q, &k, &v]))?
            };
            (x, normed) = sum(&x, &product(&attended, &block.output)?, &block.feed_forward_norm)?;
            let inner = {
                let gate_up = product(&normed, &block.gate_up)?;
                timer.time(Part::Rest, || gated_silu(&gate_up))?
            };
            (x, normed) = sum(&x, &product(&inner, &block.down)?, &block.next_norm)?;
        }
        Ok(normed)
    }

    /// The logits `[rows, vocab_size]` of `rows` of the hidden states.
    pub fn logits(&self, hidden: &Tensor, rows: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>> {
        let rows = hidden.narrow(0, rows.start, rows.len())?;
        Ok(linear(&rows, &self.output)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// How many tokens logits are made for at a time.
    pub fn logit_rows(place: &Place) -> usize {
        if place.is_gpu() { Self::LOGIT_ROWS_GPU } else { Self::LOGIT_ROWS }
    }

    /// The negative log-likelihood of each token after the first, in nats: `tokens.len() - 1` values.
    pub fn losses(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<Vec<f64>> {
        self.last_losses(tokens, tokens.len(), sets, choice)
    }

    /// As [`Llama::losses`], of the last `count` tokens alone, or of all after the first where there are fewer.
    pub fn last_losses(
        &self,
        tokens: &[u32],
        count: usize,
        sets: &FactorSets,
        choice: SetChoice,
    ) -> Result<Vec<f64>> {
        self.loss_pass(tokens, count, sets, choice, &Timer::off())
    }

    /// Where the time of [`Llama::losses`] goes.
    pub fn split(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<Split> {
        let timer = Timer::on(&self.place.device);
        self.loss_pass(tokens, tokens.len(), sets, choice, &timer)?;
        Ok(timer.split())
    }

    fn loss_pass(
        &self,
        tokens: &[u32],
        count: usize,
        sets: &FactorSets,
        choice: SetChoice,
        timer: &Timer,
    ) -> Result<Vec<f64>> {
        ensure!(!tokens.is_empty(), "tokens: none are not valid; expected at least one");
        let hidden = self.forward(tokens, sets, choice, timer)?;
        let targets = Tensor::new(&tokens[1..], &self.place.device)?;
        let (end, at_a_time) = (tokens.len() - 1, Self::logit_rows(&self.place));
        let pieces = (end - count.min(end)..end)
            .step_by(at_a_time)
            .map(|start| {
                let rows = at_a_time.min(end - start);
                let logits =
                    timer.time(Part::Products, || linear(&hidden.narrow(0, start, rows)?, &self.output))?;
                timer.time(Part::Rest, || cross_entropy(&logits, &targets.narrow(0, start, rows)?))
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        // Read once, when all is under way: reading waits.
        match pieces.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(Tensor::cat(&pieces, 0)?.to_vec1()?),
        }
    }
}
