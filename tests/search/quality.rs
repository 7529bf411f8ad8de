//! Whether it finds what it looks for.

use std::convert::Infallible;
use std::ops::ControlFlow;

use longrope::search::{Candidate, Evolution, Search};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{distance, factors_only, finish, logistic_rise, seeds};

/// The best of as many random non-decreasing candidates as a search evaluates.
fn random_sampling(wanted: &[f64], maximum: f64, seed: u64) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sample = || {
        let mut factors: Vec<f64> = wanted.iter().map(|_| rng.random_range(1.0..=maximum)).collect();
        factors.sort_by(f64::total_cmp);
        distance(wanted, &Candidate { factors, first_tokens: 8, attention_factor: None })
    };
    (0..1344).map(|_| sample()).fold(f64::INFINITY, f64::min)
}

#[test]
fn it_beats_its_seeds_and_random_sampling_by_far() {
    for scale in [4.0, 8.0, 16.0] {
        let wanted = logistic_rise(64, scale);
        for seed in 0..4 {
            let settings = Evolution { seed, ..Evolution::default() };
            let mut search = Search::new(settings, scale, seeds(64, scale)).unwrap();
            finish(&mut search, &wanted);
            let found = search.best().unwrap().value;
            let of_seeds = search.history()[..3].iter().map(|seed| seed.value).fold(f64::INFINITY, f64::min);
            let of_sampling = random_sampling(&wanted, 1.25 * scale, seed);
            assert!(found < 0.3 * of_seeds, "{scale} {seed}: {found} of {of_seeds} by a seed");
            assert!(found < 0.05 * of_sampling, "{scale} {seed}: {found}, sampling {of_sampling}");
        }
    }
}

#[test]
fn it_comes_close_to_the_optimum_of_a_small_problem() {
    let wanted = logistic_rise(6, 4.0);
    for seed in 0..4 {
        let settings = Evolution { seed, ..factors_only() };
        let mut search = Search::new(settings, 4.0, seeds(6, 4.0)).unwrap();
        finish(&mut search, &wanted);
        let best = search.best().unwrap();
        for (factor, wanted) in best.candidate.factors.iter().zip(&wanted) {
            assert!((factor - wanted).abs() < 0.15, "seed {seed}: {best:?}, wanted {wanted}");
        }
    }
}

#[test]
fn the_number_of_first_tokens_reaches_its_optimum() {
    let wanted = logistic_rise(16, 4.0);
    for seed in 0..4 {
        let settings = Evolution { seed, ..Evolution::default() };
        let mut search = Search::new(settings, 4.0, seeds(16, 4.0)).unwrap();
        finish(&mut search, &wanted);
        assert_eq!(search.best().unwrap().candidate.first_tokens, 8, "seed {seed}");
    }
}

#[test]
fn the_best_never_gets_worse() {
    let wanted = logistic_rise(16, 8.0);
    let mut search = Search::new(Evolution::default(), 8.0, seeds(16, 8.0)).unwrap();
    let mut lowest = f64::INFINITY;
    search
        .run(&mut |candidate: &Candidate| Ok::<_, Infallible>(distance(&wanted, candidate)), |search| {
            let newest = search.history().last().unwrap();
            lowest = lowest.min(newest.value);
            assert_eq!(search.best().unwrap().value, lowest);
            ControlFlow::Continue(())
        })
        .unwrap();
    // And children come of the best: the last generations are better than the first, on average.
    let mean = |iteration| {
        let values: Vec<f64> = search
            .history()
            .iter()
            .filter(|evaluation| evaluation.iteration == iteration)
            .map(|evaluation| evaluation.value)
            .collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    assert!(mean(40) < 0.2 * mean(0));
    assert!(mean(40) < mean(20) && mean(20) < mean(5));
}

#[test]
fn values_that_are_not_finite_rank_last() {
    // Every other candidate has no usable value; the search still finds its way by the rest.
    let wanted = logistic_rise(8, 4.0);
    let mut search = Search::new(factors_only(), 4.0, seeds(8, 4.0)).unwrap();
    let mut count = 0;
    search
        .run(
            &mut |candidate: &Candidate| {
                count += 1;
                Ok::<_, Infallible>(match count % 6 {
                    1 => f64::NAN,
                    3 => f64::INFINITY,
                    5 => f64::NEG_INFINITY,
                    _ => distance(&wanted, candidate),
                })
            },
            |_| ControlFlow::Continue(()),
        )
        .unwrap();
    let best = search.best().unwrap();
    assert!(best.value.is_finite() && best.value < 0.5, "{best:?}");
    let lowest = search.history().iter().map(|evaluation| evaluation.value).filter(|value| value.is_finite());
    assert_eq!(best.value, lowest.fold(f64::INFINITY, f64::min));
}

#[test]
fn without_any_finite_value_it_ends_without_a_best() {
    let mut search = Search::new(super::small(), 4.0, seeds(8, 4.0)).unwrap();
    while search.ask().is_some() {
        search.tell(f64::NAN).unwrap();
    }
    assert_eq!(search.evaluations(), 47);
    assert_eq!(search.best(), None);
}
