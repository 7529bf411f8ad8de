//! Searches LongRoPE interpolation factors for a model, and measures them on text the search has not seen.

mod arguments;
mod report;
mod results;
mod start;
mod texts;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use longrope_drivers::convergence::Curve;
use longrope_drivers::model::Llama;
use longrope_drivers::progress::Progress;
use longrope_drivers::search_run::{self, CheckpointFile, Samples, Task};
use longrope_drivers::{exit, interrupt, memory, passkey, text};

use arguments::{Arguments, Objective};
use texts::Texts;

/// The texts that the repository ships.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// The prompts of a search are the same for every seed of it, and others than those of `evaluate`.
const PASSKEY_SEED: u64 = 1;

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::install()?;
    let started = Instant::now();
    let origin = arguments.model.origin(arguments.adapter.as_deref());
    let place = arguments.model.place()?;
    let (model, tokenizer) = origin.load_at(&place)?;
    let target = start::target(arguments, model.config())?;
    let length = target.length();
    arguments.check(length)?;
    let others = arguments.compare.iter().map(|file| Curve::read(file)).collect::<Result<Vec<_>>>()?;
    let needed = memory::required(model.config(), length, Llama::CHUNK, &place);
    memory::check(&format!("a window of {length} tokens"), needed, &place)?;
    let texts = Texts::read(arguments, &tokenizer)?;
    if arguments.eval_windows > 0 {
        // Before the search rather than after it: is there enough unseen text?
        text::windows(&texts.eval_name, &texts.eval, length, 1)?;
    }
    let samples = match arguments.objective {
        Objective::Perplexity => Samples::Text {
            windows: text::windows(&texts.search_name, &texts.search, length, arguments.windows())?,
            last: arguments.last,
        },
        Objective::Passkey => {
            Samples::Passkeys(passkey::prompts(&tokenizer, length, arguments.windows(), 1, PASSKEY_SEED)?)
        }
    };
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("{}: can't be made", arguments.output.display()))?;

    let attention_factor = match arguments.searches_attention_factor() {
        true => target.rule(),
        false => target.fixed_attention_factor()?,
    };
    let task = Task {
        model: &model,
        target,
        attention_factor,
        samples,
        short_cuts: arguments.short_cuts(),
        evaluations: arguments.evaluations.unwrap_or(usize::MAX),
    };
    let fingerprint = task.fingerprint(&origin)?;
    let mut checkpoint = CheckpointFile::new(arguments.output.join("checkpoint.json"), fingerprint);
    let mut run = start::start(arguments, model.config(), &task.target, &checkpoint)?;
    eprintln!(
        "{origin} ({:.1} M parameters, context {}): searching factors for {length} tokens {place}",
        model.config().parameters() as f64 / 1e6,
        model.config().original_length()
    );
    search_run::run(&mut run, &task, &mut checkpoint, &Progress::new("evaluations"))?;
    results::write((arguments, &origin), (&task, &run), &texts, others, started).inspect_err(|error| {
        if error.is::<interrupt::Interrupted>() {
            let path = checkpoint.path().display();
            eprintln!("stopped before the table; --resume continues from {path}");
        }
    })
}
