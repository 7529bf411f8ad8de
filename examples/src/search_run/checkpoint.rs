//! The checkpoint of a search on disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use longrope::search::Checkpoint;
use serde::{Deserialize, Serialize};

use super::{Cost, Run, ShortCuts};
use crate::files;

/// How often the checkpoint is written. An evaluation lost to a power cut is made again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);

/// What is on disk between two runs.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// See [`Task::fingerprint`](super::Task::fingerprint).
    fingerprint: String,
    #[serde(flatten)]
    short_cuts: ShortCuts,
    search: Checkpoint,
    /// One for each evaluation of the search.
    costs: Vec<Cost>,
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
    pub fn load(&self, short_cuts: ShortCuts) -> Result<(Checkpoint, Vec<Cost>)> {
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
            saved.short_cuts == short_cuts,
            "{}: made with {}, which is not {short_cuts}; run with the same, or without --resume to start anew",
            self.path.display(),
            saved.short_cuts
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
    pub(super) fn save_sometimes(&mut self, run: &Run, short_cuts: ShortCuts) -> Result<()> {
        match self.written {
            Some(written) if written.elapsed() < CHECKPOINT_INTERVAL => Ok(()),
            _ => self.save(run, short_cuts),
        }
    }

    /// Writes the checkpoint.
    pub fn save(&mut self, run: &Run, short_cuts: ShortCuts) -> Result<()> {
        let saved = Saved {
            fingerprint: self.fingerprint.clone(),
            short_cuts,
            search: run.search.checkpoint(),
            costs: run.costs.clone(),
        };
        files::write_atomically(&self.path, &serde_json::to_string(&saved)?)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}
