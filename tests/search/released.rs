//! The released code's form of the evolutionary search.

use longrope::scaling::Geometry;
use longrope::search::{Evolution, Search, released_seeds};

use super::{finish, logistic_rise};

fn search(seed: u64) -> Search {
    let geometry = Geometry::new(32, 32, 1e4, 4096).unwrap();
    let settings = Evolution { iterations: 8, seed, ..Evolution::released() };
    Search::new(settings, 4.0, released_seeds(&geometry, 4.0)).unwrap()
}

#[test]
fn it_has_the_sizes_of_the_paper_and_one_seed() {
    let settings = Evolution::released();
    assert_eq!(settings.maximum_evaluations(), 1344);
    assert_eq!((settings.population, settings.parents, settings.mutation_probability), (64, 32, 0.3));
    assert_eq!(search(0).pending().len(), 64);
}

#[test]
fn candidates_are_legal_up_to_the_scale_plus_one_and_none_is_near_another() {
    let mut search = search(0);
    finish(&mut search, &logistic_rise(16, 4.0));
    assert_eq!(search.evaluations(), 64 + 8 * 32);
    let candidates: Vec<_> = search.history().iter().map(|evaluation| &evaluation.candidate).collect();
    let mut largest = 0.0f64;
    for (index, candidate) in candidates.iter().enumerate() {
        assert!(candidate.factors.is_sorted() && candidate.factors[0] >= 1.0 && candidate.first_tokens == 0);
        largest = largest.max(candidate.factors[15]);
        for other in &candidates[..index] {
            let mut pairs = candidate.factors.iter().zip(&other.factors);
            assert!(pairs.any(|(a, b)| (a - b).abs() > 1e-8 + 1e-5 * b), "{candidate:?}, {other:?}");
        }
    }
    // Beyond the scale, which the last pair alone can pass at first, and up to the bound.
    assert!(largest > 4.8 && largest <= 5.0, "{largest}");
}

#[test]
fn it_gets_better_than_its_seed_and_is_repeatable() {
    let wanted = logistic_rise(16, 4.0);
    let finished = |seed| {
        let mut search = search(seed);
        finish(&mut search, &wanted);
        search
    };
    for seed in 0..3 {
        let search = finished(seed);
        let (best, first) = (search.best().unwrap().value, search.history()[0].value);
        assert!(best < 0.5 * first, "seed {seed}: {best} of {first}");
        assert_eq!(search.checkpoint(), finished(seed).checkpoint());
        assert_eq!(Search::resume(search.checkpoint()).unwrap().checkpoint(), search.checkpoint());
    }
    assert_ne!(finished(0).history()[1..], finished(1).history()[1..]);
}
