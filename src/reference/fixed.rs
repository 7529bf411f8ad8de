//! A fixed-point number wide enough for any angle, and its remainder by a quarter turn.

/// Bits after the point.
pub(crate) const FRACTION_BITS: u32 = 320;
const LIMBS: usize = 7;

/// A number in 0 ≤ x < 2^128 with 320 bits after the point, least significant limb first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fixed([u64; LIMBS]);

/// floor(π/2 · 2^320): below π/2 by less than 2^-320.
const HALF_PI: Fixed = Fixed([
    0xa294_10f3_1c68_09bb,
    0x0417_7d4c_7627_3644,
    0x5204_9c11_14cf_98e8,
    0x898c_c517_01b8_39a2,
    0x921f_b544_42d1_8469,
    1,
    0,
]);

impl Fixed {
    /// `integer · 2^(shift - 320)`. Bits past the top are lost: the caller keeps the value below 2^128.
    pub(crate) fn new(integer: u128, shift: u32) -> Self {
        let mut limbs = [0; LIMBS];
        limbs[0] = integer as u64;
        limbs[1] = (integer >> 64) as u64;
        Self(limbs).shifted_left(shift)
    }

    /// The least number of bits that hold the whole number, those after the point included.
    fn bit_length(self) -> u32 {
        match self.0.iter().rposition(|&limb| limb != 0) {
            Some(top) => 64 * top as u32 + 64 - self.0[top].leading_zeros(),
            None => 0,
        }
    }

    fn bit(self, index: u32) -> u64 {
        self.0[(index / 64) as usize] >> (index % 64) & 1
    }

    fn shifted_left(self, shift: u32) -> Self {
        let mut limbs = [0; LIMBS];
        let (whole, part) = ((shift / 64) as usize, shift % 64);
        for index in (whole..LIMBS).rev() {
            limbs[index] = self.0[index - whole] << part;
            if part > 0 && index > whole {
                limbs[index] |= self.0[index - whole - 1] >> (64 - part);
            }
        }
        Self(limbs)
    }

    fn at_least(self, other: Self) -> bool {
        self.0.iter().rev().ge(other.0.iter().rev())
    }

    /// `self - other`, for `other` at most `self`.
    fn minus(self, other: Self) -> Self {
        let mut limbs = [0; LIMBS];
        let mut borrow = false;
        for (limb, (&a, &b)) in limbs.iter_mut().zip(self.0.iter().zip(&other.0)) {
            let (difference, first) = a.overflowing_sub(b);
            let (difference, second) = difference.overflowing_sub(borrow as u64);
            *limb = difference;
            borrow = first || second;
        }
        Self(limbs)
    }

    /// The nearest whole number of quarter turns, modulo 4, and what is left: at most half of π/2, with its sign apart.
    ///
    /// Long division, one bit of the quotient a step. The remainder is that of division by a number below π/2 by less than
    /// 2^-320, so it is above the true one by less than quotient · 2^-320.
    pub(crate) fn quarter_turns(self) -> (u8, bool, Self) {
        let mut remainder = self;
        let mut quotient = 0u8;
        let steps = self.bit_length().saturating_sub(HALF_PI.bit_length());
        for step in (0..=steps).rev() {
            let multiple = HALF_PI.shifted_left(step);
            let goes = remainder.at_least(multiple);
            if goes {
                remainder = remainder.minus(multiple);
            }
            // Only the two lowest bits of the quotient survive.
            quotient = (quotient << 1 | goes as u8) & 3;
        }
        if remainder.shifted_left(1).at_least(HALF_PI) {
            ((quotient + 1) & 3, true, HALF_PI.minus(remainder))
        } else {
            (quotient, false, remainder)
        }
    }

    /// The number as an unevaluated sum `high + low`: `high` is within half an ulp of the number, and the sum within
    /// 2^-104 of it, relatively.
    pub(crate) fn to_f64_pair(self) -> (f64, f64) {
        // The leading 112 bits: the conversions to f64 and back below then stay far from overflow.
        const LEADING: u32 = 112;
        let length = self.bit_length();
        let dropped = length.saturating_sub(LEADING);
        let leading = (dropped..length).rev().fold(0u128, |bits, index| bits << 1 | self.bit(index) as u128);
        let (high, low) = split(leading);
        let unit = power_of_two(dropped as i32 - FRACTION_BITS as i32);
        (high * unit, low * unit)
    }
}

/// An integer below 2^120 as an unevaluated sum of two f64: the nearest f64, and the nearest f64 to what that leaves.
/// The sum is off by at most 2^-106 of the integer, relatively; below 2^106 it is exact.
pub(crate) fn split(integer: u128) -> (f64, f64) {
    // `as` rounds an integer to the nearest f64, ties to even; `high` is itself an integer, so it converts back exactly.
    let high = integer as f64;
    (high, (integer as i128 - high as i128) as f64)
}

/// 2^exponent, exactly, for any exponent of a finite f64, subnormals included (-1074 to 1023).
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    if exponent >= -1022 {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    } else {
        f64::from_bits(1 << (exponent + 1074))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_quarter_turn_is_half_of_pi_to_the_bits_of_f64() {
        let (high, low) = HALF_PI.to_f64_pair();
        assert_eq!(high, std::f64::consts::FRAC_PI_2);
        // The second word of π/2, as in fdlibm's k_rem_pio2.c.
        assert_eq!(low, 6.123_233_995_736_766e-17);
    }

    #[test]
    fn powers_of_two_are_exact_from_the_least_subnormal_to_the_largest() {
        assert_eq!(power_of_two(-1074), f64::from_bits(1));
        assert_eq!(power_of_two(-1022), f64::MIN_POSITIVE);
        assert_eq!(power_of_two(-1), 0.5);
        assert_eq!(power_of_two(0), 1.0);
        assert_eq!(power_of_two(1023), f64::MAX / (2.0 - f64::EPSILON));
    }

    #[test]
    fn whole_quarter_turns_leave_nothing() {
        for step in 0..=122 {
            let (quarter, back, rest) = HALF_PI.shifted_left(step).quarter_turns();
            assert_eq!((quarter, back), ([1, 2, 0][step.min(2) as usize], false));
            assert_eq!(rest, Fixed([0; LIMBS]));
        }
    }

    #[test]
    fn a_borrow_passes_through_equal_limbs() {
        let difference = Fixed([0, 5, 5, 1, 0, 0, 0]).minus(Fixed([1, 5, 5, 0, 0, 0, 0]));
        assert_eq!(difference, Fixed([u64::MAX, u64::MAX, u64::MAX, 0, 0, 0, 0]));
    }

    proptest! {
        #[test]
        fn shifts_and_differences_agree_with_u128(a: u128, b: u128, shift in 0u32..320) {
            let (small, large) = (a.min(b), a.max(b));
            let difference = Fixed::new(large, shift).minus(Fixed::new(small, shift));
            prop_assert_eq!(difference, Fixed::new(large - small, shift));
            prop_assert!(Fixed::new(large, shift).at_least(Fixed::new(small, shift)));
            prop_assert_eq!(Fixed::new(small, shift).at_least(Fixed::new(large, shift)), small == large);
            prop_assert_eq!(Fixed::new(a, shift).bit_length(), if a == 0 { 0 } else { 128 - a.leading_zeros() + shift });
        }

        #[test]
        fn a_pair_of_f64_holds_the_number_and_its_parts_do_not_overlap(integer in 1u128..1 << 106, shift in 0u32..340) {
            let (high, low) = Fixed::new(integer, shift).to_f64_pair();
            prop_assert_eq!(high + low, high);
            let unit = power_of_two(FRACTION_BITS as i32 - shift as i32);
            prop_assert_eq!((high * unit) as i128 + (low * unit) as i128, integer as i128);
        }
    }
}
