//! Candidates as points of the space in which CMA-ES moves, and back.

use super::candidate::Candidate;
use super::space::Space;

/// A step of the whole's coordinate changes the logarithm of the whole by a twentieth of what it changes a share's, which
/// is a tenth of the last factor where that is 8: what the last factor should be is known well, the way to it is not.
const WHOLE_SCALE: f64 = 0.05;
/// The same for the attention factor, which scales every logit: a few percent matter.
const ATTENTION_SCALE: f64 = 0.1;
/// Attention factors are multiples of this, as in LongRoPE2's released search.
const ATTENTION_STEPS: f64 = 10_000.0;

/// The coordinates, so that every point stands for non-decreasing factors within the bounds:
///
/// - For each pair, the logarithm of its share in the whole way from the logarithm of the minimum to that of the last
///   factor: its increment is that share, of all shares' sum. One that grows takes from all others.
/// - The logarithm of the whole, less that of the start, in units of [`WHOLE_SCALE`].
/// - Where the attention factor is searched, its logarithm, less that of the start, in units of [`ATTENTION_SCALE`].
#[derive(Debug, Clone)]
pub(super) struct Coding {
    whole: f64,
    attention_factor: Option<f64>,
}

impl Coding {
    /// The coding of a search that begins at `start`, and the point of `start`, or near it.
    ///
    /// The logarithm of an increment of zero (of which YaRN has many) is no point. It becomes that of the smallest
    /// increment that the grid can show at the minimum: a smaller one would have to grow by many standard deviations before
    /// it changes a factor at all, a larger one would be another start. The last factor stays.
    pub(super) fn around(
        space: &Space,
        start: &Candidate,
        attention_factor: Option<f64>,
    ) -> (Self, Vec<f64>) {
        let floor = libm::log1p(space.step / space.minimum);
        let mut last = libm::log(space.minimum);
        let increments = start.factors.iter().map(|&factor| {
            let log = libm::log(factor);
            let increment = log - last;
            last = log;
            libm::log(increment.max(floor))
        });
        let mut point: Vec<f64> = increments.collect();
        // At a scale of 1 there is no way to go; a step is one.
        let whole = (last - libm::log(space.minimum)).max(floor);
        point.push(0.0);
        let attention_factor = attention_factor.map(|searched| start.attention_factor.unwrap_or(searched));
        point.extend(attention_factor.map(|_| 0.0));
        (Self { whole, attention_factor }, point)
    }

    /// The candidate of a point, its factors on the grid.
    pub(super) fn decode(&self, space: &Space, point: &[f64], first_tokens: u64) -> Candidate {
        let (coordinates, others) = point.split_at(space.pairs);
        // Less the largest, so that no exponential overflows.
        let largest = coordinates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = coordinates.iter().map(|coordinate| libm::exp(coordinate - largest)).collect();
        let sum: f64 = shares.iter().sum();
        let scaled = |index: usize, scale: f64| libm::exp(others.get(index).copied().unwrap_or(0.0) * scale);
        let room = libm::log(space.maximum / space.minimum);
        let whole = (self.whole * scaled(0, WHOLE_SCALE)).min(room);
        let mut gone = 0.0;
        let factors = shares.iter().map(|share| {
            gone += share;
            space.nearest(space.minimum * libm::exp(whole * (gone / sum)))
        });
        let factors = factors.collect();
        let attention_factor =
            self.attention_factor.zip(space.attention_factor).map(|(start, (low, high))| {
                let value = start * scaled(1, ATTENTION_SCALE);
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
    fn factors_that_rise_everywhere_come_back() {
        let space = space(8.0, 5, None);
        let factors = [1.05, 1.5, 2.0, 7.5, 9.25];
        let (coding, point) = Coding::around(&space, &candidate(&factors), None);
        assert_eq!(point.len(), 6);
        assert!((point[1] - (1.5f64 / 1.05).ln().ln()).abs() < 1e-12);
        assert_eq!(coding.decode(&space, &point, 4), candidate(&factors));
    }

    #[test]
    fn increments_of_zero_become_small_ones_and_the_last_factor_stays() {
        let space = space(8.0, 6, None);
        let (coding, point) = Coding::around(&space, &candidate(&[1.0, 1.0, 1.0, 4.0, 8.0, 8.0]), None);
        assert!(point.iter().all(|coordinate| coordinate.is_finite()));
        let decoded = coding.decode(&space, &point, 4).factors;
        assert_eq!(decoded[..3], [1.01, 1.02, 1.03]);
        assert_eq!(decoded[5], 8.0);
        assert!((decoded[3] - 4.0).abs() < 0.1 && decoded[4] < 8.0, "{decoded:?}");
    }

    #[test]
    fn a_share_that_grows_leaves_the_last_factor_and_the_whole_moves_it() {
        let space = space(8.0, 3, None);
        let (coding, mut point) = Coding::around(&space, &candidate(&[2.0, 4.0, 8.0]), None);
        point[0] += 2f64.ln();
        // Two of four shares of log 8.
        assert_eq!(coding.decode(&space, &point, 4).factors, [2.83, 4.76, 8.0]);
        point[3] = 1.0;
        // 8 to the power exp(0.05)
        assert_eq!(coding.decode(&space, &point, 4).factors[2], 8.9);
    }

    #[test]
    fn points_far_out_stay_within_the_bounds() {
        let space = space(8.0, 4, Some(1.2));
        let (coding, _) = Coding::around(&space, &candidate(&[1.0, 2.0, 4.0, 8.0]), Some(1.2));
        for coordinates in [[50.0; 6], [-50.0; 6], [1e9, -1e9, 0.0, 1e9, 1e9, -1e9]] {
            let found = coding.decode(&space, &coordinates, 0);
            space.check(&found, "found").unwrap();
            assert!(found.factors.is_sorted(), "{found:?}");
        }
        assert_eq!(coding.decode(&space, &[50.0; 6], 0).factors[3], 10.0);
    }

    #[test]
    fn the_attention_factor_has_the_last_coordinate() {
        let space = space(4.0, 2, Some(1.25));
        let (coding, mut point) = Coding::around(&space, &candidate(&[1.5, 4.0]), Some(1.25));
        assert_eq!((point.len(), point[3]), (4, 0.0));
        assert_eq!(coding.decode(&space, &point, 4).attention_factor, Some(1.25));
        point[3] = 1.0;
        // 1.25 exp(0.1) = 1.38146
        assert_eq!(coding.decode(&space, &point, 4).attention_factor, Some(1.3815));
    }

    #[test]
    fn where_there_is_no_way_to_go_a_step_is_one() {
        let space = space(1.0, 3, None);
        let (coding, mut point) = Coding::around(&space, &candidate(&[1.0; 3]), None);
        assert_eq!(coding.decode(&space, &point, 4).factors, [1.0, 1.01, 1.01]);
        point[3] = 100.0;
        assert_eq!(coding.decode(&space, &point, 4).factors[2], 1.25);
    }
}
