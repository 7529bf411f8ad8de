//! The default optimiser: generations of a separable CMA-ES, made of the values of those before.

use rand::{Rng, RngExt};

use super::candidate::{Candidate, Evaluation, rank};
use super::cma::SeparableCma;
use super::coding::Coding;
use super::nursery::Nursery;
use super::optimiser::CmaEs;

/// So many samples in a row that are known already end the search: the distribution has shrunk to what it has seen.
const SAMPLE_TRIES: usize = 1000;

/// The state between two generations.
#[derive(Debug, Clone)]
pub(super) struct Adaptation {
    coding: Coding,
    /// `None` until the seeds are evaluated.
    cma: Option<SeparableCma>,
    /// What each candidate of the newest generation is: a sample of the distribution, or `None` for one that was made
    /// beside it. In the order of the history.
    samples: Vec<Option<Vec<f64>>>,
}

impl Adaptation {
    pub(super) fn new(settings: &CmaEs) -> Self {
        let coding = Coding { attention_start: settings.attention_factor };
        Self { coding, cma: None, samples: Vec::new() }
    }

    /// The generation after `history`: the mean, the samples, and a trial of another number of first tokens. Empty where
    /// the evaluations are spent or nothing new can be made.
    pub(super) fn next(
        &mut self,
        settings: &CmaEs,
        seeds: &[Candidate],
        best: Option<&Evaluation>,
        history: &[Evaluation],
        nursery: &mut Nursery<'_, impl Rng>,
    ) -> Vec<Candidate> {
        let best = best.map_or(&seeds[0], |best| &best.candidate);
        let cma = match &mut self.cma {
            Some(cma) => {
                let newest = &history[history.len().saturating_sub(self.samples.len())..];
                let samples = self.samples.iter().zip(newest);
                let mut valued: Vec<(&[f64], f64)> = samples
                    .filter_map(|(sample, evaluation)| Some((sample.as_deref()?, evaluation.value)))
                    .collect();
                valued.sort_by(|a, b| rank(a.1, b.1));
                // Values that are not finite do not tell where to go.
                if valued.first().is_some_and(|(_, value)| value.is_finite()) {
                    cma.update(&valued.iter().map(|(sample, _)| *sample).collect::<Vec<_>>());
                }
                cma
            }
            None => {
                let mean = self.coding.encode(nursery.space, best);
                let deviations = vec![1.0; mean.len()];
                self.cma.insert(SeparableCma::new(mean, &deviations, settings.step_size))
            }
        };

        let (mut made, mut samples) = (Vec::new(), Vec::new());
        let mean = self.coding.decode(nursery.space, cma.mean(), best.first_tokens);
        if nursery.admit(&mean) {
            made.push(mean);
            samples.push(None);
        }
        for _ in 0..cma.samples() {
            let drawn = (0..SAMPLE_TRIES).find_map(|_| {
                let sample = cma.sample(nursery.rng);
                let candidate = self.coding.decode(nursery.space, &sample, best.first_tokens);
                nursery.admit(&candidate).then_some((candidate, sample))
            });
            let Some((candidate, sample)) = drawn else { break };
            made.push(candidate);
            samples.push(Some(sample));
        }
        // Few values are allowed, and a sample would spend its evaluation on the factors as well.
        let untried: Vec<Candidate> = (settings.first_tokens.iter())
            .map(|&first_tokens| Candidate { first_tokens, ..best.clone() })
            .filter(|trial| !nursery.known.contains(&trial.key()))
            .collect();
        if settings.first_tokens.len() > 1 && !untried.is_empty() {
            let trial = untried[nursery.rng.random_range(0..untried.len())].clone();
            nursery.admit(&trial);
            made.push(trial);
            samples.push(None);
        }
        made.truncate(settings.evaluations.saturating_sub(history.len()));
        samples.truncate(made.len());
        self.samples = samples;
        made
    }
}
