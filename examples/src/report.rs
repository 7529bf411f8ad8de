//! What a search leaves behind: a table of perplexities, the history, the configuration.

use std::fmt::Write as _;

use anyhow::Result;
use longrope::scaling::SetChoice;
use longrope::search::Evaluation;

use crate::evaluation::Method;
use crate::model::Llama;
use crate::perplexity::perplexity;
use crate::search_run::Run;
use crate::text;

/// Perplexities by method and length.
pub struct Table {
    /// Lengths in tokens, rising: the rows.
    pub lengths: Vec<usize>,
    /// The methods' names: the columns.
    pub methods: Vec<String>,
    /// `values[row][column]`.
    pub values: Vec<Vec<f64>>,
}

/// The lengths of a table: the original one, doubled as long as it stays below `target`, and `target`.
pub fn lengths(original: usize, target: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(original), |length| length.checked_mul(2));
    doubled.take_while(|length| *length < target).chain([target]).collect()
}

/// Measures every method at every length, on `windows` windows each. `progress` is told how many of all cells are done.
pub fn measure(
    model: &Llama,
    methods: &[(&str, Method)],
    (name, tokens): (&str, &[u32]),
    windows: usize,
    lengths: Vec<usize>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Table> {
    let cells = lengths.len() * methods.len();
    let mut values = Vec::new();
    for (row, &length) in lengths.iter().enumerate() {
        let windows = text::windows(name, tokens, length, windows)?;
        let mut cell = |(column, (_, method)): (usize, &(&str, Method))| -> Result<f64> {
            progress(row * methods.len() + column, cells);
            let sets = method.factor_sets(length as u64)?;
            perplexity(model, &windows, &sets, SetChoice::ByLength(length as u64))
        };
        values.push(methods.iter().enumerate().map(&mut cell).collect::<Result<_>>()?);
    }
    let methods = methods.iter().map(|(name, _)| (*name).to_owned()).collect();
    Ok(Table { lengths, methods, values })
}

impl Table {
    /// Aligned for a terminal, the lowest of each row marked.
    pub fn to_text(&self) -> String {
        let mut text = format!("{:>9}", "length");
        self.methods.iter().for_each(|method| write!(text, "{method:>12}").unwrap_or_default());
        text.push('\n');
        for (length, values) in self.lengths.iter().zip(&self.values) {
            write!(text, "{length:>9}").unwrap_or_default();
            let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
            for value in values {
                let mark = if *value == lowest { '*' } else { ' ' };
                write!(text, "{:>11}{mark}", short(*value)).unwrap_or_default();
            }
            text.push('\n');
        }
        text
    }

    /// `length,method,perplexity`, a row per value.
    pub fn to_csv(&self) -> String {
        let mut csv = "length,method,perplexity\n".to_owned();
        for (length, values) in self.lengths.iter().zip(&self.values) {
            for (method, value) in self.methods.iter().zip(values) {
                writeln!(csv, "{length},{method},{value}").unwrap_or_default();
            }
        }
        csv
    }
}

fn short(value: f64) -> String {
    match value < 1000.0 {
        true => format!("{value:.3}"),
        false => format!("{value:.0}"),
    }
}

/// The history of a search: a row per evaluation, in their order, with its cost and the cost of all up to it. Candidates
/// without an attention factor have `attention_factor`; windows are of `length` tokens.
pub fn history_csv(run: &Run, length: usize, attention_factor: f64) -> String {
    let history = run.search.history();
    let pairs = history.first().map_or(0, |evaluation| evaluation.candidate.factors.len());
    let mut csv = HISTORY_COLUMNS.join(",");
    (0..pairs).for_each(|i| write!(csv, ",lambda_{i}").unwrap_or_default());
    csv.push('\n');
    let mut best = f64::INFINITY;
    let (mut tokens, mut seconds) = (0, 0.0);
    for (number, (evaluation, cost)) in history.iter().zip(&run.costs).enumerate() {
        let Evaluation { candidate, value, iteration } = evaluation;
        best = best.min(*value);
        tokens += cost.tokens(length);
        seconds += cost.seconds;
        write!(
            csv,
            "{},{iteration},{value},{best},{},{tokens},{seconds:.3},{},{}",
            number + 1,
            cost.windows,
            candidate.first_tokens,
            candidate.attention_factor.unwrap_or(attention_factor)
        )
        .unwrap_or_default();
        candidate.factors.iter().for_each(|factor| write!(csv, ",{factor}").unwrap_or_default());
        csv.push('\n');
    }
    csv
}

/// The columns of a history before those of the factors. `value` is what was minimised, an estimate where a candidate was
/// left early; `windows` are whole ones; `model_tokens` and `seconds` are sums up to the row.
const HISTORY_COLUMNS: [&str; 9] = [
    "evaluation",
    "iteration",
    "value",
    "best",
    "windows",
    "model_tokens",
    "seconds",
    "n_hat",
    "attention_factor",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_double_up_to_the_target() {
        assert_eq!(lengths(256, 2048), [256, 512, 1024, 2048]);
        assert_eq!(lengths(256, 1500), [256, 512, 1024, 1500]);
        assert_eq!(lengths(256, 256), [256]);
    }

    #[test]
    fn a_table_marks_the_lowest_of_each_row() {
        let table = Table {
            lengths: vec![256, 512],
            methods: vec!["none".into(), "PI".into()],
            values: vec![vec![3.25, 4.5], vec![12345.6, 5.0]],
        };
        let text = table.to_text();
        assert!(text.contains("3.250*") && text.contains("5.000*") && text.contains("12346 "), "{text}");
        assert_eq!(
            table.to_csv(),
            "length,method,perplexity\n256,none,3.25\n256,PI,4.5\n512,none,12345.6\n512,PI,5\n"
        );
    }
}
