//! Compares searches by their histories: how good each became, and what it had cost until it was as good as another.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use longrope_drivers::convergence::{self, Curve};
use longrope_drivers::{exit, files};

/// Draws the best value so far of several searches, and says at which cost the first reached where each other ended.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// history.csv of a search: NAME=FILE, or FILE. The first is the one that is compared with the others
    #[arg(required = true, value_name = "FILE")]
    history: Vec<String>,
    /// What was minimised, for the axis
    #[arg(long, value_name = "NAME", default_value = "perplexity")]
    value: String,
    /// Directory for convergence.svg and convergence.md
    #[arg(long, value_name = "DIR", default_value = "longrope-compare")]
    output: PathBuf,
}

fn main() -> ExitCode {
    exit::code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let curves = arguments.history.iter().map(|file| Curve::read(file)).collect::<Result<Vec<_>>>()?;
    let table = convergence::table(&curves);
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("{}: can't be made", arguments.output.display()))?;
    let plot = convergence::plot(&curves, &arguments.value)?;
    files::write_atomically(&arguments.output.join("convergence.svg"), &plot)?;
    files::write_atomically(&arguments.output.join("convergence.md"), &table)?;
    std::io::stdout().write_all(table.as_bytes()).context("the standard output can't be written")
}
