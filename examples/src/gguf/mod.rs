//! GGUF files of any architecture: the header, the rotary embedding it describes, and a copy with other factors.
//!
//! Weights are read by [`crate::model`]; here tensors are only moved, byte for byte.

mod copy;
mod header;
mod longrope;
mod rope;
mod types;

pub use copy::{Changes, copy};
pub use header::{Entry, Header, TensorInfo};
pub use longrope::{ARCHITECTURES, changes};
pub use rope::rope_config;

/// The first bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// The divisors beyond the original length.
pub const LONG_FACTORS: &str = "rope_factors_long.weight";

/// The divisors up to the original length.
pub const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// The divisors of Llama 3, for every length.
pub const LLAMA3_FACTORS: &str = "rope_freqs.weight";
