//! Searches LongRoPE interpolation factors for a model, and measures them on text the search has not seen.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use longrope::scaling::hf::Generation;
use longrope::scaling::{RopeConfig, rescale};
use longrope::search::{
    Candidate, CmaEs, Evolution, Operators, Optimiser, Search, paper_seeds, released_seeds,
};
use longrope_drivers::convergence::{self, Curve};
use longrope_drivers::methods::{self, Method};
use longrope_drivers::model::{self, DeviceKind, Llama, Place, WeightType};
use longrope_drivers::progress::Progress;
use longrope_drivers::search_run::{self, CheckpointFile, EarlyDrop, Run, Task};
use longrope_drivers::{files, interrupt, memory, plot, report, text};

/// The model and the texts that the repository ships.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// Searches LongRoPE interpolation factors for a Llama, and compares them with other methods on unseen text.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Model: a Hugging Face directory or a GGUF file [default: the byte-level Llama of the repository]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Text: the search uses its first half, the table its second [default: Moby Dick, in two files]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Measure the table on this text instead, and search on all of --text
    #[arg(long, value_name = "FILE", requires = "text")]
    eval_text: Option<PathBuf>,
    /// Context to search for, in tokens [default: 8 times the model's own]
    #[arg(long, value_name = "TOKENS")]
    length: Option<usize>,
    /// Seed of the search
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue from the checkpoint in the output directory
    #[arg(long)]
    resume: bool,
    /// Directory for the checkpoint, the configuration, CSV files and plots
    #[arg(long, value_name = "DIR", default_value = "longrope-search")]
    output: PathBuf,
    /// Windows of text a candidate is measured on
    #[arg(long, value_name = "N", default_value_t = 2)]
    windows: usize,
    /// Windows of unseen text per cell of the table
    #[arg(long, value_name = "N", default_value_t = 8)]
    eval_windows: usize,
    /// How candidates are chosen: a separable CMA-ES, Algorithm 1 of the paper, or the authors' released code
    #[arg(long, value_enum, default_value_t = OptimiserKind::CmaEs)]
    optimiser: OptimiserKind,
    /// Evaluations of cma-es [default: 96]
    #[arg(long, value_name = "N")]
    evaluations: Option<usize>,
    /// Individuals of the first population of paper and released [default: 32; the paper: 64]
    #[arg(long, value_name = "N")]
    population: Option<usize>,
    /// Iterations of paper and released after the first population [default: 10; the paper: 40]
    #[arg(long, value_name = "N")]
    iterations: Option<usize>,
    /// Mutants, and as many crossovers, of an iteration of paper and released [default: 8; the paper: 16]
    #[arg(long, value_name = "N")]
    offspring: Option<usize>,
    /// Whether the attention factor is searched too, by cma-es, or is √(1 + ln scale / ln original length), LongRoPE's rule
    /// [default: searched by cma-es, else fixed]
    #[arg(long, value_enum)]
    attention_factor: Option<AttentionFactor>,
    /// Also search how many first tokens stay un-interpolated (n_hat), which no engine's configuration can hold
    #[arg(long)]
    first_tokens: bool,
    /// Leave a candidate after its first window where its loss there is more than so many nats a token above the best
    /// candidate's; or off
    #[arg(long, value_name = "NATS", default_value_t = EarlyDrop(Some(0.02)))]
    early_drop: EarlyDrop,
    /// Draw another run's history.csv into convergence.svg: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    compare: Vec<String>,
    /// Where the model runs [default: a GPU where this build can use one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OptimiserKind {
    CmaEs,
    Paper,
    Released,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum AttentionFactor {
    Fixed,
    Searched,
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
    let started = Instant::now();
    let model_path = arguments.model.clone().unwrap_or_else(|| Path::new(DATA).join("models/tiny"));
    let place = Place::choose(arguments.device, arguments.dtype)?;
    let (model, tokenizer) = model::load_at(&model_path, &place)?;
    let original = model.config().original_length();
    let length = arguments.length.unwrap_or(original.saturating_mul(8));
    ensure!(
        length > original,
        "--length: {length} is not valid; expected more than the model's own context ({original})"
    );
    for (name, value, least) in [
        ("--windows", arguments.windows, 1),
        ("--eval-windows", arguments.eval_windows, 1),
        // The three methods that seed it.
        ("--evaluations", arguments.evaluations.unwrap_or(EVALUATIONS), 3),
        ("--population", arguments.population.unwrap_or(POPULATION), 3),
        ("--offspring", arguments.offspring.unwrap_or(OFFSPRING), 1),
    ] {
        ensure!((least..=4096).contains(&value), "{name}: {value} is not valid; expected {least} to 4096");
    }
    check_optimiser(arguments)?;
    let others = arguments.compare.iter().map(|file| Curve::read(file)).collect::<Result<Vec<_>>>()?;
    let needed = memory::required(model.config(), length, &place);
    memory::check(&format!("a window of {length} tokens"), needed, &place)?;
    let texts = Texts::read(arguments, &tokenizer)?;
    let unseen = (texts.eval_name.as_str(), texts.eval.as_slice());
    // Before the search rather than after it: is there enough unseen text?
    text::windows(unseen.0, unseen.1, length, 1)?;
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("{}: can't be made", arguments.output.display()))?;

    let windows = text::windows(&texts.search_name, &texts.search, length, arguments.windows)?;
    let task = Task { model: &model, windows, length, early_drop: arguments.early_drop };
    let fingerprint = task.fingerprint(&model_path)?;
    let mut checkpoint = CheckpointFile::new(arguments.output.join("checkpoint.json"), fingerprint);
    let mut run = start(arguments, &model, length, &checkpoint)?;
    eprintln!(
        "{} ({:.1} M parameters, context {original}): searching factors for {length} tokens {place}",
        model_path.display(),
        model.config().parameters() as f64 / 1e6
    );
    search_run::run(&mut run, &task, &mut checkpoint, &Progress::new("evaluations"))?;
    let best = run.search.best().context("no candidate has a finite perplexity")?;

    let mut methods = methods::baselines(&model.config().rope, length)?;
    methods.push(Method { name: "LongRoPE", rope: task.rope(&best.candidate)? });
    let progress = Progress::new("cells of the table");
    let lengths = report::lengths(original, length);
    progress.start(0, lengths.len() * methods.len());
    let table = report::measure(&model, &methods, unseen, arguments.eval_windows, lengths, |done, cells| {
        progress.update(done, cells, best.value);
    });
    progress.finish();
    let table = table.inspect_err(|_| {
        eprintln!("stopped before the table; --resume continues from {}", checkpoint.path().display());
    })?;

    // A closed pipe costs none of the files: it is reported after they are written.
    let printed = print(&format!(
        "Perplexity on {}, which the search has not seen ({} windows a length; * marks the lowest):\n{}",
        texts.eval_name,
        arguments.eval_windows,
        table.to_text()
    ));
    let mut summary = String::new();
    let config = &methods[methods.len() - 1].rope;
    let mut output = |name: &str, contents: &str| -> Result<()> {
        let path = arguments.output.join(name);
        files::write_atomically(&path, contents)?;
        writeln!(summary, "wrote {}", path.display())?;
        Ok(())
    };
    let json = serde_json::to_string_pretty(&config.to_hf(Generation::RopeScaling))?;
    output("rope_scaling.json", &(json + "\n"))?;
    let rule = rescale::longrope_attention_factor(run.search.scale(), original as u64);
    let history = report::history_csv(&run, length, rule);
    output("history.csv", &history)?;
    output("perplexity.csv", &table.to_csv())?;
    output("perplexity.svg", &plot::perplexity_by_length(&table)?)?;
    let lines: Vec<_> = methods.iter().map(|method| (method.name, &method.rope)).collect();
    output("factors.svg", &plot::factors_by_pair(&lines)?)?;
    let mut curves = vec![Curve::parse(kind_name(arguments.optimiser), &history)?];
    curves.extend(others);
    output("convergence.svg", &convergence::plot(&curves)?)?;
    if config.first_tokens() > 0 {
        writeln!(
            summary,
            "The best candidate leaves the first {} tokens alone; Hugging Face's format has no field for that, so \
             other engines ignore `n_hat`.",
            config.first_tokens()
        )?;
    }
    let windows = task.windows.len();
    let dropped = run.costs.iter().filter(|cost| cost.windows < windows).count();
    writeln!(
        summary,
        "{} evaluations in {:.0?}: {} model tokens, {dropped} candidates left after their first window",
        run.search.evaluations(),
        started.elapsed(),
        run.windows() * length
    )?;
    printed.and_then(|()| print(&summary))
}

/// Writes to the standard output; unlike `print!`, fails where that is closed or full.
fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("the standard output can't be written")
}

/// Sizes of a search where no flag says another.
const EVALUATIONS: usize = 96;
const POPULATION: usize = 32;
const ITERATIONS: usize = 10;
const OFFSPRING: usize = 8;

fn kind_name(kind: OptimiserKind) -> &'static str {
    match kind {
        OptimiserKind::CmaEs => "cma-es",
        OptimiserKind::Paper => "paper",
        OptimiserKind::Released => "released",
    }
}

/// Flags of one optimiser are refused with another, rather than ignored.
fn check_optimiser(arguments: &Arguments) -> Result<()> {
    let (kind, searched) =
        (arguments.optimiser, arguments.attention_factor == Some(AttentionFactor::Searched));
    let cma_es = kind == OptimiserKind::CmaEs;
    for (name, given, valid, with) in [
        ("--evaluations", arguments.evaluations.is_some(), cma_es, "cma-es"),
        ("--attention-factor searched", searched, cma_es, "cma-es"),
        ("--population", arguments.population.is_some(), !cma_es, "paper or released"),
        ("--iterations", arguments.iterations.is_some(), !cma_es, "paper or released"),
        ("--offspring", arguments.offspring.is_some(), !cma_es, "paper or released"),
        ("--first-tokens", arguments.first_tokens, kind != OptimiserKind::Released, "cma-es or paper"),
    ] {
        let name_of_kind = kind_name(kind);
        ensure!(
            valid || !given,
            "{name}: not valid with --optimiser {name_of_kind}; expected --optimiser {with}"
        );
    }
    Ok(())
}

/// The optimiser that the flags ask for, and what it begins with.
fn optimiser(arguments: &Arguments, rope: &RopeConfig, scale: f64) -> (Optimiser, Vec<Candidate>) {
    let (geometry, kind) = (rope.geometry(), arguments.optimiser);
    let paper = Evolution::default();
    let first_tokens = if arguments.first_tokens { paper.first_tokens.clone() } else { vec![0] };
    let rule = rescale::longrope_attention_factor(scale, geometry.original_length());
    let population = arguments.population.unwrap_or(POPULATION);
    let offspring = arguments.offspring.unwrap_or(OFFSPRING);
    let optimiser = match kind {
        OptimiserKind::CmaEs => Optimiser::from(CmaEs {
            evaluations: arguments.evaluations.unwrap_or(EVALUATIONS),
            attention_factor: (arguments.attention_factor != Some(AttentionFactor::Fixed)).then_some(rule),
            first_tokens,
            seed: arguments.seed,
            ..CmaEs::default()
        }),
        OptimiserKind::Paper | OptimiserKind::Released => Optimiser::from(Evolution {
            population,
            mutations: offspring,
            crossovers: offspring,
            parents: population.div_ceil(2),
            iterations: arguments.iterations.unwrap_or(ITERATIONS),
            seed: arguments.seed,
            first_tokens,
            operators: match kind {
                OptimiserKind::Released => Operators::Released,
                _ => Operators::Paper,
            },
            ..paper
        }),
    };
    let seeds = match kind {
        OptimiserKind::Released => released_seeds(geometry, scale),
        _ => paper_seeds(geometry, scale),
    };
    (optimiser, seeds)
}

/// A new search, or the one that the checkpoint holds.
fn start(arguments: &Arguments, model: &Llama, length: usize, checkpoint: &CheckpointFile) -> Result<Run> {
    let rope = &model.config().rope;
    let scale = methods::scale(rope, length);
    let (optimiser, seeds) = optimiser(arguments, rope, scale);
    if !arguments.resume {
        let search = Search::new(optimiser, scale, seeds).with_context(|| match arguments.optimiser {
            OptimiserKind::CmaEs => "--evaluations",
            _ => "--population, --offspring, --iterations",
        })?;
        return Ok(Run::new(search));
    }
    let (saved, costs) = checkpoint.load(arguments.early_drop)?;
    let path = || format!("{}", checkpoint.path().display());
    saved.check_arguments(&optimiser, scale, &seeds).with_context(path)?;
    Ok(Run { search: Search::resume(saved).with_context(path)?, costs })
}

/// The tokens that the search sees, and those that the table is measured on.
struct Texts {
    search: Vec<u32>,
    search_name: String,
    eval: Vec<u32>,
    eval_name: String,
}

impl Texts {
    fn read(arguments: &Arguments, tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let (search, eval) = match (&arguments.text, &arguments.eval_text) {
            (None, _) => (
                Path::new(DATA).join("texts/moby-dick-search.txt"),
                Path::new(DATA).join("texts/moby-dick-eval.txt"),
            ),
            (Some(search), Some(eval)) => (search.clone(), eval.clone()),
            (Some(both), None) => {
                let mut tokens = text::read_tokens(both, tokenizer)?;
                let eval = tokens.split_off(tokens.len() / 2);
                let name = |half| format!("the {half} half of {}", both.display());
                return Ok(Self {
                    search: tokens,
                    search_name: name("first"),
                    eval,
                    eval_name: name("second"),
                });
            }
        };
        let name = |path: &Path| {
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        };
        Ok(Self {
            search: text::read_tokens(&search, tokenizer)?,
            search_name: name(&search),
            eval: text::read_tokens(&eval, tokenizer)?,
            eval_name: name(&eval),
        })
    }
}
