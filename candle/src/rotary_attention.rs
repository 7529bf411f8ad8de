//! Rotary embedding and attention as one operation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use longrope::Error;
use longrope::descriptor::{Attention, Direction};
use longrope::scaling::Angles;

use crate::attention::AttentionOp;
use crate::attention_backward;
use crate::error;
use crate::layout::{layout, same_kind};
use crate::rotary::Rotary;

/// [`attention`](crate::attention()) of `q` `[batch, query_length, query_heads, head_dim]` over `k` and `v`
/// `[batch, key_length, key_heads, head_dim]`, of one type on one device, where `rotary` rotates queries and keys first; the result
/// has the shape of `q`.
///
/// Query `i` is rotated by the position `rotary.offset + attention.query_offset + i`, key `j` by
/// `rotary.offset + attention.key_offset + j`. So the result is that of [`Rotary::apply_one`] of each at these positions, then
/// attention; with both offsets of `attention` zero, that of [`Rotary::apply`].
///
/// A backward pass gives the gradients of all three, those of queries and keys as they were before the rotation. On a GPU the
/// kernels that sum these rotate them back before they are rounded and stored, so no further pass reads or writes them. What is
/// kept for it is the log-sum-exp. Rotated queries and keys are not: it rotates them again, a pass over each. 131,072 tokens of 32
/// query heads and 8 key heads of 128 dimensions would be 1.25 GiB more in 16 bits, in every layer.
///
/// # Errors
/// [`Direction::Backward`], angles in parity mode, factor sets of no pairs or larger than the heads, and what
/// [`attention`](crate::attention()) refuses; there, an offset is one with that of `rotary` added.
pub fn rotary_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rotary: &Rotary,
    attention: &Attention,
) -> Result<Tensor> {
    q.apply_op3(k, v, operation(q, k, v, rotary, attention)?)
}

/// The operation of these tensors, which it is checked for.
pub(crate) fn operation(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rotary: &Rotary,
    attention: &Attention,
) -> Result<RotaryAttentionOp> {
    same_kind(("q", q), &[("k", k), ("v", v)])?;
    check(rotary, layout("q", q.layout())?.head_dim()).map_err(error)?;
    // Masks compare positions, so they stay. What saturates is beyond what an attention takes, and refused there.
    let attention = Attention {
        query_offset: attention.query_offset.saturating_add(rotary.offset),
        key_offset: attention.key_offset.saturating_add(rotary.offset),
        ..*attention
    };
    Ok(RotaryAttentionOp { rotary: rotary.clone(), attention: AttentionOp::new(attention) })
}

/// What the kernels of the backward pass demand, so that a call means the same on every device.
fn check(rotary: &Rotary, head_dim: usize) -> std::result::Result<(), Error> {
    let pairs = rotary.sets.pairs();
    if pairs == 0 || 2 * pairs > head_dim {
        let expected = format!("1 to {}, half of the head dimension", head_dim / 2);
        return Err(Error::argument("rotary.sets", format!("{pairs} pairs"), expected));
    }
    if rotary.direction == Direction::Backward {
        return Err(Error::argument("rotary.direction", "Backward", "Forward"));
    }
    if matches!(rotary.sets.plain().angles(), Angles::Parity(_)) {
        return Err(Error::unsupported("rotary.sets", "angles in parity mode", "exact angles"));
    }
    Ok(())
}

/// The operation as candle records it.
pub(crate) struct RotaryAttentionOp {
    rotary: Rotary,
    /// Of rotated queries and keys, from the positions by which they are rotated.
    attention: AttentionOp,
}

const NAME: &str = "longrope-rotary-attention";

impl RotaryAttentionOp {
    /// The rotations of queries and of keys.
    fn rotations(&self) -> [Rotary; 2] {
        let Attention { query_offset, key_offset, .. } = self.attention.attention;
        [self.rotary.at(query_offset), self.rotary.at(key_offset)]
    }
}

impl CustomOp3 for RotaryAttentionOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [queries, keys] = self.rotations();
        let (q, k) = (queries.on_cpu(&[("q", q, q_layout)])?, keys.on_cpu(&[("k", k, k_layout)])?);
        let [q_layout, k_layout] = [q_layout, k_layout].map(|x| Layout::contiguous(x.shape()));
        self.attention.cpu_fwd(&q, &q_layout, &k, &k_layout, v, v_layout)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let AttentionOp { attention, lse } = &self.attention;
        let Some(lse) = lse.get() else {
            return Err(candle_core::Error::BackwardNotSupported { op: NAME });
        };
        let [queries, keys] = self.rotations();
        let (q, k) = (queries.apply_one_no_bwd(q)?, keys.apply_one_no_bwd(k)?);
        let inputs = [&q, &k, v, out, d_out];
        let [dq, dk, dv] = attention_backward::gradients(attention, Some(&self.rotary), lse, inputs)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_layout: &Layout,
        k: &candle_core::CudaStorage,
        k_layout: &Layout,
        v: &candle_core::CudaStorage,
        v_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let [queries, keys] = self.rotations();
        let q = crate::cuda::rotary(&queries, &[("q", q, q_layout)])?;
        let k = crate::cuda::rotary(&keys, &[("k", k, k_layout)])?;
        let [q_layout, k_layout] = [q_layout, k_layout].map(|x| Layout::contiguous(x.shape()));
        self.attention.cuda_fwd(&q, &q_layout, &k, &k_layout, v, v_layout)
    }
}
