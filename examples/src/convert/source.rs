//! Factors read from a file of any format.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use longrope::scaling::{RopeConfig, Schedule, factors_from_csv};
use longrope::search::Candidate;
use serde_json::Value;

use crate::gguf::{self, Header};
use crate::{files, methods};

/// A format, told by a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `config.json`, or the part of it that `search` writes.
    HuggingFace,
    /// The authors' CSV file.
    Csv,
    /// A GGUF model.
    Gguf,
    /// A schedule of factors by length.
    Schedule,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HuggingFace => "a Hugging Face configuration",
            Self::Csv => "a CSV file",
            Self::Gguf => "a GGUF model",
            Self::Schedule => "a schedule",
        })
    }
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The rotary embedding of a model.
    Config(RopeConfig),
    /// Factors by length.
    Schedule(Schedule),
}

impl Source {
    /// Reads `argument`: a path, or `TOKENS=PATH`. Of a schedule, tokens choose the bucket, which
    /// stays beside that of the original length; a CSV file needs them as the
    /// length that its factors are for, and `model` for all else that it does not hold.
    ///
    /// # Errors
    /// A file that can't be read or is of no known format, with the path; tokens where the file has its own length;
    /// a CSV file without tokens or model.
    pub fn read(argument: &str, model: Option<&Path>) -> Result<(Kind, Self)> {
        let (tokens, path) = split(argument);
        let path = config_in(&path);
        let kind = Kind::of(&path)?;
        ensure!(
            tokens.is_none() || matches!(kind, Kind::Csv | Kind::Schedule),
            "{argument}: {kind} has its own length; expected the path alone"
        );
        let shown = || format!("{}", path.display());
        let source = match kind {
            Kind::Gguf | Kind::HuggingFace => Self::Config(base(&path)?),
            Kind::Schedule => {
                let schedule = Schedule::from_json(&files::read_text(&path)?).with_context(shown)?;
                Self::Schedule(match tokens {
                    None => schedule,
                    Some(tokens) => buckets_of(&schedule, tokens).with_context(shown)?,
                })
            }
            Kind::Csv => {
                let Some(tokens) = tokens else {
                    bail!("{argument}: a CSV file does not tell its length; expected TOKENS={argument}");
                };
                let Some(model) = model else {
                    bail!(
                        "{argument}: a CSV file holds factors only; expected --model with the base and original length"
                    );
                };
                let base = base(&config_in(model))?;
                let layers = factors_from_csv(&files::read_text(&path)?, base.geometry().pairs())
                    .with_context(shown)?;
                let [factors] = layers.as_slice() else {
                    bail!(
                        "{}: {} sets, one a layer, is not supported; expected one set",
                        path.display(),
                        layers.len()
                    );
                };
                let candidate =
                    Candidate { factors: factors.clone(), first_tokens: 0, attention_factor: None };
                Self::Config(methods::longrope(&base, tokens as usize, &candidate).with_context(shown)?)
            }
        };
        Ok((kind, source))
    }
}

/// The buckets that sequences of `tokens` tokens and of the original length take, and no other.
fn buckets_of(schedule: &Schedule, tokens: u64) -> Result<Schedule> {
    let chosen = schedule.choose(tokens)?;
    let short = schedule.choose(schedule.geometry().original_length().min(tokens))?;
    let mut buckets = vec![short.clone(), chosen.clone()];
    buckets.dedup();
    Ok(Schedule::new(*schedule.geometry(), buckets)?)
}

/// The rotary embedding of a model: a GGUF file, or a `config.json`.
fn base(path: &Path) -> Result<RopeConfig> {
    let shown = || format!("{}", path.display());
    match Kind::of(path)? {
        Kind::Gguf => {
            let (header, mut file) = Header::open(path)?;
            gguf::rope_config(&header, &mut file).with_context(shown)
        }
        Kind::HuggingFace => RopeConfig::from_hf_json(&files::read_text(path)?).with_context(shown),
        other => bail!("{}: {other} is not a model; expected a GGUF file or a config.json", path.display()),
    }
}

/// `TOKENS=PATH`, or a path.
fn split(argument: &str) -> (Option<u64>, PathBuf) {
    match argument.split_once('=').map(|(tokens, path)| (tokens.parse(), path)) {
        Some((Ok(tokens), path)) => (Some(tokens), path.into()),
        _ => (None, argument.into()),
    }
}

/// The configuration in a model's directory, or the file itself.
pub fn config_in(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("config.json") } else { path.to_owned() }
}

impl Kind {
    /// The format of a file, by how it begins.
    ///
    /// # Errors
    /// A file that can't be read, or is of none of these formats.
    pub fn of(path: &Path) -> Result<Self> {
        let shown = || format!("{}: can't be read", path.display());
        let mut start = Vec::new();
        File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start)).with_context(shown)?;
        if start.starts_with(gguf::MAGIC) {
            return Ok(Self::Gguf);
        }
        match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => {
                let json: Value = serde_json::from_str(&files::read_text(path)?)
                    .with_context(|| format!("{}: not valid JSON", path.display()))?;
                Ok(if json.get("buckets").is_some() { Self::Schedule } else { Self::HuggingFace })
            }
            Some(b'0'..=b'9' | b'.' | b'+' | b'-') => Ok(Self::Csv),
            _ => bail!(
                "{}: of no known format; expected a Hugging Face configuration or a schedule (JSON), a CSV file of factors, \
                 or a GGUF model",
                path.display()
            ),
        }
    }
}
