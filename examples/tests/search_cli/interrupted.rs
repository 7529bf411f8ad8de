//! Ctrl-C, and `--resume` after it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use super::command::{Finished, Flags, Output};

/// A search of 44 evaluations: long enough to be cut short.
fn flags() -> Flags {
    Flags::quick().with("--evaluations", "44")
}

static UNBROKEN: LazyLock<Finished> = LazyLock::new(|| flags().finish());

/// Presses Ctrl-C.
fn press(child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

/// Runs the program in `dir` and presses Ctrl-C after the first line of its standard error that holds `sign`.
fn interrupted_after(flags: &Flags, dir: &Path, sign: &str) -> Output {
    let mut command = flags.command(dir);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut stderr = String::new();
    while !stderr.lines().any(|line| line.contains(sign)) {
        assert_ne!(lines.read_line(&mut stderr).unwrap(), 0, "ended without {sign:?}: {stderr}");
    }
    press(&child);
    lines.read_to_string(&mut stderr).unwrap();
    let output = child.wait_with_output().unwrap();
    Output { code: output.status.code(), stdout: String::from_utf8(output.stdout).unwrap(), stderr }
}

/// The number of evaluations in the checkpoint of `dir`.
fn evaluations(dir: &Path) -> usize {
    let checkpoint = fs::read_to_string(dir.join("checkpoint.json")).unwrap();
    let checkpoint: Value = serde_json::from_str(&checkpoint).unwrap();
    checkpoint["search"]["history"].as_array().unwrap().len()
}

/// The names of the files in `dir`.
fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_search_cut_short_leaves_a_checkpoint_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let output = interrupted_after(&flags(), dir.path(), " evaluations, best ");
    assert_eq!(output.code, Some(130), "{}", output.stderr);
    assert_eq!(names(dir.path()), ["checkpoint.json"]);
    let done = evaluations(dir.path());
    assert!((1..UNBROKEN.history().len()).contains(&done), "{done} evaluations");
    let path = dir.path().join("checkpoint.json");
    let last = format!("stopped after {done} evaluations; --resume continues from {}", path.display());
    assert_eq!(output.stderr.lines().last(), Some(last.as_str()), "{}", output.stderr);
    assert!(output.stdout.is_empty() && !output.stderr.contains("error:"), "{}", output.stderr);
}

#[test]
fn a_search_cut_short_twice_ends_as_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = flags().switch("--resume");
    assert_eq!(interrupted_after(&flags(), dir.path(), " evaluations, best ").code, Some(130));
    let first = evaluations(dir.path());
    assert_eq!(interrupted_after(&resumed, dir.path(), " evaluations, best ").code, Some(130));
    let second = evaluations(dir.path());
    assert!(first < second && second < UNBROKEN.history().len(), "{first}, then {second} evaluations");
    let run = resumed.finish_in(dir.path());
    assert_eq!(run.results(), UNBROKEN.results());
    assert_eq!(run.checkpoint(), UNBROKEN.checkpoint());
    // It went on rather than beginning anew.
    let next = run.stderr.lines().nth(1).unwrap();
    assert!(next.starts_with(&format!("{}/44 evaluations", second + 1)), "{}", run.stderr);
}

/// Presses Ctrl-C so many milliseconds after the first evaluation was reported. Gives whether that came before the end.
fn interrupted_within(flags: &Flags, dir: &Path, milliseconds: u64) -> bool {
    let mut command = flags.command(dir);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut stderr = String::new();
    while !stderr.contains(" evaluations, best ") && lines.read_line(&mut stderr).unwrap() > 0 {}
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    if child.try_wait().unwrap().is_none() {
        press(&child);
    }
    lines.read_to_string(&mut stderr).unwrap();
    match child.wait().unwrap().code() {
        Some(130) => true,
        code => {
            assert_eq!(code, Some(0), "{stderr}");
            false
        }
    }
}

#[test]
fn a_search_cut_short_at_ten_random_points_finds_the_same_factors() {
    let flags = flags().with("--evaluations", "90").with("--eval-windows", "0");
    let whole = flags.finish();
    // How long one evaluation takes here, so that ten pieces fit into the search.
    let pace = 1000.0 * whole.history().last().unwrap().seconds / 90.0;
    let dir = tempfile::tempdir().unwrap();
    let (mut random, mut cuts) = (0x9e37_79b9_u64, Vec::new());
    while cuts.len() < 10 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = (random >> 33) as f64 / (1u64 << 31) as f64 * 5.0 * pace;
        let flags = if cuts.is_empty() { flags.clone() } else { flags.clone().switch("--resume") };
        assert!(interrupted_within(&flags, dir.path(), wait as u64), "it ended after {cuts:?}");
        cuts.push(evaluations(dir.path()));
    }
    assert!(cuts.is_sorted() && cuts[9] < 90, "{cuts:?}");
    let run = flags.switch("--resume").finish_in(dir.path());
    assert_eq!(run.files["rope_scaling.json"], whole.files["rope_scaling.json"]);
    assert_eq!(run.checkpoint(), whole.checkpoint());
}

#[test]
fn every_optimiser_goes_on_with_all_it_searches() {
    let all = Flags::quick().with("--windows", "2").switch("--first-tokens");
    let searched = all.with("--evaluations", "36");
    let released = Flags::paper().with("--optimiser", "released").with("--iterations", "8");
    for flags in [searched, released] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(interrupted_after(&flags, dir.path(), " evaluations, best ").code, Some(130));
        let run = flags.clone().switch("--resume").finish_in(dir.path());
        assert_eq!(run.results(), flags.finish().results());
    }
}

#[test]
fn a_table_cut_short_is_measured_again_without_a_new_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    // Many windows, so that the table takes its time.
    let flags = Flags::quick().with("--eval-windows", "16");
    let output = interrupted_after(&flags, dir.path(), " cells of the table");
    assert_eq!(output.code, Some(130), "{}", output.stderr);
    assert_eq!(names(dir.path()), ["checkpoint.json"]);
    assert_eq!(evaluations(dir.path()), 14);
    let last = output.stderr.lines().last().unwrap();
    assert!(last.starts_with("stopped before the table; --resume continues from "), "{last}");

    let run = flags.clone().switch("--resume").finish_in(dir.path());
    assert!(!run.stderr.contains(" evaluations, best "), "{}", run.stderr);
    assert_eq!(run.results(), flags.finish().results());
}

#[test]
fn a_disk_that_fills_up_costs_no_evaluation_that_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = flags().switch("--resume");
    assert_eq!(interrupted_after(&flags(), dir.path(), " evaluations, best ").code, Some(130));
    let checkpoint = dir.path().join("checkpoint.json");
    let saved = fs::read(&checkpoint).unwrap();
    // Nothing can be written aside of the checkpoint, now or at the end.
    fs::create_dir(dir.path().join("checkpoint.json.new")).unwrap();
    let output = resumed.run_in(dir.path());
    let error = output.error();
    assert!(error.starts_with(&format!("{}: can't be written", checkpoint.display())), "{error}");
    assert!(
        !output.stderr.contains("stopped after"),
        "what was not saved is not promised: {}",
        output.stderr
    );
    assert_eq!(fs::read(&checkpoint).unwrap(), saved);

    fs::remove_dir(dir.path().join("checkpoint.json.new")).unwrap();
    assert_eq!(resumed.finish_in(dir.path()).results(), UNBROKEN.results());
}

#[test]
fn a_checkpoint_that_can_not_be_written_is_an_error_after_ctrl_c_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = flags().command(dir.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut stderr = String::new();
    while !stderr.contains(" evaluations, best ") {
        assert_ne!(lines.read_line(&mut stderr).unwrap(), 0, "{stderr}");
    }
    // The first checkpoint follows the first line; the next one is seconds away.
    while !dir.path().join("checkpoint.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended without a checkpoint");
    }
    fs::create_dir(dir.path().join("checkpoint.json.new")).unwrap();
    press(&child);
    lines.read_to_string(&mut stderr).unwrap();
    let output = Output { code: child.wait().unwrap().code(), stdout: String::new(), stderr };
    assert!(output.error().contains("checkpoint.json: can't be written"), "{}", output.stderr);
}
