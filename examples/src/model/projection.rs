//! The matrices of a block, and the order of the rows of those whose heads are rotated.

use std::fmt;

use anyhow::Result;
use candle_core::Tensor;
use clap::ValueEnum;

use super::config::LlamaConfig;

/// A matrix of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// What the attention gives.
    O,
    /// The gate of the feed-forward layer.
    Gate,
    /// The input of the feed-forward layer.
    Up,
    /// The output of the feed-forward layer.
    Down,
}

impl Projection {
    /// All of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Hugging Face's name, as in `self_attn.q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Rows and columns.
    pub fn shape(self, config: &LlamaConfig) -> [usize; 2] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_heads * config.head_dim(), config.key_heads * config.head_dim());
        match self {
            Self::Q => [queries, hidden],
            Self::K | Self::V => [keys, hidden],
            Self::O => [hidden, queries],
            Self::Gate | Self::Up => [inner, hidden],
            Self::Down => [hidden, inner],
        }
    }

    /// Whether its rows are dimensions of heads that are rotated.
    pub fn is_rotated(self) -> bool {
        matches!(self, Self::Q | Self::K)
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// The rows of a query or key matrix whose pairs are neighbours, as GGUF has them, in the order of Hugging Face.
pub(crate) fn half_split(weight: &Tensor, head_dim: usize) -> Result<Tensor> {
    with_pairs(weight, [head_dim / 2, 2], head_dim)
}

/// The inverse of [`half_split`].
pub(super) fn interleaved(weight: &Tensor, head_dim: usize) -> Result<Tensor> {
    with_pairs(weight, [2, head_dim / 2], head_dim)
}

/// Each head's rows as a matrix of these sides, transposed.
fn with_pairs(weight: &Tensor, [outer, inner]: [usize; 2], head_dim: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let pairs = weight.reshape((rows / head_dim, outer, inner, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_of_either_order_are_those_of_the_other() {
        // Two heads of six rows, numbered; a column.
        let rows = Tensor::from_vec((0..12u32).collect::<Vec<_>>(), (12, 1), &Device::Cpu).unwrap();
        let numbers = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let split = half_split(&rows, 6).unwrap();
        assert_eq!(numbers(split.clone()), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(numbers(interleaved(&split, 6).unwrap()), (0..12).collect::<Vec<_>>());
    }
}
