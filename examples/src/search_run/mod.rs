//! A search on a model: the objective, the checkpoint on disk, and the loop between them.

mod checkpoint;
mod fingerprint;
mod short_cuts;

pub use checkpoint::CheckpointFile;
pub(crate) use fingerprint::add_place;
pub use short_cuts::{EarlyDrop, Screened, ShortCuts};

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
    /// When a candidate is left early.
    pub short_cuts: ShortCuts,
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
    fn evaluate(
        &self,
        candidate: &Candidate,
        best: Option<(f64, &Cost)>,
        is_seed: bool,
    ) -> Result<(f64, Cost)> {
        let started = Instant::now();
        let sets = self.target.sets(candidate, self.attention_factor)?;
        let (value, mut cost) = match &self.samples {
            Samples::Text { windows, last } => {
                let measured = self.short_cuts.perplexity(windows, best, is_seed, |window| {
                    let last = last.map(|last| last.min(window.len()));
                    mean_last_loss(self.model, window, last, &sets, SetChoice::Long)
                });
                measured?
            }
            Samples::Passkeys(prompts) => {
                let recalls = prompts
                    .iter()
                    .map(|prompt| passkey::recall(self.model, prompt, &sets, SetChoice::Long))
                    .collect::<Result<Vec<_>>>()?;
                (passkey::objective(&recalls), Cost { windows: recalls.len(), ..Cost::default() })
            }
        };
        cost.seconds = started.elapsed().as_secs_f64();
        Ok((value, cost))
    }

    /// How many evaluations a search makes at the most.
    fn planned(&self, search: &Search) -> usize {
        search.planned_evaluations().min(self.evaluations)
    }
}

/// What an evaluation cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The beginning of the first window, where it was looked at by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub screened: Option<Screened>,
    /// Windows that the model was run on as a whole.
    pub windows: usize,
    /// The mean loss of the first one, where it is finite.
    pub first_loss: Option<f64>,
    /// How long it took.
    pub seconds: f64,
}

impl Cost {
    /// The tokens that the model was run on, in windows of so many.
    pub fn tokens(&self, length: usize) -> usize {
        self.windows * length + self.screened.as_ref().map_or(0, |screened| screened.tokens)
    }
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

    /// The tokens that the model was run on, all together, in windows of so many.
    pub fn tokens(&self, length: usize) -> usize {
        self.costs.iter().map(|cost| cost.tokens(length)).sum()
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
    checkpoint.save(run, task.short_cuts)?;
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
        let is_seed = run.search.iteration() == 0;
        let (value, cost) = task.evaluate(candidate, run.best(), is_seed)?;
        run.search.tell(value)?;
        run.costs.push(cost);
        let best = run.search.best().map_or(f64::NAN, |best| best.value);
        progress.update(run.search.evaluations(), task.planned(&run.search), best);
        checkpoint.save_sometimes(run, task.short_cuts)?;
    }
    Ok(())
}
