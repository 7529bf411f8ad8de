//! Rotary embedding of queries and keys, and re-rotation of keys that were rotated already.

use crate::Error;
use crate::descriptor::{Direction, Layout, Pairing};
use crate::device::params::{
    LONGROPE_CHOICE_BY_INDEX, LONGROPE_CHOICE_BY_LENGTH, LONGROPE_CHOICE_LONG, LONGROPE_CHOICE_SHORT,
    LONGROPE_DEVICE_BAD_CHOICE, LONGROPE_POSITION_DEVICE_OFFSET, LONGROPE_POSITION_OFFSET,
    LONGROPE_POSITION_PER_SEQUENCE, LONGROPE_POSITION_PER_TOKEN, LONGROPE_POSITION_PER_TOKEN_32,
    longrope_rerotate_params, longrope_rotary_params, longrope_rotary_tensor,
};
use crate::device::{Address, Context, DeviceTensor, Stream};
use crate::ops::factors::{factor_sets, is_parity};
use crate::ops::rotary_launch::{Launch, Source, Work};
use crate::scaling::{FactorSets, SetChoice};

/// The bit of the status word that a set index other than 0 and 1, or outside of a table, sets. Tokens of its sequence are
/// not written.
pub const BAD_CHOICE: u32 = LONGROPE_DEVICE_BAD_CHOICE;

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
        self.plan(tensors, Source::Sets).map(drop)
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
        let Some((launch, params)) = self.plan(tensors, Source::Sets)? else { return Ok(()) };
        // SAFETY: the name is that of a rotary kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(launch.kernel, launch.grid, &params, stream) }?)
    }

    /// Launch and parameters, with the angles from `source`; `None` if there is nothing to rotate.
    pub(super) fn plan(
        &self,
        tensors: &[RotaryTensor],
        source: Source,
    ) -> Result<Option<(Launch, longrope_rotary_params)>, Error> {
        let [first, rest @ ..] = tensors else {
            return Err(Error::argument("tensors", "none", "one tensor, or two"));
        };
        if rest.len() > 1 {
            return Err(Error::argument("tensors", tensors.len(), "one tensor, or two"));
        }
        check_tensors(self, first, rest)?;
        let [batch, length, _, head_dim] = first.input.layout.shape();
        let heads: usize = tensors.iter().map(|tensor| tensor.input.layout.heads()).sum();
        if batch * length == 0 || heads == 0 || head_dim == 0 {
            return Ok(None);
        }

        let (dtype, pairs) = (first.input.dtype, self.sets.pairs());
        let lanes = 16 / dtype.size();
        let vector = pairs.is_multiple_of(lanes)
            && (head_dim - 2 * pairs).is_multiple_of(lanes)
            && tensors.iter().all(|t| t.input.is_vectorizable() && t.output.is_vectorizable());
        let sets = factor_sets(self.sets)?;
        let (pairing, parity) = (self.pairing, is_parity(self.sets));
        let work = Work { dtype, pairing, vector, parity, source, batch, length, heads, pairs };
        let launch = Launch::of(&work)?;

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
            parity: i32::from(parity),
            backward: i32::from(self.direction == Direction::Backward),
            ring_bytes: launch.ring_bytes,
            token_blocks: launch.token_blocks,
            token_blocks_reciprocal: launch.token_blocks_reciprocal,
            length_reciprocal: launch.length_reciprocal,
            sets,
        };
        Ok(Some((launch, params)))
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
        let Some((launch, params)) = self.plan(tensors)? else { return Ok(()) };
        // SAFETY: the name is that of a re-rotating kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(launch.kernel, launch.grid, &params, stream) }?)
    }

    fn plan(&self, tensors: &[RotaryTensor]) -> Result<Option<(Launch, longrope_rerotate_params)>, Error> {
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
        Ok(self.to.plan(tensors, Source::Between)?.map(|(launch, rotary)| {
            let params = longrope_rerotate_params {
                rotary,
                from,
                shift: self.shift,
                from_choices: pointer(from_choices),
                from_choice_kind: from_choice_kind as i32,
                padding: 0,
            };
            (launch, params)
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

pub(super) fn pointer(address: Address) -> *const std::ffi::c_void {
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
