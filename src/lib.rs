//! Rotary embedding with LongRoPE interpolation and blockwise attention for million-token contexts.
//!
//! - [`scaling`]: which angle. Frequencies of every interpolation method, configurations, factor sets.
//! - [`mod@reference`]: what is right. Naive f64 rotary, attention and gradients, the oracle of every test.
//! - [`descriptor`]: what is asked. Shapes, strides, masks, positions.
//! - [`cpu`]: how it runs without a GPU. The same operations in f32, blockwise and threaded.
//! - [`device`], [`ops`]: how it runs on a GPU. The driver, tensors in device memory, the operations.
//! - [`search`]: which factors. LongRoPE's evolutionary search over any objective.

pub mod cpu;
#[cfg(feature = "cust")]
pub mod cust;
pub mod descriptor;
pub mod device;
mod error;
pub mod ops;
pub mod reference;
pub mod scaling;
pub mod search;

pub use error::Error;

/// Runs the README's Rust code as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
