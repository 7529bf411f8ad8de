//! Interpolation factors from one format into another, with a report of what the other can't hold.

mod source;
mod target;

pub use source::{Kind, Source, config_in};
pub use target::{Written, hugging_face, longrope_for_gguf, one_set, schedule};

use std::fmt;

use clap::ValueEnum;

/// What the user lets a conversion lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// The first tokens that keep the plain frequencies (n_hat)
    FirstTokens,
    /// The factors up to the original length
    ShortSet,
    /// The factors beyond the original length
    LongSet,
    /// An attention factor other than LongRoPE's
    AttentionFactor,
    /// The other buckets of a schedule
    OtherLengths,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
