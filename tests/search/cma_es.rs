//! The default optimiser: what holds of its candidates, that it is repeatable, and whether it is worth having.

use std::collections::HashSet;

use longrope::search::{Candidate, Checkpoint, CmaEs, Evolution, Search};
use proptest::prelude::*;

use super::{candidate, digest, distance, factors_only, finish, logistic_rise, seeds};

/// [`distance`], and a penalty for another attention factor than 1.1.
fn with_attention(wanted: &[f64], candidate: &Candidate) -> f64 {
    distance(wanted, candidate) + 10.0 * (candidate.attention_factor.unwrap_or(1.25) - 1.1).powi(2)
}

fn end(search: &mut Search, objective: impl Fn(&Candidate) -> f64) {
    while let Some(candidate) = search.ask() {
        let value = objective(candidate);
        search.tell(value).unwrap();
    }
}

fn through_json(search: &Search) -> Search {
    let text = serde_json::to_string(&search.checkpoint()).unwrap();
    Search::resume(serde_json::from_str::<Checkpoint>(&text).unwrap()).unwrap()
}

prop_compose! {
    fn settings()(
        evaluations in 3usize..200,
        step_size in prop_oneof![0.01..1.0, Just(10.0)],
        maximum_ratio in 1.0..2.0,
        step in prop_oneof![Just(0.01), Just(0.25), Just(0.3), 0.001..0.5],
        first_tokens in prop_oneof![Just(vec![0]), Just(vec![0, 1, 2, 4]), Just(vec![64, 0, 8])],
        attention_factor in prop_oneof![Just(None), Just(Some(1.25))],
        restarts in prop_oneof![Just(None), Just(Some(1)), Just(Some(4))],
        surrogate in prop_oneof![Just(None), Just(Some(2)), Just(Some(10))],
        seed in any::<u64>(),
    ) -> CmaEs {
        CmaEs {
            evaluations, step_size, minimum: 1.0, maximum_ratio, step, first_tokens, attention_factor,
            monotone: true, restarts, surrogate, seed,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the values are: good, random, or none at all.
    #[test]
    fn every_candidate_is_legal_and_new(
        settings in settings(),
        pairs in 1usize..24,
        scale in 1.0..40.0,
        kind in 0..3,
    ) {
        let seeds = seeds(pairs, scale);
        let wanted = logistic_rise(pairs, scale);
        let Ok(mut search) = Search::new(settings.clone(), scale, seeds.clone()) else {
            let maximum = settings.maximum_ratio * scale;
            prop_assert!((1.0 / settings.step).ceil() * settings.step > maximum.next_down());
            return Ok(());
        };
        let maximum = settings.maximum_ratio * scale;
        let mut known = HashSet::new();
        while let Some(candidate) = search.ask().cloned() {
            prop_assert_eq!(candidate.factors.len(), pairs);
            prop_assert!(candidate.factors.is_sorted(), "{:?}", candidate);
            prop_assert!(candidate.factors[0] >= 1.0 && candidate.factors[pairs - 1] <= maximum);
            if !seeds.contains(&candidate) && search.iteration() > 0 {
                for &factor in &candidate.factors {
                    let multiple = (factor / settings.step).round() * settings.step;
                    let on_grid = (factor - multiple).abs() <= 4.0 * f64::EPSILON * factor;
                    let trial_of_a_seed = seeds.iter().any(|seed| seed.factors == candidate.factors);
                    prop_assert!(on_grid || [1.0, maximum].contains(&factor) || trial_of_a_seed);
                }
            }
            prop_assert!(settings.first_tokens.contains(&candidate.first_tokens));
            let gain = candidate.attention_factor;
            prop_assert!(gain.is_none_or(|gain| settings.attention_factor.is_some() && (0.625..=2.5).contains(&gain)));
            let bits: Vec<u64> = candidate.factors.iter().map(|factor| factor.to_bits()).collect();
            prop_assert!(known.insert((bits, candidate.first_tokens, gain.map(f64::to_bits))));
            prop_assert_eq!(search.planned_evaluations(), settings.evaluations);
            search.tell(match kind {
                0 => with_attention(&wanted, &candidate),
                1 => (known.len() * 7919 % 101) as f64,
                _ => f64::NAN,
            }).unwrap();
        }
        prop_assert!(search.evaluations() <= settings.evaluations);
        prop_assert_eq!(search.evaluations(), search.planned_evaluations());
    }

    #[test]
    fn cut_at_ten_places_it_ends_as_unbroken(
        seed in any::<u64>(),
        pairs in 1usize..20,
        scale in 1.5..20.0,
        cuts in prop::collection::vec(0usize..120, 10),
    ) {
        let wanted = logistic_rise(pairs, scale);
        let settings = CmaEs {
            evaluations: 120, seed, attention_factor: Some(1.25), first_tokens: vec![0, 4, 8, 16], ..CmaEs::default()
        };
        let mut unbroken = Search::new(settings.clone(), scale, seeds(pairs, scale)).unwrap();
        end(&mut unbroken, |candidate| with_attention(&wanted, candidate));
        let mut search = Search::new(settings, scale, seeds(pairs, scale)).unwrap();
        while let Some(candidate) = search.ask().cloned() {
            search.tell(with_attention(&wanted, &candidate)).unwrap();
            let evaluations = search.evaluations();
            for _ in cuts.iter().filter(|&&cut| cut == evaluations) {
                search = through_json(&search);
            }
        }
        prop_assert_eq!(search.best(), unbroken.best());
        prop_assert_eq!(search.checkpoint(), unbroken.checkpoint());
    }
}

#[test]
fn equal_seeds_give_equal_searches_and_others_different_ones() {
    let wanted = logistic_rise(16, 8.0);
    let history = |seed| {
        let mut search = Search::new(CmaEs { seed, ..CmaEs::default() }, 8.0, seeds(16, 8.0)).unwrap();
        finish(&mut search, &wanted);
        search.history().to_vec()
    };
    let (a, b) = (history(1), history(2));
    assert_eq!(a, history(1));
    // The seeds, and the mean of the first generation, are no matter of chance.
    assert_eq!(a[..4], b[..4]);
    assert!(a[4..].iter().all(|one| b[4..].iter().all(|other| one.candidate != other.candidate)));
}

#[test]
fn the_random_stream_is_the_same_on_every_platform() {
    let seeds = vec![candidate(&[1.0, 1.5, 2.0, 4.0], 0)];
    let settings = CmaEs { evaluations: 60, ..CmaEs::default() };
    let mut search = Search::new(settings, 4.0, seeds).unwrap();
    finish(&mut search, &[1.0, 2.0, 3.0, 4.5]);
    assert_eq!(digest(&search), DIGEST);
}

/// FNV-1a over the factors of the test above, as first computed on x86-64.
const DIGEST: u64 = 0x70bf_e3a2_ac87_3ff3;

#[test]
fn it_begins_with_the_seeds_and_the_first_mean_is_near_the_best() {
    let wanted = logistic_rise(64, 8.0);
    let mut search = Search::new(CmaEs::default(), 8.0, seeds(64, 8.0)).unwrap();
    assert_eq!(search.pending().len(), 3);
    finish(&mut search, &wanted);
    let history = search.history();
    assert_eq!(history.len(), 96);
    // Three seeds, then a mean and 4 + 3 ln 65 samples a generation.
    let size = |iteration| history.iter().filter(|evaluation| evaluation.iteration == iteration).count();
    assert_eq!([size(0), size(1), size(2)], [3, 17, 17]);
    let best = history[..3].iter().min_by(|a, b| a.value.total_cmp(&b.value)).unwrap();
    for (mean, seed) in history[3].candidate.factors.iter().zip(&best.candidate.factors) {
        assert!((mean / seed).ln().abs() < 0.25, "{mean} for {seed}");
    }
}

/// The best value of Algorithm 1 and of the default optimiser after as many evaluations.
fn at_equal_evaluations(evaluations: usize, seed: u64, objective: impl Fn(&Candidate) -> f64) -> (f64, f64) {
    let (pairs, scale) = (64, 8.0);
    // As the driver's, 32 individuals and 16 children an iteration.
    let paper = Evolution {
        population: 32,
        mutations: 8,
        crossovers: 8,
        parents: 16,
        iterations: 10,
        seed,
        ..factors_only()
    };
    assert_eq!(paper.maximum_evaluations(), evaluations);
    let mut paper = Search::new(paper, scale, seeds(pairs, scale)).unwrap();
    end(&mut paper, &objective);
    let mut ours =
        Search::new(CmaEs { evaluations, seed, ..CmaEs::default() }, scale, seeds(pairs, scale)).unwrap();
    end(&mut ours, &objective);
    assert_eq!((paper.evaluations(), ours.evaluations()), (evaluations, evaluations));
    (paper.best().unwrap().value, ours.best().unwrap().value)
}

#[test]
fn it_leaves_less_than_a_third_of_what_algorithm_1_leaves_at_equal_evaluations() {
    let smooth = logistic_rise(64, 8.0);
    // What published factors look like: 1, then a jump to the scale.
    let jump: Vec<f64> = (0..64).map(|pair| if pair < 30 { 1.0 } else { 8.0 }).collect();
    for seed in 0..5 {
        for (name, wanted) in [("smooth", &smooth), ("jump", &jump)] {
            let (paper, ours) = at_equal_evaluations(192, seed, |candidate| distance(wanted, candidate));
            assert!(3.0 * ours < paper, "{name}, seed {seed}: {ours}, Algorithm 1 {paper}");
        }
    }
}

#[test]
fn the_attention_factor_is_found_where_it_is_searched() {
    let wanted = logistic_rise(32, 8.0);
    for seed in 0..4 {
        let settings = CmaEs { evaluations: 400, attention_factor: Some(1.25), seed, ..CmaEs::default() };
        let mut search = Search::new(settings, 8.0, seeds(32, 8.0)).unwrap();
        end(&mut search, |candidate| with_attention(&wanted, candidate));
        let found = search.best().unwrap().candidate.attention_factor.unwrap();
        assert!((found - 1.1).abs() < 0.06, "seed {seed}: {found}");
    }
}

#[test]
fn the_number_of_first_tokens_reaches_its_optimum() {
    let wanted = logistic_rise(32, 8.0);
    for seed in 0..4 {
        let first_tokens = Evolution::default().first_tokens;
        let settings = CmaEs { evaluations: 400, first_tokens, seed, ..CmaEs::default() };
        let mut search = Search::new(settings, 8.0, seeds(32, 8.0)).unwrap();
        finish(&mut search, &wanted);
        assert_eq!(search.best().unwrap().candidate.first_tokens, 8, "seed {seed}");
    }
}

#[test]
fn values_that_are_not_finite_do_not_lead_it_astray() {
    let wanted = logistic_rise(16, 8.0);
    let mut search =
        Search::new(CmaEs { evaluations: 300, ..CmaEs::default() }, 8.0, seeds(16, 8.0)).unwrap();
    let start = distance(&wanted, &search.pending().nth(2).unwrap().clone());
    let mut count = 0;
    while let Some(candidate) = search.ask() {
        count += 1;
        let value = match count % 12 {
            1 => f64::NAN,
            5 => f64::INFINITY,
            9 => f64::NEG_INFINITY,
            _ => distance(&wanted, candidate),
        };
        search.tell(value).unwrap();
    }
    let best = search.best().unwrap();
    assert!(best.value.is_finite() && best.value < 0.5 * start, "{best:?}, began at {start}");
}

#[test]
fn a_single_point_ends_it_early() {
    let settings = CmaEs { maximum_ratio: 1.0, ..CmaEs::default() };
    let mut search = Search::new(settings, 1.0, seeds(3, 1.0)).unwrap();
    finish(&mut search, &[1.0; 3]);
    assert_eq!(search.evaluations(), 1);
}
