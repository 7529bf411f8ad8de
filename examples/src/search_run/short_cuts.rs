//! What is left out of an evaluation whose candidate can't win.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Cost;

/// When a candidate is left early: where it is clearly worse than the best one so far on less than all windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShortCuts {
    /// How much worse it may be.
    pub early_drop: EarlyDrop,
    /// So many tokens at the beginning of the first window are looked at before that as a whole; `None` for none. A pass over them
    /// costs less than their share, since the cost of attention grows with the square. What the search begins with is not left
    /// there: methods differ much in what length they are good at, and what is best at a shorter one would win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub screen: Option<usize>,
}

impl ShortCuts {
    /// The perplexity by the loss of each window, and what it cost but for the time. A candidate that is left early gets the
    /// perplexity that it would have if it were worse than the best by as much on every window as on what was measured: texts
    /// differ much, but by nearly the same amount for all candidates. That is always above the best's.
    pub fn perplexity(
        &self,
        windows: &[&[u32]],
        best: Option<(f64, &Cost)>,
        is_seed: bool,
        loss: impl Fn(&[u32]) -> Result<f64>,
    ) -> Result<(f64, Cost)> {
        let mut cost = Cost::default();
        // What a candidate is taken to have that has so much more loss than the best on a part of the text.
        let dropped = |loss: f64, of_best: &dyn Fn(&Cost) -> Option<f64>| {
            let (value, best) = best?;
            let excess = loss - of_best(best)?;
            (excess > self.early_drop.0?).then(|| value * excess.exp())
        };
        if let Some((first, tokens)) = windows.first().zip(self.screen) {
            let found = loss(&first[..tokens.min(first.len())])?;
            cost.screened = Some(Screened { tokens, loss: Some(found).filter(|loss| loss.is_finite()) });
            let value = dropped(found, &|cost| cost.screened.as_ref()?.loss);
            if let Some(value) = value.filter(|_| !is_seed) {
                return Ok((value, cost));
            }
        }
        let mut sum = 0.0;
        for window in windows {
            let found = loss(window)?;
            sum += found;
            cost.windows += 1;
            if cost.windows == 1 {
                cost.first_loss = Some(found).filter(|loss| loss.is_finite());
                if let Some(value) = dropped(found, &|cost| cost.first_loss).filter(|_| windows.len() > 1) {
                    return Ok((value, cost));
                }
            }
        }
        Ok(((sum / windows.len() as f64).exp(), cost))
    }
}

/// As flags.
impl Display for ShortCuts {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "--early-drop {}", self.early_drop)?;
        self.screen.map_or(Ok(()), |tokens| write!(formatter, " --screen {tokens}"))
    }
}

/// The excess of a candidate's loss over the best candidate's on the same text, in nats a token, above which the rest is not measured;
/// `None` for never.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyDrop(pub Option<f64>);

impl FromStr for EarlyDrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "off" => Ok(Self(None)),
            Ok(margin) if (0.0..=100.0).contains(&margin) => Ok(Self(Some(margin))),
            _ => Err("expected off, or a number of nats a token from 0 to 100".to_owned()),
        }
    }
}

impl Display for EarlyDrop {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(margin) => margin.fmt(formatter),
            None => formatter.write_str("off"),
        }
    }
}

/// The beginning of a window, looked at by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Screened {
    /// How many tokens.
    pub tokens: usize,
    /// Their mean loss, where it is finite.
    pub loss: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const WINDOWS: [&[u32]; 2] = [&[1; 8], &[2; 8]];

    /// Evaluates a candidate with these losses: of the first three tokens, and of either window.
    fn evaluate(
        short_cuts: ShortCuts,
        best: Option<(f64, &Cost)>,
        losses: [f64; 3],
    ) -> (f64, Cost, Vec<usize>) {
        let passes = RefCell::new(Vec::new());
        let loss = |window: &[u32]| {
            passes.borrow_mut().push(window.len());
            Ok(losses[if window.len() == 3 { 0 } else { window[0] as usize }])
        };
        let (value, cost) = short_cuts.perplexity(&WINDOWS, best, false, loss).unwrap();
        (value, cost, passes.into_inner())
    }

    #[test]
    fn a_candidate_is_left_where_it_is_clearly_worse_on_what_was_measured() {
        let short_cuts = ShortCuts { early_drop: EarlyDrop(Some(0.1)), screen: Some(3) };
        let (value, cost, passes) = evaluate(short_cuts, None, [5.0, 1.0, 2.0]);
        assert_eq!((value, passes), (1.5f64.exp(), vec![3, 8, 8]));
        assert_eq!((cost.windows, cost.tokens(8)), (2, 19));
        let best = Some((value, &cost));

        // On the beginning: by as much as it is worse there, and no window is looked at.
        let (worse, cost, passes) = evaluate(short_cuts, best, [5.25, 0.0, 0.0]);
        assert_eq!((worse, passes), (value * 0.25f64.exp(), vec![3]));
        assert_eq!((cost.windows, cost.tokens(8), cost.first_loss), (0, 3, None));
        // On the first window, after a beginning that was near enough.
        let (worse, cost, passes) = evaluate(short_cuts, best, [5.05, 1.5, 0.0]);
        assert_eq!((worse, passes), (value * 0.5f64.exp(), vec![3, 8]));
        assert_eq!((cost.windows, cost.tokens(8)), (1, 11));
        // Where there is no number there is nothing to compare.
        let (worse, _, passes) = evaluate(short_cuts, best, [f64::NAN, f64::NAN, 0.0]);
        assert!(worse.is_nan());
        assert_eq!(passes, [3, 8, 8]);

        // What a search begins with is not left there, but after a window.
        let passes = RefCell::new(Vec::new());
        let loss = |window: &[u32]| {
            passes.borrow_mut().push(window.len());
            Ok(9.0)
        };
        short_cuts.perplexity(&WINDOWS, best, true, loss).unwrap();
        assert_eq!(passes.into_inner(), [3, 8]);

        let never = ShortCuts { early_drop: EarlyDrop(None), screen: None };
        assert_eq!(evaluate(never, best, [9.0, 9.0, 9.0]).2, [8, 8]);
    }

    #[test]
    fn they_are_written_as_flags() {
        let all = ShortCuts { early_drop: EarlyDrop(Some(0.02)), screen: Some(64) };
        assert_eq!(all.to_string(), "--early-drop 0.02 --screen 64");
        let none = ShortCuts { early_drop: EarlyDrop(None), screen: None };
        assert_eq!(none.to_string(), "--early-drop off");
    }
}
