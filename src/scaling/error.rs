//! What can be wrong with a configuration of the rotary embedding.

use std::fmt::Display;

/// A configuration that can't be used. The message names the field by its path, the value found, and what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is out of its range, or of the wrong type.
    #[error("{path}: {found} is not valid; expected {expected}")]
    Invalid {
        /// Path of the field, as in `rope_scaling.long_factor[3]`.
        path: String,
        /// The value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A required field is absent.
    #[error("{path}: missing; expected {expected}")]
    Missing {
        /// Path of the field.
        path: String,
        /// What would be right.
        expected: String,
    },
    /// The text is not JSON (or not CSV) at all.
    #[error("not valid {format}: {reason}")]
    Syntax {
        /// The format expected.
        format: &'static str,
        /// Why it could not be read, with line and column where known.
        reason: String,
    },
}

impl ConfigError {
    /// An [`ConfigError::Invalid`].
    pub fn invalid(path: impl Into<String>, found: impl Display, expected: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), found: found.to_string(), expected: expected.into() }
    }

    /// An [`ConfigError::Missing`].
    pub fn missing(path: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Missing { path: path.into(), expected: expected.into() }
    }
}
