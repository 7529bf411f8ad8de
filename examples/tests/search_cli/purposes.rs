//! What a search may be for, what it may minimise, and what may be left out of it.

use std::fs;
use std::path::Path;

use longrope::scaling::{RopeConfig, Scaling, Schedule, SetChoice};
use longrope_drivers::passkey;
use longrope_drivers::{model, perplexity, text};
use serde_json::Value;

use super::command::{Finished, Flags, Row, data};

/// A file in `dir` with these contents.
fn file(dir: &Path, name: &str, contents: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, contents).unwrap();
    path
}

fn schedule(run: &Finished) -> Schedule {
    Schedule::from_json(&run.files["schedule.json"]).unwrap()
}

fn best(run: &Finished) -> Row {
    run.history().into_iter().min_by(|a, b| a.perplexity.total_cmp(&b.perplexity)).unwrap()
}

#[test]
fn sets_for_shorter_contexts_come_into_one_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let long = Flags::quick().with("--length", "1024").with("--eval-windows", "0").finish();
    let path = file(dir.path(), "rope_scaling.json", &long.files["rope_scaling.json"]);

    // Within the model's own context: from no interpolation on, with factors up to 5.
    let recover = Flags::short().with("--evaluations", "8").with("--recover", &path);
    let short = recover.clone().with("--length", "256").finish();
    let rows = short.history();
    assert_eq!((&rows[0].factors, rows[0].attention_factor), (&vec![1.0; 32], 1.0));
    let config = RopeConfig::from_hf_json(&long.files["rope_scaling.json"]).unwrap();
    assert_eq!(rows[1].attention_factor, config.attention_factor());
    assert!(rows.iter().all(|row| row.factors.iter().all(|factor| (1.0..=5.0).contains(factor))));
    let lengths = |schedule: &Schedule| schedule.buckets().iter().map(|b| b.max_length).collect::<Vec<_>>();
    assert_eq!(lengths(&schedule(&short)), [256, 1024]);
    let found = best(&short);
    let bucket = schedule(&short).choose(256).unwrap().clone();
    assert_eq!((bucket.factors, bucket.attention_factor), (found.factors, found.attention_factor));
    assert!(!short.files.contains_key("rope_scaling.json"));
    // The table says what was gained at this length alone.
    let cells: Vec<(usize, String)> = short.table().into_iter().map(|cell| (cell.0, cell.1)).collect();
    assert_eq!(cells, ["none", "before", "recovered"].map(|name| (256, name.to_owned())));
    assert!(short.perplexity(256, "recovered") < short.perplexity(256, "before"));

    // The next one begins with the schedule of the first.
    let path = file(dir.path(), "schedule.json", &short.files["schedule.json"]);
    let middle = recover.with("--recover", &path).with("--length", "512").finish();
    assert_eq!(lengths(&schedule(&middle)), [256, 512, 1024]);
    assert_eq!(schedule(&middle).choose(256), schedule(&short).choose(256));
}

#[test]
fn a_search_begins_with_the_configurations_that_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let first = Flags::quick().with("--eval-windows", "0").finish();
    let path = file(dir.path(), "first.json", &first.files["rope_scaling.json"]);
    let flags = Flags::short().with("--eval-windows", "0").with("--start", &path);
    let again = flags.clone().with("--evaluations", "1").finish().history();
    let found = best(&first);
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0].factors, again[0].attention_factor), (&found.factors, found.attention_factor));
    assert_eq!(again[0].perplexity, found.perplexity);
    // Twice the context then, four times now: the factors squared, and then position interpolation.
    let longer = flags.with("--length", "1024").with("--evaluations", "2").finish().history();
    assert_eq!((longer.len(), &longer[1].factors), (2, &vec![4.0; 32]));
    let squares = longer[0].factors.iter().zip(&found.factors);
    assert!(
        squares.clone().all(|(start, found)| (start - (found * found).min(5.0)).abs() < 1e-9),
        "{squares:?}"
    );

    let other = file(dir.path(), "other.json", &first.files["rope_scaling.json"].replace("512", "300"));
    let error =
        Flags::short().with("--recover", &path).with("--length", "200").with("--start", &other).refused();
    assert!(error.contains("other.json: factors for 300 tokens are not valid"), "{error}");
}

#[test]
fn a_second_search_multiplies_the_factors_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = Flags::quick().with("--eval-windows", "0").finish();
    let path = file(dir.path(), "first.json", &first.files["rope_scaling.json"]);
    let flags = Flags::short().with("--multiply", &path).with("--length", "1024").with("--evaluations", "6");
    let second = flags.with("--eval-windows", "0").finish();
    let factors = |run: &Finished| {
        let config = RopeConfig::from_hf_json(&run.files["rope_scaling.json"]).unwrap();
        let Scaling::LongRope(longrope) = config.scaling() else { panic!("{config:?}") };
        (longrope.long_factor.clone(), config)
    };
    let ((earlier, _), (total, config)) = (factors(&first), factors(&second));
    let found = best(&second);
    for ((total, earlier), found) in total.iter().zip(&earlier).zip(&found.factors) {
        assert!((total - earlier * found).abs() < 1e-12 * total);
    }
    // Position interpolation by what is missing, not by the whole.
    assert_eq!(second.history()[0].factors, [2.0; 32]);

    // The value is the perplexity under the configuration that was written.
    let (model, tokenizer) = model::load(&data("models/tiny")).unwrap();
    let tokens = text::read_tokens(&data("texts/moby-dick-search.txt"), &tokenizer).unwrap();
    let sets = config.factor_sets(1024).unwrap();
    let expected = perplexity::perplexity(&model, &[&tokens[..1024]], &sets, SetChoice::Long).unwrap();
    assert!((found.perplexity / expected - 1.0).abs() < 1e-5, "{} is not {expected}", found.perplexity);

    // Without --length, eight times the context of the first.
    let message = Flags::quick().with("--multiply", &path).with("--length", "512").refused();
    assert_eq!(
        message,
        "--length: 512 is not valid; expected more than the 512 tokens that --multiply is for"
    );
}

#[test]
fn passkeys_are_an_objective() {
    let flags = Flags::short().with("--objective", "passkey").with("--evaluations", "5");
    let run = flags.with("--windows", "2").with("--eval-windows", "0").finish();
    let (model, tokenizer) = model::load(&data("models/tiny")).unwrap();
    let prompts = passkey::prompts(&tokenizer, 512, 2, 1, 1).unwrap();
    for row in run.history() {
        assert_eq!((row.windows, row.factors.len()), (2, 32));
        // Nobody guesses five digits: two are missed, and the loss makes the rest.
        assert!(row.perplexity > 1.0 && row.perplexity < 1.5, "{row:?}");
    }
    let config = RopeConfig::from_hf_json(&run.files["rope_scaling.json"]).unwrap();
    let sets = config.factor_sets(512).unwrap();
    let recalls: Vec<_> = prompts
        .iter()
        .map(|prompt| passkey::recall(&model, prompt, &sets, SetChoice::Long).unwrap())
        .collect();
    let expected = passkey::objective(&recalls);
    assert!((best(&run).perplexity / expected - 1.0).abs() < 1e-6);
    assert!(run.files["convergence.svg"].contains("best passkey value so far"));
    assert!(
        !run.files.contains_key("perplexity.csv") && !run.stdout.contains("Perplexity"),
        "{}",
        run.stdout
    );
}

#[test]
fn the_last_tokens_alone_may_count() {
    let (model, tokenizer) = model::load(&data("models/tiny")).unwrap();
    let tokens = text::read_tokens(&data("texts/moby-dick-search.txt"), &tokenizer).unwrap();
    let flags = Flags::short().with("--evaluations", "3").with("--eval-windows", "0");
    let run = flags.clone().with("--last", "100").finish();
    let config = RopeConfig::from_hf_json(&run.files["rope_scaling.json"]).unwrap();
    let losses = model.losses(&tokens[..512], &config.factor_sets(512).unwrap(), SetChoice::Long).unwrap();
    let expected = (losses[411..].iter().sum::<f64>() / 100.0).exp();
    assert!((best(&run).perplexity / expected - 1.0).abs() < 1e-5);
    // More than there are is all.
    let all = flags.clone().with("--last", "4096").finish();
    let values = |run: &Finished| run.history().iter().map(|row| row.perplexity).collect::<Vec<_>>();
    assert_eq!(values(&all), values(&flags.finish()));
}

#[test]
fn first_tokens_alone_are_tried_with_each_method() {
    let flags = Flags::short().with("--factors", "fixed").switch("--first-tokens");
    let rows = flags.with("--eval-windows", "0").finish().history();
    assert_eq!(rows.len(), 3 * 14);
    let allowed = [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256];
    for (method, rows) in rows.chunks(14).enumerate() {
        let tokens: Vec<u64> = rows.iter().map(|row| row.first_tokens).collect();
        assert_eq!(tokens, allowed, "{method}");
        assert!(rows.iter().all(|row| row.factors == rows[0].factors && row.iteration == 0));
    }
    let output =
        Flags::short().with("--factors", "fixed").run_in(&tempfile::tempdir().unwrap().path().join("x"));
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("--first-tokens"), "{}", output.stderr);
}

#[test]
fn factors_may_decrease_where_they_are_allowed_to() {
    let free = [Flags::quick().with("--monotone", "off"), Flags::paper().with("--monotone", "off")];
    for flags in free {
        let history = flags.with("--eval-windows", "0").finish().history();
        assert!(history.iter().any(|row| !row.factors.is_sorted()));
        assert!(history.iter().all(|row| row.factors.iter().all(|factor| (1.0..=2.5).contains(factor))));
    }
}

#[test]
fn the_largest_factor_is_what_was_asked_for() {
    let flags = Flags::paper().with("--maximum-ratio", "1").with("--eval-windows", "0");
    let history = flags.finish().history();
    let largest = history.iter().flat_map(|row| row.factors.clone()).fold(0.0, f64::max);
    assert_eq!(largest, 2.0);
}

#[test]
fn a_search_ends_after_the_evaluations_asked_for_and_goes_on_when_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags::paper().with("--eval-windows", "0");
    let part = flags.clone().with("--evaluations", "8").finish_in(dir.path());
    assert_eq!(part.history().len(), 8);
    let whole = flags.clone().switch("--resume").finish_in(dir.path());
    assert_eq!(whole.history().len(), 14);
    let untimed = |run: &Finished| run.history().iter().map(|row| row.perplexity).collect::<Vec<_>>();
    assert_eq!(untimed(&whole), untimed(&flags.finish()));
}

#[test]
fn a_checkpoint_of_another_purpose_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags::short().with("--evaluations", "4").with("--eval-windows", "0");
    flags.finish_in(dir.path());
    let resumed = flags.switch("--resume");
    for other in
        [resumed.clone().with("--last", "9"), resumed.with("--objective", "passkey").with("--windows", "1")]
    {
        let error = other.run_in(dir.path()).error();
        assert!(error.contains("made with another model, text, length"), "{error}");
    }
    let json: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("checkpoint.json")).unwrap()).unwrap();
    assert_eq!(json["search"]["history"].as_array().unwrap().len(), 4);
}
