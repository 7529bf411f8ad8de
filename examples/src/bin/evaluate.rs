//! Measures the perplexity of a model under several rotary embeddings, at several lengths, on texts that nothing was searched
//! or trained on.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use longrope::scaling::{Geometry, RopeConfig, Schedule};
use longrope_drivers::corpus::{self, Window};
use longrope_drivers::evaluation::{self, Cell, Method};
use longrope_drivers::model::{self, DeviceKind, LlamaConfig, Place, WeightType};
use longrope_drivers::progress::Progress;
use longrope_drivers::{files, interrupt, memory, methods, report, text};

/// The model and the texts that the repository ships.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// Measures the perplexity of a Llama by method and length, as a mean over fixed windows with its standard error.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Model: a Hugging Face directory or a GGUF file [default: the byte-level Llama of the repository]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Text to measure on, by its name in the manifest; its role must be eval [default: those that are committed]
    #[arg(long, value_name = "NAME")]
    text: Vec<String>,
    /// The manifest of the texts
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/manifest.json"))]
    manifest: PathBuf,
    /// Lengths in tokens; the methods are configured for the longest [default: the model's own context to 8 times that]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Windows a length; they share no token
    #[arg(long, value_name = "N", default_value_t = 8)]
    windows: usize,
    /// A configuration to measure beside none, PI, NTK-aware and YaRN, as `search` writes it: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    rope_scaling: Vec<String>,
    /// A schedule of factors by length to measure too, as `convert --to schedule` writes it: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    schedule: Vec<String>,
    /// Directory for the tables
    #[arg(long, value_name = "DIR", default_value = "longrope-evaluate")]
    output: PathBuf,
    /// Where the model runs [default: a GPU where this build can use one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
}

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
    ensure!(
        (2..=4096).contains(&arguments.windows),
        "--windows: {} is not valid; expected 2 to 4096",
        arguments.windows
    );
    let texts = corpus::eval_texts(&arguments.manifest, &arguments.text)?;
    let place = Place::choose(arguments.device, arguments.dtype)?;
    let model_path = arguments.model.clone().unwrap_or_else(|| Path::new(DATA).join("models/tiny"));
    let (model, tokenizer) = model::load_at(&model_path, &place)?;
    let config = model.config();
    let lengths = lengths(arguments, config)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    memory::check(
        &format!("a window of {longest} tokens"),
        memory::required(config, longest, &place),
        &place,
    )?;
    let methods = methods(arguments, config, longest)?;

    let texts = texts
        .into_iter()
        .map(|eval| Ok((eval.name, text::read_tokens(&eval.path, &tokenizer)?)))
        .collect::<Result<Vec<_>>>()?;
    let windows = lengths
        .iter()
        .map(|&length| corpus::windows(&texts, length, arguments.windows))
        .collect::<Result<Vec<Vec<Window<'_>>>>>()?;
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("{}: can't be made", arguments.output.display()))?;
    eprintln!(
        "{}: {} evaluations {place}",
        model_path.display(),
        windows.len() * methods.len() * arguments.windows
    );

    let progress = Progress::new("evaluations");
    let planned = windows.len() * methods.len() * arguments.windows;
    progress.start(0, planned);
    let cells =
        evaluation::measure(&model, &methods, &windows, |done| progress.update(done, planned, f64::NAN));
    progress.finish();
    let cells = cells?;

    let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
    let origin = match model::quantisation(&model_path)? {
        Some(kind) => format!(", dequantised from {kind}"),
        None => String::new(),
    };
    let name = model_path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
    let summary = format!(
        "Perplexity of {name}{origin}, {place}, on {} ({} windows a length, mean ± standard error; * marks the \
         lowest).\nMethods are configured for {longest} tokens.\n\n{}\n{}",
        names.join(", "),
        arguments.windows,
        evaluation::to_text(&cells),
        times(&cells),
    );
    for (file, contents) in [
        ("perplexity.txt", &summary),
        ("perplexity.csv", &evaluation::to_csv(&cells)),
        ("windows.csv", &evaluation::windows_csv(&cells)),
    ] {
        files::write_atomically(&arguments.output.join(file), contents)?;
    }
    std::io::stdout().write_all(summary.as_bytes()).context("the standard output can't be written")
}

/// The lengths asked for, each once, rising.
fn lengths(arguments: &Arguments, config: &LlamaConfig) -> Result<Vec<usize>> {
    let original = config.original_length();
    let mut lengths = match arguments.lengths.is_empty() {
        true => report::lengths(original, original.saturating_mul(8)),
        false => arguments.lengths.clone(),
    };
    lengths.sort_unstable();
    lengths.dedup();
    let (shortest, longest) = (lengths[0], lengths[lengths.len() - 1]);
    ensure!(shortest >= 2, "--lengths: {shortest} is not valid; expected at least 2");
    ensure!(
        longest > original,
        "--lengths: {longest} is not valid as the longest; expected more than the model's own context ({original})"
    );
    Ok(lengths)
}

/// The usual methods for `length` tokens, and the configurations and schedules asked for.
fn methods(arguments: &Arguments, config: &LlamaConfig, length: usize) -> Result<Vec<(String, Method)>> {
    let mut methods: Vec<(String, Method)> = methods::baselines(&config.rope, length)?
        .into_iter()
        .map(|method| (method.name.to_owned(), Method::Config(method.rope)))
        .collect();
    let mut add = |flag: &str, name: &str, path: &str, found: &Geometry, method: Method| -> Result<()> {
        let own = config.rope.geometry();
        ensure!(found == own, "{flag}: {path}: {found:?} is not valid; expected that of the model, {own:?}");
        ensure!(
            !name.contains(',') && methods.iter().all(|(other, _)| other != name),
            "{flag}: {name} is not valid as a name; expected one of its own, without a comma"
        );
        methods.push((name.to_owned(), method));
        Ok(())
    };
    for argument in &arguments.rope_scaling {
        let (name, path) = argument.split_once('=').unwrap_or(("LongRoPE", argument));
        let json = files::read_text(Path::new(path))?;
        let rope = RopeConfig::from_hf_json(&json).with_context(|| path.to_owned())?;
        let geometry = *rope.geometry();
        add("--rope-scaling", name, path, &geometry, Method::Config(rope))?;
    }
    for argument in &arguments.schedule {
        let (name, path) = argument.split_once('=').unwrap_or(("schedule", argument));
        let json = files::read_text(Path::new(path))?;
        let schedule = Schedule::from_json(&json).with_context(|| path.to_owned())?;
        schedule.choose(length as u64).with_context(|| format!("--schedule: {path}"))?;
        let geometry = *schedule.geometry();
        add("--schedule", name, path, &geometry, Method::Schedule(schedule))?;
    }
    Ok(methods)
}

/// The median time of an evaluation at each length.
fn times(cells: &[Cell]) -> String {
    let mut lines = String::new();
    for (i, cell) in cells.iter().enumerate() {
        if i == 0 || cells[i - 1].length != cell.length {
            let same = cells.iter().filter(|other| other.length == cell.length);
            let windows = same.flat_map(|cell| cell.windows.clone()).collect();
            let all = Cell { length: cell.length, method: String::new(), windows };
            lines += &format!("{} tokens: {:.3} s an evaluation\n", cell.length, all.seconds());
        }
    }
    lines
}
