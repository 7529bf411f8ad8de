//! All that the steps of a run depend on, by which a checkpoint is known to be of the same run.

use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::checkpoint::hexadecimal;
use super::factors::Factors;
use super::llama::{Method, TrainableLlama};
use super::packing::{Pack, Windows};
use super::run::Recipe;
use crate::model::Origin;

/// Flags and their values, or hashes of what they name.
pub type Settings = Vec<(String, String)>;

/// The settings of a run of a model, which may begin with an adapter.
pub fn settings(
    origin: &Origin,
    model: &TrainableLlama,
    factors: &Factors,
    windows: &Windows<'_>,
    held_out: &[Pack],
    recipe: &Recipe,
) -> Result<Settings> {
    let rate = recipe.learning_rate;
    let mut settings = vec![
        ("--model", model_hash(&origin.model)?),
        ("--text", tokens_hash(windows.documents().iter().map(Vec::as_slice))),
        ("--eval-text", tokens_hash(held_out.iter().map(Pack::tokens))),
        ("--rope-scaling", hash(factors.described()?)),
        ("--dtype", format!("{:?}", model.place().dtype).to_lowercase()),
        ("--length", factors.length.to_string()),
        ("--packing", windows.packing().to_string()),
        ("--steps", rate.steps.to_string()),
        ("--batch", recipe.batch.to_string()),
        ("--learning-rate", rate.highest.to_string()),
        ("--warm-up", rate.warm_up.to_string()),
        ("--weight-decay", recipe.weight_decay.to_string()),
        ("--clip", recipe.clip.to_string()),
        ("--seed", windows.seed().to_string()),
    ];
    match model.method() {
        Method::Full => settings.push(("--lora", "off".to_owned())),
        Method::Lora(lora) => {
            let targets: Vec<String> = lora.projections.iter().map(ToString::to_string).collect();
            settings.push(("--lora", lora.rank.to_string()));
            settings.push(("--alpha", lora.alpha.to_string()));
            settings.push(("--lora-targets", targets.join(",")));
        }
    }
    let adapter = origin.adapter.as_deref().map_or(Ok("none".to_owned()), model_hash)?;
    settings.push(("--adapter", adapter));
    Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Of the files of a model or an adapter.
fn model_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    Origin::from(path).add_to(&mut hash)?;
    Ok(hexadecimal(hash))
}

fn tokens_hash<'a>(sequences: impl Iterator<Item = &'a [u32]>) -> String {
    let mut hash = Sha256::new();
    for sequence in sequences {
        hash.update((sequence.len() as u64).to_le_bytes());
        sequence.iter().for_each(|token| hash.update(token.to_le_bytes()));
    }
    hexadecimal(hash)
}

fn hash(text: String) -> String {
    let mut hash = Sha256::new();
    hash.update(text);
    hexadecimal(hash)
}
