//! The integer steps against the oracle's phase, which shares nothing with them.

use longrope::reference::Angle;
use longrope::scaling::{phase, phase_step};
use proptest::prelude::*;

/// The distance between the step's angle and the oracle's, in radians.
fn error(position: i64, frequency: f64) -> f64 {
    let step = phase_step(frequency).unwrap();
    let turns = phase(position, step) as f64 * 2f64.powi(-64);
    let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
    let exact = Angle::of(position, frequency).unwrap();
    (sin - exact.sin).hypot(cos - exact.cos)
}

/// `|position| * 2^-65` turns, and the roundings of this comparison itself.
fn bound(position: i64) -> f64 {
    position.unsigned_abs() as f64 * 2f64.powi(-65) * std::f64::consts::TAU + 2e-15
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_error_of_a_phase_is_half_a_unit_a_token(
        position in any::<i32>(), pair in 0usize..64, theta in 1e2..1e7f64, lambda in 0.2..600.0f64
    ) {
        let frequency = theta.powf(-(pair as f64) / 64.0) / lambda;
        prop_assert!(error(position.into(), frequency) <= bound(position.into()));
    }

    #[test]
    fn the_wrap_holds_to_two_to_the_62(position in -(1i64 << 62)..1i64 << 62, frequency in 1e-7..20.0f64) {
        // The step's rounding grows with the position: what is compared is the wrap of the integer product.
        let step = phase_step(frequency).unwrap();
        let wide = i128::from(position) * i128::from(step);
        prop_assert_eq!(phase(position, step), wide as i64);
        let near = position >> 31;
        prop_assert!(error(near, frequency) <= bound(near));
    }

    #[test]
    fn phases_add_up_as_positions_do(a in any::<i32>(), b in any::<i32>(), frequency in 1e-7..20.0f64) {
        let step = phase_step(frequency).unwrap();
        let (a, b) = (i64::from(a), i64::from(b));
        prop_assert_eq!(phase(a + b, step), phase(a, step).wrapping_add(phase(b, step)));
    }
}

#[test]
fn the_ends_of_the_32_bit_range_are_within_the_bound() {
    for frequency in [1.0, 1e-4, std::f64::consts::TAU, 7.0, 0.017, 1.0 / 3.0] {
        for position in [i32::MIN.into(), i32::MAX.into(), 0, 1, -1, 1 << 21] {
            assert!(error(position, frequency) <= bound(position), "{position} {frequency}");
        }
    }
}
