//! What each flag changes, on searches of a few evaluations.

use std::fs;
use std::sync::LazyLock;

use longrope::scaling::{RopeConfig, Scaling};
use serde_json::Value;

use super::command::{Finished, Flags, data, untimed};
use super::tiny_gguf::Gguf;

static QUICK: LazyLock<Finished> = LazyLock::new(|| Flags::quick().finish());

/// The lengths of the rows of perplexity.csv.
fn lengths(run: &Finished) -> Vec<usize> {
    let mut lengths: Vec<usize> = run.table().iter().map(|cell| cell.0).collect();
    lengths.dedup();
    lengths
}

#[test]
fn the_same_flags_give_the_same_bytes() {
    let again = Flags::quick().with("--seed", "0").finish();
    assert_eq!(QUICK.results(), again.results());
    assert_eq!(QUICK.checkpoint(), again.checkpoint());
}

#[test]
fn another_seed_gives_other_factors() {
    let seed = |flags: Flags, seed: &str| flags.with("--seed", seed).finish();
    // Of chance are neither the three seeds nor the first mean.
    for (flags, fixed) in [(Flags::quick(), 4), (Flags::paper(), 3)] {
        let (a, b) = (seed(flags.clone(), "0"), seed(flags, "1"));
        assert_ne!(a.files["rope_scaling.json"], b.files["rope_scaling.json"]);
        let (a, b) = (a.history(), b.history());
        assert_eq!((a.len(), b.len()), (14, 14));
        assert!(
            a[..fixed].iter().zip(&b).all(|(a, b)| a.factors == b.factors && a.perplexity == b.perplexity)
        );
        assert!(a[fixed..].iter().all(|row| b[fixed..].iter().all(|other| row.factors != other.factors)));
    }
}

#[test]
fn each_optimiser_begins_with_its_seeds() {
    let released = Flags::paper().with("--optimiser", "released").finish();
    let (paper, released) = (Flags::paper().finish().history(), released.history());
    assert_eq!(paper[0].factors, [2.0; 32]);
    assert_eq!(paper[2].factors, QUICK.history()[2].factors);
    // A ramp that is linear in the factor, above YaRN's.
    assert_ne!(released[0].factors, paper[2].factors);
    assert!(released[0].factors.iter().zip(&paper[2].factors).all(|(ramp, yarn)| ramp >= yarn));
    for row in &released {
        assert!(row.factors.is_sorted() && row.factors[31] <= 3.0, "{row:?}");
    }
    // The paper's mutants lie on a grid that the released ones need not keep to.
    assert_ne!(paper[3].factors, released[1].factors);
}

#[test]
fn the_attention_factor_is_searched_by_default_and_fixed_where_asked_for() {
    let rule = (1.0 + 2f64.ln() / 256f64.ln()).sqrt();
    let fixed = Flags::quick().with("--attention-factor", "fixed").finish();
    for run in [&fixed, &Flags::paper().finish()] {
        assert!(run.history().iter().all(|row| (row.attention_factor - rule).abs() < 1e-12));
        assert!(!run.files["rope_scaling.json"].contains("attention_factor"));
    }
    let run = Flags::quick().with("--attention-factor", "searched").with("--evaluations", "20").finish();
    let history = run.history();
    assert!(history.iter().any(|row| (row.attention_factor - rule).abs() > 0.01), "{history:?}");
    // The default.
    let attention = |row: &super::command::Row| row.attention_factor;
    assert!(QUICK.history().iter().map(attention).eq(history.iter().take(14).map(attention)));
    let best = history.iter().min_by(|a, b| a.perplexity.total_cmp(&b.perplexity)).unwrap();
    let config = RopeConfig::from_hf_json(&run.files["rope_scaling.json"]).unwrap();
    assert_eq!(config.attention_factor(), best.attention_factor);
}

#[test]
fn candidates_are_left_early_only_where_asked_for_and_the_margin_counts() {
    let windows = |margin: &str| {
        let run = Flags::quick().with("--windows", "2").with("--early-drop", margin).finish();
        (run.history().iter().map(|row| row.windows).collect::<Vec<_>>(), run)
    };
    let (off, whole) = windows("off");
    assert_eq!(off, [2; 14]);
    let (none, _) = windows("100");
    assert_eq!(none, [2; 14]);
    let (some, run) = windows("0");
    assert!(some[0] == 2 && some.contains(&1), "{some:?}");
    assert_eq!(run.history().last().unwrap().model_tokens, some.iter().sum::<usize>() * 512);
    // The estimate is the best's value times the excess: it is never the best, and near the true value.
    for (row, exact) in run.history().iter().zip(whole.history()).take_while(|(a, b)| a.factors == b.factors)
    {
        assert!((row.perplexity / exact.perplexity - 1.0).abs() < 0.2, "{row:?}, {exact:?}");
        assert!(row.windows == 2 || row.perplexity > row.best);
    }
}

#[test]
fn candidates_are_left_after_the_beginning_of_a_window_where_asked_for() {
    // With one window there is nothing else to leave.
    let run = Flags::quick().with("--screen", "64").with("--early-drop", "0").finish();
    let windows: Vec<usize> = run.history().iter().map(|row| row.windows).collect();
    assert!(windows[0] == 1 && windows.contains(&0), "{windows:?}");
    let tokens = windows.iter().sum::<usize>() * 512 + windows.len() * 64;
    assert_eq!(run.history().last().unwrap().model_tokens, tokens);
    assert!(run.history().iter().all(|row| row.windows == 1 || row.perplexity > row.best));
    assert!(run.files["report.txt"].contains("left after the beginning of their first window"));
    // A margin that nothing exceeds leaves the search as it is without.
    let all = Flags::quick().with("--screen", "64").with("--early-drop", "100").finish();
    assert_eq!(all.files["rope_scaling.json"], QUICK.files["rope_scaling.json"]);
}

#[test]
fn samples_are_ranked_and_the_search_begins_again_only_where_asked_for() {
    assert!(QUICK.files["report.txt"].contains("cma-es, seed 0\n"), "{}", QUICK.files["report.txt"]);
    let run = |surrogate: &str, restarts: &str| {
        let flags = Flags::quick().with("--evaluations", "40");
        flags.with("--surrogate", surrogate).with("--restarts", restarts).finish()
    };
    let both = run("10", "1");
    let expected = "cma-es, seed 0, the best of 10 samples by a surrogate, begun again after 1 generation without a better \
                    candidate\n";
    assert!(both.files["report.txt"].contains(expected), "{}", both.files["report.txt"]);
    // The seeds, and the first generation, after which there is enough to rank by.
    let (quick, both, fewer) = (QUICK.history(), both.history(), run("2", "4096").history());
    let factors =
        |rows: &[super::command::Row]| rows.iter().map(|row| row.factors.clone()).collect::<Vec<_>>();
    assert_eq!(factors(&quick[..14]), factors(&both[..14]));
    let second = both.iter().position(|row| row.iteration == 2).unwrap();
    assert_eq!(factors(&fewer[..second]), factors(&both[..second]));
    assert_ne!(factors(&fewer[second..]), factors(&both[second..]));
}

#[test]
fn other_runs_are_drawn_beside_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.csv");
    fs::write(&path, &QUICK.files["history.csv"]).unwrap();
    let named = format!("seed 0={}", path.display());
    let run = Flags::quick().with("--seed", "1").with("--compare", named).finish();
    let svg = &run.files["convergence.svg"];
    for name in ["cma-es", "seed 0", "evaluations", "model tokens, millions"] {
        assert!(svg.contains(name), "{name}");
    }
    assert!(!QUICK.files["convergence.svg"].contains("seed 0"));
}

#[test]
fn another_text_is_searched_by_its_first_half_and_measured_by_its_second() {
    let whole = data("texts/state-of-the-union-eval.txt");
    let other = Flags::quick().with("--text", &whole).finish();
    let cells = QUICK.table().into_iter().zip(other.table());
    for (a, b) in cells {
        assert_eq!((a.0, &a.1), (b.0, &b.1));
        assert!((a.2 / b.2 - 1.0).abs() > 1e-3, "{a:?} on either text");
    }
    assert!(other.stdout.contains("the second half of "), "{}", other.stdout);

    // The same halves as two files; a cut within a character would change both.
    let text = fs::read_to_string(&whole).unwrap();
    let (first, second) = text.split_at_checked(text.len() / 2).expect("a whole character");
    let dir = tempfile::tempdir().unwrap();
    let paths = ["first.txt", "second.txt"].map(|name| dir.path().join(name));
    fs::write(&paths[0], first).unwrap();
    fs::write(&paths[1], second).unwrap();
    let halves = Flags::quick().with("--text", &paths[0]).with("--eval-text", &paths[1]).finish();
    assert_eq!(other.results(), halves.results());
    // And as two files that are one text.
    let joined = Flags::quick().with("--text", &paths[0]).also("--text", &paths[1]).finish();
    assert_eq!(other.results(), joined.results());
}

#[test]
fn the_eval_text_changes_the_table_and_not_the_search() {
    let text = data("texts/moby-dick-search.txt");
    let same = Flags::quick().with("--text", &text).with("--eval-text", data("texts/moby-dick-eval.txt"));
    assert_eq!(same.finish().results(), QUICK.results());
    let other =
        Flags::quick().with("--text", &text).with("--eval-text", data("texts/state-of-the-union-eval.txt"));
    let other = other.finish();
    let history = |run: &Finished| untimed("history.csv", &run.files["history.csv"]);
    assert_eq!(history(&other), history(&QUICK));
    assert_eq!(other.files["rope_scaling.json"], QUICK.files["rope_scaling.json"]);
    assert_ne!(other.files["perplexity.csv"], QUICK.files["perplexity.csv"]);
    assert!(other.stdout.contains("Perplexity on state-of-the-union-eval.txt"), "{}", other.stdout);
}

#[test]
fn the_length_shows_in_the_table_the_configuration_and_the_bounds() {
    assert_eq!(lengths(&QUICK), [256, 512]);
    let run = Flags::quick().with("--length", "700").finish();
    assert_eq!(lengths(&run), [256, 512, 700]);
    let json: Value = serde_json::from_str(&run.files["rope_scaling.json"]).unwrap();
    assert_eq!(json["max_position_embeddings"], 700);
    assert_eq!(json["rope_scaling"]["original_max_position_embeddings"], 256);
    let config = RopeConfig::from_hf(&json).unwrap();
    let Scaling::LongRope(longrope) = config.scaling() else { panic!("{config:?}") };
    assert_eq!(longrope.factor, 700.0 / 256.0);
    // The first candidate is position interpolation by the quotient of the lengths.
    assert_eq!(run.history()[0].factors, [700.0 / 256.0; 32]);
    assert!(run.stderr.contains("for 700 tokens"), "{}", run.stderr);
}

#[test]
fn the_first_tokens_are_searched_only_where_asked_for() {
    assert!(QUICK.history().iter().all(|row| row.first_tokens == 0));
    let json = |run: &Finished| -> Value { serde_json::from_str(&run.files["rope_scaling.json"]).unwrap() };
    assert!(!QUICK.files["rope_scaling.json"].contains("n_hat"));
    assert!(!QUICK.stdout.contains("n_hat"), "{}", QUICK.stdout);

    // The best of a search need not leave tokens alone, but that of one of a few seeds does.
    let runs: Vec<Finished> = (0..6)
        .map(|seed| {
            let flags = Flags::paper().switch("--first-tokens").with("--seed", seed.to_string());
            flags.with("--length", "300").finish()
        })
        .collect();
    for run in &runs {
        let history = run.history();
        assert!(history.iter().any(|row| row.first_tokens > 0), "{}", run.files["history.csv"]);
        let best = history.iter().min_by(|a, b| a.perplexity.total_cmp(&b.perplexity)).unwrap();
        let config = RopeConfig::from_hf(&json(run)).unwrap();
        assert_eq!(config.first_tokens(), best.first_tokens);
        assert_eq!(run.stdout.contains("`n_hat`"), best.first_tokens > 0, "{}", run.stdout);
        assert_eq!(json(run)["rope_scaling"].get("n_hat").is_some(), best.first_tokens > 0);
    }
    assert!(runs.iter().any(|run| run.stdout.contains("`n_hat`")), "no seed shows it");
    // The default optimiser tries one at the end of each generation.
    let history = Flags::quick().switch("--first-tokens").with("--evaluations", "19").finish().history();
    assert!(history[..18].iter().all(|row| row.first_tokens == 0) && history[18].first_tokens > 0);
}

#[test]
fn a_model_at_a_path_is_the_one_that_is_searched() {
    let same = Flags::quick().with("--model", data("models/tiny")).finish();
    assert_eq!(same.results(), QUICK.results());

    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(data("models/tiny").join(file), dir.path().join(file)).unwrap();
    }
    let config = fs::read_to_string(data("models/tiny/config.json")).unwrap();
    let shorter = config.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 128");
    assert_ne!(config, shorter);
    fs::write(dir.path().join("config.json"), shorter).unwrap();
    let shorter = Flags::quick().with("--model", dir.path()).with("--length", "300").finish();
    assert_eq!(lengths(&shorter), [128, 256, 300]);
    let name = dir.path().to_str().unwrap();
    assert!(
        shorter.stderr.starts_with(&format!("{name} (3.0 M parameters, context 128)")),
        "{}",
        shorter.stderr
    );
}

#[test]
fn a_gguf_file_gives_the_perplexities_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let run = Flags::quick().with("--model", Gguf::tiny().write(dir.path())).finish();
    // The seeds and the first generation depend on the random stream alone.
    for (found, expected) in run.history().iter().zip(QUICK.history()) {
        assert_eq!(found.factors, expected.factors);
        let (found, expected) = (found.perplexity, expected.perplexity);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} is not {expected}");
    }
}

#[test]
fn the_numbers_of_windows_and_candidates_are_those_asked_for() {
    let more = Flags::quick().with("--windows", "2").with("--eval-windows", "3").finish();
    assert_eq!(more.history()[0].factors, QUICK.history()[0].factors);
    assert_ne!(more.history()[0].perplexity, QUICK.history()[0].perplexity);
    assert_ne!(more.perplexity(512, "none"), QUICK.perplexity(512, "none"));
    assert!(more.stdout.contains("(3 windows a length;"), "{}", more.stdout);

    let per_iteration = |population: &str, iterations: &str, offspring: &str| {
        let flags = Flags::paper().with("--length", "300").with("--population", population);
        let run = flags.with("--iterations", iterations).with("--offspring", offspring).finish();
        let history = run.history();
        let last = history.last().unwrap().iteration;
        (0..=last).map(|i| history.iter().filter(|row| row.iteration == i).count()).collect::<Vec<_>>()
    };
    // As many mutants as crossovers.
    assert_eq!(per_iteration("6", "2", "2"), [6, 4, 4]);
    assert_eq!(per_iteration("4", "3", "1"), [4, 2, 2, 2]);
    assert_eq!(per_iteration("5", "0", "1"), [5]);
    let history = Flags::quick().with("--evaluations", "22").finish().history();
    // Three seeds, then a mean and 14 samples a generation, as far as they go.
    assert_eq!([0, 1, 2].map(|i| history.iter().filter(|row| row.iteration == i).count()), [3, 15, 4]);
}
