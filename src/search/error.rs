//! What can be wrong with a search, before or after it has begun.

use std::fmt::Display;

/// A search that can't start, go on or be resumed. The message names the argument, the value found, and what would be
/// right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// An argument, a setting or an entry of a checkpoint is out of its range.
    #[error("{argument}: {found} is not valid; expected {expected}")]
    Invalid {
        /// Path of the argument, as in `seeds[1].factors[3]`.
        argument: String,
        /// The value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A value was told though the search is finished.
    #[error("the search is finished: no candidate waits for a value")]
    Finished,
}

impl SearchError {
    /// A [`SearchError::Invalid`].
    pub(super) fn invalid(
        argument: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { argument: argument.into(), found: found.to_string(), expected: expected.into() }
    }
}
