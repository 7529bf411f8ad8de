//! The search space: which candidates are legal, and the grid from which mutated factors are drawn.

use rand::{Rng, RngExt};

use super::candidate::Candidate;
use super::error::SearchError;
use super::optimiser::Optimiser;

/// Grid points are told apart by their index, which has to stay far below the 2^53 that f64 counts exactly.
const MAXIMUM_POINTS: f64 = 4_294_967_296.0;

/// The legal candidates (arXiv 2402.13753, Table 4): `pairs` factors within `[minimum, maximum]`, which do not decrease where
/// they are `monotone`, and an allowed number of first tokens. Where the attention factor is searched too, it has bounds of its own.
#[derive(Debug, Clone)]
pub(super) struct Space {
    pub(super) pairs: usize,
    pub(super) minimum: f64,
    pub(super) maximum: f64,
    pub(super) first_tokens: Vec<u64>,
    /// Bounds of the attention factor, or `None` where no candidate has one.
    pub(super) attention_factor: Option<(f64, f64)>,
    pub(super) step: f64,
    pub(super) monotone: bool,
    grid: Grid,
}

impl Space {
    /// The space of a valid `optimiser` for `pairs` factors at `scale`.
    pub(super) fn new(optimiser: &Optimiser, scale: f64, pairs: usize) -> Result<Self, SearchError> {
        if !(scale.is_finite() && scale >= 1.0) {
            return Err(SearchError::invalid(
                "scale",
                scale,
                "a finite number of at least 1 (target length / original length)",
            ));
        }
        let (minimum, step) = (optimiser.minimum(), optimiser.step());
        let maximum = optimiser.maximum(scale);
        if !(maximum.is_finite() && maximum >= minimum) {
            return Err(SearchError::invalid(
                "maximum_ratio",
                optimiser.maximum_ratio(),
                format!("maximum_ratio * scale ({scale}) to be at least minimum ({minimum})"),
            ));
        }
        if maximum / step > MAXIMUM_POINTS {
            return Err(SearchError::invalid(
                "step",
                step,
                format!("at least maximum_ratio * scale / 2^32 ({:e})", maximum / MAXIMUM_POINTS),
            ));
        }
        let grid = Grid::new(step);
        if grid.between(minimum, maximum).is_none() {
            return Err(SearchError::invalid(
                "step",
                step,
                format!("a multiple of it to lie within [{minimum}, {maximum}]"),
            ));
        }
        Ok(Self {
            pairs,
            minimum,
            maximum,
            first_tokens: optimiser.first_tokens().to_vec(),
            attention_factor: optimiser.attention_factor_bounds(),
            step,
            monotone: optimiser.monotone(),
            grid,
        })
    }

    /// A grid point of `[low, high]`, each as likely as another, or `None` where there is none.
    pub(super) fn draw(&self, low: f64, high: f64, rng: &mut impl Rng) -> Option<f64> {
        let (first, last) = self.grid.between(low, high)?;
        Some(self.grid.point(rng.random_range(first..=last)))
    }

    /// The grid point nearest to `value`, or the nearest within the bounds.
    pub(super) fn nearest(&self, value: f64) -> f64 {
        let value = value.clamp(self.minimum, self.maximum);
        let point = self.grid.point((value / self.step).round() as u64);
        match point {
            point if point < self.minimum => self.minimum,
            point if point > self.maximum => self.maximum,
            point => point,
        }
    }

    /// Whether `candidate`, which the caller knows as `name`, is legal.
    pub(super) fn check(&self, candidate: &Candidate, name: &str) -> Result<(), SearchError> {
        if candidate.factors.len() != self.pairs {
            return Err(SearchError::invalid(
                format!("{name}.factors"),
                format!("{} factors", candidate.factors.len()),
                format!("{}, as in seeds[0]", self.pairs),
            ));
        }
        let mut previous = self.minimum;
        for (pair, &factor) in candidate.factors.iter().enumerate() {
            if !(factor >= self.minimum && factor <= self.maximum) {
                return Err(SearchError::invalid(
                    format!("{name}.factors[{pair}]"),
                    factor,
                    format!("a number within [{}, {}]", self.minimum, self.maximum),
                ));
            }
            if self.monotone && factor < previous {
                return Err(SearchError::invalid(
                    format!("{name}.factors[{pair}]"),
                    factor,
                    format!("at least the factor before it ({previous}): factors do not decrease"),
                ));
            }
            previous = factor;
        }
        if !self.first_tokens.contains(&candidate.first_tokens) {
            return Err(SearchError::invalid(
                format!("{name}.first_tokens"),
                candidate.first_tokens,
                "one of the values that settings.first_tokens allows",
            ));
        }
        match (candidate.attention_factor, self.attention_factor) {
            (Some(found), None) => Err(SearchError::invalid(
                format!("{name}.attention_factor"),
                found,
                "none: these settings do not search it",
            )),
            (Some(found), Some((low, high))) if !(found >= low && found <= high) => {
                Err(SearchError::invalid(
                    format!("{name}.attention_factor"),
                    found,
                    format!("a number within [{low}, {high}]"),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The multiples of a step.
#[derive(Debug, Clone, Copy)]
struct Grid {
    step: f64,
    /// Points per unit, where that is a whole number: `137 / 100` is the f64 nearest to 1.37, `137 * 0.01` is not.
    per_unit: Option<f64>,
}

impl Grid {
    fn new(step: f64) -> Self {
        let per_unit = (1.0 / step).round();
        Self { step, per_unit: (1.0 / per_unit == step).then_some(per_unit) }
    }

    fn point(self, index: u64) -> f64 {
        match self.per_unit {
            Some(per_unit) => index as f64 / per_unit,
            None => index as f64 * self.step,
        }
    }

    /// Indices of the first and the last point of `[low, high]`, or `None` where there is none.
    fn between(self, low: f64, high: f64) -> Option<(u64, u64)> {
        // The quotient may be one off; the points decide.
        let mut first = ((low / self.step) as u64).saturating_sub(1);
        while self.point(first) < low {
            first += 1;
        }
        let mut last = (high / self.step) as u64 + 1;
        while last > first && self.point(last) > high {
            last -= 1;
        }
        (self.point(first) <= high).then_some((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_points_are_the_nearest_doubles_of_their_decimals() {
        let grid = Grid::new(0.01);
        for index in 0..=100_000u64 {
            let decimal = format!("{}.{:02}", index / 100, index % 100);
            assert_eq!(grid.point(index), decimal.parse::<f64>().unwrap());
        }
    }

    #[test]
    fn between_takes_both_ends_and_nothing_beyond() {
        for step in [0.01, 0.05, 0.1, 0.3, 0.7] {
            let grid = Grid::new(step);
            for first in 90..200u64 {
                for last in first..first + 20 {
                    let (low, high) = (grid.point(first), grid.point(last));
                    assert_eq!(grid.between(low, high), Some((first, last)));
                    if first < last {
                        let expected = (first + 1 < last).then(|| (first + 1, last - 1));
                        assert_eq!(grid.between(low.next_up(), high.next_down()), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_step_without_a_whole_reciprocal_has_its_multiples() {
        let grid = Grid::new(0.3);
        assert_eq!(grid.between(1.0, 2.0), Some((4, 6)));
        assert_eq!(grid.point(4), 4.0 * 0.3);
        assert_eq!(grid.between(1.21, 1.49), None);
    }
}
