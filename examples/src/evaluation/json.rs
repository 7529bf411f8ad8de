//! What was measured, for programs.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, Cell, Choices, Keys, Measured};
use crate::passkey;

/// What was measured, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// The path of the model.
    pub model: String,
    /// The folder of its adapter.
    pub adapter: Option<String>,
    /// Where it ran, and in which type.
    pub place: String,
    /// The attention that ran.
    pub attention: String,
    /// Tokens that went through it at a time.
    pub chunk: usize,
    /// Tokens that the methods are configured for.
    pub target: usize,
}

/// The description with a list of what was measured.
fn with(described: &Described, name: &str, measured: Vec<Value>) -> Result<String> {
    let mut json = serde_json::to_value(described)?;
    json[name] = Value::Array(measured);
    Ok(serde_json::to_string_pretty(&json)? + "\n")
}

/// Perplexities: an entry a length and method, with all windows. What is no number is null.
pub fn perplexities_json(described: &Described, cells: &[Cell]) -> Result<String> {
    let window = |window: &Measured| {
        let Measured { text, start, loss, seconds } = window;
        json!({ "text": text, "start": start, "loss": loss, "seconds": seconds })
    };
    let cell = |cell: &Cell| {
        json!({
            "length": cell.length,
            "method": cell.method,
            "perplexity": cell.perplexity(),
            "standard_error": cell.standard_error(),
            "seconds": cell.seconds(),
            "windows": cell.windows.iter().map(window).collect::<Vec<_>>(),
        })
    };
    with(described, "perplexities", cells.iter().map(cell).collect())
}

/// Passkeys: an entry a length, method and depth, with all prompts.
pub fn passkeys_json(described: &Described, keys: &[Keys]) -> Result<String> {
    let entry = |keys: &Keys| {
        let recalls =
            keys.recalls.iter().map(|recall| json!({ "correct": recall.correct, "loss": recall.loss }));
        json!({
            "length": keys.length,
            "method": keys.method,
            "depth": keys.depth,
            "accuracy": passkey::accuracy(&keys.recalls),
            "prompts": recalls.collect::<Vec<_>>(),
        })
    };
    with(described, "passkeys", keys.iter().map(entry).collect())
}

/// What follows passages: an entry a length and method, with all questions; the first loss of each is that of the right option.
pub fn choices_json(described: &Described, choices: &[Choices]) -> Result<String> {
    let question = |answer: &Answer| {
        let Answer { text, start, losses } = answer;
        json!({ "text": text, "start": start, "right": answer.is_right(), "losses": losses })
    };
    let entry = |choices: &Choices| {
        json!({
            "length": choices.length,
            "method": choices.method,
            "accuracy": choices.accuracy(),
            "standard_error": choices.standard_error(),
            "questions": choices.answers.iter().map(question).collect::<Vec<_>>(),
        })
    };
    with(described, "choices", choices.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_window_has_no_error_and_that_is_null() {
        let described = Described {
            model: "m".into(),
            adapter: None,
            place: "on the CPU in f32".into(),
            attention: "fused".into(),
            chunk: 8,
            target: 16,
        };
        let windows = vec![Measured { text: "t".into(), start: 3, loss: 0.0, seconds: 0.5 }];
        let cells = [Cell { length: 8, method: "PI".into(), windows }];
        let json: Value = serde_json::from_str(&perplexities_json(&described, &cells).unwrap()).unwrap();
        assert_eq!(
            (&json["model"], &json["adapter"], &json["target"]),
            (&json!("m"), &Value::Null, &json!(16))
        );
        let entry = &json["perplexities"][0];
        assert_eq!((&entry["perplexity"], &entry["standard_error"]), (&json!(1.0), &Value::Null));
        assert_eq!(entry["windows"], json!([{ "text": "t", "start": 3, "loss": 0.0, "seconds": 0.5 }]));
    }
}
