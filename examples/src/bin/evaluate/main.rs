//! Measures the perplexity of a model under several rotary embeddings, at several lengths, on texts that nothing was searched
//! or trained on, or the passkeys that it retrieves.

mod arguments;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use longrope::scaling::SetChoice;
use longrope_drivers::corpus::{self, Window};
use longrope_drivers::evaluation::{self, Cell, Method, Record};
use longrope_drivers::model::{self, AttentionKind, Llama, Place};
use longrope_drivers::progress::Progress;
use longrope_drivers::{exit, files, interrupt, memory, passkey, text};
use tokenizers::Tokenizer;

use arguments::Arguments;

/// The model and the texts that the repository ships.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// The prompts of every run are the same, and others than those of a search.
const PASSKEY_SEED: u64 = 0;

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

/// A run that is ready to measure.
struct Job<'a> {
    arguments: &'a Arguments,
    model_path: PathBuf,
    place: Place,
    /// Bytes that were free on the GPU, if it is one.
    memory_before: Option<u64>,
    model: Llama,
    tokenizer: Tokenizer,
    /// Rising.
    lengths: Vec<usize>,
    /// What the methods are configured for.
    target: usize,
    methods: Vec<(String, Method)>,
    record: Record,
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::install()?;
    arguments.check()?;
    let model_path = arguments.model.clone().unwrap_or_else(|| Path::new(DATA).join("models/tiny"));
    let texts = match arguments.passkeys {
        None => corpus::eval_texts(&arguments.manifest, ("--text", &arguments.text), &model_path)?,
        Some(_) => Vec::new(),
    };
    let place = Place::choose(arguments.device, arguments.dtype)?;
    let memory_before = place.free_memory();
    let (model, tokenizer) = model::load_at(&model_path, &place)?;
    let model = model.with_attention(arguments.attention).with_chunk(arguments.chunk);
    let config = model.config();
    let (lengths, target) = arguments.lengths(config)?;
    let longest = lengths[lengths.len() - 1];
    let needed = memory::required(config, longest, arguments.chunk, &place)
        .saturating_add(memory::of_attention(arguments.attention, config, longest, &place));
    memory::check(&format!("a window of {longest} tokens"), needed, &place)?;
    let methods = arguments.methods(config, target)?;
    if let Some(name) = &arguments.against {
        let names: Vec<&str> = methods.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(names.contains(&name.as_str()), "--against: {name} is not valid; expected one of {names:?}");
    }
    let texts = texts
        .into_iter()
        .map(|eval| Ok((eval.name, text::read_tokens(&eval.path, &tokenizer)?)))
        .collect::<Result<Vec<_>>>()?;
    let record = Record::open(
        arguments.output.join("measured.json"),
        &model_path,
        &place,
        arguments.attention,
        arguments.resume,
    )?;
    let mut job = Job {
        arguments,
        model_path,
        place,
        memory_before,
        model,
        tokenizer,
        lengths,
        target,
        methods,
        record,
    };
    match arguments.passkeys {
        Some(trials) => job.passkeys(trials),
        None => job.perplexities(&texts),
    }
}

impl Job<'_> {
    fn perplexities(&mut self, texts: &[(String, Vec<u32>)]) -> Result<()> {
        let arguments = self.arguments;
        let windows = self
            .lengths
            .iter()
            .map(|&length| match arguments.stride {
                None => corpus::windows(texts, length, arguments.windows),
                Some(stride) => corpus::sliding_windows(texts, length, stride, arguments.windows),
            })
            .collect::<Result<Vec<Vec<Window<'_>>>>>()?;
        let planned = windows.len() * self.methods.len() * arguments.windows;
        let progress = self.begin(planned)?;
        let cells = evaluation::measure(
            &self.model,
            &self.methods,
            &windows,
            arguments.counted(),
            &mut self.record,
            |done| progress.update(done, planned, f64::NAN),
        );
        self.end(&progress, cells.is_err())?;
        let cells = cells?;

        let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
        let last = arguments.counted().map_or(String::new(), |last| format!(", of the last {last} tokens"));
        let windows_are = match (arguments.stride, arguments.windows) {
            (Some(stride), count) => {
                format!("{count} sliding windows a length, at multiples of {stride} tokens")
            }
            (None, 1) => "1 window a length".to_owned(),
            (None, count) => format!("{count} windows a length"),
        };
        let mut summary = format!(
            "Perplexity{last} of {}, on {} ({windows_are}, mean ± standard error; * marks the lowest).\nMethods are \
             configured for {} tokens.\n\n{}\n{}{}",
            self.name()?,
            names.join(", "),
            self.target,
            evaluation::to_text(&cells),
            times(&cells),
            self.place.memory_line(self.memory_before),
        );
        if arguments.timing {
            let first = windows.iter().filter_map(|windows| Some(windows.first()?.tokens));
            summary += &self.split(&first.collect::<Vec<_>>())?;
        }
        let against = match (&arguments.against, self.methods.last()) {
            (Some(name), _) | (None, Some((name, _))) => name.as_str(),
            (None, None) => "",
        };
        let markdown = evaluation::to_markdown(&cells, against);
        let tables = [evaluation::to_csv(&cells), evaluation::windows_csv(&cells)];
        let plot = evaluation::perplexity_svg(&cells)?;
        let mut files: Vec<(&str, &str)> = vec![
            ("perplexity.txt", &summary),
            ("perplexity.md", &markdown),
            ("perplexity.csv", &tables[0]),
            ("windows.csv", &tables[1]),
        ];
        files.extend(plot.iter().map(|plot| ("perplexity.svg", plot.as_str())));
        self.finish(&summary, &files)
    }

    fn passkeys(&mut self, trials: usize) -> Result<()> {
        let depths = self.arguments.depths;
        let prompts = self
            .lengths
            .iter()
            .map(|&length| passkey::prompts(&self.tokenizer, length, depths, trials, PASSKEY_SEED))
            .collect::<Result<Vec<_>>>()?;
        let planned = prompts.len() * self.methods.len() * depths * trials;
        let progress = self.begin(planned)?;
        let keys =
            evaluation::measure_passkeys(&self.model, &self.methods, &prompts, &mut self.record, |done| {
                progress.update(done, planned, f64::NAN)
            });
        self.end(&progress, keys.is_err())?;
        let keys = keys?;
        let mut summary = format!(
            "Passkeys of {}: {trials} a length and depth, share retrieved (mean loss of their tokens).\nMethods are \
             configured for {} tokens.\n\n{}{}",
            self.name()?,
            self.target,
            evaluation::passkeys_text(&keys),
            self.place.memory_line(self.memory_before),
        );
        if self.arguments.timing {
            let first = prompts.iter().filter_map(|prompts| Some(prompts.first()?.tokens.as_slice()));
            summary += &self.split(&first.collect::<Vec<_>>())?;
        }
        self.finish(
            &summary,
            &[
                ("passkeys.txt", &summary),
                ("passkeys.csv", &evaluation::passkeys_csv(&keys)),
                ("passkeys.svg", &evaluation::passkeys_svg(&keys)?),
            ],
        )
    }

    /// Says what is to be done.
    fn begin(&self, planned: usize) -> Result<Progress> {
        let output = &self.arguments.output;
        fs::create_dir_all(output).with_context(|| format!("{}: can't be made", output.display()))?;
        eprintln!("{}: {planned} evaluations {}", self.model_path.display(), self.place);
        let progress = Progress::new("evaluations");
        progress.start(0, planned);
        Ok(progress)
    }

    /// Keeps what was measured, however that ended.
    fn end(&mut self, progress: &Progress, failed: bool) -> Result<()> {
        progress.finish();
        self.record.save()?;
        if failed {
            let path = self.arguments.output.join("measured.json");
            eprintln!("stopped; --resume continues from {}", path.display());
        }
        Ok(())
    }

    /// The model, and where and how it ran.
    fn name(&self) -> Result<String> {
        let origin = match model::quantisation(&self.model_path)? {
            Some(kind) => format!(", dequantised from {kind}"),
            None => String::new(),
        };
        let name = self.model_path.file_name();
        let name = name.map_or_else(Default::default, |name| name.to_string_lossy());
        let attention = match self.arguments.attention {
            AttentionKind::Fused => "",
            AttentionKind::Composed => ", with composed attention",
        };
        Ok(format!("{name}{origin}, {}{attention}", self.place))
    }

    /// Where the time of an evaluation goes, under the last method: the median of three passes over each of these windows.
    fn split(&self, windows: &[&[u32]]) -> Result<String> {
        let Some((name, method)) = self.methods.last() else { return Ok(String::new()) };
        let mut lines = format!(
            "\nOne evaluation by {name}, {} attention, each piece waited for (seconds):\n{:>9}{:>12}{:>12}{:>12}{:>12}{:>12}\n",
            self.arguments.attention, "tokens", "attention", "rotation", "products", "rest", "sum"
        );
        for window in windows {
            let length = window.len() as u64;
            let (sets, choice) = (method.factor_sets(length)?, SetChoice::ByLength(length));
            let mut splits =
                (0..3).map(|_| self.model.split(window, &sets, choice)).collect::<Result<Vec<_>>>()?;
            splits.sort_by(|a, b| a.total().total_cmp(&b.total()));
            let split = splits[1];
            lines += &format!(
                "{length:>9}{:>12.4}{:>12.4}{:>12.4}{:>12.4}{:>12.4}\n",
                split.attention,
                split.rotation,
                split.products,
                split.rest,
                split.total()
            );
        }
        Ok(lines)
    }

    /// Writes the files, and prints the summary.
    fn finish(&self, summary: &str, outputs: &[(&str, &str)]) -> Result<()> {
        for (file, contents) in outputs {
            files::write_atomically(&self.arguments.output.join(file), contents)?;
        }
        std::io::stdout().write_all(summary.as_bytes()).context("the standard output can't be written")
    }
}

/// The median time of an evaluation at each length.
fn times(cells: &[Cell]) -> String {
    let mut lines = String::new();
    for (i, cell) in cells.iter().enumerate() {
        if i == 0 || cells[i - 1].length != cell.length {
            let same = cells.iter().filter(|other| other.length == cell.length);
            let windows = same.flat_map(|cell| cell.windows.clone()).collect();
            let all = Cell { length: cell.length, method: String::new(), windows };
            let seconds = all.seconds();
            let rate = cell.length as f64 / seconds;
            lines +=
                &format!("{} tokens: {seconds:.3} s an evaluation, {rate:.0} tokens a second\n", cell.length);
        }
    }
    lines
}
