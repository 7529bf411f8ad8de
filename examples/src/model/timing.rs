//! Where the time of a forward pass goes.

use std::cell::Cell;
use std::time::Instant;

use candle_core::{Device, Result};

/// What a piece of a forward pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Scores, softmax and weighted values.
    Attention,
    /// The rotation of queries and keys.
    Rotation,
    /// The products with weights.
    Products,
    /// Embedding, norms, activation, residual sums and the loss.
    Rest,
}

/// Seconds of a forward pass, by its parts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Split {
    /// Of [`Part::Attention`].
    pub attention: f64,
    /// Of [`Part::Rotation`].
    pub rotation: f64,
    /// Of [`Part::Products`].
    pub products: f64,
    /// Of [`Part::Rest`].
    pub rest: f64,
}

impl Split {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.attention + self.rotation + self.products + self.rest
    }

    fn part(&mut self, part: Part) -> &mut f64 {
        match part {
            Part::Attention => &mut self.attention,
            Part::Rotation => &mut self.rotation,
            Part::Products => &mut self.products,
            Part::Rest => &mut self.rest,
        }
    }
}

/// Times each piece, or lets all pass. To time a piece the device has to wait before and after it, so a pass that is timed
/// takes longer in all than one that is not.
pub(super) struct Timer {
    device: Option<Device>,
    split: Cell<Split>,
}

impl Timer {
    /// Times nothing.
    pub(super) fn off() -> Self {
        Self { device: None, split: Cell::default() }
    }

    /// Times what runs on `device`.
    pub(super) fn on(device: &Device) -> Self {
        Self { device: Some(device.clone()), split: Cell::default() }
    }

    /// Runs a piece.
    pub(super) fn time<T>(&self, part: Part, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(device) = &self.device else { return run() };
        device.synchronize()?;
        let started = Instant::now();
        let result = run()?;
        device.synchronize()?;
        let mut split = self.split.get();
        *split.part(part) += started.elapsed().as_secs_f64();
        self.split.set(split);
        Ok(result)
    }

    /// What was timed so far.
    pub(super) fn split(&self) -> Split {
        self.split.get()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_piece_counts_for_its_part_alone() {
        let timer = Timer::on(&Device::Cpu);
        let sleep = |milliseconds| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        };
        timer.time(Part::Attention, || sleep(20)).unwrap();
        timer.time(Part::Products, || sleep(5)).unwrap();
        timer.time(Part::Attention, || sleep(20)).unwrap();
        let split = timer.split();
        assert!(split.attention >= 0.04 && split.products >= 0.005 && split.products < 0.04, "{split:?}");
        assert_eq!((split.rotation, split.rest), (0.0, 0.0));
        assert_eq!(split.total(), split.attention + split.products);
    }

    #[test]
    fn a_timer_that_is_off_lets_results_and_errors_pass() {
        let timer = Timer::off();
        assert_eq!(timer.time(Part::Rest, || Ok(7)).unwrap(), 7);
        assert!(timer.time(Part::Rest, || candle_core::bail!("no") as Result<()>).is_err());
        assert_eq!(timer.split(), Split::default());
    }
}
