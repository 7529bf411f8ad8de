//! Tables of several runs of `evaluate`: a row a model and method, a column a length, as table 6 of LongRoPE has them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::evaluation::{Answer, Cell, Choices, Keys, Measured, differences, told, told_difference};
use crate::files;
use crate::passkey::{self, Recall};

/// A row, and a run that measured some of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The row's name. Runs of one row are of different lengths, or of different kinds.
    pub row: String,
    /// The method's name in the run.
    pub method: String,
    /// What the run left.
    pub dir: PathBuf,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(row, rest)| Some((row, rest.split_once('@')?)));
        match parts {
            Some((row, (method, dir))) if !row.is_empty() && !method.is_empty() && !dir.is_empty() => {
                Ok(Self { row: row.to_owned(), method: method.to_owned(), dir: dir.into() })
            }
            _ => Err(format!("{text} is not valid; expected ROW=METHOD@DIR")),
        }
    }
}

/// What was measured, with the rows' names for those of methods, in the order of the rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measurements {
    /// Perplexities.
    pub cells: Vec<Cell>,
    /// Passkeys.
    pub keys: Vec<Keys>,
    /// What follows a passage.
    pub choices: Vec<Choices>,
}

impl Measurements {
    /// Reads the runs.
    ///
    /// # Errors
    /// A run without the method, a table that is not valid, a length that a row has twice, or rows that were not measured on the
    /// same windows of a length.
    pub fn read(sources: &[Source]) -> Result<Self> {
        let mut all = Self::default();
        for source in sources {
            let Source { row, method, dir } = source;
            let mut names = BTreeSet::new();
            let before = (all.cells.len(), all.keys.len(), all.choices.len());
            for (name, fields, add) in TABLES {
                let path = dir.join(name);
                if !path.exists() {
                    continue;
                }
                for record in records(&path, fields)? {
                    let found = record.text(1).to_owned();
                    if found == *method {
                        add(&mut all, row, before, &record)
                            .with_context(|| format!("{}: line {}", path.display(), record.line))?;
                    }
                    names.insert(found);
                }
            }
            let added = (all.cells.len(), all.keys.len(), all.choices.len()) != before;
            ensure!(added, "{}: {method} is not valid as a method; expected one of {names:?}", dir.display());
        }
        all.check()?;
        Ok(all)
    }

    /// Rows can be compared.
    fn check(&self) -> Result<()> {
        let places = |cell: &Cell| -> Vec<(String, usize)> {
            cell.windows.iter().map(|window| (window.text.clone(), window.start)).collect()
        };
        for (i, cell) in self.cells.iter().enumerate() {
            let of_length = || self.cells[..i].iter().filter(|other| other.length == cell.length);
            ensure!(
                of_length().all(|other| other.method != cell.method),
                "{}: measured twice at {} tokens; expected once",
                cell.method,
                cell.length
            );
            if let Some(other) = of_length().find(|other| places(other) != places(cell)) {
                bail!(
                    "{}: its windows of {} tokens are others than those of {}; expected the same",
                    cell.method,
                    cell.length,
                    other.method
                );
            }
        }
        Ok(())
    }
}

type Add = fn(&mut Measurements, &str, (usize, usize, usize), &Record) -> Result<()>;

/// The tables of a run, how many fields a record of each has at least, and what becomes of it.
const TABLES: [(&str, usize, Add); 3] =
    [("windows.csv", 6, add_window), ("passkeys.csv", 6, add_keys), ("choices.csv", 7, add_answer)];

fn add_window(
    all: &mut Measurements,
    row: &str,
    before: (usize, usize, usize),
    record: &Record,
) -> Result<()> {
    let length = record.number(0)?;
    let measured = Measured {
        text: record.text(2).to_owned(),
        start: record.number(3)?,
        loss: record.number(4)?,
        seconds: record.number(5)?,
    };
    match all.cells[before.0..].iter_mut().find(|cell| cell.length == length) {
        Some(cell) => cell.windows.push(measured),
        None => all.cells.push(Cell { length, method: row.to_owned(), windows: vec![measured] }),
    }
    Ok(())
}

fn add_keys(all: &mut Measurements, row: &str, _: (usize, usize, usize), record: &Record) -> Result<()> {
    let (prompts, accuracy): (usize, f64) = (record.number(3)?, record.number(4)?);
    let found = (accuracy * prompts as f64).round() as usize;
    let loss = record.number(5)?;
    all.keys.push(Keys {
        length: record.number(0)?,
        method: row.to_owned(),
        depth: record.number(2)?,
        recalls: (0..prompts).map(|i| Recall { correct: i < found, loss }).collect(),
    });
    Ok(())
}

fn add_answer(
    all: &mut Measurements,
    row: &str,
    before: (usize, usize, usize),
    record: &Record,
) -> Result<()> {
    let length = record.number(0)?;
    let answer = Answer {
        text: record.text(2).to_owned(),
        start: record.number(3)?,
        losses: (5..record.fields.len()).map(|field| record.number(field)).collect::<Result<_>>()?,
    };
    match all.choices[before.2..].iter_mut().find(|choices| choices.length == length) {
        Some(choices) => choices.answers.push(answer),
        None => all.choices.push(Choices { length, method: row.to_owned(), answers: vec![answer] }),
    }
    Ok(())
}

/// A line of a table.
struct Record {
    /// From 1, as editors count.
    line: usize,
    fields: Vec<String>,
}

impl Record {
    fn text(&self, field: usize) -> &str {
        &self.fields[field]
    }

    fn number<T: FromStr>(&self, field: usize) -> Result<T> {
        let text = self.text(field);
        text.parse().map_err(|_| anyhow!("{text:?} is not valid; expected a number"))
    }
}

/// The records of a table, which have so many fields.
fn records(path: &Path, fields: usize) -> Result<Vec<Record>> {
    let text = files::read_text(path)?;
    let record = |(line, text): (usize, &str)| {
        let found: Vec<String> = text.split(',').map(str::to_owned).collect();
        let count = found.len();
        ensure!(
            count >= fields,
            "{}: line {}: {count} fields are not valid; expected at least {fields}",
            path.display(),
            line + 1
        );
        Ok(Record { line: line + 1, fields: found })
    };
    text.lines().enumerate().skip(1).map(record).collect()
}

/// A table in Markdown: a row a name, a column a length; cells that were not measured stay empty.
fn table<'a>(
    first: &str,
    cells: impl Iterator<Item = (&'a str, usize)> + Clone,
    told: impl Fn(&str, usize) -> String,
) -> String {
    let lengths: BTreeSet<usize> = cells.clone().map(|(_, length)| length).collect();
    let mut rows: Vec<&str> = Vec::new();
    for (row, _) in cells {
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let columns: Vec<String> = lengths.iter().map(usize::to_string).collect();
    let mut text = format!("| {first} | {} |\n|---|{}\n", columns.join(" | "), "---:|".repeat(columns.len()));
    for row in rows {
        let values: Vec<String> = lengths.iter().map(|&length| told(row, length)).collect();
        writeln!(text, "| {row} | {} |", values.join(" | ")).unwrap_or_default();
    }
    text
}

/// Perplexities with their standard errors, the lowest of each length bold; and the loss of every row less that of `against`, on the
/// same windows, if there is such a row.
pub fn perplexities(cells: &[Cell], against: Option<&str>) -> String {
    let places = cells.iter().map(|cell| (cell.method.as_str(), cell.length));
    let mut text = table("perplexity", places, |row, length| {
        let of_length = || cells.iter().filter(|cell| cell.length == length);
        let lowest = of_length().map(Cell::perplexity).fold(f64::INFINITY, f64::min);
        let cell = of_length().find(|cell| cell.method == row);
        cell.map_or_else(String::new, |cell| match cell.perplexity() == lowest {
            true => format!("**{}**", told(cell)),
            false => told(cell),
        })
    });
    let Some(against) = against else { return text };
    let found = differences(cells, against);
    let places = found.iter().map(|(length, row, ..)| (row.as_str(), *length));
    text += &format!("\nLoss less that of {against}, nats a token:\n\n");
    text += &table("", places, |row, length| {
        let cell = found.iter().find(|(found, name, ..)| *found == length && name == row);
        cell.map_or_else(String::new, |(_, _, mean, error)| told_difference(*mean, *error))
    });
    text
}

/// The share of passkeys that were retrieved, of all depths together, and how many prompts that is of.
pub fn passkeys(keys: &[Keys]) -> String {
    let places = keys.iter().map(|keys| (keys.method.as_str(), keys.length));
    table("passkeys", places, |row, length| {
        let of_row = keys.iter().filter(|keys| keys.method == row && keys.length == length);
        let recalls: Vec<Recall> = of_row.flat_map(|keys| keys.recalls.clone()).collect();
        match recalls.len() {
            0 => String::new(),
            count => format!("{:.0} % of {count}", 100.0 * passkey::accuracy(&recalls)),
        }
    })
}

/// The share of questions that were answered right, with its standard error.
pub fn choices(choices: &[Choices]) -> String {
    let places = choices.iter().map(|choices| (choices.method.as_str(), choices.length));
    table("what follows a passage", places, |row, length| {
        let cell = choices.iter().find(|cell| cell.method == row && cell.length == length);
        cell.map_or_else(String::new, |cell| {
            format!("{:.1} ± {:.1} %", 100.0 * cell.accuracy(), 100.0 * cell.standard_error())
        })
    })
}

/// The perplexities: a record a row and length.
pub fn csv(cells: &[Cell]) -> String {
    let mut csv = "row,length,perplexity,standard_error,windows\n".to_owned();
    for cell in cells {
        let error = if cell.windows.len() > 1 { cell.standard_error().to_string() } else { String::new() };
        let (value, windows) = (cell.perplexity(), cell.windows.len());
        writeln!(csv, "{},{},{value},{error},{windows}", cell.method, cell.length).unwrap_or_default();
    }
    csv
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(dir: &Path, name: &str, files: &[(&str, &str)]) -> String {
        let folder = dir.join(name);
        fs::create_dir(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
        folder.display().to_string()
    }

    fn read(sources: &[String]) -> Result<Measurements> {
        let sources: Vec<Source> = sources.iter().map(|source| source.parse().unwrap()).collect();
        Measurements::read(&sources)
    }

    const WINDOWS: &str = "length,method,text,start,loss,seconds\n";

    #[test]
    fn runs_of_other_models_and_lengths_become_rows() {
        let dir = tempfile::tempdir().unwrap();
        let one = format!("{WINDOWS}8,PI,a,0,1.0,3\n8,PI,a,9,2.0,3\n8,none,a,0,1.5,3\n8,none,a,9,2.5,3\n");
        let one = run(dir.path(), "one", &[("windows.csv", &one)]);
        let two = run(dir.path(), "two", &[("windows.csv", &format!("{WINDOWS}16,PI,a,0,0.0,3\n"))]);
        let all =
            read(&[format!("plain=none@{one}"), format!("mine=PI@{one}"), format!("mine=PI@{two}")]).unwrap();
        let text = perplexities(&all.cells, Some("plain"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| perplexity | 8 | 16 |");
        assert_eq!(lines[2], "| plain | 7.39 ± 3.69 |  |");
        assert_eq!(lines[3], "| mine | **4.48 ± 2.24** | **1.00** |");
        assert_eq!(lines.last(), Some(&"| mine | -0.500 ± 0.000 |"), "{text}");
        assert_eq!(csv(&all.cells).lines().last(), Some("mine,16,1,,1"));
    }

    #[test]
    fn keys_and_answers_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let keys = "length,method,depth,prompts,accuracy,loss\n8,PI,0,2,0.5,1\n8,PI,1,2,1,1\n";
        let answers =
            "length,method,text,start,right,loss_0,loss_1\n8,PI,a,0,1,1.0,2.0\n8,PI,a,9,0,2.0,1.0\n";
        let path = run(dir.path(), "one", &[("passkeys.csv", keys), ("choices.csv", answers)]);
        let all = read(&[format!("mine=PI@{path}")]).unwrap();
        assert_eq!(passkeys(&all.keys).lines().last(), Some("| mine | 75 % of 4 |"));
        assert_eq!(choices(&all.choices).lines().last(), Some("| mine | 50.0 ± 35.4 % |"));
        assert!(all.cells.is_empty());
    }

    #[test]
    fn what_can_not_be_compared_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let table =
            |name: &str, rows: &str| run(dir.path(), name, &[("windows.csv", &format!("{WINDOWS}{rows}"))]);
        let one = table("one", "8,PI,a,0,1.0,3\n");
        let other = table("other", "8,PI,a,4,1.0,3\n");
        let bad = table("bad", "8,PI,a,0,x,3\n");
        let short = table("short", "8,PI,a\n");
        let message = |sources: &[String]| format!("{:#}", read(sources).unwrap_err());
        let twice = message(&[format!("m=PI@{one}"), format!("m=PI@{one}")]);
        assert_eq!(twice, "m: measured twice at 8 tokens; expected once");
        let windows = message(&[format!("m=PI@{one}"), format!("n=PI@{other}")]);
        assert_eq!(windows, "n: its windows of 8 tokens are others than those of m; expected the same");
        let method = message(&[format!("m=YaRN@{one}")]);
        assert!(method.ends_with("YaRN is not valid as a method; expected one of {\"PI\"}"), "{method}");
        assert!(message(&[format!("m=PI@{bad}")]).ends_with("line 2: \"x\" is not valid; expected a number"));
        assert!(message(&[format!("m=PI@{short}")]).ends_with("3 fields are not valid; expected at least 6"));
        assert!("m=PI".parse::<Source>().unwrap_err().ends_with("expected ROW=METHOD@DIR"));
    }
}
