//! Attention forward on Hopper: what its kernel takes, what it needs, and its launch.

use crate::Error;
use crate::device::params::{
    longrope_attention_params, longrope_attention_sm90_params, longrope_cache, longrope_new_tokens,
};
use crate::device::{Context, DeviceTensor, Grid, Stream, tensor_map};
use crate::ops::attention_arguments::blocks_of;
use crate::ops::attention_kernels::{self as kernels, HopperKernel, Kernel};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::split_merge::SplitMerge;
use crate::ops::workspace::Workspace;

/// Blocks of a launch, at most: more than any GPU of this kind has multiprocessors.
const MAX_BLOCKS: usize = 144;

/// Multiprocessors that keys are divided for. How they are divided is a function of shapes alone.
const MULTIPROCESSORS: usize = 132;

/// Keys beyond which sums are folded into the workspace (a tile more than `kFoldTiles` of them).
const UNFOLDED_KEYS: usize = 4096;

/// Bytes of the workspace before all else: a counter, and room to align what follows.
const COUNTER_BYTES: usize = 128;

/// What is asked of the kernel.
pub(super) struct Request<'a> {
    pub(super) q: &'a DeviceTensor,
    /// Keys and values; those of a cache by its pages.
    pub(super) k: &'a DeviceTensor,
    pub(super) v: &'a DeviceTensor,
    pub(super) out: &'a DeviceTensor,
    pub(super) sequences: usize,
    /// Queries of the longest sequence.
    pub(super) longest: usize,
    /// Keys that a sequence may have, and about how many it has.
    pub(super) most_keys: usize,
    pub(super) about_keys: usize,
    pub(super) scale: f32,
    /// Whether there may be rows of no sequence, or of a bad one that the kernel does not know: a merge of parts must leave them out.
    pub(super) has_gaps: bool,
    pub(super) cache: Option<(longrope_cache, longrope_new_tokens)>,
    pub(super) rotary: Option<CacheRotary<'a>>,
    pub(super) max_multiprocessors: Option<u32>,
}

/// A launch of the kernel.
pub(super) struct HopperPlan<'a> {
    kernel: &'static HopperKernel,
    params: longrope_attention_params,
    items: u32,
    splits: usize,
    merge: Option<SplitMerge>,
    /// Rows of a box of keys or values.
    key_rows: u32,
    /// Bytes from the start of the workspace.
    parts_at: usize,
    bytes: usize,
    request: Request<'a>,
}

impl<'a> HopperPlan<'a> {
    /// The launch that does as `params` say, which lack how blocks are numbered; or `None` where the kernel does not take the tensors: the
    /// copy engine can be told of them, the output can be written in pairs, no length is beyond 2^30, and the scale is not below zero.
    pub(super) fn new(request: Request<'a>, mut params: longrope_attention_params) -> Option<Self> {
        let Request { q, k, v, out, sequences, longest, most_keys, about_keys, .. } = request;
        let is_taken = request.scale >= 0.0
            && [q, k, v].into_iter().all(tensor_map::can_describe)
            && out.is_vectorizable()
            && q.layout.length().max(most_keys) <= 1 << 30;
        if !is_taken {
            return None;
        }
        let is_paged = request.cache.is_some_and(|(cache, _)| !cache.page_table.is_null());
        // Tiles of pages are those of the kernel for few keys, which pages divide more often.
        let kernel = kernels::hopper(q.dtype, q.layout.head_dim(), if is_paged { 0 } else { about_keys })?;
        let key_rows =
            if is_paged { divisor(k.layout.length(), kernel.keys as usize) } else { kernel.keys as usize };
        let (rows, head_dim) = (kernel.kernel.rows, q.layout.head_dim());
        let (heads, key_heads) = (q.layout.heads(), k.layout.heads());
        let tiles = longest.div_ceil(rows);
        let key_bytes = 2 * k.dtype.size() * head_dim;
        let section_heads = section_heads(key_bytes, about_keys, [key_heads, heads], tiles);
        let sections = heads.div_ceil(section_heads);
        let whole = blocks_of(&[sequences, sections, section_heads, tiles])? as usize;
        let shape = q.layout.shape();
        let all_rows = shape[..3].iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        let splits = splits(whole, about_keys, all_rows);
        params.tiles = tiles as i64;
        params.section_heads = section_heads as i32;
        params.sections = sections as i32;
        let merge =
            (splits > 1).then(|| SplitMerge::new(&mut params, out.dtype, shape, splits, request.cache));
        let items = blocks_of(&[whole, splits])?;
        let folds = most_keys > UNFOLDED_KEYS;
        let parts_at = COUNTER_BYTES + if folds { MAX_BLOCKS * rows * kernel.dim * 4 } else { 0 };
        let bytes = parts_at + merge.as_ref().map_or(0, SplitMerge::bytes).next_multiple_of(128);
        let key_rows = key_rows as u32;
        Some(Self { kernel, params, items, splits, merge, key_rows, parts_at, bytes, request })
    }

    /// The bytes that the launch needs beside its tensors.
    pub(super) fn workspace_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a context has the kernel.
    pub(super) fn is_there(&self, context: &Context) -> bool {
        context.has(self.kernel.kernel.name)
    }

    /// Launches the kernel, and the merge of its parts if there are any.
    ///
    /// # Safety
    /// The addresses of the request are of device memory of the stream's context, as large as was said; the workspace has the bytes
    /// that are needed.
    pub(super) unsafe fn launch(
        mut self,
        context: &Context,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let Request { q, k, v, cache, rotary, max_multiprocessors, .. } = self.request;
        let Kernel { name, threads, shared_bytes, rows, .. } = self.kernel.kernel;
        let at = |offset: usize| workspace.address + offset as u64;
        if let Some(merge) = &mut self.merge {
            merge.place(&mut self.params, at(self.parts_at));
            if self.request.has_gaps {
                // SAFETY: the parts lie in the workspace.
                unsafe { merge.mark_bad(context, stream) }?;
            }
        }
        let (pages, tokens) = cache.unwrap_or_default();
        let mut params = longrope_attention_sm90_params {
            q: tensor_map::describe(q, rows as u32, q.address)?,
            k: tensor_map::describe(k, self.key_rows, q.address)?,
            v: tensor_map::describe(v, self.key_rows, q.address)?,
            attention: self.params,
            drawn: workspace.address as *mut u32,
            sums: at(COUNTER_BYTES) as *mut f32,
            items: self.items,
            splits: self.splits as i32,
            batches: q.layout.batch() as i32,
            is_cached: i32::from(cache.is_some()),
            page_rows: self.key_rows as i32,
            cache: pages,
            tokens,
            ..Default::default()
        };
        if let Some(rotary) = rotary {
            params.rotates = 1;
            params.rotary = rotary.params()?;
        }
        let most = max_multiprocessors.unwrap_or(u32::MAX).min(context.multiprocessors());
        let blocks = self.items.min(most.clamp(1, MAX_BLOCKS as u32));
        if self.items > blocks {
            // SAFETY: the workspace begins with the counter.
            unsafe { context.fill_words(workspace.address, 0, 1, stream) }?;
        }
        let grid = Grid { blocks, threads: [threads, 1, 1], shared_bytes };
        // SAFETY: the name is that of a kernel of Hopper, which takes this block; the rest is the caller's promise.
        unsafe { context.launch(name, grid, &params, stream) }?;
        let Some(merge) = self.merge else { return Ok(()) };
        // SAFETY: the parts lie in the workspace.
        Ok(unsafe { merge.launch(context, stream) }?)
    }
}

/// Query heads that are worked on together: whole groups, and as many as have 64 MiB of keys and values (`key_bytes` each, of one
/// head). That is more than the second-level cache holds at once, but blocks walk over the same keys at nearly the same time.
/// And so many that there are 1,024 items to share out: with fewer, some blocks end long before others.
fn section_heads(key_bytes: usize, keys: usize, [key_heads, heads]: [usize; 2], tiles: usize) -> usize {
    const CACHE_BYTES: usize = 64 << 20;
    const ITEMS: usize = 1024;
    let group = heads / key_heads;
    let fit = CACHE_BYTES / key_bytes.saturating_mul(keys).max(1);
    let shared_out = ITEMS.div_ceil(tiles.saturating_mul(group).max(1));
    let sections = key_heads.div_ceil(fit.max(shared_out).clamp(1, key_heads));
    // Of equal size, as far as that goes.
    key_heads.div_ceil(sections) * group
}

/// Parts of the keys for so many blocks of queries: as many as end soonest when all multiprocessors take one item after the other,
/// with something against each part for what its result costs. None has fewer than 512 keys, and there are at most four rounds of
/// them, so that they need some tens of megabytes.
fn splits(blocks: usize, keys: usize, rows: usize) -> usize {
    const PART_KEYS: usize = 512;
    const ROUNDS: usize = 4;
    let most = (keys / PART_KEYS).min(ROUNDS * MULTIPROCESSORS / blocks.max(1)).min((1 << 31) / rows.max(1));
    // In keys of a block of queries.
    let time = |splits: usize| (keys / splits) * (blocks * splits).div_ceil(MULTIPROCESSORS) + 40 * splits;
    (1..=most.max(1)).min_by_key(|&splits| time(splits)).unwrap_or(1)
}

/// The greatest common divisor.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_divided_where_blocks_are_few() {
        for (blocks, keys, expected) in [
            (64, 1 << 20, 2),
            (1, 1 << 20, 132),
            (1, 2048, 4),
            (16, 511, 1),
            (132, 1 << 20, 1),
            (140, 1 << 20, 3),
            (529, 1 << 20, 1),
        ] {
            assert_eq!(splits(blocks, keys, blocks * 128), expected, "{blocks} blocks of {keys} keys");
        }
        // As many rows as can be counted.
        assert_eq!(splits(1, 1 << 20, 1 << 30), 2);
        assert_eq!(splits(0, 0, 0), 1);
    }

    #[test]
    fn boxes_divide_pages_and_tiles() {
        let found = [16, 48, 64, 80, 128, 256].map(|page| divisor(page, 128));
        assert_eq!(found, [16, 16, 64, 16, 128, 128]);
    }
}
