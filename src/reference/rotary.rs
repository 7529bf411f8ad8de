//! Rotation of head rows: LongRoPE's rotary embedding (arXiv 2402.13753, Eq. 3), its transpose, and re-rotation.

use super::error::volume;
use super::{Angle, ReferenceError};

/// Which two elements of a row make a pair. `pairs` frequencies rotate the first `2 · pairs` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Elements `i` and `i + pairs`: GPT-NeoX, Hugging Face's `rotate_half`.
    HalfSplit,
    /// Elements `2i` and `2i + 1`: RoFormer (arXiv 2104.09864), GPT-J.
    Interleaved,
}

/// Which of the two linear maps is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The rotation, times the gain.
    Forward,
    /// Its transpose, times the gain: what takes the gradient of the output to that of the input.
    Backward,
}

/// One set of frequencies and its gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors<'a> {
    /// Radians a token, of each pair.
    pub frequencies: &'a [f64],
    /// Multiplies sine and cosine: the attention factor, `mscale`.
    pub gain: f64,
}

/// The sets a LongRoPE model chooses among, and what it chooses by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FactorSets<'a> {
    plain: &'a [f64],
    short: Factors<'a>,
    long: Factors<'a>,
    original_length: u64,
    first_tokens: u64,
}

impl<'a> FactorSets<'a> {
    /// Frequencies are in radians a token: `plain` un-interpolated, always with a gain of 1, `short` and `long` already
    /// divided by their factors. `original_length` is the context of pre-training in tokens, L0; `first_tokens` the number
    /// of un-interpolated tokens, n̂ (0 in all released models).
    ///
    /// # Errors
    /// Where the three sets differ in length.
    pub fn new(
        plain: &'a [f64],
        short: Factors<'a>,
        long: Factors<'a>,
        original_length: u64,
        first_tokens: u64,
    ) -> Result<Self, ReferenceError> {
        for (argument, set) in [("short", short), ("long", long)] {
            if set.frequencies.len() != plain.len() {
                return Err(ReferenceError::invalid(
                    argument,
                    format!("{} frequencies", set.frequencies.len()),
                    format!("{}, as many as in plain", plain.len()),
                ));
            }
        }
        Ok(Self { plain, short, long, original_length, first_tokens })
    }

    /// What rotates the token at `position` of a sequence of `sequence_length` tokens (arXiv 2402.13753, Eq. 3; the choice
    /// by length is Hugging Face's): positions below n̂ are plain, with a gain of 1; others take the long set where the
    /// sequence is longer than L0, and the short one where it is not. The position is never shifted by n̂. A negative
    /// position, which the paper does not have, is below every n̂ but 0, which stands for no plain token at all.
    pub fn frequencies_for(&self, position: i64, sequence_length: u64) -> Factors<'a> {
        if self.first_tokens > 0 && i128::from(position) < i128::from(self.first_tokens) {
            Factors { frequencies: self.plain, gain: 1.0 }
        } else if sequence_length > self.original_length {
            self.long
        } else {
            self.short
        }
    }
}

/// Rotates one row `x` of `[head_dim]` by `position · frequencies[i]` radians in the plane of pair `i`, times `gain`:
/// `y1 = gain (x1 cos - x2 sin)`, `y2 = gain (x2 cos + x1 sin)`. Elements past the last pair are copied, without the gain.
///
/// Each element is within `4e-16 · gain · (|x1| + |x2|)` of the exact value.
///
/// # Errors
/// Where there are more pairs than fit in the row, a frequency is out of range ([`Angle::of`]), or `gain` is not finite.
pub fn rotate(
    x: &[f64],
    position: i64,
    frequencies: &[f64],
    gain: f64,
    pairing: Pairing,
) -> Result<Vec<f64>, ReferenceError> {
    let factors = Factors { frequencies, gain };
    rotate_rows(x, 1, &[position], |_| factors, pairing, Direction::Forward)
}

/// The transpose of [`rotate`]: takes `d_out`, the gradient of its output `[head_dim]`, to that of its input.
///
/// # Errors
/// Those of [`rotate`].
pub fn rotate_backward(
    d_out: &[f64],
    position: i64,
    frequencies: &[f64],
    gain: f64,
    pairing: Pairing,
) -> Result<Vec<f64>, ReferenceError> {
    let factors = Factors { frequencies, gain };
    rotate_rows(d_out, 1, &[position], |_| factors, pairing, Direction::Backward)
}

/// Takes a row `x` of `[head_dim]` that was rotated at `position` by the factors `from` to what `to` would have given: the
/// inverse of the one, which is its transpose over the square of its gain, then the other.
///
/// # Errors
/// Those of [`rotate`], and where the gain of `from` is zero.
pub fn rerotate(
    x: &[f64],
    position: i64,
    from: Factors,
    to: Factors,
    pairing: Pairing,
) -> Result<Vec<f64>, ReferenceError> {
    if from.gain == 0.0 || from.frequencies.len() != to.frequencies.len() {
        return Err(ReferenceError::invalid(
            "from",
            format!("{} frequencies with a gain of {}", from.frequencies.len(), from.gain),
            format!("{} frequencies, as many as in `to`, with a gain other than zero", to.frequencies.len()),
        ));
    }
    let original = rotate_backward(x, position, from.frequencies, 1.0 / from.gain, pairing)?;
    rotate(&original, position, to.frequencies, to.gain, pairing)
}

/// [`rotate`], or its transpose, of `x` in `[positions.len(), heads, head_dim]`: row `r` of every head at `positions[r]`, by
/// the factors that `choose` gives for that position. `|_| factors` is one set for all;
/// `|position| sets.frequencies_for(position, sequence_length)` is LongRoPE's choice.
///
/// # Errors
/// Those of [`rotate`], and where the length of `x` is not a multiple of `positions.len() · heads`.
pub fn rotate_rows<'a>(
    x: &[f64],
    heads: usize,
    positions: &[i64],
    choose: impl Fn(i64) -> Factors<'a>,
    pairing: Pairing,
    direction: Direction,
) -> Result<Vec<f64>, ReferenceError> {
    let rows = volume("x", "[positions, heads]", &[positions.len(), heads])?;
    if rows == 0 && x.is_empty() {
        return Ok(Vec::new());
    }
    if rows == 0 || !x.len().is_multiple_of(rows) {
        return Err(ReferenceError::invalid(
            "x",
            format!("{} elements", x.len()),
            format!("a multiple of positions × heads = {} × {heads}", positions.len()),
        ));
    }
    let head_dim = x.len() / rows;

    let mut out = x.to_vec();
    for (row, &position) in positions.iter().enumerate() {
        let Factors { frequencies, gain } = choose(position);
        check(frequencies, gain, head_dim)?;
        for (pair, &frequency) in frequencies.iter().enumerate() {
            let angle = Angle::of(position, frequency)?;
            let cos = gain * angle.cos;
            let sin = match direction {
                Direction::Forward => gain * angle.sin,
                Direction::Backward => -gain * angle.sin,
            };
            let (first, second) = match pairing {
                Pairing::HalfSplit => (pair, pair + frequencies.len()),
                Pairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            for head in 0..heads {
                let start = (row * heads + head) * head_dim;
                let (x1, x2) = (x[start + first], x[start + second]);
                out[start + first] = x1 * cos - x2 * sin;
                out[start + second] = x2 * cos + x1 * sin;
            }
        }
    }
    Ok(out)
}

fn check(frequencies: &[f64], gain: f64, head_dim: usize) -> Result<(), ReferenceError> {
    if frequencies.len() > head_dim / 2 {
        return Err(ReferenceError::invalid(
            "frequencies",
            format!("{} pairs", frequencies.len()),
            format!("at most {}, half of head_dim = {head_dim}", head_dim / 2),
        ));
    }
    if !gain.is_finite() {
        return Err(ReferenceError::invalid("gain", gain, "a finite number"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_split_pairs_elements_half_a_rotary_dim_apart_and_interleaved_pairs_neighbours() {
        let (sin, cos) = (1f64.sin(), 1f64.cos());
        let tiny = 1e-300; // a second pair that does not turn
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        let half = rotate(&x, 1, &[1.0, tiny], 1.0, Pairing::HalfSplit).unwrap();
        assert_eq!(half, [cos - 3.0 * sin, 2.0, 3.0 * cos + sin, 4.0, 5.0]);
        let neighbours = rotate(&x, 1, &[1.0, tiny], 1.0, Pairing::Interleaved).unwrap();
        assert_eq!(neighbours, [cos - 2.0 * sin, 2.0 * cos + sin, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn the_set_is_chosen_by_position_first_and_then_strictly_by_length() {
        let short = Factors { frequencies: &[0.5], gain: 1.1 };
        let long = Factors { frequencies: &[0.25], gain: 1.2 };
        let sets = FactorSets::new(&[1.0], short, long, 4096, 8).unwrap();
        let chosen = |position, length| {
            let factors = sets.frequencies_for(position, length);
            (factors.frequencies[0], factors.gain)
        };
        assert_eq!(chosen(7, 1 << 21), (1.0, 1.0));
        assert_eq!(chosen(8, 1 << 21), (0.25, 1.2));
        assert_eq!(chosen(8, 4097), (0.25, 1.2));
        assert_eq!(chosen(8, 4096), (0.5, 1.1));
        assert_eq!(chosen(i64::MAX, 1), (0.5, 1.1));
        assert_eq!(chosen(0, 1), (1.0, 1.0));
    }

    #[test]
    fn sets_of_unequal_length_are_refused() {
        let one = Factors { frequencies: &[1.0], gain: 1.0 };
        let none = Factors { frequencies: &[], gain: 1.0 };
        let error = FactorSets::new(&[1.0], one, none, 1, 0).unwrap_err();
        assert_eq!(error.to_string(), "long: 0 frequencies is not valid; expected 1, as many as in plain");
    }

    #[test]
    fn bad_arguments_are_named_and_nothing_panics() {
        let named = |result: Result<Vec<f64>, ReferenceError>| {
            let message = result.unwrap_err().to_string();
            message.split(':').next().unwrap().to_owned()
        };
        let half = Pairing::HalfSplit;
        assert_eq!(named(rotate(&[0.0; 3], 0, &[1.0; 2], 1.0, half)), "frequencies");
        assert_eq!(named(rotate(&[0.0; 2], 0, &[f64::NAN], 1.0, half)), "frequency");
        assert_eq!(named(rotate(&[0.0; 2], 0, &[1.0], f64::NAN, half)), "gain");
        let one = Factors { frequencies: &[1.0], gain: 1.0 };
        let none = Factors { frequencies: &[1.0], gain: 0.0 };
        assert_eq!(named(rerotate(&[0.0; 2], 0, none, one, half)), "from");
        for (x, heads, positions) in [(&[0.0; 2][..], 0, &[0][..]), (&[0.0; 3], 2, &[1]), (&[0.0], 1, &[])] {
            let rows = rotate_rows(x, heads, positions, |_| one, half, Direction::Forward);
            assert_eq!(named(rows), "x");
        }
        let empty = rotate_rows(&[], 4, &[], |_| one, half, Direction::Forward);
        assert_eq!(empty, Ok(vec![]));
    }
}
