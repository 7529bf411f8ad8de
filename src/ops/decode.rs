//! Attention of a few new tokens over a cache of keys and values.

use crate::Error;
use crate::device::params::longrope_decode_params;
use crate::device::{Context, DeviceTensor, Dtype, Family, Grid, Stream};
use crate::ops::attention::{check_address, pointer};
use crate::ops::cache::{Cache, NewTokens, check_elements, check_vectors};
use crate::ops::workspace::Workspace;

/// Attention of the last tokens of sequences over all of their tokens: `out = softmax(scale q kᵀ + mask) v`, for grouped heads,
/// with keys and values read from a cache that holds the new tokens already.
///
/// Of a sequence of length `L` with `n` new tokens, query `i` stands at position `L - n + i` and sees the keys up to its own
/// position. A sequence of length 0 gets zeros and a log-sum-exp of minus infinity. Query head `h` reads key head
/// `h / (query_heads / key_heads)`. What lies in the cache beyond a sequence's length never reaches an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decode {
    /// Keys and values, and the length of each sequence.
    pub cache: Cache,
    /// Which tokens the queries are.
    pub tokens: NewTokens,
    /// What logits are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// How many positions a query sees back, its own included; `None` is no limit.
    pub window: Option<u64>,
    /// How the keys of a sequence are divided among blocks.
    pub split: Split,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_LENGTH`](crate::ops::BAD_LENGTH),
    /// [`BAD_PAGE`](crate::ops::BAD_PAGE), [`BAD_SEQUENCE`](crate::ops::BAD_SEQUENCE)); it clears none. The rows of a bad sequence
    /// are not written.
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

/// What decoding reads and writes beside the cache. Queries and output are `[batch, length, query_heads, head_dim]`, by
/// [`NewTokens`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeTensors {
    /// Queries, f16 or bf16.
    pub q: DeviceTensor,
    /// The output, of the same type; or f32, as a partial result that is to be merged with others.
    pub out: DeviceTensor,
    /// The natural logarithm of each row's sum of exponentials, f32 `[batch, length, query_heads, 1]`.
    pub lse: Option<DeviceTensor>,
}

/// New tokens of a sequence, at most.
const MAX_TOKENS: usize = 16;
/// Parts of a sequence, at most.
const MAX_SPLITS: u32 = 1024;
/// Blocks of a balanced grid, at most: the workspace holds the results of so many, lest its size depend on the GPU.
const MAX_BLOCKS: u32 = 512;
/// Blocks that a multiprocessor runs at once: the shared memory of two fits.
const BLOCKS_EACH: u32 = 2;

impl Decode {
    /// As many new tokens of each sequence, the default scale, no window, balanced.
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            tokens: NewTokens::Dense,
            scale: None,
            window: None,
            split: Split::Balanced,
            status: None,
        }
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Decode::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        self.plan(tensors, MAX_BLOCKS).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors. A function of shapes and of the split alone.
    ///
    /// # Errors
    /// As [`Decode::supported`].
    pub fn workspace_size(&self, tensors: &DecodeTensors) -> Result<usize, Error> {
        self.plan(tensors, MAX_BLOCKS).map(|plan| workspace_bytes(plan.as_ref()))
    }

    /// Launches the attention, and the merge of its parts.
    ///
    /// # Errors
    /// [`Error::Argument`]: shapes or types that do not belong together, a missing or misaligned address, an output that overlaps
    /// itself, a scale that is not finite, a window of 0, no part or more than 1024, a workspace that is too small or misaligned.
    /// [`Error::Unsupported`]: f32 queries, a head dimension that is not a multiple of 8 up to 256 or not of stride 1, rows that
    /// are not at multiples of 16 bytes, pages of other than 16, 32, ... 256 tokens, more than 16 new tokens of a sequence, 2^20
    /// heads or 2^31 tokens of a page table's row, 2^31 sequences or blocks. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernels ended, aligned to their
    /// elements, and as large as the shapes say. The outputs must overlap no other memory in use.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &DecodeTensors,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let blocks = context.multiprocessors().saturating_mul(BLOCKS_EACH).clamp(1, MAX_BLOCKS);
        let plan = self.plan(tensors, blocks)?;
        workspace.check(workspace_bytes(plan.as_ref()))?;
        let Some(mut plan) = plan else { return Ok(()) };
        plan.params.parts = workspace.address as *mut f32;
        // The log-sum-exps follow the outputs.
        plan.params.parts_lse = workspace.address.wrapping_add(plan.lse_offset) as *mut f32;
        // SAFETY: the name is that of a decoding kernel, which takes this block; the rest is the caller's promise.
        unsafe { context.launch(plan.kernel, plan.grid, &plan.params, stream) }?;
        let Some((kernel, grid)) = plan.merge else { return Ok(()) };
        // SAFETY: as above, and the kernel before lets this one begin early, which waits for what that writes.
        Ok(unsafe { context.launch_dependent(kernel, grid, &plan.params, stream) }?)
    }

    /// Kernels, grids and parameters, without the workspace's address; `None` if there is no query. `balanced`: the blocks of a
    /// balanced grid.
    fn plan(&self, tensors: &DecodeTensors, balanced: u32) -> Result<Option<Plan>, Error> {
        let DecodeTensors { q, out, lse } = tensors;
        let sequences = self.cache.sequences();
        let most = self.tokens.most(q);
        let idle = q.layout.is_empty() || sequences == 0 || most == 0;
        self.validate(tensors, idle)?;
        self.check_offered(tensors)?;
        if idle {
            return Ok(None);
        }
        let (heads, head_dim) = (q.layout.heads(), q.layout.head_dim());
        let key_heads = self.cache.k.layout.heads();
        // At most 2^24 rows, by what was checked.
        let group = heads / key_heads;
        let sequence_rows = group * most;
        let kernels = kernels(head_dim)?;
        let (kernel, rows) = kernels.choose(q.dtype, sequence_rows);
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
        let (splits, blocks, slots) = match self.split {
            Split::Balanced => (0, balanced as usize, 2 * MAX_BLOCKS as usize),
            Split::Fixed(splits) => {
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
        let scale = self.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt());
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
            // A window beyond 63 bits reaches everything.
            window: self.window.map_or(0, |window| i64::try_from(window).unwrap_or(i64::MAX)),
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
            // Above zero, so that -inf times it is -inf; so small, all logits are 0.
            scale_log2: (scale.abs() * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE),
            negate: i32::from(scale < 0.0),
            merges: merges as i32,
            merges_borders: i32::from(merges_borders),
        };
        let grid =
            Grid { blocks: blocks as u32, threads: [kernels.threads, 1, 1], shared_bytes: SHARED_BYTES };
        let merge_grid =
            Grid { blocks: merge_blocks as u32, threads: [MERGE_THREADS, 1, 1], shared_bytes: 0 };
        // One part is the whole.
        let is_merged = splits != 1 && merge_blocks > 0;
        Ok(Some(Plan {
            kernel,
            grid,
            merge: is_merged.then(|| (MERGES[usize::from(q.dtype == Dtype::F16)], merge_grid)),
            params,
            lse_offset,
            workspace_bytes: (lse_offset + slot_bytes) as usize,
        }))
    }

    /// Whether the arguments mean something, be it offered or not.
    fn validate(&self, tensors: &DecodeTensors, idle: bool) -> Result<(), Error> {
        let q = &tensors.q;
        if q.layout.head_dim() == 0 {
            return Err(Error::argument("q.head_dim", 0, "at least 1"));
        }
        self.tokens.check(q, self.cache.sequences(), idle)?;
        self.cache.check(q, idle)?;
        let (heads, key_heads) = (q.layout.heads(), self.cache.k.layout.heads());
        if !heads.is_multiple_of(key_heads) {
            let expected = format!("a divisor of the number of query heads ({heads})");
            return Err(Error::argument("cache.k.heads", key_heads, expected));
        }
        check_address("q", Some(q.address), q.dtype.size() as u64, idle)?;
        check_results(tensors, idle)?;
        check_address("status", self.status, 4, idle)?;
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::argument("scale", scale, "a finite number"));
        }
        if self.window == Some(0) {
            return Err(Error::argument("window", 0, "at least 1, since a query sees its own position"));
        }
        match self.split {
            Split::Fixed(splits) if !(1..=MAX_SPLITS).contains(&splits) => {
                Err(Error::argument("split", splits, format!("1 to {MAX_SPLITS} parts")))
            }
            _ => Ok(()),
        }
    }

    /// What there are kernels for.
    fn check_offered(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        let DecodeTensors { q, out, .. } = tensors;
        check_elements(q)?;
        check_vectors("q", q)?;
        check_vectors("out", out)?;
        self.cache.check_offered()?;
        let most = self.tokens.most(q);
        if most > MAX_TOKENS {
            let name = if self.tokens == NewTokens::Dense { "q.length" } else { "tokens.most" };
            let expected = format!("at most {MAX_TOKENS} new tokens of a sequence");
            return Err(Error::unsupported(name, most, expected));
        }
        Ok(())
    }
}

/// Types, shapes, addresses and the distinctness of what is written.
fn check_results(tensors: &DecodeTensors, idle: bool) -> Result<(), Error> {
    let DecodeTensors { q, out, lse } = tensors;
    let shape = q.layout.shape();
    if out.layout.shape() != shape {
        let expected = format!("{shape:?}, as q");
        return Err(Error::argument("out", format!("shape {:?}", out.layout.shape()), expected));
    }
    if out.dtype != q.dtype && out.dtype != Dtype::F32 {
        let expected = format!("{:?}, as q, or F32", q.dtype);
        return Err(Error::argument("out.dtype", format!("{:?}", out.dtype), expected));
    }
    check_address("out", Some(out.address), out.dtype.size() as u64, idle)?;
    out.layout.check_distinct("out")?;
    let Some(lse) = lse else { return Ok(()) };
    let [batch, length, heads, _] = shape;
    let expected = [batch, length, heads, 1];
    if lse.layout.shape() != expected {
        return Err(Error::argument(
            "lse",
            format!("shape {:?}", lse.layout.shape()),
            format!("{expected:?}, a number for each row of q"),
        ));
    }
    if lse.dtype != Dtype::F32 {
        return Err(Error::argument("lse.dtype", format!("{:?}", lse.dtype), "F32"));
    }
    check_address("lse", Some(lse.address), 4, idle)?;
    lse.layout.check_distinct("lse")
}

struct Plan {
    kernel: &'static str,
    grid: Grid,
    /// The kernel that merges parts, if there are any.
    merge: Option<(&'static str, Grid)>,
    params: longrope_decode_params,
    /// Bytes from the workspace's first to the log-sum-exps of parts.
    lse_offset: u64,
    /// Bytes of device memory beside the tensors.
    workspace_bytes: usize,
}

/// What a launch needs; nothing to launch needs nothing.
fn workspace_bytes(plan: Option<&Plan>) -> usize {
    plan.map_or(0, |plan| plan.workspace_bytes)
}

/// Bytes of shared memory a block (`kSharedBytes`).
const SHARED_BYTES: u32 = 96 << 10;
/// Threads of a merging block (`kDecodeMergeThreads`).
const MERGE_THREADS: u32 = 256;

/// The instances for head dimensions up to one.
struct HeadDim {
    image: &'static str,
    /// The padded head dimension (`kDim`).
    dim: usize,
    /// Threads a block (`kThreads`).
    threads: u32,
    /// Query rows an item (`kRows`), few and many.
    rows: [usize; 2],
    /// bf16 with few and with many rows, f16 with few and with many.
    kernels: [&'static str; 4],
}

macro_rules! head_dim {
    ($dim:literal, threads $threads:literal, rows $few:literal or $many:literal) => {
        HeadDim {
            image: concat!("decode_d", $dim),
            dim: $dim,
            threads: $threads,
            rows: [$few, $many],
            kernels: [
                concat!("longrope_decode_d", $dim, "_bf16_r", $few),
                concat!("longrope_decode_d", $dim, "_bf16_r", $many),
                concat!("longrope_decode_d", $dim, "_f16_r", $few),
                concat!("longrope_decode_d", $dim, "_f16_r", $many),
            ],
        }
    };
}

/// The instances in `cuda/decode_d*.cu`.
static KERNELS: [HeadDim; 4] = [
    head_dim!(64, threads 128, rows 8 or 32),
    head_dim!(96, threads 128, rows 8 or 16),
    head_dim!(128, threads 128, rows 8 or 16),
    // More rows do not fit the registers.
    head_dim!(256, threads 64, rows 8 or 8),
];

/// bf16 and f16: the instances in `cuda/decode_merge.cu`.
static MERGES: [&str; 2] = ["longrope_decode_merge_bf16", "longrope_decode_merge_f16"];

/// The instances for a head dimension.
fn kernels(head_dim: usize) -> Result<&'static HeadDim, Error> {
    let found = KERNELS.iter().find(|instances| head_dim <= instances.dim);
    found.ok_or_else(|| Error::unsupported("q.head_dim", head_dim, "at most 256"))
}

impl HeadDim {
    /// The kernel for a type and the rows of a sequence, and the rows of its items.
    fn choose(&self, dtype: Dtype, sequence_rows: usize) -> (&'static str, usize) {
        let many = usize::from(sequence_rows > self.rows[0]);
        (self.kernels[2 * usize::from(dtype == Dtype::F16) + many], self.rows[many])
    }
}

/// What a context loads.
pub(super) fn families() -> Vec<Family> {
    let attending = KERNELS.iter().map(|instances| Family {
        image: instances.image,
        kernels: instances.kernels.to_vec(),
        shared_bytes: SHARED_BYTES,
        only_on: None,
    });
    let merging = Family { image: "decode_merge", kernels: MERGES.to_vec(), shared_bytes: 0, only_on: None };
    attending.chain([merging]).collect()
}
