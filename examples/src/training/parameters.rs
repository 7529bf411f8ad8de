//! What is trained: values in f32, and what the model computes with in its own type.

use anyhow::{Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::model::Place;

/// A tensor that is trained.
pub struct Parameter {
    name: String,
    /// In f32, where steps too small for 16 bits add up.
    master: Var,
    /// What the model computes with: `master` itself where the model's type is f32.
    working: Var,
}

impl Parameter {
    /// A parameter of the model at `place`.
    pub fn new(name: String, value: &Tensor, place: &Place) -> Result<Self> {
        let master = Var::from_tensor(&value.to_dtype(DType::F32)?.to_device(&place.device)?)?;
        let working = match place.dtype {
            DType::F32 => master.clone(),
            dtype => Var::from_tensor(&master.as_detached_tensor().to_dtype(dtype)?)?,
        };
        Ok(Self { name, master, working })
    }

    /// Its name, as in `model.layers.0.mlp.up_proj.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value in f32.
    pub fn value(&self) -> Tensor {
        self.master.as_detached_tensor()
    }

    /// Its value in the model's type, of which gradients are recorded if `recorded`.
    pub fn working(&self, recorded: bool) -> Tensor {
        match recorded {
            true => self.working.as_tensor().clone(),
            false => self.working.as_detached_tensor(),
        }
    }

    /// Gives it another value.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        self.master.set(value)?;
        if self.working.dtype() != DType::F32 {
            self.working.set(&value.to_dtype(self.working.dtype())?)?;
        }
        Ok(())
    }

    /// Whether weight decay applies: to matrices, not to the weights of norms.
    pub fn decays(&self) -> bool {
        self.master.rank() > 1
    }
}

/// Sums of gradients in f32, one for each parameter.
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// None yet, of so many parameters.
    pub fn new(parameters: usize) -> Self {
        Self(vec![None; parameters])
    }

    /// Adds to the gradient of a parameter.
    pub fn add(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        let gradient = gradient.detach().to_dtype(DType::F32)?;
        let sum = match self.0[index].take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0[index] = Some(sum);
        Ok(())
    }

    /// Adds what a backward pass found for these parameters.
    ///
    /// # Errors
    /// It found nothing for one of them: an operation without a gradient is on the way.
    pub fn collect(
        &mut self,
        parameters: &[Parameter],
        indices: &[usize],
        found: &mut GradStore,
    ) -> Result<()> {
        for &index in indices {
            let parameter = &parameters[index];
            let Some(gradient) = found.remove(&parameter.working) else {
                bail!("{}: the backward pass gave no gradient", parameter.name);
            };
            self.add(index, &gradient)?;
        }
        Ok(())
    }

    /// The sum of a parameter.
    ///
    /// # Errors
    /// Nothing was added to it.
    pub fn get(&self, index: usize) -> Result<&Tensor> {
        match self.0.get(index) {
            Some(Some(gradient)) => Ok(gradient),
            _ => bail!("parameter {index}: no gradient"),
        }
    }

    /// The Euclidean norm of all of them as one vector.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for index in 0..self.0.len() {
            let squares = self.get(index)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
            sum += f64::from(squares);
        }
        Ok(sum.sqrt())
    }
}

/// Checks that a tensor may take the place of a parameter's value.
pub(super) fn check_value(parameter: &Parameter, value: &Tensor) -> Result<()> {
    let expected = parameter.value();
    ensure!(
        value.dims() == expected.dims() && value.dtype() == DType::F32,
        "{}: {:?} of {:?} is not valid; expected F32 of {:?}",
        parameter.name,
        value.dtype(),
        value.dims(),
        expected.dims()
    );
    Ok(())
}
