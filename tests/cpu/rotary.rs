//! Rotary embedding.

use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor::{Choices, Direction, Pairing, Positions, Rotary};
use longrope::reference;
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use proptest::prelude::*;

use crate::poison::{POISON, is_poison};
use crate::random::{indices, order, place, values};

/// A rotation problem: everything but the layouts.
#[derive(Debug, Clone)]
struct Problem {
    shape: [usize; 4],
    frequencies: [Vec<f64>; 3],
    gain: f64,
    original_length: u64,
    first_tokens: u64,
    pairing: Pairing,
    direction: Direction,
    positions: Vec<i64>,
    lengths: Vec<u64>,
    seed: u64,
}

fn problem() -> impl Strategy<Value = Problem> {
    let shape = (1usize..4, 0usize..6, 1usize..4, 1usize..20);
    (shape, any::<u64>(), 0.5..1.6f64, any::<(bool, bool)>(), 0u64..40).prop_flat_map(
        |((b, s, h, half), seed, gain, (split, forward), first_tokens)| {
            let pairs = 1..=half;
            let position = prop_oneof![any::<i32>().prop_map(i64::from), -50i64..50, Just(1 << 21)];
            (
                pairs.prop_flat_map(|pairs| {
                    let set = || proptest::collection::vec(1e-7..7.0f64, pairs);
                    (set(), set(), set())
                }),
                proptest::collection::vec(position, b * s),
                proptest::collection::vec(4090u64..4102, b),
            )
                .prop_map(move |((plain, short, long), positions, lengths)| Problem {
                    shape: [b, s, h, 2 * half],
                    frequencies: [plain, short, long],
                    gain: f64::from(gain as f32),
                    original_length: 4096,
                    first_tokens,
                    pairing: if split { Pairing::HalfSplit } else { Pairing::Interleaved },
                    direction: if forward { Direction::Forward } else { Direction::Backward },
                    positions,
                    lengths,
                    seed,
                })
        },
    )
}

impl Problem {
    fn sets(&self) -> FactorSets {
        let [plain, short, long] = &self.frequencies;
        FactorSets::new(
            FactorSet::exact(plain, 1.0).unwrap(),
            FactorSet::exact(short, self.gain).unwrap(),
            FactorSet::exact(long, self.gain).unwrap(),
            self.original_length,
            self.first_tokens,
        )
        .unwrap()
    }

    /// The exact result, `[batch, length, heads, head_dim]`, with the bound of each element.
    fn exact(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let [plain, short, long] = &self.frequencies;
        let factors = |frequencies| reference::Factors { frequencies, gain: self.gain };
        let sets = reference::FactorSets::new(
            plain,
            factors(short),
            factors(long),
            self.original_length,
            self.first_tokens,
        )
        .unwrap();
        let pairing = match self.pairing {
            Pairing::HalfSplit => reference::Pairing::HalfSplit,
            Pairing::Interleaved => reference::Pairing::Interleaved,
        };
        let [_, length, heads, dim] = self.shape;
        let mut out = Vec::new();
        for (row, x) in x.chunks_exact(dim).enumerate() {
            let (batch, token) = (row / heads / length, row / heads);
            let set = sets.frequencies_for(self.positions[token], self.lengths[batch]);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let rotate = match self.direction {
                Direction::Forward => reference::rotary::rotate,
                Direction::Backward => reference::rotary::rotate_backward,
            };
            let exact = rotate(&wide, self.positions[token], set.frequencies, set.gain, pairing).unwrap();
            out.extend(exact.iter().enumerate().map(|(i, &y)| (y, self.bound(&wide, i, set.gain))));
        }
        out
    }

    /// `2.4e-7 * gain * hypot(x1, x2)` of the pair that dimension `i` belongs to; 0 for one that is copied.
    fn bound(&self, x: &[f64], i: usize, gain: f64) -> f64 {
        let pairs = self.frequencies[0].len();
        if i >= 2 * pairs {
            return 0.0;
        }
        let partner = match self.pairing {
            Pairing::HalfSplit if i < pairs => i + pairs,
            Pairing::HalfSplit => i - pairs,
            Pairing::Interleaved => i ^ 1,
        };
        2.4e-7 * gain * x[i].hypot(x[partner])
    }
}

proptest! {
    #[test]
    fn a_rotation_is_within_its_bound_of_the_reference_in_every_layout(
        problem in problem(), from in order(), to in order(), in_place in any::<bool>()
    ) {
        let sets = problem.sets();
        let choices: Vec<SetChoice> = problem.lengths.iter().map(|&n| SetChoice::ByLength(n)).collect();
        let rotary = Rotary {
            sets: &sets,
            pairing: problem.pairing,
            direction: problem.direction,
            positions: Positions::PerToken(&problem.positions),
            choices: Choices::PerSequence(&choices),
        };
        let dense = values(problem.seed, problem.shape.iter().product());
        let exact = problem.exact(&dense);

        let (layout, offset, size) = place(from, problem.shape);
        let mut x = vec![POISON; size];
        for (value, at) in dense.iter().zip(indices(problem.shape)) {
            x[crate::random::index(&layout, offset, at)] = *value;
        }
        let (out_layout, out_offset, out) = if in_place {
            cpu::rotary_in_place(&rotary, TensorMut::at(&mut x, offset, layout)).unwrap();
            (layout, offset, x)
        } else {
            let (out_layout, out_offset, size) = place(to, problem.shape);
            let mut out = vec![POISON; size];
            cpu::rotary(&rotary, Tensor::at(&x, offset, layout), TensorMut::at(&mut out, out_offset, out_layout))
                .unwrap();
            (out_layout, out_offset, out)
        };
        let mut written = vec![false; out.len()];
        for ((exact, bound), at) in exact.iter().zip(indices(problem.shape)) {
            let index = crate::random::index(&out_layout, out_offset, at);
            written[index] = true;
            let error = (f64::from(out[index]) - exact).abs();
            prop_assert!(error <= *bound, "{:?}: {} is {} from {}, bound {}", at, out[index], error, exact, bound);
        }
        // Nothing else was touched.
        prop_assert!(out.iter().zip(&written).all(|(x, written)| *written || is_poison(*x)));
    }

    #[test]
    fn an_offset_is_the_same_as_the_positions_it_stands_for(
        offset in any::<i32>(), seed in any::<u64>(), per_sequence in any::<bool>()
    ) {
        let sets = FactorSets::uniform(FactorSet::exact(&[1.0, 0.1], 1.0).unwrap());
        let shape = [2usize, 3, 1, 4];
        let (layout, _, _) = place(crate::random::Order::Bshd, shape);
        let x = values(seed, 24);
        let offset = i64::from(offset);
        let offsets = [offset, offset];
        let positions: Vec<i64> = (0..2).flat_map(|_| (0..3).map(|s| offset + s)).collect();
        let narrow: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
        let run = |positions| {
            let rotary = Rotary {
                sets: &sets,
                pairing: Pairing::HalfSplit,
                direction: Direction::Forward,
                positions,
                choices: Choices::All(SetChoice::Short),
            };
            let mut out = vec![POISON; 24];
            cpu::rotary(&rotary, Tensor::new(&x, layout), TensorMut::new(&mut out, layout)).unwrap();
            out
        };
        let by_offset =
            run(if per_sequence { Positions::OffsetPerSequence(&offsets) } else { Positions::Offset(offset) });
        prop_assert_eq!(&by_offset, &run(Positions::PerToken(&positions)));
        if positions.iter().all(|&p| i32::try_from(p).is_ok()) {
            prop_assert_eq!(&by_offset, &run(Positions::PerToken32(&narrow)));
        }
    }
}

#[test]
fn parity_mode_is_the_f32_arithmetic_of_hugging_face() {
    let frequencies = [1.0f32, 0.749_894_2, 0.001_333_521_5];
    let set = FactorSet::parity(&frequencies, 1.190_238).unwrap();
    let sets = FactorSets::uniform(set.clone());
    let (position, gain) = (131_071i64, set.gain());
    let rotary = Rotary {
        sets: &sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: Positions::Offset(position),
        choices: Choices::All(SetChoice::Short),
    };
    let (layout, _, _) = place(crate::random::Order::Bshd, [1, 1, 1, 6]);
    let x = values(3, 6);
    let mut out = vec![POISON; 6];
    cpu::rotary(&rotary, Tensor::new(&x, layout), TensorMut::new(&mut out, layout)).unwrap();
    for (i, frequency) in frequencies.iter().enumerate() {
        let angle = position as f32 * frequency;
        let (cos, sin) = (angle.cos() * gain, angle.sin() * gain);
        assert_eq!(out[i], x[i] * cos - x[i + 3] * sin);
        assert_eq!(out[i + 3], x[i + 3] * cos + x[i] * sin);
    }
}

#[test]
fn parity_and_exact_part_ways_at_long_positions() {
    // The reason for the exact phase: at 2^21 the f32 angle is off by more than a hundredth of a radian.
    let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-(i as f64) / 64.0)).collect();
    let narrow: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
    let run = |set, position| {
        let sets = FactorSets::uniform(set);
        let rotary = Rotary {
            sets: &sets,
            pairing: Pairing::HalfSplit,
            direction: Direction::Forward,
            positions: Positions::Offset(position),
            choices: Choices::All(SetChoice::Short),
        };
        let (layout, _, _) = place(crate::random::Order::Bshd, [1, 1, 1, 128]);
        let mut x = vec![1.0f32; 128];
        cpu::rotary_in_place(&rotary, TensorMut::new(&mut x, layout)).unwrap();
        x
    };
    let gap = |position| {
        let (a, b) = (
            run(FactorSet::exact(&frequencies, 1.0).unwrap(), position),
            run(FactorSet::parity(&narrow, 1.0).unwrap(), position),
        );
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(gap(100) < 1e-4);
    assert!(gap((1 << 21) - 1) > 1e-2);
}
