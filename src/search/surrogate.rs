//! A model of the objective by what was measured: it ranks samples before any of them is evaluated.

use super::candidate::{Candidate, Evaluation, rank};
use super::gaussian_process::GaussianProcess;

/// A model of fewer evaluations would rank by little more than chance.
const MINIMUM_POINTS: usize = 10;
/// The model is of so many of the newest evaluations at the most: its cost grows with the cube of their number.
const MAXIMUM_POINTS: usize = 256;
/// Values count as no worse than this, where the best is 0 and the median 1. The seeds differ by so much more than samples do
/// that a model of the whole range would see nothing else.
const WORST: f64 = 3.0;

/// Differences of the logarithm of a factor, of that of the attention factor, and of that of one more than the number of first tokens
/// that are one unit of distance.
const FACTOR_SCALE: f64 = 0.5;
const ATTENTION_SCALE: f64 = 0.1;
const FIRST_TOKENS_SCALE: f64 = 1.0;

/// A Gaussian process through the finite values, over the logarithms of the factors.
///
/// Not over the coordinates in which CMA-ES moves. There a share that is too small to see is far from one that is smaller
/// still, and the shares of all pairs before it matter to a factor as much as its own. On the bundled model the ranks that the process
/// gives to a generation correlate with the true ones by 0.7 over logarithms of factors, by 0.4 over coordinates.
///
/// Values that are estimates, as those of candidates that an objective gave up early, take part: they are as wrong as noise is,
/// and without them the model would not know where it is bad.
#[derive(Debug)]
pub(super) struct Surrogate {
    process: GaussianProcess,
    /// Of candidates that have none.
    attention_factor: f64,
}

impl Surrogate {
    /// The model of `history`. `attention_factor`: what candidates without one have, where it is searched. `None` where too few values are finite,
    /// or half of them are equally good.
    pub(super) fn fit(history: &[Evaluation], attention_factor: Option<f64>) -> Option<Self> {
        let finite: Vec<&Evaluation> =
            history.iter().filter(|evaluation| evaluation.value.is_finite()).collect();
        let newest = &finite[finite.len().saturating_sub(MAXIMUM_POINTS)..];
        if newest.len() < MINIMUM_POINTS {
            return None;
        }
        let mut sorted: Vec<f64> = newest.iter().map(|evaluation| evaluation.value).collect();
        sorted.sort_by(|a, b| rank(*a, *b));
        let (best, median) = (sorted[0], sorted[sorted.len() / 2]);
        let spread = median - best;
        if !(spread > 0.0 && spread.is_finite()) {
            return None;
        }
        let values: Vec<f64> =
            newest.iter().map(|evaluation| ((evaluation.value - best) / spread).min(WORST)).collect();
        let attention_factor = attention_factor.unwrap_or(1.0);
        let points = newest.iter().map(|evaluation| point(&evaluation.candidate, attention_factor)).collect();
        Some(Self { process: GaussianProcess::fit(points, &values)?, attention_factor })
    }

    /// What value is to be expected, where the best of the history is 0 and the median 1.
    pub(super) fn predict(&self, candidate: &Candidate) -> f64 {
        self.process.predict(&point(candidate, self.attention_factor))
    }
}

/// Where a candidate is for the model.
fn point(candidate: &Candidate, attention_factor: f64) -> Vec<f64> {
    let factors = candidate.factors.iter().map(|&factor| libm::log(factor) / FACTOR_SCALE);
    let attention_factor = candidate.attention_factor.unwrap_or(attention_factor);
    let attention_factor = libm::log(attention_factor) / ATTENTION_SCALE;
    let first_tokens = libm::log1p(candidate.first_tokens as f64) / FIRST_TOKENS_SCALE;
    factors.chain([attention_factor, first_tokens]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates of one pair, with factors from 1 on, and these values.
    fn history(values: &[f64]) -> Vec<Evaluation> {
        let evaluation = |(i, &value): (usize, &f64)| Evaluation {
            candidate: candidate(1.0 + 0.1 * i as f64, None),
            value,
            iteration: 0,
        };
        values.iter().enumerate().map(evaluation).collect()
    }

    fn candidate(factor: f64, attention_factor: Option<f64>) -> Candidate {
        Candidate { factors: vec![factor], first_tokens: 0, attention_factor }
    }

    /// A bowl around a factor of 2.
    fn bowl(count: usize) -> Vec<f64> {
        (0..count).map(|i| (0.1 * i as f64 - 1.0).powi(2)).collect()
    }

    #[test]
    fn what_is_like_good_candidates_comes_before_what_is_like_bad_ones() {
        let model = Surrogate::fit(&history(&bowl(20)), None).unwrap();
        let predicted = [2.0, 1.75, 1.55, 1.35, 1.15].map(|factor| model.predict(&candidate(factor, None)));
        assert!(predicted.is_sorted(), "{predicted:?}");
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let mut with = history(&bowl(20));
        for (i, value) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
            let candidate = candidate(1.95 + 0.02 * i as f64, None);
            with.insert(7 * i, Evaluation { candidate, value, iteration: 0 });
        }
        let (with, without) = (Surrogate::fit(&with, None), Surrogate::fit(&history(&bowl(20)), None));
        let at = candidate(1.33, None);
        assert_eq!(with.unwrap().predict(&at), without.unwrap().predict(&at));
    }

    #[test]
    fn one_terrible_value_does_not_hide_the_rest() {
        let mut values = bowl(20);
        values[0] = f64::MAX;
        let model = Surrogate::fit(&history(&values), None).unwrap();
        let predicted = [2.0, 1.75, 1.55, 1.35].map(|factor| model.predict(&candidate(factor, None)));
        assert!(predicted.is_sorted(), "{predicted:?}");
    }

    #[test]
    fn where_there_is_nothing_to_tell_there_is_no_model() {
        assert!(Surrogate::fit(&history(&bowl(MINIMUM_POINTS - 1)), None).is_none());
        assert!(Surrogate::fit(&history(&bowl(MINIMUM_POINTS)), None).is_some());
        assert!(Surrogate::fit(&history(&[2.0; 20]), None).is_none());
        assert!(Surrogate::fit(&history(&[f64::NAN; 20]), None).is_none());
        // A range that no f64 holds.
        let huge: Vec<f64> = (0..20).map(|i| if i == 0 { -f64::MAX } else { f64::MAX }).collect();
        assert!(Surrogate::fit(&history(&huge), None).is_none());
    }

    #[test]
    fn a_candidate_without_an_attention_factor_is_where_the_rule_s_is() {
        let model = Surrogate::fit(&history(&bowl(20)), Some(1.2)).unwrap();
        assert_eq!(model.predict(&candidate(1.5, None)), model.predict(&candidate(1.5, Some(1.2))));
        assert_ne!(model.predict(&candidate(1.5, None)), model.predict(&candidate(1.5, Some(1.1))));
    }

    #[test]
    fn only_the_newest_evaluations_count() {
        let mut values = bowl(MAXIMUM_POINTS);
        let newest = Surrogate::fit(&history(&values)[1..], None).unwrap();
        values[0] = -5.0;
        let mut longer = history(&values);
        longer.push(Evaluation { candidate: candidate(90.0, None), value: 3.0, iteration: 1 });
        let mut without_oldest = longer[1..].to_vec();
        let all = Surrogate::fit(&longer, None).unwrap();
        let rest = Surrogate::fit(&without_oldest, None).unwrap();
        let at = candidate(1.05, None);
        assert_eq!(all.predict(&at), rest.predict(&at));
        without_oldest.pop();
        assert_eq!(Surrogate::fit(&without_oldest, None).unwrap().predict(&at), newest.predict(&at));
    }
}
