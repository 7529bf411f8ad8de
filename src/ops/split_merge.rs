//! Partial results of an attention whose keys were divided among blocks, and their merge.

use crate::device::params::{
    longrope_attention_params, longrope_cache, longrope_merge_params, longrope_new_tokens,
    longrope_split_merge_params,
};
use crate::device::{Context, DeviceError, Dtype, Family, Grid, Stream};

/// Threads of a merging block, a warp a row (`kMergeThreads`).
const MERGE_THREADS: u32 = 256;

/// The log-sum-exp of a row of a bad sequence, as bits (`kBadPart`).
const BAD_PART: u32 = 0x7fc0_bada;

/// By [`Dtype`]: the instances in `cuda/split_merge.cu`.
static MERGES: [&str; 3] =
    ["longrope_split_merge_f32", "longrope_split_merge_f16", "longrope_split_merge_bf16"];

/// What a context loads.
pub(super) fn family() -> Family {
    Family::portable("split_merge", MERGES.to_vec(), 0)
}

/// The parts, contiguous `[part][batch][length][heads][head_dim]` in f32 and their log-sum-exps after them, and the merge into
/// what the attention was to write.
pub(super) struct SplitMerge {
    kernel: &'static str,
    grid: Grid,
    params: longrope_split_merge_params,
    /// Bytes from the first part to the log-sum-exps, and of all.
    lse_offset: u64,
    bytes: usize,
}

impl SplitMerge {
    /// Has an attention of this shape, which has fewer than 2^31 rows in all parts, write parts. `sequences`: those of a cache, if bad
    /// ones among them are to be left out.
    pub(super) fn new(
        attention: &mut longrope_attention_params,
        out: Dtype,
        [batch, length, heads, head_dim]: [usize; 4],
        splits: usize,
        sequences: Option<(longrope_cache, longrope_new_tokens)>,
    ) -> Self {
        let rows = batch * length * heads;
        let lse_offset = splits * rows * head_dim * 4;
        let (cache, tokens) = sequences.unwrap_or_default();
        let [length, heads, dim] = [length, heads, head_dim].map(|size| size as i64);
        let lse_stride = [length * heads, heads, 1];
        let in_stride = [length * heads * dim, heads * dim, dim, 1];
        let merge = longrope_merge_params {
            part_stride: batch as i64 * in_stride[0],
            part_lse_stride: batch as i64 * lse_stride[0],
            part_count: splits as i64,
            in_stride,
            in_lse_stride: lse_stride,
            out: attention.out,
            lse: attention.lse,
            out_stride: attention.out_stride,
            lse_stride: attention.lse_stride,
            batch: batch as i64,
            length,
            heads: heads as i32,
            head_dim: dim as i32,
            ..Default::default()
        };
        (attention.out_stride, attention.lse_stride, attention.out_is_f32) = (in_stride, lse_stride, 1);
        let blocks = rows.div_ceil(MERGE_THREADS as usize / 32) as u32;
        Self {
            kernel: MERGES[out as usize],
            grid: Grid { blocks, threads: [MERGE_THREADS, 1, 1], shared_bytes: 0 },
            params: longrope_split_merge_params { merge, cache, tokens },
            lse_offset: lse_offset as u64,
            bytes: lse_offset + splits * rows * 4,
        }
    }

    /// The bytes of the parts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts the parts at an address.
    pub(super) fn place(&mut self, attention: &mut longrope_attention_params, address: u64) {
        let lse = address.wrapping_add(self.lse_offset);
        attention.out = address as *mut std::ffi::c_void;
        attention.lse = lse as *mut f32;
        self.params.merge.parts = address as *const f32;
        self.params.merge.parts_lse = lse as *const f32;
    }

    /// Marks all rows as those of a bad sequence, so that only what the attention writes is merged.
    ///
    /// # Safety
    /// The parts are placed in memory of the stream's context.
    pub(super) unsafe fn mark_bad(&self, context: &Context, stream: Stream) -> Result<(), DeviceError> {
        let merge = &self.params.merge;
        let rows = (merge.batch * merge.length) as usize * merge.heads as usize;
        // SAFETY: the first part has so many log-sum-exps.
        unsafe { context.fill_words(merge.parts_lse as u64, BAD_PART, rows, stream) }
    }

    /// Launches the merge, after the attention.
    ///
    /// # Safety
    /// The parts and what is written are in memory of the stream's context, and as large as was said.
    pub(super) unsafe fn launch(&self, context: &Context, stream: Stream) -> Result<(), DeviceError> {
        // SAFETY: the name is that of a kernel that takes this block; the rest is the caller's promise.
        unsafe { context.launch(self.kernel, self.grid, &self.params, stream) }
    }
}
