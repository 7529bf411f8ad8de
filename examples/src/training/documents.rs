//! Texts as documents.

use anyhow::{Context, Result, anyhow, ensure};
use tokenizers::Tokenizer;

use crate::corpus::Text;
use crate::files;

/// The documents of some texts: each text, or its pieces between `separator`, each followed by `end_token` if there is one.
///
/// # Errors
/// A text that can't be read or tokenized, with its path.
pub fn documents(
    texts: &[Text],
    tokenizer: &Tokenizer,
    separator: Option<&str>,
    end_token: Option<u32>,
) -> Result<Vec<Vec<u32>>> {
    ensure!(
        separator != Some(""),
        "--separator: an empty text is not valid; expected what stands between documents"
    );
    let mut documents = Vec::new();
    for Text { path, .. } in texts {
        let text = files::read_text(path)?;
        let pieces: Vec<&str> = match separator {
            Some(separator) => text.split(separator).filter(|piece| !piece.trim().is_empty()).collect(),
            None => vec![text.as_str()],
        };
        for piece in pieces {
            let encoding = tokenizer
                .encode_fast(piece, false)
                .map_err(|error| anyhow!("{error}"))
                .with_context(|| format!("{}: can't be tokenized", path.display()))?;
            let mut tokens = encoding.get_ids().to_vec();
            tokens.extend(end_token);
            documents.push(tokens);
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    #[test]
    fn a_text_is_cut_where_the_separator_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "ab\n\ncd\n\n\n\ne").unwrap();
        let texts = [Text { name: "text".into(), path }];
        let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny");
        let tokenizer = model::open(&tiny).unwrap().tokenizer;
        // A token is a byte.
        let all = |separator, end| documents(&texts, &tokenizer, separator, end);
        assert_eq!(all(None, None).unwrap(), [b"ab\n\ncd\n\n\n\ne".map(u32::from)]);
        let cut: Vec<Vec<u32>> = vec![vec![97, 98, 0], vec![99, 100, 0], vec![101, 0]];
        assert_eq!(all(Some("\n\n"), Some(0)).unwrap(), cut);
        let message = all(Some(""), None).unwrap_err().to_string();
        assert!(message.starts_with("--separator: an empty text is not valid"), "{message}");
    }
}
