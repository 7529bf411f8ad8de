//! Fine-tunes a model at a longer context, and measures it on text that it was not trained on.

mod arguments;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use longrope_drivers::corpus::{self, Window};
use longrope_drivers::model::{self, LoraAdapter, Opened, Origin, TrainedOn};
use longrope_drivers::progress::Progress;
use longrope_drivers::training::{
    self, Checkpoints, Factors, Method, Pack, Report, Run, TrainableLlama, Windows,
};
use longrope_drivers::{exit, interrupt, text};
use tokenizers::Tokenizer;

use arguments::Arguments;

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::install()?;
    arguments.check()?;
    let started = Instant::now();
    let origin = arguments.model.origin(arguments.adapter.as_deref());
    let path = &origin.model;
    let place = arguments.model.place()?;
    let memory_before = place.free_memory();
    let opened = model::open(path)?;
    let Opened { config, tokenizer, end_token, .. } = &opened;
    let length = arguments.length.unwrap_or_else(|| 4 * config.original_length());
    let factors = Factors::choose(&config.rope, path, length, arguments.rope_scaling.as_deref())?;
    let train_texts = corpus::train_texts(&arguments.manifest, &arguments.text)?;
    let documents = training::documents(&train_texts, tokenizer, arguments.separator.as_deref(), *end_token)?;
    let windows = Windows::new(&documents, length, arguments.packing, arguments.seed)?;
    let eval_texts = eval_texts(arguments, &origin, tokenizer, &train_texts)?;
    let eval_windows = corpus::windows(&eval_texts, length, arguments.eval_windows)?;
    let held_out: Vec<Pack> = eval_windows.iter().map(|window| Pack::one(window.tokens.to_vec())).collect();

    let model =
        TrainableLlama::new(config.clone(), &*opened.weights, &place, arguments.method(), arguments.seed)?
            .fitted(length)?;
    if let (Method::Lora(lora), Some(adapter)) = (model.method(), &arguments.adapter) {
        training::read_adapter(&model, lora, &LoraAdapter::open(adapter)?)?;
    }
    let output = &arguments.output;
    fs::create_dir_all(output).with_context(|| format!("{}: can't be made", output.display()))?;
    let recipe = arguments.recipe();
    let settings = training::settings(&origin, &model, &factors, &windows, &held_out, &recipe)?;
    let checkpoints = Checkpoints::new(output, settings, arguments.changed);
    let mut rotary = Rotary::new(factors.sets.clone(), SetChoice::ByLength(length as u64));
    rotary.pairing = model.config().pairing;
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
    let costs = Costs {
        peak,
        memory: place.memory_taken(memory_before),
        memory_line: place.memory_line(memory_before),
        started,
    };
    let trained_on = trained_on(&origin, &train_texts)?;
    let from = (path.as_path(), &opened, trained_on.as_ref());
    finish(arguments, from, &factors, &run, &eval_windows, &costs).inspect_err(|error| {
        if error.is::<interrupt::Interrupted>() {
            eprintln!("stopped before the report; --resume goes on with it");
        }
    })
}

/// What a run takes of a device.
struct Costs {
    /// Its rate, where that is known.
    peak: Option<f64>,
    memory: Option<u64>,
    memory_line: String,
    started: Instant,
}

/// The texts that the loss is measured on, before and after.
fn eval_texts(
    arguments: &Arguments,
    origin: &Origin,
    tokenizer: &Tokenizer,
    trained_on: &[corpus::Text],
) -> Result<Vec<(String, Vec<u32>)>> {
    let texts = corpus::eval_texts(&arguments.manifest, ("--eval-text", &arguments.eval_text), origin)?;
    let read = |eval: corpus::Text| {
        // One of role train, of which this model has read nothing so far.
        let trained = trained_on.iter().any(|text| text.path == eval.path);
        ensure!(!trained, "--eval-text: {} is not valid beside the same --text; expected another", eval.name);
        Ok((eval.name, text::read_tokens(&eval.path, tokenizer)?))
    };
    texts.into_iter().map(read).collect()
}

/// The texts of this run, and of those before it that made the adapter it began with: `None` if these are not known.
fn trained_on(origin: &Origin, texts: &[corpus::Text]) -> Result<Option<TrainedOn>> {
    let mut all = match &origin.adapter {
        Some(adapter) => match TrainedOn::of(adapter)? {
            Some(earlier) => earlier.texts,
            None => return Ok(None),
        },
        None => Vec::new(),
    };
    for text in texts {
        if !all.contains(&text.name) {
            all.push(text.name.clone());
        }
    }
    Ok(Some(TrainedOn { texts: all }))
}

/// Measures the model again, writes it and the report, and prints that.
fn finish(
    arguments: &Arguments,
    (path, opened, trained_on): (&Path, &Opened, Option<&TrainedOn>),
    factors: &Factors,
    run: &Run<'_>,
    held_out: &[Window<'_>],
    costs: &Costs,
) -> Result<()> {
    let (model, done, output) = (run.model(), run.done(), &arguments.output);
    let packs: Vec<Pack> = held_out.iter().map(|window| Pack::one(window.tokens.to_vec())).collect();
    let after = run.loss(&packs)?;
    ensure!(
        after.is_finite(),
        "the loss after the last step is {after}; expected to be with a lower --learning-rate"
    );
    let dropped = training::merged(model, path, opened, &factors.source, &output.join("model"))?;
    for dropped in dropped {
        eprintln!("config.json leaves out {dropped}");
    }
    let mut written = vec!["model"];
    if let Method::Lora(lora) = model.method() {
        training::adapter(model, lora, path, trained_on, &output.join("adapter"))?;
        written.push("adapter");
    }
    let kind = (factors.length, factors.name.as_str());
    let mut report = Report::new(done, kind, (run.operations(), costs.peak), after, held_out);
    report.memory_bytes = costs.memory;
    written.extend(report.write(done, output)?);
    let mut out = report.to_string();
    for name in written {
        out += &format!("wrote {}\n", output.join(name).display());
    }
    out += &format!("{}{:.1} s in all\n", costs.memory_line, costs.started.elapsed().as_secs_f64());
    std::io::stdout().write_all(out.as_bytes()).context("the standard output can't be written")
}
