//! Which angle: the frequency of each pair under every interpolation method. Pure mathematics, no GPU.
//!
//! [`Geometry`] is what a model was trained with, [`Scaling`] how it is rescaled, [`RopeConfig`] both together, read
//! from and written to Hugging Face's `config.json`. From it follow the frequencies in f64, and [`FactorSets`]: what an
//! operation takes, with the exact integer step of each pair and the choice of the set by length. A [`Schedule`] holds
//! more than two sets, one per bucket of lengths.

mod config;
mod csv;
mod error;
mod geometry;
pub mod hf;
mod method;
mod parity;
pub mod rescale;
mod schedule;
mod step;
mod table;

pub use config::RopeConfig;
pub use csv::{factors_from_csv, factors_to_csv};
pub use error::ConfigError;
pub use geometry::Geometry;
pub use method::{Llama3, LongRope, Scaling, Yarn};
pub use schedule::{Bucket, Schedule};
pub use step::{phase, phase_step};
pub use table::{Angles, FactorSet, FactorSets, SetChoice};
