//! longrope's rotary embedding and attention as operations on candle tensors, on the CPU and on CUDA devices.
//!
//! Tensors are `[batch, length, heads, head_dim]` with any strides: transposed, narrowed and broadcast views are read where
//! they lie, without a copy. Results are contiguous, of the type of their input. The CPU takes f32, f16 and bf16 (computed in
//! f32, rounded once); a GPU takes f32, f16 and bf16 for the rotary embedding, f16 and bf16 for attention. A GPU needs the
//! feature `cuda`, and a longrope that was built with nvcc.
//!
//! A backward pass gives gradients through the rotary embedding and through attention, on the CPU and on GPUs. To train, take
//! [`rotary_attention`], which is both: its backward pass rotates gradients where they are summed, in place of a pass over them.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use longrope_candle::{Attention, Rotary, attention, rotary_attention};
//! use longrope_candle::scaling::{RopeConfig, SetChoice};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = RopeConfig::from_hf_json(r#"{"head_dim": 8, "max_position_embeddings": 4096}"#)?;
//! let sets = config.factor_sets(16)?;
//!
//! // 16 tokens, 4 query heads that share 2 key heads, head dimension 8.
//! let q = Tensor::randn(0f32, 1.0, (1, 16, 4, 8), &Device::Cpu)?;
//! let k = Tensor::randn(0f32, 1.0, (1, 16, 2, 8), &Device::Cpu)?;
//! let v = Tensor::randn(0f32, 1.0, (1, 16, 2, 8), &Device::Cpu)?;
//! let rotary = Rotary::new(sets, SetChoice::ByLength(16));
//! let out = rotary_attention(&q, &k, &v, &rotary, &Attention::causal())?;
//! assert_eq!(out.dims(), [1, 16, 4, 8]);
//!
//! // The same in two operations.
//! let (q, k) = rotary.apply(&q, &k)?;
//! let same = attention(&q, &k, &v, &Attention::causal())?;
//! assert_eq!(out.flatten_all()?.to_vec1::<f32>()?, same.flatten_all()?.to_vec1::<f32>()?);
//! # Ok(())
//! # }
//! ```

mod attention;
mod attention_backward;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod kept_attention;
mod layout;
mod rotary;
mod rotary_attention;

pub use attention::attention;
pub use kept_attention::KeptAttention;
pub use longrope::descriptor::{Attention, Direction, Pairing};
pub use longrope::scaling;
pub use rotary::Rotary;
pub use rotary_attention::rotary_attention;

/// An error of longrope as one of candle, with its text.
fn error(error: longrope::Error) -> candle_core::Error {
    candle_core::Error::Wrapped(Box::new(error))
}
