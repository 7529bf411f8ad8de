//! The texts of a search.

use std::path::Path;

use anyhow::Result;
use longrope_drivers::text;
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
        let (search, eval) = match (&arguments.text, &arguments.eval_text) {
            (None, _) => (
                Path::new(DATA).join("texts/moby-dick-search.txt"),
                Path::new(DATA).join("texts/moby-dick-eval.txt"),
            ),
            (Some(search), Some(eval)) => (search.clone(), eval.clone()),
            (Some(both), None) => {
                let mut tokens = text::read_tokens(both, tokenizer)?;
                let eval = tokens.split_off(tokens.len() / 2);
                let name = |half| format!("the {half} half of {}", both.display());
                return Ok(Self {
                    search: tokens,
                    search_name: name("first"),
                    eval,
                    eval_name: name("second"),
                });
            }
        };
        let name = |path: &Path| {
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        };
        Ok(Self {
            search: text::read_tokens(&search, tokenizer)?,
            search_name: name(&search),
            eval: text::read_tokens(&eval, tokenizer)?,
            eval_name: name(&eval),
        })
    }
}
