//! Wrong input: the error names the argument, the value and what would be right, and nothing is written.

use std::fs;

use super::command::Flags;

#[test]
fn values_out_of_range_are_named() {
    for (flag, value, expected) in [
        ("--steps", "0", "expected 1 to 1000000"),
        ("--batch", "0", "expected 1 to 1000000"),
        ("--checkpoint-every", "0", "expected 1 to 1000000"),
        ("--eval-windows", "0", "expected 1 to 1000000"),
        ("--learning-rate", "0", "expected a positive number"),
        ("--learning-rate", "inf", "expected a positive number"),
        ("--clip", "NaN", "expected a positive number"),
        ("--alpha", "0", "expected a positive number"),
        ("--peak", "0", "expected a positive number"),
        ("--weight-decay", "2", "expected 0 to 1"),
        ("--length", "1", "expected at least 2"),
        ("--length", "250000", "expected at most 209352, the tokens of all texts"),
        ("--lora", "0", "expected a rank of 1 to 128, the smallest side of the matrices"),
        ("--lora", "129", "expected a rank of 1 to 128, the smallest side of the matrices"),
        ("--dtype", "f16", "gradients leave its range; expected bf16 or f32"),
        ("--dtype", "bf16", "expected f32"),
    ] {
        let error = Flags::quick().with(flag, value).refused();
        let start = format!("{flag}: {value} is not valid");
        assert!(error.starts_with(&start) && error.ends_with(expected), "{flag} {value}: {error}");
    }
}

#[test]
fn texts_that_are_measured_on_or_missing_are_refused() {
    let refused = |flag: &str, value: &str| Flags::quick().with(flag, value).refused();
    let error = refused("--text", "moby-dick-eval");
    assert!(error.starts_with("--text: moby-dick-eval is not valid") && error.ends_with("its role is eval"));
    let error = refused("--text", "no-such-text");
    assert!(error.starts_with("--text: no-such-text is not valid; expected a file, or a text of"), "{error}");
    let error = refused("--eval-text", "moby-dick-search");
    assert!(
        error.starts_with("--eval-text: moby-dick-search is not valid; expected a text whose role is eval")
    );
    let error = Flags::quick().with("--separator", "").refused();
    assert!(error.starts_with("--separator: an empty text is not valid"), "{error}");
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "neither").unwrap();
    let error = Flags::quick().with("--model", dir.path().join("none")).refused();
    assert!(error.contains("none: no such file or directory; expected a model directory"), "{error}");
    let error = Flags::quick().with("--model", &wrong).refused();
    assert!(error.starts_with(&format!("{}: not a valid GGUF file", wrong.display())), "{error}");
    let error = Flags::quick().with("--rope-scaling", &wrong).refused();
    assert!(error.starts_with(&format!("{}: of no known format", wrong.display())), "{error}");
    let error = Flags::quick().with("--adapter", dir.path()).refused();
    assert!(error.contains("adapter_config.json: can't be read"), "{error}");
}

#[test]
fn a_file_in_the_way_of_the_output_is_named_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results");
    fs::write(&file, "precious").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Flags::quick().run_in(&path).error();
        assert!(error.starts_with(&format!("{}: can't be made: ", path.display())), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_rate_that_breaks_the_model_stops_it_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let error =
        Flags::quick().with("--learning-rate", "1e30").with("--clip", "1e30").run_in(dir.path()).error();
    assert!(error.contains("not finite; expected to be with a lower --learning-rate"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
}
