//! Measures the perplexity of a model under several rotary embeddings, at several lengths, on texts that nothing was searched
//! or trained on; or the passkeys that it retrieves, or whether it knows what follows a passage.

mod arguments;
mod questions;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use longrope::scaling::SetChoice;
use longrope_drivers::corpus::{self, Window};
use longrope_drivers::evaluation::{self, Cell, Described, Method, Record};
use longrope_drivers::model::{self, AttentionKind, Llama, Origin, Place};
use longrope_drivers::progress::Progress;
use longrope_drivers::{exit, files, interrupt, memory, text};
use tokenizers::Tokenizer;

use arguments::Arguments;

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

/// A run that is ready to measure.
struct Job<'a> {
    arguments: &'a Arguments,
    origin: Origin,
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
    let origin = arguments.model.origin(arguments.adapter.as_deref());
    let texts = match arguments.passkeys {
        None => corpus::eval_texts(&arguments.manifest, ("--text", &arguments.text), &origin)?,
        Some(_) => Vec::new(),
    };
    let place = arguments.model.place()?;
    let memory_before = place.free_memory();
    let (model, tokenizer) = origin.load_at(&place)?;
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
    let mut texts = texts
        .into_iter()
        .map(|eval| Ok((eval.name, text::read_tokens(&eval.path, &tokenizer)?)))
        .collect::<Result<Vec<_>>>()?;
    if arguments.join {
        texts = vec![corpus::joined(texts)];
    }
    let record = Record::open(
        arguments.output.join("measured.json"),
        &origin,
        &place,
        arguments.attention,
        arguments.resume,
    )?;
    let mut job =
        Job { arguments, origin, place, memory_before, model, tokenizer, lengths, target, methods, record };
    match (arguments.passkeys, arguments.choices) {
        (Some(trials), _) => job.passkeys(trials),
        (None, Some(count)) => job.choices(&texts, count),
        (None, None) => job.perplexities(&texts),
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
        let json = evaluation::perplexities_json(&self.described(), &cells)?;
        let plot = evaluation::perplexity_svg(&cells)?;
        let mut files: Vec<(&str, &str)> = vec![
            ("perplexity.txt", &summary),
            ("perplexity.md", &markdown),
            ("perplexity.csv", &tables[0]),
            ("windows.csv", &tables[1]),
            ("perplexity.json", &json),
        ];
        files.extend(plot.iter().map(|plot| ("perplexity.svg", plot.as_str())));
        self.finish(&summary, &files)
    }

    /// Says what is to be done.
    fn begin(&self, planned: usize) -> Result<Progress> {
        let output = &self.arguments.output;
        fs::create_dir_all(output).with_context(|| format!("{}: can't be made", output.display()))?;
        eprintln!("{}: {planned} evaluations {}", self.origin, self.place);
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

    /// The same for programs.
    fn described(&self) -> Described {
        let Origin { model, adapter } = &self.origin;
        Described {
            model: model.display().to_string(),
            adapter: adapter.as_ref().map(|adapter| adapter.display().to_string()),
            place: self.place.to_string(),
            attention: self.arguments.attention.to_string(),
            chunk: self.arguments.chunk,
            target: self.target,
        }
    }

    /// The model, and where and how it ran.
    fn name(&self) -> Result<String> {
        let Origin { model, adapter } = &self.origin;
        let quantised = match model::quantisation(model)? {
            Some(kind) => format!(", dequantised from {kind}"),
            None => String::new(),
        };
        let name = model.file_name();
        let name = name.map_or_else(Default::default, |name| name.to_string_lossy());
        let adapted = match adapter {
            Some(adapter) => format!(", with the adapter {}", adapter.display()),
            None => String::new(),
        };
        let attention = match self.arguments.attention {
            AttentionKind::Fused => "",
            AttentionKind::Composed => ", with composed attention",
        };
        Ok(format!("{name}{quantised}{adapted}, {}{attention}", self.place))
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
