//! The exponential of a row of logits, vectorised for the machine it runs on.

use pulp::{Arch, NullaryFnOnce};

/// Below this, `exp` is zero: the weight would be under 1.7e-38 of the largest.
const FLOOR: f32 = -87.0;

/// Replaces every `x` by `exp(x - maximum)` and returns their sum. Every `x` is at most `maximum`, which is finite;
/// minus infinity gives zero, and a NaN a NaN.
///
/// The relative error of each value is at most 2e-7 for what the reduction makes of `x - maximum`.
pub(super) fn exponentials(arch: Arch, row: &mut [f32], maximum: f32) -> f32 {
    arch.dispatch(Exponentials { row, maximum })
}

/// The largest of a row, NaNs apart; minus infinity if there is none.
pub(super) fn maximum(arch: Arch, row: &[f32]) -> f32 {
    arch.dispatch(Maximum { row })
}

/// Values that are worked on side by side. Sixteen running sums make the order of additions, and so the bits, the same
/// for every vector width.
const LANES: usize = 16;

// Types rather than closures: only what is inlined into the dispatcher is compiled for its vectors, and a closure may
// not be.

struct Exponentials<'a> {
    row: &'a mut [f32],
    maximum: f32,
}

impl NullaryFnOnce for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let mut sums = [0f32; LANES];
        let mut blocks = self.row.chunks_exact_mut(LANES);
        for block in &mut blocks {
            for (x, sum) in block.iter_mut().zip(&mut sums) {
                *x = exponential(*x - self.maximum);
                *sum += *x;
            }
        }
        for (x, sum) in blocks.into_remainder().iter_mut().zip(&mut sums) {
            *x = exponential(*x - self.maximum);
            *sum += *x;
        }
        sums.iter().sum()
    }
}

struct Maximum<'a> {
    row: &'a [f32],
}

impl NullaryFnOnce for Maximum<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let mut largest = [f32::NEG_INFINITY; LANES];
        let blocks = self.row.chunks_exact(LANES);
        for (x, m) in blocks.remainder().iter().zip(&mut largest) {
            *m = if *x > *m { *x } else { *m };
        }
        for block in blocks {
            for (x, m) in block.iter().zip(&mut largest) {
                *m = if *x > *m { *x } else { *m };
            }
        }
        largest.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
    }
}

/// `exp(x)` for `x <= 0`, without a branch: `2^n * e^r` with `|r| <= ln 2 / 2` and a polynomial for `e^r`.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    // ln 2 in two parts, the first with few bits so that n times it is exact
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number n, which is then in the sum's low bits: a cast
    // would have to saturate, and is not vectorised.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x < FLOOR { FLOOR } else { x }; // keeps a NaN
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    // The minimax polynomial of e^r - 1 - r over r^2 (Cephes, expf).
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let e = (p * r) * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23)); // 2^n
    if x < FLOOR { 0.0 } else { e * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_f64_to_two_in_ten_million() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exponential(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "{x}: {error}");
        }
        assert_eq!(exponential(0.0), 1.0);
        assert_eq!(exponential(f32::NEG_INFINITY), 0.0);
        assert_eq!(exponential(-1e30), 0.0);
        assert!(exponential(f32::NAN).is_nan());
    }

    #[test]
    fn a_row_gives_its_weights_and_their_sum() {
        for length in [0, 1, 15, 16, 17, 100] {
            let logits: Vec<f32> = (0..length).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
            let arch = Arch::new();
            let largest = maximum(arch, &logits);
            assert_eq!(largest, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut row = logits.clone();
            let sum = if length == 0 { 0.0 } else { exponentials(arch, &mut row, largest) };
            let exact: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).sum();
            assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact, "{length}");
        }
    }
}
