//! Asking and telling, counts, errors and the end.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ops::ControlFlow;

use longrope::search::{Candidate, Evolution, Objective, Outcome, Search, SearchError};

use super::{candidate, distance, factors_only, finish, logistic_rise, seeds, small};

fn bits(candidate: &Candidate) -> (Vec<u64>, u64) {
    let factors = candidate.factors.iter().map(|factor| factor.to_bits());
    (factors.collect(), candidate.first_tokens)
}

#[test]
fn the_papers_settings_take_1344_evaluations_each_of_another_candidate() {
    let wanted = logistic_rise(64, 8.0);
    let mut search = Search::new(Evolution::default(), 8.0, seeds(64, 8.0)).unwrap();
    assert_eq!(Evolution::default().maximum_evaluations(), 1344);
    assert_eq!(search.planned_evaluations(), 1344);
    assert_eq!(search.pending().len(), 64);
    finish(&mut search, &wanted);
    assert_eq!(search.evaluations(), 1344);
    assert_eq!(search.planned_evaluations(), 1344);
    let distinct: HashSet<_> = search.history().iter().map(|e| bits(&e.candidate)).collect();
    assert_eq!(distinct.len(), 1344);
    for iteration in 0..=40 {
        let size = search.history().iter().filter(|e| e.iteration == iteration).count();
        assert_eq!(size, if iteration == 0 { 64 } else { 32 });
    }
    // The seeds come first.
    let first: Vec<_> = search.history()[..3].iter().map(|e| e.candidate.clone()).collect();
    assert_eq!(first, seeds(64, 8.0));
}

#[test]
fn halved_settings_take_672() {
    let halved = Evolution::default().halved();
    assert_eq!((halved.population, halved.mutations, halved.crossovers), (32, 8, 8));
    assert_eq!((halved.parents, halved.iterations), (32, 40));
    assert_eq!(halved.maximum_evaluations(), 672);
    assert_eq!(Evolution { population: 1, mutations: 3, crossovers: 0, ..halved }.halved().mutations, 2);
}

#[test]
fn asking_and_telling_is_what_run_does() {
    let wanted = logistic_rise(8, 4.0);
    let mut run = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    finish(&mut run, &wanted);

    let mut by_hand = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    while let Some(asked) = by_hand.ask().cloned() {
        assert_eq!(by_hand.ask(), Some(&asked), "asking again gives the same");
        by_hand.tell(distance(&wanted, &asked)).unwrap();
        assert_eq!(by_hand.history().last().unwrap().candidate, asked);
    }
    assert_eq!(by_hand.checkpoint(), run.checkpoint());

    // A whole generation at once, as with several GPUs.
    let mut by_generation = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    while !by_generation.is_finished() {
        let values: Vec<f64> =
            by_generation.pending().map(|candidate| distance(&wanted, candidate)).collect();
        for value in values {
            by_generation.tell(value).unwrap();
        }
    }
    assert_eq!(by_generation.checkpoint(), run.checkpoint());
    assert_eq!(by_generation.tell(1.0), Err(SearchError::Finished));
    assert_eq!(by_generation.checkpoint(), run.checkpoint());
}

#[test]
fn equal_seeds_give_equal_searches_and_others_different_ones() {
    let wanted = logistic_rise(8, 4.0);
    let history = |seed| {
        let settings = Evolution { seed, ..small() };
        let mut search = Search::new(settings, 4.0, seeds(8, 4.0)).unwrap();
        finish(&mut search, &wanted);
        search.history().to_vec()
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1)[3..], history(2)[3..]);
}

#[test]
fn the_random_stream_is_the_same_on_every_platform() {
    // Seeds and objective of exact arithmetic, so that nothing but the search decides.
    let seeds = vec![candidate(&[4.0; 4], 0), candidate(&[1.0, 1.5, 2.0, 4.0], 0)];
    let mut search = Search::new(small(), 4.0, seeds).unwrap();
    finish(&mut search, &[1.0, 2.0, 3.0, 4.5]);
    let digest = search.history().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, evaluation| {
        let (factors, first_tokens) = bits(&evaluation.candidate);
        let words = factors.into_iter().chain([first_tokens]);
        words.fold(hash, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
    });
    assert_eq!(digest, DIGEST);
}

/// FNV-1a over the candidates of the test above, as first computed on x86-64.
const DIGEST: u64 = 0x1657_fb4f_3931_9a07;

#[test]
fn an_objectives_error_loses_nothing() {
    struct Failing<'a> {
        wanted: &'a [f64],
        calls: usize,
    }
    impl Objective for Failing<'_> {
        type Error = String;
        fn evaluate(&mut self, candidate: &Candidate) -> Result<f64, String> {
            self.calls += 1;
            match self.calls % 5 {
                0 => Err(format!("out of memory in call {}", self.calls)),
                _ => Ok(distance(self.wanted, candidate)),
            }
        }
    }

    let wanted = logistic_rise(8, 4.0);
    let mut unbroken = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    finish(&mut unbroken, &wanted);

    let mut search = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    let mut failing = Failing { wanted: &wanted, calls: 0 };
    let mut errors = 0;
    loop {
        let before = search.checkpoint();
        match search.run(&mut failing, |_| ControlFlow::Continue(())) {
            Ok(outcome) => {
                assert_eq!(outcome, Outcome::Finished);
                break;
            }
            Err(error) => {
                errors += 1;
                assert_eq!(error, format!("out of memory in call {}", 5 * errors));
                assert_ne!(search.checkpoint(), before);
                assert!(search.ask().is_some());
            }
        }
    }
    assert_eq!(errors, 11);
    assert_eq!(search.checkpoint(), unbroken.checkpoint());
}

#[test]
fn the_observer_sees_every_evaluation_and_can_stop() {
    let wanted = logistic_rise(8, 4.0);
    let mut objective = |candidate: &Candidate| Ok::<_, Infallible>(distance(&wanted, candidate));
    let mut search = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    let mut seen = 0;
    loop {
        let outcome = search.run(&mut objective, |search| {
            seen += 1;
            assert_eq!(search.evaluations(), seen);
            assert_eq!(search.planned_evaluations(), 47);
            match seen % 10 {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        if outcome == Ok(Outcome::Finished) {
            break;
        }
        assert_eq!((outcome, seen % 10), (Ok(Outcome::Stopped), 0));
    }
    assert_eq!(seen, 47);
    assert_eq!(search.iteration(), 5);
    // A finished search runs to nothing.
    let outcome = search.run(&mut objective, |_| panic!("nothing is left"));
    assert_eq!(outcome, Ok(Outcome::Finished));
}

#[test]
fn an_exhausted_space_ends_the_search_early() {
    // One pair and 26 grid points, 1.00 to 1.25; the seeds are three times the same.
    let mut search = Search::new(factors_only(), 1.0, seeds(1, 1.0)).unwrap();
    assert_eq!(search.planned_evaluations(), 26 + 40 * 32);
    finish(&mut search, &[1.17]);
    assert_eq!(search.evaluations(), 26);
    assert_eq!(search.planned_evaluations(), 26);
    assert_eq!(search.best().unwrap().candidate.factors, [1.17]);
    assert_eq!(search.iteration(), 0);

    // A smaller population leaves something to the first generations.
    let settings = Evolution { population: 4, ..small() };
    let mut search =
        Search::new(Evolution { first_tokens: vec![0], ..settings }, 1.0, seeds(1, 1.0)).unwrap();
    finish(&mut search, &[1.17]);
    assert_eq!(search.evaluations(), 26);
    assert_eq!(search.iteration(), 4);

    // A single point.
    let settings = Evolution { maximum_ratio: 1.0, ..factors_only() };
    let mut search = Search::new(settings, 1.0, seeds(1, 1.0)).unwrap();
    finish(&mut search, &[1.0]);
    assert_eq!(search.evaluations(), 1);
}

#[test]
fn no_iterations_evaluate_the_initial_population() {
    let mut search = Search::new(Evolution { iterations: 0, ..small() }, 4.0, seeds(4, 4.0)).unwrap();
    finish(&mut search, &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(search.evaluations(), 12);
}

#[test]
fn one_seed_alone_can_begin_a_search() {
    for (mutations, crossovers, parents) in [(0, 3, 2), (3, 0, 1)] {
        let settings = Evolution { population: 1, mutations, crossovers, parents, ..small() };
        let mut search = Search::new(settings, 4.0, vec![candidate(&[1.0, 4.0], 0)]).unwrap();
        finish(&mut search, &[1.0, 2.0]);
        assert_eq!(search.evaluations(), 16);
    }
}
