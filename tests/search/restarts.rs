//! Searches that begin again where they come no further.

use longrope::search::{Candidate, CmaEs, Search};

use super::{finish, finish_by, logistic_rise, seeds};

fn settings(restarts: Option<usize>) -> CmaEs {
    CmaEs { restarts, ..CmaEs::default() }
}

/// Ends a search of four pairs by an objective, and gives it.
fn end(settings: CmaEs, objective: impl Fn(&Candidate) -> f64) -> Search {
    let mut search = Search::new(settings, 8.0, seeds(4, 8.0)).unwrap();
    finish_by(&mut search, objective);
    search
}

/// Candidates of each iteration.
fn sizes(search: &Search) -> Vec<usize> {
    let history = search.history();
    let last = history.last().unwrap().iteration;
    let size = |iteration| history.iter().filter(|evaluation| evaluation.iteration == iteration).count();
    (0..=last).map(size).collect()
}

#[test]
fn after_so_many_generations_without_a_better_candidate_it_has_twice_as_many_samples() {
    // 4 + 3 ln 5 samples; no value is better than the first seed's, around which it begins.
    let search = end(CmaEs { evaluations: 200, ..settings(Some(2)) }, |_| 1.0);
    let sizes = sizes(&search);
    // The mean is evaluated too, where it is new. At last two generations of twice as many would be more than what is left.
    assert_eq!(sizes.iter().sum::<usize>(), 200);
    let doubled: Vec<usize> = sizes.iter().map(|size| size / 8).collect();
    assert_eq!(doubled[1..7], [1, 1, 2, 2, 4, 4], "{sizes:?}");
    let without = end(CmaEs { evaluations: 200, ..settings(None) }, |_| 1.0);
    assert!(self::sizes(&without)[1..].iter().all(|&size| size <= 9));
}

#[test]
fn a_search_that_gets_better_is_left_alone() {
    let wanted = logistic_rise(16, 8.0);
    let history = |restarts| {
        let mut search = Search::new(settings(restarts), 8.0, seeds(16, 8.0)).unwrap();
        finish(&mut search, &wanted);
        search.history().to_vec()
    };
    assert_eq!(history(Some(5)), history(None));
}

/// Bowls beside each other in the logarithm of each factor, the deepest at `wanted`.
fn many_bowls(wanted: &[f64], candidate: &Candidate) -> f64 {
    let apart = candidate.factors.iter().zip(wanted).map(|(factor, wanted)| (factor / wanted).ln());
    apart.map(|apart| apart * apart + 0.1 * (1.0 - (12.0 * apart).cos())).sum()
}

#[test]
fn among_many_local_optima_a_better_one_is_found() {
    let wanted = [1.2, 2.5, 4.0, 9.0];
    let mut found = [Vec::new(), Vec::new()];
    for seed in 0..10 {
        for (found, restarts) in found.iter_mut().zip([None, Some(8)]) {
            let settings = CmaEs { evaluations: 1500, seed, ..settings(restarts) };
            found.push(end(settings, |candidate| many_bowls(&wanted, candidate)).best().unwrap().value);
        }
    }
    let [without, with] = found;
    assert!(
        with.iter().zip(&without).all(|(with, without)| with <= without),
        "{with:?}, without {without:?}"
    );
    assert!(2.0 * with.iter().sum::<f64>() < without.iter().sum(), "{with:?}, without {without:?}");
}

#[test]
fn a_space_with_nothing_new_ends_it() {
    let settings = CmaEs { maximum_ratio: 1.0, restarts: Some(1), ..CmaEs::default() };
    let mut search = Search::new(settings, 1.0, seeds(3, 1.0)).unwrap();
    finish(&mut search, &[1.0; 3]);
    assert_eq!(search.evaluations(), 1);
}
