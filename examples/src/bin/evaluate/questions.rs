//! What is asked of a model beside perplexity.

use anyhow::Result;
use longrope_drivers::{choices, evaluation, passkey};

use super::Job;

/// The prompts of every run are the same, and others than those of a search.
const PASSKEY_SEED: u64 = 0;
/// Likewise the wrong options.
const CHOICES_SEED: u64 = 0;

impl Job<'_> {
    /// Asks for the keys that stand in long prompts.
    pub(super) fn passkeys(&mut self, trials: usize) -> Result<()> {
        let depths = self.arguments.depths;
        let prompts = self
            .lengths
            .iter()
            .map(|&length| passkey::prompts(&self.tokenizer, length, depths, trials, PASSKEY_SEED))
            .collect::<Result<Vec<_>>>()?;
        let planned = prompts.len() * self.methods.len() * depths * trials;
        let progress = self.begin(planned)?;
        let keys =
            evaluation::measure_passkeys(&self.model, &self.methods, &prompts, &mut self.record, |done| {
                progress.update(done, planned, f64::NAN)
            });
        self.end(&progress, keys.is_err())?;
        let keys = keys?;
        let mut summary = format!(
            "Passkeys of {}: {trials} a length and depth, share retrieved (mean loss of their tokens).\nMethods are \
             configured for {} tokens.\n\n{}{}",
            self.name()?,
            self.target,
            evaluation::passkeys_text(&keys),
            self.place.memory_line(self.memory_before),
        );
        if self.arguments.timing {
            let first = prompts.iter().filter_map(|prompts| Some(prompts.first()?.tokens.as_slice()));
            summary += &self.split(&first.collect::<Vec<_>>())?;
        }
        self.finish(
            &summary,
            &[
                ("passkeys.txt", &summary),
                ("passkeys.csv", &evaluation::passkeys_csv(&keys)),
                ("passkeys.json", &evaluation::passkeys_json(&self.described(), &keys)?),
                ("passkeys.svg", &evaluation::passkeys_svg(&keys)?),
            ],
        )
    }

    /// Asks what follows passages of the texts.
    pub(super) fn choices(&mut self, texts: &[(String, Vec<u32>)], count: usize) -> Result<()> {
        let questions = self
            .lengths
            .iter()
            .map(|&length| choices::questions(texts, length, count, CHOICES_SEED))
            .collect::<Result<Vec<_>>>()?;
        let planned = questions.len() * self.methods.len() * count;
        let progress = self.begin(planned)?;
        let found =
            evaluation::measure_choices(&self.model, &self.methods, &questions, &mut self.record, |done| {
                progress.update(done, planned, f64::NAN)
            });
        self.end(&progress, found.is_err())?;
        let found = found?;
        let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
        let summary = format!(
            "What follows a passage of {}, by {}: {count} questions a length, one option of {} right, of {} tokens each\n\
             (share answered right ± standard error, and the loss of the right options' tokens).\nMethods are configured \
             for {} tokens.\n\n{}{}",
            names.join(", "),
            self.name()?,
            choices::OPTIONS,
            choices::ANSWER,
            self.target,
            evaluation::choices_text(&found),
            self.place.memory_line(self.memory_before),
        );
        self.finish(
            &summary,
            &[
                ("choices.txt", &summary),
                ("choices.csv", &evaluation::choices_csv(&found)),
                ("choices.json", &evaluation::choices_json(&self.described(), &found)?),
            ],
        )
    }
}
