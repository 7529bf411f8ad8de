//! What is right: rotary embedding, attention and their gradients in f64, naive and obviously correct.
//!
//! Every implementation of the crate, on the CPU and on the GPU, is tested against this module. So it shares nothing with
//! them: it imports from no other module of the crate, writes each formula as the papers print it, and takes time and
//! memory as they come (attention is O(query_length × key_length × head_dim) on one thread). To check a long sequence,
//! ask for sampled rows: a [`Problem`] of one query row with its global position as `query_offset`.
//!
//! - [`phase`]: sine and cosine of `position × frequency`, exact to the last bits at any position.
//! - [`rotary`]: rotation of a head row, its transpose, re-rotation, and the choice among LongRoPE's factor sets.
//! - [`attention`]: forward with its log-sum-exp, and the gradients.
//! - [`merge`]: the union of partial results over disjoint key ranges.
//! - [`rounding`]: correct rounding to bf16, f16 and f32, and whether a rounded output is within a bound.

pub mod attention;
mod backward;
mod error;
mod fixed;
pub mod merge;
pub mod phase;
pub mod rotary;
pub mod rounding;

pub use attention::{Output, Problem};
pub use backward::Gradients;
pub use error::ReferenceError;
pub use phase::Angle;
pub use rotary::{Direction, FactorSets, Factors, Pairing};
pub use rounding::Format;
