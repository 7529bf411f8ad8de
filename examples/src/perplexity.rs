//! Perplexity of a model on windows of text.

use anyhow::Result;
use longrope::scaling::{FactorSets, SetChoice};

use crate::model::Llama;

/// `exp` of the mean over the windows of their mean negative log-likelihood, each window from position 0 in one pass.
pub fn perplexity(model: &Llama, windows: &[&[u32]], sets: &FactorSets, choice: SetChoice) -> Result<f64> {
    let mut sum = 0.0;
    for window in windows {
        let losses = model.losses(window, sets, choice)?;
        sum += losses.iter().sum::<f64>() / losses.len() as f64;
    }
    Ok((sum / windows.len() as f64).exp())
}
