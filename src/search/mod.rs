//! Which factors: the evolutionary search of LongRoPE (arXiv 2402.13753, Algorithm 1). Pure mathematics, no GPU.
//!
//! A [`Candidate`] holds a rescale factor for each pair of dimensions and the number of first tokens to leave alone. The
//! search makes an initial population of seeds and mutants, then in each iteration makes mutants and crossovers of the
//! best so far, and keeps the one for which an [`Objective`] is lowest. What it promises:
//!
//! - Factors never decrease from one pair to the next, and lie within the bounds; a mutated one is a multiple of the step.
//! - No candidate is evaluated twice. A space that has nothing new left ends the search early.
//! - Equal arguments and values give equal searches on every platform: the random stream is ChaCha8, and nothing else
//!   is drawn from.
//! - It can be left after any evaluation, as a [`Checkpoint`], and resumed to the result of an unbroken run.
//!
//! # Example
//! Factors for a model of 8 pairs, extended fourfold. A real objective would be a model's perplexity.
//! ```
//! use longrope::scaling::Geometry;
//! use longrope::search::{Candidate, Search, Settings, paper_seeds};
//! use std::{convert::Infallible, ops::ControlFlow};
//!
//! // Best: 1 for the fast pairs, then a jump to 4.
//! let wanted = [1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0];
//! let mut objective = |candidate: &Candidate| -> Result<f64, Infallible> {
//!     let pairs = candidate.factors.iter().zip(wanted);
//!     Ok(pairs.map(|(factor, wanted)| (factor - wanted).powi(2)).sum())
//! };
//!
//! let geometry = Geometry::new(16, 16, 10_000.0, 2048)?;
//! let settings = Settings { first_tokens: vec![0], ..Settings::default() };
//! let mut search = Search::new(settings, 4.0, paper_seeds(&geometry, 4.0))?;
//! search.run(&mut objective, |search| {
//!     // Report, write search.checkpoint(), or stop with ControlFlow::Break(()).
//!     assert!(search.evaluations() <= search.planned_evaluations());
//!     ControlFlow::Continue(())
//! })?;
//!
//! let best = search.best().expect("the objective is finite");
//! assert!(best.value < 0.5, "{best:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Paper and released code
//! Where the two differ the paper is followed. The largest factor is 1.25 times the scale (released: the scale plus 1);
//! position interpolation, NTK-aware and YaRN seed the population (a single ramp); the number of first tokens is searched
//! (absent). As released, a mutated factor is drawn between its neighbours, but here from a grid that counts from zero,
//! not from the left neighbour, so that it never passes the right one. The paper leaves the crossover open, and the
//! released one copies about every seventh gene of the second parent. Here it is uniform: every gene comes from either
//! parent with equal chance, is redrawn up to 20 times while the factors decrease or the result is known, and then
//! gives way to a mutation of the better parent. Algorithm 1 as printed leaves its last population unmeasured; here it is
//! measured too.

mod candidate;
mod checkpoint;
mod engine;
mod error;
mod operators;
mod seeds;
mod settings;
mod space;

pub use candidate::{Candidate, Evaluation};
pub use checkpoint::Checkpoint;
pub use engine::{Objective, Outcome, Search};
pub use error::SearchError;
pub use seeds::paper_seeds;
pub use settings::Settings;
