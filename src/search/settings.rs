//! The hyper-parameters of the evolutionary search.

use serde::{Deserialize, Serialize};

use super::error::SearchError;

/// More evaluations than this are refused: a search holds every candidate it has evaluated.
pub(super) const MAXIMUM_EVALUATIONS: usize = 1_000_000;

/// The evolutionary search of LongRoPE (arXiv 2402.13753, Algorithm 1), and its hyper-parameters. [`Evolution::default`] is the paper's choice for targets of up to 256k tokens
/// (section 4.1 and Table 4), [`Evolution::halved`] that for targets above 512k, [`Evolution::released`] that of the
/// authors' code.
///
/// Read from JSON, an absent field takes its default and an unknown one is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evolution {
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
    /// The largest factor, as a multiple of the scale. 1.25. Of [`Operators::Paper`] alone: the released code's largest
    /// factor is the scale plus 1.
    pub maximum_ratio: f64,
    /// The grid of mutated factors: multiples of this ([`Operators::Paper`]), or so many of it above the factor to the
    /// left ([`Operators::Released`]). 0.01.
    pub step: f64,
    /// Allowed numbers of first tokens left un-interpolated (n-hat). `[0]` switches the gene off: the model
    /// configurations of Hugging Face, vLLM and llama.cpp have no field for it.
    pub first_tokens: Vec<u64>,
    /// Seed of the random stream. Equal settings, scale, seeds and values give equal searches on every platform. 0.
    pub seed: u64,
    /// How mutants and crossovers are made. [`Operators::Paper`].
    pub operators: Operators,
    /// Whether factors never decrease from one pair to the next. Without it a mutation draws a factor from all within the
    /// bounds; [`Operators::Paper`] alone can do without. True.
    pub monotone: bool,
}

/// How mutants and crossovers are made, and within which bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operators {
    /// As the paper has it; what it leaves open is told in the [module's documentation](super#paper-and-released-code).
    Paper,
    /// As in the code that the authors released (`evolution/` of microsoft/LongRoPE).
    Released,
}

impl Default for Evolution {
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
            operators: Operators::Paper,
            monotone: true,
        }
    }
}

impl Evolution {
    /// The released code's search: its operators, and no first tokens. Its sizes are those of the paper, its seed is
    /// [`released_seeds`](super::released_seeds).
    pub fn released() -> Self {
        Self { first_tokens: vec![0], operators: Operators::Released, ..Self::default() }
    }

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
        super::optimiser::validate_space(self.minimum, self.maximum_ratio, self.step, &self.first_tokens)?;
        if self.operators == Operators::Released && self.first_tokens.len() > 1 {
            return Err(SearchError::invalid(
                "first_tokens",
                format!("{:?}", self.first_tokens),
                "a single allowed value: the released operators leave it alone",
            ));
        }
        if self.operators == Operators::Released && !self.monotone {
            return Err(SearchError::invalid(
                "monotone",
                self.monotone,
                "true: the released operators draw each factor between its neighbours",
            ));
        }
        Ok(())
    }

    /// Every field with its value, to name the one in which two settings differ.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
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
            ("operators", format!("{:?}", self.operators).to_lowercase()),
            ("monotone", self.monotone.to_string()),
        ]
    }
}
