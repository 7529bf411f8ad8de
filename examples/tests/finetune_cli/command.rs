//! Runs the program, and reads what it leaves behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Flags of the program.
#[derive(Clone, Default)]
pub struct Flags(Vec<String>);

/// A run that came to its end.
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Flags {
    /// Six short steps of LoRA, a second of work.
    pub fn quick() -> Self {
        let quick = Self::default().with("--length", "96").with("--steps", "6").with("--batch", "1");
        quick.with("--eval-windows", "1").with("--lora", "4").with("--warm-up", "1")
    }

    /// The same with this flag at this value.
    pub fn with(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        if let Some(place) = self.0.iter().position(|other| other == name) {
            self.0.drain(place..place + 2);
        }
        self.0.extend([name.to_owned(), value.as_ref().to_str().unwrap().to_owned()]);
        self
    }

    /// The same with this flag, which takes no value.
    pub fn switch(mut self, name: &str) -> Self {
        self.0.push(name.to_owned());
        self
    }

    /// The program with these flags, its output in `dir`.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_finetune"));
        command.args(&self.0).args(["--device", "cpu", "--output"]).arg(dir);
        // Backtraces are for panics; an error has one line, whatever this says.
        command.env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    /// Runs the program, its output in `dir`.
    pub fn run_in(&self, dir: &Path) -> Output {
        Output::of(self.command(dir).output().unwrap())
    }

    /// Runs the program, which is to succeed, its output in `dir`. Gives what it printed.
    pub fn finish_in(&self, dir: &Path) -> String {
        let Output { code, stdout, stderr } = self.run_in(dir);
        assert_eq!(code, Some(0), "{stderr}");
        stdout
    }

    /// Runs the program, which is to refuse before it makes anything. Gives the error.
    pub fn refused(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let error = self.run_in(&output).error();
        assert!(!output.exists(), "{error}");
        error
    }
}

impl Output {
    pub fn of(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The error of a run that failed as it should: status 1, one line on the standard error, the last one, no panic.
    pub fn error(&self) -> String {
        let stderr = &self.stderr;
        assert_eq!(self.code, Some(1), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(stderr.ends_with(&format!("error: {}\n", errors[0])), "{stderr}");
        errors[0].to_owned()
    }
}

/// The losses before and after that a report tells.
pub fn losses(report: &str) -> (f64, f64) {
    let (_, rest) = report.split_once("not trained on: ").unwrap_or_else(|| panic!("{report}"));
    let (before, rest) = rest.split_once(" before, ").unwrap();
    let (after, _) = rest.split_once(" after").unwrap();
    (before.parse().unwrap(), after.parse().unwrap())
}

/// The names in a directory, in order.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
