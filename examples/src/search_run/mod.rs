//! A search on a model: the objective, the checkpoint on disk, and the loop between them.

mod checkpoint;
mod fingerprint;

pub use checkpoint::CheckpointFile;
pub(crate) use fingerprint::add_place;

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;
use longrope::scaling::SetChoice;
use longrope::search::{Candidate, Search};
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::model::Llama;
use crate::passkey::{self, Prompt};
use crate::perplexity::mean_last_loss;
use crate::progress::Progress;
use crate::target::Target;

/// What the candidates are judged by.
pub struct Task<'a> {
    /// The model.
    pub model: &'a Llama,
    /// What a candidate stands for.
    pub target: Target,
    /// The attention factor of candidates that have none.
    pub attention_factor: f64,
    /// What a candidate is measured on.
    pub samples: Samples<'a>,
    /// When a candidate is left after its first window.
    pub early_drop: EarlyDrop,
    /// Where the search ends, if the optimiser goes no less far.
    pub evaluations: usize,
}

/// What a candidate is measured on.
pub enum Samples<'a> {
    /// The perplexity of windows of text.
    Text {
        /// The windows, of the length searched for.
        windows: Vec<&'a [u32]>,
        /// How many of their last tokens count; all after the first where it is `None`.
        last: Option<usize>,
    },
    /// Keys retrieved from long prompts, by [`passkey::objective`].
    Passkeys(Vec<Prompt>),
}

impl Samples<'_> {
    /// The passes of an evaluation that is not left early.
    pub fn count(&self) -> usize {
        match self {
            Self::Text { windows, .. } => windows.len(),
            Self::Passkeys(prompts) => prompts.len(),
        }
    }
}

impl Task<'_> {
    /// The value of a candidate, and what it cost.
    fn evaluate(&self, candidate: &Candidate, best: Option<(f64, &Cost)>) -> Result<(f64, Cost)> {
        let started = Instant::now();
        let sets = self.target.sets(candidate, self.attention_factor)?;
        let (value, windows, first_loss) = match &self.samples {
            Samples::Text { windows, last } => self.perplexity(windows, best, |window| {
                mean_last_loss(self.model, window, *last, &sets, SetChoice::Long)
            })?,
            Samples::Passkeys(prompts) => {
                let recalls = prompts
                    .iter()
                    .map(|prompt| passkey::recall(self.model, prompt, &sets, SetChoice::Long))
                    .collect::<Result<Vec<_>>>()?;
                (passkey::objective(&recalls), recalls.len(), None)
            }
        };
        Ok((value, Cost { windows, first_loss, seconds: started.elapsed().as_secs_f64() }))
    }

    /// The perplexity, the windows that it took, and the loss on the first. A candidate that is dropped gets the perplexity
    /// that it would have if it were worse than the best by as much on every window as on the first: windows differ much,
    /// but by nearly the same amount for all candidates. That is always above the best's.
    fn perplexity(
        &self,
        windows: &[&[u32]],
        best: Option<(f64, &Cost)>,
        loss: impl Fn(&[u32]) -> Result<f64>,
    ) -> Result<(f64, usize, Option<f64>)> {
        let mut losses = Vec::new();
        let mut dropped = None;
        for window in windows {
            losses.push(loss(window)?);
            if losses.len() == 1 && windows.len() > 1 {
                dropped = best.and_then(|(value, cost)| {
                    let excess = losses[0] - cost.first_loss?;
                    (excess > self.early_drop.0?).then(|| value * excess.exp())
                });
                if dropped.is_some() {
                    break;
                }
            }
        }
        let value = dropped.unwrap_or_else(|| (losses.iter().sum::<f64>() / losses.len() as f64).exp());
        Ok((value, losses.len(), losses.first().copied().filter(|loss| loss.is_finite())))
    }

    /// How many evaluations a search makes at the most.
    fn planned(&self, search: &Search) -> usize {
        search.planned_evaluations().min(self.evaluations)
    }
}

/// The excess of a candidate's loss on the first window over the best candidate's there, in nats a token, above which the
/// other windows are not measured; `None` for never.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyDrop(pub Option<f64>);

impl FromStr for EarlyDrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "off" => Ok(Self(None)),
            Ok(margin) if (0.0..=100.0).contains(&margin) => Ok(Self(Some(margin))),
            _ => Err("expected off, or a number of nats a token from 0 to 100".to_owned()),
        }
    }
}

impl Display for EarlyDrop {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(margin) => margin.fmt(formatter),
            None => formatter.write_str("off"),
        }
    }
}

/// What an evaluation cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Windows that the model was run on.
    pub windows: usize,
    /// The mean loss of the first one, where it is finite.
    pub first_loss: Option<f64>,
    /// How long it took.
    pub seconds: f64,
}

/// A search and the costs of its evaluations, in their order.
pub struct Run {
    /// The search.
    pub search: Search,
    /// What each evaluation cost.
    pub costs: Vec<Cost>,
}

impl Run {
    /// Of a search that begins.
    pub fn new(search: Search) -> Self {
        Self { search, costs: Vec::new() }
    }

    /// The windows that the model was run on, all together.
    pub fn windows(&self) -> usize {
        self.costs.iter().map(|cost| cost.windows).sum()
    }

    /// The value and the cost of the best candidate.
    fn best(&self) -> Option<(f64, &Cost)> {
        let best = self.search.best()?;
        let index = self.search.history().iter().position(|evaluation| std::ptr::eq(evaluation, best))?;
        Some((best.value, self.costs.get(index)?))
    }
}

/// Runs the search to its end, or until Ctrl-C. Either way, and after an error too, the checkpoint holds every value, or
/// the error says that it can't be written.
pub fn run(
    run: &mut Run,
    task: &Task<'_>,
    checkpoint: &mut CheckpointFile,
    progress: &Progress,
) -> Result<()> {
    progress.start(run.search.evaluations(), task.planned(&run.search));
    let ended = evaluate_all(run, task, checkpoint, progress);
    progress.finish();
    checkpoint.save(run, task.early_drop)?;
    if ended.is_err() {
        let (done, path) = (run.search.evaluations(), checkpoint.path().display());
        eprintln!("stopped after {done} evaluations; --resume continues from {path}");
    }
    ended
}

fn evaluate_all(
    run: &mut Run,
    task: &Task<'_>,
    checkpoint: &mut CheckpointFile,
    progress: &Progress,
) -> Result<()> {
    while let Some(candidate) = run.search.ask().filter(|_| run.search.evaluations() < task.evaluations) {
        interrupt::check()?;
        let (value, cost) = task.evaluate(candidate, run.best())?;
        run.search.tell(value)?;
        run.costs.push(cost);
        let best = run.search.best().map_or(f64::NAN, |best| best.value);
        progress.update(run.search.evaluations(), task.planned(&run.search), best);
        checkpoint.save_sometimes(run, task.early_drop)?;
    }
    Ok(())
}
