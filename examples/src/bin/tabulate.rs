//! Puts what several runs of `evaluate` measured into one table: a row a model and method, a column a length.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use longrope_drivers::tabulate::{self, Measurements, Source};
use longrope_drivers::{evaluation, exit, files};

/// Makes one table of several runs of `evaluate`: perplexities, passkeys, and what follows a passage.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A row and a run that measured it: ROW=METHOD@DIR, with the method's name in the run and its --output. Runs of other
    /// lengths may follow for the same row
    #[arg(required = true, value_name = "SOURCE")]
    source: Vec<Source>,
    /// Row that the others' losses are compared with, window by window
    #[arg(long, value_name = "ROW")]
    against: Option<String>,
    /// Directory for table.md, table.csv and the plots
    #[arg(long, value_name = "DIR", default_value = "longrope-table")]
    output: PathBuf,
}

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let rows: Vec<&str> = arguments.source.iter().map(|source| source.row.as_str()).collect();
    let against = arguments.against.as_deref();
    if let Some(against) = against {
        ensure!(rows.contains(&against), "--against: {against} is not valid; expected one of {rows:?}");
    }
    let Measurements { cells, keys, choices } = Measurements::read(&arguments.source)?;
    let mut tables = Vec::new();
    if !cells.is_empty() {
        tables.push(tabulate::perplexities(&cells, against));
    }
    if !keys.is_empty() {
        tables.push(tabulate::passkeys(&keys));
    }
    if !choices.is_empty() {
        tables.push(tabulate::choices(&choices));
    }
    let tables = tables.join("\n");
    let output = &arguments.output;
    std::fs::create_dir_all(output).with_context(|| format!("{}: can't be made", output.display()))?;
    files::write_atomically(&output.join("table.md"), &tables)?;
    files::write_atomically(&output.join("table.csv"), &tabulate::csv(&cells))?;
    if let Some(plot) = evaluation::perplexity_svg(&cells)? {
        files::write_atomically(&output.join("perplexity.svg"), &plot)?;
    }
    if !keys.is_empty() {
        files::write_atomically(&output.join("passkeys.svg"), &evaluation::passkeys_svg(&keys)?)?;
    }
    std::io::stdout().write_all(tables.as_bytes()).context("the standard output can't be written")
}
