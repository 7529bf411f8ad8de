//! Leaving a search and taking it up.

use longrope::search::{Candidate, Checkpoint, CmaEs, Evolution, Search};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{candidate, distance, finish, logistic_rise, seeds, small};

fn through_json(search: &Search) -> Search {
    let text = serde_json::to_string(&search.checkpoint()).unwrap();
    let checkpoint: Checkpoint = serde_json::from_str(&text).unwrap();
    Search::resume(checkpoint).unwrap()
}

/// [`distance`], but for some candidates that have no finite value.
fn rough(wanted: &[f64], candidate: &Candidate) -> f64 {
    match (candidate.factors.iter().sum::<f64>() * 100.0) as u64 % 7 {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        _ => distance(wanted, candidate),
    }
}

/// The text of the final state: unlike the state itself, equal where a value is NaN.
fn end(mut search: Search, wanted: &[f64]) -> String {
    while let Some(candidate) = search.ask() {
        let value = rough(wanted, candidate);
        search.tell(value).unwrap();
    }
    serde_json::to_string(&search.checkpoint()).unwrap()
}

#[test]
fn cut_after_any_evaluation_it_ends_as_unbroken() {
    let wanted = logistic_rise(8, 4.0);
    let mut search = Search::new(small(), 4.0, seeds(8, 4.0)).unwrap();
    let unbroken = end(search.clone(), &wanted);
    for evaluations in 0..=47 {
        assert_eq!(search.evaluations(), evaluations);
        let resumed = through_json(&search);
        assert_eq!(resumed.ask(), search.ask());
        assert_eq!(resumed.iteration(), search.iteration());
        assert_eq!(resumed.planned_evaluations(), search.planned_evaluations());
        assert_eq!(format!("{:?}", resumed.best()), format!("{:?}", search.best()));
        assert_eq!(end(resumed, &wanted), unbroken);
        if let Some(candidate) = search.ask() {
            let value = rough(&wanted, candidate);
            search.tell(value).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn cut_anywhere_and_often_it_ends_as_unbroken(
        seed in any::<u64>(),
        pairs in 1usize..20,
        scale in 1.0..20.0,
        mutation_probability in 0.05..0.9,
        cuts in prop::collection::vec(any::<bool>(), 47),
    ) {
        let wanted = logistic_rise(pairs, scale);
        let settings = Evolution { seed, mutation_probability, ..small() };
        let mut search = Search::new(settings, scale, seeds(pairs, scale)).unwrap();
        let unbroken = end(search.clone(), &wanted);
        for cut in cuts {
            if cut {
                search = through_json(&search);
            }
            if let Some(candidate) = search.ask() {
                let value = rough(&wanted, candidate);
                search.tell(value).unwrap();
            }
        }
        prop_assert_eq!(end(search, &wanted), unbroken);
    }
}

#[test]
fn a_search_that_ended_early_stays_at_its_end() {
    let settings = Evolution { first_tokens: vec![0], ..small() };
    let mut search = Search::new(settings, 1.0, seeds(1, 1.0)).unwrap();
    finish(&mut search, &[1.1]);
    assert_eq!(search.evaluations(), 26);
    let resumed = through_json(&search);
    assert!(resumed.is_finished());
    assert_eq!(resumed.checkpoint(), search.checkpoint());
}

#[test]
fn values_that_json_lacks_survive_it() {
    let mut search = Search::new(small(), 4.0, seeds(4, 4.0)).unwrap();
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5.0, -0.0, 0.1 + 0.2] {
        search.tell(value).unwrap();
    }
    let text = serde_json::to_string(&search.checkpoint()).unwrap();
    assert!(text.contains(r#""value":"NaN""#) && text.contains(r#""value":"-Infinity""#));
    let resumed = through_json(&search);
    for (found, expected) in resumed.history().iter().zip(search.history()) {
        let same = found.value.to_bits() == expected.value.to_bits();
        assert!(same || found.value.is_nan() && expected.value.is_nan());
    }
}

/// A checkpoint within the second iteration, as JSON: 12 + 7 + 3 evaluations and 4 candidates that wait.
fn checkpoint() -> Value {
    let mut search = Search::new(small(), 4.0, seeds(4, 4.0)).unwrap();
    for value in 0..22 {
        search.tell(f64::from(value)).unwrap();
    }
    serde_json::to_value(search.checkpoint()).unwrap()
}

/// What is said of the checkpoint with the entry at `pointer` replaced.
fn refusal(pointer: &str, entry: Value) -> String {
    let mut value = checkpoint();
    match value.pointer_mut(pointer) {
        Some(place) => *place = entry,
        // The attention factor is absent where it is not searched.
        None => {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            value.pointer_mut(parent).unwrap()[name] = entry;
        }
    }
    match serde_json::from_str::<Checkpoint>(&value.to_string()) {
        Ok(checkpoint) => Search::resume(checkpoint).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_with_its_place() {
    assert!(Search::resume(serde_json::from_value(checkpoint()).unwrap()).is_ok());
    let first = checkpoint().pointer("/history/5/candidate").unwrap().clone();
    let another =
        "is not valid; expected the one that the search of these settings makes after the values before it";
    let fourth = &format!("history[4].candidate: another candidate {another}");
    let cases = [
        ("/version", json!(1), "checkpoint format version 2, which this release reads"),
        ("/version", json!("2"), "expected u64"),
        ("/optimiser", json!("evolution"), "invalid type: unit variant, expected newtype variant"),
        ("/optimiser", json!({"annealing": {}}), "unknown variant `annealing`"),
        ("/optimiser/evolution/population", json!(0), "population: 0 is not valid"),
        ("/optimiser/evolution/population", json!(-1), "expected usize"),
        ("/optimiser/evolution/population", json!(11), "history[11].iteration: 0 is not valid; expected 1"),
        ("/optimiser/evolution/mutations", json!(u64::MAX), "at most 1000000 evaluations"),
        ("/optimiser/evolution/mutations", json!(3), "history[15].candidate: another candidate"),
        (
            "/optimiser/evolution/iterations",
            json!(1),
            "expected the end after 19: the search of these settings",
        ),
        ("/optimiser/evolution/seed", json!(1), "history[3].candidate: another candidate"),
        ("/scale", json!(0.0), "scale: 0 is not valid"),
        ("/scale", json!(2.0), "seeds[0].factors[0]: 4 is not valid; expected a number within [1, 2.5]"),
        ("/seeds", json!([]), "seeds: no seed is not valid"),
        ("/seeds/0/factors", json!([4.0]), "seeds[1].factors: 4 factors is not valid; expected 1"),
        ("/seeds/1/factors/3", json!(4.5), "history[1].candidate: another candidate"),
        ("/history/0/iteration", json!(1), "history[0].iteration: 1 is not valid; expected 0"),
        ("/history/20/iteration", json!(3), "history[20].iteration: 3 is not valid; expected 2"),
        ("/history/3/value", Value::Null, r#"expected a number, "NaN", "Infinity" or "-Infinity""#),
        ("/history/3/value", json!("nan"), r#"expected a number, "NaN", "Infinity" or "-Infinity""#),
        // The children of another best are others.
        ("/history/9/value", json!(-1), "history[12].candidate: another candidate"),
        ("/history/4/candidate/factors/2", Value::Null, "expected f64"),
        ("/history/4/candidate/factors/3", json!(5.01), fourth),
        ("/history/4/candidate/factors", json!([]), fourth),
        ("/history/4/candidate/first_tokens", json!(3), fourth),
        ("/history/4/candidate/attention_factor", json!(1.1), fourth),
        ("/history/8/candidate", first, "history[8].candidate: another candidate"),
    ];
    for (pointer, entry, expected) in cases {
        let message = refusal(pointer, entry.clone());
        assert!(message.contains(expected), "{pointer} = {entry}: {message}");
    }
}

#[test]
fn text_that_is_no_checkpoint_is_refused() {
    let read = |text: &str| serde_json::from_str::<Checkpoint>(text).unwrap_err().to_string();
    // Another format may differ in everything: its version is what is said.
    for other in [r#"{"version": 7, "islands": []}"#, r#"{"version": 1, "settings": {}}"#] {
        assert!(read(other).contains("expected checkpoint format version 2, which this release reads"));
    }
    assert!(read("{}").contains("missing field `version`"));
    assert!(read(r#"{"version": 2, "islands": []}"#).contains("unknown field `islands`"));
    let whole = checkpoint().to_string();
    assert!(read(&whole[..whole.len() / 2]).contains("EOF"));
    let huge = whole.replacen("\"value\":0.0", "\"value\":1e999", 1);
    assert_ne!(huge, whole);
    assert!(read(&huge).contains("out of range"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever number or word is put in whatever place: an error, or a search that can go on.
    #[test]
    fn a_hostile_checkpoint_does_no_harm(
        place in any::<prop::sample::Index>(),
        entry in prop_oneof![
            Just(Value::Null), Just(json!([])), Just(json!({})), Just(json!("NaN")), Just(json!(-1)),
            any::<u64>().prop_map(|number| json!(number)),
            any::<f64>().prop_map(|number| json!(number)),
            (0u64..50).prop_map(|number| json!(number)),
        ],
    ) {
        fn places(value: &Value, at: &str, all: &mut Vec<String>) {
            all.push(at.to_owned());
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), all)),
                Value::Array(list) => {
                    list.iter().enumerate().for_each(|(key, value)| places(value, &format!("{at}/{key}"), all));
                }
                _ => {}
            }
        }
        let mut value = checkpoint();
        let mut all = Vec::new();
        places(&value, "", &mut all);
        *value.pointer_mut(&all[place.index(all.len())]).unwrap() = entry;
        let Ok(checkpoint) = serde_json::from_str::<Checkpoint>(&value.to_string()) else {
            return Ok(());
        };
        if let Ok(mut search) = Search::resume(checkpoint) {
            for value in 0..30 {
                if search.ask().is_some() {
                    search.tell(f64::from(value)).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_checkpoint_of_another_search_is_told_apart() {
    let begun = seeds(4, 4.0);
    let checkpoint = Search::new(small(), 4.0, begun.clone()).unwrap().checkpoint();
    assert_eq!(checkpoint.optimiser(), &small().into());
    assert_eq!(checkpoint.check_arguments(&small().into(), 4.0, &begun), Ok(()));
    let message = |settings: Evolution, scale, seeds: &[Candidate]| {
        checkpoint.check_arguments(&settings.into(), scale, seeds).unwrap_err().to_string()
    };
    assert_eq!(
        message(Evolution { step: 0.02, ..small() }, 4.0, &begun),
        "settings.step: 0.01 is not valid; expected 0.02, with which the checkpoint is to be resumed"
    );
    assert_eq!(
        message(Evolution { first_tokens: vec![0], seed: 3, ..small() }, 4.0, &begun),
        "settings.first_tokens: [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256] is not valid; \
         expected [0], with which the checkpoint is to be resumed"
    );
    let error = checkpoint.check_arguments(&CmaEs::default().into(), 4.0, &begun).unwrap_err().to_string();
    assert!(error.starts_with("settings.optimiser: evolution is not valid; expected cma-es,"), "{error}");
    assert!(message(small(), 8.0, &begun).starts_with("scale: 4 is not valid; expected 8,"));
    assert!(message(small(), 4.0, &begun[..2]).starts_with("seeds: 3 is not valid; expected 2,"));
    let mut others = begun.clone();
    others[2] = candidate(&[1.0, 1.0, 2.0, 4.0], 0);
    assert!(message(small(), 4.0, &others).starts_with("seeds[2]: another candidate is not valid"));
}
