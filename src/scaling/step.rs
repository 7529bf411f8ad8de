//! The exact phase: one 64-bit integer per pair from which the angle at any position follows without rounding.
//!
//! A phase is an unsigned 64-bit fraction of a turn. A pair of frequency `f` radians a token has the step
//! `round(f * 2^64 / 2 pi) mod 2^64`, and its phase at position `n` is `n * step mod 2^64`: one integer product that
//! wraps as angles do. Nothing is range-reduced and no table is needed; negative positions and shifts are exact. The
//! only error is the rounding of the step, at most 1/2 unit: `|n| * 2^-65` turns at position `n`, 3.7e-10 rad at 2^31.

use crate::scaling::ConfigError;

/// `floor(2^320 / 2 pi)`, most significant limb first. The product with a 53-bit mantissa is then known to far below
/// the last bit of a step, for every frequency that [`phase_step`] accepts.
const TURN_PER_RADIAN: [u64; 5] = [
    0x28be_60db_9391_054a,
    0x7f09_d5f4_7d4d_3770,
    0x36d8_a566_4f10_e410,
    0x7f94_58ea_f7ae_f158,
    0x6dc9_1b8e_9093_74b8,
];

/// Frequencies from here on are refused: no rotary embedding turns so often between two tokens.
const FREQUENCY_LIMIT: f64 = (1u64 << 32) as f64;

/// The step of a frequency: `round(frequency * 2^64 / 2 pi) mod 2^64`, in units of 2^-64 turns a token.
///
/// `frequency` is in radians a token. It may exceed 2 pi (a rescale factor below 1 is legal); whole turns drop out.
///
/// # Errors
/// `frequency` negative, not finite, or 2^32 and above.
pub fn phase_step(frequency: f64) -> Result<u64, ConfigError> {
    if !(0.0..FREQUENCY_LIMIT).contains(&frequency) {
        return Err(ConfigError::invalid("frequency", frequency, "radians a token, from 0 to below 2^32"));
    }
    let bits = frequency.abs().to_bits(); // -0.0 is 0
    let (fraction, exponent) = (bits & ((1 << 52) - 1), (bits >> 52) as i32);
    // frequency = mantissa * 2^power
    let (mantissa, power) = match exponent {
        0 => (fraction, -1074),
        _ => (fraction | 1 << 52, exponent - 1075),
    };

    // product = mantissa * floor(2^320 / 2 pi), least significant limb first
    let mut product = [0u64; 6];
    let mut carry = 0u128;
    for (limb, &factor) in product.iter_mut().zip(TURN_PER_RADIAN.iter().rev()) {
        let sum = u128::from(mantissa) * u128::from(factor) + carry;
        *limb = sum as u64;
        carry = sum >> 64;
    }
    product[5] = carry as u64;

    // frequency * 2^64 / 2 pi = product * 2^(power + 64 - 320); the low 64 bits above the point are the step.
    let shift = 256 - power; // at least 277, since the frequency is below 2^32
    Ok(window(&product, shift).wrapping_add(window(&product, shift - 1) & 1))
}

/// Bits `shift .. shift + 64` of a number of six limbs, least significant first.
fn window(limbs: &[u64; 6], shift: i32) -> u64 {
    let (index, offset) = ((shift / 64) as usize, shift % 64);
    let limb = |i: usize| limbs.get(i).copied().unwrap_or(0);
    match offset {
        0 => limb(index),
        _ => limb(index) >> offset | limb(index + 1) << (64 - offset),
    }
}

/// The phase of `position` tokens at `step`, as a signed fraction of a turn in units of 2^-64: from -1/2 to below 1/2.
pub fn phase(position: i64, step: u64) -> i64 {
    (position as u64).wrapping_mul(step) as i64
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{PI, TAU};

    use super::*;

    #[test]
    fn a_step_is_the_frequency_in_turns_to_half_a_unit() {
        // floor(2^64 / 2 pi), from 600-bit arithmetic, and its doubles
        assert_eq!(phase_step(1.0).unwrap(), 0x28be_60db_9391_054a);
        assert_eq!(phase_step(2.0).unwrap(), 0x517c_c1b7_2722_0a95);
        // 2^64 / (2 pi * 4) rounds up: the bits cut off are 10.0...
        assert_eq!(phase_step(0.25).unwrap(), 0x0a2f_9836_e4e4_4153);
        assert_eq!(phase_step(0.0).unwrap(), 0);
        assert_eq!(phase_step(-0.0).unwrap(), 0);
        assert_eq!(phase_step(f64::MIN_POSITIVE / 8.0).unwrap(), 0);
    }

    #[test]
    fn whole_turns_drop_out_of_a_step() {
        // f64's TAU is 2.449e-16 below 2 pi: its step is 2^64 * 2.449e-16 / 2 pi = 719.05 units short of a turn.
        assert_eq!(phase_step(TAU).unwrap(), (719u64).wrapping_neg());
        // Twice and 2^20 times as much, still exact
        assert_eq!(phase_step(2.0 * TAU).unwrap(), (1438u64).wrapping_neg());
        let many = phase_step(TAU * f64::from(1 << 20)).unwrap();
        assert_eq!(many, 754_016_092u64.wrapping_neg());
    }

    #[test]
    fn a_phase_wraps_as_an_angle_does() {
        let step = phase_step(1.0).unwrap();
        for position in [1i64, -1, 1000, -1000, i64::from(i32::MAX)] {
            let turns = phase(position, step) as f64 * 2f64.powi(-64);
            let exact = (position as f64 / TAU).rem_euclid(1.0);
            let difference = (turns - exact).rem_euclid(1.0);
            assert!(difference.min(1.0 - difference) < 1e-7, "{position}");
            assert_eq!(phase(-position, step), phase(position, step).wrapping_neg());
        }
    }

    #[test]
    fn a_frequency_out_of_range_is_refused() {
        for bad in [-1.0, f64::NAN, f64::INFINITY, 2f64.powi(32)] {
            let message = phase_step(bad).unwrap_err().to_string();
            assert!(message.starts_with("frequency: "), "{message}");
        }
        assert!(phase_step(4_294_967_295.5).is_ok());
        assert!(phase_step(PI).is_ok());
    }
}
