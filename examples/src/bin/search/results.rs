//! What a search leaves behind: the table on unseen text, and the files.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};
use longrope::scaling::hf::Generation;
use longrope::scaling::{RopeConfig, Schedule};
use longrope::search::Candidate;
use longrope_drivers::convergence::{self, Curve};
use longrope_drivers::evaluation::Method;
use longrope_drivers::model::Origin;
use longrope_drivers::progress::Progress;
use longrope_drivers::report::Table;
use longrope_drivers::search_run::{Run, Task};
use longrope_drivers::target::Purpose;
use longrope_drivers::{files, methods, plot, report};

use super::arguments::{Arguments, Objective};
use super::texts::Texts;

/// The factors that were found, and what they are compared with.
struct Found {
    /// By name; the last one is what was found.
    methods: Vec<(&'static str, Method)>,
    lengths: Vec<usize>,
    /// The same as configurations, for the plot of factors.
    lines: Vec<(&'static str, RopeConfig)>,
    /// The file of the factors, and its contents.
    file: (&'static str, String),
    first_tokens: u64,
}

impl Found {
    fn new(task: &Task<'_>, best: &Candidate) -> Result<Self> {
        let (base, length) = (&task.model.config().rope, task.target.length());
        let schedule = task.target.schedule(best, task.attention_factor)?;
        if let (Purpose::Recover(before), Some(after)) = (task.target.purpose(), schedule) {
            return Self::recovered(base, length, before, after);
        }
        let found = task.target.rope(best)?;
        let mut lines: Vec<(&'static str, RopeConfig)> =
            methods::baselines(base, length)?.into_iter().map(|method| (method.name, method.rope)).collect();
        let json = serde_json::to_string_pretty(&found.to_hf(Generation::RopeScaling))? + "\n";
        let first_tokens = found.first_tokens();
        lines.push(("LongRoPE", found));
        Ok(Self {
            methods: lines.iter().map(|(name, rope)| (*name, Method::Config(rope.clone()))).collect(),
            lengths: report::lengths(base.geometry().original_length() as usize, length),
            lines,
            file: ("rope_scaling.json", json),
            first_tokens,
        })
    }

    fn recovered(base: &RopeConfig, length: usize, before: &Schedule, after: Schedule) -> Result<Self> {
        let plain = methods::baselines(base, length)?.swap_remove(0).rope;
        let json = serde_json::to_string_pretty(&after.to_json())? + "\n";
        Ok(Self {
            lines: vec![
                ("none", plain.clone()),
                ("before", before.to_config(length as u64)?),
                ("recovered", after.to_config(length as u64)?),
            ],
            methods: vec![
                ("none", Method::Config(plain)),
                ("before", Method::Schedule(before.clone())),
                ("recovered", Method::Schedule(after)),
            ],
            lengths: vec![length],
            file: ("schedule.json", json),
            // A schedule has a field for them.
            first_tokens: 0,
        })
    }
}

/// Measures the table and writes all files.
pub fn write(
    (arguments, origin): (&Arguments, &Origin),
    (task, run): (&Task<'_>, &Run),
    texts: &Texts,
    others: Vec<Curve>,
    started: Instant,
) -> Result<()> {
    let best = run.search.best().context("no candidate has a finite value")?;
    let found = Found::new(task, &best.candidate)?;
    let unseen = (texts.eval_name.as_str(), texts.eval.as_slice());
    let table = match arguments.eval_windows {
        0 => None,
        windows => Some(measure(task, &found, unseen, windows, best.value)?),
    };

    // A closed pipe costs none of the files: it is reported after they are written.
    let printed = match &table {
        Some(table) => print(&format!(
            "Perplexity on {}, which the search has not seen ({} windows a length; * marks the lowest):\n{}",
            unseen.0,
            arguments.eval_windows,
            table.to_text()
        )),
        None => Ok(()),
    };
    let mut summary = String::new();
    let mut output = |name: &str, contents: &str| -> Result<()> {
        let path = arguments.output.join(name);
        files::write_atomically(&path, contents)?;
        writeln!(summary, "wrote {}", path.display())?;
        Ok(())
    };
    output(found.file.0, &found.file.1)?;
    let length = task.target.length();
    let history = report::history_csv(run, length, task.attention_factor);
    output("history.csv", &history)?;
    let names = (texts.search_name.as_str(), unseen.0);
    output("report.txt", &super::report::text(arguments, origin, (task, run), names, best, table.as_ref()))?;
    if let Some(table) = &table {
        output("perplexity.csv", &table.to_csv())?;
        output(
            "perplexity.svg",
            &plot::perplexity_by_length("Perplexity on text the search has not seen", table)?,
        )?;
    }
    let lines: Vec<_> = found.lines.iter().map(|(name, rope)| (*name, rope)).collect();
    output("factors.svg", &plot::factors_by_pair(&lines)?)?;
    let mut curves = vec![Curve::parse(arguments.optimiser.name(), &history)?];
    curves.extend(others);
    let value = match arguments.objective {
        Objective::Perplexity => "perplexity",
        Objective::Passkey => "passkey value",
    };
    output("convergence.svg", &convergence::plot(&curves, value)?)?;
    if found.first_tokens > 0 {
        writeln!(
            summary,
            "The best candidate leaves the first {} tokens alone; Hugging Face's format has no field for that, so \
             other engines ignore `n_hat`.",
            found.first_tokens
        )?;
    }
    let whole = task.samples.count();
    let dropped = run.costs.iter().filter(|cost| cost.windows < whole).count();
    writeln!(
        summary,
        "{} evaluations in {:.0?}: {} model tokens, {dropped} candidates left {}",
        run.search.evaluations(),
        started.elapsed(),
        run.tokens(length),
        super::report::left_early(task)
    )?;
    printed.and_then(|()| print(&summary))
}

fn measure(
    task: &Task<'_>,
    found: &Found,
    unseen: (&str, &[u32]),
    windows: usize,
    best: f64,
) -> Result<Table> {
    let progress = Progress::new("cells of the table");
    progress.start(0, found.lengths.len() * found.methods.len());
    let lengths = found.lengths.clone();
    let table = report::measure(task.model, &found.methods, unseen, windows, lengths, |done, cells| {
        progress.update(done, cells, best);
    });
    progress.finish();
    table
}

/// Writes to the standard output; unlike `print!`, fails where that is closed or full.
fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("the standard output can't be written")
}
