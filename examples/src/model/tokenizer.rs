//! Tokenizers: `tokenizer.json` of a Hugging Face directory, or the metadata of a GGUF file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

use super::gguf::GgufFile;

/// GGUF's token type of special tokens.
const CONTROL: i32 = 3;

/// Loads `tokenizer.json`.
pub(super) fn from_dir(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let text = crate::files::read_text(&path)?;
    text.parse().map_err(|error| anyhow!("{}: not a valid tokenizer: {error}", path.display()))
}

/// Builds the byte-level BPE tokenizer that a GGUF file describes.
pub(super) fn from_gguf(file: &GgufFile) -> Result<Tokenizer> {
    let model = file.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        bail!("tokenizer.ggml.model: {model:?} is not supported; expected \"gpt2\" (byte-level BPE)");
    }
    // What splits a text before the merges; llama.cpp's names.
    let byte_level = || PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
    let splits: PreTokenizerWrapper = match file.text("tokenizer.ggml.pre").unwrap_or("gpt-2") {
        "gpt-2" | "default" => byte_level(),
        "smollm" => Sequence::new(vec![Digits::new(true).into(), byte_level()]).into(),
        other => bail!("tokenizer.ggml.pre: {other:?} is not supported; expected gpt-2 or smollm"),
    };

    let tokens = strings(file, "tokenizer.ggml.tokens")?;
    let merges = strings(file, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            let (left, right) = merge
                .split_once(' ')
                .with_context(|| format!("tokenizer.ggml.merges: {merge:?} is not a pair"))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<Result<Vec<_>>>()?;
    let vocabulary: Vocab = tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), id)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .build()
        .map_err(|error| anyhow!("tokenizer.ggml.merges: {error}"))?;

    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(splits));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    if file.value("tokenizer.ggml.token_type").is_some() {
        let types = file.list("tokenizer.ggml.token_type")?;
        let special = tokens
            .iter()
            .zip(types)
            .filter(|(_, kind)| matches!(kind, Value::I32(CONTROL)))
            .map(|(token, _)| AddedToken::from(token.clone(), true));
        tokenizer.add_special_tokens(special).map_err(|error| anyhow!("special tokens: {error}"))?;
    }
    Ok(tokenizer)
}

fn strings(file: &GgufFile, key: &str) -> Result<Vec<String>> {
    file.list(key)?
        .iter()
        .map(|value| match value {
            Value::String(text) => Ok(text.clone()),
            _ => bail!("{key}: not a list of strings"),
        })
        .collect()
}
