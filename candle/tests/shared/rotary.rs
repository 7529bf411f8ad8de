//! Rotary embedding against the reference.

use candle_core::{DType, Device};
use longrope::reference;
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Direction, Pairing, Rotary};
use proptest::prelude::*;

use super::views::{View, place, view};
use super::{check_element, elements, for_all, least_length, values};

/// A rotation of queries and keys.
#[derive(Debug, Clone)]
pub struct Problem {
    batch: usize,
    length: usize,
    heads: [usize; 2],
    head_dim: usize,
    frequencies: [Vec<f64>; 3],
    gain: f64,
    first_tokens: u64,
    pairing: Pairing,
    direction: Direction,
    offset: i64,
    sequence_length: u64,
    seed: u64,
    views: [View; 2],
}

/// Where short factors end.
const ORIGINAL_LENGTH: u64 = 4096;

fn problem(least: usize) -> impl Strategy<Value = Problem> {
    // Rotary dimensions that a vector of 16 bytes divides, and others.
    let half = prop_oneof![1usize..20, (1usize..5).prop_map(|eights| 8 * eights)];
    let shape = (1usize..4, least..6, 1usize..4, 1usize..4, half);
    let offset = prop_oneof![-50i64..50, 0i64..(1 << 21), any::<i32>().prop_map(i64::from)];
    (
        shape,
        any::<u64>(),
        0.5..1.6f64,
        any::<(bool, bool)>(),
        0u64..40,
        offset,
        4090u64..4102,
        [view(), view()],
    )
        .prop_flat_map(
            |(shape, seed, gain, (split, forward), first_tokens, offset, sequence_length, views)| {
                let (batch, length, query_heads, key_heads, half) = shape;
                (prop_oneof![1..=half, Just(half)]).prop_flat_map(move |pairs| {
                    let set = || proptest::collection::vec(1e-7..7.0f64, pairs);
                    (set(), set(), set()).prop_map(move |(plain, short, long)| Problem {
                        batch,
                        length,
                        heads: [query_heads, key_heads],
                        head_dim: 2 * half,
                        frequencies: [plain, short, long],
                        gain: f64::from(gain as f32),
                        first_tokens,
                        pairing: if split { Pairing::HalfSplit } else { Pairing::Interleaved },
                        direction: if forward { Direction::Forward } else { Direction::Backward },
                        offset,
                        sequence_length,
                        seed,
                        views,
                    })
                })
            },
        )
}

impl Problem {
    fn shape(&self, which: usize) -> [usize; 4] {
        [self.batch, self.length, self.heads[which], self.head_dim]
    }

    fn rotary(&self) -> Rotary {
        let [plain, short, long] = &self.frequencies;
        let set = |frequencies, gain| FactorSet::exact(frequencies, gain).unwrap();
        let (short, long) = (set(short, self.gain), set(long, self.gain));
        let sets = FactorSets::new(set(plain, 1.0), short, long, ORIGINAL_LENGTH, self.first_tokens).unwrap();
        Rotary {
            pairing: self.pairing,
            direction: self.direction,
            offset: self.offset,
            ..Rotary::new(sets, SetChoice::ByLength(self.sequence_length))
        }
    }

    /// Each element's exact value, and the `gain * hypot(x1, x2)` of its pair; 0 for one that is copied.
    fn exact(&self, x: &[f32], heads: usize) -> Vec<(f64, f64)> {
        let [plain, short, long] = &self.frequencies;
        let factors = |frequencies| reference::Factors { frequencies, gain: self.gain };
        let (short, long) = (factors(short), factors(long));
        let sets =
            reference::FactorSets::new(plain, short, long, ORIGINAL_LENGTH, self.first_tokens).unwrap();
        let pairing = match self.pairing {
            Pairing::HalfSplit => reference::Pairing::HalfSplit,
            Pairing::Interleaved => reference::Pairing::Interleaved,
        };
        let rotate = match self.direction {
            Direction::Forward => reference::rotary::rotate,
            Direction::Backward => reference::rotary::rotate_backward,
        };
        let mut out = Vec::new();
        for (row, x) in x.chunks_exact(self.head_dim).enumerate() {
            let position = self.offset + (row / heads % self.length) as i64;
            let set = sets.frequencies_for(position, self.sequence_length);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let exact = rotate(&wide, position, set.frequencies, set.gain, pairing).unwrap();
            out.extend(exact.iter().enumerate().map(|(i, &y)| (y, self.size(&wide, i, set.gain))));
        }
        out
    }

    fn size(&self, x: &[f64], i: usize, gain: f64) -> f64 {
        let pairs = self.frequencies[0].len();
        if i >= 2 * pairs {
            return 0.0;
        }
        let partner = match self.pairing {
            Pairing::HalfSplit if i < pairs => i + pairs,
            Pairing::HalfSplit => i - pairs,
            Pairing::Interleaved => i ^ 1,
        };
        gain * x[i].hypot(x[partner])
    }
}

/// Queries and keys in one call, and the keys alone, are within the bounds that the operation states: 2.4e-7 of the pair's
/// size in f32; in 16 bits one rounding of a value within 1e-6 of it.
pub fn is_within_its_bound_of_the_reference(device: &Device, dtype: DType) {
    for_all(problem(least_length(device)), |problem| {
        let relative = if dtype == DType::F32 { 2.4e-7 } else { 1e-6 };
        let dense: [Vec<f32>; 2] = std::array::from_fn(|i| {
            values(dtype, problem.seed ^ i as u64, problem.shape(i).iter().product())
        });
        let x = [0, 1].map(|i| place(&dense[i], problem.shape(i), dtype, device, problem.views[i]).unwrap());
        let rotary = problem.rotary();
        let (q, k) = rotary.apply(&x[0], &x[1]).unwrap();
        let alone = rotary.apply_one(&x[1]).unwrap();
        prop_assert_eq!(elements(&alone), elements(&k));
        for (which, found) in [q, k].into_iter().enumerate() {
            prop_assert_eq!(found.dims(), &problem.shape(which));
            prop_assert!(found.is_contiguous() && found.dtype() == dtype);
            let exact = problem.exact(&dense[which], problem.heads[which]);
            for (found, (exact, size)) in elements(&found).into_iter().zip(exact) {
                check_element(dtype, found, exact, relative * size)?;
            }
        }
        // What was read is as it was.
        for (x, dense) in x.iter().zip(&dense) {
            prop_assert_eq!(&elements(x), dense);
        }
        Ok(())
    });
}
