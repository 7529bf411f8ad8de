//! The rotary embedding a model was trained with, before any rescaling.

use crate::scaling::error::ConfigError;

/// No model has larger heads; the bound keeps a hostile configuration from asking for a huge table.
const MAX_HEAD_DIM: usize = 16_384;

/// The rotary embedding a model was trained with: which dimensions turn, how fast, and up to which length.
///
/// Pair `i` of `rotary_dim / 2` turns by `theta^(-2i / rotary_dim)` radians a token (RoPE, arXiv 2104.09864, eq. 15).
/// The pairs cover the first `rotary_dim` dimensions of a head; the remaining `head_dim - rotary_dim` pass through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    head_dim: usize,
    rotary_dim: usize,
    theta: f64,
    original_length: u64,
}

impl Geometry {
    /// A rotary embedding over the first `rotary_dim` of `head_dim` dimensions with base `theta`, trained on sequences
    /// of up to `original_length` tokens (the L0 of the papers).
    ///
    /// # Errors
    /// `head_dim` above 16,384; `rotary_dim` zero, odd or above `head_dim`; `theta` not a finite number above 1; `original_length` zero.
    pub fn new(
        head_dim: usize,
        rotary_dim: usize,
        theta: f64,
        original_length: u64,
    ) -> Result<Self, ConfigError> {
        if head_dim > MAX_HEAD_DIM {
            return Err(ConfigError::invalid("head_dim", head_dim, format!("at most {MAX_HEAD_DIM}")));
        }
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            return Err(ConfigError::invalid(
                "rotary_dim",
                rotary_dim,
                format!("an even number from 2 to head_dim ({head_dim})"),
            ));
        }
        if !(theta.is_finite() && theta > 1.0) {
            return Err(ConfigError::invalid("rope_theta", theta, "a finite number above 1"));
        }
        if original_length == 0 {
            return Err(ConfigError::invalid(
                "original_max_position_embeddings",
                original_length,
                "at least 1",
            ));
        }
        Ok(Self { head_dim, rotary_dim, theta, original_length })
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Dimensions of a head that turn: the first `rotary_dim`.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Pairs of dimensions that turn together: `rotary_dim / 2`.
    pub fn pairs(&self) -> usize {
        self.rotary_dim / 2
    }

    /// The base of the frequencies (`rope_theta`).
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// The length the model was trained on, in tokens (L0, `original_max_position_embeddings`).
    pub fn original_length(&self) -> u64 {
        self.original_length
    }

    /// The un-rescaled frequencies in radians a token: `theta^(-2i / rotary_dim)` for each pair `i`.
    pub fn frequencies(&self) -> Vec<f64> {
        (0..self.pairs()).map(|i| self.theta.powf(-2.0 * i as f64 / self.rotary_dim as f64)).collect()
    }
}
