//! Attention forward on Hopper: what its kernel takes, what it needs, and its launch.

use crate::Error;
use crate::device::params::{longrope_attention_params, longrope_attention_sm90_params};
use crate::device::{Context, Grid, Stream, clear_word, tensor_map};
use crate::ops::AttentionTensors;
use crate::ops::attention_kernels::{self as kernels, HopperKernel, Kernel};
use crate::ops::workspace::Workspace;

/// Blocks of a launch, at most: more than any GPU of this kind has multiprocessors.
const MAX_BLOCKS: usize = 144;

/// Keys beyond which sums are folded into the workspace (a tile more than `kFoldTiles` of them).
const UNFOLDED_KEYS: usize = 4096;

/// Bytes of the workspace before the sums: a counter, and room to align what follows.
const COUNTER_BYTES: usize = 128;

/// The kernel for these tensors and for sequences of about so many keys, if they are of the kind that it takes: the copy engine can be told of them, the output can be
/// written in pairs, no length is beyond 2^30, and the scale is not below zero.
pub(super) fn kernel(tensors: &AttentionTensors, keys: usize, scale: f32) -> Option<&'static HopperKernel> {
    let AttentionTensors { q, k, v, out, .. } = tensors;
    let is_taken = scale >= 0.0
        && [q, k, v].into_iter().all(tensor_map::can_describe)
        && out.is_vectorizable()
        && q.layout.length().max(k.layout.length()) <= 1 << 30;
    if is_taken { kernels::hopper(q.dtype, q.layout.head_dim(), keys) } else { None }
}

/// The bytes that a launch needs beside its tensors, for so many keys.
pub(super) fn workspace_bytes(kernel: &HopperKernel, keys: usize) -> usize {
    COUNTER_BYTES + if keys > UNFOLDED_KEYS { MAX_BLOCKS * kernel.kernel.rows * kernel.dim * 4 } else { 0 }
}

/// Query heads that are worked on together: whole groups, and as many as have 64 MiB of keys and values (`key_bytes` each, of one
/// head). That is more than the second-level cache holds at once, but blocks walk over the same keys at nearly the same time.
/// And so many that there are 1,024 items to share out: with fewer, some blocks end long before others.
pub(super) fn section_heads(
    key_bytes: usize,
    keys: usize,
    [key_heads, heads]: [usize; 2],
    tiles: usize,
) -> usize {
    const CACHE_BYTES: usize = 64 << 20;
    const ITEMS: usize = 1024;
    let group = heads / key_heads;
    let fit = CACHE_BYTES / key_bytes.saturating_mul(keys).max(1);
    let shared_out = ITEMS.div_ceil(tiles.saturating_mul(group).max(1));
    let sections = key_heads.div_ceil(fit.max(shared_out).clamp(1, key_heads));
    // Of equal size, as far as that goes.
    key_heads.div_ceil(sections) * group
}

/// Launches the kernel for so many items: blocks of queries of all heads and sequences.
///
/// # Safety
/// As [`super::Attention::run`]; the parameters are of these tensors, and the workspace has the bytes that are needed.
pub(super) unsafe fn launch(
    context: &Context,
    kernel: &HopperKernel,
    tensors: &AttentionTensors,
    params: longrope_attention_params,
    items: u32,
    workspace: Workspace,
    stream: Stream,
) -> Result<(), Error> {
    let AttentionTensors { q, k, v, .. } = tensors;
    let [rows, keys] = [kernel.kernel.rows as u32, kernel.keys];
    let params = longrope_attention_sm90_params {
        q: tensor_map::describe(q, rows, q.address)?,
        k: tensor_map::describe(k, keys, q.address)?,
        v: tensor_map::describe(v, keys, q.address)?,
        attention: params,
        drawn: workspace.address as *mut u32,
        sums: (workspace.address + COUNTER_BYTES as u64) as *mut f32,
        items,
        padding: 0,
    };
    let blocks = items.min(context.multiprocessors().clamp(1, MAX_BLOCKS as u32));
    if items > blocks {
        // SAFETY: the workspace begins with the counter.
        unsafe { clear_word(workspace.address, stream) }?;
    }
    let Kernel { name, threads, shared_bytes, .. } = kernel.kernel;
    let grid = Grid { blocks, threads: [threads, 1, 1], shared_bytes };
    // SAFETY: the name is that of a kernel of Hopper, which takes this block; the rest is the caller's promise.
    Ok(unsafe { context.launch(name, grid, &params, stream) }?)
}
