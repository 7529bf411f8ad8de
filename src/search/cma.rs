//! The separable CMA-ES itself: a normal distribution with a diagonal covariance that moves to where samples are good.

use rand::{Rng, RngExt};

/// A mean further out than this is as good as infinitely far: exponentials of it vanish or saturate every bound.
const FARTHEST: f64 = 50.0;
/// Bounds of the step size and of the variances, so that no number leaves what f64 holds.
const SMALLEST: f64 = 1e-12;
const LARGEST: f64 = 1e6;

/// The distribution, and what its adaptation remembers. Names and constants are those of Hansen's tutorial (arXiv
/// 1604.00772, Table 1, without negative weights), the learning rates of the covariance larger by `(n + 2) / 3`, as the diagonal has fewer numbers
/// to learn (Ros & Hansen, PPSN 2008).
#[derive(Debug, Clone)]
pub(super) struct SeparableCma {
    mean: Vec<f64>,
    /// The step size (sigma).
    step_size: f64,
    /// The diagonal of the covariance matrix (C).
    variances: Vec<f64>,
    /// The evolution path of the step size (p_sigma).
    step_path: Vec<f64>,
    /// The evolution path of the covariance (p_c).
    covariance_path: Vec<f64>,
    generation: i32,
    constants: Constants,
}

#[derive(Debug, Clone)]
struct Constants {
    /// Samples of a generation (lambda).
    samples: usize,
    /// Recombination weights of the best samples, which sum to 1.
    weights: Vec<f64>,
    /// Variance-effective number of the selected samples (mu_eff).
    effective: f64,
    c_sigma: f64,
    d_sigma: f64,
    c_c: f64,
    c_1: f64,
    c_mu: f64,
    /// The expected length of a standard normal vector (chi_n).
    expected_length: f64,
}

impl Constants {
    /// Those for so many dimensions, and for so many samples rather than the usual number if they are given.
    fn new(dimensions: usize, samples: Option<usize>) -> Self {
        let n = dimensions as f64;
        let samples = samples.unwrap_or(4 + (3.0 * libm::log(n)) as usize);
        let raw: Vec<f64> = (1..=samples / 2)
            .map(|rank| libm::log((samples as f64 + 1.0) / 2.0) - libm::log(rank as f64))
            .collect();
        let sum: f64 = raw.iter().sum();
        let weights: Vec<f64> = raw.iter().map(|weight| weight / sum).collect();
        let effective = 1.0 / weights.iter().map(|weight| weight * weight).sum::<f64>();
        let c_sigma = (effective + 2.0) / (n + effective + 5.0);
        let faster = (n + 2.0) / 3.0;
        let c_1 = (faster * 2.0 / ((n + 1.3) * (n + 1.3) + effective)).min(1.0);
        let c_mu =
            faster * 2.0 * (0.25 + effective + 1.0 / effective - 2.0) / ((n + 2.0) * (n + 2.0) + effective);
        Self {
            samples,
            effective,
            c_sigma,
            d_sigma: 1.0 + 2.0 * (((effective - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma,
            c_c: (4.0 + effective / n) / (n + 4.0 + 2.0 * effective / n),
            c_1,
            c_mu: c_mu.min(1.0 - c_1),
            expected_length: n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n)),
            weights,
        }
    }
}

impl SeparableCma {
    /// A distribution around `mean` (of at least one dimension), whose standard deviation in each dimension is
    /// `step_size * deviations`.
    pub(super) fn new(mean: Vec<f64>, deviations: &[f64], step_size: f64) -> Self {
        let constants = Constants::new(mean.len(), None);
        Self {
            step_size,
            variances: deviations.iter().map(|deviation| deviation * deviation).collect(),
            step_path: vec![0.0; mean.len()],
            covariance_path: vec![0.0; mean.len()],
            generation: 0,
            constants,
            mean,
        }
    }

    /// The same with so many samples of a generation, of which there are at least two.
    pub(super) fn with_samples(self, samples: usize) -> Self {
        Self { constants: Constants::new(self.mean.len(), Some(samples)), ..self }
    }

    /// Samples of a generation.
    pub(super) fn samples(&self) -> usize {
        self.constants.samples
    }

    pub(super) fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// A sample of the distribution.
    pub(super) fn sample(&self, rng: &mut impl Rng) -> Vec<f64> {
        let point = self.mean.iter().zip(&self.variances);
        point.map(|(mean, variance)| mean + self.step_size * variance.sqrt() * normal(rng)).collect()
    }

    /// Moves the distribution towards the best of its samples, given best first. Fewer than half a generation tell too
    /// little, and nothing moves.
    pub(super) fn update(&mut self, ranked: &[&[f64]]) {
        let constants = &self.constants;
        if ranked.len() < constants.weights.len() {
            return;
        }
        let generation = self.generation + 1;
        let c_sigma = constants.c_sigma;
        let selected = || constants.weights.iter().zip(ranked);
        // The mean step of the selected, in units of the step size (y_w).
        let step: Vec<f64> = (0..self.mean.len())
            .map(|i| {
                let sum: f64 = selected().map(|(weight, point)| weight * (point[i] - self.mean[i])).sum();
                sum / self.step_size
            })
            .collect();

        let keep = (c_sigma * (2.0 - c_sigma) * constants.effective).sqrt();
        let mut squares = 0.0;
        for ((path, step), variance) in self.step_path.iter_mut().zip(&step).zip(&self.variances) {
            *path = (1.0 - c_sigma) * *path + keep * step / variance.sqrt();
            squares += *path * *path;
        }
        let length = squares.sqrt();
        // A path that is too long stalls the covariance, so that it does not grow while the step size does.
        let unbiased = length / (1.0 - libm::pow(1.0 - c_sigma, 2.0 * f64::from(generation))).sqrt();
        let n = self.mean.len() as f64;
        let moving = unbiased < (1.4 + 2.0 / (n + 1.0)) * constants.expected_length;
        let (c_c, c_1, c_mu) = (constants.c_c, constants.c_1, constants.c_mu);
        let keep = if moving { (c_c * (2.0 - c_c) * constants.effective).sqrt() } else { 0.0 };
        let lost = if moving { 0.0 } else { c_c * (2.0 - c_c) };

        for i in 0..self.mean.len() {
            let path = (1.0 - c_c) * self.covariance_path[i] + keep * step[i];
            self.covariance_path[i] = path;
            let rank_mu: f64 = selected()
                .map(|(weight, point)| weight * ((point[i] - self.mean[i]) / self.step_size).powi(2))
                .sum();
            let old = self.variances[i];
            let new = (1.0 - c_1 - c_mu + c_1 * lost) * old + c_1 * path * path + c_mu * rank_mu;
            self.variances[i] = new.clamp(SMALLEST, LARGEST);
        }
        for (mean, step) in self.mean.iter_mut().zip(&step) {
            *mean = (*mean + self.step_size * step).clamp(-FARTHEST, FARTHEST);
        }
        let growth = libm::exp(c_sigma / constants.d_sigma * (length / constants.expected_length - 1.0));
        self.step_size = (self.step_size * growth).clamp(SMALLEST, LARGEST);
        self.generation = generation;
    }
}

/// A standard normal number, by the polar method (Marsaglia). Its logarithm is the same on every platform.
fn normal(rng: &mut impl Rng) -> f64 {
    loop {
        let (u, v) = (2.0 * rng.random::<f64>() - 1.0, 2.0 * rng.random::<f64>() - 1.0);
        let square = u * u + v * v;
        if square > 0.0 && square < 1.0 {
            return u * (-2.0 * libm::log(square) / square).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Minimises `objective` from `start` with the deviation 0.5, and gives the values of the means, one a generation.
    fn minimise(start: &[f64], generations: usize, seed: u64, objective: fn(&[f64]) -> f64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut cma = SeparableCma::new(start.to_vec(), &vec![1.0; start.len()], 0.5);
        let generation = |_| {
            let mut points: Vec<Vec<f64>> = (0..cma.samples()).map(|_| cma.sample(&mut rng)).collect();
            points.sort_by(|a, b| objective(a).total_cmp(&objective(b)));
            cma.update(&points.iter().map(Vec::as_slice).collect::<Vec<_>>());
            objective(cma.mean())
        };
        (0..generations).map(generation).collect()
    }

    fn sphere(point: &[f64]) -> f64 {
        point.iter().map(|x| x * x).sum()
    }

    /// An ellipsoid along the axes whose longest is a thousand times its shortest.
    fn ellipsoid(point: &[f64]) -> f64 {
        let last = (point.len() - 1) as f64;
        point.iter().enumerate().map(|(i, x)| 10f64.powf(6.0 * i as f64 / last) * x * x).sum()
    }

    #[test]
    fn the_constants_are_those_of_the_tutorial() {
        let constants = Constants::new(10, None);
        assert_eq!((constants.samples, constants.weights.len()), (10, 5));
        assert!((constants.weights.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        assert!(constants.weights.is_sorted_by(|a, b| a > b) && constants.weights[4] > 0.0);
        // As computed by hand from Table 1 for n = 10.
        assert!((constants.effective - 3.167_299).abs() < 1e-5, "{constants:?}");
        assert!((constants.c_sigma - 0.284_428).abs() < 1e-5, "{constants:?}");
        assert!((constants.c_c - 0.294_990).abs() < 1e-5, "{constants:?}");
        assert!((constants.c_1 - 4.0 * 0.015_283).abs() < 1e-4, "{constants:?}");
        assert!((constants.c_mu - 4.0 * 0.023_552).abs() < 1e-4, "{constants:?}");
        assert_eq!(Constants::new(1, None).samples, 4);
    }

    #[test]
    fn a_sphere_is_descended_at_a_steady_rate() {
        for seed in 0..5 {
            let means = minimise(&[1.0; 20], 250, seed, sphere);
            assert!(means[249] < 1e-10, "seed {seed}: {}", means[249]);
        }
    }

    #[test]
    fn the_scales_of_an_ellipsoid_are_learnt() {
        for seed in 0..5 {
            let means = minimise(&[1.0; 20], 600, seed, ellipsoid);
            assert!(means[599] < 1e-8, "seed {seed}: {}", means[599]);
        }
    }

    #[test]
    fn more_samples_have_constants_of_their_own() {
        let cma = SeparableCma::new(vec![0.0; 10], &[1.0; 10], 0.5).with_samples(40);
        assert_eq!((cma.samples(), cma.constants.weights.len()), (40, 20));
        assert!((cma.constants.weights.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        // With four times as many the selected tell more, and more is learnt of them.
        let usual = Constants::new(10, None);
        assert!(cma.constants.effective > 3.0 * usual.effective && cma.constants.c_mu > usual.c_mu);
        assert_eq!(Constants::new(10, Some(10)).effective, usual.effective);
    }

    #[test]
    fn one_dimension_is_enough() {
        assert!(minimise(&[3.0], 100, 0, sphere)[99] < 1e-10);
    }

    #[test]
    fn too_few_samples_move_nothing() {
        let mut cma = SeparableCma::new(vec![1.0; 8], &[1.0; 8], 0.5);
        let point = [0.0; 8];
        cma.update(&[point.as_slice(); 4]);
        assert_eq!(cma.mean(), [1.0; 8]);
        cma.update(&[point.as_slice(); 5]);
        assert!(cma.mean().iter().all(|&mean| mean.abs() < 1e-12));
    }

    #[test]
    fn every_number_stays_finite_on_a_slope_without_end() {
        let means = minimise(&[0.0; 3], 5000, 0, |point| -point.iter().sum::<f64>());
        assert!(means.iter().all(|mean| mean.is_finite()));
        let farthest = means.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((-3.0 * FARTHEST..-2.0 * FARTHEST).contains(&farthest), "{farthest}");
    }

    #[test]
    fn samples_have_the_mean_and_the_deviation_they_should_have() {
        let cma = SeparableCma::new(vec![2.0, -1.0], &[1.0, 0.1], 0.5);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let samples: Vec<Vec<f64>> = (0..40_000).map(|_| cma.sample(&mut rng)).collect();
        for (i, (mean, deviation)) in [(2.0, 0.5), (-1.0, 0.05)].into_iter().enumerate() {
            let found = samples.iter().map(|point| point[i]).sum::<f64>() / 40_000.0;
            let squares = samples.iter().map(|point| (point[i] - found).powi(2)).sum::<f64>();
            assert!((found - mean).abs() < 0.02 * deviation, "{found}");
            assert!(((squares / 40_000.0).sqrt() / deviation - 1.0).abs() < 0.02);
        }
    }
}
