//! Correct rounding of an f64 to a narrower format, and whether a rounded result is within a bound of the exact one.
//!
//! The rounding is from the bits of the f64, once. A conversion by way of f32, or one that drops low bits first, rounds
//! twice: a value just past the middle of two f16 becomes the middle, and then goes to the even one.

use super::ReferenceError;

/// A binary format of IEEE 754, or bfloat16: what a result is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    Bf16,
    /// binary16: 5 exponent bits, 10 fraction bits.
    F16,
    /// binary32: 8 exponent bits, 23 fraction bits.
    F32,
}

impl Format {
    const fn exponent_bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::F32 => 8,
            Self::F16 => 5,
        }
    }

    const fn fraction_bits(self) -> u32 {
        match self {
            Self::Bf16 => 7,
            Self::F16 => 10,
            Self::F32 => 23,
        }
    }

    /// The bits of +∞: every exponent bit, no fraction bit.
    const fn infinity(self) -> u32 {
        ((1 << self.exponent_bits()) - 1) << self.fraction_bits()
    }

    const fn sign_bit(self) -> u32 {
        1 << (self.exponent_bits() + self.fraction_bits())
    }

    /// The power of two of the least subnormal: -133, -24 and -149.
    const fn least_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits() - 1)) - self.fraction_bits() as i32
    }

    /// The bits of `x` rounded to the nearest number of the format, ties to even; past the largest one by half a step or
    /// more, infinity. The sign of zero is kept, also where `x` rounds to zero. A NaN becomes the quiet NaN of its sign
    /// without payload. A 16-bit format fills the low half.
    pub fn round(self, x: f64) -> u32 {
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        if x.is_nan() {
            return sign | self.infinity() | 1 << (self.fraction_bits() - 1);
        }
        if x.is_infinite() {
            return sign | self.infinity();
        }

        // |x| = integer · 2^exponent, exactly.
        let fraction = x.to_bits() & ((1 << 52) - 1);
        let (integer, exponent) = match (x.to_bits() >> 52 & 0x7ff) as i32 {
            0 => (fraction, -1074),
            biased => (fraction | 1 << 52, biased - 1075),
        };
        if integer == 0 {
            return sign;
        }

        // The step of the format at |x|, as a power of two; no smaller than its least subnormal.
        let leading = integer.ilog2() as i32 + exponent;
        let step = (leading - self.fraction_bits() as i32).max(self.least_exponent());
        // |x| in steps. An f64 is finer than any format: at least 29 bits drop.
        let dropped = (step - exponent) as u32;
        let (mut steps, rest, half) = match dropped {
            // |x| is below a quarter of a step.
            64.. => (0, 0, 1),
            _ => (integer >> dropped, integer & ((1 << dropped) - 1), 1 << (dropped - 1)),
        };
        if rest > half || rest == half && steps & 1 == 1 {
            steps += 1;
        }

        // A subnormal is its count of steps. Each power of two above adds 2^fraction_bits to the code: the leading bit of
        // `steps` is the first of them, and a carry past the fraction is the next, as the format has it.
        let binades = (step - self.least_exponent()) as u64;
        let code = (binades << self.fraction_bits()) + steps;
        sign | code.min(self.infinity() as u64) as u32
    }

    /// The value of the bits of a number of the format: exact, since f64 holds them all. Bits above the format are not read.
    pub fn decode(self, bits: u32) -> f64 {
        let magnitude = bits & (self.sign_bit() - 1);
        let sign = if bits & self.sign_bit() == 0 { 1.0 } else { -1.0 };
        if magnitude >= self.infinity() {
            let nan = magnitude > self.infinity();
            return if nan { f64::NAN } else { sign * f64::INFINITY };
        }
        let fraction = magnitude & ((1 << self.fraction_bits()) - 1);
        let (steps, binades) = match magnitude >> self.fraction_bits() {
            0 => (fraction, 0),
            biased => (fraction | 1 << self.fraction_bits(), biased as i32 - 1),
        };
        // Powers of two down to 2^-149 are normal in f64, so the product is exact.
        let unit = f64::from_bits(((self.least_exponent() + binades + 1023) as u64) << 52);
        sign * steps as f64 * unit
    }

    /// Whether `bits`, a result in the format, lies between `round(exact - eps)` and `round(exact + eps)`, both included:
    /// what a computation within `eps` of `exact` gives by rounding once. Zeros of both signs are equal. A NaN is right
    /// where `exact` is NaN, and nowhere else.
    ///
    /// # Errors
    /// Where `eps` is negative, infinite or NaN.
    pub fn within(self, bits: u32, exact: f64, eps: f64) -> Result<bool, ReferenceError> {
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(ReferenceError::invalid(
                "eps",
                eps,
                "a bound on an absolute error: finite, zero or above",
            ));
        }
        let found = self.decode(bits);
        if exact.is_nan() {
            return Ok(found.is_nan());
        }
        let low = self.decode(self.round(exact - eps));
        let high = self.decode(self.round(exact + eps));
        Ok(low <= found && found <= high)
    }
}

/// The bits of `x` rounded to bf16, ties to even: [`Format::round`].
pub fn round_bf16(x: f64) -> u16 {
    Format::Bf16.round(x) as u16
}

/// The bits of `x` rounded to f16, ties to even: [`Format::round`].
pub fn round_f16(x: f64) -> u16 {
    Format::F16.round(x) as u16
}

/// `x` rounded to f32, ties to even: [`Format::round`].
pub fn round_f32(x: f64) -> f32 {
    f32::from_bits(Format::F32.round(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    const FORMATS: [Format; 3] = [Format::Bf16, Format::F16, Format::F32];

    /// A few steps of every kind of neighbourhood of f32, and every number of the 16-bit formats, infinity excluded.
    fn magnitudes(format: Format) -> Vec<u32> {
        match format {
            Format::F32 => (0..format.infinity())
                .step_by(65_521)
                .chain(0..1000)
                .chain(0x7f7f_ff00..0x7f80_0000)
                .collect(),
            _ => (0..format.infinity()).collect(),
        }
    }

    #[test]
    fn every_number_of_a_format_rounds_to_itself_with_its_sign() {
        for format in FORMATS {
            for bits in magnitudes(format).into_iter().chain([format.infinity()]) {
                assert_eq!(format.round(format.decode(bits)), bits);
                let negative = bits | format.sign_bit();
                assert_eq!(format.round(format.decode(negative)), negative);
            }
        }
    }

    #[test]
    fn every_midpoint_goes_to_the_even_neighbour_and_the_f64_beside_it_to_its_own() {
        for format in FORMATS {
            for bits in magnitudes(format) {
                // Past the largest number, infinity stands where the next power of two would.
                let above = match format.decode(bits + 1) {
                    f64::INFINITY => 2f64.powi(1 << (format.exponent_bits() - 1)),
                    above => above,
                };
                let middle = (format.decode(bits) + above) / 2.0;
                for (x, expected) in
                    [(middle, bits + (bits & 1)), (middle.next_down(), bits), (middle.next_up(), bits + 1)]
                {
                    assert_eq!(format.round(x), expected, "{format:?} {x:e}");
                    assert_eq!(format.round(-x), expected | format.sign_bit(), "{format:?} -{x:e}");
                }
            }
        }
    }

    #[test]
    fn decoding_agrees_with_half_and_f32_on_every_pattern_of_16_bits() {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for bits in 0..=u16::MAX {
            let wide = u32::from(bits);
            assert!(same(Format::Bf16.decode(wide), bf16::from_bits(bits).to_f64()));
            assert!(same(Format::F16.decode(wide), f16::from_bits(bits).to_f64()));
            for f32_bits in [wide, wide << 16 | 0x5a5a] {
                assert!(same(Format::F32.decode(f32_bits), f32::from_bits(f32_bits).into()));
            }
        }
    }

    #[test]
    fn zeros_keep_their_sign_and_values_below_half_a_subnormal_become_them() {
        for format in FORMATS {
            let least = format.decode(1);
            for x in [0.0, f64::from_bits(1), f64::MIN_POSITIVE, least / 4.0, least / 2.0] {
                assert_eq!(format.round(x), 0);
                assert_eq!(format.round(-x), format.sign_bit());
            }
            assert_eq!(format.round((least / 2.0).next_up()), 1);
        }
    }

    #[test]
    fn overflow_starts_half_a_step_past_the_largest_number() {
        for (format, limit) in [
            (Format::F16, 65_520.0),
            (Format::Bf16, 2f64.powi(128) - 2f64.powi(119)),
            (Format::F32, 2f64.powi(128) - 2f64.powi(103)),
        ] {
            assert_eq!(format.round(limit), format.infinity());
            assert_eq!(format.round(limit.next_down()), format.infinity() - 1);
            for x in [f64::MAX, f64::INFINITY] {
                assert_eq!(format.round(x), format.infinity());
                assert_eq!(format.round(-x), format.infinity() | format.sign_bit());
            }
        }
    }

    #[test]
    fn nan_becomes_the_quiet_nan_of_its_sign() {
        let payload = f64::from_bits(0x7ff0_0000_0000_0001);
        assert_eq!((round_bf16(payload), round_bf16(-payload)), (0x7fc0, 0xffc0));
        assert_eq!((round_f16(payload), round_f16(-payload)), (0x7e00, 0xfe00));
        assert!(round_f32(payload).is_nan());
    }

    #[test]
    fn a_value_just_past_a_middle_is_not_rounded_twice() {
        // 1 + 2^-11 is the middle of two f16; 2^-40 more is lost on the way through f32.
        let trap = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(f16::from_f32(trap as f32).to_bits(), 0x3c00);
        assert_eq!(round_f16(trap), 0x3c01);
        let trap = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(bf16::from_f32(trap as f32).to_bits(), 0x3f80);
        assert_eq!(round_bf16(trap), 0x3f81);
    }

    #[test]
    fn a_result_is_within_its_bound_up_to_one_rounding() {
        let within = |x: f64, exact, eps| Format::F16.within(Format::F16.round(x), exact, eps).unwrap();
        let step = 2f64.powi(-10);
        assert!(within(1.0, 1.0 + 0.5 * step, 0.0), "the tie goes to the even number");
        assert!(!within(1.0 + step, 1.0 + 0.5 * step, 0.0));
        assert!(within(1.0 + step, 1.0 + 0.5 * step, 1e-9), "either neighbour of a tie");
        assert!(!within(1.0 + 2.0 * step, 1.0 + 0.5 * step, 0.4 * step));
        assert!(within(-0.0, 0.0, 0.0) && within(0.0, -1e-9, 0.0));
        assert!(within(f64::INFINITY, 65_519.0, 1.0) && !within(f64::INFINITY, 65_000.0, 1.0));
        assert!(within(f64::NAN, f64::NAN, 1.0));
        assert!(!within(f64::NAN, 1.0, 1.0) && !within(1.0, f64::NAN, 1.0));
        assert!(within(f64::INFINITY, f64::INFINITY, 1.0) && !within(65_504.0, f64::INFINITY, 1.0));
        for eps in [-1.0, f64::NAN, f64::INFINITY] {
            let message = Format::F16.within(0, 0.0, eps).unwrap_err().to_string();
            assert!(message.starts_with("eps: "));
        }
    }

    proptest! {
        #[test]
        fn any_f64_rounds_to_the_f32_of_the_language(bits: u64) {
            let x = f64::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(round_f32(x).to_bits(), (x as f32).to_bits());
        }

        #[test]
        fn any_f32_rounds_to_the_halves_of_the_half_crate(x in prop::num::f32::ANY, exponent in -30i32..20) {
            prop_assume!(!x.is_nan());
            let near = (x.to_bits() & 0x007f_ffff | 0x3f80_0000, exponent);
            for x in [x, f32::from_bits(near.0) * 2f32.powi(near.1)] {
                prop_assert_eq!(round_bf16(x.into()), bf16::from_f32(x).to_bits());
                prop_assert_eq!(round_f16(x.into()), f16::from_f32(x).to_bits());
            }
        }

        #[test]
        fn rounding_never_reverses_an_order(a in prop::num::f64::NORMAL, b in prop::num::f64::NORMAL) {
            for format in FORMATS {
                let (low, high) = (format.round(a.min(b)), format.round(a.max(b)));
                prop_assert!(format.decode(low) <= format.decode(high));
            }
        }
    }
}
