//! Hashes of what a run depends on, by which a checkpoint is known to be of the same run.

use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::checkpoint::hexadecimal;
use crate::search_run::add_model;

/// Of the files of a model or an adapter.
pub fn model(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    add_model(&mut hash, path)?;
    Ok(hexadecimal(hash))
}

/// Of sequences of tokens.
pub fn tokens<'a>(sequences: impl Iterator<Item = &'a [u32]>) -> String {
    let mut hash = Sha256::new();
    for sequence in sequences {
        hash.update((sequence.len() as u64).to_le_bytes());
        sequence.iter().for_each(|token| hash.update(token.to_le_bytes()));
    }
    hexadecimal(hash)
}

/// Of a text.
pub fn text(text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(text);
    hexadecimal(hash)
}
