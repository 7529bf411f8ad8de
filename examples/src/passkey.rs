//! Passkey retrieval: whether a model says a number that it read somewhere in a long text (LongRoPE, section 4 and appendix
//! A.1, after Landmark Attention).
//!
//! What is measured is the model's own choice at each token of the key, given the tokens before it (teacher forcing), which
//! takes one pass and no generation: a key is retrieved where each of its tokens has the greatest logit. Greedy decoding
//! would say exactly the same keys.

use anyhow::{Result, anyhow, ensure};
use longrope::scaling::{FactorSets, SetChoice};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use crate::model::Llama;

const TASK: &str = "Somewhere in the text below stands a pass key, between many lines that do not matter. Find it and \
                    keep it in mind. At the end you will be asked for it.";
/// What the key is hidden in, in an order drawn from a seed.
const FILLER: [&str; 12] = [
    " The river runs past the mill and down to the sea.",
    " A cart rolled slowly over the bridge.",
    " In the evening the wind turned to the north.",
    " The baker opens his shop before the sun is up.",
    " Two boats lay in the harbour, painted green and white.",
    " It had rained for most of the week.",
    " The road climbs between stone walls and old trees.",
    " Somebody had left a lamp burning in the kitchen.",
    " The geese went over the fields and were gone.",
    " Nobody knew who had planted the apple tree.",
    " The train was late, as it often was in winter.",
    " She closed the book and looked out of the window.",
];
const QUESTION: &str = " What is the pass key? The pass key is";

/// A text with a key, that ends with the key as the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The tokens, the answer's among them.
    pub tokens: Vec<u32>,
    /// How many of the last tokens are the answer.
    pub answer: usize,
    /// Where in the text the key stands: 0 at its beginning, 1 at its end.
    pub depth: f64,
    /// The key.
    pub key: u32,
}

/// What a model made of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Whether every token of the answer has the greatest logit.
    pub correct: bool,
    /// The mean negative log-likelihood of the answer's tokens, in nats.
    pub loss: f64,
}

/// `trials` prompts of `length` tokens for each of `depths` depths, which are spread evenly from 0 to 1 (one alone lies in the
/// middle). Keys have five digits. Equal arguments give equal prompts on every platform.
///
/// # Errors
/// A length too short for the task, the key and the question.
pub fn prompts(
    tokenizer: &Tokenizer,
    length: usize,
    depths: usize,
    trials: usize,
    seed: u64,
) -> Result<Vec<Prompt>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let depth = |i: usize| if depths < 2 { 0.5 } else { i as f64 / (depths - 1) as f64 };
    (0..depths * trials).map(|i| prompt(tokenizer, length, depth(i / trials), &mut rng)).collect()
}

fn prompt(tokenizer: &Tokenizer, length: usize, depth: f64, rng: &mut ChaCha8Rng) -> Result<Prompt> {
    let encode = |text: &str| -> Result<Vec<u32>> {
        let encoding = tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| anyhow!("the passkey prompt can't be tokenized: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    };
    let key: u32 = rng.random_range(10_000..100_000);
    let sentence = encode(&format!(" The pass key is {key}. Keep it in mind: {key} is the pass key."))?;
    let (task, question, answer) = (encode(TASK)?, encode(QUESTION)?, encode(&format!(" {key}"))?);
    let fixed = task.len() + sentence.len() + question.len() + answer.len();
    ensure!(
        length >= fixed,
        "a passkey prompt of {length} tokens is too short; expected at least {fixed}, for the task, the key and the question"
    );
    let room = length - fixed;
    let mut filler: Vec<u32> = Vec::new();
    // Where a sentence of the filler ends, counted from the end of all.
    let mut ends = Vec::new();
    while filler.len() < room {
        filler.extend(encode(FILLER[rng.random_range(0..FILLER.len())])?);
        ends.push(filler.len());
    }
    // The first sentence loses what is too much.
    let surplus = filler.len() - room;
    filler.drain(..surplus);
    let wanted = depth * room as f64;
    let places = std::iter::once(0).chain(ends.iter().map(|end| end.saturating_sub(surplus)));
    let place = places.min_by(|a, b| (*a as f64 - wanted).abs().total_cmp(&(*b as f64 - wanted).abs()));
    let (before, after) = filler.split_at(place.unwrap_or(0));
    let tokens = [&task, before, &sentence, after, &question, &answer].concat();
    Ok(Prompt { tokens, answer: answer.len(), depth, key })
}

/// Asks the model.
pub fn recall(model: &Llama, prompt: &Prompt, sets: &FactorSets, choice: SetChoice) -> Result<Recall> {
    let end = prompt.tokens.len() - 1;
    // The last token answers nothing.
    let hidden = model.hidden(&prompt.tokens[..end], sets, choice)?;
    let start = end - prompt.answer;
    let rows = model.logits(&hidden, start..end)?;
    let answer = &prompt.tokens[start + 1..];
    let (mut correct, mut loss) = (true, 0.0);
    for (logits, &token) in rows.iter().zip(answer) {
        let own = logits.get(token as usize).copied().map_or(f64::NAN, f64::from);
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        correct &= own >= largest;
        loss += largest + sum.ln() - own;
    }
    Ok(Recall { correct, loss: loss / prompt.answer as f64 })
}

/// One number for an optimiser, lower is better: `(missed + loss / (1 + loss)) / prompts`, from 0 to above 1, where `loss` is the mean
/// of all prompts in nats a token. Accuracy decides, since the second summand stays below 1; among equals the loss does, so
/// that there is a slope where every key is missed.
pub fn objective(recalls: &[Recall]) -> f64 {
    let count = recalls.len() as f64;
    let missed = recalls.iter().filter(|recall| !recall.correct).count() as f64;
    let loss = recalls.iter().map(|recall| recall.loss).sum::<f64>() / count;
    (missed + loss / (1.0 + loss)) / count
}

/// The share of keys that were retrieved.
pub fn accuracy(recalls: &[Recall]) -> f64 {
    recalls.iter().filter(|recall| recall.correct).count() as f64 / recalls.len() as f64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/tiny");

    #[test]
    fn a_prompt_has_its_length_and_its_key_at_its_depth() {
        let (_, tokenizer) = model::load(Path::new(TINY)).unwrap();
        let prompts = prompts(&tokenizer, 2048, 5, 2, 7).unwrap();
        assert_eq!(prompts.len(), 10);
        for (i, prompt) in prompts.iter().enumerate() {
            // A token is a byte.
            let bytes: Vec<u8> = prompt.tokens.iter().map(|&token| token as u8).collect();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.len(), 2048);
            assert_eq!(prompt.depth, (i / 2) as f64 / 4.0);
            assert!(text.starts_with(TASK) && text.ends_with(&format!("{QUESTION} {}", prompt.key)));
            assert_eq!(prompt.answer, 6);
            let place = text.find(&format!("is {}. Keep it in mind: {0} is", prompt.key)).unwrap();
            let share = (place - TASK.len()) as f64 / (2048 - TASK.len() - QUESTION.len()) as f64;
            assert!((share - prompt.depth).abs() < 0.06, "{share} for {}", prompt.depth);
            assert_eq!(text.matches(&prompt.key.to_string()).count(), 3);
        }
        assert_eq!(prompts, super::prompts(&tokenizer, 2048, 5, 2, 7).unwrap());
        assert_ne!(prompts, super::prompts(&tokenizer, 2048, 5, 2, 8).unwrap());
    }

    #[test]
    fn a_length_without_room_is_named() {
        let (_, tokenizer) = model::load(Path::new(TINY)).unwrap();
        let message = prompts(&tokenizer, 100, 1, 1, 0).unwrap_err().to_string();
        assert!(message.starts_with("a passkey prompt of 100 tokens is too short; expected at least "));
        let least: usize =
            message.split("at least ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert_eq!(prompts(&tokenizer, least, 1, 1, 0).unwrap()[0].tokens.len(), least);
        assert!(prompts(&tokenizer, least - 1, 1, 1, 0).is_err());
    }

    #[test]
    fn the_loss_is_that_of_the_answers_tokens() {
        let (model, tokenizer) = model::load(Path::new(TINY)).unwrap();
        let sets = model.config().rope.factor_sets(512).unwrap();
        for prompt in prompts(&tokenizer, 512, 2, 1, 3).unwrap() {
            let losses = model.last_losses(&prompt.tokens, prompt.answer, &sets, SetChoice::Long).unwrap();
            let expected = losses.iter().sum::<f64>() / 6.0;
            let recall = recall(&model, &prompt, &sets, SetChoice::Long).unwrap();
            assert!((recall.loss - expected).abs() < 1e-4, "{recall:?}, {expected}");
            assert!(!recall.correct, "nobody guesses five digits");
        }
    }

    #[test]
    fn a_key_that_the_model_says_itself_is_correct() {
        let (model, tokenizer) = model::load(Path::new(TINY)).unwrap();
        let sets = model.config().rope.factor_sets(512).unwrap();
        let mut prompt = prompts(&tokenizer, 400, 1, 1, 3).unwrap().remove(0);
        // Put the model's own choice in place of the answer, token by token.
        let start = prompt.tokens.len() - prompt.answer;
        for place in start..prompt.tokens.len() {
            let hidden = model.hidden(&prompt.tokens[..place], &sets, SetChoice::Long).unwrap();
            let logits = model.logits(&hidden, place - 1..place).unwrap().remove(0);
            let choice = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            prompt.tokens[place] = choice as u32;
        }
        assert!(recall(&model, &prompt, &sets, SetChoice::Long).unwrap().correct);
        *prompt.tokens.last_mut().unwrap() ^= 1;
        assert!(!recall(&model, &prompt, &sets, SetChoice::Long).unwrap().correct);
    }

    #[test]
    fn accuracy_decides_and_the_loss_breaks_ties() {
        let recall = |correct, loss| Recall { correct, loss };
        let better = [recall(true, 0.1), recall(false, 900.0)];
        let worse = [recall(false, 0.7), recall(false, 0.7)];
        assert!(objective(&better) < objective(&worse));
        assert!(objective(&worse) < objective(&[recall(false, 0.8), recall(false, 0.7)]));
        assert_eq!(objective(&[recall(true, 0.0)]), 0.0);
        assert_eq!(objective(&[recall(false, 1.0), recall(true, 1.0)]), 0.75);
        assert!(objective(&[recall(false, f64::NAN)]).is_nan());
        assert_eq!(accuracy(&better), 0.5);
    }
}
