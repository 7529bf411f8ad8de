//! Rotary embedding and attention of this crate on the rows of a fused projection.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use longrope::scaling::{FactorSets, SetChoice};
use longrope_candle::{Attention, Rotary, attention};

use super::config::LlamaConfig;

/// The rotation of the positions 0, 1, … by these sets.
pub(super) fn rotary(config: &LlamaConfig, sets: &FactorSets, choice: SetChoice) -> Rotary {
    Rotary { pairing: config.pairing, ..Rotary::new(Arc::new(sets.clone()), choice) }
}

/// Rotates queries and keys and attends causally. `qkv` is `[tokens, (query_heads + 2 * key_heads) * head_dim]`: a token's
/// queries, keys and values. The result is `[tokens, query_heads * head_dim]`.
pub(super) fn rotary_attention(config: &LlamaConfig, rotary: &Rotary, qkv: &Tensor) -> Result<Tensor> {
    let (queries, keys, dim) = (config.query_heads, config.key_heads, config.head_dim());
    let tokens = qkv.dim(0)?;
    let heads = qkv.reshape((1, tokens, queries + 2 * keys, dim))?;
    let part = |start, count| heads.narrow(2, start, count);
    let (q, k) = rotary.apply(&part(0, queries)?, &part(queries, keys)?)?;
    let out = attention(&q, &k, &part(queries + keys, keys)?, &Attention::causal())?;
    out.reshape((tokens, queries * dim))
}
