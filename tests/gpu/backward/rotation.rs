//! Queries and keys that were rotated: the gradients of what they were before it, against the reference and against the rotary kernel.

use longrope::descriptor::{Direction, Pairing};
use longrope::device::Dtype;
use longrope::ops::{CacheRotary, DeviceChoices, DevicePositions, Rotary, RotaryTensor};
use longrope::reference::{self, Angle, Factors};
use longrope::scaling::{FactorSets, SetChoice};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::backward::gradients::{dense_problem, packed_problem};
use crate::backward::oracle::Exact;
use crate::backward::problem::Problem;
use crate::buffer::{Buffer, Gpu};
use crate::cache::model::{By, ONE_ROTATION, Rotation, rotation};
use crate::check_cases;

pub const TESTS: &[crate::Test] = &[
    ("gradients_of_what_was_rotated_are_within_their_bound_of_the_reference", dense),
    ("gradients_of_packed_sequences_that_were_rotated_are_within_their_bound_of_the_reference", packed),
    ("gradients_are_those_that_the_rotary_kernel_makes_of_rotated_ones", by_the_rotary_kernel),
    ("a_sequence_rotated_by_no_set_is_reported_and_its_gradients_left_alone", bad_choices),
];

/// Of an angle of the kernels (gradient_rotation.cuh); an f32 result adds what rounds three operations, which the last digit holds.
const TURNED: f64 = 3e-6;

/// How the queries and keys of each sequence were rotated.
#[derive(Debug, Clone)]
pub struct Turned {
    rotation: Rotation,
    by: By,
    /// The sets, where they go by number.
    pub numbers: Vec<i32>,
}

impl Turned {
    pub fn sets(&self) -> FactorSets {
        self.rotation.sets()
    }

    /// `numbers`: where they lie on the device.
    pub fn rotary<'a>(&self, sets: &'a FactorSets, numbers: u64) -> CacheRotary<'a> {
        CacheRotary { sets, pairing: self.rotation.pairing, choices: self.by.choices(numbers) }
    }

    /// Whether a sequence goes by a number that is none of a set.
    pub fn is_bad(&self, sequence: usize) -> bool {
        matches!(self.by, By::Index) && !(0..2).contains(&self.numbers[sequence])
    }

    /// Of a sequence of so many tokens.
    fn is_long(&self, sequence: usize, length: i64) -> bool {
        match self.by {
            By::All(choice) => choice == SetChoice::Long,
            By::Length => i128::from(length) > i128::from(self.rotation.original),
            By::Index => self.numbers[sequence] == 1,
        }
    }

    fn factors(&self, position: i64, long: bool) -> Factors<'_> {
        let first_tokens = self.rotation.first_tokens as i64;
        let set = if first_tokens > 0 && position < first_tokens { 0 } else { 1 + usize::from(long) };
        Factors { frequencies: &self.rotation.frequencies[set], gain: self.rotation.gains[set] }
    }

    fn pairing(&self) -> reference::Pairing {
        match self.rotation.pairing {
            Pairing::HalfSplit => reference::Pairing::HalfSplit,
            Pairing::Interleaved => reference::Pairing::Interleaved,
        }
    }

    /// Takes what is exact of a sequence, and how far off a kernel may be, to what was before the rotation. An element is off by what both of
    /// its pair were, and by the error of the angle.
    pub fn transpose(&self, exact: &mut Exact, problem: &reference::Problem, sequence: usize) {
        let reference::Problem { query_offset, query_length, head_dim, .. } = *problem;
        let long = self.is_long(sequence, query_offset + query_length as i64);
        let Exact { gradients, bounds, .. } = exact;
        for (gradient, bound, heads, offset) in [
            (&gradients.dq, &mut bounds.dq, problem.query_heads, query_offset),
            (&gradients.dk, &mut bounds.dk, problem.key_heads, problem.key_offset),
        ] {
            for (row, bound) in bound.chunks_mut(head_dim).enumerate() {
                let position = offset + (row / heads) as i64;
                let x = &gradient[row * head_dim..(row + 1) * head_dim];
                let Factors { frequencies, gain } = self.factors(position, long);
                for (pair, &frequency) in frequencies.iter().enumerate() {
                    let angle = Angle::of(position, frequency).unwrap();
                    let (first, second) = match self.rotation.pairing {
                        Pairing::HalfSplit => (pair, pair + frequencies.len()),
                        Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                    };
                    let (cos, sin) = (angle.cos.abs(), angle.sin.abs());
                    let of_angle = x[first].hypot(x[second]) * (TURNED + step_error(position));
                    let (a, b) = (bound[first], bound[second]);
                    // What is off is rotated by an angle that is off too.
                    bound[first] = 1.00001 * gain * (cos * a + sin * b + 1e-5 * (a + b) + of_angle);
                    bound[second] = 1.00001 * gain * (cos * b + sin * a + 1e-5 * (a + b) + of_angle);
                }
            }
        }
        let choose = |position| self.factors(position, long);
        exact.gradients = exact.gradients.clone().before_rotation(problem, choose, self.pairing()).unwrap();
    }
}

/// What the rounding of a step does to an angle, in radians.
fn step_error(position: i64) -> f64 {
    position.unsigned_abs() as f64 * 2f64.powi(-65) * std::f64::consts::TAU
}

/// A problem whose queries and keys were rotated: by all of a head, by a multiple of eight pairs, by any number; near zero or far
/// from it. `numbers`: of sets.
fn turned(
    problem: impl Strategy<Value = Problem>,
    numbers: &'static [i32],
) -> impl Strategy<Value = Problem> {
    let by = prop_oneof![
        1 => select(vec![By::All(SetChoice::Short), By::All(SetChoice::Long)]),
        1 => Just(By::Length),
        1 => Just(By::Index),
    ];
    (problem, by, 0.0..1.0f64, 0..3).prop_flat_map(move |(problem, by, pairs, kind)| {
        let half = problem.head_dim / 2;
        let some = 1 + (pairs * half as f64) as usize % half;
        let pairs = match kind {
            0 => half,
            1 => (some / 8 * 8).max(1),
            _ => some,
        };
        let numbers = vec(select(numbers), problem.lengths.len());
        (Just(problem), rotation(pairs), numbers).prop_map(move |(mut problem, rotation, numbers)| {
            // Where a step's rounding is no error to speak of.
            problem.attention.query_offset %= 1 << 40;
            problem.attention.key_offset %= 1 << 40;
            problem.turned = Some(Turned { rotation, by, numbers });
            problem
        })
    })
}

fn dense(gpu: &Gpu) {
    check_cases(gpu, || turned(dense_problem(), &[0, 1]), |problem| problem.run(gpu));
}

fn packed(gpu: &Gpu) {
    check_cases(gpu, || turned(packed_problem(), &[0, 1]), |problem| problem.run(gpu));
}

fn bad_choices(gpu: &Gpu) {
    let by_number = |problem: &mut Problem| {
        if let Some(turned) = &mut problem.turned {
            turned.by = By::Index;
        }
    };
    let problem = || {
        prop_oneof![
            turned(dense_problem(), &[-1, 0, 1, 2]),
            turned(packed_problem(), &[i32::MIN, 0, 1, i32::MAX])
        ]
        .prop_map(move |mut problem| (by_number(&mut problem), problem).1)
    };
    check_cases(gpu, problem, |problem| problem.run(gpu));
}

/// What a launch without rotation gives in f32 is rotated back by the rotary kernel, and what one with rotation gives is compared.
fn by_the_rotary_kernel(gpu: &Gpu) {
    let run = |problem: Problem| {
        // Both with sums of one order.
        let problem = Problem { out_dtype: Dtype::F32, accumulate: false, fast: false, ..problem };
        let memory = problem.memory(gpu);
        let turned = problem.turned.clone().expect("it was rotated");
        let rotated = problem.launch(gpu, &memory);
        let plain = Problem { turned: None, ..problem.clone() }.launch(gpu, &memory);
        prop_assert!(rotated.gradients[2] == plain.gradients[2], "dv is rotated by nothing");
        let sets = turned.sets();
        let offsets = match &problem.device_offsets {
            Some(offsets) => offsets.clone(),
            None => vec![0; problem.lengths.len()],
        };
        let queries = problem.lengths[0].0 as i64;
        let lengths: Vec<i64> =
            offsets.iter().map(|offset| problem.attention.query_offset + offset + queries).collect();
        let (numbers, lengths) = (gpu.upload(&turned.numbers), gpu.upload(&lengths));
        let none = vec![0; problem.lengths.len()];
        let shapes = [problem.query_shape(problem.head_dim), problem.key_shape()];
        for (which, offset, more) in
            [(0, problem.attention.query_offset, &offsets), (1, problem.attention.key_offset, &none)]
        {
            let positions: Vec<i64> = more.iter().map(|more| offset + more).collect();
            let positions = gpu.upload(&positions);
            let rotary = Rotary {
                sets: &sets,
                pairing: turned.rotation.pairing,
                direction: Direction::Backward,
                positions: DevicePositions::OffsetPerSequence(gpu.address(&positions)),
                choices: match turned.by {
                    By::All(choice) => DeviceChoices::All(choice),
                    By::Length => DeviceChoices::ByLength(gpu.address(&lengths)),
                    By::Index => DeviceChoices::ByIndex(gpu.address(&numbers)),
                },
                status: None,
            };
            let bits = &plain.gradients[which];
            let order = problem.orders[which];
            let buffer = Buffer::new(gpu, Dtype::F32, order, shapes[which], 0, Some(bits));
            // SAFETY: the buffer is as large as its layout says, and lives until it was read.
            unsafe {
                rotary.run(&gpu.kernels, &[RotaryTensor::in_place(buffer.tensor)], gpu.raw_stream()).unwrap();
            }
            let expected = buffer.read(gpu);
            let of = |bits: u32| f64::from(f32::from_bits(bits));
            let dim = problem.head_dim;
            for (i, (&found, &wanted)) in rotated.gradients[which].iter().zip(&expected).enumerate() {
                let row: Vec<f64> = bits[i / dim * dim..(i / dim + 1) * dim].iter().map(|&x| of(x)).collect();
                let gain = turned.rotation.gains.into_iter().fold(0.0, f64::max);
                let size = turned.rotation.size(&row, i % dim);
                let bound = (TURNED + ONE_ROTATION) * gain * size + 2f64.powi(-126);
                let error = (of(found) - of(wanted)).abs();
                prop_assert!(
                    error <= bound,
                    "{which}: [{i}] {} against {}, allowed {bound:e}",
                    of(found),
                    of(wanted)
                );
            }
        }
        Ok(())
    };
    let problem = || {
        // Without a row there is no tensor to rotate.
        let some = |problem: &Problem| problem.lengths[0].0 > 0 && problem.lengths[0].1 > 0;
        turned(dense_problem(), &[0, 1]).prop_filter("no rows", some)
    };
    check_cases(gpu, problem, run);
}
