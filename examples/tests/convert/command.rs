//! Runs of the program, and factors for the bundled model.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling, hf::Generation};
use tempfile::TempDir;

use super::paths::repository;

/// A directory in which the program runs.
pub struct Dir(TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file for the program to read.
    pub fn with(self, name: &str, contents: &[u8]) -> Self {
        fs::write(self.path(name), contents).unwrap();
        self
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The rotary embedding of a Hugging Face configuration that the program wrote.
    pub fn config(&self, name: &str) -> RopeConfig {
        RopeConfig::from_hf_json(&self.read(name)).unwrap()
    }

    /// What a run prints that succeeds.
    pub fn run(&self, arguments: &str) -> String {
        let output = self.start(arguments);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{arguments}: {}", text(output.stderr));
        text(output.stdout)
    }

    /// The message of a run that is refused, without "error: "; no file has come or gone.
    pub fn refused(&self, arguments: &str) -> String {
        let before = self.files();
        let output = self.start(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(output.stdout.is_empty(), "{arguments}");
        assert_eq!(self.files(), before, "{arguments}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let line = stderr.lines().last().unwrap_or_default();
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
    }

    fn start(&self, arguments: &str) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convert"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace()).output().unwrap()
    }

    /// Names and contents of the files.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

/// The geometry of the bundled model.
pub fn geometry() -> Geometry {
    Geometry::new(64, 64, 1e4, 256).unwrap()
}

/// Factors for 2048 tokens of the bundled model.
pub fn longrope() -> LongRope {
    LongRope {
        short_factor: vec![1.0; 32],
        long_factor: (0..32).map(|i| 1.0 + 7.0 * f64::from(i) / 31.0).collect(),
        factor: 8.0,
        attention_factor: None,
        first_tokens: 0,
    }
}

pub fn config(longrope: LongRope) -> RopeConfig {
    RopeConfig::new(geometry(), 2048, Scaling::LongRope(longrope)).unwrap()
}

/// The text of a configuration, as `search` writes it.
pub fn json(rope: &RopeConfig) -> Vec<u8> {
    rope.to_hf(Generation::RopeScaling).to_string().into_bytes()
}

/// The directory of the bundled model.
pub fn tiny() -> String {
    repository("data/models/tiny").display().to_string()
}
