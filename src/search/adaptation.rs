//! The default optimiser: generations of a separable CMA-ES, made of the values of those before.

use std::collections::HashSet;

use rand::{Rng, RngExt};

use super::candidate::{Candidate, Evaluation, rank};
use super::cma::SeparableCma;
use super::coding::Coding;
use super::nursery::Nursery;
use super::optimiser::CmaEs;
use super::surrogate::Surrogate;

/// So many samples in a row that are known already end a generation: the distribution has shrunk to what it has seen.
const SAMPLE_TRIES: usize = 1000;

/// Samples of a generation at the most, however often the search began again.
const MAXIMUM_SAMPLES: usize = 1024;

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
    /// The iteration before its first generation.
    begun: usize,
}

impl Adaptation {
    /// The generation after `history`: the mean, the samples, and a trial of another number of first tokens. Empty where
    /// the evaluations are spent or nothing new can be made. `best`: the best candidate, and the iteration that made it.
    ///
    /// The mean is no sample, and the distribution does not move by its value. But what is good by chance averages out in
    /// it, and so it is often better than every sample.
    pub(super) fn next(
        &mut self,
        settings: &CmaEs,
        (best, improved): (&Candidate, usize),
        history: &[Evaluation],
        nursery: &mut Nursery<'_, impl Rng>,
    ) -> Vec<Candidate> {
        let left = settings.evaluations.saturating_sub(history.len());
        let samples = std::mem::take(&mut self.samples);
        let iteration = history.last().map_or(0, |newest| newest.iteration);
        let distribution =
            self.distribution.get_or_insert_with(|| Distribution::around(best, settings, iteration, nursery));
        distribution.learn(&samples, history);

        // That the distribution has converged to a point of the grid is not asked: samples that are known are drawn again, which
        // keeps it as wide as what is new, and where it finds no better candidate there it stagnates.
        let stagnates = settings
            .restarts
            .is_some_and(|generations| iteration - improved.max(distribution.begun) >= generations);
        if stagnates {
            distribution.restart(best, settings, (iteration, left), nursery);
        }
        let surrogate = settings.surrogate.and_then(|samples_each| {
            Some((Surrogate::fit(history, settings.attention_factor)?, samples_each))
        });
        let mut made = distribution.generation(best, surrogate.as_ref(), nursery);
        made.extend(trial(settings, best, nursery).map(|trial| (trial, None)));
        made.truncate(left);
        let (made, samples) = made.into_iter().unzip();
        self.samples = samples;
        made
    }
}

impl Distribution {
    /// One around `best`, as wide as the settings have it.
    fn around(best: &Candidate, settings: &CmaEs, iteration: usize, nursery: &Nursery<'_, impl Rng>) -> Self {
        let (coding, mean) = Coding::around(nursery.space, best, settings.attention_factor);
        let deviations = vec![1.0; mean.len()];
        Self { coding, cma: SeparableCma::new(mean, &deviations, settings.step_size), begun: iteration }
    }

    /// Begins again around the best, with more samples and as wide as at first.
    ///
    /// Not around another seed. A search has tens or hundreds of evaluations, and would spend them on the way that it has come
    /// before: methods of interpolation are much worse than what is found from the best of them. As wide as at first, the
    /// distribution reaches what is near every seed that was nearly as good.
    fn restart(
        &mut self,
        best: &Candidate,
        settings: &CmaEs,
        (iteration, left): (usize, usize),
        nursery: &Nursery<'_, impl Rng>,
    ) {
        let samples = samples_after(self.cma.samples(), left);
        let fresh = Self::around(best, settings, iteration, nursery);
        *self = Self { cma: fresh.cma.with_samples(samples), ..fresh };
    }

    /// Moves it by the values of its newest samples, which the history ends with.
    fn learn(&mut self, samples: &[Option<Vec<f64>>], history: &[Evaluation]) {
        let newest = &history[history.len().saturating_sub(samples.len())..];
        let mut valued: Vec<(&[f64], f64)> = samples
            .iter()
            .zip(newest)
            .filter_map(|(sample, evaluation)| Some((sample.as_deref()?, evaluation.value)))
            .collect();
        valued.sort_by(|a, b| rank(a.1, b.1));
        // Where no value is finite, their order tells nothing.
        if valued.first().is_some_and(|(_, value)| value.is_finite()) {
            self.cma.update(&valued.iter().map(|(sample, _)| *sample).collect::<Vec<_>>());
        }
    }

    /// The mean and the samples, those that are not known, and makes them known. With a surrogate, so many times as many samples are drawn,
    /// and the best by it are left, best first: where the best is known early, more of the rest can be given up early.
    fn generation(
        &self,
        best: &Candidate,
        surrogate: Option<&(Surrogate, usize)>,
        nursery: &mut Nursery<'_, impl Rng>,
    ) -> Vec<(Candidate, Option<Vec<f64>>)> {
        let mut made = Vec::new();
        let mean = self.coding.decode(nursery.space, self.cma.mean(), best.first_tokens);
        if nursery.admit(&mean) {
            made.push((mean, None));
        }
        let samples = self.cma.samples();
        let mut drawn = self.draw(samples * surrogate.map_or(1, |(_, each)| *each), best, nursery);
        if let Some((model, _)) = surrogate {
            let mut ranked: Vec<_> =
                drawn.into_iter().map(|drawn| (model.predict(&drawn.0), drawn)).collect();
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
            drawn = ranked.into_iter().map(|(_, drawn)| drawn).collect();
        }
        for (candidate, sample) in drawn.into_iter().take(samples) {
            nursery.admit(&candidate);
            made.push((candidate, Some(sample)));
        }
        made
    }

    /// So many samples that are neither known nor equal to each other; fewer where no others are found.
    fn draw(
        &self,
        count: usize,
        best: &Candidate,
        nursery: &mut Nursery<'_, impl Rng>,
    ) -> Vec<(Candidate, Vec<f64>)> {
        let mut keys = HashSet::new();
        let samples = (0..count).map_while(|_| {
            (0..SAMPLE_TRIES).find_map(|_| {
                let sample = self.cma.sample(nursery.rng);
                let candidate = self.coding.decode(nursery.space, &sample, best.first_tokens);
                let key = candidate.key();
                let is_new = !nursery.known.contains(&key) && keys.insert(key);
                is_new.then_some((candidate, sample))
            })
        });
        samples.collect()
    }
}

/// Twice as many samples as there were before (IPOP: Auger & Hansen, CEC 2005); as many where two generations of twice as many
/// would exceed the evaluations that are left, so that the distribution is still adapted.
fn samples_after(before: usize, left: usize) -> usize {
    match 2 * before {
        twice if twice <= MAXIMUM_SAMPLES && twice <= left / 2 => twice,
        _ => before,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_double_while_two_generations_are_left() {
        assert_eq!(samples_after(14, 56), 28);
        assert_eq!(samples_after(14, 55), 14);
        assert_eq!(samples_after(14, 0), 14);
        assert_eq!(samples_after(512, 1_000_000), 1024);
        assert_eq!(samples_after(1024, 1_000_000), 1024);
    }
}
