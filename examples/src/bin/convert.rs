//! Converts interpolation factors between the formats that engines read.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use longrope::scaling::hf::Generation;
use longrope::scaling::{RopeConfig, factors_to_csv};
use longrope_drivers::convert::{self, Kind, Loss, Source};
use longrope_drivers::gguf::{self, Header};
use longrope_drivers::progress::Progress;
use longrope_drivers::{exit, files, interrupt};

/// Converts interpolation factors between Hugging Face configurations, the authors' CSV files, GGUF models, and schedules.
///
/// What the format can't hold is an error, unless --drop says that it may go.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// File to read, of any format: PATH, or TOKENS=PATH for a CSV file (the length of its factors) and for one bucket of
    /// a schedule. Several make a schedule
    #[arg(long, value_name = "PATH", required = true)]
    from: Vec<String>,
    /// Format to write
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// Model: the GGUF file to copy with the factors (needed for gguf), the config.json to merge them into (hf-new, hf-old),
    /// and what a CSV file is read for
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// What may be lost; may be repeated
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    drop: Vec<Loss>,
    /// File to write
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// config.json of transformers 5: rope_parameters
    HfNew,
    /// config.json of transformers 4, vLLM and llama.cpp's converter: rope_scaling
    HfOld,
    /// The authors' CSV: one factor a line
    Csv,
    /// A GGUF model with factor tensors
    Gguf,
    /// Factors by length, as JSON
    Schedule,
}

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::install()?;
    let (mut sources, mut summary) = (Vec::new(), String::new());
    for from in &arguments.from {
        let (kind, source) = Source::read(from, arguments.model.as_deref())?;
        summary += &format!("read {kind}, {from}: {}\n", described(&source));
        sources.push(source);
    }
    let dropped = match (arguments.to, sources.as_slice()) {
        (Format::Schedule, sources) => {
            let schedule = convert::schedule(sources)?;
            summary += &format!("as {}\n", described(&Source::Schedule(schedule.clone())));
            files::write_atomically(&arguments.output, &pretty(&schedule.to_json())?)?;
            Vec::new()
        }
        (_, [source]) => write(arguments, source)?,
        (_, sources) => {
            bail!("--from: {} files are not valid; expected one, or --to schedule", sources.len())
        }
    };
    for dropped in dropped {
        summary += &format!("dropped: {dropped}\n");
    }
    summary += &format!("wrote {}\n", arguments.output.display());
    std::io::stdout().write_all(summary.as_bytes()).context("the standard output can't be written")
}

/// Writes the factors of one file in a format that has no buckets, and says what was lost.
fn write(arguments: &Arguments, source: &Source) -> Result<Vec<String>> {
    let (drop, output) = (arguments.drop.as_slice(), arguments.output.as_path());
    let hugging_face = |generation| -> Result<Vec<String>> {
        let mut model = None;
        if let Some(path) = arguments.model.as_deref().map(convert::config_in) {
            // A GGUF model has no configuration to merge into: it is what a CSV file is read for.
            if Kind::of(&path)? == Kind::HuggingFace {
                model = Some(files::read_text(&path)?);
            }
        }
        let written = convert::hugging_face(source, generation, model.as_deref(), drop)?;
        files::write_atomically(output, &pretty(&written.contents)?)?;
        Ok(written.dropped)
    };
    match arguments.to {
        Format::HfNew => hugging_face(Generation::RopeParameters),
        Format::HfOld => hugging_face(Generation::RopeScaling),
        Format::Csv => {
            let written = convert::one_set(source, drop)?;
            files::write_atomically(output, &factors_to_csv(&written.contents))?;
            Ok(written.dropped)
        }
        Format::Gguf => {
            let Some(model) = &arguments.model else {
                bail!("--model: missing; expected the GGUF file that is to get the factors");
            };
            let written = convert::longrope_for_gguf(source, drop)?;
            write_gguf(model, &written.contents, output)?;
            Ok(written.dropped)
        }
        Format::Schedule => bail!("--to: a schedule is made of all files at once"),
    }
}

/// Copies `model` with other factors.
fn write_gguf(model: &Path, rope: &RopeConfig, output: &Path) -> Result<()> {
    let same = |path: &Path| fs::canonicalize(path).ok();
    ensure!(
        same(model).is_none() || same(model) != same(output),
        "--output: {} is the model itself; expected another file",
        output.display()
    );
    let shown = || format!("{}", model.display());
    let (header, mut file) = Header::open(model)?;
    let changes = gguf::changes(&header, rope).with_context(shown)?;
    let progress = Progress::new("MiB written");
    progress.start(0, (header.file_bytes >> 20) as usize);
    let copied = gguf::copy(&header, &mut file, &changes, output, |done, total| {
        progress.update((done >> 20) as usize, (total >> 20) as usize, f64::NAN);
    });
    progress.finish();
    copied.with_context(shown)
}

/// What a file holds, in a line.
fn described(source: &Source) -> String {
    match source {
        Source::Config(rope) => format!(
            "{} pairs, {} to {} tokens, attention factor {:.4}",
            rope.geometry().pairs(),
            rope.geometry().original_length(),
            rope.max_length(),
            rope.attention_factor()
        ),
        Source::Schedule(schedule) => {
            let buckets: Vec<String> = schedule.buckets().iter().map(|b| b.max_length.to_string()).collect();
            format!("{} pairs, sets up to {} tokens", schedule.geometry().pairs(), buckets.join(", "))
        }
    }
}

fn pretty(json: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(json)? + "\n")
}
