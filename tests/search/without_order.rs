//! The search without the constraint that factors do not decrease.

use std::collections::HashSet;

use longrope::search::{CmaEs, Evolution, Optimiser, Search};

use super::{candidate, distance, seeds};

/// Rises, falls and rises again: no non-decreasing factors are near.
const WANTED: [f64; 8] = [1.0, 3.5, 1.2, 2.0, 4.5, 1.5, 3.0, 4.0];

fn optimisers(monotone: bool) -> [Optimiser; 2] {
    [
        CmaEs { evaluations: 600, monotone, first_tokens: vec![8, 0], ..CmaEs::default() }.into(),
        Evolution { first_tokens: vec![8, 0], monotone, iterations: 20, ..Evolution::default() }.into(),
    ]
}

fn search(optimiser: Optimiser) -> Search {
    Search::new(optimiser, 4.0, seeds(WANTED.len(), 4.0)).unwrap()
}

fn end(mut search: Search) -> Search {
    while let Some(candidate) = search.ask() {
        let value = distance(&WANTED, candidate);
        search.tell(value).unwrap();
    }
    search
}

#[test]
fn factors_that_may_decrease_come_nearer_to_an_optimum_that_does() {
    for (free, ordered) in optimisers(false).into_iter().zip(optimisers(true)) {
        let (free, ordered) = (end(search(free)), end(search(ordered)));
        assert!(ordered.history().iter().all(|evaluation| evaluation.candidate.factors.is_sorted()));
        let [free, ordered] = [free, ordered].map(|search| search.best().unwrap().value);
        assert!(free < 0.5 * ordered, "{free} without the constraint, {ordered} with it");
    }
}

#[test]
fn every_candidate_is_within_the_bounds_and_new() {
    for optimiser in optimisers(false) {
        let ended = end(search(optimiser));
        let mut known = HashSet::new();
        for evaluation in ended.history() {
            let factors = &evaluation.candidate.factors;
            assert!(factors.iter().all(|factor| (1.0..=5.0).contains(factor)), "{factors:?}");
            let bits: Vec<u64> = factors.iter().map(|factor| factor.to_bits()).collect();
            assert!(known.insert((bits, evaluation.candidate.first_tokens)));
        }
        assert!(ended.history().iter().any(|evaluation| !evaluation.candidate.factors.is_sorted()));
    }
}

#[test]
fn it_is_resumed_to_what_it_would_have_been() {
    for optimiser in optimisers(false) {
        let unbroken = end(search(optimiser.clone()));
        let mut broken = search(optimiser);
        while let Some(candidate) = broken.ask() {
            let value = distance(&WANTED, candidate);
            broken.tell(value).unwrap();
            if broken.evaluations().is_multiple_of(97) {
                broken = Search::resume(broken.checkpoint()).unwrap();
            }
        }
        assert_eq!(broken.checkpoint(), unbroken.checkpoint());
    }
}

#[test]
fn a_seed_may_decrease_where_factors_may() {
    let seeds = vec![candidate(&[2.0, 1.0], 8)];
    for (free, ordered) in optimisers(false).into_iter().zip(optimisers(true)) {
        assert!(Search::new(free, 4.0, seeds.clone()).is_ok());
        let message = Search::new(ordered, 4.0, seeds.clone()).unwrap_err().to_string();
        assert!(message.contains("factors do not decrease"), "{message}");
    }
}

#[test]
fn a_checkpoint_says_whether_factors_may_decrease() {
    for (free, ordered) in optimisers(false).into_iter().zip(optimisers(true)) {
        let checkpoint = search(free).checkpoint();
        let message = checkpoint.check_arguments(&ordered, 4.0, &seeds(8, 4.0)).unwrap_err().to_string();
        assert!(message.starts_with("settings.monotone: false is not valid; expected true"), "{message}");
    }
}

#[test]
fn the_released_operators_can_not_do_without() {
    let message = Evolution { monotone: false, ..Evolution::released() }.validate().unwrap_err().to_string();
    assert!(message.starts_with("monotone: false is not valid; expected true"), "{message}");
}
