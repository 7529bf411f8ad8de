//! Passkeys by method, length and depth.

use std::fmt::Write as _;

use anyhow::Result;
use longrope::scaling::SetChoice;

use super::{Method, Record};
use crate::model::Llama;
use crate::passkey::{self, Prompt, Recall};

/// What a method retrieved at a length and a depth.
#[derive(Debug, Clone, PartialEq)]
pub struct Keys {
    /// Tokens of a prompt.
    pub length: usize,
    /// The method's name.
    pub method: String,
    /// Where the key stands: 0 at the beginning, 1 at the end.
    pub depth: f64,
    /// One a prompt.
    pub recalls: Vec<Recall>,
}

/// Asks for every prompt under every method; the prompts of a length follow each other, and those of a depth. What `record`
/// holds is not measured again.
pub fn measure_passkeys(
    model: &Llama,
    methods: &[(String, Method)],
    prompts: &[Vec<Prompt>],
    record: &mut Record,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Keys>> {
    let (mut found, mut done): (Vec<Keys>, usize) = (Vec::new(), 0);
    for prompts in prompts {
        for (name, method) in methods {
            for prompt in prompts {
                let length = prompt.tokens.len();
                let (sets, choice) = (method.factor_sets(length as u64)?, SetChoice::ByLength(length as u64));
                let key = record.key(&prompt.tokens, &sets, &format!("passkey of {}", prompt.answer));
                let (loss, correct) = record.recalled(key, || {
                    let recall = passkey::recall(model, prompt, &sets, choice)?;
                    Ok((recall.loss, recall.correct))
                })?;
                let recall = Recall { correct, loss };
                match found.last_mut() {
                    Some(keys)
                        if keys.length == length && keys.method == *name && keys.depth == prompt.depth =>
                    {
                        keys.recalls.push(recall);
                    }
                    _ => found.push(Keys {
                        length,
                        method: name.clone(),
                        depth: prompt.depth,
                        recalls: vec![recall],
                    }),
                }
                done += 1;
                progress(done);
            }
        }
    }
    Ok(found)
}

/// A table for a terminal: a row a length and method, a column a depth. The share of keys retrieved, and the mean loss of
/// their tokens in nats.
pub fn passkeys_text(keys: &[Keys]) -> String {
    let mut text = String::new();
    let same = |a: &Keys, b: &Keys| a.length == b.length && a.method == b.method;
    let first = keys.first().map_or(0, |first| keys.iter().filter(|other| same(first, other)).count());
    write!(text, "{:>9} {:<16}", "length", "method").unwrap_or_default();
    for keys in &keys[..first] {
        write!(text, "{:>15}", format!("depth {:.0} %", 100.0 * keys.depth)).unwrap_or_default();
    }
    for (i, cell) in keys.iter().enumerate() {
        if i == 0 || !same(cell, &keys[i - 1]) {
            write!(text, "\n{:>9} {:<16}", cell.length, cell.method).unwrap_or_default();
        }
        let value = format!("{:.0} % ({:.2})", 100.0 * passkey::accuracy(&cell.recalls), loss(cell));
        write!(text, "{value:>15}").unwrap_or_default();
    }
    text + "\n"
}

/// A row a length, method and depth.
pub fn passkeys_csv(keys: &[Keys]) -> String {
    let mut csv = "length,method,depth,prompts,accuracy,loss\n".to_owned();
    for cell in keys {
        let Keys { length, method, depth, recalls } = cell;
        let accuracy = passkey::accuracy(recalls);
        writeln!(csv, "{length},{method},{depth},{},{accuracy},{}", recalls.len(), loss(cell))
            .unwrap_or_default();
    }
    csv
}

fn loss(keys: &Keys) -> f64 {
    keys.recalls.iter().map(|recall| recall.loss).sum::<f64>() / keys.recalls.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_a_cell_a_depth() {
        let keys = |length, depth, recalls: &[(bool, f64)]| Keys {
            length,
            method: "PI".into(),
            depth,
            recalls: recalls.iter().map(|&(correct, loss)| Recall { correct, loss }).collect(),
        };
        let found = [
            keys(512, 0.0, &[(true, 0.5), (false, 1.5)]),
            keys(512, 1.0, &[(true, 0.25)]),
            keys(1024, 0.0, &[(false, 4.0)]),
            keys(1024, 1.0, &[(false, 5.0)]),
        ];
        let text = passkeys_text(&found);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("depth 0 %") && lines[0].ends_with("depth 100 %"), "{text}");
        assert!(lines[1].contains("50 % (1.00)") && lines[1].ends_with("100 % (0.25)"), "{text}");
        assert_eq!(passkeys_csv(&found).lines().nth(1), Some("512,PI,0,2,0.5,1"));
    }
}
