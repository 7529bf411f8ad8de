//! What is refused, and in which words.

use longrope::search::{Candidate, CmaEs, Evolution, Search};

use super::{candidate, factors_only, seeds, small};

fn refusal(settings: Evolution) -> String {
    let error = settings.validate().unwrap_err();
    let again = Search::new(settings, 4.0, seeds(4, 4.0)).unwrap_err();
    assert_eq!(error, again);
    error.to_string()
}

#[test]
fn settings_out_of_range_are_named() {
    let default = Evolution::default;
    let cases = [
        (Evolution { population: 0, ..default() }, "population: 0 is not valid; expected at least 1"),
        (
            Evolution { mutations: 0, crossovers: 0, ..default() },
            "mutations: 0 is not valid; expected at least 1 where crossovers is 0",
        ),
        (
            Evolution { parents: 1, ..default() },
            "parents: 1 is not valid; expected at least 2 where crossovers is not 0",
        ),
        (
            Evolution { parents: 0, crossovers: 0, ..default() },
            "parents: 0 is not valid; expected at least 1",
        ),
        (
            Evolution { iterations: 100_000, ..default() },
            "population + iterations * (mutations + crossovers): 3200064 is not valid; expected at most 1000000 evaluations",
        ),
        (
            Evolution { mutation_probability: 0.0, ..default() },
            "mutation_probability: 0 is not valid; expected a number above 0 and up to 1",
        ),
        (
            Evolution { mutation_probability: f64::NAN, ..default() },
            "mutation_probability: NaN is not valid; expected a number above 0 and up to 1",
        ),
        (
            Evolution { minimum: -1.0, ..default() },
            "minimum: -1 is not valid; expected a finite number above 0",
        ),
        (
            Evolution { maximum_ratio: f64::INFINITY, ..default() },
            "maximum_ratio: inf is not valid; expected a finite number above 0",
        ),
        (Evolution { step: 0.0, ..default() }, "step: 0 is not valid; expected a finite number above 0"),
        (
            Evolution { first_tokens: vec![], ..default() },
            "first_tokens: [] is not valid; expected at least one allowed value; [0] switches the gene off",
        ),
        (
            Evolution { first_tokens: vec![4, 0, 4], ..default() },
            "first_tokens: 4 twice is not valid; expected each allowed value once",
        ),
    ];
    for (settings, message) in cases {
        assert_eq!(refusal(settings), message);
    }
    let huge = Evolution { iterations: usize::MAX, mutations: usize::MAX, ..default() };
    assert!(refusal(huge).ends_with("expected at most 1000000 evaluations"));
}

fn message(settings: Evolution, scale: f64, seeds: Vec<Candidate>) -> String {
    Search::new(settings, scale, seeds).unwrap_err().to_string()
}

#[test]
fn settings_of_cma_es_out_of_range_are_named() {
    let default = CmaEs::default;
    let cases = [
        (CmaEs { evaluations: 0, ..default() }, "evaluations: 0 is not valid; expected 1 to 1000000"),
        (CmaEs { evaluations: 2_000_000, ..default() }, "evaluations: 2000000 is not valid"),
        (
            CmaEs { step_size: 0.0, ..default() },
            "step_size: 0 is not valid; expected a number above 0 and up to 10",
        ),
        (CmaEs { step_size: f64::NAN, ..default() }, "step_size: NaN is not valid"),
        (CmaEs { minimum: 0.0, ..default() }, "minimum: 0 is not valid; expected a finite number above 0"),
        (CmaEs { step: f64::NAN, ..default() }, "step: NaN is not valid; expected a finite number above 0"),
        (CmaEs { first_tokens: vec![], ..default() }, "first_tokens: [] is not valid"),
        (CmaEs { first_tokens: vec![1, 1], ..default() }, "first_tokens: 1 twice is not valid"),
        (
            CmaEs { attention_factor: Some(0.0), ..default() },
            "attention_factor: 0 is not valid; expected a number within [0.001, 1000]",
        ),
    ];
    for (settings, message) in cases {
        let error = settings.validate().unwrap_err();
        assert_eq!(Search::new(settings, 4.0, seeds(4, 4.0)).unwrap_err(), error);
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let few = Search::new(CmaEs { evaluations: 2, ..default() }, 4.0, seeds(4, 4.0)).unwrap_err();
    assert_eq!(few.to_string(), "seeds: 3 seeds is not valid; expected at most evaluations (2)");
}

#[test]
fn the_released_operators_search_no_first_tokens() {
    assert_eq!(Evolution::released().validate(), Ok(()));
    let settings = Evolution { first_tokens: vec![0, 4], ..Evolution::released() };
    assert_eq!(
        refusal(settings),
        "first_tokens: [0, 4] is not valid; expected a single allowed value: the released operators leave it alone"
    );
}

#[test]
fn an_attention_factor_is_legal_where_it_is_searched() {
    let with = |found: f64| vec![Candidate { attention_factor: Some(found), ..candidate(&[1.0, 4.0], 0) }];
    assert_eq!(
        message(factors_only(), 4.0, with(1.2)),
        "seeds[0].attention_factor: 1.2 is not valid; expected none: these settings do not search it"
    );
    let searched = || CmaEs { attention_factor: Some(1.25), ..CmaEs::default() };
    assert!(Search::new(searched(), 4.0, with(2.5)).is_ok());
    assert_eq!(
        Search::new(searched(), 4.0, with(2.6)).unwrap_err().to_string(),
        "seeds[0].attention_factor: 2.6 is not valid; expected a number within [0.625, 2.5]"
    );
}

#[test]
fn scale_and_bounds_that_leave_no_space_are_named() {
    let seeds = || seeds(4, 4.0);
    for (scale, found) in [(0.5, "0.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-4.0, "-4")] {
        assert_eq!(
            message(small(), scale, seeds()),
            format!(
                "scale: {found} is not valid; expected a finite number of at least 1 (target length / original length)"
            )
        );
    }
    assert_eq!(
        message(Evolution { minimum: 6.0, ..small() }, 4.0, seeds()),
        "maximum_ratio: 1.25 is not valid; expected maximum_ratio * scale (4) to be at least minimum (6)"
    );
    assert_eq!(
        message(Evolution { step: 3.0, minimum: 4.0, ..small() }, 4.0, seeds()),
        "step: 3 is not valid; expected a multiple of it to lie within [4, 5]"
    );
    let tiny = message(Evolution { step: 1e-12, ..small() }, 4.0, seeds());
    assert!(tiny.starts_with("step: 0.000000000001 is not valid; expected at least"), "{tiny}");
    assert!(message(Evolution { step: 1e300, ..small() }, 4.0, seeds()).starts_with("step: "));
    assert!(
        message(Evolution { maximum_ratio: 1e308, ..small() }, 1e308, seeds()).starts_with("maximum_ratio: ")
    );
}

#[test]
fn seeds_that_cannot_be_used_are_named() {
    let with = |second: Candidate| message(small(), 4.0, vec![candidate(&[1.0, 2.0, 4.0], 0), second]);
    let cases = [
        (candidate(&[1.0, 2.0], 0), "seeds[1].factors: 2 factors is not valid; expected 3, as in seeds[0]"),
        (
            candidate(&[1.0, 3.0, 2.0], 0),
            "seeds[1].factors[2]: 2 is not valid; expected at least the factor before it (3): factors do not decrease",
        ),
        (
            candidate(&[1.0, 2.0, 5.5], 0),
            "seeds[1].factors[2]: 5.5 is not valid; expected a number within [1, 5]",
        ),
        (
            candidate(&[0.9, 2.0, 5.0], 0),
            "seeds[1].factors[0]: 0.9 is not valid; expected a number within [1, 5]",
        ),
        (
            candidate(&[1.0, f64::NAN, 5.0], 0),
            "seeds[1].factors[1]: NaN is not valid; expected a number within [1, 5]",
        ),
        (
            candidate(&[1.0, 2.0, 4.0], 3),
            "seeds[1].first_tokens: 3 is not valid; expected one of the values that settings.first_tokens allows",
        ),
    ];
    for (second, expected) in cases {
        assert_eq!(with(second), expected);
    }
    assert_eq!(
        message(small(), 4.0, vec![]),
        "seeds: no seed is not valid; expected at least one candidate, with a factor for each pair"
    );
    assert_eq!(
        message(small(), 4.0, vec![candidate(&[], 0)]),
        "seeds: seeds[0] without factors is not valid; expected at least one candidate, with a factor for each pair"
    );
    assert_eq!(
        message(Evolution { population: 2, ..small() }, 4.0, seeds(4, 4.0)),
        "seeds: 3 seeds is not valid; expected at most population (2)"
    );
}

#[test]
fn the_papers_seeds_are_legal_for_every_geometry_and_scale() {
    for pairs in [1, 2, 3, 16, 48, 64, 128] {
        for scale in [1.0, 1.0 + f64::EPSILON, 1.3, 2.0, 3.7, 8.0, 16.0, 64.0, 512.0, 1e6] {
            let search = Search::new(factors_only(), scale, seeds(pairs, scale));
            assert!(search.is_ok(), "{pairs} {scale}: {:?}", search.err());
        }
    }
}

#[test]
fn settings_are_read_with_the_papers_defaults() {
    let settings: Evolution = serde_json::from_str(r#"{"population": 8, "first_tokens": [0]}"#).unwrap();
    assert_eq!(settings, Evolution { population: 8, ..factors_only() });
    let error = serde_json::from_str::<Evolution>(r#"{"populaton": 8}"#).unwrap_err().to_string();
    assert!(error.contains("unknown field `populaton`, expected one of `population`"), "{error}");
    let text = serde_json::to_string(&Evolution::default()).unwrap();
    assert_eq!(serde_json::from_str::<Evolution>(&text).unwrap(), Evolution::default());
}
