//! AdamW (Loshchilov and Hutter 2019), with its moments at hand, so that a checkpoint can hold them.

use anyhow::Result;
use candle_core::Tensor;

use super::parameters::{Gradients, Parameter};

/// The decay of the mean of gradients.
const BETA_1: f64 = 0.9;
/// The decay of the mean of their squares.
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The optimiser's state.
pub struct AdamW {
    /// Means of gradients and of their squares, one pair for each parameter.
    moments: Vec<[Tensor; 2]>,
    /// Steps made.
    steps: u64,
}

impl AdamW {
    /// Before the first step.
    pub fn new(parameters: &[Parameter]) -> Result<Self> {
        let zeros = |parameter: &Parameter| -> Result<[Tensor; 2]> {
            let zeros = parameter.value().zeros_like()?;
            Ok([zeros.clone(), zeros])
        };
        Ok(Self { moments: parameters.iter().map(zeros).collect::<Result<_>>()?, steps: 0 })
    }

    /// After so many steps, which left these moments.
    pub(super) fn resumed(moments: Vec<[Tensor; 2]>, steps: u64) -> Self {
        Self { moments, steps }
    }

    /// The means of gradients and of their squares, in the order of the parameters.
    pub(super) fn moments(&self) -> &[[Tensor; 2]] {
        &self.moments
    }

    /// One step by the gradients times `scale`. `decay` is the share of a matrix that goes per unit of the `rate`.
    pub fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &Gradients,
        scale: f64,
        rate: f64,
        decay: f64,
    ) -> Result<()> {
        self.steps += 1;
        // The means begin at zero: what they lack is made up for.
        let [first_share, second_share] = [BETA_1, BETA_2].map(|beta| 1.0 - beta.powf(self.steps as f64));
        for (index, (parameter, moments)) in parameters.iter().zip(&mut self.moments).enumerate() {
            let gradient = (gradients.get(index)? * scale)?;
            let [first, second] = moments;
            *first = ((&*first * BETA_1)? + (&gradient * (1.0 - BETA_1))?)?;
            *second = ((&*second * BETA_2)? + (gradient.sqr()? * (1.0 - BETA_2))?)?;
            let divisor = ((&*second / second_share)?.sqrt()? + EPSILON)?;
            let change = ((&*first * (rate / first_share))? / divisor)?;
            let kept = match parameter.decays() {
                true => (parameter.value() * (1.0 - rate * decay))?,
                false => parameter.value(),
            };
            parameter.set(&(kept - change)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::Place;

    fn parameter(values: &[f32], matrix: bool) -> Parameter {
        let value = Tensor::new(values, &Device::Cpu).unwrap();
        let value = if matrix { value.unsqueeze(0).unwrap() } else { value };
        Parameter::new("p".into(), &value, &Place::cpu()).unwrap()
    }

    #[test]
    fn steps_are_those_of_the_definition() {
        let parameters = [parameter(&[0.5, -2.0], true), parameter(&[1.0, 3.0], false)];
        let mut optimiser = AdamW::new(&parameters).unwrap();
        // The definition, one number at a time in f64.
        let mut state = [0.5f64, -2.0, 1.0, 3.0].map(|value| (value, 0.0f64, 0.0f64));
        for step in 1..=6 {
            let (rate, decay, scale) = (0.01 * f64::from(step), 0.1, 0.25);
            let gradient = [1.0, -3.0, 1e-4, 40.0].map(|slope: f64| slope * f64::from(step % 3 + 1));
            let mut gradients = Gradients::new(2);
            for (index, parameter) in parameters.iter().enumerate() {
                let values: Vec<f32> =
                    gradient[2 * index..2 * index + 2].iter().map(|&value| value as f32).collect();
                let values = Tensor::new(values, &Device::Cpu).unwrap();
                gradients.add(index, &values.reshape(parameter.value().shape()).unwrap()).unwrap();
            }
            optimiser.step(&parameters, &gradients, scale, rate, decay).unwrap();
            for (i, (value, first, second)) in state.iter_mut().enumerate() {
                let g = gradient[i] * scale;
                *first = 0.9 * *first + 0.1 * g;
                *second = 0.999 * *second + 0.001 * g * g;
                let corrected = |moment: f64, beta: f64| moment / (1.0 - beta.powi(step));
                let decay = if i < 2 { decay } else { 0.0 };
                *value -= rate * decay * *value;
                *value -= rate * corrected(*first, 0.9) / (corrected(*second, 0.999).sqrt() + 1e-8);
            }
        }
        let found: Vec<f32> = parameters
            .iter()
            .flat_map(|parameter| parameter.value().flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect();
        for (found, (expected, ..)) in found.iter().zip(state) {
            // Six steps in f32.
            assert!(
                (f64::from(*found) - expected).abs() < 2e-6 * expected.abs().max(1.0),
                "{found} {expected}"
            );
        }
    }

    #[test]
    fn steps_that_a_16_bit_weight_does_not_show_add_up() {
        let mut place = Place::cpu();
        place.dtype = DType::BF16;
        let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
        let parameters = [Parameter::new("p".into(), &one, &place).unwrap()];
        let mut optimiser = AdamW::new(&parameters).unwrap();
        for _ in 0..100 {
            let mut gradients = Gradients::new(1);
            gradients.add(0, &one).unwrap();
            optimiser.step(&parameters, &gradients, 1.0, 1e-4, 0.0).unwrap();
        }
        // A step of 1e-4 is less than half a unit of bf16 below 1; a hundred are 0.01.
        let working = parameters[0].working(false).to_dtype(DType::F32).unwrap();
        let found = working.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((found - 0.99).abs() < 0.003, "{found}");
    }
}
