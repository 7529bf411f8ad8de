//! Rotary embedding on cudarc's slices: the launches of [`Rotary`] and [`Rerotate`] without `unsafe`.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use crate::Error;
use crate::descriptor::{Direction, Layout, Pairing};
use crate::device::{Context, Element, SliceTensor, SliceTensorMut, slice};
use crate::ops::rotary::{DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
use crate::scaling::{FactorSets, SetChoice};

/// Where the tokens stand: [`DevicePositions`] in slices.
#[derive(Debug)]
pub enum SlicePositions<'a> {
    /// Token `s` of every sequence stands at this offset plus `s`.
    Offset(i64),
    /// As before, the offset being the first entry.
    OffsetAt(CudaView<'a, i64>),
    /// Token `s` of sequence `b` stands at `offsets[b] + s`: `[batch]`.
    OffsetPerSequence(CudaView<'a, i64>),
    /// A position per token: `[batch, length]`.
    PerToken(CudaView<'a, i64>),
    /// A position per token: `[batch, length]`.
    PerToken32(CudaView<'a, i32>),
}

/// Which factor set each sequence uses: [`DeviceChoices`] in slices.
#[derive(Debug)]
pub enum SliceChoices<'a> {
    /// One choice for every sequence, made now.
    All(SetChoice),
    /// By the whole length of each sequence, `[batch]`: long beyond the original length, else short.
    ByLength(CudaView<'a, i64>),
    /// By number, `[batch]`: 0 short, 1 long; anything else sets [`BAD_CHOICE`](crate::ops::BAD_CHOICE).
    ByIndex(CudaView<'a, i32>),
}

/// A tensor to rotate, `[batch, length, heads, head_dim]`.
#[derive(Debug)]
pub enum SliceRotary<'a, T> {
    /// From one into another of the same shape.
    Into(SliceTensor<'a, T>, SliceTensorMut<'a, T>),
    /// In place. Queries and keys of a packed buffer are one tensor of all their heads.
    InPlace(SliceTensorMut<'a, T>),
}

/// A rotation of queries and keys by the angles of their positions, in one launch; [`Rotary`] has the details.
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use longrope::descriptor::{Direction, Layout, Pairing};
/// use longrope::device::{Context, SliceTensor, SliceTensorMut};
/// use longrope::ops::{RotaryOnSlices, SliceChoices, SlicePositions, SliceRotary};
/// use longrope::scaling::{FactorSet, FactorSets, SetChoice};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cuda = CudaContext::new(0)?;
/// let stream = cuda.new_stream()?;
/// let kernels = Context::new(0)?;
///
/// // 4096 tokens of 32 query and 8 key heads of 128.
/// let (queries, keys) = (Layout::bshd(1, 4096, 32, 128), Layout::bshd(1, 4096, 8, 128));
/// let q = stream.alloc_zeros::<half::bf16>(4096 * 32 * 128)?;
/// let mut rotated = stream.alloc_zeros::<half::bf16>(4096 * 32 * 128)?;
/// let mut k = stream.alloc_zeros::<half::bf16>(4096 * 8 * 128)?;
/// let lengths = stream.clone_htod(&[4096i64])?;
///
/// let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
/// let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.0)?);
/// let mut rotary = RotaryOnSlices {
///     sets: &sets,
///     pairing: Pairing::HalfSplit,
///     direction: Direction::Forward,
///     positions: SlicePositions::Offset(0),
///     choices: SliceChoices::ByLength(lengths.as_view()),
///     status: None,
/// };
/// let mut tensors = [
///     SliceRotary::Into(
///         SliceTensor::new(q.as_view(), 0, queries)?,
///         SliceTensorMut::new(rotated.as_view_mut(), 0, queries)?,
///     ),
///     SliceRotary::InPlace(SliceTensorMut::new(k.as_view_mut(), 0, keys)?),
/// ];
/// rotary.run(&kernels, &mut tensors, &stream)?;
/// let rotated = stream.clone_dtoh(&rotated)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RotaryOnSlices<'a> {
    /// The angles and gains of the first `2 * pairs` dimensions; the others are copied.
    pub sets: &'a FactorSets,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Rotation or its transpose.
    pub direction: Direction,
    /// Where the tokens stand.
    pub positions: SlicePositions<'a>,
    /// Which set each sequence uses.
    pub choices: SliceChoices<'a>,
    /// A word in which the kernel sets bits ([`BAD_CHOICE`](crate::ops::BAD_CHOICE)); it clears none. One entry.
    pub status: Option<CudaViewMut<'a, u32>>,
}

/// A change of what was rotated already; [`Rerotate`] has the details.
#[derive(Debug)]
pub struct RerotateOnSlices<'a> {
    /// The sets to rotate into, and the positions of the tokens as they were. Its direction must be forward.
    pub to: RotaryOnSlices<'a>,
    /// The sets that the tensor was rotated by.
    pub from: &'a FactorSets,
    /// Which of them each sequence used.
    pub from_choices: SliceChoices<'a>,
    /// How far every position moves.
    pub shift: i64,
}

impl RotaryOnSlices<'_> {
    /// Launches the rotation of one tensor, or of two with the same batch, length, head dimension and type, on `stream`.
    ///
    /// cudarc orders it among the other uses of the slices; [`device`](crate::device#safe-launches) tells what that means
    /// for a capture.
    ///
    /// # Errors
    /// As [`Rotary::run`]; positions, choices or a status word that are too short; memory of another context than the
    /// stream's.
    pub fn run<T: Element>(
        &mut self,
        context: &Context,
        tensors: &mut [SliceRotary<'_, T>],
        stream: &CudaStream,
    ) -> Result<(), Error> {
        self.check(tensors, stream)?;
        let mut used = Vec::new();
        let tensors = raw_tensors(tensors, stream, &mut used);
        let rotary = self.raw(stream, &mut used);
        let raw_stream = slice::bind(stream)?;
        // SAFETY: the slices are device memory of the stream's context, borrowed until the launch was made; their uses
        // after that are ordered by `used`. The layouts lie within them, the arrays have their entries, and an output is
        // borrowed for itself alone.
        unsafe { rotary.run(context, &tensors, raw_stream) }
    }

    /// Checks all that a raw launch leaves to its caller.
    fn check<T: Element>(&self, tensors: &[SliceRotary<'_, T>], stream: &CudaStream) -> Result<(), Error> {
        for (i, tensor) in tensors.iter().enumerate() {
            for (part, memory) in tensor.memory() {
                slice::check_context(&format!("tensors[{i}].{part}"), memory, stream)?;
            }
        }
        let Some(first) = tensors.first() else { return Ok(()) };
        let [batch, length, ..] = first.layout().shape();
        let all = batch.saturating_mul(length);
        let array = match &self.positions {
            SlicePositions::Offset(_) => None,
            SlicePositions::OffsetAt(offset) => Some((offset.len(), 1, offset.stream())),
            SlicePositions::OffsetPerSequence(offsets) => Some((offsets.len(), batch, offsets.stream())),
            SlicePositions::PerToken(positions) => Some((positions.len(), all, positions.stream())),
            SlicePositions::PerToken32(positions) => Some((positions.len(), all, positions.stream())),
        };
        check_array("positions", array, stream)?;
        check_array("choices", self.choices.array(batch), stream)?;
        check_array("status", self.status.as_ref().map(|word| (word.len(), 1, word.stream())), stream)
    }

    /// The raw rotation. The arrays that are used join `used`.
    fn raw<'s>(&'s mut self, stream: &'s CudaStream, used: &mut Vec<SyncOnDrop<'s>>) -> Rotary<'s> {
        let positions = match &self.positions {
            SlicePositions::Offset(offset) => DevicePositions::Offset(*offset),
            SlicePositions::OffsetAt(offset) => DevicePositions::OffsetAt(address(offset, stream, used)),
            SlicePositions::OffsetPerSequence(offsets) => {
                DevicePositions::OffsetPerSequence(address(offsets, stream, used))
            }
            SlicePositions::PerToken(positions) => {
                DevicePositions::PerToken(address(positions, stream, used))
            }
            SlicePositions::PerToken32(positions) => {
                DevicePositions::PerToken32(address(positions, stream, used))
            }
        };
        let choices = self.choices.raw(stream, used);
        let status = self.status.as_mut().map(|word| {
            let (address, use_of_it) = word.device_ptr_mut(stream);
            used.push(use_of_it);
            address
        });
        let (sets, pairing, direction) = (self.sets, self.pairing, self.direction);
        Rotary { sets, pairing, direction, positions, choices, status }
    }
}

impl RerotateOnSlices<'_> {
    /// Launches the re-rotation on `stream`.
    ///
    /// # Errors
    /// As [`RotaryOnSlices::run`] and [`Rerotate::run`].
    pub fn run<T: Element>(
        &mut self,
        context: &Context,
        tensors: &mut [SliceRotary<'_, T>],
        stream: &CudaStream,
    ) -> Result<(), Error> {
        self.to.check(tensors, stream)?;
        let batch = tensors.first().map_or(0, |tensor| tensor.layout().batch());
        check_array("from_choices", self.from_choices.array(batch), stream)?;
        let mut used = Vec::new();
        let tensors = raw_tensors(tensors, stream, &mut used);
        let (from, from_choices, shift) = (self.from, self.from_choices.raw(stream, &mut used), self.shift);
        let rerotate = Rerotate { to: self.to.raw(stream, &mut used), from, from_choices, shift };
        let raw_stream = slice::bind(stream)?;
        // SAFETY: as in `RotaryOnSlices::run`.
        unsafe { rerotate.run(context, &tensors, raw_stream) }
    }
}

impl SliceChoices<'_> {
    /// Entries, entries needed, and the stream of the memory.
    fn array(&self, batch: usize) -> Option<(usize, usize, &Arc<CudaStream>)> {
        match self {
            Self::All(_) => None,
            Self::ByLength(lengths) => Some((lengths.len(), batch, lengths.stream())),
            Self::ByIndex(indices) => Some((indices.len(), batch, indices.stream())),
        }
    }

    fn raw<'s>(&'s self, stream: &'s CudaStream, used: &mut Vec<SyncOnDrop<'s>>) -> DeviceChoices {
        match self {
            Self::All(choice) => DeviceChoices::All(*choice),
            Self::ByLength(lengths) => DeviceChoices::ByLength(address(lengths, stream, used)),
            Self::ByIndex(indices) => DeviceChoices::ByIndex(address(indices, stream, used)),
        }
    }
}

impl<T: Element> SliceRotary<'_, T> {
    fn layout(&self) -> &Layout {
        match self {
            Self::Into(input, _) => input.layout(),
            Self::InPlace(tensor) => tensor.layout(),
        }
    }

    /// The streams that its memory belongs to.
    fn memory(&self) -> Vec<(&'static str, &Arc<CudaStream>)> {
        match self {
            Self::Into(input, output) => vec![("input", input.stream()), ("output", output.stream())],
            Self::InPlace(tensor) => vec![("input", tensor.stream())],
        }
    }
}

fn raw_tensors<'s, T: Element>(
    tensors: &'s mut [SliceRotary<'_, T>],
    stream: &'s CudaStream,
    used: &mut Vec<SyncOnDrop<'s>>,
) -> Vec<RotaryTensor> {
    let raw = |tensor: &'s mut SliceRotary<'_, T>| match tensor {
        SliceRotary::Into(input, output) => {
            let ((input, read), (output, written)) = (input.on(stream), output.on(stream));
            used.extend([read, written]);
            RotaryTensor { input, output }
        }
        SliceRotary::InPlace(tensor) => {
            let (tensor, written) = tensor.on(stream);
            used.push(written);
            RotaryTensor::in_place(tensor)
        }
    };
    tensors.iter_mut().map(raw).collect()
}

/// Checks the entries and the context of an array, if there is one.
fn check_array(
    name: &str,
    array: Option<(usize, usize, &Arc<CudaStream>)>,
    stream: &CudaStream,
) -> Result<(), Error> {
    let Some((found, needed, memory)) = array else { return Ok(()) };
    slice::check_entries(name, found, needed)?;
    slice::check_context(name, memory, stream)
}

/// The address of an array that a launch on `stream` reads.
fn address<'s, T>(array: &'s CudaView<'_, T>, stream: &'s CudaStream, used: &mut Vec<SyncOnDrop<'s>>) -> u64 {
    let (address, use_of_it) = array.device_ptr(stream);
    used.push(use_of_it);
    address
}
