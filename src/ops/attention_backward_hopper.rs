//! Attention backward on Hopper: what its kernels take, what they need, and their launch.

use crate::Error;
use crate::device::params::backward::{
    longrope_attention_backward_params, longrope_attention_backward_sm90_params,
};
use crate::device::{Context, DeviceTensor, Grid, Stream, tensor_map};
use crate::ops::attention_arguments::{blocks_of, section_heads};
use crate::ops::attention_backward::AttentionBackwardTensors;
use crate::ops::attention_backward_kernels::{self as kernels, HopperKernel, Kernel};

/// Blocks of a launch, at most: more than any GPU of this kind has multiprocessors.
pub(super) const MAX_BLOCKS: usize = 144;

/// Bytes before all else: a counter for each kernel, and room to align what follows.
const COUNTER_BYTES: usize = 128;

/// The launches of both kernels, that for dQ first.
pub(super) struct HopperPlan<'a> {
    tensors: &'a AttentionBackwardTensors,
    launches: [HopperLaunch; 2],
    bytes: usize,
}

/// A launch of a kernel, or none where there are no items. Its parameters are those of all launches, but for how blocks are numbered.
struct HopperLaunch {
    kernel: &'static HopperKernel,
    items: u32,
    /// Of the kernel for dQ.
    tiles: i64,
    section_heads: i32,
    sections: i32,
    /// Of that for dK and dV.
    key_blocks: i64,
}

/// Whether kernels of Hopper can take the tensors: the copy engine can be told of them, gradients can be written in 16 bytes, and
/// no length is beyond 2^30.
pub(super) fn is_taken(tensors: &AttentionBackwardTensors) -> bool {
    let AttentionBackwardTensors { q, k, v, d_out, dq, dk, dv, .. } = tensors;
    [q, k, v, d_out].into_iter().all(tensor_map::can_describe)
        && [dq, dk, dv].into_iter().all(DeviceTensor::is_vectorizable)
        && q.layout.length().max(k.layout.length()) <= 1 << 30
}

impl<'a> HopperPlan<'a> {
    /// The launches that do as `params` say, but for how blocks are numbered; or `None` where the kernels do not take the tensors.
    /// `longest`: queries of the longest sequence. `key_blocks`: of a sequence and key head, for so many tiles of keys.
    pub(super) fn new(
        tensors: &'a AttentionBackwardTensors,
        params: &longrope_attention_backward_params,
        longest: usize,
        key_blocks: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let AttentionBackwardTensors { q, k, .. } = tensors;
        if !is_taken(tensors) {
            return None;
        }
        let kernels::HopperKernels { queries, keys } = kernels::hopper(q.dtype, q.layout.head_dim())?;
        let sequences = params.attention.sequences as usize;
        let (heads, key_heads) = (q.layout.heads(), k.layout.heads());
        let key_length = k.layout.length();

        let tiles = longest.div_ceil(queries.kernel.rows);
        let section_heads =
            section_heads(2 * k.dtype.size() * k.layout.head_dim(), key_length, key_heads, heads);
        let sections = heads.div_ceil(section_heads);
        let blocks = key_blocks(key_length.div_ceil(keys.kernel.rows));
        let launch = |kernel, items| HopperLaunch {
            kernel,
            items,
            tiles: tiles as i64,
            section_heads: section_heads as i32,
            sections: sections as i32,
            key_blocks: blocks as i64,
        };
        let launches = [
            launch(queries, blocks_of(&[sequences, tiles, section_heads, sections])?),
            launch(keys, blocks_of(&[sequences, blocks, key_heads])?),
        ];

        let columns_of_keys = blocks_of(&[heads / key_heads, longest.div_ceil(keys.columns)])? as usize;
        let folded = |kernel: &HopperKernel, tiles: usize| match tiles >= kernel.fold_tiles() {
            true => MAX_BLOCKS * kernel.folded_bytes(),
            false => 0,
        };
        let sums = folded(queries, key_length.div_ceil(queries.columns)).max(folded(keys, columns_of_keys));
        Some(Self { tensors, launches, bytes: COUNTER_BYTES + sums })
    }

    /// The bytes that the launches need beside their tensors.
    pub(super) fn workspace_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a context has the kernels.
    pub(super) fn is_there(&self, context: &Context) -> bool {
        self.launches.iter().all(|launch| context.has(launch.kernel.kernel.name))
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
        let AttentionBackwardTensors { q, k, v, d_out, .. } = self.tensors;
        let nowhere = if q.layout.is_empty() { k.address } else { q.address };
        let of_queries = [q, d_out];
        let of_keys = [k, v];
        for (which, launch) in self.launches.into_iter().enumerate() {
            let HopperLaunch { kernel, items, tiles, section_heads, sections, key_blocks } = launch;
            if items == 0 {
                continue;
            }
            let Kernel { name, threads, shared_bytes, rows, .. } = kernel.kernel;
            let (row_tensors, column_tensors) =
                if which == 0 { (of_queries, of_keys) } else { (of_keys, of_queries) };
            let describe = |tensor, rows: usize| tensor_map::describe(tensor, rows as u32, nowhere);
            let drawn = workspace + 4 * which as u64;
            let mut params = longrope_attention_backward_sm90_params {
                rows: [describe(row_tensors[0], rows)?, describe(row_tensors[1], rows)?],
                columns: [
                    describe(column_tensors[0], kernel.columns)?,
                    describe(column_tensors[1], kernel.columns)?,
                ],
                backward: *params,
                drawn: drawn as *mut u32,
                sums: (workspace + COUNTER_BYTES as u64) as *mut f32,
                items,
                ..Default::default()
            };
            params.backward.attention.tiles = tiles;
            params.backward.attention.section_heads = section_heads;
            params.backward.attention.sections = sections;
            params.backward.key_blocks = key_blocks;
            let blocks = items.min(context.multiprocessors().clamp(1, MAX_BLOCKS as u32));
            if items > blocks {
                // SAFETY: the workspace begins with the counters.
                unsafe { context.fill_words(drawn, 0, 1, stream) }?;
            }
            let staged = if params.backward.rotates != 0 { kernel.staged_bytes() } else { 0 };
            let grid = Grid { blocks, threads: [threads, 1, 1], shared_bytes: shared_bytes + staged };
            // SAFETY: the name is that of a kernel of Hopper, which takes this block; the rest is the caller's promise.
            unsafe { context.launch(name, grid, &params, stream) }?;
        }
        Ok(())
    }
}
