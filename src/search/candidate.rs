//! An individual of the search, its measured value, and the order between values.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// An individual of the search: one way to interpolate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The rescale factor of each pair of dimensions (lambda): the divisor of its frequency, non-decreasing.
    pub factors: Vec<f64>,
    /// The number of first tokens whose positions are not interpolated (n-hat).
    pub first_tokens: u64,
    /// What cosine and sine are multiplied by, or `None` for what the configuration's rule gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
}

impl Candidate {
    /// Its exact identity: equal keys are equal candidates.
    pub(super) fn key(&self) -> Key {
        Key {
            factors: self.factors.iter().map(|factor| factor.to_bits()).collect(),
            first_tokens: self.first_tokens,
            attention_factor: self.attention_factor.map(f64::to_bits),
        }
    }
}

/// The bits of a candidate, which hash and compare exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    factors: Vec<u64>,
    first_tokens: u64,
    attention_factor: Option<u64>,
}

impl Key {
    /// The factors that the bits stand for.
    pub(super) fn factors(&self) -> impl Iterator<Item = f64> {
        self.factors.iter().map(|&bits| f64::from_bits(bits))
    }
}

/// A candidate whose value was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// What was measured.
    pub candidate: Candidate,
    /// What the objective answered: lower is better. JSON has no NaN and no infinities: they are written as the strings
    /// `"NaN"`, `"Infinity"` and `"-Infinity"`.
    #[serde(with = "value")]
    pub value: f64,
    /// The iteration that made the candidate: 0 for the seeds or the initial population, then from 1.
    pub iteration: usize,
}

/// The order of values, best first: finite ones ascending, then all others, which are equal.
pub(super) fn rank(a: f64, b: f64) -> Ordering {
    match (a.is_finite(), b.is_finite()) {
        (true, true) => a.total_cmp(&b),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => Ordering::Equal,
    }
}

/// A value in JSON.
mod value {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() {
            serializer.serialize_f64(*value)
        } else if value.is_nan() {
            serializer.serialize_str("NaN")
        } else if *value > 0.0 {
            serializer.serialize_str("Infinity")
        } else {
            serializer.serialize_str("-Infinity")
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(Value)
    }

    struct Value;

    impl Visitor<'_> for Value {
        type Value = f64;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str(r#"a number, "NaN", "Infinity" or "-Infinity""#)
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
            match text {
                "NaN" => Ok(f64::NAN),
                "Infinity" => Ok(f64::INFINITY),
                "-Infinity" => Ok(f64::NEG_INFINITY),
                other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
            }
        }
    }
}
