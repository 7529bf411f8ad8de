//! Attention of a few new tokens over a cache of keys and values.

use crate::Error;
use crate::device::params::{longrope_cache_rotary, longrope_decode_params, longrope_decode_rotating_params};
use crate::device::{Context, DeviceError, Dtype, Grid, Stream};
use crate::ops::attention_arguments::pointer;
use crate::ops::cache::{Cache, NewTokens};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::cached_attention::{CachedAttention, DecodeTensors, scale_log2};
use crate::ops::decode_clusters::cluster_size;
use crate::ops::decode_kernels::{
    CLUSTER_SHARED_BYTES, MERGE_THREADS, MERGES, SHARED_BYTES, has_clusters, kernels,
};
use crate::ops::workspace::Workspace;

/// Attention of the last tokens of sequences over all of their tokens: `out = softmax(scale q kᵀ + mask) v`, for grouped heads,
/// with keys and values read from a cache that holds the new tokens already.
///
/// Of a sequence of length `L` with `n` new tokens, query `i` stands at position `L - n + i` and sees the keys up to its own
/// position. A sequence of length 0 gets zeros and a log-sum-exp of minus infinity. Query head `h` reads key head
/// `h / (query_heads / key_heads)`. What lies in the cache beyond a sequence's length never reaches an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decode<'a> {
    /// Keys and values, and the length of each sequence.
    pub cache: Cache,
    /// Which tokens the queries are.
    pub tokens: NewTokens,
    /// Rotates keys while they are read, if they lie in the cache [as they came](crate::ops::CachedKeys::Unrotated); queries are
    /// rotated already. `None`: so are the keys.
    pub rotary: Option<CacheRotary<'a>>,
    /// What logits are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// How many positions a query sees back, its own included; `None` is no limit.
    pub window: Option<u64>,
    /// How the keys of a sequence are divided among blocks.
    pub split: Split,
    /// The caller's promise of what the launch or copy just before this one on the stream writes: of all that this one reads, at most the
    /// queries, and the keys and values of the new tokens of this call, as an [`Append`](crate::ops::Append) of the same tokens does;
    /// so of a sequence of length `L` with `n` new tokens nothing below position `L - n`, in pages that are shared with others neither.
    /// Earlier keys and values, lengths, starts, the page table and choices of sets are then read while it still runs. If that launch
    /// itself lets others begin before it has waited for the one before it, the promise is of that one too, and so on. `false`: nothing that is
    /// read before the launch has ended is made use of unless it is the same afterwards.
    pub settled: bool,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_LENGTH`](crate::ops::BAD_LENGTH),
    /// [`BAD_PAGE`](crate::ops::BAD_PAGE), [`BAD_SEQUENCE`](crate::ops::BAD_SEQUENCE), [`BAD_CHOICE`](crate::ops::BAD_CHOICE)); it
    /// clears none. The rows of a bad sequence are not written.
    pub status: Option<u64>,
}

/// How the keys of a sequence are divided among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// All blocks get equal work.
    Balanced,
    /// Each sequence in so many equal parts, 1 to 1024, so that its bits do not depend on the batch around it.
    Fixed(u32),
}

/// New tokens of a sequence, at most.
const MAX_TOKENS: usize = 16;
/// Parts of a sequence, at most.
const MAX_SPLITS: u32 = 1024;
/// Blocks of a balanced grid, at most: the workspace holds the results of so many, lest its size depend on the GPU.
pub(super) const MAX_BLOCKS: u32 = 512;
/// Blocks that a multiprocessor runs at once: the shared memory of two fits.
const BLOCKS_EACH: u32 = 2;

impl Decode<'_> {
    /// As many new tokens of each sequence, keys that are rotated already, the default scale, no window, balanced.
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            tokens: NewTokens::Dense,
            rotary: None,
            scale: None,
            window: None,
            split: Split::Balanced,
            settled: false,
            status: None,
        }
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Decode::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        self.plan(tensors, Gpu::ANY).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors. A function of shapes and of the split alone.
    ///
    /// # Errors
    /// As [`Decode::supported`].
    pub fn workspace_size(&self, tensors: &DecodeTensors) -> Result<usize, Error> {
        self.plan(tensors, Gpu::ANY).map(|plan| workspace_bytes(plan.as_ref()))
    }

    /// Launches the attention, and the merge of its parts.
    ///
    /// # Errors
    /// [`Error::Argument`]: shapes or types that do not belong together, a missing or misaligned address, an output that overlaps
    /// itself, a scale that is not finite, a window of 0, no part or more than 1024, a workspace that is too small or misaligned.
    /// [`Error::Unsupported`]: f32 queries, a head dimension that is not a multiple of 8 up to 256 or not of stride 1, rows that
    /// are not at multiples of 16 bytes, pages of other than 16, 32, ... 256 tokens, more than 16 new tokens of a sequence, 2^20
    /// heads or 2^31 tokens of a page table's row, 2^31 sequences or blocks; to rotate keys, pairs that are not a multiple of 8, or
    /// angles in parity mode. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernels ended, aligned to their
    /// elements, and as large as the shapes say; those of lengths and queries, and where
    /// [`settled`](Decode::settled) is set all that is read, from when the launch before this one on the stream may begin. The outputs must
    /// overlap no other memory in use. Where `settled` is set, its promise must hold.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &DecodeTensors,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let plan = self.plan(tensors, Gpu::of(context))?;
        workspace.check(workspace_bytes(plan.as_ref()))?;
        let Some(mut plan) = plan else { return Ok(()) };
        plan.params.parts = workspace.address as *mut f32;
        // The log-sum-exps follow the outputs.
        plan.params.parts_lse = workspace.address.wrapping_add(plan.lse_offset) as *mut f32;
        match plan.rotary {
            // SAFETY: the kernel is one that decodes, which takes this block, and waits before it makes use of what may be
            // written; the rest is the caller's promise.
            None => unsafe { plan.launch(context, &plan.params, stream) }?,
            Some(rotary) => {
                let params = longrope_decode_rotating_params { decode: plan.params, rotary };
                // SAFETY: as above, of a kernel that rotates.
                unsafe { plan.launch(context, &params, stream) }?;
            }
        }
        let Some((kernel, grid)) = plan.merge else { return Ok(()) };
        // SAFETY: as above; before it waits, it reads what the kernel before has waited for.
        Ok(unsafe { context.launch_dependent(kernel, grid, &plan.params, stream) }?)
    }

    /// Checks what lies on the device: lengths, starts, the ids of the pages that are read, numbers of sets. Waits for the stream;
    /// the kernel finds the same by itself, and sets bits of the status word.
    ///
    /// # Errors
    /// As [`Decode::supported`]; or the first bad entry, by its index, with its value and what would be right; or an error of the
    /// driver.
    ///
    /// # Safety
    /// As [`Decode::run`].
    pub unsafe fn validate(
        &self,
        context: &Context,
        tensors: &DecodeTensors,
        stream: Stream,
    ) -> Result<(), Error> {
        if self.plan(tensors, Gpu::ANY)?.is_none() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.common().validate(context, tensors, stream) }
    }

    /// Kernels, grids and parameters, without the workspace's address; `None` if there is no query.
    fn plan(&self, tensors: &DecodeTensors, gpu: Gpu) -> Result<Option<Plan>, Error> {
        let DecodeTensors { q, out, lse } = tensors;
        let sequences = self.cache.sequences();
        let most = self.tokens.most(q);
        let idle = q.layout.is_empty() || sequences == 0 || most == 0;
        let common = self.common();
        common.check(tensors, idle)?;
        self.check(tensors)?;
        if idle {
            return Ok(None);
        }
        let (heads, head_dim) = (q.layout.heads(), q.layout.head_dim());
        let key_heads = self.cache.k.layout.heads();
        // At most 2^24 rows, by what was checked.
        let group = heads / key_heads;
        let sequence_rows = group * most;
        let kernels = kernels(head_dim)?;
        let (kernel, rows) = kernels.choose(q.dtype, self.rotary.is_some(), sequence_rows);
        let in_clusters = kernels.choose_for_clusters(q.dtype, self.rotary.is_some(), sequence_rows);
        let slot_rows = rows.min(sequence_rows);
        let fits = |count: Option<usize>| count.filter(|count| *count < 1 << 31);
        let too_many = || {
            let split = match self.split {
                Split::Balanced => String::new(),
                Split::Fixed(splits) => format!(" in {splits} parts"),
            };
            Error::unsupported(
                "tensors",
                format!(
                    "{sequences} sequences of {key_heads} key heads and {sequence_rows} rows each{split}"
                ),
                format!("fewer than 2^31 blocks of {rows} rows, and rows to merge"),
            )
        };
        let items =
            sequences.checked_mul(key_heads).and_then(|n| n.checked_mul(sequence_rows.div_ceil(rows)));
        let items = fits(items).ok_or_else(too_many)?;
        let clusters = in_clusters
            .filter(|_| sequences == 1 && self.split == Split::Balanced && gpu.has_clusters)
            .zip(cluster_size(items, self.most_bytes(most), gpu.multiprocessors));
        let (splits, blocks, slots) = match (self.split, clusters) {
            (Split::Balanced, Some((_, size))) => (1, items * size as usize, 2 * MAX_BLOCKS as usize),
            (Split::Balanced, None) => (0, gpu.balanced_blocks() as usize, 2 * MAX_BLOCKS as usize),
            (Split::Fixed(splits), _) => {
                let blocks = fits(items.checked_mul(splits as usize)).ok_or_else(too_many)?;
                (splits, blocks, blocks)
            }
        };
        // Balanced, only what lies on both sides of a border of blocks is in parts: look at the fewer of the two.
        let borders = blocks - 1;
        let merges_borders = splits == 0 && items > borders;
        let merges = if merges_borders { borders } else { items };
        let merge_blocks = fits(merges.checked_mul(slot_rows)).ok_or_else(too_many)?;
        // 2^31 slots of 32 rows of 257 numbers fit 63 bits.
        let slot_bytes = (slots * slot_rows * 4) as u64;
        let lse_offset = slot_bytes * head_dim as u64;
        let scale = common.scale(head_dim);
        let lse_stride = lse.map_or([0; 3], |lse| {
            let [batch, length, heads, _] = lse.layout.strides();
            [batch, length, heads]
        });
        let params = longrope_decode_params {
            cache: self.cache.params(),
            tokens: self.tokens.params(q),
            q: pointer(q.address),
            out: pointer(out.address).cast_mut(),
            lse: lse.map_or(0, |lse| lse.address) as *mut f32,
            q_stride: q.layout.strides(),
            out_stride: out.layout.strides(),
            lse_stride,
            window: common.window(),
            status: self.status.unwrap_or(0) as *mut u32,
            parts: std::ptr::null_mut(),
            parts_lse: std::ptr::null_mut(),
            slot_rows: slot_rows as i64,
            blocks: blocks as i32,
            splits: splits as i32,
            query_heads: heads as i32,
            group: group as i32,
            head_dim: head_dim as i32,
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            scale_log2: scale_log2(scale),
            negate: i32::from(scale < 0.0),
            merges: merges as i32,
            merges_borders: i32::from(merges_borders),
            settled: i32::from(self.settled),
        };
        let (kernel, shared_bytes) = match clusters {
            Some((kernel, _)) => (kernel, CLUSTER_SHARED_BYTES),
            None => (kernel, SHARED_BYTES),
        };
        let grid = Grid { blocks: blocks as u32, threads: [kernels.threads, 1, 1], shared_bytes };
        let merge_grid =
            Grid { blocks: merge_blocks as u32, threads: [MERGE_THREADS, 1, 1], shared_bytes: 0 };
        // One part is the whole.
        let is_merged = splits != 1 && merge_blocks > 0;
        Ok(Some(Plan {
            kernel,
            grid,
            cluster: clusters.map(|(_, size)| size),
            merge: is_merged.then(|| (MERGES[usize::from(q.dtype == Dtype::F16)], merge_grid)),
            params,
            rotary: self.rotary.map(|rotary| rotary.params()).transpose()?,
            lse_offset,
            workspace_bytes: (lse_offset + slot_bytes) as usize,
        }))
    }

    /// Bytes of keys and values that a sequence with so many new tokens may have to read.
    fn most_bytes(&self, most: usize) -> usize {
        let capacity = self.cache.capacity();
        let window = self.window.and_then(|window| usize::try_from(window).ok());
        self.cache.bytes(window.map_or(capacity, |window| capacity.min(window.saturating_add(most))))
    }

    /// What it shares with other attention over a cache.
    fn common(&self) -> CachedAttention<'_> {
        let Self { cache, tokens, rotary, scale, window, status, .. } = *self;
        CachedAttention { cache, tokens, rotary, scale, window, status }
    }

    /// What decoding alone asks for.
    fn check(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        match self.split {
            Split::Fixed(splits) if !(1..=MAX_SPLITS).contains(&splits) => {
                return Err(Error::argument("split", splits, format!("1 to {MAX_SPLITS} parts")));
            }
            _ => self.common().check_offered(tensors)?,
        }
        let most = self.tokens.most(&tensors.q);
        if most > MAX_TOKENS {
            let name = if self.tokens == NewTokens::Dense { "q.length" } else { "tokens.most" };
            let expected = format!("at most {MAX_TOKENS} new tokens of a sequence; Prefill takes more");
            return Err(Error::unsupported(name, most, expected));
        }
        Ok(())
    }
}

/// What a launch depends on of the GPU.
#[derive(Debug, Clone, Copy)]
struct Gpu {
    multiprocessors: u32,
    /// Whether the kernels are there whose blocks form clusters.
    has_clusters: bool,
}

impl Gpu {
    /// Where it is not known yet which: the workspace suits all.
    const ANY: Self = Self { multiprocessors: MAX_BLOCKS, has_clusters: false };

    fn of(context: &Context) -> Self {
        Self { multiprocessors: context.multiprocessors(), has_clusters: has_clusters(context) }
    }

    /// The blocks of a balanced grid.
    fn balanced_blocks(self) -> u32 {
        self.multiprocessors.saturating_mul(BLOCKS_EACH).clamp(1, MAX_BLOCKS)
    }
}

struct Plan {
    kernel: &'static str,
    grid: Grid,
    /// The blocks of a cluster, if the kernel is one of those.
    cluster: Option<u32>,
    /// The kernel that merges parts, if there are any.
    merge: Option<(&'static str, Grid)>,
    params: longrope_decode_params,
    /// Of a kernel that rotates.
    rotary: Option<longrope_cache_rotary>,
    /// Bytes from the workspace's first to the log-sum-exps of parts.
    lse_offset: u64,
    /// Bytes of device memory beside the tensors.
    workspace_bytes: usize,
}

impl Plan {
    /// Launches the kernel that attends.
    ///
    /// # Safety
    /// `params` must be the block that the kernel takes, with addresses that are valid until it ended.
    unsafe fn launch<P>(&self, context: &Context, params: &P, stream: Stream) -> Result<(), DeviceError> {
        let Some(size) = self.cluster else {
            // SAFETY: the caller's promise; kernels that decode wait before they make use of what may be written.
            return unsafe { context.launch_dependent(self.kernel, self.grid, params, stream) };
        };
        // SAFETY: as above, and the kernel is one of those for clusters.
        unsafe { context.launch_clusters(self.kernel, self.grid, size, params, stream) }
    }
}

/// What a launch needs; nothing to launch needs nothing.
fn workspace_bytes(plan: Option<&Plan>) -> usize {
    plan.map_or(0, |plan| plan.workspace_bytes)
}
