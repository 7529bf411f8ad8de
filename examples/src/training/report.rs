//! What a run came to.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::checkpoint::Done;
use super::curve::{curve_csv, curve_svg};
use crate::corpus::Window;
use crate::files;

/// The result of a run, as it is kept for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Steps that were made.
    pub steps: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Where the factors are from.
    pub factors: String,
    /// Tokens of all sequences that were trained on.
    pub tokens: usize,
    /// How long the steps took, all together.
    pub seconds: f64,
    /// Floating-point operations of the steps: products and causal attention, forward and backward, each once.
    pub operations: f64,
    /// The share that they are of what the device could do in that time, where its peak is known.
    pub utilisation: Option<f64>,
    /// Bytes of a GPU's memory that were in use.
    pub memory_bytes: Option<u64>,
    /// The mean loss of the held-out windows before the first step, in nats a token.
    pub loss_before: f64,
    /// The same after the last.
    pub loss_after: f64,
    /// The held-out windows.
    pub held_out: Vec<Place>,
}

/// Where a window is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The text's name in the manifest.
    pub text: String,
    /// The window's first token in it.
    pub start: usize,
}

impl Report {
    /// Of a run that has done this, in so many operations, on a device of this peak rate.
    pub fn new(
        done: &Done,
        (length, factors): (usize, &str),
        (operations, peak): (f64, Option<f64>),
        loss_after: f64,
        held_out: &[Window<'_>],
    ) -> Self {
        let seconds: f64 = done.history.iter().map(|record| record.seconds).sum();
        let place = |window: &Window<'_>| Place { text: window.text.to_owned(), start: window.start };
        Self {
            steps: done.history.len(),
            length,
            factors: factors.to_owned(),
            tokens: done.history.iter().map(|record| record.tokens).sum(),
            seconds,
            operations,
            utilisation: peak.filter(|_| seconds > 0.0).map(|peak| operations / seconds / peak),
            memory_bytes: None,
            loss_before: done.loss_before,
            loss_after,
            held_out: held_out.iter().map(place).collect(),
        }
    }
}

impl Report {
    /// Writes the report, and the course of the loss, to a directory. Gives the names of the files.
    pub fn write(&self, done: &Done, dir: &Path) -> Result<Vec<&'static str>> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        let mut results = vec![("report.txt", self.to_string()), ("report.json", json)];
        if !done.history.is_empty() {
            results.push(("loss.csv", curve_csv(&done.history)));
            results.push(("loss.svg", curve_svg(&done.history, self.loss_before, self.loss_after)?));
        }
        for (name, contents) in &results {
            files::write_atomically(&dir.join(name), contents)?;
        }
        Ok(results.into_iter().map(|(name, _)| name).collect())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, length, factors, tokens, seconds, loss_before, loss_after, held_out, .. } = self;
        if *steps > 0 {
            writeln!(
                f,
                "{steps} steps of {} tokens at a length of {length}, with the factors of {factors}: {seconds:.1} s, {:.0} tokens/s{}.",
                tokens / steps,
                *tokens as f64 / seconds,
                self.utilisation
                    .map_or_else(String::new, |share| format!(", {:.1} % of peak", 100.0 * share))
            )?;
        }
        writeln!(
            f,
            "Loss on {} windows of {length} tokens that were not trained on: {loss_before:.4} before, {loss_after:.4} after \
             (perplexity {:.3}, {:.3}).",
            held_out.len(),
            loss_before.exp(),
            loss_after.exp()
        )
    }
}
