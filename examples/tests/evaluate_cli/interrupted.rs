//! Ctrl-C, and `--resume` after it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::options::file;
use super::{command, start};

const FLAGS: [&str; 6] = ["--lengths", "512,1024", "--windows", "6", "--methods", "none,PI,YaRN"];

/// Begins, and presses Ctrl-C after the first line that tells of progress; the exit status and standard error.
fn interrupted(dir: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut child =
        command(dir, flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stderr.take().expect("standard error"));
    let mut stderr = String::new();
    while !stderr.lines().any(|line| line.contains(" evaluations, ")) {
        assert_ne!(lines.read_line(&mut stderr).unwrap(), 0, "ended without progress: {stderr}");
    }
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
    lines.read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

/// How many windows were measured, by the record.
fn measured(dir: &Path) -> usize {
    let record: Value = serde_json::from_str(&file(dir, "measured.json")).unwrap();
    record.as_object().expect("an object").len()
}

#[test]
fn a_table_cut_short_keeps_what_was_measured_and_ends_as_an_unbroken_one() {
    let unbroken = tempfile::tempdir().unwrap();
    assert!(start(unbroken.path(), &FLAGS).status.success());
    let all = measured(unbroken.path());

    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = interrupted(dir.path(), &FLAGS);
    assert_eq!(code, Some(130), "{stderr}");
    let record = dir.path().join("out/measured.json");
    let last = format!("stopped; --resume continues from {}", record.display());
    assert_eq!(stderr.lines().last(), Some(last.as_str()), "{stderr}");
    let kept = measured(dir.path());
    assert!((1..all).contains(&kept), "{kept} of {all}");
    // No table of a part.
    let files = std::fs::read_dir(dir.path().join("out")).unwrap().count();
    assert_eq!(files, 1);

    let resumed = start(dir.path(), &[&FLAGS[..], &["--resume"]].concat());
    assert!(resumed.status.success());
    assert_eq!(measured(dir.path()), all);
    for name in ["perplexity.md", "perplexity.svg"] {
        assert_eq!(file(dir.path(), name), file(unbroken.path(), name));
    }
    let before: Value = serde_json::from_str(&file(unbroken.path(), "measured.json")).unwrap();
    let after: Value = serde_json::from_str(&file(dir.path(), "measured.json")).unwrap();
    for (key, entry) in before.as_object().expect("an object") {
        assert_eq!(after[key]["value"], entry["value"], "{key}");
    }
}
