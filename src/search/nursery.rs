//! What every optimiser makes new candidates with.

use std::collections::HashSet;

use super::candidate::{Candidate, Key};
use super::space::Space;

/// The legal candidates, the random stream, and what has been made so far.
pub(super) struct Nursery<'a, R> {
    pub(super) space: &'a Space,
    pub(super) rng: &'a mut R,
    /// Every candidate made so far, evaluated or not: nothing is evaluated twice.
    pub(super) known: &'a mut HashSet<Key>,
}

impl<R> Nursery<'_, R> {
    /// Whether `candidate` was not known until now. It is from now on.
    pub(super) fn admit(&mut self, candidate: &Candidate) -> bool {
        self.known.insert(candidate.key())
    }
}
