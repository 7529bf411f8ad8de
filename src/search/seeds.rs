//! The individuals that seed the initial population.

use super::candidate::Candidate;
use crate::scaling::{Geometry, rescale};

/// The paper's seeds: position interpolation, NTK-aware and YaRN (arXiv 2402.13753, Algorithm 1 and section 4.1), with
/// every token interpolated. Their factors are exact, not rounded to the grid.
///
pub fn paper_seeds(geometry: &Geometry, scale: f64) -> Vec<Candidate> {
    [
        rescale::linear(geometry, scale),
        rescale::ntk_aware(geometry, scale),
        rescale::yarn(geometry, scale, &rescale::YarnRamp::default()),
    ]
    .into_iter()
    .map(|factors| Candidate {
        factors: without_rounding_dips(factors),
        first_tokens: 0,
        attention_factor: None,
    })
    .collect()
}

/// The seed of the released code: a ramp between YaRN's ends that is linear in the factor, where YaRN's is linear in its
/// reciprocal.
pub fn released_seeds(geometry: &Geometry, scale: f64) -> Vec<Candidate> {
    let interpolation = rescale::YarnRamp::default().interpolation(geometry);
    let factors = interpolation.into_iter().map(|share| scale * share + (1.0 - share)).collect();
    vec![Candidate { factors: without_rounding_dips(factors), first_tokens: 0, attention_factor: None }]
}

/// The methods are non-decreasing from 1 up, but for the last bits of their rounding, which the search would refuse.
fn without_rounding_dips(mut factors: Vec<f64>) -> Vec<f64> {
    let mut largest = 1.0;
    for factor in &mut factors {
        if *factor < largest && *factor > largest * (1.0 - 1e-12) {
            *factor = largest;
        }
        largest = *factor;
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_methods_in_order() {
        let geometry = Geometry::new(128, 128, 1e4, 4096).unwrap();
        let seeds = paper_seeds(&geometry, 8.0);
        assert_eq!(seeds.len(), 3);
        assert_eq!(seeds[0].factors, rescale::linear(&geometry, 8.0));
        assert_eq!(seeds[1].factors, rescale::ntk_aware(&geometry, 8.0));
        assert_eq!(seeds[1].factors[0], 1.0);
        assert_eq!(seeds[1].factors[63], 8.0);
        // LLaMA2: YaRN keeps pairs up to 20 and interpolates pairs from 46 on by the whole scale.
        assert_eq!(seeds[2].factors[..=20], [1.0; 21]);
        assert!(seeds[2].factors[21] > 1.0 && seeds[2].factors[45] < 8.0);
        assert_eq!(seeds[2].factors[46..], [8.0; 18]);
        assert!(seeds.iter().all(|seed| seed.first_tokens == 0));
    }

    #[test]
    fn the_released_seed_is_linear_in_the_factor() {
        let geometry = Geometry::new(128, 128, 1e4, 4096).unwrap();
        let seeds = released_seeds(&geometry, 8.0);
        assert_eq!(seeds.len(), 1);
        let factors = &seeds[0].factors;
        // The ramp from pair 20 to pair 46, as YaRN's.
        assert_eq!((factors[20], factors[46]), (1.0, 8.0));
        assert!((factors[33] - 4.5).abs() < 1e-12 && (factors[22] - factors[21] - 7.0 / 26.0).abs() < 1e-12);
    }

    #[test]
    fn rounding_dips_are_levelled_and_real_ones_kept() {
        let dip = 1.5f64.next_down();
        assert_eq!(without_rounding_dips(vec![1.0f64.next_down(), 1.5, dip, 1.4]), [1.0, 1.5, 1.5, 1.4]);
    }
}
