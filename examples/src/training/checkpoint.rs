//! Checkpoints of a run: all that a resumed run needs to go on bit for bit, in a folder that is there as a whole or not at all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use candle_core::safetensors::load_buffer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::adamw::AdamW;
use super::parameters::{Parameter, check_value};
use super::safetensors;
use super::settings::Settings;
use crate::files;

const FORMAT: u32 = 1;
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
const PREFIX: &str = "checkpoint-";

/// A step that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// From 1.
    pub step: usize,
    /// The mean loss of its tokens before it, in nats.
    pub loss: f64,
    /// The norm of the mean gradient, before it is clipped.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens of its sequences.
    pub tokens: usize,
    /// How long it took.
    pub seconds: f64,
}

/// What a run has done so far, but for the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Sequences that were trained on: the number of the next one.
    pub sequences: u64,
    /// The loss on the held-out windows before the first step.
    pub loss_before: f64,
    /// A record for each step.
    pub history: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    settings: Settings,
    done: Done,
    /// Of the file of the tensors.
    sha256: String,
}

/// The checkpoints of a run, in its output directory.
pub struct Checkpoints {
    output: PathBuf,
    settings: Settings,
    changed: bool,
}

/// Settings of how steps are made, which a run may be resumed with others of.
const RECIPE: [&str; 6] = ["--steps", "--batch", "--learning-rate", "--warm-up", "--weight-decay", "--clip"];

impl Checkpoints {
    /// Those of a run with these settings. If `changed`, one of a run whose steps were made otherwise is loaded too: by another
    /// learning rate, for one.
    pub fn new(output: &Path, settings: Settings, changed: bool) -> Self {
        Self { output: output.to_owned(), settings, changed }
    }

    /// The one of the highest step, if there is any.
    pub fn newest(&self) -> Result<Option<PathBuf>> {
        let whole =
            self.all()?.into_iter().filter_map(|(step, path)| Some((step.parse::<usize>().ok()?, path)));
        Ok(whole.max_by_key(|(step, _)| *step).map(|(_, path)| path))
    }

    /// All folders of checkpoints by what follows the prefix: the step, or `STEP.new` for one that was not finished.
    fn all(&self) -> Result<Vec<(String, PathBuf)>> {
        let context = || format!("{}: can't be read", self.output.display());
        let entries = match fs::read_dir(&self.output) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(context)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.with_context(context)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let step = name.strip_prefix(PREFIX).map(str::to_owned);
            let is_step = |step: &String| step.trim_end_matches(".new").parse::<usize>().is_ok();
            found.extend(step.filter(is_step).map(|step| (step, path)));
        }
        Ok(found)
    }

    /// Writes a checkpoint aside, flushes it to disk, and gives it its name; then all others go. If that
    /// fails, these stay.
    pub fn save(&self, done: &Done, parameters: &[Parameter], optimiser: &AdamW) -> Result<PathBuf> {
        let path = self.output.join(format!("{PREFIX}{}", done.history.len()));
        if path.exists() {
            // A step is what the settings make of it, so what is there is the same.
            return Ok(path);
        }
        let aside = self.output.join(format!("{PREFIX}{}.new", done.history.len()));
        let written = self.write(&aside, done, parameters, optimiser).and_then(|()| {
            fs::rename(&aside, &path).with_context(|| format!("{}: can't be written", path.display()))?;
            sync_folder(&self.output)
        });
        if written.is_err() {
            // Useless, and it may be what filled the disk.
            let _ = fs::remove_dir_all(&aside);
        }
        written?;
        for (_, other) in self.all()? {
            if other != path {
                fs::remove_dir_all(&other)
                    .with_context(|| format!("{}: can't be removed", other.display()))?;
            }
        }
        Ok(path)
    }

    fn write(&self, aside: &Path, done: &Done, parameters: &[Parameter], optimiser: &AdamW) -> Result<()> {
        if aside.exists() {
            fs::remove_dir_all(aside).with_context(|| format!("{}: can't be removed", aside.display()))?;
        }
        fs::create_dir(aside).with_context(|| format!("{}: can't be made", aside.display()))?;
        let mut tensors = Vec::new();
        for (parameter, [first, second]) in parameters.iter().zip(optimiser.moments()) {
            let name = parameter.name();
            tensors.push((name.to_owned(), parameter.value()));
            tensors.push((first_moment(name), first.clone()));
            tensors.push((second_moment(name), second.clone()));
        }
        let mut hash = Sha256::new();
        files::replace(&aside.join(TENSORS), |file| {
            safetensors::write(Hashed { file, hash: &mut hash }, &Default::default(), &tensors)
        })?;
        let state = State {
            format: FORMAT,
            settings: self.settings.clone(),
            done: done.clone(),
            sha256: hexadecimal(hash),
        };
        files::write_atomically(&aside.join(STATE), &serde_json::to_string_pretty(&state)?)?;
        sync_folder(aside)
    }

    /// What the checkpoint at `path` holds: the parameters get their values.
    ///
    /// # Errors
    /// A file that is missing, cut short or changed, or of a run with other settings: by its path, with what is wrong.
    pub fn load(&self, path: &Path, parameters: &[Parameter]) -> Result<(Done, AdamW)> {
        let state_path = path.join(STATE);
        let state: State = serde_json::from_str(&files::read_text(&state_path)?)
            .map_err(|error| anyhow!("{}: not a valid checkpoint: {error}", state_path.display()))?;
        let shown = || format!("{}", state_path.display());
        ensure!(
            state.format == FORMAT,
            "{}: format {} is not valid; expected {FORMAT}",
            shown(),
            state.format
        );
        same_settings(&state.settings, &self.settings, self.changed).with_context(shown)?;

        let tensors_path = path.join(TENSORS);
        let shown = || format!("{}", tensors_path.display());
        let bytes = fs::read(&tensors_path).with_context(|| format!("{}: can't be read", shown()))?;
        let mut hash = Sha256::new();
        hash.update(&bytes);
        ensure!(
            hexadecimal(hash) == state.sha256,
            "{}: {} bytes with another SHA-256 than that in {STATE}; the file is cut short or was changed",
            shown(),
            bytes.len()
        );
        let mut tensors = load_buffer(&bytes, &candle_core::Device::Cpu)
            .with_context(|| format!("{}: not a valid safetensors file", shown()))?;
        drop(bytes);
        let moments = restore(parameters, &mut tensors).with_context(shown)?;
        let optimiser = AdamW::resumed(moments, state.done.history.len() as u64);
        Ok((state.done, optimiser))
    }
}

/// Gives the parameters their values, once all of these and the moments are found to fit. Gives the moments.
fn restore(parameters: &[Parameter], tensors: &mut HashMap<String, Tensor>) -> Result<Vec<[Tensor; 2]>> {
    let mut take = |parameter: &Parameter, name: String| -> Result<Tensor> {
        let found = tensors.remove(&name).ok_or_else(|| anyhow!("{name}: missing"))?;
        check_value(parameter, &found)?;
        Ok(found.to_device(parameter.value().device())?)
    };
    let mut all = Vec::new();
    for parameter in parameters {
        let name = parameter.name();
        let value = take(parameter, name.to_owned())?;
        all.push((value, [take(parameter, first_moment(name))?, take(parameter, second_moment(name))?]));
    }
    let mut moments = Vec::new();
    for (parameter, (value, pair)) in parameters.iter().zip(all) {
        parameter.set(&value)?;
        moments.push(pair);
    }
    Ok(moments)
}

fn first_moment(name: &str) -> String {
    format!("{name}.first_moment")
}

fn second_moment(name: &str) -> String {
    format!("{name}.second_moment")
}

/// Fails by the first setting that differs and may not.
fn same_settings(found: &Settings, expected: &Settings, changed: bool) -> Result<()> {
    const AGAIN: &str = "run with the same, or in another --output to start anew";
    for (name, value) in expected {
        let of_recipe = RECIPE.contains(&name.as_str());
        match found.iter().find(|(other, _)| other == name) {
            Some((_, other)) if other == value || of_recipe && changed => {}
            Some((_, other)) if of_recipe => {
                bail!("made with {name} {other}, which is not {value}; {AGAIN}, or with --changed")
            }
            Some((_, other)) if is_hash(other) => bail!("made with another {name}; {AGAIN}"),
            Some((_, other)) => bail!("made with {name} {other}, which is not {value}; {AGAIN}"),
            None => bail!("settings: {name} is missing"),
        }
    }
    Ok(())
}

fn is_hash(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the names in a folder last.
fn sync_folder(path: &Path) -> Result<()> {
    // Folders can be opened and flushed on Unix alone.
    if cfg!(unix) {
        let flushed = File::open(path).and_then(|folder| folder.sync_all());
        flushed.with_context(|| format!("{}: can't be flushed to disk", path.display()))?;
    }
    Ok(())
}

/// A file whose contents are hashed as they are written.
struct Hashed<'a> {
    file: &'a mut File,
    hash: &'a mut Sha256,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
