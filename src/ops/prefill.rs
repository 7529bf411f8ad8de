//! Attention of many new tokens over a cache of keys and values.

use crate::Error;
use crate::device::params::{
    longrope_attention_params, longrope_cache_rotary, longrope_cached_attention_params,
    longrope_cached_attention_rotating_params,
};
use crate::device::{Context, Dtype, Family, Grid, Stream};
use crate::ops::attention_arguments::{pointer, row_strides, section_heads};
use crate::ops::attention_hopper::{HopperPlan, Request};
use crate::ops::attention_kernels::{self, CachedKernel};
use crate::ops::cache::{Cache, NewTokens};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::cached_attention::{CachedAttention, DecodeTensors, scale_log2};
use crate::ops::split_merge::{self, SplitMerge};
use crate::ops::workspace::Workspace;

/// Attention of the last tokens of sequences over all of their tokens, as [`Decode`](crate::ops::Decode), for any number of new
/// tokens: a chunk of a prompt, or all of it. The cache holds the new tokens already.
///
/// Of a sequence of length `L` with `n` new tokens, query `i` stands at position `L - n + i` and sees the keys up to its own
/// position. A sequence of length 0 gets zeros and a log-sum-exp of minus infinity. What lies in the cache beyond a sequence's
/// length never reaches an output. Where there are few queries, the keys are divided among blocks as well, by the shapes alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefill<'a> {
    /// Keys and values, and the length of each sequence.
    pub cache: Cache,
    /// Which tokens the queries are.
    pub tokens: NewTokens,
    /// Rotates keys while they are read, if they lie in the cache [as they came](crate::ops::CachedKeys::Unrotated); queries are
    /// rotated already. `None`: so are the keys. It needs no memory of its own; each block of 64 or 128 queries of a head rotates the keys
    /// that it reads.
    pub rotary: Option<CacheRotary<'a>>,
    /// What logits are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// How many positions a query sees back, its own included; `None` is no limit.
    pub window: Option<u64>,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_LENGTH`](crate::ops::BAD_LENGTH),
    /// [`BAD_PAGE`](crate::ops::BAD_PAGE), [`BAD_SEQUENCE`](crate::ops::BAD_SEQUENCE), [`BAD_CHOICE`](crate::ops::BAD_CHOICE)); it
    /// clears none. The rows of a bad sequence are not written, nor is any row of a block of queries, one of which may see a
    /// bad page; where starts fall, rows of other
    /// sequences may be left out too.
    pub status: Option<u64>,
}

/// Blocks up to which the keys are divided.
const ENOUGH_BLOCKS: usize = 256;
/// Parts of the keys, at most.
const MAX_SPLITS: usize = 32;
/// Keys of a part, at least, of a sequence that fills its room.
const PART_KEYS: usize = 512;

impl Prefill<'_> {
    /// As many new tokens of each sequence, keys that are rotated already, the default scale, no window.
    pub fn new(cache: Cache) -> Self {
        Self { cache, tokens: NewTokens::Dense, rotary: None, scale: None, window: None, status: None }
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Prefill::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors, whatever the GPU: partial results, where the keys are divided, and
    /// what Hopper's kernel needs. A function of shapes alone.
    ///
    /// # Errors
    /// As [`Prefill::supported`].
    pub fn workspace_size(&self, tensors: &DecodeTensors) -> Result<usize, Error> {
        Ok(self.plan(tensors)?.as_ref().map_or(0, Plan::workspace_bytes))
    }

    /// Launches the attention, and the merge of its parts if there are any.
    ///
    /// # Errors
    /// As [`Decode::run`](crate::ops::Decode::run), but for its splits and for the number of new tokens, of which there may be any.
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
        let plan = self.plan(tensors)?;
        workspace.check(plan.as_ref().map_or(0, Plan::workspace_bytes))?;
        let Some(mut plan) = plan else { return Ok(()) };
        if let Some(hopper) = plan.hopper.filter(|hopper| hopper.is_there(context)) {
            // SAFETY: the caller's promise; the workspace was checked.
            return unsafe { hopper.launch(context, workspace, stream) };
        }
        if let Some(merge) = &mut plan.merge {
            merge.place(&mut plan.params.attention, workspace.address);
        }
        match plan.rotary {
            None => {
                // SAFETY: the name is that of a kernel that takes this block; the rest is the caller's promise.
                unsafe { context.launch(plan.kernel, plan.grid, &plan.params, stream) }?;
            }
            Some(rotary) => {
                let params = longrope_cached_attention_rotating_params { cached: plan.params, rotary };
                // SAFETY: as above.
                unsafe { context.launch(plan.kernel, plan.grid, &params, stream) }?;
            }
        }
        let Some(merge) = plan.merge else { return Ok(()) };
        // SAFETY: the parts lie in the workspace.
        Ok(unsafe { merge.launch(context, stream) }?)
    }

    /// Checks what lies on the device: lengths, starts, the ids of the pages that are read, numbers of sets. Waits for the stream;
    /// the kernel finds the same by itself, and sets bits of the status word.
    ///
    /// # Errors
    /// As [`Prefill::supported`]; or the first bad entry, by its index, with its value and what would be right; or an error of the
    /// driver.
    ///
    /// # Safety
    /// As [`Prefill::run`].
    pub unsafe fn validate(
        &self,
        context: &Context,
        tensors: &DecodeTensors,
        stream: Stream,
    ) -> Result<(), Error> {
        if self.plan(tensors)?.is_none() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.common().validate(context, tensors, stream) }
    }

    fn common(&self) -> CachedAttention<'_> {
        let Self { cache, tokens, rotary, scale, window, status } = *self;
        CachedAttention { cache, tokens, rotary, scale, window, status }
    }

    /// Kernels, grids and parameters, without the workspace's address; `None` if there is no query.
    fn plan<'t>(&'t self, tensors: &'t DecodeTensors) -> Result<Option<Plan<'t>>, Error> {
        let DecodeTensors { q, out, lse } = tensors;
        let common = self.common();
        let idle = common.is_idle(q);
        common.check(tensors, idle)?;
        common.check_offered(tensors)?;
        if idle {
            return Ok(None);
        }
        let [batch, length, heads, head_dim] = q.layout.shape();
        let (sequences, key_heads) = (self.cache.sequences(), self.cache.k.layout.heads());
        let kernel = attention_kernels::cached(q.dtype, head_dim);
        let kernel = kernel.ok_or_else(|| Error::unsupported("q.head_dim", head_dim, "at most 256"))?;
        let longest = self.tokens.most(q).min(length);
        let tiles = longest.div_ceil(kernel.rows);
        let key_bytes = 2 * q.dtype.size() * head_dim;
        let section_heads = section_heads(key_bytes, self.cache.capacity(), key_heads, heads);
        let sections = heads.div_ceil(section_heads);
        let whole = [sections, section_heads, tiles].into_iter().try_fold(sequences, usize::checked_mul);
        let fits = |count: Option<usize>| count.filter(|count| *count < 1 << 31);
        let rows = fits([batch, length, heads].into_iter().try_fold(1, usize::checked_mul));
        // Undivided where the rows of the parts would be too many.
        let most_splits = rows.map_or(1, |rows| (1 << 31) / rows.max(1)).min(MAX_SPLITS);
        let splits = whole.map_or(1, |blocks| {
            let room = self.cache.capacity().div_ceil(PART_KEYS);
            (ENOUGH_BLOCKS / blocks.max(1)).clamp(1, most_splits.min(room).max(1))
        });
        let blocks = fits(whole.and_then(|blocks| blocks.checked_mul(splits))).ok_or_else(|| {
            Error::unsupported(
                "tensors",
                format!("{sequences} sequences of up to {longest} queries and {heads} heads"),
                format!("fewer than 2^31 blocks of {} queries of a head", kernel.rows),
            )
        })?;
        let scale = common.scale(head_dim);
        let mut attention = longrope_attention_params {
            q: pointer(q.address),
            out: pointer(out.address).cast_mut(),
            lse: lse.map_or(0, |lse| lse.address) as *mut f32,
            q_stride: q.layout.strides(),
            out_stride: out.layout.strides(),
            lse_stride: lse.as_ref().map_or([0; 3], row_strides),
            query_length: length as i64,
            window: common.window(),
            status: self.status.unwrap_or(0) as *mut u32,
            max_query_length: longest as i64,
            tiles: tiles as i64,
            sequences: sequences as i32,
            query_heads: heads as i32,
            group: (heads / key_heads) as i32,
            head_dim: head_dim as i32,
            section_heads: section_heads as i32,
            sections: sections as i32,
            causal: 1,
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            scale_log2: scale_log2(scale),
            negate: i32::from(scale < 0.0),
            ..Default::default()
        };
        let (cache, tokens) = (self.cache.params(), self.tokens.params(q));
        let hopper = match self.rotary {
            // It does not rotate keys.
            Some(_) => None,
            None => {
                let capacity = self.cache.capacity();
                let request = Request {
                    q,
                    k: &self.cache.k,
                    v: &self.cache.v,
                    out,
                    sequences,
                    longest,
                    most_keys: capacity,
                    about_keys: capacity,
                    scale,
                    // Those of a cache the merge finds itself.
                    has_gaps: false,
                    cache: Some((cache, tokens)),
                    rotary: None,
                    max_multiprocessors: None,
                };
                HopperPlan::new(request, attention)
            }
        };
        let shape = q.layout.shape();
        let merge = (splits > 1)
            .then(|| SplitMerge::new(&mut attention, out.dtype, shape, splits, Some((cache, tokens))));
        let params = longrope_cached_attention_params {
            attention,
            cache,
            tokens,
            splits: splits as i32,
            batches: batch as i32,
        };
        let CachedKernel { names, shared_bytes, .. } = *kernel;
        Ok(Some(Plan {
            kernel: names[usize::from(self.rotary.is_some())],
            grid: Grid { blocks: blocks as u32, threads: [128, 1, 1], shared_bytes },
            params,
            rotary: self.rotary.map(|rotary| rotary.params()).transpose()?,
            merge,
            hopper,
        }))
    }
}

struct Plan<'a> {
    kernel: &'static str,
    grid: Grid,
    params: longrope_cached_attention_params,
    /// Of a kernel that rotates.
    rotary: Option<longrope_cache_rotary>,
    merge: Option<SplitMerge>,
    /// On Hopper, where its kernel takes the tensors.
    hopper: Option<HopperPlan<'a>>,
}

impl Plan<'_> {
    /// What a launch needs beside its tensors, whichever kernel runs.
    fn workspace_bytes(&self) -> usize {
        let parts = self.merge.as_ref().map_or(0, SplitMerge::bytes);
        self.hopper.as_ref().map_or(0, HopperPlan::workspace_bytes).max(parts)
    }
}

/// What a context loads.
pub(super) fn families() -> Vec<Family> {
    let mut families = attention_kernels::cached_families();
    families.push(split_merge::family());
    families
}
