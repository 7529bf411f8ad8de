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

/// A step of a factor's own coordinate, where factors may decrease, changes its logarithm by so much.
const FREE_SCALE: f64 = 0.2;

/// The coordinates, so that every point stands for factors within the bounds, non-decreasing where they have to be:
///
/// - For each pair, the logarithm of its share in the whole way from the logarithm of the minimum to that of the last
///   factor: its increment is that share, of all shares' sum. One that grows takes from all others. Where factors may
///   decrease, the logarithm of the factor, in units of [`FREE_SCALE`].
/// - The logarithm of the whole, less that of the start, in units of [`WHOLE_SCALE`]; not where factors may decrease.
/// - Where the attention factor is searched, its logarithm, less that of the start, in units of [`ATTENTION_SCALE`].
#[derive(Debug, Clone)]
pub(super) struct Coding {
    /// The whole way of the start; `None` where factors may decrease.
    whole: Option<f64>,
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
        let (whole, mut point) = match space.monotone {
            true => {
                let (whole, point) = increments(space, &start.factors);
                (Some(whole), point)
            }
            false => (None, start.factors.iter().map(|&factor| libm::log(factor) / FREE_SCALE).collect()),
        };
        let attention_factor = attention_factor.map(|searched| start.attention_factor.unwrap_or(searched));
        point.extend(attention_factor.map(|_| 0.0));
        (Self { whole, attention_factor }, point)
    }

    /// The candidate of a point, its factors on the grid.
    pub(super) fn decode(&self, space: &Space, point: &[f64], first_tokens: u64) -> Candidate {
        let (coordinates, others) = point.split_at(space.pairs);
        let mut others = others.iter();
        let mut scaled = |scale: f64| libm::exp(others.next().copied().unwrap_or(0.0) * scale);
        let factors = match self.whole {
            Some(whole) => {
                let room = libm::log(space.maximum / space.minimum);
                factors(space, coordinates, (whole * scaled(WHOLE_SCALE)).min(room))
            }
            None => coordinates.iter().map(|x| space.nearest(libm::exp(x * FREE_SCALE))).collect(),
        };
        let attention_factor =
            self.attention_factor.zip(space.attention_factor).map(|(start, (low, high))| {
                let value = start * scaled(ATTENTION_SCALE);
                ((value * ATTENTION_STEPS).round() / ATTENTION_STEPS).clamp(low, high)
            });
        Candidate { factors, first_tokens, attention_factor }
    }
}

/// The whole way of non-decreasing factors, and their coordinates with that of the whole.
fn increments(space: &Space, factors: &[f64]) -> (f64, Vec<f64>) {
    let floor = libm::log1p(space.step / space.minimum);
    let mut last = libm::log(space.minimum);
    let increments = factors.iter().map(|&factor| {
        let log = libm::log(factor);
        let increment = log - last;
        last = log;
        libm::log(increment.max(floor))
    });
    let mut point: Vec<f64> = increments.collect();
    // At a scale of 1 there is no way to go; a step is one.
    let whole = (last - libm::log(space.minimum)).max(floor);
    point.push(0.0);
    (whole, point)
}

/// The factors whose increments are these shares of the `whole`.
fn factors(space: &Space, coordinates: &[f64], whole: f64) -> Vec<f64> {
    // Less the largest, so that no exponential overflows.
    let largest = coordinates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = coordinates.iter().map(|coordinate| libm::exp(coordinate - largest)).collect();
    let sum: f64 = shares.iter().sum();
    let mut gone = 0.0;
    let factors = shares.iter().map(|share| {
        gone += share;
        space.nearest(space.minimum * libm::exp(whole * (gone / sum)))
    });
    factors.collect()
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

    #[test]
    fn factors_that_may_decrease_have_a_coordinate_each() {
        let settings = CmaEs { monotone: false, attention_factor: Some(1.25), ..CmaEs::default() };
        let space = Space::new(&settings.into(), 8.0, 3).unwrap();
        let start = candidate(&[2.0, 1.5, 9.0]);
        let (coding, mut point) = Coding::around(&space, &start, Some(1.25));
        assert_eq!(point.len(), 4);
        assert_eq!(coding.decode(&space, &point, 4).factors, start.factors);
        point[0] += 1.0;
        point[3] = 1.0;
        // 2 exp(0.2) = 2.4428, 1.25 exp(0.1) = 1.38146
        let found = coding.decode(&space, &point, 4);
        assert_eq!((found.factors, found.attention_factor), (vec![2.44, 1.5, 9.0], Some(1.3815)));
        for coordinates in [[50.0; 4], [-50.0; 4], [1e9, -1e9, 0.0, 1e9]] {
            space.check(&coding.decode(&space, &coordinates, 4), "found").unwrap_err();
            space.check(&coding.decode(&space, &coordinates, 0), "found").unwrap();
        }
    }
}
