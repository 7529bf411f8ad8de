//! The run without any flag but where: it takes a minute, so all tests look at one.

use std::fs;
use std::sync::LazyLock;
use std::time::Instant;

use longrope::scaling::{Scaling, SetChoice};
use longrope_drivers::{corpus, model, text};
use serde_json::Value;
use tempfile::TempDir;

use super::command::{Flags, losses, names};
use super::paths::repository;

struct Run {
    dir: TempDir,
    stdout: String,
    stderr: String,
    seconds: f64,
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let output = Flags::default().run_in(dir.path());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let seconds = started.elapsed().as_secs_f64();
    Run { dir, stdout: output.stdout, stderr: output.stderr, seconds }
});

#[test]
fn twenty_steps_lower_the_loss_within_two_minutes() {
    let (before, after) = losses(&RUN.stdout);
    assert!(after < before - 0.05, "{before} before, {after} after");
    assert!(RUN.seconds < 120.0, "{} s", RUN.seconds);
    assert!(RUN.stdout.starts_with("20 steps of 2048 tokens at a length of 1024, with the factors of YaRN"));
}

#[test]
fn every_result_is_written_and_named() {
    let expected = ["checkpoint-20", "loss.csv", "loss.svg", "model", "report.json", "report.txt"];
    assert_eq!(names(RUN.dir.path()), expected);
    for name in &expected[1..] {
        let named = RUN.stdout.lines().any(|line| line.starts_with("wrote ") && line.ends_with(name));
        assert!(named, "{name}: {}", RUN.stdout);
    }
    let report = fs::read_to_string(RUN.dir.path().join("report.txt")).unwrap();
    assert!(RUN.stdout.starts_with(&report), "{}", RUN.stdout);
    let json: Value = serde_json::from_slice(&fs::read(RUN.dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!((&json["steps"], &json["length"], &json["tokens"]), (&20.into(), &1024.into(), &40960.into()));
    assert_eq!(format!("{:.4}", json["loss_after"].as_f64().unwrap()), format!("{:.4}", losses(&report).1));
    assert_eq!(json["held_out"].as_array().unwrap().len(), 4);
    // Nobody knows the peak of a CPU.
    assert!(json["operations"].as_f64().unwrap() > 1e9 && json["utilisation"].is_null(), "{json}");
    let curve = fs::read_to_string(RUN.dir.path().join("loss.csv")).unwrap();
    assert_eq!(curve.lines().count(), 21);
    let svg = fs::read_to_string(RUN.dir.path().join("loss.svg")).unwrap();
    assert!(svg.contains("held-out windows") && svg.ends_with("</svg>\n") || svg.ends_with("</svg>"));
}

#[test]
fn progress_tells_loss_speed_and_the_time_left() {
    let line = RUN.stderr.lines().find(|line| line.starts_with("1/20 steps, loss ")).unwrap();
    assert!(line.contains(" tokens/s, about ") && line.ends_with(" left"), "{line}");
}

#[test]
fn the_model_is_loaded_with_its_factors_and_has_the_loss_of_the_report() {
    let (exported, tokenizer) = model::load(&RUN.dir.path().join("model")).unwrap();
    let rope = &exported.config().rope;
    assert!(matches!(rope.scaling(), Scaling::Yarn(yarn) if yarn.factor == 4.0), "{rope:?}");
    assert_eq!((rope.max_length(), rope.geometry().original_length()), (1024, 256));
    let manifest = repository("data/manifest.json");
    let texts: Vec<(String, Vec<u32>)> =
        corpus::eval_texts(&manifest, ("--text", &[]), &(*repository("data/models/tiny")).into())
            .unwrap()
            .into_iter()
            .map(|eval| (eval.name, text::read_tokens(&eval.path, &tokenizer).unwrap()))
            .collect();
    let sets = rope.factor_sets(1024).unwrap();
    let mut all = Vec::new();
    for window in corpus::windows(&texts, 1024, 4).unwrap() {
        all.extend(exported.losses(window.tokens, &sets, SetChoice::ByLength(1024)).unwrap());
    }
    let found = all.iter().sum::<f64>() / all.len() as f64;
    // The report has four digits.
    assert!((found - losses(&RUN.stdout).1).abs() < 1e-4, "{found}: {}", RUN.stdout);
}

#[test]
fn a_run_that_ended_is_not_begun_anew_in_its_place() {
    let path = RUN.dir.path().join("checkpoint-20");
    let error = Flags::default().run_in(RUN.dir.path()).error();
    let expected = format!("--output: {} is of an earlier run; expected --resume", path.display());
    assert!(error.starts_with(&expected), "{error}");
}
