//! Rows of gradients that are staged, rotated and written (`gradient_rotation.cuh`), against the f64 reference.

use longrope::reference::rotary::rotate_rows;
use longrope::reference::{Direction, FactorSets, Factors, Pairing};
use longrope::scaling::phase_step;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::host::{self, StagedRows};
use crate::{frequency, phase_error};

/// What an angle is within, beside the rounding of its step: that of the first row of a run and of a token to `COS_SIN_32`, and
/// seven turns that each add both and the rounding of three f32 operations.
const TURNED: f64 = 3e-6;

#[derive(Debug, Clone)]
struct Case {
    form: usize,
    /// Plain, short and long.
    frequencies: [Vec<f64>; 3],
    gains: [f64; 2],
    interleaved: bool,
    first_tokens: i64,
    long: bool,
    position: i64,
    head_dim: usize,
    there: usize,
    first_row: usize,
    accumulate: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let position = prop_oneof![-40i64..40, 0..1i64 << 21, -(1i64 << 40)..1 << 40];
    let first_tokens = prop_oneof![2 => Just(0i64), 2 => 1i64..60, 1 => Just(i64::MAX)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (0usize..4, 0.0..1.0f64, 0.0..1.0f64, flags, position, first_tokens, any::<u64>()).prop_flat_map(
        |(form, dims, pairs, (interleaved, long, accumulate), position, first_tokens, seed)| {
            let (padded, rows) = host::staged_form(form);
            let head_dim = 8 * (1 + (dims * (padded / 8) as f64) as usize).min(padded / 8);
            // All of a head, a multiple of eight, or any number.
            let half = head_dim / 2;
            let pairs = match seed % 3 {
                0 => half,
                1 => ((pairs * half as f64) as usize / 8 * 8).max(1),
                _ => 1 + (pairs * half as f64) as usize % half,
            };
            let frequencies = [(); 3].map(|()| vec(frequency(), pairs));
            // The first row near the end of the first tokens, too.
            let near = (first_tokens < 60 && seed % 5 == 0).then(|| first_tokens - (seed % 16) as i64);
            (frequencies, [0.3..1.9f64, 0.3..1.9], 1..=rows, 0usize..3).prop_map(
                move |(frequencies, gains, there, first_row)| Case {
                    form,
                    frequencies,
                    gains,
                    interleaved,
                    first_tokens,
                    long,
                    position: near.unwrap_or(position),
                    head_dim,
                    there,
                    first_row,
                    accumulate,
                    seed,
                },
            )
        },
    )
}

pub fn staged_rows_are_written_times_the_transpose_of_the_rotation_of_their_positions() {
    let cases = ProptestConfig::with_cases(500);
    let config = ProptestConfig { failure_persistence: None, ..cases };
    proptest!(config, |(case in case())| check(case)?);
}

fn check(case: Case) -> Result<(), TestCaseError> {
    let Case { head_dim, there, first_row, ref frequencies, gains, .. } = case;
    let rows = host::staged_form(case.form).1;
    let mut state = case.seed;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let from: Vec<f32> = (0..rows * head_dim).map(|_| random()).collect();
    let before: Vec<f32> = (0..(rows + 4) * head_dim).map(|_| random()).collect();
    let mut found = before.clone();
    let steps: Vec<u64> = frequencies.iter().flatten().map(|&f| phase_step(f).unwrap()).collect();
    host::write_rotated(
        &StagedRows {
            form: case.form,
            steps: &steps,
            gains: [1.0, gains[0], gains[1]],
            interleaved: case.interleaved,
            first_tokens: case.first_tokens,
            set: if case.long { 2 } else { 1 },
            position: case.position,
            from: &from,
            head_dim,
            there,
            first_row,
            accumulate: case.accumulate,
        },
        &mut found,
    );

    let [plain, short, long] = frequencies;
    let factors = |frequencies, gain| Factors { frequencies, gain };
    let first_tokens = case.first_tokens as u64;
    let sets =
        FactorSets::new(plain, factors(short, gains[0]), factors(long, gains[1]), 1, first_tokens).unwrap();
    let positions: Vec<i64> = (0..there as i64).map(|row| case.position + row).collect();
    let pairing = if case.interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
    let staged: Vec<f64> = from[..there * head_dim].iter().map(|&x| f64::from(x)).collect();
    let choose = |position| sets.frequencies_for(position, if case.long { 2 } else { 1 });
    let exact = rotate_rows(&staged, 1, &positions, choose, pairing, Direction::Backward).unwrap();
    for (i, (&found, &before)) in found.iter().zip(&before).enumerate() {
        let (row, dim) = (i / head_dim, i % head_dim);
        if !(first_row..first_row + there).contains(&row) {
            prop_assert_eq!(found, before, "row {}, which is not to be written", row);
            continue;
        }
        let start = (row - first_row) * head_dim;
        let pairs = plain.len();
        let position = positions[row - first_row];
        let bound = if dim < 2 * pairs {
            let (x, y) = match pairing {
                Pairing::HalfSplit => (dim % pairs, dim % pairs + pairs),
                Pairing::Interleaved => (dim / 2 * 2, dim / 2 * 2 + 1),
            };
            let gain = choose(position).gain;
            gain * staged[start + x].hypot(staged[start + y]) * (TURNED + phase_error(position))
        } else {
            0.0
        };
        let wanted = exact[start + dim] + if case.accumulate { f64::from(before) } else { 0.0 };
        // Sums are rounded once more.
        let bound = bound + 6e-8 * wanted.abs();
        let error = (f64::from(found) - wanted).abs();
        prop_assert!(error <= bound, "row {row}, dimension {dim}: off by {error:e}, allowed {bound:e}");
    }
    Ok(())
}
