//! Typed access to the fields of a JSON object, with the path of each in every error.

use serde_json::{Map, Value};

use crate::scaling::ConfigError;

/// A JSON object and where it stands.
#[derive(Clone, Copy)]
pub(in crate::scaling) struct Object<'a> {
    path: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// `value` as an object; `path` is empty for the top level.
    pub(in crate::scaling) fn new(path: &'a str, value: &'a Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(fields) => Ok(Self { path, fields }),
            other => {
                let path = if path.is_empty() { "configuration" } else { path };
                Err(ConfigError::invalid(path, kind(other), "an object"))
            }
        }
    }

    /// The path of a field, as in `rope_scaling.factor`.
    pub(in crate::scaling) fn path(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A field that is there and not null.
    pub(in crate::scaling) fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    pub(in crate::scaling) fn keys(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.fields.iter()
    }

    /// Checks that every field is one of these.
    pub(in crate::scaling) fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        match self.fields.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let name: String = key.chars().take(40).collect();
                Err(ConfigError::invalid(self.path(&name), "an unknown field", known.join(", ")))
            }
        }
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| {
                read(value).ok_or_else(|| ConfigError::invalid(self.path(name), shown(value), expected))
            })
            .transpose()
    }

    pub(in crate::scaling) fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub(in crate::scaling) fn required_number(&self, name: &str) -> Result<f64, ConfigError> {
        self.number(name)?.ok_or_else(|| ConfigError::missing(self.path(name), "a number"))
    }

    /// A whole number from 0; `4096.0` counts.
    pub(in crate::scaling) fn whole(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        self.typed(name, "a whole number from 0", |value| {
            value.as_u64().or_else(|| {
                let float = value.as_f64()?;
                (float >= 0.0 && float < 2f64.powi(53) && float.fract() == 0.0).then_some(float as u64)
            })
        })
    }

    pub(in crate::scaling) fn required_whole(&self, name: &str) -> Result<u64, ConfigError> {
        self.whole(name)?.ok_or_else(|| ConfigError::missing(self.path(name), "a whole number"))
    }

    pub(in crate::scaling) fn boolean(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(in crate::scaling) fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A list of numbers.
    pub(in crate::scaling) fn required_numbers(&self, name: &str) -> Result<Vec<f64>, ConfigError> {
        let list = self
            .typed(name, "a list of numbers", Value::as_array)?
            .ok_or_else(|| ConfigError::missing(self.path(name), "a list of numbers"))?;
        list.iter()
            .enumerate()
            .map(|(i, value)| {
                value.as_f64().ok_or_else(|| {
                    ConfigError::invalid(format!("{}[{i}]", self.path(name)), shown(value), "a number")
                })
            })
            .collect()
    }
}

/// A value short enough for a message.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("{:?}...", text.chars().take(40).collect::<String>())
        }
        other => other.to_string(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
