//! Rotary embedding and attention on the rows of a fused projection.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use clap::ValueEnum;
use longrope::scaling::{FactorSets, SetChoice};
use longrope_candle::{Attention, Rotary, attention};

use super::config::LlamaConfig;

/// The flag `--attention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AttentionKind {
    /// One operation of this crate
    #[default]
    Fused,
    /// candle's products and softmax, for a block of queries at a time
    Composed,
}

impl fmt::Display for AttentionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::Composed => "composed",
        })
    }
}

/// Queries of a block of the composed attention, whose scores are in memory as a whole: 9 heads by 256 queries by 131,072 keys
/// are 0.6 GB in 16 bits.
pub(crate) const COMPOSED_ROWS: usize = 256;

/// The rotation of the positions 0, 1, … by these sets.
pub(super) fn rotary(config: &LlamaConfig, sets: &FactorSets, choice: SetChoice) -> Rotary {
    Rotary { pairing: config.pairing, ..Rotary::new(Arc::new(sets.clone()), choice) }
}

/// Queries, keys and values `[1, tokens, heads, head_dim]`, the first two rotated, of `qkv`
/// `[tokens, (query_heads + 2 * key_heads) * head_dim]`: a token's queries, keys and values.
pub(super) fn rotated(config: &LlamaConfig, rotary: &Rotary, qkv: &Tensor) -> Result<[Tensor; 3]> {
    let (queries, keys, dim) = (config.query_heads, config.key_heads, config.head_dim());
    let tokens = qkv.dim(0)?;
    let heads = qkv.reshape((1, tokens, queries + 2 * keys, dim))?;
    let part = |start, count| heads.narrow(2, start, count);
    let (q, k) = rotary.apply(&part(0, queries)?, &part(queries, keys)?)?;
    Ok([q, k, part(queries + keys, keys)?])
}

/// Causal attention of queries, which are of the last tokens, over keys and values: `[tokens, query_heads * head_dim]`.
pub(super) fn attended(kind: AttentionKind, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
    let (_, tokens, heads, dim) = q.dims4()?;
    let before = k.dim(1)? - tokens;
    let out = match kind {
        AttentionKind::Fused => {
            attention(q, k, v, &Attention { query_offset: before as i64, ..Attention::causal() })?
        }
        AttentionKind::Composed => composed(q, k, v, before)?,
    };
    out.reshape((tokens, heads * dim))
}

/// The same of candle's operations: `[tokens, heads, head_dim]`. A block of queries takes the keys up to its last.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, before: usize) -> Result<Tensor> {
    let (_, tokens, heads, dim) = q.dims4()?;
    let groups = k.dim(2)?;
    let by_head = |x: &Tensor| x.squeeze(0)?.transpose(0, 1)?.contiguous();
    let (q, k, v) = ((by_head(q)? * (dim as f64).powf(-0.5))?, by_head(k)?, by_head(v)?);
    let blocks = (0..tokens).step_by(COMPOSED_ROWS).map(|start| {
        let rows = COMPOSED_ROWS.min(tokens - start);
        let seen = before + start + rows;
        // The heads of a group, one below the other, against its keys.
        let block = q.narrow(1, start, rows)?.contiguous()?.reshape((groups, heads / groups * rows, dim))?;
        let scores = block.matmul(&k.narrow(1, 0, seen)?.transpose(1, 2)?)?;
        let mask = causal_mask(before + start, rows, q.dtype(), q.device())?;
        let scores = scores.reshape((heads, rows, seen))?.broadcast_add(&mask)?;
        let weights = softmax_last_dim(&scores)?.reshape((groups, heads / groups * rows, seen))?;
        weights.matmul(&v.narrow(1, 0, seen)?)?.reshape((heads, rows, dim))
    });
    Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)?.transpose(0, 1)?.contiguous()
}

/// What is added to the scores `[rows, start + rows]` of the queries from `start` on: minus infinity for later keys.
fn causal_mask(start: usize, rows: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let later = |i| if i % rows > i / rows { f32::NEG_INFINITY } else { 0.0 };
    let square: Vec<f32> = (0..rows * rows).map(later).collect();
    let square = Tensor::from_vec(square, (rows, rows), device)?.to_dtype(dtype)?;
    match start {
        0 => Ok(square),
        _ => Tensor::cat(&[&Tensor::zeros((rows, start), dtype, device)?, &square], 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_attention_is_the_fused_one() {
        // One block, whole blocks, and a last one that is not full; heads that share keys, and a head alone; keys before the queries.
        for (tokens, heads, groups, before) in
            [(1, 1, 1, 0), (37, 4, 2, 0), (512, 3, 1, 0), (600, 6, 3, 0), (1, 2, 1, 300), (300, 4, 2, 41)]
        {
            let random =
                |heads, tokens| Tensor::randn(0f32, 1.0, (1, tokens, heads, 16), &Device::Cpu).unwrap();
            let (q, k, v) =
                (random(heads, tokens), random(groups, before + tokens), random(groups, before + tokens));
            let [fused, composed] = [AttentionKind::Fused, AttentionKind::Composed].map(|kind| {
                let out = attended(kind, [&q, &k, &v]).unwrap();
                assert_eq!(out.dims(), [tokens, heads * 16]);
                out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            let largest = fused.iter().zip(&composed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Averages of values around 1, each to f32's 24 bits.
            assert!(largest < 1e-5, "{tokens} tokens: {largest}");
        }
    }
}
