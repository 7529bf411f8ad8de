//! Which factors: the search for LongRoPE's factors (arXiv 2402.13753), by two optimisers. Pure mathematics, no GPU.
//!
//! A [`Candidate`] holds a rescale factor for each pair of dimensions, the number of first tokens to leave alone, and, where
//! it is searched, an attention factor. A search makes candidates of the values of those before, and keeps the one for
//! which an [`Objective`] is lowest. [`CmaEs`] is the optimiser to begin with: it needs a small part of the
//! evaluations. [`Evolution`] is the paper's (Algorithm 1) or, by its [`Operators`], the released code's. What both promise:
//!
//! - Factors never decrease from one pair to the next (unless the settings let them), and lie within the bounds; but for those of the seeds they are
//!   multiples of the step (of the released operators': within steps of each other).
//! - No candidate is evaluated twice. A space that has nothing new left ends the search early.
//! - Equal arguments and values give equal searches on every platform: the random stream is ChaCha8, and nothing else
//!   is drawn from.
//! - It can be left after any evaluation, as a [`Checkpoint`], and resumed to the result of an unbroken run.
//!
//! # Example
//! Factors for a model of 8 pairs, extended fourfold. A real objective would be a model's perplexity.
//! ```
//! use longrope::scaling::Geometry;
//! use longrope::search::{Candidate, CmaEs, Search, paper_seeds};
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
//! let mut search = Search::new(CmaEs::default(), 4.0, paper_seeds(&geometry, 4.0))?;
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
//! [`Operators::Released`] follows the released code, [`Operators::Paper`] the paper. There the largest factor is 1.25 times the scale (released: the scale plus 1);
//! position interpolation, NTK-aware and YaRN seed the population (a single ramp); the number of first tokens is searched
//! (absent). As released, a mutated factor is drawn between its neighbours, but here from a grid that counts from zero,
//! not from the left neighbour, so that it never passes the right one. The paper leaves the crossover open, and the
//! released one copies about every seventh gene of the second parent. Here it is uniform: every gene comes from either
//! parent with equal chance, is redrawn up to 20 times while the factors decrease or the result is known, and then
//! gives way to a mutation of the better parent. Algorithm 1 as printed leaves its last population unmeasured; here it is
//! measured too.

mod adaptation;
mod candidate;
mod checkpoint;
mod cma;
mod coding;
mod engine;
mod error;
mod evolution;
mod gaussian_process;
mod nursery;
mod operators;
mod optimiser;
mod released;
mod seeds;
mod settings;
mod space;
mod surrogate;

pub use candidate::{Candidate, Evaluation};
pub use checkpoint::Checkpoint;
pub use engine::{Objective, Outcome, Search};
pub use error::SearchError;
pub use optimiser::{CmaEs, Optimiser};
pub use seeds::{paper_seeds, released_seeds};
pub use settings::{Evolution, Operators};
