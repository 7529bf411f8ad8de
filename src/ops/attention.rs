//! Attention forward.

use crate::Error;
use crate::descriptor;
use crate::device::params::{
    LONGROPE_DEVICE_BAD_SEQUENCE, LONGROPE_SEQUENCES_DENSE, LONGROPE_SEQUENCES_PACKED,
    longrope_attention_params,
};
use crate::device::{Address, Context, DeviceTensor, Dtype, Grid, Stream};
use crate::ops::attention_hopper;
use crate::ops::attention_kernels::{self as kernels, HopperKernel, Kernel};
use crate::ops::workspace::Workspace;

pub(super) use crate::ops::attention_kernels::families;

/// The bit of the status word that a bad packed sequence sets: its starts do not rise, lie beyond the tensor, or span more
/// queries than was said; or its position is beyond 2^62. Its rows are not written.
pub const BAD_SEQUENCE: u32 = LONGROPE_DEVICE_BAD_SEQUENCE;

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
    /// The address of a `u32` in which the kernel sets bits ([`BAD_SEQUENCE`]); it clears none.
    pub status: Option<u64>,
}

/// How the tensors hold the sequences of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sequences {
    /// They are the batch dimension, and all as long as the tensors.
    #[default]
    Dense,
    /// They follow one another along the length of tensors with a batch of 1, and may be empty.
    Packed(Packed),
}

/// Sequences of any lengths, one after the other. Sequence `i` has the queries `query_starts[i]` to before
/// `query_starts[i + 1]`, and its keys likewise (known elsewhere as `cu_seqlens`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// How many there are.
    pub count: usize,
    /// The address of `count + 1` numbers in device memory.
    pub query_starts: u64,
    /// The same for keys and values.
    pub key_starts: u64,
    /// The type of the starts.
    pub starts: Starts,
    /// No sequence has more queries; a longer one sets [`BAD_SEQUENCE`]. It bounds the blocks that are launched.
    pub max_query_length: usize,
}

/// The type of the starts of packed sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    /// `i32`, as PyTorch has them.
    I32,
    /// `i64`.
    I64,
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
        check_tensors(tensors)?;
        self.check_sequences(tensors)
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
        self.check_offered(tensors)?;
        let (sequences, longest) = self.sequences(tensors);
        let [_, query_length, heads, head_dim] = q.layout.shape();
        if q.layout.is_empty() || sequences == 0 || longest == 0 {
            return Ok(None);
        }
        let vector = [q, k, v, out].into_iter().all(DeviceTensor::is_vectorizable);
        let scale = self.attention.scale_for(head_dim);
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
        let group = heads / k.layout.heads();
        let key_bytes = 2 * k.dtype.size() * k.layout.head_dim();
        let (keys, key_heads) = (k.layout.length(), k.layout.heads());
        let section_heads = match hopper {
            Some(_) => attention_hopper::section_heads(key_bytes, keys, [key_heads, heads], tiles),
            None => section_heads(key_bytes, keys, key_heads, heads),
        };
        let sections = heads.div_ceil(section_heads);
        let blocks = [sections, section_heads, tiles]
            .into_iter()
            .try_fold(sequences, usize::checked_mul)
            .and_then(|blocks| u32::try_from(blocks).ok())
            .filter(|blocks| *blocks < 1 << 31);
        let blocks = blocks.ok_or_else(|| {
            Error::unsupported(
                "tensors",
                format!("{sequences} sequences of up to {longest} queries and {heads} heads"),
                format!("fewer than 2^31 blocks of {} queries of a head", kernel.rows),
            )
        })?;
        let packed = match self.sequences {
            Sequences::Dense => None,
            Sequences::Packed(packed) => Some(packed),
        };
        let lse_stride = lse.map_or([0; 3], |lse| {
            let [batch, length, heads, _] = lse.layout.strides();
            [batch, length, heads]
        });
        let params = longrope_attention_params {
            q: pointer(q.address),
            k: pointer(k.address),
            v: pointer(v.address),
            out: pointer(out.address).cast_mut(),
            lse: lse.map_or(0, |lse| lse.address) as *mut f32,
            q_stride: q.layout.strides(),
            k_stride: k.layout.strides(),
            v_stride: v.layout.strides(),
            out_stride: out.layout.strides(),
            lse_stride,
            query_length: query_length as i64,
            key_length: k.layout.length() as i64,
            query_starts: pointer(packed.map_or(0, |packed| packed.query_starts)),
            key_starts: pointer(packed.map_or(0, |packed| packed.key_starts)),
            query_offset: self.attention.query_offset,
            query_offsets: self.query_offsets.unwrap_or(0) as *const i64,
            key_offset: self.attention.key_offset,
            // A window beyond 63 bits reaches everything.
            window: self.attention.window.map_or(0, |window| i64::try_from(window).unwrap_or(i64::MAX)),
            status: self.status.unwrap_or(0) as *mut u32,
            max_query_length: longest as i64,
            tiles: tiles as i64,
            sequences: sequences as i32,
            query_heads: heads as i32,
            group: group as i32,
            head_dim: head_dim as i32,
            section_heads: section_heads as i32,
            sections: sections as i32,
            sequence_kind: match packed {
                None => LONGROPE_SEQUENCES_DENSE,
                Some(_) => LONGROPE_SEQUENCES_PACKED,
            } as i32,
            starts_are_wide: i32::from(packed.is_some_and(|packed| packed.starts == Starts::I64)),
            causal: i32::from(self.attention.causal),
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            // Above zero, so that -inf times it is -inf; so small, all logits are 0.
            scale_log2: (scale.abs() * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE),
            negate: i32::from(scale < 0.0),
        };
        let grid = Grid { blocks, threads: [kernel.threads, 1, 1], shared_bytes: kernel.shared_bytes };
        Ok(Some(Plan { kernel, hopper, grid, params, workspace_bytes }))
    }

    /// How many sequences there are, and the queries of the longest.
    fn sequences(&self, tensors: &AttentionTensors) -> (usize, usize) {
        let length = tensors.q.layout.length();
        match self.sequences {
            Sequences::Dense => (tensors.q.layout.batch(), length),
            Sequences::Packed(packed) => (packed.count, packed.max_query_length.min(length)),
        }
    }

    /// What is read for each sequence.
    fn check_sequences(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        let batch = tensors.q.layout.batch();
        check_address("query_offsets", self.query_offsets, 8, batch == 0)?;
        check_address("status", self.status, 4, batch == 0)?;
        let Sequences::Packed(packed) = self.sequences else { return Ok(()) };
        if batch != 1 {
            return Err(Error::argument("q.batch", batch, "1, since the sequences are packed"));
        }
        let size = if packed.starts == Starts::I64 { 8 } else { 4 };
        check_address("sequences.query_starts", Some(packed.query_starts), size, packed.count == 0)?;
        check_address("sequences.key_starts", Some(packed.key_starts), size, packed.count == 0)
    }

    /// What there are kernels for.
    fn check_offered(&self, tensors: &AttentionTensors) -> Result<(), Error> {
        let q = &tensors.q;
        if q.dtype == Dtype::F32 {
            return Err(Error::unsupported("q.dtype", "F32", "F16 or Bf16"));
        }
        let (heads, head_dim) = (q.layout.heads(), q.layout.head_dim());
        if !head_dim.is_multiple_of(8) || head_dim > 256 {
            return Err(unsupported_head_dim(head_dim));
        }
        if heads > 1 << 20 {
            return Err(Error::unsupported("q.heads", heads, "at most 2^20 heads"));
        }
        match self.sequences {
            Sequences::Packed(Packed { count, .. }) if count > i32::MAX as usize => {
                Err(Error::unsupported("sequences.count", count, "fewer than 2^31 sequences"))
            }
            _ => Ok(()),
        }
    }
}

fn unsupported_head_dim(head_dim: usize) -> Error {
    Error::unsupported("q.head_dim", head_dim, "a multiple of 8 up to 256")
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

/// Query heads that are worked on together: whole groups, and so many that their keys and values (`key_bytes` each, of one head)
/// fit the second-level cache beside what else is there.
pub(super) fn section_heads(key_bytes: usize, keys: usize, key_heads: usize, heads: usize) -> usize {
    const CACHE_BYTES: usize = 32 << 20;
    let bytes = key_bytes.saturating_mul(keys).max(1);
    let sections = key_heads.div_ceil((CACHE_BYTES / bytes).clamp(1, key_heads));
    // Of equal size, as far as that goes.
    key_heads.div_ceil(sections) * (heads / key_heads)
}

/// Types, addresses and the distinctness of outputs. Shapes were checked.
fn check_tensors(tensors: &AttentionTensors) -> Result<(), Error> {
    let AttentionTensors { q, k, v, out, lse } = tensors;
    for (name, tensor) in [("k", k), ("v", v)] {
        if tensor.dtype != q.dtype {
            let expected = format!("{:?}, as q", q.dtype);
            return Err(Error::argument(format!("{name}.dtype"), format!("{:?}", tensor.dtype), expected));
        }
    }
    if out.dtype != q.dtype && out.dtype != Dtype::F32 {
        let expected = format!("{:?}, as q, or F32", q.dtype);
        return Err(Error::argument("out.dtype", format!("{:?}", out.dtype), expected));
    }
    for (name, tensor) in [("q", q), ("k", k), ("v", v), ("out", out)] {
        let needs_none = tensor.layout.is_empty() || q.layout.is_empty();
        check_address(name, Some(tensor.address), tensor.dtype.size() as u64, needs_none)?;
    }
    out.layout.check_distinct("out")?;
    let Some(lse) = lse else { return Ok(()) };
    if lse.dtype != Dtype::F32 {
        return Err(Error::argument("lse.dtype", format!("{:?}", lse.dtype), "F32"));
    }
    let [batch, length, heads, _] = q.layout.shape();
    if lse.layout.shape() != [batch, length, heads, 1] {
        return Err(Error::argument(
            "lse",
            format!("shape {:?}", lse.layout.shape()),
            format!("{:?}, a number for each row of q", [batch, length, heads, 1]),
        ));
    }
    check_address("lse", Some(lse.address), 4, lse.layout.is_empty())?;
    lse.layout.check_distinct("lse")
}

/// That an address is there, unless nothing is read, and is a multiple of the size of its elements.
pub(super) fn check_address(
    name: &str,
    address: Option<u64>,
    size: u64,
    may_be_null: bool,
) -> Result<(), Error> {
    match address {
        Some(0) if !may_be_null => Err(Error::argument(name, "a null address", "the address of an element")),
        Some(address) if !address.is_multiple_of(size) => Err(Error::argument(
            name,
            format!("address {address:#x}"),
            format!("a multiple of {size}, the size of an element"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn pointer(address: Address) -> *const std::ffi::c_void {
    address as *const std::ffi::c_void
}
