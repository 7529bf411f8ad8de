//! The evolutionary search (arXiv 2402.13753, Algorithm 1): its populations, made of the values of those before.

use rand::Rng;

use super::candidate::{Candidate, Evaluation, rank};
use super::nursery::Nursery;
use super::operators::Breeder;
use super::settings::Evolution;

/// `count` mutants of the seeds, which make up the initial population with them; fewer where nothing new can be made.
pub(super) fn population(
    settings: &Evolution,
    seeds: &[Candidate],
    count: usize,
    nursery: &mut Nursery<'_, impl Rng>,
) -> Vec<Candidate> {
    let mut breeder = breeder(settings, nursery);
    let mutants = (0..count).map_while(|_| {
        let parent = breeder.choose(seeds);
        breeder.mutant(parent)
    });
    mutants.collect()
}

/// The next generation: mutants and crossovers of the best so far. The paper ranks the last population, which contains
/// the parents before it, and so comes to the same best.
pub(super) fn children(
    settings: &Evolution,
    history: &[Evaluation],
    nursery: &mut Nursery<'_, impl Rng>,
) -> Vec<Candidate> {
    let mut order: Vec<&Evaluation> = history.iter().collect();
    order.sort_by(|a, b| rank(a.value, b.value));
    order.truncate(settings.parents);
    let mut breeder = breeder(settings, nursery);
    let mut children = Vec::new();
    for _ in 0..settings.mutations {
        let parent = &breeder.choose(&order).candidate;
        let Some(mutant) = breeder.mutant(parent) else {
            break;
        };
        children.push(mutant);
    }
    for _ in 0..settings.crossovers {
        let child = if order.len() < 2 {
            breeder.mutant(&order[0].candidate)
        } else {
            let (better, other) = breeder.choose_two(order.len());
            breeder.crossover(&order[better].candidate, &order[other].candidate)
        };
        let Some(child) = child else {
            break;
        };
        children.push(child);
    }
    children
}

fn breeder<'n, 'a, R>(settings: &Evolution, nursery: &'n mut Nursery<'a, R>) -> Breeder<'n, 'a, R> {
    Breeder { operators: settings.operators, mutation_probability: settings.mutation_probability, nursery }
}
