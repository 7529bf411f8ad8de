//! A search on disk: what has to be kept to go on exactly where it was left.

use std::collections::{HashSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::candidate::{Candidate, Evaluation};
use super::engine::Search;
use super::error::SearchError;
use super::settings::Settings;

/// The version of the format that this release writes and reads.
const VERSION: u64 = 1;

/// The whole state of a [`Search`], to be written by serde in any format that keeps f64 exact (JSON with serde_json's
/// `float_roundtrip` does) and taken up by [`Search::resume`].
///
/// The population is not listed apart: its parents are the best of the history, its children the waiting candidates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    version: FormatVersion,
    settings: Settings,
    scale: f64,
    seeds: Vec<Candidate>,
    rng: ChaCha8Rng,
    iteration: usize,
    history: Vec<Evaluation>,
    pending: Vec<Candidate>,
}

impl Checkpoint {
    /// Whether this is the checkpoint of the search that [`Search::new`] begins with these arguments.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] names what differs.
    pub fn check_arguments(
        &self,
        settings: &Settings,
        scale: f64,
        seeds: &[Candidate],
    ) -> Result<(), SearchError> {
        for ((name, found), (_, expected)) in self.settings.fields().into_iter().zip(settings.fields()) {
            if found != expected {
                return Err(differs(format!("settings.{name}"), found, expected));
            }
        }
        if self.scale != scale {
            return Err(differs("scale", self.scale, scale));
        }
        if self.seeds.len() != seeds.len() {
            return Err(differs("seeds", self.seeds.len(), seeds.len()));
        }
        match self.seeds.iter().zip(seeds).position(|(a, b)| a != b) {
            Some(index) => Err(differs(format!("seeds[{index}]"), "another candidate", "the same")),
            None => Ok(()),
        }
    }

    /// The hyper-parameters of the search.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

fn differs(
    argument: impl Into<String>,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> SearchError {
    let expected = format!("{expected}, with which the checkpoint is to be resumed");
    SearchError::invalid(argument, found, expected)
}

impl Search {
    /// The state, to be taken up by [`Search::resume`].
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            version: FormatVersion,
            settings: self.settings.clone(),
            scale: self.scale,
            seeds: self.seeds.clone(),
            rng: self.rng.clone(),
            iteration: self.iteration,
            history: self.history.clone(),
            pending: self.pending.iter().cloned().collect(),
        }
    }

    /// Takes a search up where [`Search::checkpoint`] left it: it goes on to exactly the candidates of an unbroken run.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] where the checkpoint is not one that a search can write.
    pub fn resume(checkpoint: Checkpoint) -> Result<Self, SearchError> {
        let Checkpoint { version: FormatVersion, settings, scale, seeds, rng, iteration, history, pending } =
            checkpoint;
        let mut search = Self::unpopulated(settings, scale, seeds)?;
        search.rng = rng;
        search.check_generations(iteration, &history, &pending)?;
        search.check_candidates(&history, &pending)?;
        search.iteration = iteration;
        for evaluation in history {
            search.record(evaluation);
        }
        search.pending = VecDeque::from(pending);
        Ok(search)
    }

    /// Iterations begin at 0, leave none out, and none has more candidates than the settings say.
    fn check_generations(
        &self,
        iteration: usize,
        history: &[Evaluation],
        pending: &[Candidate],
    ) -> Result<(), SearchError> {
        let mut current = 0;
        let mut size = 0;
        let iterations =
            history.iter().map(|evaluation| evaluation.iteration).chain(pending.iter().map(|_| iteration));
        for (index, found) in iterations.enumerate() {
            let name = || match index < history.len() {
                true => format!("history[{index}].iteration"),
                false => "iteration".to_owned(),
            };
            if found == current + 1 && size > 0 {
                (current, size) = (found, 0);
            }
            if found != current {
                let expected = match size {
                    0 => format!("{current}, the first"),
                    _ => format!("{current} or {}, as it follows {current}", current + 1),
                };
                return Err(SearchError::invalid(name(), found, expected));
            }
            if found > self.settings.iterations {
                let expected = format!("at most settings.iterations ({})", self.settings.iterations);
                return Err(SearchError::invalid(name(), found, expected));
            }
            size += 1;
            let largest = match found {
                0 => self.settings.population,
                _ => self.settings.mutations + self.settings.crossovers,
            };
            if size > largest {
                return Err(SearchError::invalid(
                    "history and pending",
                    format!("{size} or more candidates of iteration {found}"),
                    format!("at most {largest}, by the settings"),
                ));
            }
        }
        if iteration != current {
            let expected = format!("{current}, that of the last candidate");
            return Err(SearchError::invalid("iteration", iteration, expected));
        }
        Ok(())
    }

    /// Candidates are legal, none is there twice, and the seeds come first. Makes them known.
    fn check_candidates(&mut self, history: &[Evaluation], pending: &[Candidate]) -> Result<(), SearchError> {
        let name = |index: usize| match index.checked_sub(history.len()) {
            None => format!("history[{index}].candidate"),
            Some(index) => format!("pending[{index}]"),
        };
        let candidates = || {
            let evaluated = history.iter().map(|evaluation| &evaluation.candidate);
            evaluated.chain(pending)
        };
        for (index, candidate) in candidates().enumerate() {
            self.space.check(candidate, &name(index))?;
            if !self.known.insert(candidate.key()) {
                let expected = "every candidate once";
                return Err(SearchError::invalid(name(index), "a repetition", expected));
            }
        }
        let mut seen = HashSet::new();
        let mut first = candidates().enumerate();
        for (index, seed) in self.seeds.iter().enumerate() {
            if !seen.insert(seed.key()) {
                continue;
            }
            let (position, found) = first.next().unzip();
            if found != Some(seed) {
                return Err(SearchError::invalid(
                    position.map_or("history and pending".to_owned(), name),
                    "no seed",
                    format!("seeds[{index}]: the search begins with its seeds"),
                ));
            }
        }
        Ok(())
    }
}

/// The version of the format. It comes first, so that a reader that meets another says that, and not what else differs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct FormatVersion;

impl Serialize for FormatVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(VERSION)
    }
}

impl<'de> Deserialize<'de> for FormatVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            VERSION => Ok(Self),
            other => {
                let expected = format!("checkpoint format version {VERSION}, which this release reads");
                Err(D::Error::invalid_value(Unexpected::Unsigned(other), &expected.as_str()))
            }
        }
    }
}
