//! The contract of a launch: streams, graphs, threads, equal bits, bad entries.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{BAD_CHOICE, DeviceChoices, DevicePositions, Rotary, RotaryTensor};
use longrope::scaling::{FactorSet, FactorSets};

use crate::buffer::{Buffer, Gpu, raw};
use crate::random::{Order, values};

pub const TESTS: &[crate::Test] = &[
    ("the_same_inputs_give_the_same_bits", same_bits),
    ("a_replayed_graph_follows_lengths_and_positions_on_the_device", graph),
    ("a_bad_set_index_is_reported_and_its_sequence_left_alone", bad_index),
    ("a_launch_stays_on_its_own_stream", own_stream),
    ("two_threads_share_a_context", two_threads),
    ("tensors_without_elements_are_nothing_to_do", empty),
    ("queries_and_keys_of_a_packed_buffer_rotate_in_place", packed),
];

fn sets() -> FactorSets {
    let frequencies: Vec<f64> = (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0)).collect();
    let divided = |by: f64| frequencies.iter().map(|f| f / by).collect::<Vec<_>>();
    let set = |frequencies: &[f64], gain| FactorSet::exact(frequencies, gain).unwrap();
    FactorSets::new(set(&frequencies, 1.0), set(&frequencies, 1.1), set(&divided(8.0), 1.1), 100, 0).unwrap()
}

fn rotary(sets: &FactorSets, positions: DevicePositions, choices: DeviceChoices) -> Rotary<'_> {
    let (pairing, direction) = (Pairing::HalfSplit, Direction::Forward);
    Rotary { sets, pairing, direction, positions, choices, status: None }
}

fn bits(seed: u64, count: usize) -> Vec<u32> {
    values(seed, count).iter().map(|x| x.to_bits()).collect()
}

const SHAPE: [usize; 4] = [2, 9, 3, 64];
const COUNT: usize = 2 * 9 * 3 * 64;

fn input(gpu: &Gpu, seed: u64) -> Buffer {
    Buffer::new(gpu, Dtype::F32, Order::Bshd, SHAPE, 0, Some(&bits(seed, COUNT)))
}

fn output(gpu: &Gpu) -> Buffer {
    Buffer::new(gpu, Dtype::F32, Order::Bshd, SHAPE, 0, None)
}

fn run(gpu: &Gpu, rotary: &Rotary<'_>, input: &Buffer, output: &Buffer) {
    let tensor = RotaryTensor { input: input.tensor, output: output.tensor };
    // SAFETY: the buffers are as large as their layouts say, and every test reads them before it drops them.
    unsafe { rotary.run(&gpu.kernels, &[tensor], gpu.raw_stream()) }.unwrap();
}

fn same_bits(gpu: &Gpu) {
    let (sets, x) = (sets(), input(gpu, 1));
    let rotary = rotary(&sets, DevicePositions::Offset(1 << 20), DeviceChoices::All(crate_choice(101)));
    let (a, b) = (output(gpu), output(gpu));
    run(gpu, &rotary, &x, &a);
    run(gpu, &rotary, &x, &b);
    assert_eq!(a.read(gpu), b.read(gpu));
}

fn crate_choice(length: u64) -> longrope::scaling::SetChoice {
    longrope::scaling::SetChoice::ByLength(length)
}

fn graph(gpu: &Gpu) {
    let (sets, x) = (sets(), input(gpu, 2));
    let mut lengths = gpu.upload(&[100i64, 101]);
    let mut offset = gpu.upload(&[7i64]);
    let rotary = rotary(
        &sets,
        DevicePositions::OffsetAt(gpu.address(&offset)),
        DeviceChoices::ByLength(gpu.address(&lengths)),
    );
    let (replayed, direct) = (output(gpu), output(gpu));
    gpu.stream.synchronize().unwrap();
    gpu.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run(gpu, &rotary, &x, &replayed);
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).unwrap().expect("a graph with one node");
    assert!(replayed.is_untouched(gpu), "capturing runs nothing");
    let mut seen = Vec::new();
    for (new_lengths, new_offset) in [([100i64, 101], 7i64), ([101, 100], 7), ([101, 101], 1 << 30)] {
        gpu.stream.memcpy_htod(&new_lengths, &mut lengths).unwrap();
        gpu.stream.memcpy_htod(&[new_offset], &mut offset).unwrap();
        graph.launch().unwrap();
        run(gpu, &rotary, &x, &direct);
        let result = replayed.read(gpu);
        assert_eq!(result, direct.read(gpu));
        assert!(!seen.contains(&result), "each replay follows what is on the device");
        seen.push(result);
    }
}

fn bad_index(gpu: &Gpu) {
    // For few tokens, and for many.
    for length in [SHAPE[1], 700] {
        bad_index_of(gpu, [SHAPE[0], length, SHAPE[2], SHAPE[3]]);
    }
}

fn bad_index_of(gpu: &Gpu, shape: [usize; 4]) {
    let count: usize = shape.iter().product();
    let (sets, values) = (sets(), bits(3, count));
    let new = |values| Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, values);
    let x = new(Some(&values[..]));
    for (index, bad) in [(0, false), (1, false), (2, true), (-1, true), (i32::MIN, true)] {
        let (indices, status) = (gpu.upload(&[0i32, index]), gpu.upload(&[0u32]));
        let mut rotary =
            rotary(&sets, DevicePositions::Offset(0), DeviceChoices::ByIndex(gpu.address(&indices)));
        rotary.status = Some(gpu.address(&status));
        let out = new(None);
        run(gpu, &rotary, &x, &out);
        let written = out.read(gpu);
        let is_poison = |bits: &u32| *bits == u32::MAX;
        assert!(!written[..count / 2].iter().any(is_poison), "the good sequence is written");
        assert_eq!(written[count / 2..].iter().all(is_poison), bad, "index {index}");
        assert_eq!(written[count / 2..].iter().any(is_poison), bad, "index {index}");
        let word = gpu.download(&status)[0];
        assert_eq!(word, if bad { BAD_CHOICE } else { 0 }, "index {index}");
        // Without a status word it is skipped just the same.
        rotary.status = None;
        let out = new(None);
        run(gpu, &rotary, &x, &out);
        assert_eq!(out.read(gpu), written);
    }
}

/// The input arrives late on a stream of its own: a kernel on any other stream would read poison.
fn own_stream(gpu: &Gpu) {
    let (sets, x) = (sets(), input(gpu, 4));
    let rotary = rotary(&sets, DevicePositions::Offset(5), DeviceChoices::All(crate_choice(1)));
    let (expected, out, late) = (output(gpu), output(gpu), output(gpu));
    run(gpu, &rotary, &x, &expected);
    let expected = expected.read(gpu);
    // Half a gigabyte of copies takes longer than a launch.
    let source = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    let mut target = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    gpu.stream.synchronize().unwrap();
    for _ in 0..4 {
        gpu.stream.memcpy_dtod(&source, &mut target).unwrap();
    }
    copy(gpu, &x, &late);
    run(gpu, &rotary, &late, &out);
    assert_eq!(out.read(gpu), expected);
}

/// Copies a tensor by a rotation by nothing, on the test's stream.
fn copy(gpu: &Gpu, from: &Buffer, to: &Buffer) {
    let still = FactorSets::uniform(FactorSet::exact(&[0.0; 32], 1.0).unwrap());
    run(gpu, &rotary(&still, DevicePositions::Offset(0), DeviceChoices::All(crate_choice(1))), from, to);
}

fn two_threads(gpu: &Gpu) {
    let sets = sets();
    let x = [input(gpu, 5), input(gpu, 6)];
    let rotary = rotary(&sets, DevicePositions::Offset(9), DeviceChoices::All(crate_choice(1)));
    let expected = [0, 1].map(|i| {
        let out = output(gpu);
        run(gpu, &rotary, &x[i], &out);
        out.read(gpu)
    });
    std::thread::scope(|scope| {
        for i in 0..2 {
            let (x, expected, rotary) = (&x[i], &expected[i], &rotary);
            scope.spawn(move || {
                gpu.cuda.bind_to_thread().unwrap();
                let stream = gpu.cuda.new_stream().unwrap();
                for _ in 0..50 {
                    let out = output(gpu);
                    gpu.stream.synchronize().unwrap();
                    let tensor = RotaryTensor { input: x.tensor, output: out.tensor };
                    // SAFETY: as in `run`.
                    unsafe { rotary.run(&gpu.kernels, &[tensor], raw(&stream)) }.unwrap();
                    stream.synchronize().unwrap();
                    assert_eq!(&out.read(gpu), expected);
                }
            });
        }
    });
}

fn empty(gpu: &Gpu) {
    let sets = sets();
    let rotary = rotary(&sets, DevicePositions::Offset(0), DeviceChoices::All(crate_choice(1)));
    for shape in [[0, 4, 2, 64], [1, 0, 2, 64], [1, 4, 0, 64]] {
        let layout = Layout::bshd(shape[0], shape[1], shape[2], shape[3]);
        let tensor = DeviceTensor { address: 0, dtype: Dtype::Bf16, layout };
        // SAFETY: there is no element to read or write.
        unsafe { rotary.run(&gpu.kernels, &[RotaryTensor::in_place(tensor)], gpu.raw_stream()) }.unwrap();
    }
}

fn packed(gpu: &Gpu) {
    // [length, 4 query + 2 key + 2 value heads, 64]
    let (sets, length) = (sets(), 9);
    let values = bits(8, length * 8 * 64);
    let whole = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, length, 8, 64], 0, Some(&values));
    let part = |first: usize, heads: usize| {
        let layout = Layout::strided([1, length, heads, 64], [0, 512, 64, 1]);
        let address = whole.tensor.address + (first * 64 * 4) as u64;
        RotaryTensor::in_place(DeviceTensor { address, dtype: Dtype::F32, layout })
    };
    let rotary = rotary(&sets, DevicePositions::Offset(3), DeviceChoices::All(crate_choice(1)));
    // SAFETY: both parts lie in the buffer, and do not overlap.
    unsafe { rotary.run(&gpu.kernels, &[part(0, 4), part(4, 2)], gpu.raw_stream()) }.unwrap();
    let found = whole.read(gpu);
    let all = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, length, 8, 64], 0, Some(&values));
    // SAFETY: as in `run`.
    unsafe { rotary.run(&gpu.kernels, &[RotaryTensor::in_place(all.tensor)], gpu.raw_stream()) }.unwrap();
    let rotated = all.read(gpu);
    for (i, bits) in found.iter().enumerate() {
        let value_head = i % 512 >= 6 * 64;
        assert_eq!(*bits, if value_head { values[i] } else { rotated[i] });
    }
}
