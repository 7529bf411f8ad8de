//! The steps of a run.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use longrope_candle::Rotary;

use super::adamw::AdamW;
use super::checkpoint::{Checkpoints, Done, Record};
use super::learning_rate::LearningRate;
use super::llama::TrainableLlama;
use super::packing::{Pack, Windows};
use super::parameters::Gradients;
use super::pass::{Loss, loss, loss_and_gradients};
use super::utilisation::flops;
use crate::interrupt;
use crate::progress::Progress;

/// How a step is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Sequences whose gradients are summed for a step.
    pub batch: usize,
    /// The learning rate, and the number of steps.
    pub learning_rate: LearningRate,
    /// See [`AdamW::step`].
    pub weight_decay: f64,
    /// Longer gradients are shortened to this norm.
    pub clip: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
}

/// A run: the model, and what was done to it.
pub struct Run<'a> {
    model: &'a TrainableLlama,
    windows: &'a Windows<'a>,
    rotary: &'a Rotary,
    recipe: Recipe,
    optimiser: AdamW,
    done: Done,
}

impl<'a> Run<'a> {
    /// A run that begins. Its `held_out` sequences are measured first.
    pub fn new(
        model: &'a TrainableLlama,
        windows: &'a Windows<'a>,
        rotary: &'a Rotary,
        recipe: Recipe,
        held_out: &[Pack],
    ) -> Result<Self> {
        let loss_before = mean_loss(model, held_out, rotary)?;
        let optimiser = AdamW::new(model.parameters())?;
        let done = Done { sequences: 0, loss_before, history: Vec::new() };
        Ok(Self { model, windows, rotary, recipe, optimiser, done })
    }

    /// A run that goes on from a checkpoint.
    ///
    /// # Errors
    /// What [`Checkpoints::load`] refuses.
    pub fn resumed(
        model: &'a TrainableLlama,
        windows: &'a Windows<'a>,
        rotary: &'a Rotary,
        recipe: Recipe,
        (checkpoints, path): (&Checkpoints, &Path),
    ) -> Result<Self> {
        let (done, optimiser) = checkpoints.load(path, model.parameters())?;
        Ok(Self { model, windows, rotary, recipe, optimiser, done })
    }

    /// The model, as it is by now.
    pub fn model(&self) -> &TrainableLlama {
        self.model
    }

    /// What was done so far.
    pub fn done(&self) -> &Done {
        &self.done
    }

    /// Makes the steps that are left, or those up to Ctrl-C. Either way a checkpoint holds the last of them. After an error the
    /// last checkpoint stays. `peak` is the device's rate of floating-point operations, for the progress.
    pub fn train(&mut self, checkpoints: &Checkpoints, progress: &Progress, peak: Option<f64>) -> Result<()> {
        let planned = self.recipe.learning_rate.steps;
        progress.start(self.done.history.len(), planned);
        let ended = self.steps(checkpoints, progress, peak);
        progress.finish();
        let interrupted = ended.as_ref().is_err_and(|error| error.is::<interrupt::Interrupted>());
        let saved = match ended {
            Ok(()) => self.save(checkpoints).map(|_| ()),
            Err(error) if interrupted => self.save(checkpoints).and(Err(error)),
            Err(error) => Err(error),
        };
        if saved.is_err() {
            match checkpoints.newest() {
                Ok(Some(path)) => {
                    let step = self.done.history.len();
                    eprintln!("stopped after step {step}; --resume continues from {}", path.display());
                }
                _ => eprintln!("stopped before the first checkpoint"),
            }
        }
        saved
    }

    /// The loss on these sequences.
    pub fn loss(&self, held_out: &[Pack]) -> Result<f64> {
        mean_loss(self.model, held_out, self.rotary)
    }

    /// Floating-point operations of all steps, as [`flops`] counts them.
    pub fn operations(&self) -> f64 {
        (0..self.done.sequences).map(|number| flops(self.model, &self.windows.get(number))).sum()
    }

    pub(super) fn save(&self, checkpoints: &Checkpoints) -> Result<()> {
        for parameter in self.model.parameters() {
            let squares = parameter.value().sqr()?.sum_all()?.to_scalar::<f32>()?;
            finite(parameter.name(), squares.into())
                .with_context(|| format!("step {}", self.done.history.len()))?;
        }
        checkpoints.save(&self.done, self.model.parameters(), &self.optimiser)?;
        Ok(())
    }

    fn steps(&mut self, checkpoints: &Checkpoints, progress: &Progress, peak: Option<f64>) -> Result<()> {
        let planned = self.recipe.learning_rate.steps;
        while self.done.history.len() < planned {
            let (record, operations) = self.step(checkpoints)?;
            let speed = record.tokens as f64 / record.seconds;
            let mut detail = format!("loss {:.4}, {speed:.0} tokens/s", record.loss);
            if let Some(peak) = peak {
                detail += &format!(", {:.1} % of peak", 100.0 * operations / record.seconds / peak);
            }
            self.record(record);
            progress.show(self.done.history.len(), planned, &detail);
        }
        Ok(())
    }

    /// Keeps the record of a step that was made.
    pub(super) fn record(&mut self, record: Record) {
        self.done.history.push(record);
    }

    /// One step. The run is what it was before it until the optimiser changes it.
    pub(super) fn step(&mut self, checkpoints: &Checkpoints) -> Result<(Record, f64)> {
        let (mut started, step) = (Instant::now(), self.done.history.len());
        let context = || format!("step {}", step + 1);
        let mut gradients = Gradients::new(self.model.parameters().len());
        let (mut all, mut tokens, mut operations) = (Loss::default(), 0, 0.0);
        for number in 0..self.recipe.batch as u64 {
            let pack = self.windows.get(self.done.sequences + number);
            let loss = loss_and_gradients(self.model, &pack, self.rotary, &mut gradients)?;
            finite("the loss", loss.sum).with_context(context)?;
            all += loss;
            tokens += pack.tokens().len();
            operations += flops(self.model, &pack);
        }
        ensure!(all.tokens > 0, "step {}: every document has one token, which nothing follows", step + 1);
        let norm = gradients.norm()? / all.tokens as f64;
        finite("the norm of the gradient", norm).with_context(context)?;
        interrupt::check()?;
        if step > 0 && step.is_multiple_of(self.recipe.checkpoint_every) {
            // Now that what the last step made is known to have a loss: a checkpoint takes the place of the one before.
            let saving = Instant::now();
            self.save(checkpoints)?;
            started += saving.elapsed();
        }
        let shortened = (self.recipe.clip / norm).min(1.0);
        let rate = self.recipe.learning_rate.at(step);
        let (scale, decay) = (shortened / all.tokens as f64, self.recipe.weight_decay);
        self.optimiser.step(self.model.parameters(), &gradients, scale, rate, decay)?;
        // What is under way on a GPU counts for this step.
        self.model.place().device.synchronize()?;
        self.done.sequences += self.recipe.batch as u64;
        let record = Record {
            step: step + 1,
            loss: all.mean(),
            gradient_norm: norm,
            learning_rate: rate,
            tokens,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((record, operations))
    }
}

fn finite(what: &str, value: f64) -> Result<()> {
    ensure!(
        value.is_finite(),
        "{what} is {value}, not finite; expected to be with a lower --learning-rate or a longer --warm-up, from the start or \
         from the last checkpoint by --resume --changed"
    );
    Ok(())
}

/// The mean loss of all tokens of some sequences.
fn mean_loss(model: &TrainableLlama, packs: &[Pack], rotary: &Rotary) -> Result<f64> {
    let mut all = Loss::default();
    for pack in packs {
        all += loss(model, pack, rotary)?;
    }
    Ok(all.mean())
}
