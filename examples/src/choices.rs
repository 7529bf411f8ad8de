//! What follows a passage: whether a model prefers the words that stand there to others of the same text. A check of what a model
//! can do in short contexts, before its factors or weights change and after.
//!
//! As in multiple-choice benchmarks the option with the lowest mean loss is the model's choice. The wrong ones are as long, and by
//! the same author, so that style alone does not tell them from the right one.

use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::corpus::{self, Window};

/// Tokens of an option.
pub const ANSWER: usize = 16;
/// Options of a question. A guess is right once in so many times.
pub const OPTIONS: usize = 4;

/// A passage, and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<'a> {
    /// Where it stands, the right option included.
    pub window: Window<'a>,
    /// The whole passage with each option; the first one is right.
    pub options: Vec<Vec<u32>>,
}

/// `count` questions of `length` tokens, options included, which share no token; the wrong options are drawn from the rest of the
/// text. Equal arguments give equal questions on every platform.
///
/// # Errors
/// Texts that are too short, or a length of nothing but the option.
pub fn questions<'a>(
    texts: &'a [(String, Vec<u32>)],
    length: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<Question<'a>>> {
    ensure!(
        length > ANSWER,
        "a question of {length} tokens is too short; expected more than {ANSWER}, those of an option"
    );
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let question = |window: Window<'a>| {
        let text = texts.iter().find(|(name, _)| name == window.text).map_or(&[][..], |(_, tokens)| tokens);
        let (before, after) = (window.start, text.len() - window.start - length);
        // Places where an option ends before the window, and where it begins after it.
        let places = [before, after].map(|tokens| (tokens + 1).saturating_sub(ANSWER));
        let all = places[0] + places[1];
        ensure!(
            all > 0,
            "{}: {} tokens are too few for a question of {length} and other options of {ANSWER}",
            window.text,
            text.len()
        );
        let right = &window.tokens[length - ANSWER..];
        let mut options = vec![window.tokens.to_vec()];
        for _ in 1..OPTIONS {
            let place = rng.random_range(0..all);
            let start = if place < places[0] { place } else { window.start + length + place - places[0] };
            let wrong = &text[start..start + ANSWER];
            // The same words stand elsewhere too, in a refrain: then any other place will do.
            let wrong = match wrong == right {
                true => &text[(start + ANSWER) % (text.len() - ANSWER)..][..ANSWER],
                false => wrong,
            };
            options.push([&window.tokens[..length - ANSWER], wrong].concat());
        }
        Ok(Question { window, options })
    };
    corpus::windows(texts, length, count)?.into_iter().map(question).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_option_is_what_stands_there_and_the_others_stand_elsewhere() {
        let texts =
            [("a".to_owned(), (0..200).collect::<Vec<u32>>()), ("b".to_owned(), (300..440).collect())];
        let found = questions(&texts, 40, 6, 3).unwrap();
        assert_eq!(found, questions(&texts, 40, 6, 3).unwrap());
        assert_ne!(found, questions(&texts, 40, 6, 4).unwrap());
        for question in &found {
            assert_eq!(question.options.len(), OPTIONS);
            assert_eq!(question.options[0], question.window.tokens);
            for option in &question.options[1..] {
                let (passage, answer) = option.split_at(40 - ANSWER);
                assert_eq!(passage, &question.window.tokens[..40 - ANSWER]);
                // Consecutive, of the same text, and none of the window's.
                assert!(answer.windows(2).all(|pair| pair[1] == pair[0] + 1));
                assert_eq!(answer[0] < 200, question.window.text == "a");
                assert!(answer.iter().all(|token| !question.window.tokens.contains(token)));
            }
        }
    }

    #[test]
    fn what_is_too_short_is_named() {
        let texts = [("a".to_owned(), (0..50).collect::<Vec<u32>>())];
        let message = |length| questions(&texts, length, 1, 0).unwrap_err().to_string();
        assert_eq!(
            message(16),
            "a question of 16 tokens is too short; expected more than 16, those of an option"
        );
        assert_eq!(message(40), "a: 50 tokens are too few for a question of 40 and other options of 16");
        assert!(message(60).contains("windows of 60 tokens"));
        assert!(questions(&texts, 34, 1, 0).is_ok());
    }
}
