//! What is asked: the descriptors of the operations, shared by the CPU form and the kernels.
//!
//! A descriptor holds everything about an operation but its data: shapes and strides ([`Layout`]), the mask and scale
//! of an attention ([`Attention`]), the angles and positions of a rotation ([`Rotary`]).

mod attention;
mod layout;
mod rotary;

pub use attention::Attention;
pub use layout::Layout;
pub use rotary::{Choices, Direction, Pairing, Positions, Rotary};
