//! The forward pass of a Llama over one sequence, with any rotary angles.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::ops::rms_norm;
use longrope::scaling::{FactorSets, SetChoice};
use rayon::prelude::*;

use super::attention::rotary_attention;
use super::config::LlamaConfig;
use super::weights::Weights;
use crate::interrupt;

/// A Llama with its weights in f32.
pub struct Llama {
    config: LlamaConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    output: Tensor,
}

/// One transformer block. Matrices are `[out, in]`.
struct Block {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    feed_forward_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// `x w^T` for `x` `[tokens, in]` and `w` `[out, in]`.
fn linear(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&w.t()?)
}

impl Llama {
    /// Logits are made for this many tokens at a time: those of a long sequence over a large vocabulary would not fit.
    pub const LOGIT_ROWS: usize = 1024;

    /// Loads a model.
    pub(super) fn new(config: LlamaConfig, weights: &dyn Weights) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query_width = config.query_heads * config.head_dim();
        let key_width = config.key_heads * config.head_dim();
        let embedding = weights.get("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let blocks = (0..config.layers)
            .map(|layer| {
                let get = |name: &str, shape: &[usize]| {
                    weights.get(&format!("model.layers.{layer}.{name}.weight"), shape)
                };
                Ok(Block {
                    attention_norm: get("input_layernorm", &[hidden])?,
                    query: get("self_attn.q_proj", &[query_width, hidden])?,
                    key: get("self_attn.k_proj", &[key_width, hidden])?,
                    value: get("self_attn.v_proj", &[key_width, hidden])?,
                    output: get("self_attn.o_proj", &[hidden, query_width])?,
                    feed_forward_norm: get("post_attention_layernorm", &[hidden])?,
                    gate: get("mlp.gate_proj", &[inner, hidden])?,
                    up: get("mlp.up_proj", &[inner, hidden])?,
                    down: get("mlp.down_proj", &[hidden, inner])?,
                })
            })
            .collect::<Result<_>>()?;
        let norm = weights.get("model.norm.weight", &[hidden])?;
        let output = match config.tied_embeddings {
            true => embedding.clone(),
            false => weights.get("lm_head.weight", &[config.vocab_size, hidden])?,
        };
        Ok(Self { config, embedding, blocks, norm, output })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The normalised hidden states `[tokens, hidden_size]` of a sequence that starts at position 0.
    ///
    /// Fails with [`interrupt::Interrupted`] between two blocks once Ctrl-C was pressed.
    pub fn hidden(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<Tensor> {
        let epsilon = self.config.norm_epsilon as f32;
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for block in &self.blocks {
            interrupt::check()?;
            let normed = rms_norm(&x, &block.attention_norm, epsilon)?;
            let (q, k, v) = (
                linear(&normed, &block.query)?,
                linear(&normed, &block.key)?,
                linear(&normed, &block.value)?,
            );
            let attended = rotary_attention(&self.config, &q, &k, &v, sets, choice)?;
            x = (x + linear(&attended, &block.output)?)?;
            let normed = rms_norm(&x, &block.feed_forward_norm, epsilon)?;
            let inner = (linear(&normed, &block.gate)?.silu()? * linear(&normed, &block.up)?)?;
            x = (x + linear(&inner, &block.down)?)?;
        }
        Ok(rms_norm(&x, &self.norm, epsilon)?)
    }

    /// The logits `[rows, vocab_size]` of `rows` of the hidden states.
    pub fn logits(&self, hidden: &Tensor, rows: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>> {
        let rows = hidden.narrow(0, rows.start, rows.len())?;
        Ok(linear(&rows, &self.output)?.to_vec2()?)
    }

    /// The negative log-likelihood of each token after the first, in nats: `tokens.len() - 1` values.
    pub fn losses(&self, tokens: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<Vec<f64>> {
        let hidden = self.hidden(tokens, sets, choice)?;
        let mut losses = Vec::with_capacity(tokens.len());
        let last = tokens.len() - 1;
        for start in (0..last).step_by(Self::LOGIT_ROWS) {
            let end = last.min(start + Self::LOGIT_ROWS);
            let logits = self.logits(&hidden, start..end)?;
            losses.par_extend(
                logits
                    .par_iter()
                    .zip(&tokens[start + 1..=end])
                    .map(|(row, &token)| log_sum_exp(row) - f64::from(row[token as usize])),
            );
        }
        Ok(losses)
    }
}

/// The natural logarithm of the sum of exponentials.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - largest).exp())).sum();
    f64::from(largest) + sum.ln()
}
