//! Ctrl-C and `--resume`, and a disk that is full.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use tempfile::TempDir;

use super::command::{Flags, Output, losses, names};

/// Long enough to be cut short.
fn flags() -> Flags {
    Flags::quick().with("--steps", "24").with("--checkpoint-every", "7")
}

static UNBROKEN: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let stdout = flags().finish_in(dir.path());
    (dir, stdout)
});

/// Runs the program and presses Ctrl-C after its first step.
fn interrupted(flags: &Flags, dir: &Path) -> Output {
    let mut child = flags.command(dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut stderr = String::new();
    while !stderr.contains(" steps, loss ") {
        assert_ne!(lines.read_line(&mut stderr).unwrap(), 0, "ended without a step: {stderr}");
    }
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
    lines.read_to_string(&mut stderr).unwrap();
    let output = child.wait_with_output().unwrap();
    Output { code: output.status.code(), stdout: String::from_utf8(output.stdout).unwrap(), stderr }
}

/// The step of the only checkpoint in `dir`.
fn step(dir: &Path) -> usize {
    let found = names(dir);
    let [name] = found.as_slice() else { panic!("{found:?}") };
    name.strip_prefix("checkpoint-").unwrap().parse().unwrap()
}

/// The loss curve but for the times.
fn curve(dir: &Path) -> Vec<String> {
    let csv = fs::read_to_string(dir.join("loss.csv")).unwrap();
    csv.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect()
}

#[test]
fn a_run_cut_short_twice_ends_with_the_bits_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = interrupted(&flags(), dir.path());
    assert_eq!(output.code, Some(130), "{}", output.stderr);
    let first = step(dir.path());
    assert!((1..24).contains(&first));
    let path = dir.path().join(format!("checkpoint-{first}"));
    let last = format!("stopped after step {first}; --resume continues from {}", path.display());
    assert_eq!(output.stderr.lines().last(), Some(last.as_str()), "{}", output.stderr);
    assert!(output.stdout.is_empty() && !output.stderr.contains("error:"), "{}", output.stderr);

    let resumed = flags().switch("--resume");
    assert_eq!(interrupted(&resumed, dir.path()).code, Some(130));
    let second = step(dir.path());
    assert!(first < second && second < 24, "{first}, then {second}");
    let stdout = resumed.finish_in(dir.path());
    let unbroken = UNBROKEN.0.path();
    assert_eq!(losses(&stdout), losses(&UNBROKEN.1));
    assert_eq!(curve(dir.path()), curve(unbroken));
    for file in ["checkpoint-24/tensors.safetensors", "model/model.safetensors", "model/config.json"] {
        let [found, expected] = [dir.path(), unbroken].map(|dir| fs::read(dir.join(file)).unwrap());
        assert!(found == expected, "{file}: other bytes");
    }
}

#[test]
fn a_run_that_ended_is_only_measured_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags::quick().with("--peak", "0.05");
    let run = flags.run_in(dir.path());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let first = run.stdout;
    let line = run.stderr.lines().find(|line| line.starts_with("1/6 steps, loss ")).unwrap();
    assert!(line.contains(" tokens/s, ") && line.contains(" % of peak, about "), "{line}");
    assert!(first.lines().next().unwrap().ends_with(" % of peak."), "{first}");
    let report = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.path().join("report.json")).unwrap()).unwrap()
    };
    let before = report();
    let number = |name: &str| before[name].as_f64().unwrap();
    let expected = number("operations") / number("seconds") / 0.05e12;
    assert!((number("utilisation") / expected - 1.0).abs() < 1e-9, "{before}");
    fs::remove_dir_all(dir.path().join("model")).unwrap();
    let again = flags.switch("--resume").run_in(dir.path());
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(!again.stderr.contains(" steps, loss "), "{}", again.stderr);
    assert_eq!(losses(&again.stdout), losses(&first));
    assert_eq!(report(), before);
    assert!(dir.path().join("model/model.safetensors").exists());
}

#[test]
fn other_settings_are_named_and_the_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags::quick();
    flags.finish_in(dir.path());
    for (flag, value, expected) in [
        ("--clip", "0.5", "made with --clip 1, which is not 0.5; run with the same, or in another --output"),
        ("--steps", "7", "made with --steps 6, which is not 7; "),
        ("--seed", "3", "made with --seed 0, which is not 3; "),
        ("--alpha", "3", "made with --alpha 8, which is not 3; "),
        ("--packing", "stream", "made with --packing documents, which is not stream; "),
        ("--text", concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs"), "made with another --text; "),
    ] {
        let error = flags.clone().with(flag, value).switch("--resume").run_in(dir.path()).error();
        let path = dir.path().join("checkpoint-6/state.json");
        assert!(error.starts_with(&format!("{}: {expected}", path.display())), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let error = flags.switch("--resume").run_in(empty.path()).error();
    let expected = format!("--resume: no checkpoint in {}; run without it", empty.path().display());
    assert_eq!(error, expected);
}

#[test]
fn a_run_goes_on_with_another_recipe_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(interrupted(&flags(), dir.path()).code, Some(130));
    let done = step(dir.path());
    let more = flags().with("--learning-rate", "0.0005").with("--steps", "25").switch("--resume");
    let error = more.run_in(dir.path()).error();
    assert!(error.ends_with("to start anew, or with --changed"), "{error}");
    more.clone().switch("--changed").finish_in(dir.path());
    let (changed, unbroken) = (curve(dir.path()), curve(UNBROKEN.0.path()));
    assert_eq!(changed.len(), 26);
    assert_eq!(changed[..done + 1], unbroken[..done + 1]);
    assert_ne!(changed[done + 1], unbroken[done + 1]);
    // What is trained, and on what, stays.
    let error = more.switch("--changed").with("--seed", "3").run_in(dir.path()).error();
    assert!(error.contains("made with --seed 0, which is not 3; run with the same"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_the_last_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(interrupted(&flags(), dir.path()).code, Some(130));
    let kept = step(dir.path());
    // No file may have more than 128 blocks, of 512 or 1,024 bytes: writes beyond are refused, as on a disk without room.
    let program = flags().switch("--resume").command(dir.path());
    let words = std::iter::once(program.get_program()).chain(program.get_args());
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$@\"", "sh"]).args(words);
    let output = Output::of(limited.output().unwrap());
    let error = output.error();
    assert!(error.contains("tensors.safetensors: can't be written: File too large"), "{error}");
    let path = dir.path().join(format!("checkpoint-{kept}"));
    let told = format!("--resume continues from {}", path.display());
    assert!(output.stderr.contains(&told), "{}", output.stderr);
    assert_eq!(step(dir.path()), kept);
    flags().switch("--resume").finish_in(dir.path());
    assert_eq!(curve(dir.path()), curve(UNBROKEN.0.path()));
}
