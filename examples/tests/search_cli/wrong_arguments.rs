//! Arguments that are not valid: one line says which and why, before anything is written.

use std::fs;
use std::path::PathBuf;

use super::command::{Flags, data};

/// What the program says of a flag with this value.
fn refused(name: &str, value: &str) -> String {
    Flags::quick().with(name, value).refused()
}

/// A file with these contents in a directory that lives as long as the first of the pair.
fn file(name: &str, contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, contents).unwrap();
    (dir, path)
}

#[test]
fn a_length_not_above_the_context_is_refused() {
    for length in ["0", "1", "255", "256"] {
        let expected = "is not valid; expected more than the model's own context (256)";
        assert_eq!(refused("--length", length), format!("--length: {length} {expected}"));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_length_beyond_memory_is_refused_with_both_sizes() {
    for length in ["1000000000000", "18446744073709551615"] {
        let error = refused("--length", length);
        assert!(error.starts_with(&format!("a window of {length} tokens needs about ")), "{error}");
        assert!(error.contains(" MiB are available; use a shorter --length"), "{error}");
    }
}

#[test]
fn a_length_beyond_the_text_is_refused_with_both_lengths() {
    let (_dir, path) = file("short.txt", "sixteen letters.".repeat(20).as_bytes());
    let run = |flags: Flags| flags.with("--length", "300").refused();
    let both = run(Flags::quick().with("--text", &path));
    let expected = "160 tokens are too few for a window of 300; use a longer text or a shorter --length";
    assert_eq!(both, format!("the second half of {}: {expected}", path.display()));

    let long = data("texts/moby-dick-eval.txt");
    let (_dir, shorter) = file("shorter.txt", b"a few words");
    let expected = "11 tokens are too few for a window of 300; use a longer text or a shorter --length";
    for (text, eval_text) in [(&long, &shorter), (&shorter, &long)] {
        let error = run(Flags::quick().with("--text", text).with("--eval-text", eval_text));
        assert_eq!(error, format!("shorter.txt: {expected}"));
    }
    let (_dir, empty) = file("empty.txt", b"");
    let error = run(Flags::quick().with("--text", &empty));
    assert!(error.contains("empty.txt: 0 tokens are too few"), "{error}");
}

#[test]
fn counts_out_of_range_are_refused() {
    for (flags, name, least) in [
        (Flags::quick(), "--windows", 1),
        (Flags::quick(), "--last", 1),
        (Flags::quick(), "--evaluations", 1),
        (Flags::quick(), "--restarts", 1),
        (Flags::paper(), "--population", 3),
        (Flags::paper(), "--offspring", 1),
    ] {
        for value in [0, least - 1, 4097] {
            let expected = format!("{name}: {value} is not valid; expected {least} to 4096");
            assert_eq!(flags.clone().with(name, value.to_string()).refused(), expected);
        }
    }
    for samples in ["0", "1", "101"] {
        let expected = format!("--surrogate: {samples} is not valid; expected 2 to 100");
        assert_eq!(refused("--surrogate", samples), expected);
    }
    let error = Flags::paper().with("--iterations", "18446744073709551615").refused();
    assert!(error.contains("--iterations") && error.contains("at most 1000000 evaluations"), "{error}");
}

#[test]
fn flags_of_another_optimiser_are_refused() {
    let paper = "expected --optimiser paper or released";
    for name in ["--population", "--iterations", "--offspring"] {
        assert_eq!(refused(name, "8"), format!("{name}: not valid with --optimiser cma-es; {paper}"));
    }
    let cma_es = "not valid with --optimiser paper; expected --optimiser cma-es";
    assert_eq!(
        Flags::paper().with("--factors", "fixed").switch("--first-tokens").refused(),
        format!("--factors fixed: {cma_es}")
    );
    for name in ["--surrogate", "--restarts"] {
        assert_eq!(Flags::paper().with(name, "8").refused(), format!("{name}: {cma_es}"));
    }
    let error = Flags::paper().with("--attention-factor", "searched").refused();
    assert_eq!(error, format!("--attention-factor searched: {cma_es}"));
    let error = Flags::paper().with("--optimiser", "released").switch("--first-tokens").refused();
    assert!(error.starts_with("--first-tokens: not valid with --optimiser released;"), "{error}");
    let error = Flags::paper().with("--optimiser", "released").with("--monotone", "off").refused();
    assert!(error.starts_with("--monotone off: not valid with --optimiser released;"), "{error}");
}

#[test]
fn flags_without_an_effect_are_refused() {
    let fixed = Flags::short().with("--factors", "fixed").switch("--first-tokens");
    for name in ["--evaluations", "--surrogate", "--restarts"] {
        assert_eq!(
            fixed.clone().with(name, "14").refused(),
            format!("{name}: not valid with --factors fixed; expected --factors searched")
        );
    }
    let passkey = || Flags::quick().with("--objective", "passkey");
    let expected = "not valid with --objective passkey; expected --objective perplexity";
    assert_eq!(passkey().with("--last", "64").refused(), format!("--last: {expected}"));
    assert_eq!(passkey().with("--early-drop", "0.1").refused(), format!("--early-drop: {expected}"));
    assert_eq!(passkey().with("--screen", "64").refused(), format!("--screen: {expected}"));
    let off = Flags::quick().with("--screen", "64").with("--early-drop", "off").refused();
    assert_eq!(off, "--screen: not valid with --early-drop off; expected --early-drop a number");
    for screen in ["1", "512"] {
        let expected = format!("--screen: {screen} is not valid; expected 2 to 511, less than the length");
        assert_eq!(Flags::quick().with("--screen", screen).refused(), expected);
    }
    assert!(
        passkey()
            .with("--length", "257")
            .refused()
            .starts_with("a passkey prompt of 257 tokens is too short")
    );
    for ratio in ["0.9", "1001"] {
        assert!(refused("--maximum-ratio", ratio).ends_with("is not valid; expected 1 to 1000"));
    }
}

#[test]
fn a_history_to_compare_with_that_is_none_is_named() {
    let missing = data("texts/no-such-file.csv");
    let error = Flags::quick().with("--compare", &missing).refused();
    assert!(error.contains("no-such-file.csv: can't be read"), "{error}");
    let (_dir, path) = file("history.csv", b"evaluation,best\n1,5\n");
    let error = Flags::quick().with("--compare", format!("x={}", path.display())).refused();
    assert!(error.ends_with("no column \"model_tokens\"; expected a history.csv of this release"), "{error}");
}

#[test]
fn a_missing_model_or_text_is_named() {
    let missing = data("texts/no-such-file.txt");
    for name in ["--model", "--text"] {
        let error = Flags::quick().with(name, &missing).refused();
        assert!(error.starts_with(&format!("{}: ", missing.display())), "{error}");
        assert!(error.to_lowercase().contains("no such file"), "{error}");
    }
    let flags = Flags::quick().with("--text", data("texts/moby-dick-eval.txt"));
    let error = flags.with("--eval-text", &missing).refused();
    assert!(error.starts_with(&format!("{}: can't be read: ", missing.display())), "{error}");
}

#[test]
fn a_text_that_is_none_is_named() {
    let (dir, path) = file("binary.txt", &[0xff; 4096]);
    let error = Flags::quick().with("--text", &path).refused();
    assert!(error.starts_with(&format!("{}: not UTF-8 text: ", path.display())), "{error}");
    let error = Flags::quick().with("--text", dir.path()).refused();
    assert!(error.starts_with(&format!("{}: can't be read: ", dir.path().display())), "{error}");
}

#[test]
fn flags_that_can_not_be_parsed_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, named) in [
        (Flags::quick().with("--seed", "one"), "--seed"),
        (Flags::quick().with("--windows", "-1"), "-1"),
        (Flags::quick().with("--length", "2k"), "--length"),
        (Flags::quick().with("--early-drop", "101"), "--early-drop"),
        (Flags::quick().with("--early-drop", "never"), "expected off, or a number of nats"),
        (Flags::quick().with("--optimiser", "annealing"), "cma-es, paper, released"),
        (Flags::quick().switch("--no-such-flag"), "--no-such-flag"),
        (Flags::quick().with("--eval-text", data("texts/moby-dick-eval.txt")), "--text"),
    ] {
        let output = flags.run_in(&dir.path().join("output"));
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        let first = output.stderr.lines().next().unwrap();
        assert!(first.starts_with("error: ") && output.stderr.contains(named), "{}", output.stderr);
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    }
    assert!(!dir.path().join("output").exists());
}
