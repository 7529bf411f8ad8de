//! What a model takes to follow a passage, by method and length.

use std::fmt::Write as _;

use anyhow::Result;
use longrope::scaling::SetChoice;

use super::{Method, Record};
use crate::choices::{ANSWER, OPTIONS, Question};
use crate::model::Llama;
use crate::perplexity::mean_last_loss;

/// A method that was asked at a length.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// Tokens of a question.
    pub length: usize,
    /// The method's name.
    pub method: String,
    /// What it made of each question.
    pub answers: Vec<Answer>,
}

/// What a method made of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The question's text.
    pub text: String,
    /// Its first token's place in the text.
    pub start: usize,
    /// The mean loss of each option's tokens, in nats; the first one is right.
    pub losses: Vec<f64>,
}

impl Answer {
    /// Whether the right option has the lowest loss.
    pub fn is_right(&self) -> bool {
        self.losses.iter().skip(1).all(|&wrong| self.losses[0] < wrong)
    }
}

impl Choices {
    /// The share of questions that were answered right.
    pub fn accuracy(&self) -> f64 {
        self.answers.iter().filter(|answer| answer.is_right()).count() as f64 / self.answers.len() as f64
    }

    /// The standard error of the share.
    pub fn standard_error(&self) -> f64 {
        let accuracy = self.accuracy();
        (accuracy * (1.0 - accuracy) / self.answers.len() as f64).sqrt()
    }

    /// The mean loss of the right options' tokens, in nats.
    pub fn loss(&self) -> f64 {
        self.answers.iter().map(|answer| answer.losses[0]).sum::<f64>() / self.answers.len() as f64
    }
}

/// Asks every question under every method; the questions of a length follow each other. What `record` holds is not measured
/// again.
pub fn measure_choices(
    model: &Llama,
    methods: &[(String, Method)],
    questions: &[Vec<Question<'_>>],
    record: &mut Record,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Choices>> {
    let (mut found, mut done) = (Vec::new(), 0);
    for questions in questions {
        let length = questions.first().map_or(0, |question| question.window.tokens.len());
        for (name, method) in methods {
            let (sets, choice) = (method.factor_sets(length as u64)?, SetChoice::ByLength(length as u64));
            let mut answers = Vec::new();
            for question in questions {
                let mut losses = Vec::new();
                for option in &question.options {
                    let last = Some(ANSWER);
                    let key = record.key(option, &sets, &format!("{last:?}"));
                    losses
                        .push(record.measured(key, || mean_last_loss(model, option, last, &sets, choice))?.0);
                }
                let (text, start) = (question.window.text.to_owned(), question.window.start);
                answers.push(Answer { text, start, losses });
                done += 1;
                progress(done);
            }
            found.push(Choices { length, method: name.clone(), answers });
        }
    }
    Ok(found)
}

/// A table for a terminal: a row a length and method.
pub fn choices_text(choices: &[Choices]) -> String {
    let mut text = format!("{:>9} {:<16}{:>18}{:>8}\n", "length", "method", "right", "loss");
    for cell in choices {
        let share = format!("{:.1} ± {:.1} %", 100.0 * cell.accuracy(), 100.0 * cell.standard_error());
        writeln!(text, "{:>9} {:<16}{share:>18}{:>8.3}", cell.length, cell.method, cell.loss())
            .unwrap_or_default();
    }
    text
}

/// A row a question: whether it was answered right, and the losses of its options, the right one's first.
pub fn choices_csv(choices: &[Choices]) -> String {
    let mut csv = "length,method,text,start,right".to_owned();
    (0..OPTIONS).for_each(|option| write!(csv, ",loss_{option}").unwrap_or_default());
    csv.push('\n');
    for Choices { length, method, answers } in choices {
        for answer in answers {
            let Answer { text, start, losses } = answer;
            write!(csv, "{length},{method},{text},{start},{}", u8::from(answer.is_right()))
                .unwrap_or_default();
            losses.iter().for_each(|loss| write!(csv, ",{loss}").unwrap_or_default());
            csv.push('\n');
        }
    }
    csv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_has_its_standard_error_and_ties_are_wrong() {
        let answer = |losses: [f64; 4]| Answer { text: "t".into(), start: 5, losses: losses.to_vec() };
        let right = answer([1.0, 2.0, 3.0, 4.0]);
        let cell = Choices {
            length: 512,
            method: "PI".into(),
            answers: vec![right.clone(), answer([2.0, 2.0, 3.0, 4.0]), right, answer([4.0, 5.0, 3.0, 6.0])],
        };
        assert_eq!((cell.accuracy(), cell.standard_error(), cell.loss()), (0.5, 0.25, 2.0));
        let cells = [cell];
        let text = choices_text(&cells);
        assert!(text.ends_with("50.0 ± 25.0 %   2.000\n") && text.contains("  512 PI  "), "{text}");
        let csv = choices_csv(&cells);
        assert_eq!(csv.lines().next(), Some("length,method,text,start,right,loss_0,loss_1,loss_2,loss_3"));
        assert_eq!(csv.lines().nth(2), Some("512,PI,t,5,0,2,2,3,4"));
    }
}
