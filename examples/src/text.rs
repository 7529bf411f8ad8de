//! Texts as tokens, and the windows that perplexity is measured on.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use tokenizers::Tokenizer;

use crate::files;

/// Reads a UTF-8 text and encodes it, without special tokens.
pub fn read_tokens(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = files::read_text(path)?;
    let encoding = tokenizer
        .encode_fast(text.as_str(), false)
        .map_err(|error| anyhow!("{}: can't be tokenized: {error}", path.display()))?;
    Ok(encoding.get_ids().to_vec())
}

/// `count` windows of `length` tokens, spread evenly over the text from its first token to its last; they do not
/// overlap where the text is long enough.
pub fn windows<'a>(name: &str, tokens: &'a [u32], length: usize, count: usize) -> Result<Vec<&'a [u32]>> {
    ensure!(length >= 2, "a window of {length} tokens is too short; expected at least 2");
    ensure!(
        tokens.len() >= length,
        "{name}: {} tokens are too few for a window of {length}; use a longer text or a shorter --length",
        tokens.len()
    );
    let room = tokens.len() - length;
    let start = |i: usize| if count < 2 { 0 } else { i * room / (count - 1) };
    Ok((0..count).map(|i| &tokens[start(i)..start(i) + length]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_span_the_text() {
        let tokens: Vec<u32> = (0..100).collect();
        let windows = windows("text", &tokens, 20, 5).unwrap();
        let starts: Vec<u32> = windows.iter().map(|window| window[0]).collect();
        assert_eq!(starts, [0, 20, 40, 60, 80]);
        assert!(windows.iter().all(|window| window.len() == 20));
    }

    #[test]
    fn a_text_that_is_too_short_is_named_with_both_lengths() {
        let message = windows("moby.txt", &[1, 2, 3], 4, 1).unwrap_err().to_string();
        assert!(message.starts_with("moby.txt: 3 tokens are too few for a window of 4"), "{message}");
        assert!(windows("moby.txt", &[1, 2, 3], 3, 2).is_ok());
        assert!(windows("moby.txt", &[1, 2, 3], 1, 2).is_err());
    }
}
