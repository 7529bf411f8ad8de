//! Offsets past 2^31 and 2^32 elements.

use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{DeviceChoices, DevicePositions, Rotary, RotaryTensor};
use longrope::reference::{self, Factors, Format};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

use crate::buffer::Gpu;

pub const TESTS: &[crate::Test] =
    &[("two_to_the_32_contiguous_elements_and_more", contiguous), ("strides_past_two_to_the_32", strides)];

const PAIRS: usize = 64;

fn frequencies() -> Vec<f64> {
    (0..PAIRS).map(|i| 1e4f64.powf(-(i as f64) / PAIRS as f64)).collect()
}

fn rotary(sets: &FactorSets) -> Rotary<'_> {
    Rotary {
        sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: DevicePositions::Offset(0),
        choices: DeviceChoices::All(SetChoice::Short),
        status: None,
    }
}

/// Checks a head of bf16 ones, rotated at `position`.
fn check(found: &[u16], position: i64) {
    let frequencies = frequencies();
    let factors = Factors { frequencies: &frequencies, gain: 1.0 };
    let ones = [1.0; 2 * PAIRS];
    let pairing = reference::Pairing::HalfSplit;
    let exact = reference::rotary::rotate(&ones, position, factors.frequencies, 1.0, pairing).unwrap();
    for (found, exact) in found.iter().zip(exact) {
        assert!(Format::Bf16.within(u32::from(*found), exact, 1.5e-6).unwrap(), "position {position}");
    }
}

/// 1,048,577 tokens of 32 heads of 128: 2^32 elements and one token more.
fn contiguous(gpu: &Gpu) {
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies(), 1.0).unwrap());
    let (tokens, heads) = ((1usize << 20) + 1, 32);
    let ones = vec![0x3f80u16; heads * 2 * PAIRS];
    let mut memory = gpu.stream.alloc_zeros::<u16>(tokens * ones.len()).unwrap();
    let sampled = [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, (1 << 20) - 1, 1 << 20];
    for token in sampled {
        let start = token * ones.len();
        gpu.stream.memcpy_htod(&ones, &mut memory.slice_mut(start..start + ones.len())).unwrap();
    }
    let layout = Layout::bshd(1, tokens, heads, 2 * PAIRS);
    let tensor = DeviceTensor { address: gpu.address(&memory), dtype: Dtype::Bf16, layout };
    // SAFETY: the buffer has as many elements as the layout.
    unsafe { rotary(&sets).run(&gpu.kernels, &[RotaryTensor::in_place(tensor)], gpu.raw_stream()) }.unwrap();
    for token in sampled {
        let start = token * ones.len();
        let found = gpu.stream.clone_dtoh(&memory.slice(start..start + ones.len())).unwrap();
        found.chunks(2 * PAIRS).for_each(|head| check(head, token as i64));
    }
    // Zeros turn into zeros: nothing was written where it should not be.
    let start = 777_777 * ones.len();
    let found = gpu.stream.clone_dtoh(&memory.slice(start..start + ones.len())).unwrap();
    assert!(found.iter().all(|bits| bits & 0x7fff == 0));
}

/// Four tokens, 1.5 * 2^30 elements apart, and two heads, 2^29 apart.
fn strides(gpu: &Gpu) {
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies(), 1.0).unwrap());
    let strides = [0i64, 3 << 29, 1 << 29, 1];
    let elements = 3 * (3usize << 29) + (1 << 29) + 2 * PAIRS;
    let ones = [0x3f80u16; 2 * PAIRS];
    let mut memory = gpu.stream.alloc_zeros::<u16>(elements).unwrap();
    let starts = || {
        (0..4).flat_map(|token| (0..2).map(move |head| (token, token * (3usize << 29) + head * (1 << 29))))
    };
    for (_, start) in starts() {
        gpu.stream.memcpy_htod(&ones, &mut memory.slice_mut(start..start + ones.len())).unwrap();
    }
    let layout = Layout::strided([1, 4, 2, 2 * PAIRS], strides);
    let tensor = DeviceTensor { address: gpu.address(&memory), dtype: Dtype::Bf16, layout };
    // SAFETY: the last element of the layout is the last of the buffer.
    unsafe { rotary(&sets).run(&gpu.kernels, &[RotaryTensor::in_place(tensor)], gpu.raw_stream()) }.unwrap();
    for (token, start) in starts() {
        check(&gpu.stream.clone_dtoh(&memory.slice(start..start + ones.len())).unwrap(), token as i64);
    }
}
