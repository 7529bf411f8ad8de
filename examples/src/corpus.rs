//! The texts of `data/manifest.json` by role, and windows over several of them that share no token.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::files;
use crate::model::{Origin, TrainedOn};

/// The part of the manifest that concerns texts.
#[derive(Deserialize)]
struct Manifest {
    texts: Vec<Entry>,
    #[serde(default)]
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    /// A file of the model, from the folder that holds `data/`.
    path: PathBuf,
    /// Names of texts; absent where nobody said.
    trained_on: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    role: String,
    /// From the folder that holds `data/`.
    path: PathBuf,
    committed: bool,
}

/// A text that a program is to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Its name in the manifest.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The texts of `manifest` with the names that a flag gives, which a model may be measured on: those whose role is eval, and those
/// of role train that neither the model nor its adapter was trained on, as the manifest's entry of this very model and the
/// adapter's folder say (the role is that of the bundled model). Without names, those of role eval that are committed.
///
/// # Errors
/// A name that the manifest does not have, a text that may not be measured on, or one that was not fetched.
pub fn eval_texts(manifest: &Path, (flag, names): (&str, &[String]), origin: &Origin) -> Result<Vec<Text>> {
    let json = files::read_text(manifest)?;
    let listed: Manifest = serde_json::from_str(&json)
        .with_context(|| format!("{}: not a valid manifest of texts", manifest.display()))?;
    let root = manifest.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let text = |entry: &Entry| Text { name: entry.name.clone(), path: root.join(&entry.path) };
    let by_adapter = match &origin.adapter {
        Some(dir) => TrainedOn::of(dir)?.map(|trained_on| trained_on.texts),
        None => Some(Vec::new()),
    };
    if names.is_empty() {
        let committed = listed.texts.iter().filter(|entry| entry.role == "eval" && entry.committed);
        return Ok(committed.map(text).collect());
    }
    names
        .iter()
        .map(|name| {
            let Some(entry) = listed.texts.iter().find(|entry| entry.name == *name) else {
                let known: Vec<&str> = listed.texts.iter().map(|entry| entry.name.as_str()).collect();
                bail!("{flag}: {name} is not valid; expected a text of {}: {known:?}", manifest.display());
            };
            let unseen = || {
                let same = |path: &Path| {
                    path.canonicalize()
                        .ok()
                        .filter(|path| origin.model.canonicalize().ok().as_ref() == Some(path))
                };
                let own = listed.models.iter().find(|own| same(&root.join(&own.path)).is_some());
                let trained_on = own.and_then(|own| own.trained_on.as_ref());
                let not_in = |texts: &Vec<String>| !texts.contains(&entry.name);
                entry.role == "train"
                    && trained_on.is_some_and(not_in)
                    && by_adapter.as_ref().is_some_and(not_in)
            };
            ensure!(
                entry.role == "eval" || unseen(),
                "{flag}: {name} is not valid; expected a text whose role is eval, and its role is {}",
                entry.role
            );
            let text = text(entry);
            ensure!(text.path.exists(), "{}: not there; scripts/fetch-texts makes it", text.path.display());
            Ok(text)
        })
        .collect()
}

/// The texts of `manifest` with these names that may be trained on, whose role is train or search, or files of these paths (by the
/// manifest's name, if it is one of its). Without names, those of these roles that are committed.
///
/// # Errors
/// What is neither a name of the manifest nor a file, a text whose role is another, or one that was not fetched.
pub fn train_texts(manifest: &Path, names: &[String]) -> Result<Vec<Text>> {
    let json = files::read_text(manifest)?;
    let listed: Manifest = serde_json::from_str(&json)
        .with_context(|| format!("{}: not a valid manifest of texts", manifest.display()))?;
    let root = manifest.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let text = |entry: &Entry| Text { name: entry.name.clone(), path: root.join(&entry.path) };
    let allowed = |entry: &Entry| matches!(entry.role.as_str(), "train" | "search");
    if names.is_empty() {
        return Ok(listed.texts.iter().filter(|entry| allowed(entry) && entry.committed).map(text).collect());
    }
    names
        .iter()
        .map(|name| match listed.texts.iter().find(|entry| entry.name == *name) {
            Some(entry) => {
                ensure!(
                    allowed(entry),
                    "--text: {name} is not valid; expected a text whose role is train or search, and its role is {}",
                    entry.role
                );
                let text = text(entry);
                ensure!(text.path.exists(), "{}: not there; scripts/fetch-texts makes it", text.path.display());
                Ok(text)
            }
            None => {
                let path = PathBuf::from(name);
                ensure!(
                    path.is_file(),
                    "--text: {name} is not valid; expected a file, or a text of {}",
                    manifest.display()
                );
                // Whatever its name: what is measured on is not trained on.
                let same = |entry: &&Entry| {
                    let listed = root.join(&entry.path).canonicalize().ok();
                    listed.is_some() && listed == path.canonicalize().ok()
                };
                if let Some(entry) = listed.texts.iter().find(same) {
                    ensure!(
                        allowed(entry),
                        "--text: {name} is not valid; expected a text whose role is train or search, and the role of {} is {}",
                        entry.name,
                        entry.role
                    );
                    return Ok(Text { name: entry.name.clone(), path });
                }
                Ok(Text { name: name.clone(), path })
            }
        })
        .collect()
}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'a> {
    /// Which text.
    pub text: &'a str,
    /// Its first token's place in the text.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [u32],
}

/// The texts one after the other as one, for windows longer than each.
pub fn joined(texts: Vec<(String, Vec<u32>)>) -> (String, Vec<u32>) {
    let (names, tokens): (Vec<String>, Vec<Vec<u32>>) = texts.into_iter().unzip();
    (names.join(" + "), tokens.concat())
}

/// `count` windows of `length` tokens, none of which shares a token with another. They are fixed by the lengths alone: as
/// many as fit are laid evenly over each text, and the ones taken are spread evenly over all.
///
/// # Errors
/// The texts are too short for so many.
pub fn windows<'a>(texts: &'a [(String, Vec<u32>)], length: usize, count: usize) -> Result<Vec<Window<'a>>> {
    let step = |tokens: usize| match tokens / length {
        0 | 1 => (0, tokens / length),
        fit => ((tokens - length) / (fit - 1), fit),
    };
    let advice = "do not fit the texts without overlap";
    spread(texts, length, count, step, advice)
}

/// `count` of the places that a window of `length` tokens takes as it slides over each text, `stride` tokens at a time; the ones
/// taken are spread evenly over all.
///
/// # Errors
/// The texts are too short for so many.
pub fn sliding_windows<'a>(
    texts: &'a [(String, Vec<u32>)],
    length: usize,
    stride: usize,
    count: usize,
) -> Result<Vec<Window<'a>>> {
    let stride = stride.max(1);
    let step = |tokens: usize| (stride, tokens.checked_sub(length).map_or(0, |left| left / stride + 1));
    spread(texts, length, count, step, &format!("do not fit the texts at steps of {stride}"))
}

/// `count` windows spread evenly over all places; `step` gives from the tokens of a text how far its places are apart, and how many
/// there are.
fn spread<'a>(
    texts: &'a [(String, Vec<u32>)],
    length: usize,
    count: usize,
    step: impl Fn(usize) -> (usize, usize),
    advice: &str,
) -> Result<Vec<Window<'a>>> {
    ensure!(length >= 2, "a window of {length} tokens is too short; expected at least 2");
    let mut places = Vec::new();
    for (text, tokens) in texts {
        let (step, fit) = step(tokens.len());
        places.extend((0..fit).map(|i| Window {
            text,
            start: i * step,
            tokens: &tokens[i * step..i * step + length],
        }));
    }
    ensure!(
        places.len() >= count,
        "{count} windows of {length} tokens {advice}, only {} do; use longer texts or more of them, fewer --windows or shorter \
         --lengths",
        places.len()
    );
    Ok((0..count).map(|i| places[i * places.len() / count]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(dir: &Path) -> PathBuf {
        let json = serde_json::json!({ "texts": [
            { "name": "a", "role": "eval", "path": "data/a.txt", "committed": true },
            { "name": "b", "role": "search", "path": "data/b.txt", "committed": true },
            { "name": "c", "role": "eval", "path": "data/cache/c.txt", "committed": false },
            { "name": "t", "role": "train", "path": "data/a.txt", "committed": true },
        ], "models": [
            { "name": "m", "path": "data/m.gguf", "trained_on": [] },
            { "name": "n", "path": "data/n.gguf", "trained_on": ["t"] },
            { "name": "o", "path": "data/o.gguf" },
        ]});
        std::fs::create_dir(dir.join("data")).unwrap();
        for file in ["a.txt", "m.gguf", "n.gguf", "o.gguf"] {
            std::fs::write(dir.join("data").join(file), "a").unwrap();
        }
        let path = dir.join("data/manifest.json");
        std::fs::write(&path, json.to_string()).unwrap();
        path
    }

    #[test]
    fn only_texts_whose_role_is_eval_are_measured_on() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(dir.path());
        let a = Text { name: "a".into(), path: dir.path().join("data/a.txt") };
        for names in [vec![], vec!["a".into()]] {
            assert_eq!(
                eval_texts(&manifest, ("--text", &names), &Path::new("m").into()).unwrap(),
                std::slice::from_ref(&a)
            );
        }
        let message = |name: &str| {
            eval_texts(&manifest, ("--text", &[name.into()]), &Path::new("m").into()).unwrap_err().to_string()
        };
        assert!(message("b").ends_with("its role is search"), "{}", message("b"));
        assert!(message("c").ends_with("scripts/fetch-texts makes it"), "{}", message("c"));
        assert!(message("d").starts_with("--text: d is not valid"), "{}", message("d"));
    }

    #[test]
    fn a_text_to_train_on_is_one_for_a_model_that_never_saw_it() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(dir.path());
        let texts = |model: &str| {
            let origin = Origin::from(&*dir.path().join("data").join(model));
            eval_texts(&manifest, ("--text", &["t".into()]), &origin)
        };
        assert_eq!(texts("m.gguf").unwrap()[0].name, "t");
        // Trained on it, nobody knows, and not in the manifest.
        for model in ["n.gguf", "o.gguf", "p.gguf"] {
            let message = texts(model).unwrap_err().to_string();
            assert!(message.ends_with("its role is train"), "{message}");
        }
        // What was searched on is for no model.
        let mut origin = Origin::from(&*dir.path().join("data/m.gguf"));
        let search = eval_texts(&manifest, ("--text", &["b".into()]), &origin);
        assert!(search.unwrap_err().to_string().ends_with("its role is search"));
        // With an adapter, it must not have seen it either.
        let adapter = dir.path().join("adapter");
        std::fs::create_dir(&adapter).unwrap();
        origin.adapter = Some(adapter.clone());
        let texts = || eval_texts(&manifest, ("--text", &["t".into()]), &origin);
        assert!(texts().unwrap_err().to_string().ends_with("its role is train"));
        let record = adapter.join("trained_on.json");
        std::fs::write(&record, r#"{ "texts": ["b"] }"#).unwrap();
        assert_eq!(texts().unwrap()[0].name, "t");
        std::fs::write(&record, r#"{ "texts": ["b", "t"] }"#).unwrap();
        assert!(texts().unwrap_err().to_string().ends_with("its role is train"));
        std::fs::write(&record, "[]").unwrap();
        assert!(texts().unwrap_err().to_string().ends_with("trained_on.json: not valid"));
    }

    #[test]
    fn what_is_measured_on_is_not_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(dir.path());
        std::fs::write(dir.path().join("data/b.txt"), "b").unwrap();
        let names = |names: &[&str]| -> Result<Vec<String>> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Ok(train_texts(&manifest, &names)?.into_iter().map(|text| text.name).collect())
        };
        assert_eq!(names(&[]).unwrap(), ["b", "t"]);
        assert_eq!(names(&["t", "b"]).unwrap(), ["t", "b"]);
        let file = dir.path().join("own.txt");
        std::fs::write(&file, "own").unwrap();
        assert_eq!(names(&[file.to_str().unwrap()]).unwrap(), [file.to_str().unwrap()]);
        let message = |name: &str| names(&[name]).unwrap_err().to_string();
        assert!(message("a").ends_with("its role is eval"), "{}", message("a"));
        assert!(message("x").starts_with("--text: x is not valid; expected a file, or a text of"));
        // By its path it is the same text.
        let path = dir.path().join("data/b.txt");
        assert_eq!(names(&[path.to_str().unwrap()]).unwrap(), ["b"]);
        let path = dir.path().join("data/a.txt");
        assert!(message(path.to_str().unwrap()).ends_with("the role of a is eval"));
    }

    #[test]
    fn windows_share_no_token_and_cover_every_text() {
        let text = |n: u32, first| (format!("{n}"), (first..first + n).collect::<Vec<u32>>());
        let texts = [text(105, 0), text(7, 1000), text(40, 2000)];
        for (length, count) in [(10, 14), (10, 5), (2, 30), (40, 3)] {
            let windows = windows(&texts, length, count).unwrap();
            let mut tokens: Vec<u32> = windows.iter().flat_map(|window| window.tokens).copied().collect();
            assert_eq!(tokens.len(), length * count);
            tokens.sort_unstable();
            tokens.dedup();
            assert_eq!(tokens.len(), length * count, "{length} {count}");
            assert!(windows.iter().any(|window| window.text == "105"));
            assert!(windows.iter().any(|window| window.text == "40"));
        }
        let message = windows(&texts, 10, 15).unwrap_err().to_string();
        assert!(
            message.starts_with("15 windows of 10 tokens") && message.contains("only 14 do"),
            "{message}"
        );
    }

    #[test]
    fn a_window_of_joined_texts_goes_from_one_into_the_next() {
        let texts = vec![("a".to_owned(), vec![1, 2, 3]), ("b".to_owned(), vec![4, 5])];
        assert!(windows(&texts, 5, 1).is_err());
        let joined = [joined(texts)];
        let window = windows(&joined, 5, 1).unwrap()[0];
        assert_eq!((window.text, window.start, window.tokens), ("a + b", 0, &[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn sliding_windows_stand_at_multiples_of_the_stride() {
        let text = |n: u32, first| (format!("{n}"), (first..first + n).collect::<Vec<u32>>());
        let texts = [text(21, 0), text(9, 1000), text(10, 2000)];
        let starts = |count| -> Vec<(String, usize)> {
            let windows = sliding_windows(&texts, 10, 4, count).unwrap();
            assert!(windows.iter().all(|window| window.tokens.len() == 10));
            windows.iter().map(|window| (window.text.to_owned(), window.start)).collect()
        };
        let place = |text: &str, start| (text.to_owned(), start);
        assert_eq!(starts(4), [place("21", 0), place("21", 4), place("21", 8), place("10", 0)]);
        assert_eq!(starts(2), [place("21", 0), place("21", 8)]);
        let message = sliding_windows(&texts, 10, 4, 5).unwrap_err().to_string();
        assert!(
            message.starts_with("5 windows of 10 tokens do not fit the texts at steps of 4, only 4 do"),
            "{message}"
        );
    }

    #[test]
    fn a_window_starts_where_it_says() {
        let texts = [("t".to_owned(), (0..100).collect::<Vec<u32>>())];
        for window in windows(&texts, 7, 9).unwrap() {
            assert_eq!(window.tokens[0] as usize, window.start);
        }
    }
}
