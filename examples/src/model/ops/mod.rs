//! What a Llama needs beside matrix products, rotary embedding and attention, each in one pass over memory.
//!
//! On a GPU they run in f16 or bf16 and compute in f32; on the CPU in f32. [`rms_norm`] and [`silu_product`], which training takes,
//! have gradients; [`cross_entropy`]'s is an operation of its own.

mod add_norm;
mod cross_entropy;
mod gated_silu;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod launch_gradients;
mod rms_norm;
mod silu_product;

pub use add_norm::add_norm;
pub use cross_entropy::{cross_entropy, cross_entropy_gradient};
pub use gated_silu::gated_silu;
#[cfg(feature = "cuda")]
pub use launch::ptx;
pub use rms_norm::rms_norm;
pub use silu_product::silu_product;

use candle_core::{CpuStorage, Layout, Result, bail};

/// The f32 values of a contiguous tensor on the CPU.
fn values<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("{op}: expected a contiguous f32 tensor on the CPU"),
    }
}
