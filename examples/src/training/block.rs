//! A transformer block of operations that have gradients.

use std::ops::Range;

use candle_core::{Result, Tensor};
use longrope_candle::{Attention, KeptAttention, Rotary, rotary_attention};

use super::linear::{Linear, View, Weight};
use crate::model::LlamaConfig;
use crate::model::ops::{rms_norm, silu_product};

/// One transformer block.
pub(super) struct Block {
    pub(super) attention_norm: Weight,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Weight,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What tokens see of each other: the rows of each document, whose positions start at 0.
pub(super) struct Documents<'a> {
    pub(super) rows: &'a [Range<usize>],
    pub(super) rotary: &'a Rotary,
}

/// What a forward pass does about the attention of each document.
pub(super) enum Kept<'a> {
    /// Makes it, and keeps nothing.
    Nothing,
    /// Makes it, and keeps it here.
    Results(&'a mut Vec<KeptAttention>),
    /// Takes what was kept.
    Again(&'a [KeptAttention]),
}

impl Block {
    /// The residual stream `[tokens, hidden_size]` after this block.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        view: View<'_>,
        config: &LlamaConfig,
        documents: &Documents<'_>,
        kept: Kept<'_>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &view.get(&self.attention_norm), config.norm_epsilon)?;
        let [q, k, v] = [
            (&self.query, config.query_heads),
            (&self.key, config.key_heads),
            (&self.value, config.key_heads),
        ]
        .map(|(linear, heads)| {
            let rows = linear.forward(&normed, view)?;
            let tokens = rows.dim(0)?;
            rows.reshape((1, tokens, heads, config.head_dim()))
        });
        let attended = attended([&q?, &k?, &v?], documents, kept)?;
        let x = (x + self.output.forward(&attended, view)?)?;
        let normed = rms_norm(&x, &view.get(&self.feed_forward_norm), config.norm_epsilon)?;
        let inner = silu_product(&self.gate.forward(&normed, view)?, &self.up.forward(&normed, view)?)?;
        x + self.down.forward(&inner, view)?
    }

    /// The indices of its parameters.
    pub(super) fn parameters(&self) -> Vec<usize> {
        let norms = [&self.attention_norm, &self.feed_forward_norm].into_iter().filter_map(Weight::index);
        norms.chain(self.linears().into_iter().flat_map(Linear::parameters)).collect()
    }

    /// Its matrices.
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down]
    }
}

/// Rotary embedding and causal attention within each document: `[tokens, query_heads * head_dim]`.
fn attended([q, k, v]: [&Tensor; 3], documents: &Documents<'_>, mut kept: Kept<'_>) -> Result<Tensor> {
    let (_, tokens, heads, dim) = q.dims4()?;
    let (rotary, masks) = (documents.rotary, Attention::causal());
    let pieces = documents.rows.iter().enumerate().map(|(index, rows)| {
        let [q, k, v] = [q, k, v].map(|x| x.narrow(1, rows.start, rows.len()));
        let (q, k, v) = (q?, k?, v?);
        match &mut kept {
            Kept::Nothing => rotary_attention(&q, &k, &v, rotary, &masks),
            Kept::Results(results) => {
                let result = KeptAttention::new(&q, &k, &v, rotary, &masks)?;
                let out = result.out().clone();
                results.push(result);
                Ok(out)
            }
            Kept::Again(results) => match results.get(index) {
                Some(result) => result.again(&q, &k, &v),
                None => candle_core::bail!("document {index}: no attention was kept"),
            },
        }
    });
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    let all = match pieces.as_slice() {
        [one] => one.clone(),
        pieces => Tensor::cat(pieces, 1)?,
    };
    all.reshape((tokens, heads * dim))
}
