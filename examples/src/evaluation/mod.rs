//! What methods are worth by length: perplexities with their standard errors, passkeys, and what follows a passage.

mod choices;
mod json;
mod passkeys;
mod plots;
mod record;
mod tables;

pub use choices::{Answer, Choices, choices_csv, choices_text, measure_choices};
pub use json::{Described, choices_json, passkeys_json, perplexities_json};
pub use passkeys::{Keys, measure_passkeys, passkeys_csv, passkeys_text};
pub use plots::{passkeys_svg, perplexity_svg};
pub use record::Record;
pub use tables::{differences, to_csv, to_markdown, to_text, windows_csv};
pub(crate) use tables::{told, told_difference};

use anyhow::{Result, bail};
use longrope::scaling::{FactorSets, RopeConfig, Schedule, SetChoice};

use crate::corpus::Window;
use crate::model::Llama;
use crate::perplexity::mean_last_loss;

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
    /// The mean negative log-likelihood of its tokens after the first, or of the last ones asked for, in nats.
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
    /// window, which tables leave out.
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

/// Measures every method on every window, of which the `last` tokens count where it says so; `progress` is told how many
/// evaluations are done. The windows of one length follow each other. What `record` holds is not measured again.
pub fn measure(
    model: &Llama,
    methods: &[(String, Method)],
    windows: &[Vec<Window<'_>>],
    last: Option<usize>,
    record: &mut Record,
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
                let key = record.key(window.tokens, &sets, &format!("{last:?}"));
                let (loss, seconds) =
                    record.measured(key, || mean_last_loss(model, window.tokens, last, &sets, choice))?;
                measured.push(Measured { text: window.text.to_owned(), start: window.start, loss, seconds });
                done += 1;
                progress(done);
            }
            cells.push(Cell { length, method: name.clone(), windows: measured });
        }
    }
    Ok(cells)
}
