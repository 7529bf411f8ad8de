//! The default optimiser: generations of a separable CMA-ES, made of the values of those before.

use rand::{Rng, RngExt};

use super::candidate::{Candidate, Evaluation, rank};
use super::cma::SeparableCma;
use super::coding::Coding;
use super::nursery::Nursery;
use super::optimiser::CmaEs;

/// So many samples in a row that are known already end a generation: the distribution has shrunk to what it has seen.
const SAMPLE_TRIES: usize = 1000;

/// The state between two generations.
#[derive(Debug, Clone, Default)]
pub(super) struct Adaptation {
    /// `None` until the seeds are evaluated.
    distribution: Option<Distribution>,
    /// What each candidate of the newest generation is: a sample of the distribution, or `None` for one that was made
    /// beside it. In the order of the history.
    samples: Vec<Option<Vec<f64>>>,
}

#[derive(Debug, Clone)]
struct Distribution {
    coding: Coding,
    cma: SeparableCma,
}

impl Adaptation {
    /// The generation after `history`: the mean, the samples, and a trial of another number of first tokens. Empty where
    /// the evaluations are spent or nothing new can be made.
    ///
    /// The mean is no sample, and the distribution does not move by its value. But what is good by chance averages out in
    /// it, and so it is often better than every sample.
    pub(super) fn next(
        &mut self,
        settings: &CmaEs,
        best: &Candidate,
        history: &[Evaluation],
        nursery: &mut Nursery<'_, impl Rng>,
    ) -> Vec<Candidate> {
        let samples = std::mem::take(&mut self.samples);
        let Distribution { coding, cma } = self.distribution.get_or_insert_with(|| {
            let (coding, mean) = Coding::around(nursery.space, best, settings.attention_factor);
            let deviations = vec![1.0; mean.len()];
            Distribution { coding, cma: SeparableCma::new(mean, &deviations, settings.step_size) }
        });
        let newest = &history[history.len().saturating_sub(samples.len())..];
        let mut valued: Vec<(&[f64], f64)> = samples
            .iter()
            .zip(newest)
            .filter_map(|(sample, evaluation)| Some((sample.as_deref()?, evaluation.value)))
            .collect();
        valued.sort_by(|a, b| rank(a.1, b.1));
        // Where no value is finite, their order tells nothing.
        if valued.first().is_some_and(|(_, value)| value.is_finite()) {
            cma.update(&valued.iter().map(|(sample, _)| *sample).collect::<Vec<_>>());
        }

        let mut made = Vec::new();
        let mean = coding.decode(nursery.space, cma.mean(), best.first_tokens);
        if nursery.admit(&mean) {
            made.push((mean, None));
        }
        for _ in 0..cma.samples() {
            let drawn = (0..SAMPLE_TRIES).find_map(|_| {
                let sample = cma.sample(nursery.rng);
                let candidate = coding.decode(nursery.space, &sample, best.first_tokens);
                nursery.admit(&candidate).then_some((candidate, Some(sample)))
            });
            let Some(drawn) = drawn else { break };
            made.push(drawn);
        }
        made.extend(trial(settings, best, nursery).map(|trial| (trial, None)));
        made.truncate(settings.evaluations.saturating_sub(history.len()));
        let (made, samples) = made.into_iter().unzip();
        self.samples = samples;
        made
    }
}

/// The best candidate with another allowed number of first tokens that was not tried with it, each as likely as another.
/// So few are allowed that a coordinate for them would spend more evaluations.
fn trial(settings: &CmaEs, best: &Candidate, nursery: &mut Nursery<'_, impl Rng>) -> Option<Candidate> {
    let trials = settings.first_tokens.iter().map(|&first_tokens| Candidate { first_tokens, ..best.clone() });
    let mut untried: Vec<Candidate> = trials.filter(|trial| !nursery.known.contains(&trial.key())).collect();
    if untried.is_empty() || settings.first_tokens.len() < 2 {
        return None;
    }
    let trial = untried.swap_remove(nursery.rng.random_range(0..untried.len()));
    nursery.admit(&trial);
    Some(trial)
}
