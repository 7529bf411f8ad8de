//! The search, by its public interface.

mod arguments;
mod cma_es;
mod golden;
mod properties;
mod quality;
mod released;
mod restarts;
mod resume;
mod stepwise;
mod surrogate;
mod without_order;

use std::convert::Infallible;
use std::ops::ControlFlow;

use longrope::scaling::Geometry;
use longrope::search::{Candidate, Evolution, Outcome, Search, paper_seeds};

/// The paper's settings without the gene of the first tokens.
fn factors_only() -> Evolution {
    Evolution { first_tokens: vec![0], ..Evolution::default() }
}

/// Evolution whose search takes 12 + 5 * 7 = 47 evaluations.
fn small() -> Evolution {
    Evolution {
        population: 12,
        mutations: 4,
        crossovers: 3,
        parents: 5,
        iterations: 5,
        ..Evolution::default()
    }
}

/// The paper's seeds for a model of `pairs` pairs.
fn seeds(pairs: usize, scale: f64) -> Vec<Candidate> {
    let geometry = Geometry::new(2 * pairs, 2 * pairs, 1e4, 4096).unwrap();
    paper_seeds(&geometry, scale)
}

fn candidate(factors: &[f64], first_tokens: u64) -> Candidate {
    Candidate { factors: factors.to_vec(), first_tokens, attention_factor: None }
}

/// A separable objective: the sum of squared relative distances from `wanted`, and a penalty for other than 8 first
/// tokens.
fn distance(wanted: &[f64], candidate: &Candidate) -> f64 {
    assert_eq!(wanted.len(), candidate.factors.len());
    let factors = candidate.factors.iter().zip(wanted);
    let relative = factors.map(|(factor, wanted)| factor / wanted - 1.0);
    relative.map(|relative| relative * relative).sum::<f64>()
        + 0.01 * (candidate.first_tokens as f64 - 8.0).abs()
}

/// A logistic rise from 1 to somewhat more than `scale`: what a search on a model finds looks like this.
fn logistic_rise(pairs: usize, scale: f64) -> Vec<f64> {
    (0..pairs)
        .map(|pair| {
            let share = pair as f64 / pairs as f64;
            1.0 + (1.1 * scale - 1.0) / (1.0 + (16.0 * (0.6 - share)).exp())
        })
        .collect()
}

/// Runs `search` to its end on [`distance`] from `wanted`.
fn finish(search: &mut Search, wanted: &[f64]) {
    finish_by(search, |candidate| distance(wanted, candidate));
}

/// Runs `search` to its end on an objective.
fn finish_by(search: &mut Search, objective: impl Fn(&Candidate) -> f64) {
    let outcome = search.run(&mut |candidate: &Candidate| Ok::<_, Infallible>(objective(candidate)), |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(outcome, Ok(Outcome::Finished));
    assert!(search.is_finished());
}

/// FNV-1a over the factors of all candidates: what has another on one platform is not the same everywhere.
fn digest(search: &Search) -> u64 {
    search.history().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, evaluation| {
        let words = evaluation.candidate.factors.iter().map(|factor| factor.to_bits());
        words.fold(hash, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
    })
}
