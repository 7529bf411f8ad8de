//! Perplexity of a model on windows of text.

use anyhow::Result;
use longrope::scaling::{FactorSets, SetChoice};

use crate::model::Llama;

/// `exp` of the mean over the windows of their mean negative log-likelihood, each window from position 0 in one pass.
pub fn perplexity(model: &Llama, windows: &[&[u32]], sets: &FactorSets, choice: SetChoice) -> Result<f64> {
    let mut sum = 0.0;
    for window in windows {
        sum += mean_loss(model, window, sets, choice)?;
    }
    Ok((sum / windows.len() as f64).exp())
}

/// The mean negative log-likelihood of a window's tokens after the first, in nats.
pub fn mean_loss(model: &Llama, window: &[u32], sets: &FactorSets, choice: SetChoice) -> Result<f64> {
    mean_last_loss(model, window, None, sets, choice)
}

/// The same of the last so many tokens alone, or of all after the first.
pub fn mean_last_loss(
    model: &Llama,
    window: &[u32],
    last: Option<usize>,
    sets: &FactorSets,
    choice: SetChoice,
) -> Result<f64> {
    let losses = model.last_losses(window, last.unwrap_or(window.len()), sets, choice)?;
    Ok(losses.iter().sum::<f64>() / losses.len() as f64)
}
