//! What a program leaves its caller: an exit status, and the error in one line.

use std::process::ExitCode;

use anyhow::Result;

use crate::interrupt::{EXIT_STATUS, Interrupted};

/// The exit status of how a program ended. Its error, if there is one, goes to the standard error. Ctrl-C is none, but has a status of its own.
pub fn code(ended: Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(EXIT_STATUS),
        Err(error) => {
            eprintln!("error: {}", error_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line. Candle's own errors may hold a backtrace, and repeat the path.
fn error_line(error: &anyhow::Error) -> String {
    fn bare(error: &candle_core::Error) -> &candle_core::Error {
        match error {
            candle_core::Error::WithBacktrace { inner, .. } | candle_core::Error::WithPath { inner, .. } => {
                bare(inner)
            }
            other => other,
        }
    }
    let causes = error.chain().map(|cause| match cause.downcast_ref() {
        Some(error) => bare(error).to_string(),
        None => cause.to_string(),
    });
    causes.collect::<Vec<_>>().join(": ").lines().collect::<Vec<_>>().join(" ")
}
