//! The search itself: which candidate is next, given the values of those before it.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::adaptation::Adaptation;
use super::candidate::{Candidate, Evaluation, Key, rank};
use super::error::SearchError;
use super::evolution;
use super::nursery::Nursery;
use super::optimiser::Optimiser;
use super::space::Space;

/// What the search minimises: for LongRoPE, the perplexity of a model on long documents under a candidate's factors.
///
/// Every `FnMut(&Candidate) -> Result<f64, E>` is one.
pub trait Objective {
    /// Why a candidate could not be evaluated.
    type Error;

    /// The value of `candidate`: lower is better. NaN and infinite values rank behind all finite ones.
    ///
    /// # Errors
    /// Ends [`Search::run`]; the candidate still waits, and a later run begins with it.
    fn evaluate(&mut self, candidate: &Candidate) -> Result<f64, Self::Error>;
}

impl<F, E> Objective for F
where
    F: FnMut(&Candidate) -> Result<f64, E>,
{
    type Error = E;

    fn evaluate(&mut self, candidate: &Candidate) -> Result<f64, E> {
        self(candidate)
    }
}

/// How a [`Search::run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every planned candidate was evaluated, or nothing new could be made.
    Finished,
    /// The observer stopped it. A later run goes on.
    Stopped,
}

/// A search, which can be left and taken up between any two evaluations. How it chooses its candidates is its
/// [`Optimiser`]'s affair.
///
/// Drive it by [`Search::run`], or by hand: [`Search::ask`] for a candidate and [`Search::tell`] its value, until there
/// is none.
#[derive(Debug, Clone)]
pub struct Search {
    pub(super) optimiser: Optimiser,
    pub(super) scale: f64,
    pub(super) seeds: Vec<Candidate>,
    space: Space,
    rng: ChaCha8Rng,
    /// Of [`Optimiser::CmaEs`] alone.
    adaptation: Option<Adaptation>,
    /// Every candidate made so far, evaluated or not: nothing is evaluated twice.
    known: HashSet<Key>,
    pub(super) history: Vec<Evaluation>,
    /// Made in `iteration` and not yet evaluated. Empty once the search is finished.
    pending: VecDeque<Candidate>,
    iteration: usize,
    /// Index in `history` of the best finite value.
    best: Option<usize>,
}

impl Search {
    /// A search for factors that extend the context by `scale` (target length / original length), from `seeds`
    /// (repetitions are left out). [`paper_seeds`](super::paper_seeds) makes the paper's. `optimiser` is a
    /// [`CmaEs`](super::CmaEs) or an [`Evolution`](super::Evolution), whose initial population are the seeds and mutants
    /// of them.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] where the settings are not valid, `scale` is below 1 or not finite, or a seed is
    /// missing, out of range or decreasing.
    pub fn new(
        optimiser: impl Into<Optimiser>,
        scale: f64,
        seeds: Vec<Candidate>,
    ) -> Result<Self, SearchError> {
        let optimiser = optimiser.into();
        optimiser.validate()?;
        let pairs = seeds.first().map_or(0, |seed| seed.factors.len());
        if pairs == 0 {
            let found = match seeds.is_empty() {
                true => "no seed",
                false => "seeds[0] without factors",
            };
            let expected = "at least one candidate, with a factor for each pair";
            return Err(SearchError::invalid("seeds", found, expected));
        }
        let (name, room) = optimiser.room_for_seeds();
        if seeds.len() > room {
            return Err(SearchError::invalid(
                "seeds",
                format!("{} seeds", seeds.len()),
                format!("at most {name} ({room})"),
            ));
        }
        let space = Space::new(&optimiser, scale, pairs)?;
        for (index, seed) in seeds.iter().enumerate() {
            space.check(seed, &format!("seeds[{index}]"))?;
        }
        let adaptation = match &optimiser {
            Optimiser::CmaEs(_) => Some(Adaptation::default()),
            Optimiser::Evolution(_) => None,
        };
        let mut search = Self {
            rng: ChaCha8Rng::seed_from_u64(optimiser.seed()),
            adaptation,
            optimiser,
            scale,
            seeds,
            space,
            known: HashSet::new(),
            history: Vec::new(),
            pending: VecDeque::new(),
            iteration: 0,
            best: None,
        };
        search.populate();
        Ok(search)
    }

    /// The candidate to evaluate next, or `None` once the search is finished. Asking again gives the same.
    pub fn ask(&self) -> Option<&Candidate> {
        self.pending.front()
    }

    /// The candidates that are made and not yet evaluated, in the order in which [`Search::tell`] takes their values.
    /// None depends on another's value, so they may be evaluated in parallel.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = &Candidate> {
        self.pending.iter()
    }

    /// Takes the value of the candidate that [`Search::ask`] gives.
    ///
    /// # Errors
    /// [`SearchError::Finished`] where there is none.
    pub fn tell(&mut self, value: f64) -> Result<(), SearchError> {
        let candidate = self.pending.pop_front().ok_or(SearchError::Finished)?;
        self.record(Evaluation { candidate, value, iteration: self.iteration });
        if self.pending.is_empty() {
            self.advance();
        }
        Ok(())
    }

    /// Evaluates candidates until the search is finished or `observer`, called after each evaluation, breaks. The
    /// newest evaluation is the last of [`Search::history`].
    ///
    /// # Errors
    /// The objective's. Nothing is lost: the candidate that failed still waits, and another run goes on with it.
    pub fn run<O: Objective>(
        &mut self,
        objective: &mut O,
        mut observer: impl FnMut(&Self) -> ControlFlow<()>,
    ) -> Result<Outcome, O::Error> {
        while let Some(candidate) = self.ask() {
            let value = objective.evaluate(candidate)?;
            if self.tell(value).is_ok() && observer(self).is_break() {
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }

    /// Every evaluation, in the order in which they were made.
    pub fn history(&self) -> &[Evaluation] {
        &self.history
    }

    /// The evaluation with the lowest finite value, the earliest of equals.
    pub fn best(&self) -> Option<&Evaluation> {
        self.best.map(|index| &self.history[index])
    }

    /// The number of evaluations made.
    pub fn evaluations(&self) -> usize {
        self.history.len()
    }

    /// The number of evaluations at the end, if every coming generation is full: an upper bound, which is exact once the
    /// search is finished.
    pub fn planned_evaluations(&self) -> usize {
        let known = self.history.len() + self.pending.len();
        if self.pending.is_empty() {
            return known;
        }
        match &self.optimiser {
            Optimiser::CmaEs(settings) => settings.evaluations,
            Optimiser::Evolution(settings) => {
                let generation = settings.mutations + settings.crossovers;
                known + (settings.iterations - self.iteration) * generation
            }
        }
    }

    /// The iteration of the candidates that wait: 0 for the seeds or the initial population, then from 1.
    pub fn iteration(&self) -> usize {
        self.iteration
    }

    /// Whether no candidate waits any more.
    pub fn is_finished(&self) -> bool {
        self.pending.is_empty()
    }

    /// The optimiser, with its hyper-parameters.
    pub fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    /// Target length / original length.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Appends to the history and keeps the best.
    fn record(&mut self, evaluation: Evaluation) {
        let best = self.best().map_or(f64::INFINITY, |best| best.value);
        if rank(evaluation.value, best).is_lt() {
            self.best = Some(self.history.len());
        }
        self.history.push(evaluation);
    }

    /// Makes the first candidates.
    fn populate(&mut self) {
        for seed in &self.seeds {
            if self.known.insert(seed.key()) {
                self.pending.push_back(seed.clone());
            }
        }
        if let Optimiser::Evolution(settings) = &self.optimiser {
            let mut nursery = Nursery { space: &self.space, rng: &mut self.rng, known: &mut self.known };
            let missing = settings.population - self.pending.len();
            self.pending.extend(evolution::population(settings, &self.seeds, missing, &mut nursery));
        }
    }

    /// Makes the next iteration's candidates, once every one before them has its value.
    fn advance(&mut self) {
        let mut nursery = Nursery { space: &self.space, rng: &mut self.rng, known: &mut self.known };
        let made = match (&self.optimiser, &mut self.adaptation) {
            (Optimiser::Evolution(settings), _) if self.iteration < settings.iterations => {
                evolution::children(settings, &self.history, &mut nursery)
            }
            (Optimiser::CmaEs(settings), Some(adaptation)) => {
                let best = self.best.map_or((&self.seeds[0], 0), |index| {
                    let best = &self.history[index];
                    (&best.candidate, best.iteration)
                });
                adaptation.next(settings, best, &self.history, &mut nursery)
            }
            _ => Vec::new(),
        };
        if !made.is_empty() {
            self.iteration += 1;
            self.pending = made.into();
        }
    }
}
