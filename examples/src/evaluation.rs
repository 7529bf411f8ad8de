//! Perplexities with their standard errors, by method and length.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, bail};
use longrope::scaling::{FactorSets, RopeConfig, Schedule, SetChoice};

use crate::corpus::Window;
use crate::model::Llama;

/// What gives a sequence its factors.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// One configuration for every length.
    Config(RopeConfig),
    /// A set by the length of the sequence.
    Schedule(Schedule),
}

impl Method {
    /// The sets of a sequence of `length` tokens in all.
    ///
    /// # Errors
    /// A length beyond the schedule, or one at which the base of dynamic NTK overflows.
    pub fn factor_sets(&self, length: u64) -> Result<FactorSets> {
        Ok(match self {
            Self::Config(rope) => rope.factor_sets(length)?,
            Self::Schedule(schedule) => schedule.factor_sets(length)?,
        })
    }
}

/// A method that was measured at a length.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Tokens of a window.
    pub length: usize,
    /// The method's name.
    pub method: String,
    /// What each window gave.
    pub windows: Vec<Measured>,
}

/// What a window gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The window's text.
    pub text: String,
    /// Its first token's place in the text.
    pub start: usize,
    /// The mean negative log-likelihood of its tokens after the first, in nats.
    pub loss: f64,
    /// How long the evaluation took.
    pub seconds: f64,
}

impl Cell {
    /// `exp` of the mean over the windows of their mean loss.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the perplexity over the windows: that of the mean loss, times the perplexity. NaN for one
    /// window.
    pub fn standard_error(&self) -> f64 {
        let (count, mean) = (self.windows.len() as f64, self.mean());
        let squares: f64 = self.windows.iter().map(|window| (window.loss - mean).powi(2)).sum();
        self.perplexity() * (squares / (count - 1.0) / count).sqrt()
    }

    /// The median time of an evaluation.
    pub fn seconds(&self) -> f64 {
        let mut seconds: Vec<f64> = self.windows.iter().map(|window| window.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn mean(&self) -> f64 {
        self.windows.iter().map(|window| window.loss).sum::<f64>() / self.windows.len() as f64
    }
}

/// Measures every method on every window; `progress` is told how many evaluations are done. The windows of one length follow
/// each other.
pub fn measure(
    model: &Llama,
    methods: &[(String, Method)],
    windows: &[Vec<Window<'_>>],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Cell>> {
    let (mut cells, mut done) = (Vec::new(), 0);
    for windows in windows {
        let Some(first) = windows.first() else { bail!("no window") };
        let length = first.tokens.len();
        for (name, method) in methods {
            let (sets, choice) = (method.factor_sets(length as u64)?, SetChoice::ByLength(length as u64));
            let mut measured = Vec::new();
            for window in windows {
                let started = Instant::now();
                let losses = model.losses(window.tokens, &sets, choice)?;
                measured.push(Measured {
                    text: window.text.to_owned(),
                    start: window.start,
                    loss: losses.iter().sum::<f64>() / losses.len() as f64,
                    seconds: started.elapsed().as_secs_f64(),
                });
                done += 1;
                progress(done);
            }
            cells.push(Cell { length, method: name.clone(), windows: measured });
        }
    }
    Ok(cells)
}

/// A table for a terminal: a row a length, a column a method, the lowest of each row marked.
pub fn to_text(cells: &[Cell]) -> String {
    let mut text = String::new();
    for (i, cell) in cells.iter().enumerate() {
        let row = || cells.iter().filter(|other| other.length == cell.length);
        if i == 0 {
            write!(text, "{:>9}", "length").unwrap_or_default();
            row().for_each(|cell| write!(text, "{:>19}", cell.method).unwrap_or_default());
        }
        if i == 0 || cells[i - 1].length != cell.length {
            write!(text, "\n{:>9}", cell.length).unwrap_or_default();
        }
        let lowest = row().map(Cell::perplexity).fold(f64::INFINITY, f64::min);
        let mark = if cell.perplexity() == lowest { '*' } else { ' ' };
        let decimals = if cell.perplexity() < 1000.0 { 2 } else { 0 };
        let value = format!("{:.decimals$} ± {:.decimals$}", cell.perplexity(), cell.standard_error());
        write!(text, "{value:>18}{mark}").unwrap_or_default();
    }
    text + "\n"
}

/// A row a cell.
pub fn to_csv(cells: &[Cell]) -> String {
    let mut csv = "length,method,perplexity,standard_error,windows,seconds\n".to_owned();
    for cell in cells {
        let (value, error) = (cell.perplexity(), cell.standard_error());
        let Cell { length, method, windows } = cell;
        writeln!(csv, "{length},{method},{value},{error},{},{}", windows.len(), cell.seconds())
            .unwrap_or_default();
    }
    csv
}

/// A row a window and method.
pub fn windows_csv(cells: &[Cell]) -> String {
    let mut csv = "length,method,text,start,loss,seconds\n".to_owned();
    for cell in cells {
        for Measured { text, start, loss, seconds } in &cell.windows {
            let Cell { length, method, .. } = cell;
            writeln!(csv, "{length},{method},{text},{start},{loss},{seconds}").unwrap_or_default();
        }
    }
    csv
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(length: usize, method: &str, losses: &[f64]) -> Cell {
        let window = |(i, &loss): (usize, &f64)| Measured {
            text: "t".into(),
            start: 10 * i,
            loss,
            seconds: [3.0, 1.0, 2.0][i],
        };
        Cell { length, method: method.into(), windows: losses.iter().enumerate().map(window).collect() }
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean_loss_carried_over() {
        let cell = cell(8, "none", &[1.0, 2.0, 3.0]);
        assert!((cell.perplexity() - 2f64.exp()).abs() < 1e-12);
        // The deviation of 1, 2, 3 is 1.
        assert!((cell.standard_error() - 2f64.exp() / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(cell.seconds(), 2.0);
        assert!(super::tests::cell(8, "none", &[1.0]).standard_error().is_nan());
    }

    #[test]
    fn tables_have_a_row_a_length_and_mark_the_lowest() {
        let cells = [
            cell(8, "none", &[1.0, 1.0]),
            cell(8, "PI", &[2.0, 2.0]),
            cell(16, "none", &[9.0, 9.0]),
            cell(16, "PI", &[3.0, 3.0]),
        ];
        let text = to_text(&cells);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["length", "none", "PI"]);
        assert_eq!(rows[1], ["8", "2.72", "±", "0.00*", "7.39", "±", "0.00"]);
        assert_eq!(rows[2], ["16", "8103", "±", "0", "20.09", "±", "0.00*"]);
        assert_eq!(rows.len(), 3);
        assert_eq!(to_csv(&cells).lines().nth(4), Some("16,PI,20.085536923187668,0,2,3"));
        assert_eq!(windows_csv(&cells).lines().count(), 9);
        assert_eq!(windows_csv(&cells).lines().nth(2), Some("8,none,t,10,1,1"));
    }
}
