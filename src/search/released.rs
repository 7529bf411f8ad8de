//! The operators of the code that the authors released (`evolution/` of microsoft/LongRoPE), where they differ from the
//! paper's.
//!
//! A redrawn factor is one of the steps from its left neighbour on, so that it need not be a multiple of the step. A
//! crossover copies about every seventh gene from the other parent, again and again until the child is new. A candidate
//! is known if one before it is nearly the same.
//!
//! Its faults are left out: steps beyond the right neighbour, or beyond the largest factor, are not drawn; no individual
//! is listed twice.

use rand::{Rng, RngExt};

use super::candidate::{Candidate, Key};
use super::space::Space;

/// A gene of a crossover is looked at with this probability, and then copied with equal chance.
const CROSSOVER_PROBABILITY: f64 = 0.3;

/// How far two factors may be apart to be the same: absolutely, and relative to the second (`numpy.allclose`).
const ABSOLUTE: f64 = 1e-8;
const RELATIVE: f64 = 1e-5;

/// Redraws each factor with `probability`, from the left neighbour's (the minimum) in steps up to the right neighbour's
/// (the maximum). The first one never takes its right neighbour's value.
pub(super) fn mutate(space: &Space, probability: f64, candidate: &mut Candidate, rng: &mut impl Rng) {
    let factors = &mut candidate.factors;
    for pair in 0..factors.len() {
        if !rng.random_bool(probability) {
            continue;
        }
        let low = match pair {
            0 => space.minimum,
            _ => factors[pair - 1],
        };
        let high = factors.get(pair + 1).copied().unwrap_or(space.maximum);
        let mut points = points(low, high, space.step);
        if pair == 0 && pair + 1 < factors.len() && low + points as f64 * space.step >= high {
            match points.checked_sub(1) {
                Some(fewer) => points = fewer,
                None => continue,
            }
        }
        factors[pair] = (low + rng.random_range(0..=points) as f64 * space.step).min(high);
    }
}

/// The largest number of steps from `low` that does not pass `high`, up to rounding.
fn points(low: f64, high: f64, step: f64) -> u64 {
    ((high - low) / step + 1e-9).max(0.0) as u64
}

/// Copies some genes of `other` into `child`. The factors may decrease.
pub(super) fn cross(child: &mut Candidate, other: &Candidate, rng: &mut impl Rng) {
    for (gene, other) in child.factors.iter_mut().zip(&other.factors) {
        if rng.random_bool(CROSSOVER_PROBABILITY) && rng.random_bool(0.5) {
            *gene = *other;
        }
    }
}

/// Whether `candidate` is nearly the one of `key`.
pub(super) fn is_close(candidate: &Candidate, key: &Key) -> bool {
    let close = |(a, b): (&f64, f64)| (a - b).abs() <= ABSOLUTE + RELATIVE * b.abs();
    candidate.factors.iter().zip(key.factors()).all(close)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::settings::Evolution;
    use super::*;

    fn candidate(factors: &[f64]) -> Candidate {
        Candidate { factors: factors.to_vec(), first_tokens: 0, attention_factor: None }
    }

    /// The values, in steps from `from`, that the gene takes where no other changes.
    fn drawn(parent: &[f64], gene: usize, from: f64) -> HashSet<i64> {
        let space = Space::new(&Evolution::released().into(), 2.0, parent.len()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut seen = HashSet::new();
        for _ in 0..20_000 {
            let mut child = candidate(parent);
            mutate(&space, 0.3, &mut child, &mut rng);
            assert!(child.factors.is_sorted() && child.factors[parent.len() - 1] <= 3.0, "{child:?}");
            if (0..parent.len()).all(|other| other == gene || child.factors[other] == parent[other]) {
                let steps = (child.factors[gene] - from) / 0.01;
                if child.factors[gene] != parent[gene] {
                    assert!((steps - steps.round()).abs() < 1e-6, "{child:?}");
                    seen.insert(steps.round() as i64);
                }
            }
        }
        seen
    }

    #[test]
    fn a_gene_is_drawn_in_steps_from_its_left_neighbour() {
        // 1.105 to 1.145 of [1.105, 1.15]; what it was before is no change.
        assert_eq!(drawn(&[1.0, 1.105, 1.13, 1.15], 2, 1.105), (0..=4).collect());
        // The first begins at the minimum and stays below its neighbour.
        assert_eq!(drawn(&[1.055, 1.06, 1.2], 0, 1.0), (0..=5).collect());
        assert_eq!(drawn(&[1.0, 1.0, 1.2], 0, 1.0), HashSet::new());
        // The last ends at the scale plus 1.
        assert_eq!(drawn(&[1.0, 2.9, 2.905], 2, 2.9), (0..=10).collect());
    }

    #[test]
    fn a_crossover_copies_about_every_seventh_gene() {
        let (a, b) = (candidate(&[1.0; 100]), candidate(&[2.0; 100]));
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let copied: usize = (0..200)
            .map(|_| {
                let mut child = a.clone();
                cross(&mut child, &b, &mut rng);
                child.factors.iter().filter(|&&factor| factor == 2.0).count()
            })
            .sum();
        assert!((2800..3200).contains(&copied), "{copied} of 20,000; 15 % is expected");
    }

    #[test]
    fn nearly_equal_factors_are_the_same() {
        let key = candidate(&[1.0, 2.0]).key();
        assert!(is_close(&candidate(&[1.0 + 0.9e-5, 2.0 - 1.9e-5]), &key));
        assert!(!is_close(&candidate(&[1.0 + 1.2e-5, 2.0]), &key));
    }
}
