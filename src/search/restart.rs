//! When the distribution has nothing more to find, and with how many samples another begins.

use super::candidate::Candidate;
use super::cma::SeparableCma;
use super::coding::Coding;
use super::space::Space;

/// Samples of a generation at the most, however often the search began again.
const MAXIMUM_SAMPLES: usize = 1024;

/// Whether a step of one standard deviation along no coordinate leads to another candidate: what NoEffectCoord (Hansen, arXiv
/// 1604.00772, section B.3) asks of floating-point numbers, asked of the grid of the factors.
pub(super) fn has_converged(coding: &Coding, cma: &SeparableCma, space: &Space) -> bool {
    let decode = |point: &[f64]| -> Candidate { coding.decode(space, point, 0) };
    let mut point = cma.mean().to_vec();
    let at_mean = decode(&point);
    (0..point.len()).all(|i| {
        let (mean, deviation) = (point[i], cma.deviation(i));
        let unmoved = [mean - deviation, mean + deviation].into_iter().all(|moved| {
            point[i] = moved;
            decode(&point) == at_mean
        });
        point[i] = mean;
        unmoved
    })
}

/// Twice as many samples as there were (IPOP: Auger & Hansen, CEC 2005); as many where two generations of twice as many
/// exceed the evaluations that are left, so that a distribution is still adapted.
pub(super) fn samples(before: usize, left: usize) -> usize {
    match 2 * before {
        twice if twice <= MAXIMUM_SAMPLES && twice <= left / 2 => twice,
        _ => before,
    }
}

#[cfg(test)]
mod tests {
    use super::super::optimiser::CmaEs;
    use super::*;

    #[test]
    fn a_distribution_has_converged_where_a_deviation_moves_no_factor() {
        let space = Space::new(&CmaEs::default().into(), 8.0, 3).unwrap();
        let start = Candidate { factors: vec![2.0, 4.0, 8.0], first_tokens: 0, attention_factor: None };
        let (coding, mean) = Coding::around(&space, &start, None);
        let with = |deviations: [f64; 4]| {
            has_converged(&coding, &SeparableCma::new(mean.clone(), &deviations, 1.0), &space)
        };
        // A factor of 8 is on the grid of 0.01 to within 0.0006 of its logarithm.
        assert!(with([1e-4; 4]));
        assert!(!with([0.1; 4]));
        for wide in 0..4 {
            let mut deviations = [1e-4; 4];
            deviations[wide] = 0.1;
            assert!(!with(deviations), "{wide}");
        }
    }

    #[test]
    fn samples_double_while_two_generations_are_left() {
        assert_eq!(samples(14, 56), 28);
        assert_eq!(samples(14, 55), 14);
        assert_eq!(samples(14, 0), 14);
        assert_eq!(samples(512, 1_000_000), 1024);
        assert_eq!(samples(1024, 1_000_000), 1024);
    }
}
