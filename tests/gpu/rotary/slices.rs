//! Safe launches on cudarc's slices: the bits of raw ones, in order, and refused where memory is too short.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::{bf16, f16};
use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{DeviceTensor, Element, SliceTensor, SliceTensorMut};
use longrope::ops::{
    BAD_CHOICE, DeviceChoices, DevicePositions, Rerotate, RerotateOnSlices, Rotary, RotaryOnSlices,
    RotaryTensor, SliceChoices, SlicePositions, SliceRotary,
};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

use crate::buffer::Gpu;
use crate::random::values;

pub const TESTS: &[crate::Test] = &[
    ("a_safe_launch_makes_the_bits_of_a_raw_one", same_bits),
    ("a_safe_re_rotation_makes_the_bits_of_a_raw_one", same_bits_between),
    ("the_heads_of_a_packed_slice_rotate_in_place_and_the_others_stay", packed),
    ("a_safe_launch_reports_a_bad_set_index", bad_index),
    ("slices_that_are_too_short_are_refused_by_name", too_short),
    ("safe_launches_on_two_streams_wait_for_each_other", two_streams),
    ("a_safe_launch_can_be_captured_without_event_tracking", captured),
];

const BATCH: usize = 2;
const LENGTH: usize = 5;
const HEADS: usize = 3;
const DIM: usize = 64;
const COUNT: usize = BATCH * LENGTH * HEADS * DIM;

fn layout() -> Layout {
    Layout::bshd(BATCH, LENGTH, HEADS, DIM)
}

fn sets() -> FactorSets {
    let frequencies: Vec<f64> = (0..DIM / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / DIM as f64)).collect();
    let divided: Vec<f64> = frequencies.iter().map(|f| f / 8.0).collect();
    let set = |frequencies: &[f64], gain| FactorSet::exact(frequencies, gain).unwrap();
    FactorSets::new(set(&frequencies, 1.0), set(&frequencies, 1.1), set(&divided, 1.1), 100, 3).unwrap()
}

/// An element type that can be made from an f32 and compared by its bits.
trait Value: Element + Copy {
    fn from(x: f32) -> Self;
    fn bits(self) -> u32;
}

impl Value for f32 {
    fn from(x: f32) -> Self {
        x
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Value for f16 {
    fn from(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Value for bf16 {
    fn from(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

fn elements<T: Value>(seed: u64) -> Vec<T> {
    values(seed, COUNT).into_iter().map(T::from).collect()
}

fn bits<T: Value>(gpu: &Gpu, slice: &CudaSlice<T>) -> Vec<u32> {
    gpu.download(slice).into_iter().map(T::bits).collect()
}

fn tensor<T: Element>(gpu: &Gpu, slice: &CudaSlice<T>) -> DeviceTensor {
    DeviceTensor { address: gpu.address(slice), dtype: T::DTYPE, layout: layout() }
}

/// A rotation by an offset known now.
fn on_slices(sets: &FactorSets) -> RotaryOnSlices<'_> {
    RotaryOnSlices {
        sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: SlicePositions::Offset(1 << 20),
        choices: SliceChoices::All(SetChoice::Long),
        status: None,
    }
}

/// The positions and choices that a launch can have, in memory that lives as long as the tests.
struct Arrays {
    wide: CudaSlice<i64>,
    narrow: CudaSlice<i32>,
    lengths: CudaSlice<i64>,
    indices: CudaSlice<i32>,
}

impl Arrays {
    fn new(gpu: &Gpu) -> Self {
        let positions = [7i64, -3, 1 << 20, 12, 2_147_483_647, -2_147_483_648, 0, 1, 2, 99];
        Self {
            wide: gpu.upload(&positions),
            narrow: gpu.upload(&positions.map(|p| p as i32)),
            lengths: gpu.upload(&[100i64, 101]),
            indices: gpu.upload(&[1i32, 0]),
        }
    }

    fn positions(&self, gpu: &Gpu, kind: usize) -> (SlicePositions<'_>, DevicePositions) {
        let (wide, narrow) = (gpu.address(&self.wide), gpu.address(&self.narrow));
        let view = || self.wide.as_view();
        match kind {
            0 => (SlicePositions::Offset(5), DevicePositions::Offset(5)),
            1 => (SlicePositions::OffsetAt(view()), DevicePositions::OffsetAt(wide)),
            2 => (SlicePositions::OffsetPerSequence(view()), DevicePositions::OffsetPerSequence(wide)),
            3 => (SlicePositions::PerToken(view()), DevicePositions::PerToken(wide)),
            _ => (SlicePositions::PerToken32(self.narrow.as_view()), DevicePositions::PerToken32(narrow)),
        }
    }

    fn choices(&self, gpu: &Gpu, kind: usize) -> (SliceChoices<'_>, DeviceChoices) {
        let all = SetChoice::ByLength(101);
        match kind {
            0 => (SliceChoices::All(all), DeviceChoices::All(all)),
            1 => {
                let lengths = gpu.address(&self.lengths);
                (SliceChoices::ByLength(self.lengths.as_view()), DeviceChoices::ByLength(lengths))
            }
            _ => {
                let indices = gpu.address(&self.indices);
                (SliceChoices::ByIndex(self.indices.as_view()), DeviceChoices::ByIndex(indices))
            }
        }
    }
}

fn same_bits(gpu: &Gpu) {
    same_bits_of::<f32>(gpu);
    same_bits_of::<f16>(gpu);
    same_bits_of::<bf16>(gpu);
}

fn same_bits_of<T: Value>(gpu: &Gpu) {
    let (sets, arrays, x) = (sets(), Arrays::new(gpu), elements::<T>(1));
    for (position_kind, choice_kind) in (0..5).flat_map(|p| (0..3).map(move |c| (p, c))) {
        let (positions, raw_positions) = arrays.positions(gpu, position_kind);
        let (choices, raw_choices) = arrays.choices(gpu, choice_kind);
        let (pairing, direction) = (Pairing::Interleaved, Direction::Backward);
        // q into another, k in place.
        let (q, mut k) = (gpu.upload(&x), gpu.upload(&x));
        let mut rotated = gpu.upload(&[T::from(f32::NAN); COUNT]);
        let mut tensors = [
            SliceRotary::Into(
                SliceTensor::new(q.as_view(), 0, layout()).unwrap(),
                SliceTensorMut::new(rotated.as_view_mut(), 0, layout()).unwrap(),
            ),
            SliceRotary::InPlace(SliceTensorMut::new(k.as_view_mut(), 0, layout()).unwrap()),
        ];
        let mut rotary = RotaryOnSlices { sets: &sets, pairing, direction, positions, choices, status: None };
        rotary.run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap();

        let expected = gpu.upload(&x);
        let raw = Rotary {
            sets: &sets,
            pairing,
            direction,
            positions: raw_positions,
            choices: raw_choices,
            status: None,
        };
        let in_place = [RotaryTensor::in_place(tensor(gpu, &expected))];
        // SAFETY: the slice has as many elements as the layout, and is read before it is dropped.
        unsafe { raw.run(&gpu.kernels, &in_place, gpu.raw_stream()) }.unwrap();
        let expected = bits(gpu, &expected);
        assert_eq!(bits(gpu, &rotated), expected, "positions {position_kind}, choices {choice_kind}");
        assert_eq!(bits(gpu, &k), expected, "positions {position_kind}, choices {choice_kind}");
        assert_eq!(bits(gpu, &q), x.iter().map(|x| x.bits()).collect::<Vec<_>>());
    }
}

fn same_bits_between(gpu: &Gpu) {
    let (sets, arrays, x) = (sets(), Arrays::new(gpu), elements::<bf16>(2));
    let mut k = gpu.upload(&x);
    let mut rerotate = RerotateOnSlices {
        to: on_slices(&sets),
        from: &sets,
        from_choices: SliceChoices::ByIndex(arrays.indices.as_view()),
        shift: -9,
    };
    let mut tensors = [SliceRotary::InPlace(SliceTensorMut::new(k.as_view_mut(), 0, layout()).unwrap())];
    rerotate.run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap();

    let expected = gpu.upload(&x);
    let raw = Rerotate {
        to: Rotary {
            sets: &sets,
            pairing: Pairing::HalfSplit,
            direction: Direction::Forward,
            positions: DevicePositions::Offset(1 << 20),
            choices: DeviceChoices::All(SetChoice::Long),
            status: None,
        },
        from: &sets,
        from_choices: DeviceChoices::ByIndex(gpu.address(&arrays.indices)),
        shift: -9,
    };
    let in_place = [RotaryTensor::in_place(tensor(gpu, &expected))];
    // SAFETY: as above.
    unsafe { raw.run(&gpu.kernels, &in_place, gpu.raw_stream()) }.unwrap();
    assert_eq!(bits(gpu, &k), bits(gpu, &expected));
    assert_ne!(bits(gpu, &k), x.iter().map(|x| x.bits()).collect::<Vec<_>>());
}

fn packed(gpu: &Gpu) {
    // Two heads to rotate and one to leave.
    let (sets, x) = (sets(), elements::<f32>(3));
    let (mut whole, mut all) = (gpu.upload(&x), gpu.upload(&x));
    let heads = Layout::strided([BATCH, LENGTH, 2, DIM], layout().strides());
    for (memory, layout) in [(&mut whole, heads), (&mut all, layout())] {
        let mut tensors =
            [SliceRotary::InPlace(SliceTensorMut::new(memory.as_view_mut(), 0, layout).unwrap())];
        on_slices(&sets).run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap();
    }
    let (whole, all) = (bits(gpu, &whole), bits(gpu, &all));
    for (i, found) in whole.into_iter().enumerate() {
        let left = i / DIM % HEADS == 2;
        assert_eq!(found, if left { x[i].to_bits() } else { all[i] }, "element {i}");
    }
}

fn bad_index(gpu: &Gpu) {
    let (sets, x) = (sets(), elements::<f32>(4));
    let (indices, mut status, mut q) = (gpu.upload(&[0i32, 9]), gpu.upload(&[0u32]), gpu.upload(&x));
    let mut rotary = on_slices(&sets);
    rotary.choices = SliceChoices::ByIndex(indices.as_view());
    rotary.status = Some(status.as_view_mut());
    let mut tensors = [SliceRotary::InPlace(SliceTensorMut::new(q.as_view_mut(), 0, layout()).unwrap())];
    rotary.run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap();
    assert_eq!(gpu.download(&status), [BAD_CHOICE]);
    let (found, x) = (gpu.download(&q), &x[..]);
    assert_ne!(found[..COUNT / 2], x[..COUNT / 2]);
    assert_eq!(found[COUNT / 2..], x[COUNT / 2..]);
}

fn too_short(gpu: &Gpu) {
    let (sets, x) = (sets(), elements::<f32>(5));
    let mut q = gpu.upload(&x);
    let message = SliceTensorMut::new(q.slice_mut(1..), 0, layout()).unwrap_err().to_string();
    assert!(message.starts_with("memory: ") && message.contains("elements 0 to 1918"), "{message}");
    assert!(SliceTensor::new(q.as_view(), 1, layout()).is_err());
    let still = Layout::strided([BATCH, LENGTH, HEADS, DIM], [0, 0, 0, 1]);
    assert!(SliceTensor::new(q.as_view(), 0, still).is_ok());
    assert!(SliceTensorMut::new(q.as_view_mut(), 0, still).is_err(), "outputs are distinct");

    let arrays = Arrays::new(gpu);
    let mut word = gpu.upload(&[0u32]);
    let tokens = BATCH * LENGTH;
    let mut refused = |name: &str, rotary: &mut RotaryOnSlices<'_>| {
        let mut tensors = [SliceRotary::InPlace(SliceTensorMut::new(q.as_view_mut(), 0, layout()).unwrap())];
        let message = rotary.run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
        assert_eq!(gpu.download(&q), x);
    };
    for positions in [
        SlicePositions::OffsetAt(arrays.wide.slice(..0)),
        SlicePositions::OffsetPerSequence(arrays.wide.slice(..BATCH - 1)),
        SlicePositions::PerToken(arrays.wide.slice(..tokens - 1)),
        SlicePositions::PerToken32(arrays.narrow.slice(..tokens - 1)),
    ] {
        refused("positions", &mut RotaryOnSlices { positions, ..on_slices(&sets) });
    }
    for choices in [
        SliceChoices::ByLength(arrays.lengths.slice(..BATCH - 1)),
        SliceChoices::ByIndex(arrays.indices.slice(..BATCH - 1)),
    ] {
        refused("choices", &mut RotaryOnSlices { choices, ..on_slices(&sets) });
    }
    refused("status", &mut RotaryOnSlices { status: Some(word.slice_mut(..0)), ..on_slices(&sets) });
}

/// The input arrives late on one stream, is rotated on another, and read on the first: cudarc's events order it.
fn two_streams(gpu: &Gpu) {
    let (sets, x) = (sets(), elements::<f32>(6));
    let rotate = |memory: &mut CudaSlice<f32>, stream: &CudaStream| {
        let mut tensors =
            [SliceRotary::InPlace(SliceTensorMut::new(memory.as_view_mut(), 0, layout()).unwrap())];
        on_slices(&sets).run(&gpu.kernels, &mut tensors, stream).unwrap();
    };
    let mut expected = gpu.upload(&x);
    rotate(&mut expected, &gpu.stream);
    let expected = bits(gpu, &expected);

    let other = gpu.cuda.new_stream().unwrap();
    let (source, mut late) = (gpu.upload(&x), gpu.stream.alloc_zeros::<f32>(COUNT).unwrap());
    // Half a gigabyte of copies takes longer than a launch.
    let large = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    let mut target = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    gpu.stream.synchronize().unwrap();
    for _ in 0..4 {
        gpu.stream.memcpy_dtod(&large, &mut target).unwrap();
    }
    gpu.stream.memcpy_dtod(&source, &mut late).unwrap();
    rotate(&mut late, &other);
    assert_eq!(bits(gpu, &late), expected);
}

fn captured(gpu: &Gpu) {
    let (sets, x) = (sets(), elements::<f32>(7));
    let mut expected = gpu.upload(&x);
    let mut tensors =
        [SliceRotary::InPlace(SliceTensorMut::new(expected.as_view_mut(), 0, layout()).unwrap())];
    on_slices(&sets).run(&gpu.kernels, &mut tensors, &gpu.stream).unwrap();
    let expected = gpu.download(&expected);

    let cuda = CudaContext::new(0).unwrap();
    // SAFETY: all slices of this context are used on one stream.
    unsafe { cuda.disable_event_tracking() };
    let stream = cuda.new_stream().unwrap();
    let (input, mut output) = (stream.clone_htod(&x).unwrap(), stream.alloc_zeros::<f32>(COUNT).unwrap());
    stream.synchronize().unwrap();
    stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let mut tensors = [SliceRotary::Into(
        SliceTensor::new(input.as_view(), 0, layout()).unwrap(),
        SliceTensorMut::new(output.as_view_mut(), 0, layout()).unwrap(),
    )];
    on_slices(&sets).run(&gpu.kernels, &mut tensors, &stream).unwrap();
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a graph with one node");
    assert!(stream.clone_dtoh(&output).unwrap().iter().all(|x| *x == 0.0), "capturing runs nothing");
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&output).unwrap(), expected);
}
