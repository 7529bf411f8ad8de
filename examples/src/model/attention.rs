//! Rotary embedding and attention of this crate on candle's CPU tensors.

use anyhow::{Result, bail};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use longrope::cpu;
use longrope::descriptor::{Attention, Choices, Direction, Layout, Positions, Rotary};
use longrope::scaling::{FactorSets, SetChoice};

use super::config::LlamaConfig;

/// Rotates `q` and `k` by the angles of positions 0, 1, …, and attends causally. `q` is `[tokens, query_heads *
/// head_dim]`, `k` and `v` are `[tokens, key_heads * head_dim]`, all contiguous f32; the result has the shape of `q`.
pub(super) fn rotary_attention(
    config: &LlamaConfig,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sets: &FactorSets,
    choice: SetChoice,
) -> Result<Tensor> {
    let tokens = q.dim(0)?;
    let (query_layout, key_layout) = (
        Layout::bshd(1, tokens, config.query_heads, config.head_dim()),
        Layout::bshd(1, tokens, config.key_heads, config.head_dim()),
    );
    let rotary = Rotary {
        sets,
        pairing: config.pairing,
        direction: Direction::Forward,
        positions: Positions::Offset(0),
        choices: Choices::All(choice),
    };
    let rotated = |x: &Tensor, layout| -> Result<Vec<f32>> {
        with_values(x, |values| {
            let mut out = vec![0.0; values.len()];
            cpu::rotary(&rotary, cpu::Tensor::new(values, layout), cpu::TensorMut::new(&mut out, layout))?;
            Ok(out)
        })
    };
    let (queries, keys) = (rotated(q, query_layout)?, rotated(k, key_layout)?);
    let out = with_values(v, |values| {
        let mut out = vec![0.0; queries.len()];
        cpu::attention(
            &Attention::causal(),
            cpu::Tensor::new(&queries, query_layout),
            cpu::Tensor::new(&keys, key_layout),
            cpu::Tensor::new(values, key_layout),
            cpu::TensorMut::new(&mut out, query_layout),
            None,
        )?;
        Ok(out)
    })?;
    Ok(Tensor::from_vec(out, q.shape(), &Device::Cpu)?)
}

/// Calls `work` on the values of a contiguous f32 tensor on the CPU.
fn with_values<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => work(&values[start..end]),
        _ => bail!("expected a contiguous f32 tensor on the CPU, found {:?}", x.dtype()),
    }
}
