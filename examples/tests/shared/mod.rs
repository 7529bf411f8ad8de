//! What several test programs share. Each compiles it for itself, so each uses all of it.

mod paths;

use longrope::scaling::{FactorSets, RopeConfig, SetChoice};
use longrope_drivers::model::Llama;
pub use paths::repository;
use serde::Deserialize;
use serde_json::Value;

/// Logits that transformers computed (`scripts/golden/README.md`).
#[derive(Deserialize)]
pub struct Golden {
    pub model_sha256: String,
    pub prompt_ids: Vec<u32>,
    vocab_ids: Vec<usize>,
    pub cases: Vec<Case>,
}

/// A configuration, and the logits of a prompt under it.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub config: Value,
    pub n_tokens: usize,
    mean_nll: f64,
    positions: Vec<usize>,
    argmax: Vec<usize>,
    argmax_margin: Vec<f64>,
    log_sum_exp: Vec<f64>,
    logits: Vec<Vec<f64>>,
}

/// How far a model is from a case, at most.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    pub logit: f64,
    pub log_sum_exp: f64,
    pub mean_nll: f64,
    /// Positions whose greatest logit is that of another token, ties left out.
    pub other_argmax: usize,
}

impl Distance {
    /// Float32 on both sides: transformers' own distance from float64 is up to 7e-5, 4e-7 for the mean.
    pub const ALLOWED: Self = Self { logit: 5e-4, log_sum_exp: 1e-4, mean_nll: 1e-5, other_argmax: 0 };

    pub fn is_allowed(&self) -> bool {
        let allowed = Self::ALLOWED;
        self.logit <= allowed.logit
            && self.log_sum_exp <= allowed.log_sum_exp
            && self.mean_nll <= allowed.mean_nll
            && self.other_argmax == allowed.other_argmax
    }
}

impl Golden {
    /// Reads the text of a golden file.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).expect("a golden file")
    }

    /// The case of this name.
    pub fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
    }

    /// Runs the model on the prompt of a case and compares.
    pub fn distance(&self, model: &Llama, case: &Case, sets: &FactorSets, choice: SetChoice) -> Distance {
        let prompt = &self.prompt_ids[..case.n_tokens];
        let hidden = model.hidden(prompt, sets, choice).unwrap();
        let mut distance = Distance { logit: 0.0, log_sum_exp: 0.0, mean_nll: 0.0, other_argmax: 0 };
        assert_eq!(case.positions.len(), case.logits.len(), "{}", case.name);
        for (i, &position) in case.positions.iter().enumerate() {
            let found = model.logits(&hidden, position..position + 1).unwrap().remove(0);
            assert_eq!(self.vocab_ids.len(), case.logits[i].len(), "{}", case.name);
            for (&id, expected) in self.vocab_ids.iter().zip(&case.logits[i]) {
                distance.logit = larger(distance.logit, f64::from(found[id]) - expected);
            }
            distance.log_sum_exp = larger(distance.log_sum_exp, log_sum_exp(&found) - case.log_sum_exp[i]);
            let argmax = (0..found.len()).max_by(|&a, &b| found[a].total_cmp(&found[b])).unwrap();
            let tie = case.argmax_margin[i] <= 2.0 * Distance::ALLOWED.logit;
            distance.other_argmax += usize::from(argmax != case.argmax[i] && !tie);
        }
        let losses = model.losses(prompt, sets, choice).unwrap();
        assert_eq!(losses.len(), prompt.len() - 1);
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        distance.mean_nll = larger(0.0, mean - case.mean_nll);
        distance
    }

    /// As [`Golden::distance`], by the rotary embedding of a configuration, with its exact phase and in parity with
    /// transformers' f32 angle.
    pub fn exact_and_parity(&self, model: &Llama, case: &Case, rope: &RopeConfig) -> [(&str, Distance); 2] {
        let length = case.n_tokens as u64;
        [("exact", rope.factor_sets(length)), ("parity", rope.parity_sets(length))].map(|(name, sets)| {
            (name, self.distance(model, case, &sets.unwrap(), SetChoice::ByLength(length)))
        })
    }
}

/// The natural logarithm of the sum of exponentials, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln()
}

/// The larger of `a` and the absolute value of `b`; NaN where `b` is.
fn larger(a: f64, b: f64) -> f64 {
    match b.is_nan() || a.is_nan() {
        true => f64::NAN,
        false => a.max(b.abs()),
    }
}
