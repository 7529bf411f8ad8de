//! Attention backward on Hopper in one kernel: what it takes, what it needs, and its launches.
//!
//! All blocks of a head add to the dQ of the same queries, in f32: the slab. It has room for some heads, which are worked on together;
//! others come after them, in the same place. So the workspace is bounded, whatever the number of heads. Query heads that share a key
//! head are worked on apart, and add to the same dK and dV: a slab more, which rotated keys have too.
//!
//! Blocks add in turn, so that every sum has one order, or as they come, where any will do.

use std::ops::Range;

use crate::Error;
use crate::device::params::backward::{
    longrope_attention_backward_params, longrope_attention_backward_sm90_params,
};
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream, tensor_map};
use crate::ops::attention_arguments::{Sequences, blocks_of};
use crate::ops::attention_backward::AttentionBackwardTensors;
use crate::ops::attention_backward_hopper::{MAX_BLOCKS, is_taken};
use crate::ops::attention_backward_kernels::{self as kernels, FastKernel, Kernel};
use crate::ops::attention_backward_workspace::{BOUNDS, Bytes, COUNTER_BYTES, SlabBounds, together};

/// Bytes of an item in the list (`GradientItem`).
const ITEM_BYTES: usize = 160;

/// The launches of the kernel, and of the one that makes dQ of the slab.
pub(super) struct FastPlan<'a> {
    tensors: &'a AttentionBackwardTensors,
    kernel: &'static FastKernel,
    is_packed: bool,
    /// Whether blocks add in turn.
    in_turn: bool,
    /// Blocks of a sequence and head: of keys, and of queries in the slab.
    key_blocks: i64,
    query_blocks: i64,
    /// Blocks of keys of a head: of all sequences, if they are packed.
    key_tiles: usize,
    /// Tiles of queries of a head in the slab.
    slab_tiles: usize,
    /// Tiles of keys of a key head in theirs, if there is one.
    key_slab_tiles: Option<usize>,
    /// Sequences of the batch and key heads that are worked on together.
    together: [usize; 2],
    /// Bytes of what lies in the workspace.
    bytes: Bytes,
}

/// Whether sums in one order are faster than those in any, which need zeros before: where there are many short sequences, and one of
/// their blocks seldom waits for another.
fn turns_are_faster(heads: usize, longest: usize, head_dim: usize) -> bool {
    longest <= 2048 && heads >= 128 && kernels::fast(head_dim, true).is_some()
}

impl<'a> FastPlan<'a> {
    /// The launches that do as `params` say, but for how blocks are numbered; or `None` where the kernels do not take the tensors:
    /// they are bf16, as the other kernels of Hopper take them, and the slab is not too large. `fast`: whether sums may have any
    /// order. `longest`: queries of the longest sequence. `blocks`: of a sequence and head, for so many tiles of all tokens.
    pub(super) fn new(
        tensors: &'a AttentionBackwardTensors,
        params: &longrope_attention_backward_params,
        sequences: Sequences,
        fast: bool,
        longest: usize,
        blocks: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        Self::within(BOUNDS, tensors, params, sequences, fast, longest, blocks)
    }

    fn within(
        bounds: SlabBounds,
        tensors: &'a AttentionBackwardTensors,
        params: &longrope_attention_backward_params,
        sequences: Sequences,
        fast: bool,
        longest: usize,
        blocks: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let AttentionBackwardTensors { q, k, .. } = tensors;
        // In f16 gradients of logits need a power of two of their own for each sum, and dQ and dK sum them in two directions.
        if q.dtype != Dtype::Bf16 || !is_taken(tensors) {
            return None;
        }
        let count = params.attention.sequences as usize;
        let in_turn = !fast || turns_are_faster(count * q.layout.heads(), longest, q.layout.head_dim());
        let kernel = kernels::fast(q.layout.head_dim(), in_turn)?;
        let (length, group) = (q.layout.length(), q.layout.heads() / k.layout.heads());
        let tiles = longest.div_ceil(kernel.columns);
        let is_packed = matches!(sequences, Sequences::Packed(_));
        let tiles_of = |length: usize, rows: usize| match is_packed {
            true => (length / rows).checked_add(count),
            false => Some(length.div_ceil(rows)),
        };
        let slab_tiles = tiles_of(length, kernel.columns)?;
        let keys = k.layout.length();
        let key_tiles = tiles_of(keys, kernel.kernel.rows)?;
        let key_slab_tiles = (group > 1 || params.rotates != 0).then_some(key_tiles);
        let one = Bytes {
            turns: if in_turn { slab_tiles.checked_mul(4 * group)? } else { 0 },
            key_turns: if in_turn { 4 * key_slab_tiles.unwrap_or(0) } else { 0 },
            items: if in_turn { key_tiles.checked_mul(group * ITEM_BYTES)? } else { 0 },
            key_slab: key_slab_tiles.unwrap_or(0).checked_mul(kernel.key_tile_bytes())?,
            slab: slab_tiles.checked_mul(group * kernel.tile_bytes())?,
            sums: 0,
        };
        let together = together([q.layout.batch(), k.layout.heads()], one.of_one()?, bounds)?;
        let key_blocks = blocks(keys.div_ceil(kernel.kernel.rows));
        let query_blocks = blocks(length.div_ceil(kernel.columns)).min(tiles);
        // Of all, which are more than those of a launch.
        let key_rows = kernel.kernel.rows / kernel.key_slab.rows * key_blocks;
        for blocks in [key_rows, query_blocks, key_tiles, MOST_LIST_BLOCKS as usize] {
            blocks_of(&[count, q.layout.heads(), blocks])?;
        }
        let sums = if tiles > kernel.fold_tiles() { MAX_BLOCKS * kernel.folded_bytes() } else { 0 };
        let bytes = one.times(together[0] * together[1], sums);
        Some(Self {
            tensors,
            kernel,
            is_packed,
            in_turn,
            key_blocks: key_blocks as i64,
            query_blocks: query_blocks as i64,
            key_tiles,
            slab_tiles,
            key_slab_tiles,
            together,
            bytes,
        })
    }

    /// The bytes that the launches need beside their tensors.
    pub(super) fn workspace_bytes(&self) -> usize {
        // Zeros begin with a counter.
        2 * COUNTER_BYTES + self.bytes.all()
    }

    /// Whether a context has the kernels.
    pub(super) fn is_there(&self, context: &Context) -> bool {
        self.kernel.all().all(|kernel| context.has(kernel.name))
    }

    /// Launches the kernels to do as `params` say, with the bytes that are needed at `workspace`.
    ///
    /// # Safety
    /// The addresses of the tensors are of device memory of the stream's context, as large as was said.
    pub(super) unsafe fn launch(
        self,
        context: &Context,
        params: &longrope_attention_backward_params,
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
                unsafe { self.launch_part(&part, context, params, counter, stream) }?;
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
        params: &longrope_attention_backward_params,
        counter: u64,
        stream: Stream,
    ) -> Result<(), Error> {
        let FastKernel { kernel, slab, key_slab, columns, .. } = self.kernel;
        let in_turn = self.kernel.in_turn.as_ref().filter(|_| self.in_turn);
        let AttentionBackwardTensors { q, k, v, d_out, .. } = self.tensors;
        let group = q.layout.heads() / k.layout.heads();
        let query_heads = part.key_heads.start * group..part.key_heads.end * group;
        let nowhere = if q.layout.is_empty() { k.address } else { q.address };
        let describe = |tensor: &DeviceTensor, heads: &Range<usize>, rows: usize| {
            let tensor = tensor.part(part.batch.clone(), heads.clone());
            tensor_map::describe(&tensor, rows as u32, nowhere)
        };
        let [turns, key_turns, list, key_slab_address, slab_address, sums] =
            self.bytes.addresses(counter + COUNTER_BYTES as u64);
        let sequences = if self.is_packed { params.attention.sequences as usize } else { part.batch.len() };
        let blocks =
            |each: usize, heads: &Range<usize>| blocks_of(&[sequences, each, heads.len()]).unwrap_or(0);
        let key_blocks = self.key_blocks as usize;
        let items = match (self.in_turn, self.is_packed) {
            (false, _) => blocks(key_blocks, &query_heads),
            (true, false) => blocks(self.key_tiles, &query_heads),
            (true, true) => blocks_of(&[self.key_tiles, query_heads.len()]).unwrap_or(0),
        };
        let list_threads = in_turn.map_or(1, |[_, lists]| lists.threads as usize);
        let list_blocks = (self.key_tiles * query_heads.len()).div_ceil(list_threads);
        let list_blocks = (list_blocks as u32).clamp(1, MOST_LIST_BLOCKS);
        let slab_blocks = blocks(self.query_blocks as usize, &query_heads);
        let key_slab_blocks = blocks(kernel.rows / key_slab.rows * key_blocks, &part.key_heads);
        let params = longrope_attention_backward_sm90_params {
            rows: [describe(k, &part.key_heads, kernel.rows)?, describe(v, &part.key_heads, kernel.rows)?],
            columns: [describe(q, &query_heads, *columns)?, describe(d_out, &query_heads, *columns)?],
            backward: self.part_of(params, part),
            drawn: counter as *mut u32,
            sums: sums as *mut f32,
            items,
            sharing: group as i32,
            slab: slab_address as *mut f32,
            slab_tiles: self.slab_tiles as i64,
            key_slab: self.key_slab_tiles.map_or(std::ptr::null_mut(), |_| key_slab_address as *mut f32),
            key_slab_tiles: self.key_slab_tiles.unwrap_or(0) as i64,
            turns: if self.in_turn { turns as *mut u32 } else { std::ptr::null_mut() },
            key_turns: key_turns as *mut u32,
            list: list as *mut _,
            list_blocks,
            section_items: section_items(params, context),
        };
        let zeros = COUNTER_BYTES + self.bytes.zeros(self.in_turn);
        // SAFETY: the workspace has the counter, and the rest behind it.
        unsafe { context.fill_words(counter, 0, zeros / 4, stream) }?;
        let launch = |kernel: &Kernel, blocks: u32| {
            if blocks == 0 {
                return Ok(());
            }
            let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
            // SAFETY: the name is that of a kernel of Hopper, which takes this block; the rest is the caller's promise.
            unsafe { context.launch(kernel.name, grid, &params, stream) }
        };
        let main = match in_turn {
            Some([main, lists]) => {
                if items > 0 {
                    launch(lists, sequences as u32 * list_blocks)?;
                }
                main
            }
            None => kernel,
        };
        launch(main, items.min(context.multiprocessors().clamp(1, MAX_BLOCKS as u32)))?;
        if self.key_slab_tiles.is_some() {
            launch(key_slab, key_slab_blocks)?;
        }
        Ok(launch(slab, slab_blocks)?)
    }

    /// The parameters of a part, as if there were no more. Each query head has keys of its own.
    fn part_of(
        &self,
        params: &longrope_attention_backward_params,
        part: &Part,
    ) -> longrope_attention_backward_params {
        let mut params = *params;
        params.key_blocks = self.key_blocks;
        params.attention.tiles = self.query_blocks;
        let group = params.attention.group as usize;
        let (batch, key_head) = (part.batch.start, part.key_heads.start);
        let at = |address: u64, strides: &[i64], head: usize, size: usize| {
            let elements =
                (batch as i64).wrapping_mul(strides[0]).wrapping_add((head as i64).wrapping_mul(strides[2]));
            address.wrapping_add_signed(elements.wrapping_mul(size as i64))
        };
        let AttentionBackwardTensors { dq, dk, dv, .. } = self.tensors;
        let head = key_head * group;
        params.delta = at(params.delta as u64, &params.delta_stride, head, 4) as *const f32;
        let lse = params.attention.lse as u64;
        params.attention.lse = at(lse, &params.attention.lse_stride, head, 4) as *mut f32;
        params.dq = at(dq.address, &params.dq_stride, head, dq.dtype.size()) as *mut _;
        params.dk = at(dk.address, &params.dk_stride, key_head, dk.dtype.size()) as *mut _;
        params.dv = at(dv.address, &params.dv_stride, key_head, dv.dtype.size()) as *mut _;
        params.attention.query_heads = (part.key_heads.len() * group) as i32;
        params.key_heads = params.attention.query_heads;
        params.attention.group = 1;
        if !self.is_packed {
            params.attention.sequences = part.batch.len() as i32;
            if !params.attention.query_offsets.is_null() {
                params.attention.query_offsets = params.attention.query_offsets.wrapping_add(batch);
            }
        }
        params
    }
}

/// Items of the heads that are worked on at a time. Those of one head keep its queries, and what is added to them, in the second-level
/// cache. Where every query sees every key its blocks begin one after the other, at the same tile, so that it takes several heads for
/// all to begin soon.
fn section_items(params: &longrope_attention_backward_params, context: &Context) -> i32 {
    match params.attention.causal {
        0 => 2 * context.multiprocessors() as i32,
        _ => 1,
    }
}

/// Blocks that list the items of a sequence, at most.
const MOST_LIST_BLOCKS: u32 = 64;

/// Sequences of the batch, and key heads.
struct Part {
    batch: Range<usize>,
    key_heads: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Attention, Layout};
    use crate::ops::{AttentionBackward, Packed, Starts};

    const GIB: usize = 1 << 30;

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
        fast: bool,
    ) -> Option<FastPlan<'_>> {
        let length = tensors.q.layout.length();
        let (count, longest) = match sequences {
            Sequences::Dense => (tensors.q.layout.batch(), length),
            Sequences::Packed(packed) => (packed.count, packed.max_query_length.min(length)),
        };
        FastPlan::within(bounds, tensors, &params(tensors, count), sequences, fast, longest, |tiles| tiles)
    }

    /// Tiles of 64 queries, and of 128 keys and values.
    const TILE: usize = 64 * 128 * 4;
    const KEY_TILE: usize = 2 * 128 * 128 * 4;

    #[test]
    fn what_adds_in_turn_has_counters_and_a_list_and_shared_keys_have_a_slab() {
        for (heads, fast) in [([4, 4], true), ([4, 4], false), ([4, 2], true), ([4, 2], false)] {
            let tensors = tensors(1, 1000, heads);
            let plan = plan(BOUNDS, &tensors, Sequences::Dense, fast).expect("a small slab");
            let Bytes { turns, key_turns, items, key_slab, slab, sums } = plan.bytes;
            let shared = usize::from(heads[1] < heads[0]);
            let in_turn = usize::from(!fast);
            assert_eq!((slab, key_slab, sums), (4 * 16 * TILE, shared * 2 * 8 * KEY_TILE, 0));
            // Of counters, rounded up to what aligns the next; items are of every query head.
            let rounded = |bytes: usize| bytes.next_multiple_of(COUNTER_BYTES);
            assert_eq!(turns, in_turn * rounded(4 * 4 * 16));
            assert_eq!(key_turns, in_turn * shared * rounded(4 * 2 * 8));
            assert_eq!(items, in_turn * rounded(ITEM_BYTES * 4 * 8));
            let addresses = plan.bytes.addresses(256);
            // Zeros begin all; the slab is among them, or comes after.
            assert_eq!(addresses[4 + usize::from(fast)] - 256, plan.bytes.zeros(!fast) as u64);
            assert_eq!(addresses[5] - 256, plan.bytes.all() as u64);
            assert!(addresses.iter().all(|address| address % 16 == 0));
        }
    }

    #[test]
    fn short_sequences_of_more_tokens_than_a_slab_holds_are_not_taken() {
        let plan = |tokens| {
            let starts = Starts::I32;
            let sequences =
                Packed { count: 1, query_starts: 8, key_starts: 8, starts, max_query_length: 4096 };
            plan(BOUNDS, &tensors(1, tokens, [4, 4]), Sequences::Packed(sequences), true)
                .map(|plan| plan.bytes.slab)
        };
        assert_eq!(plan(1 << 22), Some(2 * GIB + TILE));
        assert_eq!(plan(5 << 20), None);
    }

    #[test]
    fn packed_sequences_have_tiles_of_their_own() {
        let tensors = tensors(1, 1000, [2, 1]);
        let packed = |count| {
            let max_query_length = 500;
            let starts = Starts::I32;
            Sequences::Packed(Packed { count, query_starts: 8, key_starts: 8, starts, max_query_length })
        };
        let plan = plan(BOUNDS, &tensors, packed(7), false).expect("a small slab");
        assert_eq!((plan.slab_tiles, plan.key_tiles), (1000 / 64 + 7, 1000 / 128 + 7));
        assert_eq!(plan.bytes.slab, 2 * plan.slab_tiles * TILE);
        assert_eq!(plan.bytes.key_slab, plan.key_tiles * KEY_TILE);
    }

    #[test]
    fn each_part_is_of_other_sequences_and_heads_and_all_are_had() {
        let tensors = tensors(3, 100, [6, 3]);
        let one = 2 * 2 * TILE + KEY_TILE;
        for (several, together) in [(one, [1, 1]), (2 * one, [2, 1]), (3 * one, [3, 1]), (6 * one, [3, 2])] {
            let bounds = SlabBounds { several, one };
            let plan = plan(bounds, &tensors, Sequences::Dense, true).expect("a slab of one");
            assert_eq!(plan.together, together);
            let part = Part { batch: 1..3, key_heads: 2..3 };
            let params = plan.part_of(&params(&tensors, 3), &part);
            assert_eq!(
                (params.attention.sequences, params.key_heads, params.attention.query_heads),
                (2, 2, 2)
            );
            assert_eq!(params.attention.group, 1);
            let [dq, dk] = [tensors.dq, tensors.dk].map(|tensor| tensor.layout.strides());
            assert_eq!(params.dq as i64, (1 << 20) + 2 * (dq[0] + 4 * dq[2]));
            assert_eq!(params.dk as i64, (1 << 20) + 2 * (dk[0] + 2 * dk[2]));
            assert_eq!(params.attention.query_offsets as usize, 4096 + 8);
            let q = tensors.q.part(part.batch.clone(), 4..6);
            assert_eq!((q.address, q.layout.shape()), (params.dq as u64, [2, 100, 2, 128]));
        }
    }

    #[test]
    fn only_bf16_is_taken() {
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
            fast.workspace_size(&tensors).unwrap()
        };
        assert_eq!(needs(Dtype::Bf16, 128), 2 * COUNTER_BYTES + 4 * TILE + KEY_TILE);
        assert_eq!(needs(Dtype::Bf16, 64), 2 * COUNTER_BYTES + (4 * TILE + KEY_TILE) / 2);
        assert!(needs(Dtype::F16, 128) < TILE);
        // A block has half as many keys there.
        assert_eq!(needs(Dtype::Bf16, 256), 2 * COUNTER_BYTES + 2 * (4 * TILE + KEY_TILE));
    }
}
