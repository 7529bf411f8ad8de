//! The program `evaluate`, on the bundled model: its tables against the library's own numbers, and what it refuses.

mod interrupted;
mod options;
#[path = "../shared/paths.rs"]
mod paths;
mod sources;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use longrope::scaling::hf::Generation;
use longrope::scaling::{Bucket, RopeConfig, Schedule, SetChoice};
use longrope::search::Candidate;
use longrope_drivers::{corpus, methods, model, text};
use paths::repository;
use tempfile::TempDir;

/// What a run left.
struct Run {
    stdout: String,
    stderr: String,
    dir: TempDir,
}

impl Run {
    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("out").join(name)).unwrap()
    }
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evaluate"));
    command.arg("--output").arg(dir.join("out")).args(["--device", "cpu"]).args(arguments);
    command
}

fn start(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// The message of a run that is refused, without "error: ".
fn refused(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = start(dir.path(), arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty() && !dir.path().join("out").exists(), "{arguments:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr.trim().strip_prefix("error: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

const NAMES: [&str; 7] = ["none", "PI", "NTK-aware", "dynamic NTK", "YaRN", "mine", "schedule"];

/// Factors for 512 tokens.
fn mine() -> RopeConfig {
    let (model, _) = model::load(&repository("data/models/tiny")).unwrap();
    let factors: Vec<f64> = (0..32).map(|i| 1.0 + f64::from(i) / 32.0).collect();
    let candidate = Candidate { factors, first_tokens: 0, attention_factor: None };
    methods::longrope(&model.config().rope, 512, &candidate).unwrap()
}

/// A configuration as `search` writes it, for 512 tokens.
fn configuration(dir: &Path) -> String {
    let path = dir.join("rope_scaling.json");
    fs::write(&path, mine().to_hf(Generation::RopeScaling).to_string()).unwrap();
    path.display().to_string()
}

/// A schedule that is YaRN up to 256 tokens, and the configuration's factors up to 512.
fn schedule(dir: &Path) -> String {
    let yarn = methods::baselines(&mine(), 512).unwrap().pop().unwrap().rope;
    let bucket = |rope: &RopeConfig, max_length| Bucket {
        max_length,
        factors: rope.divisors(512),
        attention_factor: rope.attention_factor(),
        first_tokens: 0,
    };
    let buckets = vec![bucket(&yarn, 256), bucket(&mine(), 512)];
    let path = dir.join("schedule.json");
    let schedule = Schedule::new(*mine().geometry(), buckets).unwrap();
    fs::write(&path, schedule.to_json().to_string()).unwrap();
    path.display().to_string()
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let mine = format!("mine={}", configuration(dir.path()));
    let schedule = schedule(dir.path());
    let flags =
        ["--lengths", "512,256", "--windows", "3", "--text", "moby-dick-eval", "--rope-scaling", &mine];
    let flags = [&flags[..], &["--schedule", &schedule]].concat();
    let output = start(dir.path(), &flags);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    Run { stdout: text(output.stdout), stderr: text(output.stderr), dir }
});

#[test]
fn every_cell_is_the_mean_over_its_windows_with_their_standard_error() {
    let (model, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let name = "moby-dick-eval".to_owned();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let texts = [(name, tokens)];
    let yarn = methods::baselines(&model.config().rope, 512).unwrap().pop().unwrap().rope;
    let csv = RUN.file("perplexity.csv");
    for length in [256usize, 512] {
        let sets = yarn.factor_sets(length as u64).unwrap();
        let losses: Vec<f64> = corpus::windows(&texts, length, 3)
            .unwrap()
            .iter()
            .map(|window| {
                let losses = model.losses(window.tokens, &sets, SetChoice::ByLength(length as u64)).unwrap();
                losses.iter().sum::<f64>() / losses.len() as f64
            })
            .collect();
        let mean = losses.iter().sum::<f64>() / 3.0;
        let error = (losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / 6.0).sqrt();
        let row = csv.lines().find(|line| line.starts_with(&format!("{length},YaRN,"))).unwrap();
        let found: Vec<f64> = row.split(',').skip(2).map(|field| field.parse().unwrap()).collect();
        assert!((found[0] - mean.exp()).abs() < 1e-9 * found[0], "{row}: {}", mean.exp());
        assert!((found[1] - error * mean.exp()).abs() < 1e-9 * found[0], "{row}: {}", error * mean.exp());
        assert_eq!(found[2], 3.0);
    }
}

#[test]
fn the_tables_have_every_method_and_length_and_say_what_was_measured() {
    let rows: Vec<String> = RUN.file("perplexity.csv").lines().skip(1).map(str::to_owned).collect();
    let expected = [256, 512].iter().flat_map(|length| NAMES.map(|name| format!("{length},{name},")));
    assert!(rows.iter().zip(expected.clone()).all(|(row, start)| row.starts_with(&start)), "{rows:?}");
    assert_eq!(rows.len(), expected.count());
    assert_eq!(RUN.file("windows.csv").lines().count(), 1 + 3 * rows.len());
    assert_eq!(RUN.file("perplexity.txt"), RUN.stdout);
    let svg = RUN.file("perplexity.svg");
    assert!(NAMES.iter().all(|name| svg.contains(name)), "{svg}");
    let said =
        ["Perplexity of tiny, on the CPU in f32, on moby-dick-eval (3 windows a length", "for 512 tokens"];
    assert!(said.iter().all(|part| RUN.stdout.contains(part)), "{}", RUN.stdout);
    assert!(RUN.stdout.contains("512 tokens: ") && !RUN.stdout.contains("dequantised"), "{}", RUN.stdout);
    assert!(RUN.stderr.contains("42 evaluations on the CPU in f32"), "{}", RUN.stderr);
}

#[test]
fn a_schedule_takes_the_factors_of_each_length() {
    let csv = RUN.file("perplexity.csv");
    let value = |length: usize, name: &str| -> f64 {
        let row = csv.lines().find_map(|line| line.strip_prefix(&format!("{length},{name},"))).unwrap();
        row.split(',').next().unwrap().parse().unwrap()
    };
    // The divisors of YaRN are rounded once more than its frequencies.
    assert!((value(256, "schedule") / value(256, "YaRN") - 1.0).abs() < 1e-6);
    assert_eq!(value(512, "schedule"), value(512, "mine"));
    assert!((value(256, "YaRN") / value(256, "mine") - 1.0).abs() > 1e-4);
}

#[test]
fn a_schedule_that_is_too_short_or_of_another_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = schedule(dir.path());
    let found = refused(&["--lengths", "513", "--schedule", &path]);
    let expected = format!("--schedule: {path}: length: 513 is not valid; expected at most 512");
    assert!(found.starts_with(&expected), "{found}");
    let json = fs::read_to_string(&path).unwrap();
    fs::write(&path, json.replace("10000.0", "10001.0")).unwrap();
    let found = refused(&["--lengths", "512", "--schedule", &path]);
    assert!(found.starts_with(&format!("--schedule: {path}: Geometry")), "{found}");
    fs::write(&path, json.replace("\"version\":1", "\"version\":2")).unwrap();
    let found = refused(&["--lengths", "512", "--schedule", &path]);
    assert_eq!(found, format!("{path}: version: 2 is not valid; expected 1"));
}

#[test]
fn a_text_that_was_searched_on_is_refused() {
    let found = refused(&["--text", "moby-dick-search"]);
    assert!(found.ends_with("expected a text whose role is eval, and its role is search"), "{found}");
    let found = refused(&["--text", "king-lear"]);
    assert!(found.starts_with("--text: king-lear is not valid; expected a text of "), "{found}");
}

#[test]
fn windows_that_would_overlap_are_refused() {
    let found = refused(&["--lengths", "256,65536", "--windows", "9"]);
    assert!(found.starts_with("9 windows of 65536 tokens do not fit the texts without overlap"), "{found}");
}

#[test]
fn wrong_lengths_windows_and_configurations_are_named() {
    assert!(refused(&["--lengths", "128,256"]).starts_with("--lengths: 256 is not valid as the longest"));
    assert!(refused(&["--lengths", "1,512"]).starts_with("--lengths: 1 is not valid"));
    assert!(refused(&["--windows", "0"]).starts_with("--windows: 0 is not valid; expected 1 to 4096"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.json");
    fs::write(&path, r#"{"head_dim": 32, "max_position_embeddings": 256}"#).unwrap();
    let path = path.display().to_string();
    let found = refused(&["--lengths", "512", "--rope-scaling", &path]);
    assert!(found.starts_with(&format!("--rope-scaling: {path}: ")), "{found}");
    let mine = configuration(dir.path());
    let found = refused(&["--lengths", "512", "--rope-scaling", &format!("PI={mine}")]);
    assert!(found.starts_with("--rope-scaling: PI is not valid as a name"), "{found}");
}

#[test]
fn a_type_that_the_device_has_not_is_refused() {
    let found = refused(&["--dtype", "bf16"]);
    assert_eq!(found, "--dtype: bf16 is not valid on the CPU; expected f32");
}
