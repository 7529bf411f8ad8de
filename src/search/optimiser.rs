//! The optimisers to choose from, and the settings of the default one.

use serde::{Deserialize, Serialize};

use super::error::SearchError;
use super::settings::{Evolution, MAXIMUM_EVALUATIONS, Operators};

/// How a search chooses its candidates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimiser {
    /// A separable CMA-ES over the increments of the factors' logarithms.
    CmaEs(CmaEs),
    /// The evolutionary search of the paper, or of its released code.
    Evolution(Evolution),
}

/// A separable CMA-ES (Ros & Hansen, PPSN 2008; its constants are those of Hansen, "The CMA Evolution Strategy: A
/// Tutorial", arXiv 1604.00772) over the logarithms of the increments of the factors' logarithms, as shares of their sum,
/// and over that sum. Factors are non-decreasing and within the bounds by construction.
///
/// It evaluates the seeds and begins at the best of them. Each generation then has the mean of the distribution and
/// `4 + 3 ln n` samples of it, for `n` coordinates.
///
/// Read from JSON, an absent field takes its default and an unknown one is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CmaEs {
    /// Evaluations, the seeds among them. 96.
    pub evaluations: usize,
    /// The standard deviation of the logarithm of an increment, in the first generation. 0.5.
    pub step_size: f64,
    /// The smallest factor. 1.0.
    pub minimum: f64,
    /// The largest factor, as a multiple of the scale. 1.25.
    pub maximum_ratio: f64,
    /// Factors are rounded to multiples of this, but for those of the seeds. 0.01.
    pub step: f64,
    /// Allowed numbers of first tokens left un-interpolated (n-hat). `[0]` leaves it alone. With more, each generation
    /// tries another one on the best candidate so far, and the next takes the one that is then the best's.
    pub first_tokens: Vec<u64>,
    /// Where the attention factor is to be searched too: the value to begin with. It stays within half and twice of
    /// that, and is rounded to multiples of 0.0001.
    pub attention_factor: Option<f64>,
    /// Whether factors never decrease from one pair to the next. Without it the coordinates are the logarithms of the
    /// factors, each free within the bounds. True.
    pub monotone: bool,
    /// After how many generations without a better candidate the search begins again: around the best, as wide as at first, with
    /// twice as many samples (IPOP: Auger & Hansen, CEC 2005), as long as they are no more than 1024 and two such generations are
    /// left. `None` for never. `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<usize>,
    /// How many samples are drawn for each that is evaluated, from 2 to [`CmaEs::MAXIMUM_SURROGATE`]: a Gaussian process through
    /// the newest 256 finite values, over the logarithms of the factors, ranks them, and the best are evaluated. It needs ten values;
    /// fitting it takes some tens of milliseconds a generation. `None` for one, and no ranking. `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub surrogate: Option<usize>,
    /// Seed of the random stream. Equal settings, scale, seeds and values give equal searches on every platform. 0.
    pub seed: u64,
}

impl Default for CmaEs {
    fn default() -> Self {
        Self {
            evaluations: 96,
            step_size: 0.5,
            minimum: 1.0,
            maximum_ratio: 1.25,
            step: 0.01,
            first_tokens: vec![0],
            attention_factor: None,
            monotone: true,
            restarts: None,
            surrogate: None,
            seed: 0,
        }
    }
}

impl CmaEs {
    /// The largest number of samples drawn for each that is evaluated.
    pub const MAXIMUM_SURROGATE: usize = 100;

    /// Checks every field.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] names the field that is out of its range.
    pub fn validate(&self) -> Result<(), SearchError> {
        if !(1..=MAXIMUM_EVALUATIONS).contains(&self.evaluations) {
            let expected = format!("1 to {MAXIMUM_EVALUATIONS}");
            return Err(SearchError::invalid("evaluations", self.evaluations, expected));
        }
        if !(self.step_size > 0.0 && self.step_size <= 10.0) {
            return Err(SearchError::invalid("step_size", self.step_size, "a number above 0 and up to 10"));
        }
        if let Some(generations) = self.restarts
            && !(1..=MAXIMUM_EVALUATIONS).contains(&generations)
        {
            let expected = format!("none, or 1 to {MAXIMUM_EVALUATIONS} generations");
            return Err(SearchError::invalid("restarts", generations, expected));
        }
        if let Some(samples) = self.surrogate
            && !(2..=Self::MAXIMUM_SURROGATE).contains(&samples)
        {
            let expected = format!("none, or 2 to {} samples for each evaluation", Self::MAXIMUM_SURROGATE);
            return Err(SearchError::invalid("surrogate", samples, expected));
        }
        validate_space(self.minimum, self.maximum_ratio, self.step, &self.first_tokens)?;
        match self.attention_factor {
            Some(start) if !(1e-3..=1e3).contains(&start) => {
                Err(SearchError::invalid("attention_factor", start, "a number within [0.001, 1000]"))
            }
            _ => Ok(()),
        }
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        fn given(field: Option<impl ToString>) -> String {
            field.map_or("none".to_owned(), |value| value.to_string())
        }
        vec![
            ("evaluations", self.evaluations.to_string()),
            ("step_size", self.step_size.to_string()),
            ("minimum", self.minimum.to_string()),
            ("maximum_ratio", self.maximum_ratio.to_string()),
            ("step", self.step.to_string()),
            ("first_tokens", format!("{:?}", self.first_tokens)),
            ("attention_factor", given(self.attention_factor)),
            ("monotone", self.monotone.to_string()),
            ("restarts", given(self.restarts)),
            ("surrogate", given(self.surrogate)),
            ("seed", self.seed.to_string()),
        ]
    }
}

impl From<Evolution> for Optimiser {
    fn from(settings: Evolution) -> Self {
        Self::Evolution(settings)
    }
}

impl From<CmaEs> for Optimiser {
    fn from(settings: CmaEs) -> Self {
        Self::CmaEs(settings)
    }
}

impl Optimiser {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] names the one that is out of its range.
    pub fn validate(&self) -> Result<(), SearchError> {
        match self {
            Self::CmaEs(settings) => settings.validate(),
            Self::Evolution(settings) => settings.validate(),
        }
    }

    /// Evaluations of a search that runs to its end. It makes fewer where it runs out of new candidates.
    pub fn maximum_evaluations(&self) -> usize {
        match self {
            Self::CmaEs(settings) => settings.evaluations,
            Self::Evolution(settings) => settings.maximum_evaluations(),
        }
    }

    /// The name of the kind, and every field with its value, to name the one in which two differ.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let (kind, mut fields) = match self {
            Self::CmaEs(settings) => ("cma-es", settings.fields()),
            Self::Evolution(settings) => ("evolution", settings.fields()),
        };
        fields.insert(0, ("optimiser", kind.to_owned()));
        fields
    }

    pub(super) fn seed(&self) -> u64 {
        match self {
            Self::CmaEs(settings) => settings.seed,
            Self::Evolution(settings) => settings.seed,
        }
    }

    /// The seeds that it can begin with: so many at the most, by the setting of this name.
    pub(super) fn room_for_seeds(&self) -> (&'static str, usize) {
        match self {
            Self::CmaEs(settings) => ("evaluations", settings.evaluations),
            Self::Evolution(settings) => ("population", settings.population),
        }
    }

    pub(super) fn minimum(&self) -> f64 {
        match self {
            Self::CmaEs(settings) => settings.minimum,
            Self::Evolution(settings) => settings.minimum,
        }
    }

    pub(super) fn maximum_ratio(&self) -> f64 {
        match self {
            Self::CmaEs(settings) => settings.maximum_ratio,
            Self::Evolution(settings) => settings.maximum_ratio,
        }
    }

    /// The largest factor at `scale`.
    pub(super) fn maximum(&self, scale: f64) -> f64 {
        match self {
            Self::Evolution(Evolution { operators: Operators::Released, .. }) => scale + 1.0,
            _ => self.maximum_ratio() * scale,
        }
    }

    pub(super) fn step(&self) -> f64 {
        match self {
            Self::CmaEs(settings) => settings.step,
            Self::Evolution(settings) => settings.step,
        }
    }

    pub(super) fn first_tokens(&self) -> &[u64] {
        match self {
            Self::CmaEs(settings) => &settings.first_tokens,
            Self::Evolution(settings) => &settings.first_tokens,
        }
    }

    pub(super) fn monotone(&self) -> bool {
        match self {
            Self::CmaEs(settings) => settings.monotone,
            Self::Evolution(settings) => settings.monotone,
        }
    }

    pub(super) fn attention_factor_bounds(&self) -> Option<(f64, f64)> {
        match self {
            Self::CmaEs(settings) => settings.attention_factor.map(|start| (start / 2.0, start * 2.0)),
            Self::Evolution(_) => None,
        }
    }
}

/// Checks the settings that make up the search space.
pub(super) fn validate_space(
    minimum: f64,
    maximum_ratio: f64,
    step: f64,
    first_tokens: &[u64],
) -> Result<(), SearchError> {
    for (name, found) in [("minimum", minimum), ("maximum_ratio", maximum_ratio), ("step", step)] {
        if !(found.is_finite() && found > 0.0) {
            return Err(SearchError::invalid(name, found, "a finite number above 0"));
        }
    }
    if first_tokens.is_empty() {
        return Err(SearchError::invalid(
            "first_tokens",
            "[]",
            "at least one allowed value; [0] switches the gene off",
        ));
    }
    let mut sorted = first_tokens.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(SearchError::invalid("first_tokens", format!("{} twice", pair[0]), "each allowed value once"))
        }
        None => Ok(()),
    }
}
