//! A search on disk: what has to be kept to go on exactly where it was left.

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::candidate::{Candidate, Evaluation};
use super::engine::Search;
use super::error::SearchError;
use super::optimiser::Optimiser;

/// The version of the format that this release writes and reads. Version 1 knew the evolutionary search alone.
const VERSION: u64 = 2;

/// What a [`Search`] is made of, to be written by serde in any format that keeps f64 exact (JSON with serde_json's
/// `float_roundtrip` does) and taken up by [`Search::resume`].
///
/// The arguments and the values are all there is to it: they determine every candidate, the state of the optimiser and
/// of its random stream. The candidates are kept too, for readers, and to be sure that they are the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    version: FormatVersion,
    optimiser: Optimiser,
    scale: f64,
    seeds: Vec<Candidate>,
    history: Vec<Evaluation>,
}

impl Checkpoint {
    /// Whether this is the checkpoint of the search that [`Search::new`] begins with these arguments.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] names what differs.
    pub fn check_arguments(
        &self,
        optimiser: &Optimiser,
        scale: f64,
        seeds: &[Candidate],
    ) -> Result<(), SearchError> {
        // The kinds come first, so that fields of the same name are compared.
        for ((name, found), (_, expected)) in self.optimiser.fields().into_iter().zip(optimiser.fields()) {
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

    /// The optimiser, with its hyper-parameters.
    pub fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    /// The number of evaluations that it holds.
    pub fn evaluations(&self) -> usize {
        self.history.len()
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
            optimiser: self.optimiser.clone(),
            scale: self.scale,
            seeds: self.seeds.clone(),
            history: self.history.clone(),
        }
    }

    /// Takes a search up where [`Search::checkpoint`] left it: it goes on to exactly the candidates of an unbroken run.
    /// The search is begun anew and told the values, which costs no evaluation.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] where the checkpoint is not one that a search can write: the search comes to another
    /// candidate than the one that was evaluated.
    pub fn resume(checkpoint: Checkpoint) -> Result<Self, SearchError> {
        let Checkpoint { version: FormatVersion, optimiser, scale, seeds, history } = checkpoint;
        let mut search = Self::new(optimiser, scale, seeds)?;
        for (index, evaluation) in history.into_iter().enumerate() {
            let Some(candidate) = search.ask() else {
                return Err(SearchError::invalid(
                    "history",
                    "another evaluation",
                    format!("the end after {index}: the search of these settings is finished then"),
                ));
            };
            if *candidate != evaluation.candidate {
                return Err(SearchError::invalid(
                    format!("history[{index}].candidate"),
                    "another candidate",
                    "the one that the search of these settings makes after the values before it",
                ));
            }
            if search.iteration() != evaluation.iteration {
                return Err(SearchError::invalid(
                    format!("history[{index}].iteration"),
                    evaluation.iteration,
                    search.iteration().to_string(),
                ));
            }
            search.tell(evaluation.value)?;
        }
        Ok(search)
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
