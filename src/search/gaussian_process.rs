//! A Gaussian process: what values are likely at points that were not measured, by those that were.

/// Length scales to choose from, as multiples of the median distance between two points.
const LENGTH_SCALES: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 8.0];
/// Variances of the noise to choose from, as shares of that of the process. The smallest keeps the matrix well conditioned.
const NOISES: [f64; 4] = [1e-3, 1e-2, 1e-1, 0.5];

/// Regression by a Gaussian process (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, chapter 2) with a
/// constant mean, the Matérn kernel of smoothness 5/2 and noise. The length scale and the noise are those of a few for which the
/// likelihood is highest; the mean and the variance of the process are the likeliest for them.
///
/// The linear algebra is written out: crates for it choose their instructions by the processor, fused products among them,
/// and so the last bits of their results, on which the order of candidates may depend. Here every sum has its order, and `exp` and
/// `log` are libm's.
#[derive(Debug)]
pub(super) struct GaussianProcess {
    points: Vec<Vec<f64>>,
    length_scale: f64,
    mean: f64,
    /// The inverse of the covariance times what the values have beyond the mean.
    weights: Vec<f64>,
}

impl GaussianProcess {
    /// The process that went through `points`, of one length, with `values`. `None` where they are less than two or all in one place, or
    /// a number is not finite.
    pub(super) fn fit(points: Vec<Vec<f64>>, values: &[f64]) -> Option<Self> {
        let distances: Vec<Vec<f64>> = points
            .iter()
            .enumerate()
            .map(|(i, a)| points[..i].iter().map(|b| distance(a, b)).collect())
            .collect();
        let mut sorted: Vec<f64> = distances.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median =
            sorted.get(sorted.len() / 2).copied().filter(|median| *median > 0.0 && median.is_finite())?;
        let mut best: Option<(f64, Fit)> = None;
        for length_scale in LENGTH_SCALES.map(|multiple| multiple * median) {
            let kernel: Vec<Vec<f64>> =
                distances.iter().map(|row| row.iter().map(|d| matern(d / length_scale)).collect()).collect();
            for noise in NOISES {
                let Some(fit) = Fit::new(&kernel, noise, length_scale, values) else { continue };
                if best.as_ref().is_none_or(|(likelihood, _)| fit.likelihood > *likelihood) {
                    best = Some((fit.likelihood, fit));
                }
            }
        }
        let (_, Fit { length_scale, mean, weights, .. }) = best?;
        Some(Self { points, length_scale, mean, weights })
    }

    /// The expected value at `point`.
    pub(super) fn predict(&self, point: &[f64]) -> f64 {
        let sum = self.points.iter().zip(&self.weights);
        self.mean
            + sum
                .map(|(other, weight)| weight * matern(distance(point, other) / self.length_scale))
                .sum::<f64>()
    }
}

/// What the likeliest mean and variance are for one choice of the length scale and the noise.
#[derive(Debug)]
struct Fit {
    /// The logarithm of the likelihood, but for a constant.
    likelihood: f64,
    length_scale: f64,
    mean: f64,
    weights: Vec<f64>,
}

impl Fit {
    /// By the kernel below its diagonal. `None` where a number is not finite.
    fn new(kernel: &[Vec<f64>], noise: f64, length_scale: f64, values: &[f64]) -> Option<Self> {
        let factor = cholesky(kernel, 1.0 + noise)?;
        let ones = solve(&factor, vec![1.0; values.len()]);
        let solved = solve(&factor, values.to_vec());
        let mean = solved.iter().sum::<f64>() / ones.iter().sum::<f64>();
        let weights: Vec<f64> = solved.iter().zip(&ones).map(|(value, one)| value - mean * one).collect();
        let count = values.len() as f64;
        let squares: f64 = weights.iter().zip(values).map(|(weight, value)| weight * (value - mean)).sum();
        let determinant: f64 =
            factor.iter().filter_map(|row| row.last()).map(|pivot| libm::log(*pivot)).sum();
        let likelihood = -0.5 * count * libm::log(squares / count) - determinant;
        likelihood.is_finite().then_some(Self { likelihood, length_scale, mean, weights })
    }
}

/// The Matérn kernel of smoothness 5/2 at a distance in units of its length scale.
fn matern(distance: f64) -> f64 {
    let scaled = 5f64.sqrt() * distance;
    (1.0 + scaled + scaled * scaled / 3.0) * libm::exp(-scaled)
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// The lower triangle whose product with its transpose is the symmetric matrix that has these rows below its diagonal. `None` where it is not
/// positive definite.
fn cholesky(below: &[Vec<f64>], diagonal: f64) -> Option<Vec<Vec<f64>>> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(below.len());
    for entries in below {
        let mut row: Vec<f64> = Vec::with_capacity(entries.len() + 1);
        for (entry, other) in entries.iter().zip(&rows) {
            let (pivot, others) = other.split_last()?;
            row.push((entry - dot(&row, others)) / pivot);
        }
        let square = diagonal - dot(&row, &row);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        row.push(square.sqrt());
        rows.push(row);
    }
    Some(rows)
}

/// The solution of the system whose matrix has this Cholesky factor.
fn solve(factor: &[Vec<f64>], mut right: Vec<f64>) -> Vec<f64> {
    for (i, row) in factor.iter().enumerate() {
        right[i] = (right[i] - dot(&row[..i], &right[..i])) / row[i];
    }
    for (i, row) in factor.iter().enumerate().rev() {
        right[i] /= row[i];
        let solved = right[i];
        for (value, entry) in right.iter_mut().zip(&row[..i]) {
            *value -= entry * solved;
        }
    }
    right
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The grid of `side` by `side` points of the unit square, and what `function` is there.
    fn grid(side: usize, function: fn(f64, f64) -> f64) -> (Vec<Vec<f64>>, Vec<f64>) {
        let at = |i: usize| i as f64 / (side - 1) as f64;
        let points: Vec<Vec<f64>> = (0..side * side).map(|i| vec![at(i / side), at(i % side)]).collect();
        let values = points.iter().map(|point| function(point[0], point[1])).collect();
        (points, values)
    }

    #[test]
    fn a_smooth_function_is_predicted_between_its_points() {
        let bowl = |x: f64, y: f64| (x - 0.3).powi(2) + 2.0 * (y - 0.6).powi(2);
        let (points, values) = grid(8, bowl);
        let process = GaussianProcess::fit(points, &values).unwrap();
        for (x, y) in [(0.1, 0.1), (0.5, 0.5), (0.33, 0.71), (0.9, 0.3)] {
            let found = process.predict(&[x, y]);
            assert!((found - bowl(x, y)).abs() < 0.01, "({x}, {y}): {found}, not {}", bowl(x, y));
        }
    }

    #[test]
    fn far_from_every_point_the_mean_is_predicted() {
        let (points, values) = grid(4, |x, y| 7.0 + x * y);
        let process = GaussianProcess::fit(points, &values).unwrap();
        assert!((process.predict(&[1e4, -1e4]) - process.mean).abs() < 1e-12);
        assert!((7.0..8.0).contains(&process.mean), "{process:?}");
    }

    #[test]
    fn noise_is_told_from_the_function() {
        // Of a constant and noise of one sixteenth; the sequence is that of multiples of the golden ratio.
        let (points, values) = grid(8, |_, _| 1.0);
        let noise = (0..).map(|i| ((f64::from(i) * 0.618_033_988_75).fract() - 0.5) / 8.0);
        let values: Vec<f64> = values.iter().zip(noise).map(|(value, noise)| value + noise).collect();
        let process = GaussianProcess::fit(points.clone(), &values).unwrap();
        let rest = |f: &dyn Fn(usize) -> f64| (0..64).map(|i| (f(i) - 1.0).powi(2)).sum::<f64>();
        assert!(rest(&|i| process.predict(&points[i])) < 0.5 * rest(&|i| values[i]));
    }

    #[test]
    fn what_tells_nothing_gives_no_process() {
        let fit = |points: &[[f64; 2]], values: &[f64]| {
            GaussianProcess::fit(points.iter().map(|point| point.to_vec()).collect(), values)
        };
        assert!(fit(&[], &[]).is_none());
        assert!(fit(&[[1.0, 2.0]], &[3.0]).is_none());
        assert!(fit(&[[1.0, 2.0]; 3], &[3.0, 4.0, 5.0]).is_none());
        let apart = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
        assert!(fit(&apart, &[3.0, f64::NAN, 4.0]).is_none());
        assert!(fit(&[[0.0, 0.0], [f64::INFINITY, 0.0], [0.0, 1.0]], &[1.0, 2.0, 3.0]).is_none());
        assert!(fit(&apart, &[3.0, 5.0, 4.0]).is_some());
    }

    #[test]
    fn two_points_in_one_place_have_the_mean_of_their_values() {
        let points = vec![vec![0.0], vec![1.0], vec![1.0], vec![2.0]];
        let process = GaussianProcess::fit(points, &[0.0, 0.9, 1.1, 2.0]).unwrap();
        assert!((process.predict(&[1.0]) - 1.0).abs() < 0.05, "{process:?}");
    }

    proptest! {
        /// The factor times its transpose is the matrix, and the solution solves the system.
        #[test]
        fn systems_are_solved(
            (points, right) in (1usize..30).prop_flat_map(|count| {
                let points = prop::collection::vec(prop::collection::vec(-3.0..3.0, 4), count);
                (points, prop::collection::vec(-10.0..10.0, count))
            }),
            noise in 1e-3..1.0,
        ) {
            let entry = |i: usize, j: usize| {
                matern(distance(&points[i], &points[j])) + if i == j { noise } else { 0.0 }
            };
            let below: Vec<Vec<f64>> = (0..points.len()).map(|i| (0..i).map(|j| entry(i, j)).collect()).collect();
            let factor = cholesky(&below, 1.0 + noise).unwrap();
            let solution = solve(&factor, right.clone());
            for (i, right) in right.iter().enumerate() {
                let found: f64 = (0..points.len()).map(|j| entry(i, j) * solution[j]).sum();
                prop_assert!((found - right).abs() < 1e-8, "{found} {right}");
            }
        }
    }
}
