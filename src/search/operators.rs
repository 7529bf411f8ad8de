//! Mutation and crossover: how new candidates are made of old ones.

use rand::{Rng, RngExt};

use super::candidate::Candidate;
use super::nursery::Nursery;
use super::released;
use super::settings::Operators;
use super::space::Space;

/// A mutation that only meets known candidates gives up after so many tries.
const MUTATION_TRIES: usize = 1000;

/// A crossover that only meets known or decreasing candidates gives up after so many tries, as in the released code.
const CROSSOVER_TRIES: usize = 20;

/// Makes candidates that are legal and not yet known, and makes them known.
pub(super) struct Breeder<'n, 'a, R> {
    pub(super) operators: Operators,
    pub(super) mutation_probability: f64,
    pub(super) nursery: &'n mut Nursery<'a, R>,
}

impl<R: Rng> Breeder<'_, '_, R> {
    /// A new mutant of `parent`. Where the mutant is known already it is mutated again, so that the search can leave a
    /// neighbourhood of which it has seen everything. `None` where nothing new was found.
    pub(super) fn mutant(&mut self, parent: &Candidate) -> Option<Candidate> {
        let mut child = parent.clone();
        for _ in 0..MUTATION_TRIES {
            let Nursery { space, rng, .. } = &mut *self.nursery;
            match self.operators {
                Operators::Paper => mutate(space, self.mutation_probability, &mut child, *rng),
                Operators::Released => released::mutate(space, self.mutation_probability, &mut child, *rng),
            }
            if self.admit(&child) {
                return Some(child);
            }
        }
        None
    }

    /// A new crossover of two parents, with non-decreasing factors where they have to be, or a new mutant of the `better` where some tries make
    /// none, as of parents that are very unlike each other.
    pub(super) fn crossover(&mut self, better: &Candidate, other: &Candidate) -> Option<Candidate> {
        let mut child = better.clone();
        for _ in 0..CROSSOVER_TRIES {
            match self.operators {
                Operators::Paper => child = crossover(better, other, self.nursery.rng),
                Operators::Released => released::cross(&mut child, other, self.nursery.rng),
            }
            let legal = !self.nursery.space.monotone || child.factors.is_sorted();
            if legal && self.admit(&child) {
                return Some(child);
            }
        }
        self.mutant(better)
    }

    /// Whether `candidate` was not known until now. It is from now on.
    fn admit(&mut self, candidate: &Candidate) -> bool {
        let close = self.operators == Operators::Released
            && self.nursery.known.iter().any(|key| released::is_close(candidate, key));
        !close && self.nursery.admit(candidate)
    }

    /// One of `items`, each as likely as another. `items` is not empty.
    pub(super) fn choose<'i, T>(&mut self, items: &'i [T]) -> &'i T {
        &items[self.nursery.rng.random_range(0..items.len())]
    }

    /// Two different positions of a list of `length` (at least 2), the smaller first.
    pub(super) fn choose_two(&mut self, length: usize) -> (usize, usize) {
        let first = self.nursery.rng.random_range(0..length);
        let second = self.nursery.rng.random_range(0..length - 1);
        let second = if second >= first { second + 1 } else { second };
        (first.min(second), first.max(second))
    }
}

/// Redraws each gene with `probability`: a factor from the grid points between its neighbours (the first from the
/// minimum on, the last up to the maximum), so that factors stay non-decreasing; the first tokens from the other
/// allowed values. Pairs go in order, so the left neighbour may be a new one. Factors that may decrease are drawn from all
/// grid points.
fn mutate(space: &Space, probability: f64, candidate: &mut Candidate, rng: &mut impl Rng) {
    let factors = &mut candidate.factors;
    for pair in 0..factors.len() {
        if !rng.random_bool(probability) {
            continue;
        }
        let (low, high) = match space.monotone {
            true => (
                if pair == 0 { space.minimum } else { factors[pair - 1] },
                factors.get(pair + 1).copied().unwrap_or(space.maximum),
            ),
            false => (space.minimum, space.maximum),
        };
        if let Some(factor) = space.draw(low, high, rng) {
            factors[pair] = factor;
        }
    }
    let allowed = &space.first_tokens;
    if allowed.len() > 1 && rng.random_bool(probability) {
        let current =
            allowed.iter().position(|&value| value == candidate.first_tokens).unwrap_or(allowed.len() - 1);
        let other = rng.random_range(0..allowed.len() - 1);
        candidate.first_tokens = allowed[if other >= current { other + 1 } else { other }];
    }
}

/// Uniform crossover: each gene comes from either parent with equal chance. The factors may decrease.
fn crossover(a: &Candidate, b: &Candidate, rng: &mut impl Rng) -> Candidate {
    let mut either = || rng.random_bool(0.5);
    Candidate {
        factors: a.factors.iter().zip(&b.factors).map(|(&a, &b)| if either() { a } else { b }).collect(),
        first_tokens: if either() { a.first_tokens } else { b.first_tokens },
        attention_factor: a.attention_factor,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::settings::Evolution;
    use super::*;

    fn candidate(factors: &[f64], first_tokens: u64) -> Candidate {
        Candidate { factors: factors.to_vec(), first_tokens, attention_factor: None }
    }

    fn space(scale: f64, pairs: usize) -> Space {
        Space::new(&Evolution::default().into(), scale, pairs).unwrap()
    }

    fn breeder<'n, 'a>(nursery: &'n mut Nursery<'a, ChaCha8Rng>) -> Breeder<'n, 'a, ChaCha8Rng> {
        Breeder { operators: Operators::Paper, mutation_probability: 0.3, nursery }
    }

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(7)
    }

    #[test]
    fn a_mutated_gene_reaches_every_grid_point_between_its_neighbours_and_no_other() {
        let space = space(1.2, 3);
        let mut rng = rng();
        let mut seen = HashSet::new();
        for _ in 0..20_000 {
            // The middle pair alone: its neighbours are where the draw has to stop.
            let mut child = candidate(&[1.1, 1.15, 1.2], 0);
            mutate(&space, 0.3, &mut child, &mut rng);
            if child.factors[0] == 1.1 && child.factors[2] == 1.2 {
                seen.insert((child.factors[1] * 100.0).round() as u64);
                assert!((1.1..=1.2).contains(&child.factors[1]));
            }
        }
        assert_eq!(seen, (110..=120).collect());
    }

    #[test]
    fn the_ends_are_drawn_from_the_bounds() {
        let space = space(1.2, 2);
        let mut rng = rng();
        let (mut lowest, mut highest) = (f64::INFINITY, 0.0f64);
        for _ in 0..20_000 {
            let mut child = candidate(&[1.2, 1.2], 0);
            mutate(&space, 0.5, &mut child, &mut rng);
            lowest = lowest.min(child.factors[0]);
            highest = highest.max(child.factors[1]);
        }
        assert_eq!((lowest, highest), (1.0, 1.5));
    }

    #[test]
    fn a_gene_without_a_grid_point_between_its_neighbours_stays() {
        let space = space(4.0, 3);
        let mut rng = rng();
        for _ in 0..1000 {
            let mut child = candidate(&[1.001, 1.002, 1.003], 0);
            mutate(&space, 0.3, &mut child, &mut rng);
            assert!(child.factors.is_sorted());
            match child.factors[0] {
                1.001 => assert_eq!(child.factors[1], 1.002),
                // A new left neighbour is itself a grid point.
                left => assert!(left == 1.0 && [1.0, 1.002].contains(&child.factors[1])),
            }
        }
    }

    #[test]
    fn first_tokens_change_to_every_other_value_and_stay_where_the_gene_is_off() {
        let mut settings = Evolution { first_tokens: vec![0, 4, 16], ..Evolution::default() };
        let mut rng = rng();
        let space = Space::new(&settings.clone().into(), 4.0, 1).unwrap();
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            let mut child = candidate(&[2.0], 4);
            mutate(&space, 0.3, &mut child, &mut rng);
            counts[usize::from(child.first_tokens == 4) + 2 * usize::from(child.first_tokens == 16)] += 1;
        }
        // 15 % each of the others, 70 % the same.
        assert!((1300..1700).contains(&counts[0]), "{counts:?}");
        assert!((6800..7200).contains(&counts[1]), "{counts:?}");
        assert!((1300..1700).contains(&counts[2]), "{counts:?}");

        settings.first_tokens = vec![0, 4];
        let space = Space::new(&settings.clone().into(), 4.0, 1).unwrap();
        let mut child = candidate(&[2.0], 4);
        mutate(&space, 1.0, &mut child, &mut rng);
        assert_eq!(child.first_tokens, 0);

        settings.first_tokens = vec![4];
        let space = Space::new(&settings.clone().into(), 4.0, 1).unwrap();
        let mut child = candidate(&[2.0], 4);
        mutate(&space, 1.0, &mut child, &mut rng);
        assert_eq!(child.first_tokens, 4);
    }

    #[test]
    fn a_crossover_takes_each_gene_from_either_parent() {
        let (a, b) = (candidate(&[1.0, 2.0, 3.0], 0), candidate(&[1.5, 2.5, 3.5], 64));
        let mut rng = rng();
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let child = crossover(&a, &b, &mut rng);
            for pair in 0..3 {
                assert!([a.factors[pair], b.factors[pair]].contains(&child.factors[pair]));
            }
            seen.insert(child.key());
        }
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn a_breeder_makes_new_candidates_only_and_gives_up_in_the_end() {
        let mut space = space(1.0, 2);
        space.first_tokens = vec![0];
        let (a, b) = (candidate(&[1.0, 1.25], 0), candidate(&[1.25, 1.25], 0));
        let mut known = HashSet::from([a.key(), b.key()]);
        let mut rng = rng();
        let mut nursery = Nursery { space: &space, rng: &mut rng, known: &mut known };
        let mut breeder = breeder(&mut nursery);
        // Crossover can only give the parents back, so every child is a mutant.
        let mut made = 2;
        while let Some(child) = breeder.crossover(&a, &b) {
            assert!(child.factors.is_sorted());
            made += 1;
        }
        // Two non-decreasing factors out of 26 grid points.
        assert_eq!(made, 26 * 27 / 2);
        assert_eq!(nursery.known.len(), made);
    }

    #[test]
    fn two_choices_differ_and_cover_every_pair() {
        let (space, mut rng, mut known) = (space(4.0, 1), rng(), HashSet::new());
        let mut nursery = Nursery { space: &space, rng: &mut rng, known: &mut known };
        let mut breeder = breeder(&mut nursery);
        let seen: HashSet<_> = (0..1000).map(|_| breeder.choose_two(4)).collect();
        assert_eq!(seen.len(), 6);
        assert!(seen.iter().all(|&(first, second)| first < second));
    }
}
