//! Attention forward.

use crate::Error;
use crate::descriptor;
use crate::device::params::longrope_attention_params;
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream};
use crate::ops::attention_arguments::{
    Arguments, Sequences, blocks_of, check_address, check_dtype, check_row_numbers, pointer, row_strides,
    section_heads, unsupported_head_dim,
};
use crate::ops::attention_hopper::{HopperPlan, Request};
use crate::ops::attention_kernels::{self as kernels, Kernel};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::workspace::Workspace;

pub(super) use crate::ops::attention_kernels::families;

/// Scaled dot-product attention on a GPU: `out = softmax(scale q kᵀ + mask) v`, for grouped heads.
///
/// Logits and sums are f32 and the weights are rounded to the 16 bits of the inputs before they meet the values. A row that
/// sees no key gives zeros and a log-sum-exp of minus infinity. A NaN, or logits beyond f32, make the rows that see them NaN;
/// a value that is not finite may also reach rows of the same 192 queries that do not see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention<'a> {
    /// Scale, mask and global positions. The offsets are those of each sequence's first query and key.
    pub attention: descriptor::Attention,
    /// How the tensors hold the sequences.
    pub sequences: Sequences,
    /// The address of an `i64` per sequence that is added to the query offset; `None` adds nothing.
    pub query_offsets: Option<u64>,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_SEQUENCE`](super::BAD_SEQUENCE),
    /// [`BAD_CHOICE`](super::BAD_CHOICE)); it clears none.
    pub status: Option<u64>,
    /// An earlier result over other keys, which this one is merged with, by the rule of [`Merge`](super::Merge).
    pub carry: Option<Carry>,
    /// Rotates queries as they are loaded, if they come as they were before rotation; keys are rotated already. A query's
    /// position is its global one, and a sequence is as long as its last query says
    /// ([`CacheChoices::ByLength`](super::CacheChoices::ByLength)). Hopper's kernel alone does so.
    pub query_rotary: Option<CacheRotary<'a>>,
    /// How many multiprocessors are used at most, to leave some to work that goes on beside; `None`: all. Hopper's kernel alone can
    /// be told.
    pub max_multiprocessors: Option<u32>,
}

/// An earlier partial result. It may lie where the new one is written, if that is f32 and has the same strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carry {
    /// Its output, f32, in the shape of the queries. A row whose log-sum-exp is minus infinity is not read.
    pub out: DeviceTensor,
    /// Its log-sum-exp, f32 `[batch, query_length, query_heads, 1]`.
    pub lse: DeviceTensor,
}

/// What an attention reads and writes. Queries and output are `[batch, query_length, query_heads, head_dim]`, keys and values
/// `[batch, key_length, key_heads, head_dim]`. Query head `h` reads key head `h / (query_heads / key_heads)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionTensors {
    /// Queries, f16 or bf16.
    pub q: DeviceTensor,
    /// Keys, of the same type.
    pub k: DeviceTensor,
    /// Values, of the same type.
    pub v: DeviceTensor,
    /// The output, of the same type; or f32, as a partial result that is to be merged with others.
    pub out: DeviceTensor,
    /// The natural logarithm of each row's sum of exponentials, f32 `[batch, query_length, query_heads, 1]`.
    pub lse: Option<DeviceTensor>,
}

impl<'a> Attention<'a> {
    /// Attention over sequences that are the batch dimension.
    pub fn new(attention: descriptor::Attention) -> Self {
        Self {
            attention,
            sequences: Sequences::Dense,
            query_offsets: None,
            status: None,
            carry: None,
            query_rotary: None,
            max_multiprocessors: None,
        }
    }

    /// Whether the arguments mean something, be it offered or not: all that is [`Error::Argument`] in [`Attention::supported`],
    /// and nothing else. Any type of elements and any head dimension will do.
    ///
    /// # Errors
    /// Shapes or types that do not belong together, a missing or misaligned address, an output that overlaps itself, or a
    /// descriptor out of range.
    pub fn validate(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        let AttentionTensors { q, k, v, out, .. } = tensors;
        self.attention.validate(&q.layout, &k.layout, &v.layout, &out.layout)?;
        let arguments = self.arguments(tensors);
        arguments.check_tensors()?;
        check_outputs(tensors)?;
        self.check_options(tensors)?;
        arguments.check_sequences()
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Attention::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors, whatever the GPU: where Hopper's kernel takes the tensors, a
    /// counter, beyond 4,096 keys sums that are put aside, and where blocks of queries are few the partial results of parts of the
    /// keys; else none. A function of the arguments, and of nothing that lies on the device.
    ///
    /// # Errors
    /// As [`Attention::supported`].
    pub fn workspace_size(&self, tensors: &AttentionTensors) -> Result<usize, Error> {
        self.plan(tensors).map(|plan| workspace_bytes(plan.as_ref()))
    }

    /// Launches the attention.
    ///
    /// # Errors
    /// [`Error::Argument`]: what [`Attention::validate`] refuses, and a workspace that is too small or misaligned.
    /// [`Error::Unsupported`]: f32 queries, a head dimension that is not a multiple of 8 up to 256, more than 2^20 heads, 2^31
    /// sequences, 2^31 blocks of queries; what Hopper's kernel alone does, where it is not there or does not take the tensors. Or an error
    /// of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their
    /// elements, and as large as the shapes say. The outputs must overlap no other memory in use, but for [`Carry`].
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &AttentionTensors,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let plan = self.plan(tensors)?;
        workspace.check(workspace_bytes(plan.as_ref()))?;
        let Some(Plan { kernel, grid, params, hopper }) = plan else { return Ok(()) };
        if let Some(hopper) = hopper.filter(|hopper| hopper.is_there(context)) {
            // SAFETY: the caller's promise; the workspace was checked.
            return unsafe { hopper.launch(context, workspace, stream) };
        }
        self.check_portable()?;
        // SAFETY: the name is that of an attention kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(kernel.name, grid, &params, stream) }?)
    }

    /// The launch that every GPU can do, and Hopper's; `None` if there is no query.
    fn plan<'t>(&'t self, tensors: &'t AttentionTensors) -> Result<Option<Plan<'t>>, Error> {
        let AttentionTensors { q, k, v, out, lse } = tensors;
        self.validate(tensors)?;
        let arguments = self.arguments(tensors);
        arguments.check_offered()?;
        self.check_options_offered()?;
        let (sequences, longest) = arguments.sequences();
        let [_, _, heads, head_dim] = q.layout.shape();
        if q.layout.is_empty() || sequences == 0 || longest == 0 {
            return Ok(None);
        }
        let vector = [q, k, v, out].into_iter().all(DeviceTensor::is_vectorizable);
        let kernel =
            kernels::portable(q.dtype, head_dim, vector).ok_or_else(|| unsupported_head_dim(head_dim))?;
        let tiles = longest.div_ceil(kernel.rows);
        let key_bytes = 2 * k.dtype.size() * head_dim;
        let (keys, key_heads) = (k.layout.length(), k.layout.heads());
        let section_heads = section_heads(key_bytes, keys, key_heads, heads);
        let sections = heads.div_ceil(section_heads);
        let blocks = blocks_of(&[sequences, sections, section_heads, tiles]);
        let blocks = blocks.ok_or_else(|| {
            Error::unsupported(
                "tensors",
                format!("{sequences} sequences of up to {longest} queries and {heads} heads"),
                format!("fewer than 2^31 blocks of {} queries of a head", kernel.rows),
            )
        })?;
        let carry = self.carry;
        let params = longrope_attention_params {
            out: pointer(out.address).cast_mut(),
            lse: lse.map_or(0, |lse| lse.address) as *mut f32,
            out_stride: out.layout.strides(),
            lse_stride: lse.as_ref().map_or([0; 3], row_strides),
            tiles: tiles as i64,
            section_heads: section_heads as i32,
            sections: sections as i32,
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            carry: carry.map_or(0, |carry| carry.out.address) as *const f32,
            carry_lse: carry.map_or(0, |carry| carry.lse.address) as *const f32,
            carry_stride: carry.map_or([0; 4], |carry| carry.out.layout.strides()),
            carry_lse_stride: carry.map_or([0; 3], |carry| row_strides(&carry.lse)),
            ..arguments.params()
        };
        let is_dense = self.sequences == Sequences::Dense;
        let request = Request {
            q,
            k,
            v,
            out,
            sequences,
            longest,
            most_keys: keys,
            // Of packed sequences it is only known how many queries and keys they have together, and the most queries.
            about_keys: if is_dense { keys } else { longest.max(keys / sequences) },
            scale: arguments.scale(),
            has_gaps: !is_dense,
            cache: None,
            rotary: self.query_rotary,
            max_multiprocessors: self.max_multiprocessors,
        };
        let takes_carry = carry.is_none_or(|carry| carry.out.is_vectorizable());
        let hopper = if takes_carry { HopperPlan::new(request, params) } else { None };
        if hopper.is_none() {
            self.check_portable()?;
        }
        let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
        Ok(Some(Plan { kernel, grid, params, hopper }))
    }

    /// The carry, the rotation of queries, and the limit.
    fn check_options(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        let q = &tensors.q;
        if let Some(Carry { out, lse }) = &self.carry {
            if out.dtype != Dtype::F32 {
                return Err(Error::argument("carry.out.dtype", format!("{:?}", out.dtype), "F32"));
            }
            if out.layout.shape() != q.layout.shape() {
                let expected = format!("{:?}, as q", q.layout.shape());
                return Err(Error::argument(
                    "carry.out",
                    format!("shape {:?}", out.layout.shape()),
                    expected,
                ));
            }
            check_address("carry.out", Some(out.address), 4, out.layout.is_empty())?;
            check_row_numbers("carry.lse", lse, q)?;
        }
        if let Some(rotary) = self.query_rotary {
            rotary.check("query_rotary", q.layout.head_dim(), q.layout.is_empty())?;
        }
        match self.max_multiprocessors {
            Some(0) => Err(Error::argument("max_multiprocessors", 0, "at least 1")),
            _ => Ok(()),
        }
    }

    /// What there are kernels for, of the options.
    fn check_options_offered(&self) -> Result<(), Error> {
        let Some(rotary) = self.query_rotary else { return Ok(()) };
        rotary.check_exact("query_rotary")?;
        match rotary.sets.pairs() {
            pairs if pairs.is_multiple_of(2) => Ok(()),
            pairs => Err(Error::unsupported(
                "query_rotary.sets",
                format!("{pairs} pairs"),
                "an even number of pairs",
            )),
        }
    }

    /// That nothing is asked for that the portable kernel does not do.
    fn check_portable(&self) -> Result<(), Error> {
        let expected = "none, since Hopper's kernel is not there or does not take these tensors";
        if self.query_rotary.is_some() {
            return Err(Error::unsupported("query_rotary", "a rotation", expected));
        }
        match self.max_multiprocessors {
            Some(most) => Err(Error::unsupported("max_multiprocessors", most, expected)),
            None => Ok(()),
        }
    }

    fn arguments<'t>(&'t self, tensors: &'t AttentionTensors) -> Arguments<'t> {
        let Self { attention, sequences, query_offsets, status, .. } = self;
        let AttentionTensors { q, k, v, .. } = tensors;
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
}

struct Plan<'a> {
    kernel: &'static Kernel,
    /// Of one block for so many queries of a head.
    grid: Grid,
    params: longrope_attention_params,
    /// On Hopper, where its kernel takes the tensors.
    hopper: Option<HopperPlan<'a>>,
}

/// What a launch needs, whichever kernel runs; nothing to launch needs nothing.
fn workspace_bytes(plan: Option<&Plan<'_>>) -> usize {
    plan.and_then(|plan| plan.hopper.as_ref()).map_or(0, HopperPlan::workspace_bytes)
}

/// Types, addresses and the distinctness of outputs. Shapes were checked.
fn check_outputs(tensors: &AttentionTensors) -> Result<(), Error> {
    let AttentionTensors { q, out, lse, .. } = tensors;
    check_dtype("out", out, q, "q", true)?;
    check_address("out", Some(out.address), out.dtype.size() as u64, out.layout.is_empty())?;
    out.layout.check_distinct("out")?;
    let Some(lse) = lse else { return Ok(()) };
    check_row_numbers("lse", lse, q)?;
    lse.layout.check_distinct("lse")
}
