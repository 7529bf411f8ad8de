//! Rotary embedding of queries and keys, and re-rotation of keys that were rotated already.

use crate::Error;
use crate::descriptor::{Direction, Layout, Pairing};
use crate::device::params::{
    LONGROPE_CHOICE_BY_INDEX, LONGROPE_CHOICE_BY_LENGTH, LONGROPE_CHOICE_LONG, LONGROPE_CHOICE_SHORT,
    LONGROPE_DEVICE_BAD_CHOICE, LONGROPE_POSITION_DEVICE_OFFSET, LONGROPE_POSITION_OFFSET,
    LONGROPE_POSITION_PER_SEQUENCE, LONGROPE_POSITION_PER_TOKEN, LONGROPE_POSITION_PER_TOKEN_32,
    longrope_rerotate_params, longrope_rotary_params, longrope_rotary_tensor,
};
use crate::device::{Address, Context, DeviceTensor, Dtype, Family, Grid, Stream};
use crate::ops::factors::{factor_sets, is_parity};
use crate::scaling::{FactorSets, SetChoice};

/// The bit of the status word that a set index other than 0 and 1 sets. Tokens of its sequence are not written.
pub const BAD_CHOICE: u32 = LONGROPE_DEVICE_BAD_CHOICE;

/// Threads of a block, at most. The kernels are compiled for this bound.
const MAX_THREADS: usize = 192;
/// Tokens that a block takes at a time, at most.
const MAX_TOKENS: usize = 8;
/// Heads that a thread takes in a step (`kHeads` in the kernel).
const HEADS: usize = 2;
/// Steps in the ring of loads under way (`kStages` in the kernel).
const STAGES: usize = 3;
/// Bytes of a thread in a step of the ring: two 16-byte vectors for each head.
const STEP_BYTES: usize = 32 * HEADS;

/// Where the tokens stand. Addresses are of device memory, read when the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePositions {
    /// Token `s` of every sequence stands at this offset plus `s`.
    Offset(i64),
    /// As before, the offset being one `i64` at this address.
    OffsetAt(u64),
    /// Token `s` of sequence `b` stands at `offsets[b] + s`: `[batch]` of `i64`.
    OffsetPerSequence(u64),
    /// A position per token: `[batch, length]` of `i64`.
    PerToken(u64),
    /// A position per token: `[batch, length]` of `i32`.
    PerToken32(u64),
}

/// Which factor set each sequence uses. Addresses are of device memory, read when the kernel runs, so that a replayed
/// graph can switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoices {
    /// One choice for every sequence, made now.
    All(SetChoice),
    /// By the whole length of each sequence, `[batch]` of `i64`: long beyond the original length, else short.
    ByLength(u64),
    /// By number, `[batch]` of `i32`: 0 short, 1 long; anything else sets [`BAD_CHOICE`].
    ByIndex(u64),
}

/// A tensor to rotate, from where and to where; both `[batch, length, heads, head_dim]`. In place if they are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotaryTensor {
    /// What is read.
    pub input: DeviceTensor,
    /// What is written.
    pub output: DeviceTensor,
}

impl RotaryTensor {
    /// Rotates `tensor` in place.
    pub fn in_place(tensor: DeviceTensor) -> Self {
        Self { input: tensor, output: tensor }
    }
}

/// A rotation of queries and keys by the angles of their positions, in one launch.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// The angles and gains of the first `2 * pairs` dimensions; the others are copied.
    pub sets: &'a FactorSets,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Rotation or its transpose.
    pub direction: Direction,
    /// Where the tokens stand.
    pub positions: DevicePositions,
    /// Which set each sequence uses.
    pub choices: DeviceChoices,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_CHOICE`]); it clears none.
    pub status: Option<u64>,
}

/// A change of what was rotated already, as keys in a cache are: out of one factor set, into another, and by a shift of
/// position. The gain becomes the ratio of the two.
///
/// For one attention call this is what rotating the original keys anew gives, up to the rounding of the stored keys. For
/// a whole model it approximates a new prefill: hidden states of upper layers were formed under the old factors.
#[derive(Debug, Clone, Copy)]
pub struct Rerotate<'a> {
    /// The sets to rotate into, and the positions of the tokens as they were. Its direction must be forward.
    pub to: Rotary<'a>,
    /// The sets that the tensor was rotated by.
    pub from: &'a FactorSets,
    /// Which of them each sequence used.
    pub from_choices: DeviceChoices,
    /// How far every position moves.
    pub shift: i64,
}

impl Rotary<'_> {
    /// Whether the rotation of these tensors can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Rotary::run`], but for those of the driver.
    pub fn supported(&self, tensors: &[RotaryTensor]) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// Launches the rotation of one tensor, or of two with the same batch, length, head dimension and type (queries and
    /// keys). They may be parts of one packed buffer.
    ///
    /// # Errors
    /// No tensor or more than two, shapes or types that do not belong together, an output that overlaps itself, more than
    /// 256 dimensions to rotate, or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their
    /// elements, and as large as the shapes say. An output must be equal to its input or overlap no other memory in use.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &[RotaryTensor],
        stream: Stream,
    ) -> Result<(), Error> {
        let Some((name, grid, params)) = self.plan(tensors)? else { return Ok(()) };
        // SAFETY: the name is that of a rotary kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(name.plain, grid, &params, stream) }?)
    }

    /// Kernel, grid and parameters; `None` if there is nothing to rotate.
    fn plan(
        &self,
        tensors: &[RotaryTensor],
    ) -> Result<Option<(&'static Kernel, Grid, longrope_rotary_params)>, Error> {
        let [first, rest @ ..] = tensors else {
            return Err(Error::argument("tensors", "none", "one tensor, or two"));
        };
        if rest.len() > 1 {
            return Err(Error::argument("tensors", tensors.len(), "one tensor, or two"));
        }
        check_tensors(self, first, rest)?;
        let [batch, length, _, head_dim] = first.input.layout.shape();
        let heads: usize = tensors.iter().map(|tensor| tensor.input.layout.heads()).sum();
        let tokens = batch * length; // checked to fit
        if tokens == 0 || heads == 0 || head_dim == 0 {
            return Ok(None);
        }

        let (dtype, pairs) = (first.input.dtype, self.sets.pairs());
        let lanes = 16 / dtype.size();
        let vector = pairs.is_multiple_of(lanes)
            && (head_dim - 2 * pairs).is_multiple_of(lanes)
            && tensors.iter().all(|t| t.input.is_vectorizable() && t.output.is_vectorizable());
        let chunks = if vector { pairs / lanes } else { pairs };
        let shape = Shape::new(tokens, heads, chunks);
        let blocks = u32::try_from(tokens.div_ceil(shape.tokens)).ok().filter(|blocks| *blocks < 1 << 31);
        let blocks = blocks.ok_or_else(|| {
            Error::unsupported("tensors", format!("{tokens} tokens"), "fewer than 2^31 tokens")
        })?;
        let threads = chunks * shape.heads * shape.tokens;
        let ring = if vector { STAGES.min(shape.steps) * STEP_BYTES * threads } else { 0 };
        let grid = Grid {
            blocks,
            threads: [chunks as u32, shape.heads as u32, shape.tokens as u32],
            shared_bytes: (ring + shape.tokens * pairs * 8) as u32,
        };

        let (position_kind, positions, position_offset) = match self.positions {
            DevicePositions::Offset(offset) => (LONGROPE_POSITION_OFFSET, 0, offset),
            DevicePositions::OffsetAt(at) => (LONGROPE_POSITION_DEVICE_OFFSET, at, 0),
            DevicePositions::OffsetPerSequence(at) => (LONGROPE_POSITION_PER_SEQUENCE, at, 0),
            DevicePositions::PerToken(at) => (LONGROPE_POSITION_PER_TOKEN, at, 0),
            DevicePositions::PerToken32(at) => (LONGROPE_POSITION_PER_TOKEN_32, at, 0),
        };
        let (choice_kind, choices) = choice(self.choices, self.sets);
        let mut tensor = [longrope_rotary_tensor::default(); 2];
        tensor.iter_mut().zip(tensors).for_each(|(params, tensor)| *params = tensor_params(tensor));
        let params = longrope_rotary_params {
            tensor,
            batch: batch as i64,
            length: length as i64,
            positions: pointer(positions),
            position_offset,
            choices: pointer(choices),
            status: self.status.unwrap_or(0) as *mut u32,
            head_dim: head_dim as i32,
            pairs: pairs as i32,
            position_kind: position_kind as i32,
            choice_kind: choice_kind as i32,
            parity: i32::from(is_parity(self.sets)),
            backward: i32::from(self.direction == Direction::Backward),
            ring_bytes: ring as i32,
            padding: 0,
            sets: factor_sets(self.sets)?,
        };
        Ok(Some((kernel(dtype, vector, self.pairing), grid, params)))
    }
}

impl Rerotate<'_> {
    /// Whether it can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Rerotate::run`], but for those of the driver.
    pub fn supported(&self, tensors: &[RotaryTensor]) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// Launches the re-rotation.
    ///
    /// # Errors
    /// As [`Rotary::run`]; angles in parity mode, whose differences are not exact; sets that differ in their pairs; the
    /// backward direction.
    ///
    /// # Safety
    /// As [`Rotary::run`].
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &[RotaryTensor],
        stream: Stream,
    ) -> Result<(), Error> {
        let Some((name, grid, params)) = self.plan(tensors)? else { return Ok(()) };
        // SAFETY: the name is that of a re-rotating kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(name.between, grid, &params, stream) }?)
    }

    fn plan(
        &self,
        tensors: &[RotaryTensor],
    ) -> Result<Option<(&'static Kernel, Grid, longrope_rerotate_params)>, Error> {
        if is_parity(self.to.sets) || is_parity(self.from) {
            return Err(Error::unsupported("sets", "angles in parity mode", "exact angles"));
        }
        if self.from.pairs() != self.to.sets.pairs() {
            return Err(Error::argument(
                "from",
                format!("{} pairs", self.from.pairs()),
                format!("{}, as the sets to rotate into", self.to.sets.pairs()),
            ));
        }
        if self.to.direction != Direction::Forward {
            return Err(Error::argument("to.direction", "backward", "forward"));
        }
        let (from_choice_kind, from_choices) = choice(self.from_choices, self.from);
        let from = factor_sets(self.from)?;
        Ok(self.to.plan(tensors)?.map(|(name, grid, rotary)| {
            let params = longrope_rerotate_params {
                rotary,
                from,
                shift: self.shift,
                from_choices: pointer(from_choices),
                from_choice_kind: from_choice_kind as i32,
                padding: 0,
            };
            (name, grid, params)
        }))
    }
}

fn check_tensors(rotary: &Rotary<'_>, first: &RotaryTensor, rest: &[RotaryTensor]) -> Result<(), Error> {
    let shape = first.input.layout.shape();
    for (i, tensor) in std::iter::once(first).chain(rest).enumerate() {
        let (input, output) = (&tensor.input, &tensor.output);
        let name = |part: &str| format!("tensors[{i}].{part}");
        if output.layout.shape() != input.layout.shape() {
            return Err(Error::argument(
                name("output"),
                format!("shape {:?}", output.layout.shape()),
                format!("{:?}, as its input", input.layout.shape()),
            ));
        }
        let [batch, length, _, head_dim] = input.layout.shape();
        if [batch, length, head_dim] != [shape[0], shape[1], shape[3]] {
            return Err(Error::argument(
                name("input"),
                format!("shape {:?}", input.layout.shape()),
                format!(
                    "batch {}, length {} and head dimension {}, as tensors[0]",
                    shape[0], shape[1], shape[3]
                ),
            ));
        }
        for (part, dtype) in [("input", input.dtype), ("output", output.dtype)] {
            if dtype != first.input.dtype {
                let expected = format!("{:?}, as tensors[0].input", first.input.dtype);
                return Err(Error::argument(name(part), format!("{dtype:?}"), expected));
            }
        }
        for (part, tensor) in [("input", input), ("output", output)] {
            if !tensor.address.is_multiple_of(tensor.dtype.size() as u64) {
                let expected = format!("a multiple of {}, the size of an element", tensor.dtype.size());
                return Err(Error::argument(name(part), format!("address {:#x}", tensor.address), expected));
            }
            if tensor.address == 0 && !tensor.layout.is_empty() {
                return Err(Error::argument(name(part), "a null address", "an address in device memory"));
            }
            if tensor.layout.heads() > 1 << 20 {
                return Err(Error::unsupported(name(part), tensor.layout.heads(), "at most 2^20 heads"));
            }
        }
        output.layout.check_distinct(&name("output"))?;
        rotates(rotary, &input.layout, &name("input"))?;
    }
    Ok(())
}

/// Whether the sets fit the head dimension.
fn rotates(rotary: &Rotary<'_>, layout: &Layout, name: &str) -> Result<(), Error> {
    let rotary_dim = 2 * rotary.sets.pairs();
    if rotary_dim == 0 || layout.head_dim() < rotary_dim || layout.head_dim() > 1 << 20 {
        return Err(Error::argument(
            name,
            format!("head dimension {}", layout.head_dim()),
            format!("{} (the rotary dimension of the sets) to 2^20", rotary_dim.max(2)),
        ));
    }
    match layout.batch().checked_mul(layout.length()) {
        Some(_) => Ok(()),
        None => Err(Error::argument(name, format!("shape {:?}", layout.shape()), "fewer than 2^31 tokens")),
    }
}

/// How the work is laid out over blocks and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Tokens of a block.
    tokens: usize,
    /// Threads that share a token and a chunk: each takes [`HEADS`] heads in a step.
    heads: usize,
    /// Steps until all heads are done.
    steps: usize,
}

impl Shape {
    /// The layout for `tokens` tokens of `heads` heads of `chunks` chunks.
    fn new(tokens: usize, heads: usize, chunks: usize) -> Self {
        // As few steps as the bound on threads allows, of equal size.
        let fewest = (heads * chunks).div_ceil(HEADS * MAX_THREADS);
        let block_heads = heads.div_ceil(HEADS * fewest).clamp(1, MAX_THREADS / chunks);
        let block_tokens = (MAX_THREADS / (chunks * block_heads)).clamp(1, MAX_TOKENS.min(tokens));
        Self { tokens: block_tokens, heads: block_heads, steps: heads.div_ceil(HEADS * block_heads) }
    }
}

fn choice(choices: DeviceChoices, sets: &FactorSets) -> (u32, Address) {
    match choices {
        DeviceChoices::All(SetChoice::Short) => (LONGROPE_CHOICE_SHORT, 0),
        DeviceChoices::All(SetChoice::Long) => (LONGROPE_CHOICE_LONG, 0),
        DeviceChoices::All(SetChoice::ByLength(length)) if length > sets.original_length() => {
            (LONGROPE_CHOICE_LONG, 0)
        }
        DeviceChoices::All(SetChoice::ByLength(_)) => (LONGROPE_CHOICE_SHORT, 0),
        DeviceChoices::ByLength(at) => (LONGROPE_CHOICE_BY_LENGTH, at),
        DeviceChoices::ByIndex(at) => (LONGROPE_CHOICE_BY_INDEX, at),
    }
}

fn pointer(address: Address) -> *const std::ffi::c_void {
    address as *const std::ffi::c_void
}

fn tensor_params(tensor: &RotaryTensor) -> longrope_rotary_tensor {
    longrope_rotary_tensor {
        in_: pointer(tensor.input.address),
        out: pointer(tensor.output.address).cast_mut(),
        in_stride: tensor.input.layout.strides(),
        out_stride: tensor.output.layout.strides(),
        heads: tensor.input.layout.heads() as i32,
        padding: 0,
    }
}

/// The names of a rotating kernel and of its re-rotating twin.
struct Kernel {
    plain: &'static str,
    between: &'static str,
}

macro_rules! kernels {
    ($($name:literal),*) => {
        &[$(Kernel {
            plain: concat!("longrope_rotary_", $name),
            between: concat!("longrope_rerotate_", $name),
        }),*]
    };
}

/// By type, then vector or strided, then half-split or interleaved: the instances in `cuda/rotary.cu`.
static KERNELS: &[Kernel] = kernels![
    "f32_vector_half_split",
    "f32_vector_interleaved",
    "f32_strided_half_split",
    "f32_strided_interleaved",
    "f16_vector_half_split",
    "f16_vector_interleaved",
    "f16_strided_half_split",
    "f16_strided_interleaved",
    "bf16_vector_half_split",
    "bf16_vector_interleaved",
    "bf16_strided_half_split",
    "bf16_strided_interleaved"
];

fn kernel(dtype: Dtype, vector: bool, pairing: Pairing) -> &'static Kernel {
    let dtype = match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 4,
        Dtype::Bf16 => 8,
    };
    let interleaved = usize::from(pairing == Pairing::Interleaved);
    &KERNELS[dtype + if vector { 0 } else { 2 } + interleaved]
}

/// The kernels of this family.
pub(super) fn family() -> Family {
    let kernels = KERNELS.iter().flat_map(|kernel| [kernel.plain, kernel.between]).collect();
    Family { image: "rotary", kernels, shared_bytes: 0 }
}
