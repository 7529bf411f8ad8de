//! The texts of a search.

use std::path::Path;

use anyhow::Result;
use longrope_drivers::{corpus, text};
use tokenizers::Tokenizer;

use super::DATA;
use super::arguments::Arguments;

/// The tokens that the search sees, and those that the table is measured on.
pub struct Texts {
    pub search: Vec<u32>,
    pub search_name: String,
    pub eval: Vec<u32>,
    pub eval_name: String,
}

impl Texts {
    /// Those of the flags, or of the repository.
    pub fn read(arguments: &Arguments, tokenizer: &Tokenizer) -> Result<Self> {
        let read = |path: &Path| -> Result<(String, Vec<u32>)> {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            Ok((name.into_owned(), text::read_tokens(path, tokenizer)?))
        };
        let (search, eval) = match (&arguments.text[..], &arguments.eval_text) {
            ([], _) => (
                vec![Path::new(DATA).join("texts/moby-dick-search.txt")],
                Path::new(DATA).join("texts/moby-dick-eval.txt"),
            ),
            (search, Some(eval)) => (search.to_vec(), eval.clone()),
            (both, None) => {
                let paths: Vec<_> = both.iter().map(|path| path.display().to_string()).collect();
                let texts = both.iter().map(|path| read(path)).collect::<Result<_>>()?;
                let (_, mut tokens) = corpus::joined(texts);
                let eval = tokens.split_off(tokens.len() / 2);
                let name = |half| format!("the {half} half of {}", paths.join(" + "));
                return Ok(Self {
                    search: tokens,
                    search_name: name("first"),
                    eval,
                    eval_name: name("second"),
                });
            }
        };
        let (search_name, search) =
            corpus::joined(search.iter().map(|path| read(path)).collect::<Result<_>>()?);
        let (eval_name, eval) = read(&eval)?;
        Ok(Self { search, search_name, eval, eval_name })
    }
}
