//! `data/manifest.json` is true of the repository's data: hashes, sizes, roles, licences, and nothing left out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    texts: Vec<Entry>,
    models: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    kind: String,
    role: Option<String>,
    path: String,
    committed: bool,
    source: BTreeMap<String, String>,
    licence: String,
    trained_on: Option<Vec<String>>,
    note: Option<String>,
    sha256: String,
    bytes: u64,
}

impl Manifest {
    fn read() -> Self {
        serde_json::from_slice(&fs::read(repository("data/manifest.json")).unwrap()).unwrap()
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.texts.iter().chain(&self.models)
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Every file below a folder, as a path of the repository.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(repository(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

#[test]
fn every_file_has_the_stated_size_and_hash() {
    let manifest = Manifest::read();
    for entry in manifest.all() {
        let path = repository(&entry.path);
        // What is fetched may be absent; where it is there, it is the right one.
        if !entry.committed && !path.exists() {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        assert_eq!(bytes.len() as u64, entry.bytes, "{}", entry.path);
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, entry.sha256, "{}", entry.path);
    }
}

#[test]
fn every_committed_text_and_model_file_is_listed() {
    let manifest = Manifest::read();
    let listed: BTreeSet<String> =
        manifest.all().filter(|entry| entry.committed).map(|entry| entry.path.clone()).collect();
    let found: BTreeSet<String> =
        ["data/texts", "data/models"].iter().flat_map(|folder| files_below(folder)).collect();
    assert_eq!(listed, found);
    assert!(found.len() >= 7, "{found:?}");
}

#[test]
fn what_is_not_committed_lies_where_git_ignores_it() {
    let ignored = fs::read_to_string(repository(".gitignore")).unwrap();
    assert!(ignored.lines().any(|line| line == "/data/cache/"), "{ignored}");
    for entry in Manifest::read().all() {
        assert_eq!(entry.path.starts_with("data/cache/"), !entry.committed, "{}", entry.path);
    }
}

#[test]
fn nothing_is_listed_twice() {
    let manifest = Manifest::read();
    let (mut names, mut paths, mut hashes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for entry in manifest.all() {
        assert!(names.insert(&entry.name), "{}", entry.name);
        assert!(paths.insert(&entry.path), "{}", entry.path);
        assert!(hashes.insert(&entry.sha256), "{}", entry.sha256);
    }
}

#[test]
fn every_entry_has_a_source_and_a_licence() {
    for entry in Manifest::read().all() {
        let name = &entry.name;
        assert!(!entry.licence.trim().is_empty(), "{name}");
        assert_eq!(
            entry.source.keys().collect::<Vec<_>>(),
            ["package", "part", "registry", "version"],
            "{name}"
        );
        assert!(entry.source.values().all(|value| !value.trim().is_empty()), "{name}");
        assert!(entry.note.as_ref().is_none_or(|note| !note.trim().is_empty()), "{name}");
    }
}

#[test]
fn every_text_has_one_role_and_each_role_a_text() {
    let manifest = Manifest::read();
    let mut roles = BTreeSet::new();
    for text in &manifest.texts {
        assert_eq!(text.kind, "text", "{}", text.name);
        let role = text.role.as_deref().unwrap_or_else(|| panic!("{}: no role", text.name));
        assert!(["train", "search", "eval"].contains(&role), "{}: {role}", text.name);
        roles.insert(role);
    }
    assert_eq!(roles.len(), 3, "{roles:?}");
    assert!(manifest.models.iter().all(|model| model.kind == "model" && model.role.is_none()));
}

#[test]
fn the_bundled_model_was_trained_on_the_train_texts_alone() {
    let manifest = Manifest::read();
    let names = |texts: &[&Entry]| texts.iter().map(|text| text.name.clone()).collect::<BTreeSet<_>>();
    let train: Vec<&Entry> =
        manifest.texts.iter().filter(|text| text.role.as_deref() == Some("train")).collect();
    for model in manifest.models.iter().filter(|model| model.committed) {
        let trained_on = model.trained_on.as_ref().unwrap_or_else(|| panic!("{}", model.name));
        assert_eq!(trained_on.iter().cloned().collect::<BTreeSet<_>>(), names(&train), "{}", model.name);
    }
    // The log of the training says so too.
    let log = fs::read_to_string(repository("data/models/tiny/train.log")).unwrap();
    let read: Vec<&str> = log.lines().filter(|line| line.trim_start().starts_with("train ")).collect();
    assert_eq!(read.len(), train.len(), "{read:?}");
    for Entry { name, sha256, .. } in train {
        assert!(read.iter().any(|line| line.contains(name) && line.contains(sha256)), "{name}");
    }
}

#[test]
fn no_long_sentence_is_in_two_texts() {
    let manifest = Manifest::read();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    // What is fetched may be absent.
    for text in manifest.texts.iter().filter(|text| text.committed || repository(&text.path).exists()) {
        let contents = fs::read_to_string(repository(&text.path)).unwrap();
        let sentences = contents.split_inclusive(['.', '!', '?', ';', '\n']).map(str::trim);
        let long: BTreeSet<&str> = sentences.filter(|sentence| sentence.len() >= 120).collect();
        assert!(long.len() >= 300, "{}: {} long sentences", text.path, long.len());
        for sentence in long {
            if let Some(other) = seen.insert(sentence.to_owned(), text.path.clone()) {
                panic!("{} and {other}: {sentence}", text.path);
            }
        }
    }
}

#[test]
fn the_bundled_model_is_at_most_8_mb() {
    let sizes = files_below("data/models/tiny").into_iter();
    let total: u64 = sizes.map(|path| fs::metadata(repository(&path)).unwrap().len()).sum();
    assert!((1_000_000..=8_000_000).contains(&total), "{total} bytes");
}
