//! A search on a model: the objective, the checkpoint on disk, and the loop between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use longrope::scaling::{RopeConfig, SetChoice};
use longrope::search::{Candidate, Checkpoint, Search};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::Llama;
use crate::perplexity::perplexity;
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
}

impl Task<'_> {
    /// The rotary embedding that a candidate stands for.
    pub fn rope(&self, candidate: &Candidate) -> Result<RopeConfig> {
        methods::longrope(&self.model.config().rope, self.length, &candidate.factors, candidate.first_tokens)
    }

    fn evaluate(&self, candidate: &Candidate) -> Result<f64> {
        let sets = self.rope(candidate)?.factor_sets(self.length as u64)?;
        perplexity(self.model, &self.windows, &sets, SetChoice::Long)
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
    search: Checkpoint,
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

    /// The checkpoint of an earlier run, which must be of the same search.
    pub fn load(&self) -> Result<Checkpoint> {
        let text = files::read_text(&self.path)?;
        let saved: Saved = serde_json::from_str(&text)
            .map_err(|error| anyhow!("{}: not a valid checkpoint: {error}", self.path.display()))?;
        ensure!(
            saved.fingerprint == self.fingerprint,
            "{}: made with another model, text, length, number of windows or --dtype; run with the same ones, or without \
             --resume to start anew",
            self.path.display()
        );
        Ok(saved.search)
    }

    /// Writes the checkpoint, if the last one is some seconds old.
    fn save_sometimes(&mut self, search: &Search) -> Result<()> {
        match self.written {
            Some(written) if written.elapsed() < CHECKPOINT_INTERVAL => Ok(()),
            _ => self.save(search),
        }
    }

    /// Writes the checkpoint.
    pub fn save(&mut self, search: &Search) -> Result<()> {
        let saved = Saved { fingerprint: self.fingerprint.clone(), search: search.checkpoint() };
        files::write_atomically(&self.path, &serde_json::to_string(&saved)?)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

/// Runs `search` to its end, or until Ctrl-C. Either way, and after an error too, the checkpoint holds every value, or
/// the error says that it can't be written.
pub fn run(
    search: &mut Search,
    task: &Task<'_>,
    checkpoint: &mut CheckpointFile,
    progress: &Progress,
) -> Result<()> {
    progress.start(search.evaluations(), search.planned_evaluations());
    let ended = evaluate_all(search, task, checkpoint, progress);
    progress.finish();
    checkpoint.save(search)?;
    if ended.is_err() {
        let (done, path) = (search.evaluations(), checkpoint.path().display());
        eprintln!("stopped after {done} evaluations; --resume continues from {path}");
    }
    ended
}

fn evaluate_all(
    search: &mut Search,
    task: &Task<'_>,
    checkpoint: &mut CheckpointFile,
    progress: &Progress,
) -> Result<()> {
    while let Some(candidate) = search.ask() {
        interrupt::check()?;
        let value = task.evaluate(candidate)?;
        search.tell(value)?;
        let best = search.best().map_or(f64::NAN, |best| best.value);
        progress.update(search.evaluations(), search.planned_evaluations(), best);
        checkpoint.save_sometimes(search)?;
    }
    Ok(())
}
