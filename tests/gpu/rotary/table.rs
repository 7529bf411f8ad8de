//! Sets in device memory: the bits of sets by value, indices that change, and indices that are bad.

use longrope::descriptor::{Direction, Pairing};
use longrope::device::Dtype;
use longrope::ops::{
    BAD_CHOICE, DeviceChoices, DevicePositions, Rotary, RotaryByTable, RotaryTensor, SetTable,
};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

use crate::buffer::{Buffer, Gpu, format};
use crate::random::{Order, values};

pub const TESTS: &[crate::Test] = &[
    ("a_set_of_a_table_makes_the_bits_of_one_by_value", same_bits),
    ("an_index_outside_of_the_table_is_reported_and_its_sequence_left_alone", bad_index),
];

const SEQUENCES: usize = 4;
const DIM: usize = 64;

/// Sets that differ in all pairs, and in their gains.
fn set(number: usize, parity: bool) -> FactorSet {
    let by = 1.0 + number as f64;
    let frequencies: Vec<f64> =
        (0..DIM / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / DIM as f64) / by).collect();
    let gain = 1.0 + number as f64 / 8.0;
    match parity {
        true => FactorSet::parity(&frequencies.iter().map(|f| *f as f32).collect::<Vec<_>>(), gain).unwrap(),
        false => FactorSet::exact(&frequencies, gain).unwrap(),
    }
}

fn sets(number: usize, parity: bool) -> FactorSets {
    FactorSets::new(set(9, parity), set(number, parity), set(number, parity), 100, 3).unwrap()
}

fn rotary(sets: &FactorSets, choices: DeviceChoices) -> Rotary<'_> {
    let (pairing, direction) = (Pairing::HalfSplit, Direction::Forward);
    Rotary { sets, pairing, direction, positions: DevicePositions::Offset(-2), choices, status: None }
}

fn input(gpu: &Gpu, dtype: Dtype, order: Order) -> Buffer {
    let shape = [SEQUENCES, 9, 3, DIM];
    let values: Vec<u32> =
        values(3, shape.iter().product()).iter().map(|&x| format(dtype).round(f64::from(x))).collect();
    Buffer::new(gpu, dtype, order, shape, 0, Some(&values))
}

fn output(gpu: &Gpu, dtype: Dtype, order: Order) -> Buffer {
    Buffer::new(gpu, dtype, order, [SEQUENCES, 9, 3, DIM], 0, None)
}

fn same_bits(gpu: &Gpu) {
    for parity in [false, true] {
        let table = SetTable::new(&[0, 1, 2, 3, 4].map(|number| set(number, parity))).unwrap();
        let words = gpu.upload(table.words());
        // The last set, the first, and one twice.
        let chosen = [4i32, 0, 2, 2];
        let indices = gpu.upload(&chosen);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for order in [Order::Bshd, Order::Bhds] {
                let (x, out) = (input(gpu, dtype, order), output(gpu, dtype, order));
                let by_value = sets(0, parity);
                let by_table = RotaryByTable {
                    rotary: rotary(&by_value, DeviceChoices::ByIndex(gpu.address(&indices))),
                    table: &table,
                    address: gpu.address(&words),
                };
                let tensors = [RotaryTensor { input: x.tensor, output: out.tensor }];
                // SAFETY: the buffers are as large as their layouts say, the table as its words, and all live until they
                // were read.
                unsafe { by_table.run(&gpu.kernels, &tensors, gpu.raw_stream()) }.unwrap();
                let found = out.read(gpu);
                let row = found.len() / SEQUENCES;
                for (sequence, number) in chosen.into_iter().enumerate() {
                    let (sets, out) = (sets(number as usize, parity), output(gpu, dtype, order));
                    let tensors = [RotaryTensor { input: x.tensor, output: out.tensor }];
                    let rotary = rotary(&sets, DeviceChoices::All(SetChoice::Short));
                    // SAFETY: as above.
                    unsafe { rotary.run(&gpu.kernels, &tensors, gpu.raw_stream()) }.unwrap();
                    let at = sequence * row..(sequence + 1) * row;
                    assert_eq!(found[at.clone()], out.read(gpu)[at], "{dtype:?}, sequence {sequence}");
                }
            }
        }
    }
}

fn bad_index(gpu: &Gpu) {
    let table = SetTable::new(&[set(0, false), set(1, false), set(2, false)]).unwrap();
    let words = gpu.upload(table.words());
    let by_value = sets(0, false);
    for bad in [3, -1, i32::MAX, i32::MIN] {
        let (indices, status) = (gpu.upload(&[2, bad, 0, 1]), gpu.upload(&[0u32]));
        let x = input(gpu, Dtype::F32, Order::Bshd);
        let out = output(gpu, Dtype::F32, Order::Bshd);
        let mut rotary = rotary(&by_value, DeviceChoices::ByIndex(gpu.address(&indices)));
        rotary.status = Some(gpu.address(&status));
        let by_table = RotaryByTable { rotary, table: &table, address: gpu.address(&words) };
        let tensors = [RotaryTensor { input: x.tensor, output: out.tensor }];
        // SAFETY: as above.
        unsafe { by_table.run(&gpu.kernels, &tensors, gpu.raw_stream()) }.unwrap();
        let written = out.read(gpu);
        let row = written.len() / SEQUENCES;
        for (i, bits) in written.into_iter().enumerate() {
            assert_eq!(bits == u32::MAX, i / row == 1, "index {bad}, element {i}");
        }
        assert_eq!(gpu.download(&status), [BAD_CHOICE]);
    }
}
