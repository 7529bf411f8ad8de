//! Attention backward.

use crate::Error;
use crate::descriptor::{self, Layout};
use crate::device::params::backward::longrope_attention_backward_params;
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream};
use crate::ops::attention_arguments::{
    Arguments, Sequences, blocks_of, check_address, check_dtype, check_row_numbers, pointer, row_strides,
    section_heads, unsupported_head_dim,
};
use crate::ops::attention_backward_fast::FastPlan;
use crate::ops::attention_backward_hopper::HopperPlan;
use crate::ops::attention_backward_kernels::{self as kernels, Kernels};
use crate::ops::attention_delta::AttentionDelta;
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::workspace::Workspace;

/// Gradients of scaled dot-product attention on a GPU, by queries, keys and values, given those of the output:
///
/// ```text
/// P  = exp(scale q kᵀ - lse)       dV = Pᵀ dO
/// dS = P (dO vᵀ - delta)           dQ = scale dS k        dK = scale dSᵀ q
/// ```
///
/// `lse` is that of the forward pass, and `delta` the sum of `out · d_out` over the head dimension ([`AttentionDelta`]). Where
/// only a part of the keys is at hand, both are those of all keys: then the gradients of the parts are the parts of the gradients,
/// and dQ is their sum.
///
/// Logits and sums are f32; P and dS are rounded to the 16 bits of the inputs before they meet dO, k and q. Every sum has one
/// order, unless `fast` allows others: the same inputs give the same bits. A row whose log-sum-exp is minus infinity saw no key, and adds nothing. A NaN,
/// or logits beyond f32, make the gradients that depend on them NaN; a value that is not finite may also reach gradients of the
/// same 192 queries and 128 keys that do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionBackward<'a> {
    /// Scale, mask and global positions. The offsets are those of each sequence's first query and key.
    pub attention: descriptor::Attention,
    /// How the tensors hold the sequences.
    pub sequences: Sequences,
    /// The address of an `i64` per sequence that is added to the query offset; `None` adds nothing.
    pub query_offsets: Option<u64>,
    /// The address of a `u32` in which the kernels set bits ([`BAD_SEQUENCE`](super::BAD_SEQUENCE),
    /// [`BAD_CHOICE`](super::BAD_CHOICE)); they clear none. No gradient of such a sequence is written.
    pub status: Option<u64>,
    /// Whether gradients are added to what lies there, which is f32.
    pub accumulate: bool,
    /// How queries and keys were rotated: then dQ and dK are the gradients of what they were before it, each row times
    /// `gain Rᵀ` of its global position, and are added as such. One set is that of a sequence's queries and keys; it is as long as
    /// its last query says ([`CacheChoices::ByLength`](super::CacheChoices::ByLength)). An angle is within 3e-6 of the exact one.
    pub rotary: Option<CacheRotary<'a>>,
    /// Allows sums whose order is not given, where a kernel makes use of it: on Hopper for bf16 queries. Then the bits of gradients
    /// may differ from run to run, within the same bounds. Up to a head dimension of 128 it is faster by a tenth, and needs no more
    /// workspace; beyond it Hopper has no other kernel: at a head dimension of 256 it is twice as fast, and it needs the workspace that
    /// others need up to 128.
    pub fast: bool,
}

/// What the backward pass reads and writes. Queries and what belongs to them are `[batch, query_length, query_heads, head_dim]`,
/// keys and values `[batch, key_length, key_heads, head_dim]`. Query head `h` reads key head `h / (query_heads / key_heads)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionBackwardTensors {
    /// Queries, f16 or bf16.
    pub q: DeviceTensor,
    /// Keys, of the same type.
    pub k: DeviceTensor,
    /// Values, of the same type.
    pub v: DeviceTensor,
    /// The output of the forward pass, of the same type or f32. Needed where there is no `delta`, and else not read.
    pub out: Option<DeviceTensor>,
    /// The log-sum-exp of the forward pass, f32 `[batch, query_length, query_heads, 1]`.
    pub lse: DeviceTensor,
    /// The sum of `out · d_out` over the head dimension, in the shape of `lse`; `None` to have it made in the workspace.
    pub delta: Option<DeviceTensor>,
    /// The gradient of the output, of the type of the queries.
    pub d_out: DeviceTensor,
    /// The gradient of the queries, of their type or f32.
    pub dq: DeviceTensor,
    /// The gradient of the keys, of their type or f32: summed over the query heads that share a key head.
    pub dk: DeviceTensor,
    /// The gradient of the values, likewise.
    pub dv: DeviceTensor,
}

impl<'a> AttentionBackward<'a> {
    /// The backward pass over sequences that are the batch dimension.
    pub fn new(attention: descriptor::Attention) -> Self {
        Self {
            attention,
            sequences: Sequences::Dense,
            query_offsets: None,
            status: None,
            accumulate: false,
            rotary: None,
            fast: false,
        }
    }

    /// Whether the arguments mean something, be it offered or not: all that is [`Error::Argument`] in
    /// [`AttentionBackward::supported`], and nothing else. Any type of elements and any head dimension will do.
    ///
    /// # Errors
    /// Shapes or types that do not belong together, a missing or misaligned address, an output that overlaps itself, neither
    /// `delta` nor `out`, 16-bit gradients that are to be added to, more rotated dimensions than a head has, or a descriptor out of
    /// range.
    pub fn validate(&self, tensors: &AttentionBackwardTensors) -> Result<(), Error> {
        let AttentionBackwardTensors { q, k, v, .. } = tensors;
        self.attention.validate(&q.layout, &k.layout, &v.layout, &q.layout)?;
        let arguments = self.arguments(tensors);
        arguments.check_tensors()?;
        check_forward(tensors)?;
        self.check_gradients(tensors)?;
        if let Some(rotary) = self.rotary {
            let idle = arguments.sequences().0 == 0 || q.layout.is_empty() && k.layout.is_empty();
            rotary.check("rotary", q.layout.head_dim(), idle)?;
        }
        arguments.check_sequences()
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`AttentionBackward::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &AttentionBackwardTensors) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors: an f32 for each row of the queries where there is no
    /// `delta`, and for Hopper's kernels a counter, and for long sequences up to 18 MiB of sums. For bf16 and head dimensions up to
    /// 128, or beyond with `fast`, also an f32 of each element of dQ, and of dK and dV where query heads share them or `rotary` is
    /// there, of as many heads as fit in 1 GiB, or of one key head; where that is more than 2 GiB, other kernels are taken that
    /// need none of it. A function of the arguments, and of nothing that lies on the device; nor of the GPU.
    ///
    /// # Errors
    /// As [`AttentionBackward::supported`].
    pub fn workspace_size(&self, tensors: &AttentionBackwardTensors) -> Result<usize, Error> {
        self.plan(tensors).map(|plan| plan.workspace_bytes)
    }

    /// Launches the backward pass: some kernels, one after the other.
    ///
    /// # Errors
    /// [`Error::Argument`]: what [`AttentionBackward::validate`] refuses, and a workspace that is too small or misaligned.
    /// [`Error::Unsupported`]: f32 queries, a head dimension that is not a multiple of 8 up to 256, more than 2^20 heads, 2^31
    /// sequences, 2^31 blocks of queries or of keys, angles in parity mode. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernels ended, aligned to their
    /// elements, and as large as the shapes say. The outputs and the workspace must overlap no other memory in use.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &AttentionBackwardTensors,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let mut plan = self.plan(tensors)?;
        workspace.check(plan.workspace_bytes)?;
        if let Some(mut delta) = plan.delta {
            delta.delta.address = workspace.address;
            plan.params.delta = workspace.address as *const f32;
            // SAFETY: the result lies in the workspace, which was checked; the rest is the caller's promise.
            unsafe { delta.run(context, stream) }?;
        }
        let rest = workspace.address + plan.delta_bytes as u64;
        if let Some(fast) = plan.fast.filter(|fast| fast.is_there(context)) {
            // SAFETY: the workspace has the bytes that are needed; the rest is the caller's promise.
            return unsafe { fast.launch(context, &plan.params, rest, stream) };
        }
        if let Some(hopper) = plan.hopper.filter(|hopper| hopper.is_there(context)) {
            // SAFETY: the workspace has the bytes that are needed; the rest is the caller's promise.
            return unsafe { hopper.launch(context, &plan.params, rest, stream) };
        }
        for (name, grid) in plan.launches.into_iter().flatten() {
            // SAFETY: the name is that of a kernel of the backward pass, which takes this block; the rest is the caller's promise.
            unsafe { context.launch(name, grid, &*plan.params, stream) }?;
        }
        Ok(())
    }

    fn arguments<'t>(&'t self, tensors: &'t AttentionBackwardTensors) -> Arguments<'t> {
        let Self { attention, sequences, query_offsets, status, .. } = self;
        let AttentionBackwardTensors { q, k, v, .. } = tensors;
        Arguments {
            attention,
            sequences: *sequences,
            query_offsets: *query_offsets,
            status: *status,
            q,
            k,
            v,
        }
    }

    /// Shapes, types, addresses and the distinctness of what is written.
    fn check_gradients(&self, tensors: &AttentionBackwardTensors) -> Result<(), Error> {
        let AttentionBackwardTensors { q, k, v, dq, dk, dv, .. } = tensors;
        for (name, gradient, of, whose) in [("dq", dq, q, "q"), ("dk", dk, k, "k"), ("dv", dv, v, "v")] {
            check_shape(name, gradient, of, whose)?;
            check_dtype(name, gradient, of, whose, true)?;
            if self.accumulate && gradient.dtype != Dtype::F32 {
                return Err(Error::argument(
                    format!("{name}.dtype"),
                    format!("{:?}", gradient.dtype),
                    "F32, since gradients are added to what is there",
                ));
            }
            let size = gradient.dtype.size() as u64;
            check_address(name, Some(gradient.address), size, gradient.layout.is_empty())?;
            gradient.layout.check_distinct(name)?;
        }
        Ok(())
    }

    /// What is launched, but for the address of the workspace.
    fn plan<'t>(&self, tensors: &'t AttentionBackwardTensors) -> Result<Plan<'t>, Error> {
        let AttentionBackwardTensors { q, k, v, lse, d_out, dq, dk, dv, .. } = tensors;
        self.validate(tensors)?;
        let arguments = self.arguments(tensors);
        arguments.check_offered()?;
        if let Some(rotary) = self.rotary {
            rotary.check_exact("rotary")?;
        }
        let (sequences, longest) = arguments.sequences();
        let [batch, query_length, heads, head_dim] = q.layout.shape();
        let (keys, key_heads) = (k.layout.length(), k.layout.heads());
        let vector = [q, k, v, d_out, dq, dk, dv].into_iter().all(DeviceTensor::is_vectorizable);
        let Kernels { queries: query_kernel, keys: key_kernel, query_tile } =
            kernels::portable(q.dtype, head_dim, vector).ok_or_else(|| unsupported_head_dim(head_dim))?;

        // What a caller brings, or what is made: heads apart, so that the queries of one lie side by side.
        let (delta, made, delta_bytes) = match (&tensors.delta, &tensors.out) {
            (Some(delta), _) => (*delta, None, 0),
            (None, Some(out)) => {
                let length = query_length as i64;
                let strides = [length.wrapping_mul(heads as i64), 1, length, 1];
                let layout = Layout::strided([batch, query_length, heads, 1], strides);
                // The address of the workspace is yet to come; it is aligned.
                let delta = DeviceTensor { address: 16, dtype: Dtype::F32, layout };
                let made = AttentionDelta { out: *out, d_out: *d_out, delta };
                // Fits, since there are not too many rows.
                made.supported()?;
                (delta, Some(made), 4 * batch * query_length * heads)
            }
            (None, None) => return Err(no_delta()),
        };

        let query_tiles = longest.div_ceil(query_kernel.rows);
        let section_heads = section_heads(2 * k.dtype.size() * k.layout.head_dim(), keys, key_heads, heads);
        let sections = heads.div_ceil(section_heads);
        let key_blocks = self.key_blocks(keys.div_ceil(key_kernel.rows), sequences);
        let query_grid = blocks_of(&[sequences, query_tiles, section_heads, sections]);
        let key_grid = blocks_of(&[sequences, key_blocks, key_heads]);
        // A block of keys counts its tiles of queries.
        let steps = blocks_of(&[heads / key_heads, longest.div_ceil(*query_tile)]);
        let too_many = |what: String, expected: String| Error::unsupported("tensors", what, expected);
        let (Some(query_grid), Some(_)) = (query_grid, steps) else {
            return Err(too_many(
                format!("{sequences} sequences of up to {longest} queries and {heads} heads"),
                format!("fewer than 2^31 blocks of {} queries of a head", query_kernel.rows.min(*query_tile)),
            ));
        };
        let Some(key_grid) = key_grid else {
            return Err(too_many(
                format!("{sequences} sequences of up to {keys} keys and {key_heads} key heads"),
                format!("fewer than 2^31 blocks of {} keys of a head", key_kernel.rows),
            ));
        };

        let mut attention = arguments.params();
        attention.lse = lse.address as *mut f32;
        attention.lse_stride = row_strides(lse);
        attention.tiles = query_tiles as i64;
        attention.section_heads = section_heads as i32;
        attention.sections = sections as i32;
        let is_f32 = |tensor: &DeviceTensor| i32::from(tensor.dtype == Dtype::F32);
        // Kilobytes, which are not to be moved about.
        let params = Box::new(longrope_attention_backward_params {
            attention,
            d_out: pointer(d_out.address),
            delta: pointer(delta.address).cast(),
            dq: pointer(dq.address).cast_mut(),
            dk: pointer(dk.address).cast_mut(),
            dv: pointer(dv.address).cast_mut(),
            d_out_stride: d_out.layout.strides(),
            delta_stride: row_strides(&delta),
            dq_stride: dq.layout.strides(),
            dk_stride: dk.layout.strides(),
            dv_stride: dv.layout.strides(),
            key_blocks: key_blocks as i64,
            accumulate: i32::from(self.accumulate),
            dq_is_f32: is_f32(dq),
            dk_is_f32: is_f32(dk),
            dv_is_f32: is_f32(dv),
            key_heads: key_heads as i32,
            scale: arguments.scale(),
            rotates: i32::from(self.rotary.is_some()),
            rotary: self.rotary.map(|rotary| rotary.params()).transpose()?.unwrap_or_default(),
            ..Default::default()
        });
        let launch = |blocks, kernel: &'static kernels::Kernel| {
            let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
            (blocks > 0).then_some((kernel.name, grid))
        };
        let launches = [launch(query_grid, query_kernel), launch(key_grid, key_kernel)];
        // Nothing to launch needs nothing.
        let is_needed = launches.iter().any(Option::is_some);
        let delta = made.filter(|_| is_needed && delta_bytes > 0);
        let key_blocks = |tiles| self.key_blocks(tiles, sequences);
        let hopper = is_needed.then(|| HopperPlan::new(tensors, &params, longest, key_blocks)).flatten();
        let fast = is_needed
            .then(|| FastPlan::new(tensors, &params, self.sequences, self.fast, longest, key_blocks))
            .flatten();
        let delta_bytes = if is_needed { delta_bytes } else { 0 };
        let needs =
            [hopper.as_ref().map(HopperPlan::workspace_bytes), fast.as_ref().map(FastPlan::workspace_bytes)];
        let (delta_bytes, workspace_bytes) = match needs.into_iter().flatten().max() {
            Some(bytes) => {
                let delta_bytes = delta_bytes.next_multiple_of(16);
                (delta_bytes, delta_bytes + bytes)
            }
            None => (delta_bytes, delta_bytes),
        };
        Ok(Plan { delta, launches, params, hopper, fast, delta_bytes, workspace_bytes })
    }

    /// Blocks of a sequence and key head, for so many tiles of all keys. How many keys a packed sequence has is not known, so that
    /// blocks take every so many-th of its tiles: twice as many blocks as tiles are had by all sequences together, and 64 by each,
    /// or as many as there are tiles.
    fn key_blocks(&self, tiles: usize, sequences: usize) -> usize {
        match self.sequences {
            Sequences::Dense => tiles,
            Sequences::Packed(_) => tiles.min(tiles.saturating_mul(2).div_ceil(sequences.max(1)).max(64)),
        }
    }
}

fn no_delta() -> Error {
    Error::argument("out", "none", "the output of the forward pass, since there is no delta")
}

fn check_shape(name: &str, tensor: &DeviceTensor, of: &DeviceTensor, whose: &str) -> Result<(), Error> {
    let (found, expected) = (tensor.layout.shape(), of.layout.shape());
    match found == expected {
        true => Ok(()),
        false => {
            let expected = format!("{expected:?}, as {whose}");
            Err(Error::argument(name, format!("shape {found:?}"), expected))
        }
    }
}

/// What is read of the forward pass, and the gradient of its output.
fn check_forward(tensors: &AttentionBackwardTensors) -> Result<(), Error> {
    let AttentionBackwardTensors { q, out, lse, delta, d_out, .. } = tensors;
    check_shape("d_out", d_out, q, "q")?;
    check_dtype("d_out", d_out, q, "q", false)?;
    check_address("d_out", Some(d_out.address), d_out.dtype.size() as u64, d_out.layout.is_empty())?;
    check_row_numbers("lse", lse, q)?;
    if let Some(delta) = delta {
        return check_row_numbers("delta", delta, q);
    }
    let out = out.ok_or_else(no_delta)?;
    check_shape("out", &out, q, "q")?;
    check_dtype("out", &out, q, "q", true)?;
    check_address("out", Some(out.address), out.dtype.size() as u64, out.layout.is_empty())
}

/// What is launched, in this order.
struct Plan<'a> {
    /// Its result goes into the workspace, before all else.
    delta: Option<AttentionDelta>,
    /// For dQ, and for dK and dV, as far as there is something to write.
    launches: [Option<(&'static str, Grid)>; 2],
    params: Box<longrope_attention_backward_params>,
    /// What is launched in place of these where the context has it.
    hopper: Option<HopperPlan<'a>>,
    /// And in place of those, where sums may have any order.
    fast: Option<FastPlan<'a>>,
    /// Bytes of the workspace for delta.
    delta_bytes: usize,
    workspace_bytes: usize,
}
