//! Fine-tunes a model at a longer context, and measures it on text that it was not trained on.

mod arguments;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use longrope_drivers::model::{self, Opened, Place};
use longrope_drivers::progress::Progress;
use longrope_drivers::training::{
    self, Checkpoints, Factors, Method, Pack, Run, TrainableLlama, Windows, fingerprint,
};
use longrope_drivers::{corpus, files, interrupt, memory, report, text};

use arguments::Arguments;

/// The model that the repository ships.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/tiny");

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => ExitCode::from(interrupt::EXIT_STATUS),
        Err(error) => {
            eprintln!("error: {}", report::error_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::install()?;
    arguments.check()?;
    let started = Instant::now();
    let path = arguments.model.clone().unwrap_or_else(|| PathBuf::from(MODEL));
    let place = Place::choose(arguments.device, arguments.dtype)?;
    let opened = model::open(&path)?;
    let config = &opened.config;
    let length = arguments.length.unwrap_or_else(|| 4 * config.original_length());
    let factors = Factors::choose(&config.rope, &path, length, arguments.rope_scaling.as_deref())?;
    let train_texts = corpus::train_texts(&arguments.manifest, &arguments.text)?;
    let end = opened.end_token;
    let documents =
        training::documents(&train_texts, &opened.tokenizer, arguments.separator.as_deref(), end)?;
    let windows = Windows::new(&documents, length, arguments.packing, arguments.seed)?;
    let held_out = held_out(arguments, &path, &opened, length)?;

    let model =
        TrainableLlama::new(config.clone(), &*opened.weights, &place, arguments.method(), arguments.seed)?;
    let needed = memory::of_training(config, length, model.trained(), &place);
    memory::check(&format!("training on {length} tokens"), needed, &place)?;
    if let (Method::Lora(lora), Some(adapter)) = (model.method(), &arguments.adapter) {
        training::read_adapter(&model, lora, adapter)?;
    }
    let output = &arguments.output;
    fs::create_dir_all(output).with_context(|| format!("{}: can't be made", output.display()))?;
    let settings = settings(arguments, &path, &model, &factors, &documents, &held_out)?;
    let checkpoints = Checkpoints::new(output, settings);
    let mut rotary = Rotary::new(factors.sets.clone(), SetChoice::ByLength(length as u64));
    rotary.pairing = model.config().pairing;
    let recipe = arguments.recipe();
    let newest = checkpoints.newest()?;
    eprintln!(
        "{}: {} of {:.2} M parameters trained at {length} tokens with the factors of {}, {place}",
        path.display(),
        model.trained(),
        config.parameters() as f64 / 1e6,
        factors.name
    );
    let mut run = match (&newest, arguments.resume) {
        (Some(newest), true) => Run::resumed(&model, &windows, &rotary, recipe, (&checkpoints, newest))?,
        (None, false) => Run::new(&model, &windows, &rotary, recipe, &held_out)?,
        (None, true) => bail!("--resume: no checkpoint in {}; run without it", output.display()),
        (Some(newest), false) => bail!(
            "--output: {} is of an earlier run; expected --resume, which continues it, or another directory",
            newest.display()
        ),
    };
    let peak = arguments.peak.map(|peak| peak * 1e12).or_else(|| training::peak(&place.to_string()));
    run.train(&checkpoints, &Progress::new("steps"), peak)?;
    finish(arguments, &path, &opened, &factors, &run, &held_out, started)
}

/// The windows that the loss is measured on, before and after.
fn held_out(arguments: &Arguments, path: &Path, opened: &Opened, length: usize) -> Result<Vec<Pack>> {
    let texts = corpus::eval_texts(&arguments.manifest, &arguments.eval_text, path)?
        .into_iter()
        .map(|eval| Ok((eval.name, text::read_tokens(&eval.path, &opened.tokenizer)?)))
        .collect::<Result<Vec<_>>>()?;
    let windows = corpus::windows(&texts, length, arguments.eval_windows)?;
    Ok(windows.iter().map(|window| Pack::one(window.tokens.to_vec())).collect())
}

/// All that the steps depend on.
fn settings(
    arguments: &Arguments,
    path: &Path,
    model: &TrainableLlama,
    factors: &Factors,
    documents: &[Vec<u32>],
    held_out: &[Pack],
) -> Result<training::Settings> {
    let recipe = arguments.recipe();
    let mut settings = vec![
        ("--model", fingerprint::model(path)?),
        ("--text", fingerprint::tokens(documents.iter().map(Vec::as_slice))),
        ("--eval-text", fingerprint::tokens(held_out.iter().map(Pack::tokens))),
        ("--rope-scaling", fingerprint::text(&factors.described()?)),
        ("--dtype", format!("{:?}", model.place().dtype).to_lowercase()),
        ("--length", factors.length.to_string()),
        ("--packing", arguments.packing.to_string()),
        ("--steps", arguments.steps.to_string()),
        ("--batch", recipe.batch.to_string()),
        ("--learning-rate", recipe.learning_rate.highest.to_string()),
        ("--warm-up", recipe.learning_rate.warm_up.to_string()),
        ("--weight-decay", recipe.weight_decay.to_string()),
        ("--clip", recipe.clip.to_string()),
        ("--seed", arguments.seed.to_string()),
        ("--lora", arguments.lora.map_or("off".to_owned(), |rank| rank.to_string())),
    ];
    if let Method::Lora(lora) = model.method() {
        let targets: Vec<String> = lora.projections.iter().map(ToString::to_string).collect();
        settings.push(("--alpha", lora.alpha.to_string()));
        settings.push(("--lora-targets", targets.join(",")));
    }
    if let Some(adapter) = &arguments.adapter {
        settings.push(("--adapter", fingerprint::model(adapter)?));
    }
    Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Measures the model again, writes it and the report, and prints that.
fn finish(
    arguments: &Arguments,
    path: &Path,
    opened: &Opened,
    factors: &Factors,
    run: &Run<'_>,
    held_out: &[Pack],
    started: Instant,
) -> Result<()> {
    let (model, done, output) = (run.model(), run.done(), &arguments.output);
    let after = run.loss(held_out)?;
    let dropped = training::merged(model, path, opened, &factors.source, &output.join("model"))?;
    for dropped in dropped {
        eprintln!("config.json leaves out {dropped}");
    }
    let mut written = vec!["model"];
    if let Method::Lora(lora) = model.method() {
        training::adapter(model, lora, path, &output.join("adapter"))?;
        written.push("adapter");
    }
    let seconds: f64 = done.history.iter().map(|record| record.seconds).sum();
    let tokens: usize = done.history.iter().map(|record| record.tokens).sum();
    let summary = format!(
        "{} steps of {} tokens at a length of {}, with the factors of {}: {:.1} s, {:.0} tokens/s.\n\
         Loss on {} windows that were not trained on: {:.4} before, {after:.4} after (perplexity {:.3}, {:.3}).\n",
        done.history.len(),
        tokens / done.history.len().max(1),
        factors.length,
        factors.name,
        seconds,
        tokens as f64 / seconds,
        held_out.len(),
        done.loss_before,
        done.loss_before.exp(),
        after.exp(),
    );
    for (name, contents) in [
        ("loss.csv", training::curve_csv(&done.history)),
        ("loss.svg", training::curve_svg(&done.history, done.loss_before, after)?),
        ("report.txt", summary.clone()),
    ] {
        files::write_atomically(&output.join(name), &contents)?;
        written.push(name);
    }
    let mut out = summary;
    for name in written {
        out += &format!("wrote {}\n", output.join(name).display());
    }
    out += &format!("{:.1} s in all\n", started.elapsed().as_secs_f64());
    ensure!(after.is_finite(), "the loss after the last step is {after}");
    std::io::stdout().write_all(out.as_bytes()).context("the standard output can't be written")
}
