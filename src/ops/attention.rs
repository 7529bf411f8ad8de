//! Attention forward.

use crate::Error;
use crate::descriptor;
use crate::device::params::longrope_attention_params;
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream};
use crate::ops::attention_arguments::{
    Arguments, Sequences, blocks_of, check_address, check_dtype, check_row_numbers, pointer, row_strides,
    section_heads, unsupported_head_dim,
};
use crate::ops::attention_hopper;
use crate::ops::attention_kernels::{self as kernels, HopperKernel, Kernel};
use crate::ops::workspace::Workspace;

pub(super) use crate::ops::attention_kernels::families;

/// Scaled dot-product attention on a GPU: `out = softmax(scale q kᵀ + mask) v`, for grouped heads.
///
/// Logits and sums are f32 and the weights are rounded to the 16 bits of the inputs before they meet the values. A row that
/// sees no key gives zeros and a log-sum-exp of minus infinity. A NaN, or logits beyond f32, make the rows that see them NaN;
/// a value that is not finite may also reach rows of the same 192 queries that do not see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Scale, mask and global positions. The offsets are those of each sequence's first query and key.
    pub attention: descriptor::Attention,
    /// How the tensors hold the sequences.
    pub sequences: Sequences,
    /// The address of an `i64` per sequence that is added to the query offset; `None` adds nothing.
    pub query_offsets: Option<u64>,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_SEQUENCE`](super::BAD_SEQUENCE)); it clears none.
    pub status: Option<u64>,
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

impl Attention {
    /// Attention over sequences that are the batch dimension.
    pub fn new(attention: descriptor::Attention) -> Self {
        Self { attention, sequences: Sequences::Dense, query_offsets: None, status: None }
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
        arguments.check_sequences()
    }

    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Attention::run`], but for those of the driver and of the workspace.
    pub fn supported(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        self.plan(tensors, |_| false).map(drop)
    }

    /// The bytes of device memory that a launch needs beside its tensors, whatever the GPU: a counter and, beyond 4,096 keys, sums
    /// that are put aside, where Hopper's kernel takes the tensors; else none. A function of the arguments, and of nothing that
    /// lies on the device.
    ///
    /// # Errors
    /// As [`Attention::supported`].
    pub fn workspace_size(&self, tensors: &AttentionTensors) -> Result<usize, Error> {
        self.plan(tensors, |_| false).map(|plan| workspace_bytes(plan.as_ref()))
    }

    /// Launches the attention.
    ///
    /// # Errors
    /// [`Error::Argument`]: what [`Attention::validate`] refuses, and a workspace that is too small or misaligned.
    /// [`Error::Unsupported`]: f32 queries, a head dimension that is not a multiple of 8 up to 256, more than 2^20 heads, 2^31
    /// sequences, 2^31 blocks of queries. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their
    /// elements, and as large as the shapes say. The outputs must overlap no other memory in use.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &AttentionTensors,
        workspace: Workspace,
        stream: Stream,
    ) -> Result<(), Error> {
        let plan = self.plan(tensors, |kernel| context.has(kernel.name))?;
        workspace.check(workspace_bytes(plan.as_ref()))?;
        let Some(plan) = plan else { return Ok(()) };
        let blocks = plan.grid.blocks;
        if let Some(kernel) = plan.hopper {
            // SAFETY: the caller's promise; the parameters are of these tensors, and the workspace was checked.
            return unsafe {
                attention_hopper::launch(context, kernel, tensors, plan.params, blocks, workspace, stream)
            };
        }
        // SAFETY: the name is that of an attention kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(plan.kernel.name, plan.grid, &plan.params, stream) }?)
    }

    /// Kernel, grid and parameters; `None` if there is no query. `is_there` tells of a kernel that not all GPUs have; the
    /// portable ones have the most blocks, so that what they can launch, all can.
    fn plan(
        &self,
        tensors: &AttentionTensors,
        is_there: impl Fn(&Kernel) -> bool,
    ) -> Result<Option<Plan>, Error> {
        let AttentionTensors { q, k, v, out, lse } = tensors;
        self.validate(tensors)?;
        let arguments = self.arguments(tensors);
        arguments.check_offered()?;
        let (sequences, longest) = arguments.sequences();
        let [_, _, heads, head_dim] = q.layout.shape();
        if q.layout.is_empty() || sequences == 0 || longest == 0 {
            return Ok(None);
        }
        let vector = [q, k, v, out].into_iter().all(DeviceTensor::is_vectorizable);
        let scale = arguments.scale();
        // Of packed sequences it is only known how many queries they have.
        let about_keys = if self.sequences == Sequences::Dense { k.layout.length() } else { longest };
        let hopper = attention_hopper::kernel(tensors, about_keys, scale);
        // Asked for wherever it could be of use, since a function of shapes alone says how much.
        let workspace_bytes =
            hopper.map_or(0, |hopper| attention_hopper::workspace_bytes(hopper, k.layout.length()));
        let hopper = hopper.filter(|hopper| is_there(&hopper.kernel));
        let kernel = match hopper {
            Some(hopper) => &hopper.kernel,
            None => {
                kernels::portable(q.dtype, head_dim, vector).ok_or_else(|| unsupported_head_dim(head_dim))?
            }
        };
        let tiles = longest.div_ceil(kernel.rows);
        let key_bytes = 2 * k.dtype.size() * k.layout.head_dim();
        let (keys, key_heads) = (k.layout.length(), k.layout.heads());
        let section_heads = match hopper {
            Some(_) => attention_hopper::section_heads(key_bytes, keys, [key_heads, heads], tiles),
            None => section_heads(key_bytes, keys, key_heads, heads),
        };
        let sections = heads.div_ceil(section_heads);
        let blocks = blocks_of(&[sequences, sections, section_heads, tiles]);
        let blocks = blocks.ok_or_else(|| {
            Error::unsupported(
                "tensors",
                format!("{sequences} sequences of up to {longest} queries and {heads} heads"),
                format!("fewer than 2^31 blocks of {} queries of a head", kernel.rows),
            )
        })?;
        let params = longrope_attention_params {
            out: pointer(out.address).cast_mut(),
            lse: lse.map_or(0, |lse| lse.address) as *mut f32,
            out_stride: out.layout.strides(),
            lse_stride: lse.as_ref().map_or([0; 3], row_strides),
            tiles: tiles as i64,
            section_heads: section_heads as i32,
            sections: sections as i32,
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            ..arguments.params()
        };
        let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
        Ok(Some(Plan { kernel, hopper, grid, params, workspace_bytes }))
    }

    fn arguments<'a>(&'a self, tensors: &'a AttentionTensors) -> Arguments<'a> {
        let Self { attention, sequences, query_offsets, status } = self;
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

struct Plan {
    kernel: &'static Kernel,
    /// The same, where it is Hopper's.
    hopper: Option<&'static HopperKernel>,
    /// Of one block for so many queries of a head.
    grid: Grid,
    params: longrope_attention_params,
    /// Bytes of device memory beside the tensors.
    workspace_bytes: usize,
}

/// What a launch needs; nothing to launch needs nothing.
fn workspace_bytes(plan: Option<&Plan>) -> usize {
    plan.map_or(0, |plan| plan.workspace_bytes)
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
