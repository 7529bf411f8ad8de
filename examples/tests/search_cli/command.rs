//! Runs the program, and reads what it leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Flags of the program.
#[derive(Clone, Default)]
pub struct Flags(Vec<(String, Option<String>)>);

/// A run that came to its end.
pub struct Output {
    /// The exit status, if no signal ended the program.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A run that succeeded, and the files in its output directory by name.
pub struct Finished {
    pub stdout: String,
    pub stderr: String,
    pub files: BTreeMap<String, String>,
}

/// A row of history.csv.
#[derive(Debug, Clone)]
pub struct Row {
    pub iteration: usize,
    pub perplexity: f64,
    pub best: f64,
    pub windows: usize,
    pub model_tokens: usize,
    pub seconds: f64,
    pub first_tokens: u64,
    pub attention_factor: f64,
    pub factors: Vec<f64>,
}

impl Flags {
    /// A search of 14 evaluations by the default optimiser.
    pub fn quick() -> Self {
        Self::short().with("--evaluations", "14")
    }

    /// A search of 14 evaluations by the paper's.
    pub fn paper() -> Self {
        let few = [("--population", "6"), ("--iterations", "2"), ("--offspring", "2")];
        let paper = Self::short().with("--optimiser", "paper");
        few.into_iter().fold(paper, |flags, (name, value)| flags.with(name, value))
    }

    /// Short windows, and few of them.
    pub fn short() -> Self {
        let short = [("--length", "512"), ("--windows", "1"), ("--eval-windows", "1")];
        short.into_iter().fold(Self::default(), |flags, (name, value)| flags.with(name, value))
    }

    /// The same with this flag at this value.
    pub fn with(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        let value = value.as_ref().to_str().unwrap().to_owned();
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.to_owned(), Some(value)));
        self
    }

    /// The same with this flag at this value too.
    pub fn also(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.0.push((name.to_owned(), Some(value.as_ref().to_str().unwrap().to_owned())));
        self
    }

    /// The same with this flag, which takes no value.
    pub fn switch(mut self, name: &str) -> Self {
        self.0.push((name.to_owned(), None));
        self
    }

    /// The program with these flags, its output in `dir`.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        for (name, value) in &self.0 {
            command.arg(name).args(value);
        }
        // Backtraces are for panics; an error has one line, whatever this says.
        command.arg("--output").arg(dir).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    /// Runs the program, its output in `dir`.
    pub fn run_in(&self, dir: &Path) -> Output {
        let output = self.command(dir).output().unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs the program, which is to succeed, its output in `dir`.
    pub fn finish_in(&self, dir: &Path) -> Finished {
        let Output { code, stdout, stderr } = self.run_in(dir);
        assert_eq!(code, Some(0), "{stderr}");
        Finished { stdout, stderr, files: files(dir) }
    }

    /// Runs the program, which is to succeed, its output in a directory that it makes and that is removed.
    pub fn finish(&self) -> Finished {
        let dir = tempfile::tempdir().unwrap();
        self.finish_in(&dir.path().join("made/by/it"))
    }

    /// Runs the program, which is to refuse, in a directory with results of an earlier run, which are to stay. Gives the
    /// error.
    pub fn refused(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let kept = ["checkpoint.json", "rope_scaling.json", "history.csv", "perplexity.csv"];
        for name in kept {
            fs::write(dir.path().join(name), format!("an earlier {name}")).unwrap();
        }
        let error = self.run_in(dir.path()).error();
        for name in kept {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), format!("an earlier {name}"));
        }
        assert_eq!(files(dir.path()).len(), kept.len(), "{error}");
        error
    }
}

impl Output {
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

impl Finished {
    /// The rows of history.csv, in order.
    pub fn history(&self) -> Vec<Row> {
        let mut lines = self.files["history.csv"].lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        let first = ["evaluation", "iteration", "value", "best", "windows", "model_tokens", "seconds"];
        assert_eq!((&header[..7], &header[7..9]), (&first[..], &["n_hat", "attention_factor"][..]));
        assert!(header[9..].iter().enumerate().all(|(i, name)| *name == format!("lambda_{i}")), "{header:?}");
        let row = |(i, line): (usize, &str)| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!((cells.len(), cells[0]), (header.len(), (i + 1).to_string().as_str()), "{line}");
            Row {
                iteration: cells[1].parse().unwrap(),
                perplexity: cells[2].parse().unwrap(),
                best: cells[3].parse().unwrap(),
                windows: cells[4].parse().unwrap(),
                model_tokens: cells[5].parse().unwrap(),
                seconds: cells[6].parse().unwrap(),
                first_tokens: cells[7].parse().unwrap(),
                attention_factor: cells[8].parse().unwrap(),
                factors: cells[9..].iter().map(|cell| cell.parse().unwrap()).collect(),
            }
        };
        lines.enumerate().map(row).collect()
    }

    /// The cells of perplexity.csv, in order.
    pub fn table(&self) -> Vec<(usize, String, f64)> {
        let mut lines = self.files["perplexity.csv"].lines();
        assert_eq!(lines.next(), Some("length,method,perplexity"));
        let cell = |line: &str| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells.len(), 3, "{line}");
            (cells[0].parse().unwrap(), cells[1].to_owned(), cells[2].parse().unwrap())
        };
        lines.map(cell).collect()
    }

    /// A cell of perplexity.csv.
    pub fn perplexity(&self, length: usize, method: &str) -> f64 {
        let table = self.table();
        let cell = table.iter().find(|cell| cell.0 == length && cell.1 == method);
        cell.unwrap_or_else(|| panic!("no {method} at {length}")).2
    }

    /// The files that follow from the search and the table, by name, but for the times of the history.
    pub fn results(&self) -> Vec<(&str, String)> {
        RESULTS.map(|name| (name, untimed(name, &self.files[name]))).to_vec()
    }

    /// The checkpoint but for the times.
    pub fn checkpoint(&self) -> Value {
        untimed_checkpoint(&self.files["checkpoint.json"])
    }
}

/// The files that a run leaves beside the checkpoint.
pub const RESULTS: [&str; 6] = [
    "rope_scaling.json",
    "history.csv",
    "perplexity.csv",
    "perplexity.svg",
    "factors.svg",
    "convergence.svg",
];

/// The contents of a result but for the times, which no two runs share.
pub fn untimed(name: &str, contents: &str) -> String {
    if name == "convergence.svg" {
        // The last panel is of seconds.
        return contents.split(" by seconds").next().unwrap_or_default().to_owned();
    }
    if name != "history.csv" {
        return contents.to_owned();
    }
    let without = |line: &str| {
        let mut cells: Vec<&str> = line.split(',').collect();
        cells.remove(6);
        cells.join(",") + "\n"
    };
    contents.lines().map(without).collect()
}

fn untimed_checkpoint(text: &str) -> Value {
    let mut checkpoint: Value = serde_json::from_str(text).unwrap();
    for cost in checkpoint["costs"].as_array_mut().unwrap() {
        assert!(cost["seconds"].as_f64().unwrap() > 0.0);
        cost["seconds"] = Value::Null;
    }
    checkpoint
}

/// A path of the repository's data.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(path)
}

/// The files of a directory by name.
fn files(dir: &Path) -> BTreeMap<String, String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}
