//! What an operation answers when it can't run.

use std::fmt::Display;

use crate::device::DeviceError;
use crate::scaling::ConfigError;

/// Why an operation did not run. Nothing was written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of range, or does not fit the others.
    #[error("{argument}: {found} is not valid; expected {expected}")]
    Argument {
        /// Which argument.
        argument: String,
        /// The value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// An argument that means something, but something that this library does not do.
    #[error("{argument}: {found} is not supported; expected {expected}")]
    Unsupported {
        /// Which argument.
        argument: String,
        /// The value found.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// No GPU that this library can use, or an error of its driver.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A rotary configuration that can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(argument: impl Into<String>, found: impl Display, expected: impl Into<String>) -> Self {
        Self::Argument { argument: argument.into(), found: found.to_string(), expected: expected.into() }
    }
    /// An [`Error::Unsupported`].
    pub fn unsupported(
        argument: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Unsupported { argument: argument.into(), found: found.to_string(), expected: expected.into() }
    }
}
