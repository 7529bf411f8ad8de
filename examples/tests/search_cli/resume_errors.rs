//! `--resume` refuses what it can't go on with, and leaves the checkpoint as it was.

use std::fs;
use std::sync::LazyLock;

use super::command::{Finished, Flags, data};

fn flags() -> Flags {
    Flags::quick().with("--length", "300")
}

static FINISHED: LazyLock<Finished> = LazyLock::new(|| flags().finish());

/// Resumes from a checkpoint with these contents, which is to be refused and to stay. Gives the error without the path
/// that it begins with.
fn refused(flags: &Flags, contents: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.json");
    fs::write(&path, contents).unwrap();
    let error = flags.clone().switch("--resume").run_in(dir.path()).error();
    assert_eq!(fs::read_to_string(&path).unwrap(), contents, "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{error}");
    let prefix = format!("{}: ", path.display());
    error.strip_prefix(&prefix).unwrap_or_else(|| panic!("no path: {error}")).to_owned()
}

/// Refused for these flags.
fn refused_with(flags: &Flags) -> String {
    refused(flags, &FINISHED.files["checkpoint.json"])
}

/// Refused after this change of the checkpoint.
fn refused_where(from: &str, to: &str) -> String {
    let checkpoint = &FINISHED.files["checkpoint.json"];
    assert!(checkpoint.contains(from), "{from}: {checkpoint}");
    refused(&flags(), &checkpoint.replacen(from, to, 1))
}

#[test]
fn a_finished_search_only_measures_the_table_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("checkpoint.json"), &FINISHED.files["checkpoint.json"]).unwrap();
    let run = flags().switch("--resume").finish_in(dir.path());
    assert_eq!(run.results(), FINISHED.results());
    assert_eq!(run.checkpoint(), FINISHED.checkpoint());
    assert!(!run.stderr.contains(" evaluations, best "), "{}", run.stderr);
    assert!(run.stdout.starts_with("Perplexity on moby-dick-eval.txt"), "{}", run.stdout);
    assert!(run.stdout.contains("LongRoPE\n"), "{}", run.stdout);
}

#[test]
fn the_table_may_be_measured_on_other_windows() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("checkpoint.json"), &FINISHED.files["checkpoint.json"]).unwrap();
    let run = flags().switch("--resume").with("--eval-windows", "2").finish_in(dir.path());
    assert_eq!(run.files["history.csv"], FINISHED.files["history.csv"]);
    assert_ne!(run.files["perplexity.csv"], FINISHED.files["perplexity.csv"]);
}

#[test]
fn other_settings_are_named() {
    let expected = |found: &str, wanted: &str| {
        format!(
            "settings.{found} is not valid; expected {wanted}, with which the checkpoint is to be resumed"
        )
    };
    let other = |name: &str, value: &str| refused_with(&flags().with(name, value));
    assert_eq!(other("--seed", "7"), expected("seed: 0", "7"));
    assert_eq!(other("--evaluations", "15"), expected("evaluations: 14", "15"));
    assert_eq!(other("--surrogate", "10"), expected("surrogate: none", "10"));
    assert_eq!(other("--restarts", "5"), expected("restarts: none", "5"));
    let attention = other("--attention-factor", "fixed");
    assert!(attention.starts_with("settings.attention_factor: 1.0"), "{attention}");
    assert!(attention.contains(" is not valid; expected none, with which"), "{attention}");
    let paper = Flags::paper().with("--length", "300");
    assert_eq!(refused_with(&paper), expected("optimiser: cma-es", "evolution"));
    let drop = other("--early-drop", "0.5");
    assert!(
        drop.starts_with("made with --early-drop 0.02, which is not --early-drop 0.5; run with the same,"),
        "{drop}"
    );
    let screen = other("--screen", "64");
    assert!(screen.contains(" 0.02, which is not --early-drop 0.02 --screen 64;"), "{screen}");

    let finished = paper.clone().finish();
    let other = |name: &str, value: &str| {
        refused(&paper.clone().with(name, value), &finished.files["checkpoint.json"])
    };
    assert_eq!(other("--population", "8"), expected("population: 6", "8"));
    assert_eq!(other("--iterations", "3"), expected("iterations: 2", "3"));
    assert_eq!(other("--offspring", "3"), expected("mutations: 2", "3"));
    assert_eq!(other("--optimiser", "released"), expected("operators: paper", "released"));
    let first_tokens = refused_with(&flags().switch("--first-tokens"));
    assert!(
        first_tokens.starts_with("settings.first_tokens: [0] is not valid; expected [0, 1, "),
        "{first_tokens}"
    );
}

#[test]
fn another_model_text_length_or_number_of_windows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(data("models/tiny").join(file), dir.path().join(file)).unwrap();
    }
    let config = fs::read_to_string(data("models/tiny/config.json")).unwrap();
    fs::write(dir.path().join("config.json"), config.replace("10000.0", "20000.0")).unwrap();

    for other in [
        flags().with("--length", "301"),
        flags().with("--windows", "2"),
        flags().with("--text", data("texts/state-of-the-union-eval.txt")),
        flags().with("--model", dir.path()),
    ] {
        let error = refused_with(&other);
        let expected = "made with another model, text, length, number of windows or --dtype; run with the same ones, or ";
        assert_eq!(error, format!("{expected}without --resume to start anew"));
    }
}

#[test]
fn a_missing_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = flags().switch("--resume").run_in(dir.path()).error();
    let path = dir.path().join("checkpoint.json");
    assert!(error.starts_with(&format!("{}: can't be read: ", path.display())), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_corrupt_checkpoint_is_named() {
    let whole = &FINISHED.files["checkpoint.json"];
    for text in ["", "{}", "not JSON", &whole[..whole.len() / 2], &whole[..whole.len() - 1]] {
        let error = refused(&flags(), text);
        assert!(error.starts_with("not a valid checkpoint: "), "{error}");
    }
    let version = refused_where("\"version\":2", "\"version\":1");
    assert!(version.starts_with("not a valid checkpoint: ") && version.contains("version 2"), "{version}");
    let field = refused_where("\"seeds\"", "\"waiting\"");
    assert!(field.starts_with("not a valid checkpoint: ") && field.contains("waiting"), "{field}");
}

#[test]
fn a_checkpoint_that_no_search_writes_is_named_with_the_entry() {
    let iteration = refused_where("\"iteration\":0", "\"iteration\":7");
    assert!(iteration.starts_with("history[0].iteration: 7 is not valid"), "{iteration}");
    let costs = refused_where("\"costs\":[{", "\"costs\":[{\"windows\":1,\"first_loss\":1,\"seconds\":1},{");
    assert!(costs.starts_with("costs: 15 entries are not valid; expected 14"), "{costs}");
    // Position interpolation is the first seed: its factors are the quotient of the lengths.
    let checkpoint = &FINISHED.files["checkpoint.json"];
    let spoilt_after = |field: &str| {
        let (before, after) = checkpoint.split_at(checkpoint.find(field).unwrap());
        refused(&flags(), &format!("{before}{}", after.replacen("1.171875", "1e9", 1)))
    };
    assert!(spoilt_after("\"seeds\"").starts_with("seeds[0]"), "{}", spoilt_after("\"seeds\""));
    let error = spoilt_after("\"history\"");
    assert!(error.starts_with("history[0].candidate: another candidate is not valid"), "{error}");
}
