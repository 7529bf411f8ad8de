//! Candidates as points of the space in which CMA-ES moves, and back.

use super::candidate::Candidate;
use super::space::Space;

/// A step of the attention factor's coordinate changes its logarithm by a tenth of what it changes an increment's: it
/// scales every logit, and a few percent matter.
const ATTENTION_SCALE: f64 = 0.1;
/// Attention factors are multiples of this, as in LongRoPE2's released search.
const ATTENTION_STEPS: f64 = 10_000.0;

/// A coordinate for each pair: the logarithm of the increment from `log lambda_{i-1}` to `log lambda_i`, where
/// `lambda_{-1}` is the minimum. So every point stands for non-decreasing factors. Where the attention factor is searched
/// there is one coordinate more, the logarithm of its quotient with the start, in units of [`ATTENTION_SCALE`].
#[derive(Debug, Clone)]
pub(super) struct Coding {
    /// The attention factor at which its coordinate is 0.
    pub(super) attention_start: Option<f64>,
}

impl Coding {
    /// The point of a candidate, or near it.
    ///
    /// The logarithm of an increment of zero (of which YaRN has many) is no point. It becomes that of the smallest
    /// increment that the grid can show at the minimum: a smaller one would have to grow by many standard deviations before
    /// it changes a factor at all, a larger one would be another seed. The increments are then scaled to their former
    /// sum, so that the last factor stays.
    pub(super) fn encode(&self, space: &Space, candidate: &Candidate) -> Vec<f64> {
        let floor = libm::log1p(space.step / space.minimum);
        let mut increments = Vec::with_capacity(space.pairs);
        let mut last = libm::log(space.minimum);
        for &factor in &candidate.factors {
            let log = libm::log(factor);
            increments.push((log - last).max(0.0));
            last = log;
        }
        let sum: f64 = increments.iter().sum();
        let raised = || increments.iter().map(|increment| increment.max(floor));
        // Where nearly all are raised, as at a scale of 1, the sum has to grow.
        let scale = (sum / raised().sum::<f64>()).max(0.5);
        let mut point: Vec<f64> = raised().map(|increment| libm::log(increment * scale)).collect();
        if let Some(start) = self.attention_start {
            let found = candidate.attention_factor.unwrap_or(start);
            point.push(libm::log(found / start) / ATTENTION_SCALE);
        }
        point
    }

    /// The candidate of a point: its factors on the grid and within the bounds, one above the maximum at the maximum.
    pub(super) fn decode(&self, space: &Space, point: &[f64], first_tokens: u64) -> Candidate {
        let mut log = libm::log(space.minimum);
        let factors = point[..space.pairs].iter().map(|&coordinate| {
            log += libm::exp(coordinate);
            space.nearest(libm::exp(log))
        });
        let factors = factors.collect();
        let attention_factor = self.attention_start.zip(point.get(space.pairs)).map(|(start, coordinate)| {
            let value = start * libm::exp(coordinate * ATTENTION_SCALE);
            let (low, high) = space.attention_factor.unwrap_or((value, value));
            ((value * ATTENTION_STEPS).round() / ATTENTION_STEPS).clamp(low, high)
        });
        Candidate { factors, first_tokens, attention_factor }
    }
}

#[cfg(test)]
mod tests {
    use super::super::optimiser::CmaEs;
    use super::*;

    fn space(scale: f64, pairs: usize, attention_factor: Option<f64>) -> Space {
        Space::new(&CmaEs { attention_factor, ..CmaEs::default() }.into(), scale, pairs).unwrap()
    }

    fn candidate(factors: &[f64]) -> Candidate {
        Candidate { factors: factors.to_vec(), first_tokens: 4, attention_factor: None }
    }

    #[test]
    fn factors_that_rise_everywhere_come_back_to_the_grid_point() {
        let (coding, space) = (Coding { attention_start: None }, space(8.0, 5, None));
        let factors = [1.05, 1.5, 2.0, 7.5, 9.25];
        let point = coding.encode(&space, &candidate(&factors));
        assert!((point[1] - (1.5f64 / 1.05).ln().ln()).abs() < 1e-12);
        assert_eq!(coding.decode(&space, &point, 4), candidate(&factors));
    }

    #[test]
    fn increments_of_zero_become_small_ones_and_the_last_factor_stays() {
        let (coding, space) = (Coding { attention_start: None }, space(8.0, 6, None));
        let point = coding.encode(&space, &candidate(&[1.0, 1.0, 1.0, 4.0, 8.0, 8.0]));
        assert!(point.iter().all(|coordinate| coordinate.is_finite()));
        let decoded = coding.decode(&space, &point, 4).factors;
        assert_eq!(decoded[..3], [1.01, 1.02, 1.03]);
        assert_eq!(decoded[5], 8.0);
        assert!((decoded[3] - 4.0).abs() < 0.05 && decoded[4] < 8.0, "{decoded:?}");
    }

    #[test]
    fn points_far_out_stay_within_the_bounds() {
        let coding = Coding { attention_start: Some(1.2) };
        let space = space(8.0, 4, Some(1.2));
        for (coordinate, expected) in [(-50.0, 1.0), (50.0, 10.0), (1e9, 10.0), (f64::NEG_INFINITY, 1.0)] {
            let found = coding.decode(&space, &[coordinate; 5], 0);
            assert_eq!(found.factors, [expected; 4]);
            space.check(&found, "found").unwrap();
        }
    }

    #[test]
    fn the_attention_factor_has_the_last_coordinate() {
        let coding = Coding { attention_start: Some(1.25) };
        let space = space(4.0, 2, Some(1.25));
        let seed = candidate(&[1.5, 4.0]);
        let mut point = coding.encode(&space, &seed);
        assert_eq!((point.len(), point[2]), (3, 0.0));
        assert_eq!(coding.decode(&space, &point, 4).attention_factor, Some(1.25));
        point[2] = 1.0;
        // 1.25 exp(0.1) = 1.38146
        assert_eq!(coding.decode(&space, &point, 4).attention_factor, Some(1.3815));
        let again = coding.encode(&space, &Candidate { attention_factor: Some(1.3815), ..seed });
        assert!((again[2] - 1.0).abs() < 1e-3);
    }
}
