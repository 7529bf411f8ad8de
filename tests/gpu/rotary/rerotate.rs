//! Re-rotation of what was rotated already.

use longrope::descriptor::{Direction, Pairing};
use longrope::device::Dtype;
use longrope::ops::{DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
use longrope::reference;
use longrope::scaling::{FactorSets, SetChoice};
use proptest::prelude::*;

use crate::buffer::{Buffer, Gpu, format};
use crate::rotary::rotation::{Problem, problem};
use crate::runner;

pub const TESTS: &[crate::Test] = &[
    ("re_rotation_is_within_its_bound_of_the_reference", within_bound),
    ("re_rotating_agrees_with_rotating_anew", anew),
];

/// The sets of another problem over the same pairs.
fn other_sets(problem: &Problem) -> FactorSets {
    let mut other = problem.clone();
    other.frequencies.iter_mut().flatten().for_each(|f| *f *= 0.37);
    other.gain = f64::from((problem.gain * 1.25) as f32);
    other.first_tokens = 0;
    other.sets()
}

fn within_bound(gpu: &Gpu) {
    let strategy = (problem(), -100_000i64..100_000, any::<bool>());
    let run = |(mut problem, shift, long): (Problem, i64, bool)| {
        problem.direction = Direction::Forward;
        problem.heads = [1, 0];
        let (to, from) = (problem.sets(), other_sets(&problem));
        let (memory, positions, choices) = problem.arguments(gpu);
        let from_choice = if long { SetChoice::Long } else { SetChoice::Short };
        let shape = [problem.batch, problem.length, 1, problem.head_dim];
        let values = problem.input(1, 0);
        let input = Buffer::new(gpu, problem.dtype, problem.orders[0], shape, problem.shift, Some(&values));
        let rerotate = Rerotate {
            to: Rotary {
                sets: &to,
                pairing: problem.pairing,
                direction: Direction::Forward,
                positions,
                choices,
                status: None,
            },
            from: &from,
            from_choices: DeviceChoices::All(from_choice),
            shift,
        };
        let tensor = RotaryTensor::in_place(input.tensor);
        // SAFETY: the buffer is as large as its layout says, and lives until it was read.
        unsafe { rerotate.run(&gpu.kernels, &[tensor], gpu.raw_stream()) }.unwrap();
        let output = input.read(gpu);
        drop(memory);
        check(&problem, shift, long, &values, &output)
    };
    runner().run(&strategy, run).unwrap_or_else(|error| panic!("{error}"));
}

/// The bound of one rotation, with the ratio of the gains: the angle is one exact phase, not two roundings.
fn check(problem: &Problem, shift: i64, long: bool, x: &[u32], y: &[u32]) -> Result<(), TestCaseError> {
    let format = format(problem.dtype);
    let [plain, short, long_set] = &problem.frequencies;
    let old: Vec<f64> = if long { long_set } else { short }.iter().map(|f| f * 0.37).collect();
    let old_gain = f64::from((problem.gain * 1.25) as f32);
    for (token, (x, y)) in x.chunks(problem.head_dim).zip(y.chunks(problem.head_dim)).enumerate() {
        let (position, length) = (problem.positions[token], problem.lengths[token / problem.length]);
        let moved = position + shift;
        let first = problem.first_tokens > 0 && moved < problem.first_tokens as i64;
        let (new, new_gain) = match () {
            () if first => (plain, 1.0),
            () if length > 4096 => (long_set, problem.gain),
            () => (short, problem.gain),
        };
        let x: Vec<f64> = x.iter().map(|&bits| format.decode(bits)).collect();
        let pairing = problem.reference_pairing();
        let from = reference::Factors { frequencies: &old, gain: old_gain };
        let to = reference::Factors { frequencies: new, gain: new_gain };
        // Out of the old angle at the old position, into the new one at the new.
        let unrotated =
            reference::rotary::rotate_backward(&x, position, from.frequencies, 1.0 / from.gain, pairing)
                .unwrap();
        let exact = reference::rotary::rotate(&unrotated, moved, to.frequencies, to.gain, pairing).unwrap();
        for (i, (&bits, exact)) in y.iter().zip(exact).enumerate() {
            let Some(j) = problem.partner(i) else {
                prop_assert_eq!(format.decode(bits), x[i]);
                continue;
            };
            let size = new_gain / old_gain * x[i].hypot(x[j]);
            let good = match problem.dtype {
                Dtype::F32 => (format.decode(bits) - exact).abs() <= 2.4e-7 * size,
                _ => format.within(bits, exact, 1e-6 * size).unwrap(),
            };
            prop_assert!(good, "token {}, dimension {}: {} against {}", token, i, format.decode(bits), exact);
        }
    }
    Ok(())
}

fn anew(gpu: &Gpu) {
    use longrope::scaling::FactorSet;
    let frequencies: Vec<f64> = (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0)).collect();
    let stretched: Vec<f64> = frequencies.iter().enumerate().map(|(i, f)| f / (1.0 + i as f64)).collect();
    let short = FactorSets::uniform(FactorSet::exact(&frequencies, 1.19).unwrap());
    let long = FactorSets::uniform(FactorSet::exact(&stretched, 1.19).unwrap());
    let shape = [1, 50, 2, 64];
    let values: Vec<u32> = crate::random::values(11, 6400).iter().map(|x| x.to_bits()).collect();
    let rotary = |sets, offset| Rotary {
        sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: DevicePositions::Offset(offset),
        choices: DeviceChoices::All(SetChoice::Short),
        status: None,
    };
    let order = crate::random::Order::Bshd;
    let old = Buffer::new(gpu, Dtype::F32, order, shape, 0, Some(&values));
    let new = Buffer::new(gpu, Dtype::F32, order, shape, 0, Some(&values));
    let in_place = |buffer: &Buffer| [RotaryTensor::in_place(buffer.tensor)];
    let change = Rerotate {
        to: rotary(&long, 1_000_000),
        from: &short,
        from_choices: DeviceChoices::All(SetChoice::Short),
        shift: -77,
    };
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe {
        rotary(&short, 1_000_000).run(&gpu.kernels, &in_place(&old), gpu.raw_stream()).unwrap();
        change.run(&gpu.kernels, &in_place(&old), gpu.raw_stream()).unwrap();
        rotary(&long, 999_923).run(&gpu.kernels, &in_place(&new), gpu.raw_stream()).unwrap();
    }
    for (a, b) in old.read(gpu).iter().zip(new.read(gpu)) {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(b));
        assert!((a - b).abs() < 1e-6, "{a} against {b}");
    }
}
