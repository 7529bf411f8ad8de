//! The run without any flag but `--output`. It takes minutes, so all tests look at one run.

use std::collections::HashSet;
use std::fs;
use std::sync::LazyLock;

use longrope::scaling::{RopeConfig, Scaling, SetChoice};
use longrope_drivers::perplexity::perplexity;
use longrope_drivers::{model, text};
use serde_json::Value;

use super::command::{Finished, Flags, data};

static RUN: LazyLock<Finished> = LazyLock::new(|| Flags::default().finish());

const METHODS: [&str; 5] = ["none", "PI", "NTK-aware", "YaRN", "LongRoPE"];

/// The committed text with this role that the manifest lists first.
fn text_with_role(role: &str) -> std::path::PathBuf {
    let manifest: Value = serde_json::from_slice(&fs::read(data("manifest.json")).unwrap()).unwrap();
    let texts = manifest["texts"].as_array().unwrap();
    let text = texts.iter().find(|text| text["role"] == role && text["committed"] == true).unwrap();
    data("..").join(text["path"].as_str().unwrap())
}

/// The configuration in rope_scaling.json.
fn configuration() -> RopeConfig {
    RopeConfig::from_hf(&serde_json::from_str(&RUN.files["rope_scaling.json"]).unwrap()).unwrap()
}

#[test]
fn every_result_is_written_and_named() {
    let expected = [
        "checkpoint.json",
        "convergence.svg",
        "factors.svg",
        "history.csv",
        "perplexity.csv",
        "perplexity.svg",
        "report.txt",
        "rope_scaling.json",
    ];
    assert_eq!(RUN.files.keys().collect::<Vec<_>>(), expected);
    for (name, contents) in RUN.files.iter().filter(|(name, _)| *name != "checkpoint.json") {
        assert!(
            contents.ends_with('\n') || contents.ends_with("</svg>") || contents.ends_with('}'),
            "{name}"
        );
        let named = RUN.stdout.lines().any(|line| line.starts_with("wrote ") && line.ends_with(name));
        assert!(named, "{name}: {}", RUN.stdout);
    }
}

#[test]
fn the_report_says_what_was_searched_and_found() {
    let report = &RUN.files["report.txt"];
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], "Factors for 2048 tokens.");
    let line =
        |start: &str| lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{report}"));
    assert!(line("model").contains("models/tiny, on the CPU in f32"), "{report}");
    assert!(line("searched on").ends_with("2 windows of moby-dick-search.txt"), "{report}");
    assert!(line("optimiser").ends_with("cma-es, seed 0"), "{report}");
    let history = RUN.history();
    let (at, best) =
        history.iter().enumerate().min_by(|a, b| a.1.perplexity.total_cmp(&b.1.perplexity)).unwrap();
    let expected = format!("{:.4}, by evaluation {}; ", best.perplexity, at + 1);
    assert!(line("best perplexity").contains(&expected), "{report}");
    assert!(line("attention factor").ends_with(&format!("{}, searched", best.attention_factor)), "{report}");
    let factors: Vec<f64> = lines[lines.iter().position(|line| line.starts_with("factors")).unwrap()..]
        .iter()
        .take(4)
        .flat_map(|line| {
            line.trim_start_matches("factors").split_whitespace().map(|cell| cell.parse::<f64>().unwrap())
        })
        .collect();
    assert_eq!(factors.len(), 32);
    assert!(factors.iter().zip(&best.factors).all(|(a, b)| (a - b).abs() < 1e-3), "{report}");
    // The table is that which was printed.
    assert!(RUN.stdout.contains(report.split_once("\nPerplexity on").unwrap().1), "{report}");
}

#[test]
fn without_interpolation_the_model_breaks_down_beyond_its_context() {
    let (own, extended) = (RUN.perplexity(256, "none"), RUN.perplexity(2048, "none"));
    assert!(own > 1.0 && extended >= 1.5 * own, "{own} at 256, {extended} at 2048");
}

#[test]
fn the_found_factors_beat_every_other_method_at_the_length_searched_for() {
    let found = RUN.perplexity(2048, "LongRoPE");
    for method in METHODS.into_iter().filter(|method| *method != "LongRoPE") {
        let other = RUN.perplexity(2048, method);
        // YaRN is the closest.
        assert!(found < 0.9 * other, "{method}: {other}, LongRoPE: {found}");
    }
}

#[test]
fn the_configuration_holds_the_best_candidate() {
    let history = RUN.history();
    let best = history.iter().min_by(|a, b| a.perplexity.total_cmp(&b.perplexity)).unwrap();
    let config = configuration();
    let Scaling::LongRope(longrope) = config.scaling() else { panic!("{config:?}") };
    assert_eq!(longrope.long_factor, best.factors);
    assert_eq!(longrope.short_factor, [1.0; 32]);
    assert_eq!((config.max_length(), config.geometry().original_length()), (2048, 256));
    assert_eq!((config.geometry().head_dim(), config.geometry().theta()), (64, 10_000.0));
    assert_eq!(config.first_tokens(), 0);
    assert_eq!(config.attention_factor(), best.attention_factor);
    // Searched, and found to be smaller than LongRoPE's rule has it.
    let rule = (1.0 + 8f64.ln() / 256f64.ln()).sqrt();
    assert!((1.0..rule).contains(&best.attention_factor), "{}", best.attention_factor);
    let json: Value = serde_json::from_str(&RUN.files["rope_scaling.json"]).unwrap();
    assert_eq!(json["rope_scaling"]["rope_type"], "longrope");
}

#[test]
fn the_history_has_a_row_for_each_evaluation_and_no_candidate_twice() {
    let history = RUN.history();
    let last = RUN.stdout.lines().last().unwrap();
    assert!(last.starts_with(&format!("{} evaluations in ", history.len())), "{last}");
    let checkpoint: Value = serde_json::from_str(&RUN.files["checkpoint.json"]).unwrap();
    assert_eq!(checkpoint["search"]["history"].as_array().unwrap().len(), history.len());

    let mut seen = HashSet::new();
    for row in &history {
        let key: Vec<u64> = row.factors.iter().map(|factor| factor.to_bits()).collect();
        assert!(seen.insert((row.first_tokens, key)), "twice: {row:?}");
        assert!(row.factors.len() == 32 && row.factors.is_sorted() && row.first_tokens == 0, "{row:?}");
        assert!(row.factors[0] >= 1.0 && row.factors[31] <= 1.25 * 8.0, "{row:?}");
    }
    assert!(history.is_sorted_by_key(|row| row.iteration), "iterations are not in order");
    assert_eq!(history[0].iteration, 0);
    let iterations: HashSet<usize> = history.iter().map(|row| row.iteration).collect();
    assert_eq!(iterations.len(), history.last().unwrap().iteration + 1, "an iteration without candidates");
    assert_eq!(history.len(), 96);
}

#[test]
fn the_best_column_is_the_lowest_so_far_and_the_search_improves_on_its_seeds() {
    let history = RUN.history();
    let mut lowest = f64::INFINITY;
    for row in &history {
        lowest = lowest.min(row.perplexity);
        assert_eq!(row.best, lowest);
    }
    // The first three candidates are those of position interpolation, NTK-aware and YaRN.
    assert!(lowest < history[2].best, "{lowest}: nothing better than the seeds was found");
    assert_eq!(history[0].factors, [8.0; 32]);
}

#[test]
fn the_history_counts_model_tokens_and_candidates_that_were_left_early() {
    let history = RUN.history();
    let (mut tokens, mut seconds) = (0, 0.0);
    for row in &history {
        assert!((1..=2).contains(&row.windows), "{row:?}");
        tokens += row.windows * 2048;
        assert_eq!(row.model_tokens, tokens);
        assert!(row.seconds >= seconds, "{row:?}");
        seconds = row.seconds;
        // A candidate that is left is no better than the best.
        assert!(row.windows == 2 || row.perplexity > row.best, "{row:?}");
    }
    let dropped = history.iter().filter(|row| row.windows == 1).count();
    assert!(dropped > 0, "every candidate was measured on both windows");
    let last = RUN.stdout.lines().last().unwrap();
    let expected = format!(": {tokens} model tokens, {dropped} candidates left after their first window");
    assert!(last.ends_with(&expected), "{last}");
}

#[test]
fn the_printed_table_is_that_of_the_file() {
    let mut lines = RUN.stdout.lines();
    assert!(
        lines.next().unwrap().starts_with("Perplexity on moby-dick-eval.txt, which the search has not seen")
    );
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((header[0], &header[1..]), ("length", &METHODS[..]));
    let mut cells = 0;
    for (line, length) in lines.zip([256, 512, 1024, 2048]) {
        let row: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(row[0], length.to_string());
        let exact = METHODS.map(|method| RUN.perplexity(length, method));
        let lowest = exact.iter().copied().fold(f64::INFINITY, f64::min);
        for (shown, exact) in row[1..].iter().zip(exact) {
            let number: f64 = shown.trim_end_matches('*').parse().unwrap();
            assert!((number - exact).abs() <= 0.0005, "{line}: {exact}");
            assert_eq!(shown.ends_with('*'), exact == lowest, "{line}");
            cells += 1;
        }
    }
    assert_eq!((cells, RUN.table().len()), (20, 20));
}

#[test]
fn the_search_reads_the_search_text_and_the_table_the_eval_text() {
    let (model, tokenizer) = model::load(&data("models/tiny")).unwrap();
    let measured = |role: &str, length: usize, windows: usize, rope: &RopeConfig| {
        let tokens = text::read_tokens(&text_with_role(role), &tokenizer).unwrap();
        let windows = text::windows(role, &tokens, length, windows).unwrap();
        let sets = rope.factor_sets(length as u64).unwrap();
        perplexity(&model, &windows, &sets, SetChoice::ByLength(length as u64)).unwrap()
    };
    let none = &model.config().rope;
    let cell = RUN.perplexity(256, "none");
    let expected = measured("eval", 256, 8, none);
    assert!((cell / expected - 1.0).abs() < 1e-6, "{cell} is not {expected}");
    assert!((cell / measured("search", 256, 8, none) - 1.0).abs() > 1e-3, "that is the search text");
    // Two windows of the search text gave the value of the best candidate.
    let best = RUN.history().last().unwrap().best;
    let expected = measured("search", 2048, 2, &configuration());
    assert!((best / expected - 1.0).abs() < 1e-6, "{best} is not {expected}");
}

#[test]
fn progress_shows_evaluations_the_best_value_and_the_time_left() {
    let mut lines = RUN.stderr.lines();
    let first = lines.next().unwrap();
    assert!(first.contains("3.0 M parameters, context 256") && first.contains("2048 tokens"), "{first}");
    let planned = RUN.history().len();
    let (mut evaluations, mut cells) = (Vec::new(), Vec::new());
    for line in lines {
        let (done, rest) = line.split_once('/').unwrap_or_else(|| panic!("{line}"));
        let (of, rest) = rest.split_once(' ').unwrap();
        let (what, rest) = rest.split_once(", best ").unwrap();
        let (best, left) = rest.split_once(", about ").unwrap();
        assert!(left.ends_with(" left") && left.contains("second") || left.contains("minute"), "{line}");
        let seen: (usize, usize, f64) = (done.parse().unwrap(), of.parse().unwrap(), best.parse().unwrap());
        match what {
            "evaluations" => evaluations.push(seen),
            "cells of the table" => cells.push(seen),
            _ => panic!("{line}"),
        }
    }
    for (lines, of) in [(&evaluations, planned), (&cells, 20)] {
        assert!(lines.iter().all(|line| line.1 == of && line.0 <= of), "{lines:?}");
        assert!(lines.is_sorted_by(|a, b| a.0 < b.0 && a.2 >= b.2), "{lines:?}");
    }
    // The whole run takes longer than a line's interval.
    assert!(evaluations.len() >= 3 && evaluations[0].0 == 1 && !cells.is_empty(), "{}", RUN.stderr);
    let history = RUN.history();
    for (done, _, best) in evaluations {
        assert!((history[done - 1].best - best).abs() < 1e-4, "{best} after {done}");
    }
}

#[test]
fn the_plots_show_every_method_length_and_point() {
    let lengths = ["256", "512", "1024", "2048"];
    for (plot, marks, points) in [("perplexity.svg", &lengths[..], 5 * 4), ("factors.svg", &[], 5 * 32)] {
        let svg = &RUN.files[plot];
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{plot}");
        for name in METHODS.iter().chain(marks) {
            assert!(svg.lines().any(|line| line.trim() == *name), "{plot}: no {name}");
        }
        assert_eq!(svg.matches("<circle").count(), points, "{plot}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{plot}");
    }
}
