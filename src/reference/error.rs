//! What can be wrong with an argument of the reference.

use std::fmt::Display;

/// An argument that the reference can't work with. The message names it, the value found, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// A value is out of its range.
    #[error("{argument}: {found} is not valid; expected {expected}")]
    Invalid {
        /// Name of the argument, as in `problem.key_heads` or `frequencies[3]`.
        argument: String,
        /// The value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A slice holds another number of elements than its shape asks for.
    #[error("{argument}: {found} elements; expected {expected}, the shape {shape}")]
    Length {
        /// Name of the argument.
        argument: String,
        /// The number of elements found.
        found: usize,
        /// The number of elements of the shape.
        expected: usize,
        /// The shape, as in `[query_length, query_heads, head_dim] = [4, 2, 8]`.
        shape: String,
    },
}

impl ReferenceError {
    /// A [`ReferenceError::Invalid`].
    pub(crate) fn invalid(
        argument: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { argument: argument.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// Checks that `elements`, called `argument` in the message, has the shape given as names and extents, and counts it.
pub(crate) fn check_shape(
    argument: &str,
    elements: &[f64],
    names: &str,
    extents: &[usize],
) -> Result<usize, ReferenceError> {
    let expected = volume(argument, names, extents)?;
    if elements.len() != expected {
        return Err(ReferenceError::Length {
            argument: argument.into(),
            found: elements.len(),
            expected,
            shape: format!("{names} = {extents:?}"),
        });
    }
    Ok(expected)
}

/// The number of elements of a shape; an error where it passes `usize`.
pub(crate) fn volume(argument: &str, names: &str, extents: &[usize]) -> Result<usize, ReferenceError> {
    // Zero first: [2^40, 2^40, 0] holds nothing, and is no overflow.
    if extents.contains(&0) {
        return Ok(0);
    }
    extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)).ok_or_else(|| {
        ReferenceError::invalid(
            argument,
            format!("the shape {names} = {extents:?}"),
            "a shape whose number of elements fits in usize",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_length_names_the_argument_the_count_and_the_shape() {
        let error = check_shape("q", &[0.0; 5], "[query_length, head_dim]", &[2, 3]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "q: 5 elements; expected 6, the shape [query_length, head_dim] = [2, 3]"
        );
    }

    #[test]
    fn a_shape_past_usize_is_an_error_and_a_shape_with_a_zero_is_empty() {
        assert!(volume("q", "[a, b]", &[usize::MAX, 2]).is_err());
        assert_eq!(volume("q", "[a, b, c]", &[usize::MAX, 2, 0]), Ok(0));
    }
}
