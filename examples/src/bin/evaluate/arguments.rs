//! The flags of `evaluate`, and the methods that they ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use longrope::scaling::{Geometry, RopeConfig, Schedule};
use longrope_drivers::arguments::ModelArguments;
use longrope_drivers::evaluation::Method;
use longrope_drivers::model::{AttentionKind, Llama, LlamaConfig};
use longrope_drivers::{files, methods, report};

/// Measures the perplexity of a Llama by method and length, as a mean over fixed windows with its standard error.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Adapter of the model in PEFT's format, as `finetune` leaves it: its changes become part of the weights
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Text to measure on, by its name in the manifest: its role must be eval, or train where this model was not trained on
    /// it [default: those of role eval that are committed]
    #[arg(long, value_name = "NAME")]
    pub text: Vec<String>,
    /// The manifest of the texts
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/manifest.json"))]
    pub manifest: PathBuf,
    /// Take the texts one after the other as one, so that a window may be longer than each
    #[arg(long, conflicts_with = "passkeys")]
    pub join: bool,
    /// Lengths in tokens [default: the model's own context to 8 times that]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub lengths: Vec<usize>,
    /// Length that the methods are configured for, in tokens [default: the longest of --lengths]
    #[arg(long, value_name = "TOKENS")]
    pub target: Option<usize>,
    /// Windows a length; they share no token, but with --stride
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub windows: usize,
    /// A configuration to measure beside none, PI, NTK-aware, dynamic NTK and YaRN, as `search` writes it: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    pub rope_scaling: Vec<String>,
    /// A schedule of factors by length to measure too, as `convert --to schedule` writes it: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    pub schedule: Vec<String>,
    /// Measure these methods alone, by their names [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub methods: Vec<String>,
    /// Method that the others' losses are compared with, window by window [default: the last one]
    #[arg(long, value_name = "NAME")]
    pub against: Option<String>,
    /// Count the last N tokens of each window alone [default: all]
    #[arg(long, value_name = "N", conflicts_with = "passkeys")]
    pub last: Option<usize>,
    /// Sliding windows: each may stand at any multiple of N tokens of a text, and its last N tokens count
    #[arg(long, value_name = "N", conflicts_with_all = ["passkeys", "last"])]
    pub stride: Option<usize>,
    /// Instead of perplexity, measure how many passkeys are retrieved: N prompts a length and depth
    #[arg(long, value_name = "N")]
    pub passkeys: Option<usize>,
    /// Depths at which the key stands, spread evenly from the beginning of the text to its end
    #[arg(long, value_name = "N", default_value_t = 5, requires = "passkeys")]
    pub depths: usize,
    /// Instead, ask what follows a passage of the texts: N questions a length, of four options each
    #[arg(long, value_name = "N", conflicts_with_all = ["passkeys", "last", "stride", "timing", "windows"])]
    pub choices: Option<usize>,
    /// Attention of this crate, or of candle's products and softmax
    #[arg(long, value_enum, default_value_t = AttentionKind::Fused)]
    pub attention: AttentionKind,
    /// Tokens that go through the model at a time; those of a longer sequence come in chunks, over a cache of its keys and values
    #[arg(long, value_name = "TOKENS", default_value_t = Llama::CHUNK)]
    pub chunk: usize,
    /// Time one more evaluation at each length, split into attention, rotation, matrix products and the rest
    #[arg(long)]
    pub timing: bool,
    /// Go on: what measured.json in the output directory holds is not measured again
    #[arg(long)]
    pub resume: bool,
    /// Directory for the tables
    #[arg(long, value_name = "DIR", default_value = "longrope-evaluate")]
    pub output: PathBuf,
}

impl Arguments {
    /// Counts within their ranges.
    pub fn check(&self) -> Result<()> {
        for (name, value, least) in [
            ("--windows", self.windows, 1),
            ("--last", self.last.unwrap_or(1), 1),
            ("--stride", self.stride.unwrap_or(1), 1),
            ("--passkeys", self.passkeys.unwrap_or(1), 1),
            ("--choices", self.choices.unwrap_or(1), 1),
            ("--depths", self.depths, 1),
        ] {
            ensure!(
                (least..=4096).contains(&value),
                "{name}: {value} is not valid; expected {least} to 4096"
            );
        }
        ensure!(self.chunk >= 1, "--chunk: {} is not valid; expected at least 1", self.chunk);
        Ok(())
    }

    /// How many of the last tokens of a window count; `None` is all.
    pub fn counted(&self) -> Option<usize> {
        self.last.or(self.stride)
    }

    /// The lengths asked for, each once, rising, and that which the methods are configured for.
    pub fn lengths(&self, config: &LlamaConfig) -> Result<(Vec<usize>, usize)> {
        let original = config.original_length();
        let mut lengths = match self.lengths.is_empty() {
            true => report::lengths(original, original.saturating_mul(8)),
            false => self.lengths.clone(),
        };
        lengths.sort_unstable();
        lengths.dedup();
        let (shortest, longest) = (lengths[0], lengths[lengths.len() - 1]);
        ensure!(shortest >= 2, "--lengths: {shortest} is not valid; expected at least 2");
        if let Some(target) = self.target {
            let least = longest.max(original.saturating_add(1));
            ensure!(target >= least, "--target: {target} is not valid; expected at least {least}");
            return Ok((lengths, target));
        }
        ensure!(
            longest > original,
            "--lengths: {longest} is not valid as the longest; expected more than the model's own context ({original})"
        );
        Ok((lengths, longest))
    }

    /// The usual methods for `length` tokens, and the configurations and schedules asked for.
    pub fn methods(&self, config: &LlamaConfig, length: usize) -> Result<Vec<(String, Method)>> {
        let mut baselines = methods::baselines(&config.rope, length)?;
        // Beside the NTK-aware one.
        baselines.insert(3, methods::dynamic_ntk(&config.rope, length)?);
        let mut methods: Vec<(String, Method)> = baselines
            .into_iter()
            .map(|method| (method.name.to_owned(), Method::Config(method.rope)))
            .collect();
        let mut add = |flag: &str, name: &str, path: &str, found: &Geometry, method: Method| -> Result<()> {
            let own = config.rope.geometry();
            ensure!(
                found == own,
                "{flag}: {path}: {found:?} is not valid; expected that of the model, {own:?}"
            );
            ensure!(
                !name.contains(',') && methods.iter().all(|(other, _)| other != name),
                "{flag}: {name} is not valid as a name; expected one of its own, without a comma"
            );
            methods.push((name.to_owned(), method));
            Ok(())
        };
        for argument in &self.rope_scaling {
            let (name, path) = argument.split_once('=').unwrap_or(("LongRoPE", argument));
            let json = files::read_text(Path::new(path))?;
            let rope = RopeConfig::from_hf_json(&json).with_context(|| path.to_owned())?;
            let geometry = *rope.geometry();
            add("--rope-scaling", name, path, &geometry, Method::Config(rope))?;
        }
        for argument in &self.schedule {
            let (name, path) = argument.split_once('=').unwrap_or(("schedule", argument));
            let json = files::read_text(Path::new(path))?;
            let schedule = Schedule::from_json(&json).with_context(|| path.to_owned())?;
            schedule.choose(length as u64).with_context(|| format!("--schedule: {path}"))?;
            let geometry = *schedule.geometry();
            add("--schedule", name, path, &geometry, Method::Schedule(schedule))?;
        }
        let names: Vec<String> = methods.iter().map(|(name, _)| name.clone()).collect();
        for name in &self.methods {
            ensure!(names.contains(name), "--methods: {name} is not valid; expected some of {names:?}");
        }
        methods.retain(|(name, _)| self.methods.is_empty() || self.methods.contains(name));
        Ok(methods)
    }
}
