//! Samples that a model of the objective ranks before they are evaluated.

use longrope::search::{Candidate, Checkpoint, CmaEs, Search};
use proptest::prelude::*;

use super::{candidate, digest, distance, finish, finish_by, logistic_rise, seeds};

fn with() -> CmaEs {
    CmaEs { surrogate: Some(10), ..CmaEs::default() }
}

/// The best value by an objective.
fn best(settings: CmaEs, pairs: usize, objective: impl Fn(&Candidate) -> f64) -> f64 {
    let mut search = Search::new(settings, 8.0, seeds(pairs, 8.0)).unwrap();
    finish_by(&mut search, objective);
    search.best().unwrap().value
}

#[test]
fn with_it_less_is_left_at_equal_evaluations() {
    let smooth = logistic_rise(32, 8.0);
    let jump: Vec<f64> = (0..32).map(|pair| if pair < 15 { 1.0 } else { 8.0 }).collect();
    for (name, wanted) in [("smooth", &smooth), ("jump", &jump)] {
        for seed in 0..5 {
            let of = |settings| best(settings, 32, |candidate| distance(wanted, candidate));
            let (on, off) = (of(CmaEs { seed, ..with() }), of(CmaEs { seed, ..CmaEs::default() }));
            assert!(on < off, "{name}, seed {seed}: {on} with it, {off} without");
        }
    }
}

#[test]
fn factors_that_may_decrease_the_attention_factor_and_first_tokens_are_searched_with_it() {
    let wanted = [1.0, 3.5, 1.2, 2.0, 4.5, 1.5, 3.0, 4.0];
    let objective = |candidate: &Candidate| {
        let attention = candidate.attention_factor.unwrap_or(1.25);
        distance(&wanted, candidate) + 10.0 * (attention - 1.1).powi(2)
    };
    for seed in 0..5 {
        let all = |settings| CmaEs {
            monotone: false,
            attention_factor: Some(1.25),
            first_tokens: vec![0, 4, 8, 16],
            seed,
            ..settings
        };
        let (on, off) = (best(all(with()), 8, objective), best(all(CmaEs::default()), 8, objective));
        assert!(on < off, "seed {seed}: {on} with it, {off} without");
    }
}

#[test]
fn without_a_model_the_samples_are_those_that_are_drawn() {
    // Equal values give none.
    let history = |settings| {
        let mut search = Search::new(settings, 8.0, seeds(16, 8.0)).unwrap();
        finish_by(&mut search, |_| 1.0);
        search.history().to_vec()
    };
    assert_eq!(history(with()), history(CmaEs::default()));
    let bowl = |settings| {
        let mut search = Search::new(settings, 8.0, seeds(16, 8.0)).unwrap();
        finish(&mut search, &logistic_rise(16, 8.0));
        search.history().to_vec()
    };
    let (on, off) = (bowl(with()), bowl(CmaEs::default()));
    // Three values are too few, and so the first generation is the same.
    let first = on.iter().position(|evaluation| evaluation.iteration == 2).unwrap();
    assert_eq!(on[..first], off[..first]);
    assert_ne!(on[first + 1].candidate, off[first + 1].candidate);
}

#[test]
fn it_is_the_same_on_every_platform() {
    let seeds = vec![candidate(&[1.0, 1.5, 2.0, 4.0], 0)];
    let settings = CmaEs { evaluations: 200, restarts: Some(3), ..with() };
    let mut search = Search::new(settings, 4.0, seeds).unwrap();
    finish(&mut search, &[1.0, 2.0, 3.0, 4.5]);
    assert_eq!(digest(&search), DIGEST);
}

/// FNV-1a over the factors of the test above, as first computed on x86-64.
const DIGEST: u64 = 0x1cdbaddd3ef7b142;

/// [`distance`], but for some candidates that have no finite value, and some that have an estimate.
fn rough(wanted: &[f64], candidate: &Candidate) -> f64 {
    match (candidate.factors.iter().sum::<f64>() * 100.0) as u64 % 9 {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3 => 2.0 * distance(wanted, candidate),
        _ => distance(wanted, candidate),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cut_at_any_places_it_ends_as_unbroken_with_restarts_too(
        seed in any::<u64>(),
        pairs in 1usize..20,
        scale in 1.5..20.0,
        surrogate in 2usize..20,
        restarts in 1usize..5,
        monotone in any::<bool>(),
        cuts in prop::collection::vec(0usize..120, 3),
    ) {
        let wanted = logistic_rise(pairs, scale);
        let settings = CmaEs {
            evaluations: 120, seed, monotone, attention_factor: Some(1.25), first_tokens: vec![0, 8],
            surrogate: Some(surrogate), restarts: Some(restarts), ..with()
        };
        let begin = || Search::new(settings.clone(), scale, seeds(pairs, scale)).unwrap();
        // As text, which is equal where a value is NaN.
        let text = |search: &Search| serde_json::to_string(&search.checkpoint()).unwrap();
        let (mut unbroken, mut search) = (begin(), begin());
        finish_by(&mut unbroken, |candidate| rough(&wanted, candidate));
        while let Some(candidate) = search.ask().cloned() {
            search.tell(rough(&wanted, &candidate)).unwrap();
            if cuts.contains(&search.evaluations()) {
                search = Search::resume(serde_json::from_str(&text(&search)).unwrap()).unwrap();
            }
        }
        prop_assert_eq!(text(&search), text(&unbroken));
    }
}

/// As a release wrote it that knew neither a surrogate nor restarts.
const EARLIER: &str = r#"{"version":2,"optimiser":{"cma-es":{"evaluations":40,"step_size":0.5,"minimum":1.0,
    "maximum_ratio":1.25,"step":0.01,"first_tokens":[0],"attention_factor":null,"monotone":true,"seed":0}},
    "scale":4.0,"seeds":[{"factors":[1.0,4.0],"first_tokens":0}],"history":HISTORY}"#;

#[test]
fn an_earlier_checkpoint_goes_on_without_it() {
    let begun = vec![candidate(&[1.0, 4.0], 0)];
    let settings = CmaEs { evaluations: 40, ..CmaEs::default() };
    let mut search = Search::new(settings, 4.0, begun).unwrap();
    finish(&mut search, &[1.5, 3.0]);
    let written = serde_json::to_value(search.checkpoint()).unwrap();
    // With the features off, later checkpoints are those that earlier releases read.
    let fields = written["optimiser"]["cma-es"].as_object().unwrap();
    assert!(!fields.contains_key("surrogate") && !fields.contains_key("restarts"), "{fields:?}");
    let history = &written["history"].as_array().unwrap()[..30];
    let earlier = EARLIER.replace("HISTORY", &serde_json::to_string(history).unwrap());
    let mut resumed = Search::resume(serde_json::from_str::<Checkpoint>(&earlier).unwrap()).unwrap();
    assert_eq!(resumed.evaluations(), 30);
    finish(&mut resumed, &[1.5, 3.0]);
    assert_eq!(resumed.checkpoint(), search.checkpoint());
}

#[test]
fn a_checkpoint_says_what_is_on() {
    let on = CmaEs { restarts: Some(4), ..with() };
    let checkpoint = Search::new(on, 8.0, seeds(4, 8.0)).unwrap().checkpoint();
    let message = |settings: CmaEs| {
        checkpoint.check_arguments(&settings.into(), 8.0, &seeds(4, 8.0)).unwrap_err().to_string()
    };
    let same = "with which the checkpoint is to be resumed";
    assert_eq!(
        message(CmaEs { restarts: Some(4), ..CmaEs::default() }),
        format!("settings.surrogate: 10 is not valid; expected none, {same}")
    );
    assert_eq!(message(with()), format!("settings.restarts: 4 is not valid; expected none, {same}"));
    let text = serde_json::to_string(&checkpoint).unwrap();
    assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), checkpoint);
}

#[test]
fn settings_out_of_range_are_named() {
    let message = |settings: CmaEs| settings.validate().unwrap_err().to_string();
    for samples in [0, 1, 101, usize::MAX] {
        let settings = CmaEs { surrogate: Some(samples), ..with() };
        let expected = "expected none, or 2 to 100 samples for each evaluation";
        assert_eq!(message(settings), format!("surrogate: {samples} is not valid; {expected}"));
    }
    for generations in [0, usize::MAX] {
        let settings = CmaEs { restarts: Some(generations), ..with() };
        let expected = "expected none, or 1 to 1000000 generations";
        assert_eq!(message(settings), format!("restarts: {generations} is not valid; {expected}"));
    }
    for valid in [2, 100] {
        let settings = CmaEs { surrogate: Some(valid), restarts: Some(1_000_000), ..with() };
        assert_eq!(settings.validate(), Ok(()));
    }
}
