//! What `evaluate` may measure otherwise: passkeys, the last tokens, another attention, and a run in pieces.

use std::fs;
use std::path::Path;

use longrope::scaling::SetChoice;
use longrope_drivers::{corpus, methods, model, passkey, text};

use super::paths::repository;
use super::{configuration, refused, start};

/// A run that is to succeed, in `dir`: what it printed, and on the standard error.
pub fn done(dir: &Path, arguments: &[&str]) -> (String, String) {
    let output = start(dir, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

pub fn file(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join("out").join(name)).unwrap()
}

/// The value of a column of the first row of a table that begins with `start`.
pub fn cell(csv: &str, start: &str, column: usize) -> f64 {
    let row = csv.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {csv}"));
    row.split(',').nth(column).unwrap().parse().unwrap()
}

#[test]
fn passkeys_are_measured_by_length_and_depth() {
    let dir = tempfile::tempdir().unwrap();
    let (stdout, stderr) = done(dir.path(), &["--lengths", "512,400", "--passkeys", "2", "--depths", "3"]);
    assert!(stderr.contains("60 evaluations on the CPU"), "{stderr}");
    assert_eq!(file(dir.path(), "passkeys.txt"), stdout);
    assert!(stdout.starts_with("Passkeys of tiny, on the CPU in f32: 2 a length and depth"), "{stdout}");
    // A map a method.
    assert_eq!(file(dir.path(), "passkeys.svg").matches("depth 50 %").count(), 5);
    let csv = file(dir.path(), "passkeys.csv");
    assert_eq!(csv.lines().count(), 1 + 2 * 5 * 3);
    let json: serde_json::Value = serde_json::from_str(&file(dir.path(), "passkeys.json")).unwrap();
    assert_eq!((&json["target"], &json["place"]), (&512.into(), &"on the CPU in f32".into()));
    assert_eq!(json["passkeys"].as_array().unwrap().len(), 2 * 5 * 3);
    assert_eq!(json["passkeys"][0]["prompts"].as_array().unwrap().len(), 2);

    let (model, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let yarn = methods::baselines(&model.config().rope, 512).unwrap().pop().unwrap().rope;
    let sets = yarn.factor_sets(400).unwrap();
    let prompts = passkey::prompts(&tokenizer, 400, 3, 2, 0).unwrap();
    for (prompts, depth) in prompts.chunks(2).zip(["0", "0.5", "1"]) {
        let choice = SetChoice::ByLength(400);
        let losses =
            prompts.iter().map(|prompt| passkey::recall(&model, prompt, &sets, choice).unwrap().loss);
        let expected = losses.sum::<f64>() / 2.0;
        let found = cell(&csv, &format!("400,YaRN,{depth},2,"), 5);
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }
}

#[test]
fn the_last_tokens_may_count_alone_and_methods_be_configured_for_another_length() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--lengths", "300", "--target", "512", "--last", "50", "--windows", "2"];
    let (stdout, _) = done(dir.path(), &[&flags[..], &["--text", "moby-dick-eval"]].concat());
    assert!(stdout.starts_with("Perplexity, of the last 50 tokens of tiny"), "{stdout}");
    assert!(stdout.contains("Methods are configured for 512 tokens."), "{stdout}");
    let (model, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let texts = [("moby-dick-eval".to_owned(), tokens)];
    let linear = methods::baselines(&model.config().rope, 512).unwrap().swap_remove(1).rope;
    let sets = linear.factor_sets(300).unwrap();
    let windows = corpus::windows(&texts, 300, 2).unwrap();
    let means = windows.iter().map(|window| {
        let losses = model.losses(window.tokens, &sets, SetChoice::ByLength(300)).unwrap();
        losses[249..].iter().sum::<f64>() / 50.0
    });
    let expected = (means.sum::<f64>() / 2.0).exp();
    let found = cell(&file(dir.path(), "perplexity.csv"), "300,PI,", 2);
    assert!((found / expected - 1.0).abs() < 1e-6, "{found} is not {expected}");
}

#[test]
fn composed_attention_gives_the_same_perplexities_and_the_time_is_split() {
    let flags = ["--lengths", "600", "--windows", "2", "--text", "moby-dick-eval", "--timing"];
    let [fused, composed] = ["fused", "composed"].map(|kind| {
        let dir = tempfile::tempdir().unwrap();
        let (stdout, _) = done(dir.path(), &[&flags[..], &["--attention", kind]].concat());
        assert!(stdout.contains(&format!("One evaluation by YaRN, {kind} attention")), "{stdout}");
        let line = stdout.lines().last().unwrap();
        let numbers: Vec<f64> = line.split_whitespace().map(|cell| cell.parse().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[0]), (6, 600.0), "{line}");
        assert!(numbers[1..].iter().all(|seconds| *seconds > 0.0), "{line}");
        assert!((numbers[1..5].iter().sum::<f64>() - numbers[5]).abs() < 3e-4, "{line}");
        file(dir.path(), "perplexity.csv")
    });
    for method in ["none", "PI", "dynamic NTK", "YaRN"] {
        let [a, b] = [&fused, &composed].map(|csv| cell(csv, &format!("600,{method},"), 2));
        assert!((a / b - 1.0).abs() < 1e-5, "{method}: {a} and {b}");
    }
}

#[test]
fn chunks_give_the_same_perplexities_and_one_window_has_no_error() {
    let flags = ["--lengths", "600", "--windows", "1", "--text", "moby-dick-eval", "--methods", "PI,YaRN"];
    let [whole, chunks] = ["600", "250"].map(|chunk| {
        let dir = tempfile::tempdir().unwrap();
        let (stdout, _) = done(dir.path(), &[&flags[..], &["--chunk", chunk]].concat());
        assert!(stdout.contains("(1 window a length, ") && stdout.contains(" tokens a second\n"), "{stdout}");
        assert!(stdout.lines().filter(|line| line.starts_with("      600")).all(|line| !line.contains('±')));
        assert!(!file(dir.path(), "perplexity.md").contains("NaN"));
        file(dir.path(), "perplexity.csv")
    });
    for method in ["PI", "YaRN"] {
        let row = format!("600,{method},");
        let [a, b] = [&whole, &chunks].map(|csv| cell(csv, &row, 2));
        assert!((a / b - 1.0).abs() < 1e-5, "{method}: {a} and {b}");
        let errors = whole.lines().filter(|line| line.starts_with(&row)).map(|line| line.split(',').nth(3));
        assert!(errors.eq([Some("")]), "{whole}");
    }
}

#[test]
fn windows_slide_by_a_stride_and_its_tokens_count() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--lengths", "300", "--target", "512", "--stride", "64", "--windows", "3"];
    let (stdout, _) =
        done(dir.path(), &[&flags[..], &["--text", "moby-dick-eval", "--methods", "PI"]].concat());
    assert!(stdout.starts_with("Perplexity, of the last 64 tokens of tiny"), "{stdout}");
    assert!(stdout.contains("3 sliding windows a length, at multiples of 64 tokens"), "{stdout}");
    let (model, tokenizer) = model::load(&repository("data/models/tiny")).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    let sets =
        methods::baselines(&model.config().rope, 512).unwrap().swap_remove(1).rope.factor_sets(300).unwrap();
    let windows = file(dir.path(), "windows.csv");
    let rows: Vec<&str> = windows.lines().skip(1).collect();
    assert_eq!(rows.len(), 3);
    for row in rows {
        let fields: Vec<&str> = row.split(',').collect();
        let (start, found): (usize, f64) = (fields[3].parse().unwrap(), fields[4].parse().unwrap());
        assert_eq!(start % 64, 0);
        let losses = model.losses(&tokens[start..start + 300], &sets, SetChoice::ByLength(300)).unwrap();
        let expected = losses[losses.len() - 64..].iter().sum::<f64>() / 64.0;
        assert!((found - expected).abs() < 1e-6, "{row}: {expected}");
    }
}

#[test]
fn what_was_measured_is_not_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--lengths", "300", "--windows", "2", "--text", "moby-dick-eval"];
    done(dir.path(), &flags);
    let (record, windows) = (file(dir.path(), "measured.json"), file(dir.path(), "windows.csv"));
    let resumed = [&flags[..], &["--resume"]].concat();
    done(dir.path(), &resumed);
    // The seconds too: no pass was made.
    assert_eq!(file(dir.path(), "windows.csv"), windows);
    assert_eq!(file(dir.path(), "measured.json"), record);
    // Another configuration under the same name is another measurement, beside the earlier ones.
    let mine = format!("mine={}", configuration(dir.path()));
    done(dir.path(), &[&resumed[..], &["--target", "512", "--rope-scaling", &mine]].concat());
    let entries =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap().as_object().unwrap().len();
    assert_eq!(entries(&record), 10);
    // None is for every length the same; four methods and the new one are not. Dynamic NTK is by the factor.
    assert_eq!(entries(&file(dir.path(), "measured.json")), 10 + 10);
    // Not asked to go on, it begins anew.
    done(dir.path(), &flags);
    assert_eq!(entries(&file(dir.path(), "measured.json")), 10);
}

#[test]
fn losses_are_compared_window_by_window() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--lengths", "300", "--windows", "3", "--text", "moby-dick-eval", "--against", "PI"];
    done(dir.path(), &[&flags[..], &["--methods", "YaRN,PI"]].concat());
    assert_eq!(file(dir.path(), "perplexity.csv").lines().count(), 3);
    let windows = file(dir.path(), "windows.csv");
    let losses = |method: &str| -> Vec<f64> {
        let start = format!("300,{method},");
        let rows = windows.lines().filter(|line| line.starts_with(&start));
        rows.map(|row| row.split(',').nth(4).unwrap().parse().unwrap()).collect()
    };
    let differences: Vec<f64> = losses("YaRN").iter().zip(losses("PI")).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / 3.0;
    let error = (differences.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 6.0).sqrt();
    let markdown = file(dir.path(), "perplexity.md");
    assert!(markdown.contains("Loss less that of PI, nats a token:"), "{markdown}");
    assert!(markdown.trim_end().ends_with(&format!("| {mean:.3} ± {error:.3} |")), "{markdown}");
}

#[test]
fn wrong_options_are_named() {
    assert!(refused(&["--against", "ALiBi"]).starts_with("--against: ALiBi is not valid; expected one of"));
    assert!(
        refused(&["--methods", "PI,ALiBi"]).starts_with("--methods: ALiBi is not valid; expected some of")
    );
    assert!(refused(&["--methods", "PI", "--against", "YaRN"]).ends_with("expected one of [\"PI\"]"));
    assert!(refused(&["--lengths", "512", "--target", "511"]).ends_with("expected at least 512"));
    assert!(refused(&["--passkeys", "0"]).ends_with("expected 1 to 4096"));
    assert!(refused(&["--last", "0"]).ends_with("expected 1 to 4096"));
    assert!(refused(&["--stride", "0"]).ends_with("expected 1 to 4096"));
    assert!(refused(&["--chunk", "0"]).ends_with("--chunk: 0 is not valid; expected at least 1"));
    let short = refused(&["--lengths", "100,512", "--passkeys", "1"]);
    assert!(short.starts_with("a passkey prompt of 100 tokens is too short"), "{short}");
    // The bundled model was trained on it.
    let train = refused(&["--text", "king-james-bible"]);
    assert!(train.ends_with("its role is train"), "{train}");
}
