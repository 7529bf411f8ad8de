//! Output that can't be written: the error names it, and what was there or was found before is not lost.

use std::fs;
#[cfg(target_os = "linux")]
use std::process::Stdio;
use std::sync::LazyLock;

use super::command::{Finished, Flags, RESULTS, untimed};

fn flags() -> Flags {
    Flags::quick().with("--length", "300")
}

static FINISHED: LazyLock<Finished> = LazyLock::new(|| flags().finish());

#[test]
fn a_file_in_the_way_of_the_directory_is_named_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results");
    fs::write(&file, "precious").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = flags().run_in(&path).error();
        assert!(error.starts_with(&format!("{}: can't be made: ", path.display())), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_directory_in_the_way_of_a_result_is_named_and_the_search_is_kept() {
    for name in RESULTS {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        let output = flags().run_in(dir.path());
        let error = output.error();
        let path = dir.path().join(name);
        assert!(error.starts_with(&format!("{}: can't be written: ", path.display())), "{error}");
        // The table was shown, and the rest takes no evaluation once the way is free.
        assert!(output.stdout.starts_with("Perplexity on moby-dick-eval.txt"), "{}", output.stdout);
        fs::remove_dir(&path).unwrap();
        let run = flags().switch("--resume").finish_in(dir.path());
        assert_eq!(run.results(), FINISHED.results());
        assert!(!run.stderr.contains(" evaluations, best "), "{}", run.stderr);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_the_search_goes_on_once_there_is_room() {
    for name in ["checkpoint.json", "rope_scaling.json", "history.csv", "factors.svg"] {
        let dir = tempfile::tempdir().unwrap();
        // Every byte written to it is one too many.
        std::os::unix::fs::symlink("/dev/full", dir.path().join(format!("{name}.new"))).unwrap();
        let error = flags().run_in(dir.path()).error();
        let path = dir.path().join(name);
        assert!(
            error.starts_with(&format!("{}: can't be written: No space left", path.display())),
            "{error}"
        );
        assert!(!path.exists() || name == "checkpoint.json", "half of {name}");
        let run = flags().switch("--resume").finish_in(dir.path());
        assert_eq!(run.results(), FINISHED.results());
        // What could not be written is not left lying about either.
        assert_eq!(run.files.keys().collect::<Vec<_>>(), FINISHED.files.keys().collect::<Vec<_>>());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_spares_the_results_of_an_earlier_run() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("history.csv"), "an earlier history").unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("history.csv.new")).unwrap();
    flags().run_in(dir.path()).error();
    assert_eq!(fs::read_to_string(dir.path().join("history.csv")).unwrap(), "an earlier history");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_or_closed_standard_output_costs_no_file() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for (stdout, reason) in [(Stdio::from(full), "No space left"), (Stdio::from(closed), "Broken pipe")] {
        let dir = tempfile::tempdir().unwrap();
        let output = flags().command(dir.path()).stdout(stdout).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let output = super::command::Output { code: output.status.code(), stdout: String::new(), stderr };
        let error = output.error();
        assert!(error.starts_with(&format!("the standard output can't be written: {reason}")), "{error}");
        for (name, contents) in FINISHED.results() {
            let found = fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!(untimed(name, &found), contents, "{name}");
        }
    }
}
