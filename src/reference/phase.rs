//! The exact angle: sine and cosine of `position × frequency`, at any position.
//!
//! How, and how exact. Write the frequency as `m · 2^e` with an integer `m` below 2^53: that is what an f64 is. The product
//! `N = |position| · m` is below 2^116 and is formed in integers, so the angle `N · 2^e` is exact.
//!
//! - An angle below 1/2 needs no reduction: `N` is split into two f64 and scaled by the power of two. The error is below
//!   2^-105 of the angle (and a rounding to the subnormal grid where the angle is below 2^-900 or so).
//! - Any other has `e ≥ -116`, so it is a fixed-point number with 320 bits after the point, exactly. It is divided by
//!   floor(π/2 · 2^320) in integers, bit by bit. Each of the `quotient` subtractions takes less than 2^-320 too little, and
//!   the quotient is below |angle| / 1.57. So the reduced angle is off by less than |angle| · 2^-320: below 2^-257 rad for
//!   angles up to 2^63, and below 2^-197 rad at the most that is accepted, 2^63 positions × 2^60 rad.
//! - What is left, at most π/4, is held as `high + low` to 2^-104 of itself. sin(high + low) = sin high + low · cos high up
//!   to low² / 2 < 2^-108. With a platform's sin and cos within 1 ulp, the values here are within 1.5 ulp: 1.7e-16.
//!
//! No step here is a table, or a multiplication by a rounded 1/2π, as an implementation would use.

use super::ReferenceError;
use super::fixed::{FRACTION_BITS, Fixed, power_of_two, split};

/// The largest frequency accepted: 2^60 radians a token.
pub const MAX_FREQUENCY: f64 = (1u64 << 60) as f64;

/// Sine and cosine of an angle, each within 1.7e-16 of the true value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Angle {
    /// The sine.
    pub sin: f64,
    /// The cosine.
    pub cos: f64,
}

/// An angle modulo whole turns: `quarter · π/2 + high + low`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reduced {
    /// Quarter turns, 0 to 3.
    pub quarter: u8,
    /// The rest in radians, at most π/4 in magnitude, rounded to the nearest f64.
    pub high: f64,
    /// The rest less `high`, in radians: at most half an ulp of `high`.
    pub low: f64,
}

impl Angle {
    /// Sine and cosine of `position · frequency`, with `frequency` in radians a token.
    ///
    /// # Errors
    /// Where the frequency is not positive, or above [`MAX_FREQUENCY`], or NaN.
    pub fn of(position: i64, frequency: f64) -> Result<Self, ReferenceError> {
        let Reduced { quarter, high, low } = reduce(position, frequency)?;
        let (sin, cos) = sin_cos(high, low);
        let (sin, cos) = match quarter {
            0 => (sin, cos),
            1 => (cos, -sin),
            2 => (-sin, -cos),
            _ => (-cos, sin),
        };
        Ok(Self { sin, cos })
    }
}

/// Sine and cosine of `high + low`, to the first order in `low`.
fn sin_cos(high: f64, low: f64) -> (f64, f64) {
    let (sin, cos) = (high.sin(), high.cos());
    (sin + low * cos, cos - low * sin)
}

/// `position · frequency` modulo 2π, with `frequency` in radians a token. The module's documentation bounds the error.
///
/// # Errors
/// Where the frequency is not positive, or above [`MAX_FREQUENCY`], or NaN.
pub fn reduce(position: i64, frequency: f64) -> Result<Reduced, ReferenceError> {
    if !(frequency > 0.0 && frequency <= MAX_FREQUENCY) {
        return Err(ReferenceError::invalid(
            "frequency",
            frequency,
            "a positive number of radians a token, at most 2^60",
        ));
    }
    let (mantissa, exponent) = integer_and_exponent(frequency);
    let product = position.unsigned_abs() as u128 * mantissa as u128;

    let bits = (128 - product.leading_zeros()) as i32;
    let (quarter, high, low) = if bits + exponent < 0 {
        // The angle is below 1/2.
        let (high, low) = split(product);
        let unit = power_of_two(exponent);
        (0, high * unit, low * unit)
    } else {
        // 1/2 ≤ angle ≤ 2^123, or 0: no bit is lost below, since `exponent ≥ -bits ≥ -116`, nor at the top.
        let shift = (exponent + FRACTION_BITS as i32) as u32;
        let (quarter, back, rest) = Fixed::new(product, shift).quarter_turns();
        let (high, low) = rest.to_f64_pair();
        if back { (quarter, -high, -low) } else { (quarter, high, low) }
    };

    Ok(if position < 0 {
        Reduced { quarter: (4 - quarter) & 3, high: -high, low: -low }
    } else {
        Reduced { quarter, high, low }
    })
}

/// A positive finite f64 as `integer · 2^exponent`, with the integer below 2^53.
fn integer_and_exponent(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let fraction = bits & ((1 << 52) - 1);
    match (bits >> 52) as i32 {
        0 => (fraction, -1074),
        biased => (fraction | 1 << 52, biased - 1075),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_f64_is_an_integer_times_a_power_of_two() {
        for value in [1.0, 0.1, 1e-300, 5e-324, f64::MIN_POSITIVE, 2f64.powi(60)] {
            let (integer, exponent) = integer_and_exponent(value);
            assert_eq!(integer as f64 * power_of_two(exponent), value);
        }
    }

    #[test]
    fn the_low_word_turns_sine_and_cosine_to_the_first_order() {
        let low = 2f64.powi(-24);
        for high in [-0.7, -0.1, 0.0, 0.3, 0.75] {
            let (sin, cos) = sin_cos(high, low);
            assert!((sin - (high + low).sin()).abs() <= low * low);
            assert!((cos - (high + low).cos()).abs() <= low * low);
        }
    }

    #[test]
    fn position_zero_is_the_identity_at_every_frequency() {
        for frequency in [5e-324, 1e-30, 1.0, 7.0, MAX_FREQUENCY] {
            assert_eq!(Angle::of(0, frequency), Ok(Angle { sin: 0.0, cos: 1.0 }));
        }
    }

    #[test]
    fn a_tiny_angle_is_its_own_sine() {
        assert_eq!(Angle::of(3, 5e-324).unwrap().sin, 1.5e-323);
        assert_eq!(Angle::of(1, 1e-30).unwrap().sin, 1e-30);
        assert_eq!(Angle::of(-1, 1e-30).unwrap().sin, -1e-30);
    }

    #[test]
    fn a_frequency_out_of_range_is_named_in_the_error() {
        for frequency in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 2f64.powi(61)] {
            let message = Angle::of(1, frequency).unwrap_err().to_string();
            assert!(message.starts_with(&format!("frequency: {frequency} is not valid")));
        }
    }
}
