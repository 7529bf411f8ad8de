//! The tables of perplexities.

use std::fmt::Write as _;

use super::{Cell, Measured};

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
        let value = told(cell);
        write!(text, "{value:>18}{mark}").unwrap_or_default();
    }
    text + "\n"
}

/// A perplexity with its standard error, if it has one.
pub(crate) fn told(cell: &Cell) -> String {
    let decimals = if cell.perplexity() < 1000.0 { 2 } else { 0 };
    let error = match cell.windows.len() {
        1 => String::new(),
        _ => format!(" ± {:.decimals$}", cell.standard_error()),
    };
    format!("{:.decimals$}{error}", cell.perplexity())
}

/// A difference of losses with its standard error, which that of one window has not.
pub(crate) fn told_difference(mean: f64, error: f64) -> String {
    match error.is_nan() && !mean.is_nan() {
        true => format!("{mean:.3}"),
        false => format!("{mean:.3} ± {error:.3}"),
    }
}

/// A row a cell.
pub fn to_csv(cells: &[Cell]) -> String {
    let mut csv = "length,method,perplexity,standard_error,windows,seconds\n".to_owned();
    for cell in cells {
        let Cell { length, method, windows } = cell;
        let error = if windows.len() > 1 { cell.standard_error().to_string() } else { String::new() };
        let (value, seconds) = (cell.perplexity(), cell.seconds());
        writeln!(csv, "{length},{method},{value},{error},{},{seconds}", windows.len()).unwrap_or_default();
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

/// The loss of every method less that of `against` on the same windows, in nats a token, with the standard error of the
/// differences: length, method, mean, error.
pub fn differences(cells: &[Cell], against: &str) -> Vec<(usize, String, f64, f64)> {
    let mut found = Vec::new();
    for cell in cells.iter().filter(|cell| cell.method != against) {
        let other = cells.iter().find(|other| other.length == cell.length && other.method == against);
        let Some(other) = other else { continue };
        let pairs = cell.windows.iter().zip(&other.windows);
        let differences: Vec<f64> = pairs.map(|(a, b)| a.loss - b.loss).collect();
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count;
        let squares: f64 = differences.iter().map(|difference| (difference - mean).powi(2)).sum();
        found.push((cell.length, cell.method.clone(), mean, (squares / (count - 1.0) / count).sqrt()));
    }
    found
}

/// Two tables in Markdown: perplexities, the lowest of each row bold, and [`differences`].
pub fn to_markdown(cells: &[Cell], against: &str) -> String {
    let mut lengths: Vec<usize> = cells.iter().map(|cell| cell.length).collect();
    lengths.dedup();
    let row = |length: usize| cells.iter().filter(move |cell| cell.length == length);
    let methods: Vec<&str> =
        row(lengths.first().copied().unwrap_or(0)).map(|cell| cell.method.as_str()).collect();
    let header = |methods: &[&str]| {
        format!("| tokens | {} |\n|---:|{}\n", methods.join(" | "), "---:|".repeat(methods.len()))
    };
    let mut text = header(&methods);
    for &length in &lengths {
        let lowest = row(length).map(Cell::perplexity).fold(f64::INFINITY, f64::min);
        let values = row(length).map(|cell| {
            let value = told(cell);
            if cell.perplexity() == lowest { format!("**{value}**") } else { value }
        });
        writeln!(text, "| {length} | {} |", values.collect::<Vec<_>>().join(" | ")).unwrap_or_default();
    }
    let others: Vec<&str> = methods.iter().copied().filter(|method| *method != against).collect();
    let found = differences(cells, against);
    if found.is_empty() {
        return text;
    }
    write!(text, "\nLoss less that of {against}, nats a token:\n\n{}", header(&others)).unwrap_or_default();
    for length in lengths {
        let values = found.iter().filter(|difference| difference.0 == length);
        let values = values.map(|(_, _, mean, error)| told_difference(*mean, *error));
        writeln!(text, "| {length} | {} |", values.collect::<Vec<_>>().join(" | ")).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Measured;
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

    #[test]
    fn a_difference_has_the_error_of_the_differences_and_not_of_the_values() {
        // The windows differ much, the methods by 0.1 and 0.3.
        let cells = [cell(8, "a", &[1.1, 2.3]), cell(8, "b", &[1.0, 2.0]), cell(16, "b", &[3.0, 4.0])];
        let found = differences(&cells, "b");
        assert_eq!(found.len(), 1);
        let (length, method, mean, error) = &found[0];
        assert_eq!((*length, method.as_str()), (8, "a"));
        assert!((mean - 0.2).abs() < 1e-12 && (error - 0.1).abs() < 1e-12, "{mean} {error}");
    }

    #[test]
    fn markdown_has_the_perplexities_and_the_differences() {
        let cells = [cell(8, "a", &[1.1, 2.3]), cell(8, "b", &[1.0, 2.0])];
        let text = to_markdown(&cells, "b");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| tokens | a | b |");
        assert_eq!(lines[1], "|---:|---:|---:|");
        // exp 1.7 and exp 1.5; their errors are 0.6 and 0.5 times that.
        assert_eq!(lines[2], "| 8 | 5.47 ± 3.28 | **4.48 ± 2.24** |");
        assert_eq!(lines.last(), Some(&"| 8 | 0.200 ± 0.100 |"), "{text}");
    }
}
