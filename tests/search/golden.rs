//! Algorithm 1, and the released code's operators, against a second implementation in Python (`scripts/golden/evolution.py`): the same
//! candidates in the same order, for the same random stream.

use longrope::scaling::Geometry;
use longrope::search::{Candidate, Evolution, Operators, Search, paper_seeds, released_seeds};
use serde_json::Value;

use super::candidate;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Factors, and behind them the number of first tokens.
fn genes(value: &Value) -> Candidate {
    let genes = numbers(value);
    let (first_tokens, factors) = genes.split_last().expect("genes");
    candidate(factors, *first_tokens as u64)
}

/// As Python sums it.
fn objective(case: &Value, candidate: &Candidate) -> f64 {
    let squares = candidate
        .factors
        .iter()
        .zip(numbers(&case["wanted"]))
        .map(|(factor, wanted)| (factor - wanted).powi(2));
    let wanted = case["wanted_first_tokens"].as_f64().expect("a number");
    squares.fold(0.0, |sum, x| sum + x) + (candidate.first_tokens as f64 - wanted).abs() / 100.0
}

#[test]
fn every_candidate_is_that_of_the_paper_and_of_the_released_code() {
    let golden: Value = serde_json::from_str(include_str!("../data/evolution_golden.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let size = |name: &str| case[name].as_u64().unwrap() as usize;
        let released = case["released"].as_bool().unwrap();
        let settings = Evolution {
            population: size("population"),
            mutations: size("mutations"),
            crossovers: size("crossovers"),
            parents: size("parents"),
            iterations: size("iterations"),
            first_tokens: numbers(&case["first_tokens"]).into_iter().map(|n| n as u64).collect(),
            seed: case["seed"].as_u64().unwrap(),
            operators: if released { Operators::Released } else { Operators::Paper },
            ..Evolution::default()
        };
        let scale = case["scale"].as_f64().unwrap();
        let seeds: Vec<Candidate> = case["seeds"].as_array().unwrap().iter().map(genes).collect();
        // Powers may differ in their last bit, so the search begins with Python's.
        let geometry = Geometry::new(32, 32, 1e4, 4096).unwrap();
        let own = if released { released_seeds(&geometry, scale) } else { paper_seeds(&geometry, scale) };
        assert_eq!(seeds.len(), own.len());
        for (a, b) in seeds.iter().zip(&own) {
            assert!(
                a.factors.iter().zip(&b.factors).all(|(a, b)| (a - b).abs() <= 1e-12 * b),
                "{a:?}, {b:?}"
            );
        }

        let mut search = Search::new(settings, scale, seeds).unwrap();
        let wanted = case["history"].as_array().unwrap();
        for (index, wanted) in wanted.iter().enumerate() {
            let mut wanted = numbers(wanted);
            let value = wanted.pop().expect("a value");
            let next = search.ask().expect("a candidate").clone();
            let (first_tokens, factors) = wanted.split_last().expect("genes");
            assert_eq!(
                (&next.factors[..], next.first_tokens),
                (factors, *first_tokens as u64),
                "candidate {index} of scale {scale}, released: {released}"
            );
            assert_eq!(objective(case, &next), value);
            search.tell(value).unwrap();
        }
        assert_eq!((search.evaluations(), search.ask()), (wanted.len(), None));
    }
}
