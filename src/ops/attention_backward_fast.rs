//! Attention backward on Hopper in one kernel, where sums may have any order: what it takes, what it needs, and its launches.
//!
//! All blocks of a head add to the dQ of the same queries, in f32: the slab. It has room for some heads, which are worked on together;
//! others come after them, in the same place. So the workspace is bounded, whatever the number of heads.

use std::ops::Range;

use crate::Error;
use crate::device::params::backward::{
    longrope_attention_backward_params, longrope_attention_backward_sm90_params,
};
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream, fill_words, tensor_map};
use crate::ops::attention_arguments::{Sequences, blocks_of};
use crate::ops::attention_backward::AttentionBackwardTensors;
use crate::ops::attention_backward_hopper::{MAX_BLOCKS, is_taken};
use crate::ops::attention_backward_kernels::{self as kernels, FastKernel, Kernel};

/// Bytes before all else: a counter; and as many to align what follows.
const COUNTER_BYTES: usize = 128;

/// Bytes of the queries of a key head, their gradients and their part of the slab, that stay in the second-level cache: blocks of
/// keys read and add to all of them again and again. Beyond it the kernels without a slab are as fast, or faster.
const CACHED_BYTES: usize = 32 << 20;

/// What bounds the slab.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlabBounds {
    /// Bytes for several key heads, or sequences.
    several: usize,
    /// Bytes for the query heads of one key head and one sequence of the batch: no fewer can be had.
    one: usize,
}

/// 1 GiB, which costs few heads at a time at no usual length; and what four query heads need of 1,048,576 tokens and 128
/// dimensions, with the room between packed sequences: beyond it the kernels without a slab are taken.
const BOUNDS: SlabBounds = SlabBounds { several: 1 << 30, one: (2 << 30) + (32 << 20) };

/// The launches of the kernel, and of the one that makes dQ of the slab.
pub(super) struct FastPlan<'a> {
    tensors: &'a AttentionBackwardTensors,
    kernel: &'static FastKernel,
    params: longrope_attention_backward_params,
    is_packed: bool,
    /// Tiles of queries of a head in the slab.
    slab_tiles: usize,
    /// Sequences of the batch and key heads that are worked on together.
    together: [usize; 2],
    /// Bytes of the slab and of the sums that are folded.
    slab_bytes: usize,
    sums_bytes: usize,
}

impl<'a> FastPlan<'a> {
    /// The launches that do as `params` say, but for how blocks are numbered; or `None` where the kernels do not take the tensors:
    /// they are bf16, as the other kernels of Hopper take them, and the slab is not too large. `longest`: queries of the longest
    /// sequence. `blocks`: of a sequence and head, for so many tiles of all tokens.
    pub(super) fn new(
        tensors: &'a AttentionBackwardTensors,
        params: longrope_attention_backward_params,
        sequences: Sequences,
        longest: usize,
        blocks: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        Self::within(BOUNDS, tensors, params, sequences, longest, blocks)
    }

    fn within(
        bounds: SlabBounds,
        tensors: &'a AttentionBackwardTensors,
        mut params: longrope_attention_backward_params,
        sequences: Sequences,
        longest: usize,
        blocks: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let AttentionBackwardTensors { q, k, .. } = tensors;
        // In f16 gradients of logits need a power of two of their own for each sum, and dQ and dK sum them in two directions.
        if q.dtype != Dtype::Bf16 || !is_taken(tensors) {
            return None;
        }
        let kernel = kernels::fast(q.layout.head_dim())?;
        let count = params.attention.sequences as usize;
        let (length, group) = (q.layout.length(), q.layout.heads() / k.layout.heads());
        let tiles = longest.div_ceil(kernel.columns);
        let is_packed = matches!(sequences, Sequences::Packed(_));
        let slab_tiles = match is_packed {
            true => (length / kernel.columns).checked_add(count)?,
            false => length.div_ceil(kernel.columns),
        };
        let one = slab_tiles.checked_mul(group * kernel.tile_bytes())?;
        if longest.saturating_mul(group) > CACHED_BYTES / (2 * q.dtype.size() + 4) / kernel.dim {
            return None;
        }
        let together = together([q.layout.batch(), k.layout.heads()], one, bounds)?;
        let steps = blocks_of(&[group, tiles])? as usize;
        let sums_bytes = if steps > kernel.fold_tiles() { MAX_BLOCKS * kernel.folded_bytes() } else { 0 };
        params.key_blocks = blocks(k.layout.length().div_ceil(kernel.kernel.rows)) as i64;
        params.attention.tiles = blocks(length.div_ceil(kernel.columns)).min(tiles) as i64;
        // Of all, which are more than those of a launch.
        for blocks in [params.key_blocks, params.attention.tiles] {
            blocks_of(&[count, q.layout.heads(), blocks as usize])?;
        }
        let slab_bytes = together[0] * together[1] * one;
        Some(Self { tensors, kernel, params, is_packed, slab_tiles, together, slab_bytes, sums_bytes })
    }

    /// The bytes that the launches need beside their tensors.
    pub(super) fn workspace_bytes(&self) -> usize {
        2 * COUNTER_BYTES + self.slab_bytes + self.sums_bytes
    }

    /// Whether a context has the kernels.
    pub(super) fn is_there(&self, context: &Context) -> bool {
        [self.kernel.kernel.name, self.kernel.slab.name].into_iter().all(|name| context.has(name))
    }

    /// Launches the kernels, with delta and with the bytes that are needed at `workspace`.
    ///
    /// # Safety
    /// The addresses of the tensors are of device memory of the stream's context, as large as was said.
    pub(super) unsafe fn launch(
        self,
        context: &Context,
        delta: *const f32,
        workspace: u64,
        stream: Stream,
    ) -> Result<(), Error> {
        let counter = workspace.next_multiple_of(COUNTER_BYTES as u64);
        let [batches, heads] = self.together;
        let (batch, key_heads) = (self.tensors.q.layout.batch(), self.tensors.k.layout.heads());
        for first in (0..batch).step_by(batches) {
            for first_head in (0..key_heads).step_by(heads) {
                let part = Part {
                    batch: first..batch.min(first + batches),
                    key_heads: first_head..key_heads.min(first_head + heads),
                };
                // SAFETY: the caller's promise.
                unsafe { self.launch_part(&part, context, delta, counter, stream) }?;
            }
        }
        Ok(())
    }

    /// Launches them for some sequences of the batch and some heads.
    ///
    /// # Safety
    /// As [`FastPlan::launch`].
    unsafe fn launch_part(
        &self,
        part: &Part,
        context: &Context,
        delta: *const f32,
        counter: u64,
        stream: Stream,
    ) -> Result<(), Error> {
        let FastKernel { kernel, slab, columns, .. } = self.kernel;
        let AttentionBackwardTensors { q, k, v, d_out, .. } = self.tensors;
        let group = q.layout.heads() / k.layout.heads();
        let query_heads = part.key_heads.start * group..part.key_heads.end * group;
        let nowhere = if q.layout.is_empty() { k.address } else { q.address };
        let describe = |tensor: &DeviceTensor, heads: &Range<usize>, rows: usize| {
            let tensor = tensor.part(part.batch.clone(), heads.clone());
            tensor_map::describe(&tensor, rows as u32, nowhere)
        };
        let slab_address = counter + COUNTER_BYTES as u64;
        let backward = self.part_of(part, delta);
        let sequences = backward.attention.sequences as usize;
        let blocks = |each: i64, heads: &Range<usize>| blocks_of(&[sequences, each as usize, heads.len()]);
        let items = blocks(backward.key_blocks, &part.key_heads).unwrap_or(0);
        let slab_blocks = blocks(backward.attention.tiles, &query_heads).unwrap_or(0);
        let params = longrope_attention_backward_sm90_params {
            rows: [describe(k, &part.key_heads, kernel.rows)?, describe(v, &part.key_heads, kernel.rows)?],
            columns: [describe(q, &query_heads, *columns)?, describe(d_out, &query_heads, *columns)?],
            backward,
            drawn: counter as *mut u32,
            sums: (slab_address + self.slab_bytes as u64) as *mut f32,
            items,
            slab: slab_address as *mut f32,
            slab_tiles: self.slab_tiles as i64,
            ..Default::default()
        };
        // SAFETY: the workspace has the counter, and the slab behind it.
        unsafe { fill_words(counter, 0, (COUNTER_BYTES + self.slab_bytes) / 4, stream) }?;
        let launch = |kernel: &Kernel, blocks: u32| {
            if blocks == 0 {
                return Ok(());
            }
            let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
            // SAFETY: the name is that of a kernel of Hopper, which takes this block; the rest is the caller's promise.
            unsafe { context.launch(kernel.name, grid, &params, stream) }
        };
        launch(kernel, items.min(context.multiprocessors().clamp(1, MAX_BLOCKS as u32)))?;
        Ok(launch(slab, slab_blocks)?)
    }

    /// The parameters of a part, as if there were no more.
    fn part_of(&self, part: &Part, delta: *const f32) -> longrope_attention_backward_params {
        let mut params = self.params;
        let group = params.attention.group as usize;
        let (batch, key_head) = (part.batch.start, part.key_heads.start);
        let at = |address: u64, strides: &[i64], head: usize, size: usize| {
            let elements =
                (batch as i64).wrapping_mul(strides[0]).wrapping_add((head as i64).wrapping_mul(strides[2]));
            address.wrapping_add_signed(elements.wrapping_mul(size as i64))
        };
        let AttentionBackwardTensors { dq, dk, dv, .. } = self.tensors;
        let head = key_head * group;
        params.delta = at(delta as u64, &params.delta_stride, head, 4) as *const f32;
        let lse = params.attention.lse as u64;
        params.attention.lse = at(lse, &params.attention.lse_stride, head, 4) as *mut f32;
        params.dq = at(dq.address, &params.dq_stride, head, dq.dtype.size()) as *mut _;
        params.dk = at(dk.address, &params.dk_stride, key_head, dk.dtype.size()) as *mut _;
        params.dv = at(dv.address, &params.dv_stride, key_head, dv.dtype.size()) as *mut _;
        params.key_heads = part.key_heads.len() as i32;
        params.attention.query_heads = (part.key_heads.len() * group) as i32;
        if !self.is_packed {
            params.attention.sequences = part.batch.len() as i32;
            if !params.attention.query_offsets.is_null() {
                params.attention.query_offsets = params.attention.query_offsets.wrapping_add(batch);
            }
        }
        params
    }
}

/// Sequences of the batch, and key heads.
struct Part {
    batch: Range<usize>,
    key_heads: Range<usize>,
}

/// How many sequences of the batch and key heads of so many are worked on together, where one of each needs `one` bytes: of equal
/// size, as far as that goes. All of the batch, if there is room; else one head. `None` if there is no room for one.
fn together([batch, heads]: [usize; 2], one: usize, bounds: SlabBounds) -> Option<[usize; 2]> {
    if one > bounds.one {
        return None;
    }
    let equal = |count: usize, most: usize| count.div_ceil(count.div_ceil(most.max(1)).max(1)).max(1);
    let fit = bounds.several / one.max(1);
    Some(match batch <= fit {
        true => [batch.max(1), equal(heads, fit / batch.max(1))],
        false => [equal(batch, fit), 1],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Attention, Layout};
    use crate::ops::{AttentionBackward, Packed, Starts};

    const GIB: usize = 1 << 30;

    #[test]
    fn as_many_heads_as_fit_share_the_slab() {
        for ([batch, heads], one, expected) in [
            // All.
            ([1, 16], 8 << 20, Some([1, 16])),
            ([8, 16], 1 << 20, Some([8, 16])),
            // Some heads of the whole batch, in sections of about the same size.
            ([1, 8], GIB / 4, Some([1, 4])),
            ([1, 9], GIB / 8, Some([1, 5])),
            ([2, 8], GIB / 5, Some([2, 2])),
            // A part of the batch, a head at a time.
            ([5, 2], GIB / 4, Some([3, 1])),
            // Not even one, but it is within what can be given; and beyond.
            ([2, 8], 2 * GIB, Some([1, 1])),
            ([1, 1], 3 * GIB, None),
            // Nothing.
            ([0, 4], 0, Some([1, 4])),
            ([1, 4], 0, Some([1, 4])),
        ] {
            assert_eq!(together([batch, heads], one, BOUNDS), expected, "{batch} of {heads} heads of {one}");
        }
    }

    fn tensors(batch: usize, length: usize, [heads, key_heads]: [usize; 2]) -> AttentionBackwardTensors {
        let tensor = |heads, dtype, dim| DeviceTensor {
            address: 1 << 20,
            dtype,
            layout: Layout::bshd(batch, length, heads, dim),
        };
        let (queries, keys) = (tensor(heads, Dtype::Bf16, 128), tensor(key_heads, Dtype::Bf16, 128));
        AttentionBackwardTensors {
            q: queries,
            k: keys,
            v: keys,
            out: None,
            lse: tensor(heads, Dtype::F32, 1),
            delta: Some(tensor(heads, Dtype::F32, 1)),
            d_out: queries,
            dq: queries,
            dk: keys,
            dv: keys,
        }
    }

    fn params(tensors: &AttentionBackwardTensors, sequences: usize) -> longrope_attention_backward_params {
        let strides = |tensor: &DeviceTensor| tensor.layout.strides();
        let mut params = longrope_attention_backward_params {
            dq_stride: strides(&tensors.dq),
            dk_stride: strides(&tensors.dk),
            dv_stride: strides(&tensors.dv),
            ..Default::default()
        };
        params.attention.sequences = sequences as i32;
        params.attention.group = (tensors.q.layout.heads() / tensors.k.layout.heads()) as i32;
        params.attention.query_offsets = 4096 as *const i64;
        params
    }

    fn plan(
        bounds: SlabBounds,
        tensors: &AttentionBackwardTensors,
        sequences: Sequences,
    ) -> Option<FastPlan<'_>> {
        let length = tensors.q.layout.length();
        let (count, longest) = match sequences {
            Sequences::Dense => (tensors.q.layout.batch(), length),
            Sequences::Packed(packed) => (packed.count, packed.max_query_length.min(length)),
        };
        FastPlan::within(bounds, tensors, params(tensors, count), sequences, longest, |tiles| tiles)
    }

    #[test]
    fn what_the_second_level_cache_does_not_hold_is_not_taken() {
        for (length, heads, taken) in [
            (16_384, [16, 16], true),
            (32_768, [4, 4], true),
            (32_769, [4, 4], false),
            (16_384, [8, 4], true),
            (16_384, [32, 8], false),
            (1 << 20, [2, 2], false),
        ] {
            let found = plan(BOUNDS, &tensors(1, length, heads), Sequences::Dense).is_some();
            assert_eq!(found, taken, "{length} tokens of {heads:?} heads");
        }
    }

    #[test]
    fn short_sequences_of_more_tokens_than_a_slab_holds_are_not_taken() {
        let plan = |tokens| {
            let starts = Starts::I32;
            let sequences =
                Packed { count: 1, query_starts: 8, key_starts: 8, starts, max_query_length: 4096 };
            plan(BOUNDS, &tensors(1, tokens, [4, 1]), Sequences::Packed(sequences))
                .map(|plan| plan.slab_bytes)
        };
        assert_eq!(plan(1 << 20), Some(2 * GIB + 4 * 64 * 128 * 4));
        assert_eq!(plan(5 << 18), None);
    }

    #[test]
    fn packed_sequences_have_tiles_of_their_own() {
        let tensors = tensors(1, 1000, [2, 1]);
        let packed = |count| {
            let max_query_length = 500;
            let starts = Starts::I32;
            Sequences::Packed(Packed { count, query_starts: 8, key_starts: 8, starts, max_query_length })
        };
        let plan = plan(BOUNDS, &tensors, packed(7)).expect("a small slab");
        assert_eq!(plan.slab_tiles, 1000 / 64 + 7);
        assert_eq!(plan.slab_bytes, 2 * (1000 / 64 + 7) * 64 * 128 * 4);
    }

    #[test]
    fn each_part_is_of_other_sequences_and_heads_and_all_are_had() {
        let tensors = tensors(3, 100, [6, 3]);
        let one = 2 * 128 * 128 * 4;
        for (several, together) in [(one, [1, 1]), (2 * one, [2, 1]), (3 * one, [3, 1]), (6 * one, [3, 2])] {
            let bounds = SlabBounds { several, one };
            let plan = plan(bounds, &tensors, Sequences::Dense).expect("a slab of one");
            assert_eq!(plan.together, together);
            let part = Part { batch: 1..3, key_heads: 2..3 };
            let params = plan.part_of(&part, (1 << 20) as *const f32);
            assert_eq!(
                (params.attention.sequences, params.key_heads, params.attention.query_heads),
                (2, 1, 2)
            );
            let [dq, dk] = [tensors.dq, tensors.dk].map(|tensor| tensor.layout.strides());
            assert_eq!(params.dq as i64, (1 << 20) + 2 * (dq[0] + 4 * dq[2]));
            assert_eq!(params.dk as i64, (1 << 20) + 2 * (dk[0] + 2 * dk[2]));
            assert_eq!(params.attention.query_offsets as usize, 4096 + 8);
            let q = tensors.q.part(part.batch.clone(), 4..6);
            assert_eq!((q.address, q.layout.shape()), (params.dq as u64, [2, 100, 2, 128]));
        }
    }

    #[test]
    fn only_bf16_up_to_128_dimensions_is_taken() {
        let tensors = tensors(1, 100, [2, 1]);
        let fast = AttentionBackward { fast: true, ..AttentionBackward::new(Attention::default()) };
        let needs = |dtype, dim| {
            let with = |tensor: DeviceTensor| {
                let [batch, length, heads, _] = tensor.layout.shape();
                DeviceTensor { dtype, layout: Layout::bshd(batch, length, heads, dim), ..tensor }
            };
            let AttentionBackwardTensors { q, k, v, d_out, dq, dk, dv, .. } = tensors;
            let [q, k, v, d_out, dq, dk, dv] = [q, k, v, d_out, dq, dk, dv].map(with);
            let tensors = AttentionBackwardTensors { q, k, v, d_out, dq, dk, dv, ..tensors };
            let slow = AttentionBackward { fast: false, ..fast };
            fast.workspace_size(&tensors).unwrap() - slow.workspace_size(&tensors).unwrap()
        };
        assert_eq!(needs(Dtype::Bf16, 128), 128 + 2 * 2 * 64 * 128 * 4);
        assert_eq!(needs(Dtype::Bf16, 64), 128 + 2 * 2 * 64 * 64 * 4);
        assert_eq!(needs(Dtype::F16, 128), 0);
        assert_eq!(needs(Dtype::Bf16, 136), 0);
    }
}
