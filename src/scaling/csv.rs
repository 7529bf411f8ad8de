//! The authors' CSV files of rescale factors.
//!
//! Two forms are in use: one value a line (the released code), and one line of comma-separated values per layer (the
//! files published on its development branches, 32 equal lines for 32 layers).

use crate::scaling::ConfigError;

/// Larger files hold no factors.
const MAX_BYTES: usize = 16 << 20;

/// Reads factors for `pairs` pairs: one list per layer, or a single list if all layers share one.
///
/// # Errors
/// Text without a value, a value that is not a finite number above 0 (named by line and column), or a number of values
/// that fits neither form.
pub fn factors_from_csv(text: &str, pairs: usize) -> Result<Vec<Vec<f64>>, ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigError::invalid(
            "csv",
            format!("{} bytes", text.len()),
            format!("at most {MAX_BYTES} bytes"),
        ));
    }
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row = line
            .split(',')
            .enumerate()
            .map(|(column, cell)| value(number + 1, column + 1, cell))
            .collect::<Result<Vec<f64>, _>>()?;
        rows.push((number + 1, row));
    }
    let one_per_line = rows.iter().all(|(_, row)| row.len() == 1);
    // With a single pair the two forms look alike, and mean the same if the lines agree.
    if one_per_line && rows.len() == pairs {
        return Ok(vec![rows.into_iter().map(|(_, row)| row[0]).collect()]);
    }
    if rows.is_empty() || (one_per_line && pairs != 1) {
        return Err(ConfigError::invalid(
            "csv",
            format!("{} values", rows.len()),
            format!("{pairs}, one per pair of the rotary dimension"),
        ));
    }
    if let Some((number, row)) = rows.iter().find(|(_, row)| row.len() != pairs) {
        return Err(ConfigError::invalid(
            format!("csv line {number}"),
            format!("{} values", row.len()),
            format!("{pairs}, one per pair of the rotary dimension"),
        ));
    }
    let mut layers: Vec<Vec<f64>> = rows.into_iter().map(|(_, row)| row).collect();
    if layers.windows(2).all(|pair| pair[0] == pair[1]) {
        layers.truncate(1);
    }
    Ok(layers)
}

fn value(line: usize, column: usize, cell: &str) -> Result<f64, ConfigError> {
    let cell = cell.trim();
    cell.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
        let shown: String = cell.chars().take(40).collect();
        ConfigError::invalid(
            format!("csv line {line}, column {column}"),
            format!("{shown:?}"),
            "a finite number above 0",
        )
    })
}

/// Writes factors, one value a line, as the released code reads them. Every value is read back to the same bits.
pub fn factors_to_csv(factors: &[f64]) -> String {
    factors.iter().map(|factor| format!("{factor}\n")).collect()
}
