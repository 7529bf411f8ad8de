//! The rotary kernel against the reference, on random problems.

use cudarc::driver::CudaSlice;
use longrope::descriptor::{Direction, Pairing};
use longrope::device::Dtype;
use longrope::ops::{DeviceChoices, DevicePositions, Rotary, RotaryTensor};
use longrope::reference;
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use proptest::prelude::*;

use crate::buffer::{Buffer, Gpu, format};
use crate::random::{Order, order, values};
use crate::runner;

pub const TESTS: &[crate::Test] = &[
    ("a_rotation_is_within_its_bound_of_the_reference", within_bound),
    ("parity_mode_rotates_by_the_f32_product", parity),
    ("exact_angles_hold_over_the_whole_32_bit_range_of_positions", whole_range),
];

/// A rotation problem.
#[derive(Debug, Clone)]
pub struct Problem {
    pub dtype: Dtype,
    pub batch: usize,
    pub length: usize,
    pub heads: [usize; 2],
    pub head_dim: usize,
    pub frequencies: [Vec<f64>; 3],
    pub gain: f64,
    pub first_tokens: u64,
    pub pairing: Pairing,
    pub direction: Direction,
    pub positions: Vec<i64>,
    /// How positions are passed: 0 as one offset, 1 offset on the device, 2 per sequence, 3 per token, 4 in 32 bits.
    pub position_kind: u8,
    pub lengths: Vec<i64>,
    /// How sets are chosen: 0 by the first sequence's length, 1 lengths on the device, 2 numbers on the device.
    pub choice_kind: u8,
    pub orders: [Order; 4],
    pub shift: usize,
    pub in_place: bool,
    pub seed: u64,
}

const ORIGINAL: u64 = 4096;

pub fn problem() -> impl Strategy<Value = Problem> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)];
    // Dimensions that fill vectors, and any even ones.
    let half = prop_oneof![(1usize..9).prop_map(|n| 8 * n), 1usize..129, Just(128usize)];
    let shape = (1usize..4, 0usize..7, 0usize..4, 0usize..3, half);
    let flags = (any::<[bool; 3]>(), 0u8..5, 0u8..3, prop_oneof![3 => Just(0usize), 1 => Just(1usize)]);
    (dtype, shape, any::<u64>(), 0.5..1.6f64, 0u64..40, flags, [order(), order(), order(), order()])
        .prop_flat_map(|(dtype, (batch, length, q, k, half), seed, gain, first_tokens, flags, orders)| {
            let ([split, forward, in_place], position_kind, choice_kind, shift) = flags;
            let pairs = prop_oneof![Just(half), 1..=half, Just((half * 3 / 4 / 8 * 8).max(1))];
            let position = prop_oneof![any::<i32>().prop_map(i64::from), -50i64..50, Just(1 << 21)];
            let set = |pairs: usize| proptest::collection::vec(1e-7..7.0f64, pairs);
            (
                pairs.prop_flat_map(move |pairs| (set(pairs), set(pairs), set(pairs))),
                proptest::collection::vec(position, batch * length),
                proptest::collection::vec(4090i64..4102, batch),
            )
                .prop_map(move |((plain, short, long), positions, lengths)| Problem {
                    dtype,
                    batch,
                    length,
                    heads: [q, if q == 0 { k.max(1) } else { k }],
                    head_dim: 2 * half,
                    frequencies: [plain, short, long],
                    gain: f64::from(gain as f32),
                    first_tokens,
                    pairing: if split { Pairing::HalfSplit } else { Pairing::Interleaved },
                    direction: if forward { Direction::Forward } else { Direction::Backward },
                    positions: settle(positions, position_kind, length),
                    position_kind,
                    lengths: if choice_kind == 0 { vec![lengths[0]; batch] } else { lengths },
                    choice_kind,
                    orders,
                    shift,
                    in_place,
                    seed,
                })
        })
}

/// Makes positions follow from offsets where only offsets are passed.
fn settle(mut positions: Vec<i64>, kind: u8, length: usize) -> Vec<i64> {
    for i in 0..positions.len() {
        let (sequence, token) = (i / length, i % length);
        match kind {
            0 | 1 => positions[i] = positions[0] + token as i64,
            2 => positions[i] = positions[sequence * length] + token as i64,
            _ => {}
        }
    }
    positions
}

impl Problem {
    pub fn sets(&self) -> FactorSets {
        let [plain, short, long] = &self.frequencies;
        let set = |frequencies: &[f64], gain| FactorSet::exact(frequencies, gain).unwrap();
        FactorSets::new(
            set(plain, 1.0),
            set(short, self.gain),
            set(long, self.gain),
            ORIGINAL,
            self.first_tokens,
        )
        .unwrap()
    }

    /// The frequencies and gain of a token.
    fn factors(&self, token: usize) -> reference::Factors<'_> {
        let [plain, short, long] = &self.frequencies;
        let factors = |frequencies| reference::Factors { frequencies, gain: self.gain };
        let sets =
            reference::FactorSets::new(plain, factors(short), factors(long), ORIGINAL, self.first_tokens);
        sets.unwrap().frequencies_for(self.positions[token], self.lengths[token / self.length] as u64)
    }

    pub fn reference_pairing(&self) -> reference::Pairing {
        match self.pairing {
            Pairing::HalfSplit => reference::Pairing::HalfSplit,
            Pairing::Interleaved => reference::Pairing::Interleaved,
        }
    }

    /// The other dimension of the pair that dimension `i` belongs to, if it turns.
    pub fn partner(&self, i: usize) -> Option<usize> {
        let pairs = self.frequencies[0].len();
        match self.pairing {
            _ if i >= 2 * pairs => None,
            Pairing::HalfSplit if i < pairs => Some(i + pairs),
            Pairing::HalfSplit => Some(i - pairs),
            Pairing::Interleaved => Some(i ^ 1),
        }
    }

    /// The bits of random input for `heads`.
    pub fn input(&self, heads: usize, salt: u64) -> Vec<u32> {
        let count = self.batch * self.length * heads * self.head_dim;
        let format = format(self.dtype);
        values(self.seed ^ salt, count).iter().map(|&x| format.round(f64::from(x))).collect()
    }

    /// Device memory that the positions and choices lie in, and the arguments that name it.
    pub fn arguments(&self, gpu: &Gpu) -> (Vec<CudaSlice<i64>>, DevicePositions, DeviceChoices) {
        let first = |sequence: usize| self.positions.get(sequence * self.length).copied().unwrap_or(0);
        let mut memory = Vec::new();
        let mut upload = |values: &[i64]| {
            memory.push(gpu.upload(values));
            gpu.address(&memory[memory.len() - 1])
        };
        let narrow = |values: &mut dyn Iterator<Item = i32>| -> Vec<i64> {
            let values: Vec<i32> = values.collect();
            let pairs = values.chunks(2);
            pairs
                .map(|pair| i64::from(pair[0] as u32) | i64::from(*pair.get(1).unwrap_or(&0)) << 32)
                .collect()
        };
        let positions = match self.position_kind {
            0 => DevicePositions::Offset(first(0)),
            1 => DevicePositions::OffsetAt(upload(&[first(0)])),
            2 => {
                let offsets: Vec<i64> = (0..self.batch).map(first).collect();
                DevicePositions::OffsetPerSequence(upload(&offsets))
            }
            _ if self.positions.is_empty() => DevicePositions::Offset(0),
            3 => DevicePositions::PerToken(upload(&self.positions)),
            _ => DevicePositions::PerToken32(upload(&narrow(&mut self.positions.iter().map(|&p| p as i32)))),
        };
        let choices = match self.choice_kind {
            0 => DeviceChoices::All(SetChoice::ByLength(self.lengths[0] as u64)),
            1 => DeviceChoices::ByLength(upload(&self.lengths)),
            _ => {
                let mut numbers = self.lengths.iter().map(|&length| i32::from(length as u64 > ORIGINAL));
                DeviceChoices::ByIndex(upload(&narrow(&mut numbers)))
            }
        };
        (memory, positions, choices)
    }

    /// Checks what a kernel made of `input` against the reference: f32 within 2.4e-7 gain hypot(x1, x2), 16-bit types
    /// between round(exact - eps) and round(exact + eps) with eps = 1e-6 gain hypot(x1, x2).
    fn check(&self, heads: usize, input: &[u32], output: &[u32]) -> Result<(), TestCaseError> {
        let format = format(self.dtype);
        for (row, (x, y)) in input.chunks(self.head_dim).zip(output.chunks(self.head_dim)).enumerate() {
            let token = row / heads;
            let factors = self.factors(token);
            let x: Vec<f64> = x.iter().map(|&bits| format.decode(bits)).collect();
            let rotate = match self.direction {
                Direction::Forward => reference::rotary::rotate,
                Direction::Backward => reference::rotary::rotate_backward,
            };
            let pairing = self.reference_pairing();
            let exact =
                rotate(&x, self.positions[token], factors.frequencies, factors.gain, pairing).unwrap();
            for (i, (&bits, exact)) in y.iter().zip(exact).enumerate() {
                let size = self.partner(i).map_or(0.0, |j| factors.gain * x[i].hypot(x[j]));
                let good = match self.dtype {
                    Dtype::F32 => (format.decode(bits) - exact).abs() <= 2.4e-7 * size,
                    _ => format.within(bits, exact, 1e-6 * size).unwrap(),
                };
                prop_assert!(
                    good,
                    "token {}, dimension {}: {} against {} at position {}",
                    token,
                    i,
                    format.decode(bits),
                    exact,
                    self.positions[token]
                );
            }
        }
        Ok(())
    }
}

fn within_bound(gpu: &Gpu) {
    let run = |problem: Problem| {
        let sets = problem.sets();
        let (memory, positions, choices) = problem.arguments(gpu);
        let shapes = problem.heads.map(|heads| [problem.batch, problem.length, heads, problem.head_dim]);
        let mut tensors = Vec::new();
        let mut buffers = Vec::new();
        for (i, &shape) in shapes.iter().enumerate().filter(|(_, shape)| shape[2] > 0) {
            let values = problem.input(shape[2], i as u64);
            let new = |order, values| Buffer::new(gpu, problem.dtype, order, shape, problem.shift, values);
            let input = new(problem.orders[i], Some(&values[..]));
            let output = (!problem.in_place).then(|| new(problem.orders[2 + i], None));
            let target = output.as_ref().map_or(input.tensor, |output| output.tensor);
            tensors.push(RotaryTensor { input: input.tensor, output: target });
            buffers.push((shape[2], values, input, output));
        }
        let rotary = Rotary {
            sets: &sets,
            pairing: problem.pairing,
            direction: problem.direction,
            positions,
            choices,
            status: None,
        };
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { rotary.run(&gpu.kernels, &tensors, gpu.raw_stream()) }.unwrap();
        for (heads, values, input, output) in &buffers {
            problem.check(*heads, values, &output.as_ref().unwrap_or(input).read(gpu))?;
        }
        drop(memory);
        Ok(())
    };
    runner().run(&problem(), run).unwrap_or_else(|error| panic!("{error}"));
}

/// Rotates one head of ones in f32 at each position.
fn rotate_ones(gpu: &Gpu, sets: &FactorSets, positions: &[i64], head_dim: usize) -> Vec<f32> {
    let one = 1f32.to_bits();
    let shape = [1, positions.len(), 1, head_dim];
    let count: usize = shape.iter().product();
    let buffer = Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, Some(&vec![one; count]));
    let memory = gpu.upload(positions);
    let rotary = Rotary {
        sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: DevicePositions::PerToken(gpu.address(&memory)),
        choices: DeviceChoices::All(SetChoice::Short),
        status: None,
    };
    // SAFETY: as above.
    unsafe { rotary.run(&gpu.kernels, &[RotaryTensor::in_place(buffer.tensor)], gpu.raw_stream()) }.unwrap();
    buffer.read(gpu).into_iter().map(f32::from_bits).collect()
}

fn parity(gpu: &Gpu) {
    let frequencies: Vec<f32> = (0..64).map(|i| 1e4f32.powf(-(i as f32) / 64.0)).collect();
    let positions = [0i64, 1, -1, 4095, 131_071, 2_097_151, i64::from(i32::MAX), i64::from(i32::MIN)];
    let sets = FactorSets::uniform(FactorSet::parity(&frequencies, 1.190_238).unwrap());
    let gain = sets.plain().gain();
    let rotated = rotate_ones(gpu, &sets, &positions, 128);
    for (token, &position) in positions.iter().enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            // The f32 product as the oracle of the angle; then exact cosine and sine of it.
            let angle = f64::from(position as f32 * frequency);
            let (sin, cos) = (angle.sin() * f64::from(gain), angle.cos() * f64::from(gain));
            let row = &rotated[token * 128..];
            assert!((f64::from(row[i]) - (cos - sin)).abs() < 4e-7, "position {position}, pair {i}");
            assert!((f64::from(row[i + 64]) - (cos + sin)).abs() < 4e-7, "position {position}, pair {i}");
        }
    }
}

fn whole_range(gpu: &Gpu) {
    let frequencies: Vec<f64> = (0..64).map(|i| 5e5f64.powf(-f64::from(i) / 64.0) / 1.03).collect();
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.0).unwrap());
    let powers = (0..=31).flat_map(|bit| [1i64 << bit, (1 << bit) - 1, -(1 << bit)]);
    let positions: Vec<i64> = powers.filter(|p| i32::try_from(*p).is_ok()).collect();
    let rotated = rotate_ones(gpu, &sets, &positions, 128);
    for (token, &position) in positions.iter().enumerate() {
        for (i, &frequency) in frequencies.iter().enumerate() {
            let exact = reference::Angle::of(position, frequency).unwrap();
            let row = &rotated[token * 128..];
            let bound = 2.4e-7 * 2f64.sqrt();
            assert!(
                (f64::from(row[i]) - (exact.cos - exact.sin)).abs() <= bound,
                "position {position}, pair {i}"
            );
            assert!((f64::from(row[i + 64]) - (exact.cos + exact.sin)).abs() <= bound, "{position}, {i}");
        }
    }
}
