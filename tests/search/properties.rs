//! What holds of every candidate of every search.

use std::collections::HashSet;

use longrope::search::{Evolution, Operators, Search};
use proptest::prelude::*;

use super::{distance, logistic_rise, seeds};

prop_compose! {
    /// Evolution of a search of at most some hundred evaluations.
    fn settings()(
        population in 3usize..40,
        mutations in 1usize..10,
        crossovers in 0usize..10,
        parents in 2usize..20,
        iterations in 0usize..12,
        mutation_probability in 0.01..=1.0,
        maximum_ratio in 1.0..2.0,
        step in prop_oneof![Just(0.01), Just(0.05), Just(0.25), Just(0.3), 0.001..0.5],
        first_tokens in prop_oneof![Just(vec![0]), Just(vec![0, 1, 2, 4]), Just(vec![64, 0, 8])],
        seed in any::<u64>(),
    ) -> Evolution {
        Evolution {
            population, mutations, crossovers, parents, iterations, mutation_probability,
            minimum: 1.0, maximum_ratio, step, first_tokens, seed, operators: Operators::Paper,
            monotone: true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn candidates_are_legal_new_and_no_more_than_planned(
        settings in settings(),
        pairs in 1usize..24,
        scale in 1.0..40.0,
    ) {
        let seeds = seeds(pairs, scale);
        let wanted = logistic_rise(pairs, scale);
        // Only a step too coarse for the bounds is refused.
        let Ok(mut search) = Search::new(settings.clone(), scale, seeds.clone()) else {
            let maximum = settings.maximum_ratio * scale;
            prop_assert!((1.0 / settings.step).ceil() * settings.step > maximum.next_down());
            return Ok(());
        };
        let mut known = HashSet::new();
        let mut planned = settings.maximum_evaluations();
        while let Some(candidate) = search.ask().cloned() {
            prop_assert_eq!(candidate.factors.len(), pairs);
            prop_assert!(candidate.factors.is_sorted());
            prop_assert!(candidate.factors[0] >= 1.0);
            prop_assert!(candidate.factors[pairs - 1] <= settings.maximum_ratio * scale);
            for (pair, &factor) in candidate.factors.iter().enumerate() {
                let multiple = (factor / settings.step).round() * settings.step;
                let on_grid = (factor - multiple).abs() <= 4.0 * f64::EPSILON * factor;
                prop_assert!(on_grid || seeds.iter().any(|seed| seed.factors[pair] == factor));
            }
            prop_assert!(settings.first_tokens.contains(&candidate.first_tokens));
            let bits: Vec<u64> = candidate.factors.iter().map(|factor| factor.to_bits()).collect();
            prop_assert!(known.insert((bits, candidate.first_tokens)));

            prop_assert!(search.planned_evaluations() <= planned);
            planned = search.planned_evaluations();
            search.tell(distance(&wanted, &candidate)).unwrap();
        }
        prop_assert!(search.evaluations() <= planned);
        prop_assert_eq!(search.evaluations(), search.planned_evaluations());
        prop_assert_eq!(known.len(), search.evaluations());
    }
}
