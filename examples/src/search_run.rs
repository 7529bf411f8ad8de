//! A search on a model: the objective, the checkpoint on disk, and the loop between them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use longrope::scaling::{RopeConfig, SetChoice};
use longrope::search::{Candidate, Checkpoint, Search};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::Llama;
use crate::perplexity::mean_loss;
use crate::progress::Progress;
use crate::{files, interrupt, methods};

/// How often the checkpoint is written. An evaluation lost to a power cut is made again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);

/// What the candidates are judged by: perplexity of a model on windows of text.
pub struct Task<'a> {
    /// The model.
    pub model: &'a Llama,
    /// Windows of the length searched for.
    pub windows: Vec<&'a [u32]>,
    /// The length searched for, in tokens.
    pub length: usize,
    /// When a candidate is left after its first window.
    pub early_drop: EarlyDrop,
}

impl Task<'_> {
    /// The rotary embedding that a candidate stands for.
    pub fn rope(&self, candidate: &Candidate) -> Result<RopeConfig> {
        methods::longrope(&self.model.config().rope, self.length, candidate)
    }

    /// The perplexity of a candidate, and what it cost. One that is dropped gets the perplexity that it would have if it
    /// were worse than the best by as much on every window as on the first: windows differ much, but by nearly the
    /// same amount for all candidates. That is always above the best's.
    fn evaluate(&self, candidate: &Candidate, best: Option<(f64, &Cost)>) -> Result<(f64, Cost)> {
        let started = Instant::now();
        let sets = self.rope(candidate)?.factor_sets(self.length as u64)?;
        let mut losses = Vec::new();
        let mut dropped = None;
        for window in &self.windows {
            losses.push(mean_loss(self.model, window, &sets, SetChoice::Long)?);
            if losses.len() == 1 && self.windows.len() > 1 {
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
        let cost = Cost {
            windows: losses.len(),
            first_loss: losses.first().copied().filter(|loss| loss.is_finite()),
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((value, cost))
    }

    /// A hash of all that an evaluation depends on: the model's files, the windows, the length, on a GPU the type.
    pub fn fingerprint(&self, model: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        for path in model_files(model)? {
            let mut file =
                fs::File::open(&path).with_context(|| format!("{}: can't be read", path.display()))?;
            std::io::copy(&mut file, &mut HashWriter(&mut hash))?;
        }
        for window in &self.windows {
            window.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        hash.update(self.length.to_le_bytes());
        // 16-bit weights give other values; the GPU's name does not matter.
        let place = self.model.place();
        if place.is_gpu() {
            hash.update(format!("{:?} on a GPU", place.dtype));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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

/// Lets `std::io::copy` feed a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The files that make up a model, in a fixed order.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let entries = fs::read_dir(model).with_context(|| format!("{}: can't be read", model.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name == "config.json" || name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    Ok(paths)
}

/// What is on disk between two runs.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// See [`Task::fingerprint`].
    fingerprint: String,
    early_drop: EarlyDrop,
    search: Checkpoint,
    /// One for each evaluation of the search.
    costs: Vec<Cost>,
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

/// The checkpoint file of a search.
pub struct CheckpointFile {
    path: PathBuf,
    fingerprint: String,
    written: Option<Instant>,
}

impl CheckpointFile {
    /// The checkpoint at `path` of a search with this fingerprint.
    pub fn new(path: PathBuf, fingerprint: String) -> Self {
        Self { path, fingerprint, written: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint of an earlier run, which must be of the same search, and the costs of its evaluations.
    pub fn load(&self, early_drop: EarlyDrop) -> Result<(Checkpoint, Vec<Cost>)> {
        let text = files::read_text(&self.path)?;
        let saved: Saved = serde_json::from_str(&text)
            .map_err(|error| anyhow!("{}: not a valid checkpoint: {error}", self.path.display()))?;
        ensure!(
            saved.fingerprint == self.fingerprint,
            "{}: made with another model, text, length, number of windows or --dtype; run with the same ones, or without \
             --resume to start anew",
            self.path.display()
        );
        ensure!(
            saved.early_drop == early_drop,
            "{}: made with --early-drop {}, which is not {early_drop}; run with the same, or without --resume to start \
             anew",
            self.path.display(),
            saved.early_drop
        );
        let evaluations = saved.search.evaluations();
        ensure!(
            saved.costs.len() == evaluations,
            "{}: costs: {} entries are not valid; expected {evaluations}, one for each evaluation",
            self.path.display(),
            saved.costs.len()
        );
        Ok((saved.search, saved.costs))
    }

    /// Writes the checkpoint, if the last one is some seconds old.
    fn save_sometimes(&mut self, run: &Run, early_drop: EarlyDrop) -> Result<()> {
        match self.written {
            Some(written) if written.elapsed() < CHECKPOINT_INTERVAL => Ok(()),
            _ => self.save(run, early_drop),
        }
    }

    /// Writes the checkpoint.
    pub fn save(&mut self, run: &Run, early_drop: EarlyDrop) -> Result<()> {
        let saved = Saved {
            fingerprint: self.fingerprint.clone(),
            early_drop,
            search: run.search.checkpoint(),
            costs: run.costs.clone(),
        };
        files::write_atomically(&self.path, &serde_json::to_string(&saved)?)?;
        self.written = Some(Instant::now());
        Ok(())
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
    progress.start(run.search.evaluations(), run.search.planned_evaluations());
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
    while let Some(candidate) = run.search.ask() {
        interrupt::check()?;
        let (value, cost) = task.evaluate(candidate, run.best())?;
        run.search.tell(value)?;
        run.costs.push(cost);
        let best = run.search.best().map_or(f64::NAN, |best| best.value);
        progress.update(run.search.evaluations(), run.search.planned_evaluations(), best);
        checkpoint.save_sometimes(run, task.early_drop)?;
    }
    Ok(())
}
