//! The learning rate of each step: a linear rise, then a linear fall to zero.

/// A schedule of learning rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest.
    pub highest: f64,
    /// Steps of the rise, of which the last has the highest.
    pub warm_up: usize,
    /// Steps in all; the one after the last would have zero.
    pub steps: usize,
}

impl LearningRate {
    /// The rate of a step, from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.highest * (step + 1) as f64 / self.warm_up as f64;
        }
        let falling = self.steps.saturating_sub(self.warm_up).max(1);
        self.highest * self.steps.saturating_sub(step) as f64 / falling as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_the_highest_and_falls_to_zero() {
        let rate = LearningRate { highest: 8.0, warm_up: 4, steps: 8 };
        let found: Vec<f64> = (0..9).map(|step| rate.at(step)).collect();
        assert_eq!(found, [2.0, 4.0, 6.0, 8.0, 8.0, 6.0, 4.0, 2.0, 0.0]);
    }

    #[test]
    fn without_a_rise_it_begins_with_the_highest() {
        let rate = LearningRate { highest: 1.0, warm_up: 0, steps: 4 };
        assert_eq!([0, 1, 2, 3].map(|step| rate.at(step)), [1.0, 0.75, 0.5, 0.25]);
    }
}
