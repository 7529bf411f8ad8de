//! The descriptor of a rotation.

use crate::scaling::{FactorSets, SetChoice};
use crate::{Error, descriptor::Layout};

/// Which two dimensions of a head form pair `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `i` and `i + rotary_dim / 2` (GPT-NeoX, Hugging Face; `rotate_half`).
    HalfSplit,
    /// `2 i` and `2 i + 1` (GPT-J, the original Llama, GGUF files of Llama).
    Interleaved,
}

/// Which way the rotation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// `gain * R x`.
    Forward,
    /// `gain * R^T x`: what turns a gradient of the output into one of the input.
    Backward,
}

/// Where the tokens stand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions<'a> {
    /// Token `s` of every sequence stands at this offset plus `s`.
    Offset(i64),
    /// Token `s` of sequence `b` stands at `offsets[b] + s`.
    OffsetPerSequence(&'a [i64]),
    /// A position per token: `[batch, length]`.
    PerToken(&'a [i64]),
    /// A position per token, in 32 bits: `[batch, length]`.
    PerToken32(&'a [i32]),
}

/// Which factor set each sequence uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choices<'a> {
    /// One choice for every sequence.
    All(SetChoice),
    /// A choice per sequence: `[batch]`, so that one batch mixes short and long.
    PerSequence(&'a [SetChoice]),
}

/// A rotation of queries or keys by the angles of their positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary<'a> {
    /// The angles and gains. They cover the first `2 * sets.pairs()` dimensions; the others pass through.
    pub sets: &'a FactorSets,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Rotation or its transpose.
    pub direction: Direction,
    /// Where the tokens stand.
    pub positions: Positions<'a>,
    /// Which set each sequence uses.
    pub choices: Choices<'a>,
}

impl Rotary<'_> {
    /// Checks the descriptor against the tensor it is to rotate.
    pub(crate) fn validate(&self, x: &Layout) -> Result<(), Error> {
        let rotary_dim = 2 * self.sets.pairs();
        if rotary_dim > x.head_dim() {
            return Err(Error::argument(
                "x.head_dim",
                x.head_dim(),
                format!("at least the rotary dimension of the factor sets ({rotary_dim})"),
            ));
        }
        let count = |name: &str, found: usize, expected: usize, shape: &str| match found == expected {
            true => Ok(()),
            false => Err(Error::argument(name, format!("{found} values"), format!("{expected} {shape}"))),
        };
        let (batch, tokens) = (x.batch(), x.batch().checked_mul(x.length()));
        let tokens = tokens.ok_or_else(|| Error::argument("x.length", x.length(), "fewer tokens"))?;
        match self.positions {
            Positions::Offset(_) => {}
            Positions::OffsetPerSequence(offsets) => count("positions", offsets.len(), batch, "[batch]")?,
            Positions::PerToken(positions) => count("positions", positions.len(), tokens, "[batch, length]")?,
            Positions::PerToken32(positions) => {
                count("positions", positions.len(), tokens, "[batch, length]")?;
            }
        }
        match self.choices {
            Choices::All(_) => Ok(()),
            Choices::PerSequence(choices) => count("choices", choices.len(), batch, "[batch]"),
        }
    }

    /// The position of a token. Offsets wrap, as the phase does.
    pub(crate) fn position(&self, batch: usize, token: usize, length: usize) -> i64 {
        match self.positions {
            Positions::Offset(offset) => offset.wrapping_add(token as i64),
            Positions::OffsetPerSequence(offsets) => offsets[batch].wrapping_add(token as i64),
            Positions::PerToken(positions) => positions[batch * length + token],
            Positions::PerToken32(positions) => i64::from(positions[batch * length + token]),
        }
    }

    /// The choice of a sequence.
    pub(crate) fn choice(&self, batch: usize) -> SetChoice {
        match self.choices {
            Choices::All(choice) => choice,
            Choices::PerSequence(choices) => choices[batch],
        }
    }
}
