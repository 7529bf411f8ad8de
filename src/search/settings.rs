//! The hyper-parameters of the search.

use serde::{Deserialize, Serialize};

use super::error::SearchError;

/// More evaluations than this are refused: a search holds every candidate it has evaluated.
const MAXIMUM_EVALUATIONS: usize = 1_000_000;

/// The hyper-parameters of the search. [`Settings::default`] is the paper's choice for targets of up to 256k tokens
/// (arXiv 2402.13753, section 4.1 and Table 4), [`Settings::halved`] that for targets above 512k.
///
/// Read from JSON, an absent field takes its default and an unknown one is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Individuals of the initial population: the seeds, and mutants of them (P). 64.
    pub population: usize,
    /// Mutants made in each iteration (N1). 16.
    pub mutations: usize,
    /// Crossovers made in each iteration (N2). 16.
    pub crossovers: usize,
    /// The best candidates so far, from which mutants and crossovers are made (top-k). 32.
    pub parents: usize,
    /// Iterations after the initial population (T). 40.
    pub iterations: usize,
    /// Probability that a mutation redraws a gene (p). 0.3.
    pub mutation_probability: f64,
    /// The smallest factor. 1.0.
    pub minimum: f64,
    /// The largest factor, as a multiple of the scale. 1.25.
    pub maximum_ratio: f64,
    /// Mutated factors are multiples of this. 0.01.
    pub step: f64,
    /// Allowed numbers of first tokens left un-interpolated (n-hat). `[0]` switches the gene off: the model
    /// configurations of Hugging Face, vLLM and llama.cpp have no field for it.
    pub first_tokens: Vec<u64>,
    /// Seed of the random stream. Equal settings, scale, seeds and values give equal searches on every platform. 0.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            population: 64,
            mutations: 16,
            crossovers: 16,
            parents: 32,
            iterations: 40,
            mutation_probability: 0.3,
            minimum: 1.0,
            maximum_ratio: 1.25,
            step: 0.01,
            first_tokens: vec![0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256],
            seed: 0,
        }
    }
}

impl Settings {
    /// The same with half the population, mutations and crossovers (at least 1 of each that was not 0), as the paper
    /// does for targets above 512k tokens. Parents and iterations stay.
    pub fn halved(self) -> Self {
        Self {
            population: self.population.div_ceil(2),
            mutations: self.mutations.div_ceil(2),
            crossovers: self.crossovers.div_ceil(2),
            ..self
        }
    }

    /// Evaluations of a search that runs to its end: `population + iterations * (mutations + crossovers)`. The paper's
    /// settings give 1344. A search makes fewer where it runs out of new candidates.
    pub fn maximum_evaluations(&self) -> usize {
        self.mutations
            .saturating_add(self.crossovers)
            .saturating_mul(self.iterations)
            .saturating_add(self.population)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`SearchError::Invalid`] names the field that is out of its range.
    pub fn validate(&self) -> Result<(), SearchError> {
        let at_least = |name, found: usize, least: usize, when: &str| {
            if found < least {
                let expected = format!("at least {least}{when}");
                return Err(SearchError::invalid(name, found, expected));
            }
            Ok(())
        };
        at_least("population", self.population, 1, "")?;
        if self.crossovers == 0 {
            at_least("mutations", self.mutations, 1, " where crossovers is 0")?;
            at_least("parents", self.parents, 1, "")?;
        } else {
            at_least("parents", self.parents, 2, " where crossovers is not 0")?;
        }
        if self.maximum_evaluations() > MAXIMUM_EVALUATIONS {
            return Err(SearchError::invalid(
                "population + iterations * (mutations + crossovers)",
                self.maximum_evaluations(),
                format!("at most {MAXIMUM_EVALUATIONS} evaluations"),
            ));
        }
        if !(self.mutation_probability > 0.0 && self.mutation_probability <= 1.0) {
            return Err(SearchError::invalid(
                "mutation_probability",
                self.mutation_probability,
                "a number above 0 and up to 1",
            ));
        }
        for (name, found) in
            [("minimum", self.minimum), ("maximum_ratio", self.maximum_ratio), ("step", self.step)]
        {
            if !(found.is_finite() && found > 0.0) {
                return Err(SearchError::invalid(name, found, "a finite number above 0"));
            }
        }
        if self.first_tokens.is_empty() {
            return Err(SearchError::invalid(
                "first_tokens",
                "[]",
                "at least one allowed value; [0] switches the gene off",
            ));
        }
        let mut sorted = self.first_tokens.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(SearchError::invalid(
                "first_tokens",
                format!("{} twice", pair[0]),
                "each allowed value once",
            )),
            None => Ok(()),
        }
    }

    /// Every field with its value, to name the one in which two settings differ.
    pub(super) fn fields(&self) -> [(&'static str, String); 11] {
        [
            ("population", self.population.to_string()),
            ("mutations", self.mutations.to_string()),
            ("crossovers", self.crossovers.to_string()),
            ("parents", self.parents.to_string()),
            ("iterations", self.iterations.to_string()),
            ("mutation_probability", self.mutation_probability.to_string()),
            ("minimum", self.minimum.to_string()),
            ("maximum_ratio", self.maximum_ratio.to_string()),
            ("step", self.step.to_string()),
            ("first_tokens", format!("{:?}", self.first_tokens)),
            ("seed", self.seed.to_string()),
        ]
    }
}
