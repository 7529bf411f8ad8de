//! The arithmetic of the device code, from the kernels' own source, against the f64 reference.
//!
//! `phase.cuh`, `factors.cuh`, `divide.cuh`, `mask.cuh` and `gradient_rotation.cuh` are compiled for the host by the machine's C++ compiler, so these
//! tests need no GPU. Without such a compiler they show as ignored.

mod gradient;
mod host;

use std::f64::consts::TAU;

use host::{Arithmetic, Choices, Positions};
use libtest_mimic::{Arguments, Trial};
use longrope::reference::{Angle, FactorSets, Factors, Problem};
use longrope::scaling::phase_step;
use proptest::collection::vec;
use proptest::prelude::*;

/// What cosines and sines of a known phase are within: the first term that the cosine's series leaves out is
/// (pi/4)^14 / 14! = 3.9e-13.
const COS_SIN: f64 = 4e-13;
/// Half a unit in the last place of an f32 just below 1.
const F32: f64 = 6e-8;
/// What f32 arithmetic makes of a known phase. The angle, of at most pi/4, is rounded three times (to f32, in the constant,
/// in the product); the sums add half a unit of their results and less of their terms.
const COS_SIN_32: f64 = 2.5e-7;

fn frequency() -> impl Strategy<Value = f64> {
    prop_oneof![1e-9..7.0f64, (-30.0..3.0f64).prop_map(f64::exp2)]
}

/// Positions over the 32-bit range, its ends, and up to 2^62.
fn position() -> impl Strategy<Value = i64> {
    let wide = -(1i64 << 62)..=1 << 62;
    let power = (0..=62u32, -1i64..=1, any::<bool>());
    prop_oneof![
        4 => any::<i32>().prop_map(i64::from),
        1 => Just(i64::from(i32::MIN)),
        1 => -100i64..100,
        2 => wide,
        2 => power.prop_map(|(bit, by, negative)| {
            let value = (1i64 << bit) + by;
            if negative { -value } else { value }
        }),
    ]
}

/// How far the angle of a rounded step is off, in radians: half a unit of 2^-64 turns a token.
fn phase_error(position: i64) -> f64 {
    position.unsigned_abs() as f64 * 2f64.powi(-65) * TAU
}

fn close(found: [f64; 2], exact: Angle, bound: f64) -> Result<(), TestCaseError> {
    let error = (found[0] - exact.cos).abs().max((found[1] - exact.sin).abs());
    prop_assert!(error <= bound, "{:?} against {:?}: off by {}, allowed {}", found, exact, error, bound);
    Ok(())
}

/// The exact angle of a phase: its own value in f64 is within 1e-15 of it.
fn angle_of_phase(phase: u64) -> Angle {
    let signed = phase as i64;
    let radians = (signed.unsigned_abs() as f64 * 2f64.powi(-64) * TAU).max(f64::MIN_POSITIVE);
    Angle::of(if signed < 0 { -1 } else { 1 }, radians).unwrap()
}

/// The angle of an f32, which may be negative or zero.
fn angle_of_f32(angle: f32) -> Angle {
    let radians = f64::from(angle.abs()).max(f64::MIN_POSITIVE);
    Angle::of(if angle < 0.0 { -1 } else { 1 }, radians).unwrap()
}

fn widen(pair: [f32; 2]) -> [f64; 2] {
    pair.map(f64::from)
}

/// A mask, and where a query and the first key stand.
#[derive(Debug, Clone)]
struct Mask {
    causal: bool,
    window: Option<u64>,
    /// Of the first query of a run.
    position: i64,
    /// The query's number in the run.
    row: i64,
    key_offset: i64,
    keys: i64,
}

/// Masks of few keys near the query, of any number of keys anywhere, and at the ends of what positions may be.
fn mask() -> impl Strategy<Value = Mask> {
    let window = prop_oneof![
        3 => Just(None),
        3 => (1u64..40).prop_map(Some),
        2 => (0..64u32, -1i64..=1).prop_map(|(bit, by)| Some((1u64 << bit).saturating_add_signed(by).max(1))),
        1 => any::<u64>().prop_map(|window| Some(window.max(1))),
        1 => Just(Some(u64::MAX)),
    ];
    let row = prop_oneof![3 => 0i64..130, 1 => 0i64..1 << 40];
    let keys = prop_oneof![3 => 0i64..200, 1 => 0i64..=1 << 61];
    let apart = prop_oneof![3 => -220i64..220, 1 => -(1i64 << 40)..1 << 40];
    (any::<bool>(), window, position(), row, keys, apart, any::<bool>(), position()).prop_map(
        |(causal, window, position, row, keys, apart, near, elsewhere)| {
            // Positions end at 2^62.
            let far = 1i64 << 62;
            let position = position.min(far - row);
            let key_offset = if near { position + apart } else { elsewhere };
            Mask { causal, window, position, row, key_offset: key_offset.clamp(-far, far - keys), keys }
        },
    )
}

impl Mask {
    fn visible(&self, position: i64, row: i64) -> std::ops::Range<i64> {
        let (_, causal, window, key_offset) = self.fields();
        host::visible(position, causal, window, key_offset, row, self.keys)
    }

    /// Its fields as the host hands them over.
    fn fields(&self) -> (i64, bool, i64, i64) {
        let window = self.window.map_or(0, |window| i64::try_from(window).unwrap_or(i64::MAX));
        (self.position, self.causal, window, self.key_offset)
    }

    /// What the reference says of a key.
    fn allows(&self, key: i64) -> bool {
        let problem = Problem {
            query_heads: 1,
            key_heads: 1,
            query_length: self.row as usize + 1,
            key_length: self.keys as usize,
            head_dim: 1,
            scale: 1.0,
            causal: self.causal,
            window: self.window,
            query_offset: self.position,
            key_offset: self.key_offset,
        };
        problem.allows(self.row as usize, key as usize)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    fn a_phase_is_the_product_modulo_a_turn(position in any::<i64>(), step in any::<u64>()) {
        let product = i128::from(position).wrapping_mul(i128::from(step));
        prop_assert_eq!(host::phase_at(position, step), product.rem_euclid(1 << 64) as u64);
    }

    fn cosine_and_sine_of_every_phase_are_exact(
        phase in prop_oneof![
            any::<u64>(),
            // Around the eighths of a turn, where the quarter changes.
            (0..8u64, -4i64..=4).prop_map(|(eighth, by)| (eighth << 61).wrapping_add_signed(by)),
        ],
    ) {
        close(host::cos_sin_of_phase(phase), angle_of_phase(phase), COS_SIN)?;
    }

    fn cosine_and_sine_in_f32_arithmetic_are_within_their_bound(
        phase in prop_oneof![
            any::<u64>(),
            (0..8u64, -4i64..=4).prop_map(|(eighth, by)| (eighth << 61).wrapping_add_signed(by)),
            (0..8u64, -4i64..=4).prop_map(|(eighth, by)| (eighth << 61).wrapping_add_signed(by << 32)),
            (0..64u32, any::<bool>()).prop_map(|(bit, negative)| if negative { (1u64 << bit).wrapping_neg() } else { 1 << bit }),
        ],
    ) {
        close(widen(host::cos_sin_of_phase_32(phase)), angle_of_phase(phase), COS_SIN_32)?;
    }

    fn the_angle_of_a_position_is_exact_but_for_the_rounding_of_the_step(f in frequency(), n in position()) {
        let step = phase_step(f).unwrap();
        let found = host::cos_sin_of_phase(host::phase_at(n, step));
        close(found, Angle::of(n, f).unwrap(), COS_SIN + phase_error(n))?;
    }

    fn cosine_and_sine_of_an_f32_angle_are_exact(
        angle in prop_oneof![-100.0..100.0f32, -1e9..1e9f32, (-40.0..50.0f32).prop_map(f32::exp2)],
    ) {
        // From about 2^40 on, the number of quarter turns is not always the nearest: the rest is up to 1.03 rad, and the
        // series leaves out up to 1.03^14 / 14!.
        let bound = if angle.abs() < 2f32.powi(40) { COS_SIN } else { 2e-11 };
        close(host::cos_sin_of_radians(angle), angle_of_f32(angle), bound)?;
    }

    fn a_pair_has_the_exact_angle_times_the_gain(
        pair in 0..128i32, f in frequency(), gain in 0.1..1.9f64, n in -(1i64 << 40)..=1 << 40,
    ) {
        let found = |arithmetic| widen(host::pair_cos_sin(pair, phase_step(f).unwrap(), gain, n, arithmetic));
        let exact = Angle::of(n, f).unwrap();
        let scaled = Angle { cos: gain * exact.cos, sin: gain * exact.sin };
        close(found(Arithmetic::Double), scaled, gain * (F32 + COS_SIN + phase_error(n)))?;
        // The gain is rounded too.
        close(found(Arithmetic::Float), scaled, gain * (2.0 * F32 + COS_SIN_32 + phase_error(n)))?;
    }

    fn in_parity_mode_a_pair_has_the_angle_of_the_f32_product(
        pair in 0..128i32, f in 1e-7..7.0f32, gain in 0.1..1.9f32, n in any::<i32>(),
    ) {
        let found = host::pair_cos_sin(pair, u64::from(f.to_bits()), f64::from(gain), i64::from(n), Arithmetic::Parity);
        let exact = angle_of_f32(n as f32 * f);
        // Rounded to f32, and then multiplied in f32: two roundings.
        let scaled = Angle { cos: f64::from(gain) * exact.cos, sin: f64::from(gain) * exact.sin };
        close(widen(found), scaled, f64::from(gain) * (2.0 * F32 + COS_SIN))?;
    }

    fn between_two_sets_a_pair_has_the_difference_of_the_angles_and_the_quotient_of_the_gains(
        pair in 0..128i32,
        (from, to) in (frequency(), frequency()),
        (from_gain, to_gain) in (0.5..1.9f64, 0.5..1.9f64),
        n in -(1i64 << 40)..=1 << 40,
        shift in prop_oneof![Just(0), -100i64..100, -(1i64 << 40)..=1 << 40],
    ) {
        let steps = (phase_step(from).unwrap(), phase_step(to).unwrap());
        let found = |arithmetic| {
            widen(host::pair_cos_sin_between(pair, (steps.0, from_gain), (steps.1, to_gain), n, shift, arithmetic))
        };
        let (old, new) = (Angle::of(n, from).unwrap(), Angle::of(n + shift, to).unwrap());
        let gain = to_gain / from_gain;
        let exact = Angle {
            cos: gain * (new.cos * old.cos + new.sin * old.sin),
            sin: gain * (new.sin * old.cos - new.cos * old.sin),
        };
        let phases = phase_error(n) + phase_error(n + shift);
        close(found(Arithmetic::Double), exact, gain * (F32 + COS_SIN + phases))?;
        // Both gains, their quotient and the product are rounded.
        close(found(Arithmetic::Float), exact, gain * (4.0 * F32 + COS_SIN_32 + phases))?;
    }

    fn a_token_stands_where_its_kind_of_position_says(
        (batch, length) in (1..4usize, 1..6usize),
        offset in prop_oneof![-50i64..50, any::<i64>(), Just(i64::MAX)],
        wide in vec(prop_oneof![-50i64..50, any::<i64>(), Just(i64::MAX), Just(i64::MIN)], 20),
        narrow in vec(any::<i32>(), 20),
    ) {
        let places = (0..batch).flat_map(|sequence| (0..length).map(move |token| (sequence, token)));
        for (sequence, token) in places {
            let at = |positions| host::token_position(&positions, offset, sequence, length, token);
            // Sums wrap.
            let running = offset.wrapping_add(token as i64);
            let index = sequence * length + token;
            prop_assert_eq!(at(Positions::Offset), running);
            prop_assert_eq!(at(Positions::DeviceOffset(wide[0])), running.wrapping_add(wide[0]));
            prop_assert_eq!(at(Positions::PerSequence(wide.clone())), running.wrapping_add(wide[sequence]));
            prop_assert_eq!(at(Positions::PerToken(wide.clone())), wide[index]);
            prop_assert_eq!(at(Positions::PerToken32(narrow.clone())), i64::from(narrow[index]));
        }
    }

    fn an_index_into_a_table_is_taken_only_within_it(
        count in prop_oneof![1i64..5, 1..=i64::from(i32::MAX)],
        indices in vec(prop_oneof![any::<i32>(), -2i32..6], 3),
        at_the_end in -1i64..=1,
        sequence in 0..3usize,
    ) {
        let mut indices = indices;
        if sequence == 2 {
            indices[2] = (count + at_the_end).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        }
        let index = i64::from(indices[sequence]);
        let expected = if (0..count).contains(&index) { index } else { -1 };
        prop_assert_eq!(host::table_index(&indices, sequence, count), expected);
    }

    fn a_division_by_a_reciprocal_is_one_by_the_number(n in 0..=1u32 << 15, divisor in 1..=1u32 << 15, factor in 1..1u32 << 15) {
        prop_assert_eq!(host::divide(n, divisor), n / divisor);
        // Around the multiples, where an error would show.
        let multiple = (factor * divisor).min(1 << 15) / divisor * divisor;
        prop_assert_eq!(host::divide(multiple, divisor), multiple / divisor);
        prop_assert_eq!(host::divide(multiple.saturating_sub(1), divisor), multiple.saturating_sub(1) / divisor);
    }

    fn the_set_of_a_token_is_the_one_that_the_reference_chooses(
        original in 1i64..10_000,
        // Around L0 and n_hat, and anywhere.
        lengths in vec(prop_oneof![(-2i64..=2).prop_map(|by| (true, by)), (0i64..1 << 40).prop_map(|by| (false, by))], 3),
        first_tokens in prop_oneof![Just(0i64), 1i64..100],
        position in prop_oneof![
            (-2i64..=2).prop_map(|by| (true, by)),
            any::<i64>().prop_map(|by| (false, by)),
            (-200i64..200).prop_map(|by| (false, by)),
        ],
        sequence in 0..3usize,
    ) {
        let near = |to: i64| move |(near, by): (bool, i64)| if near { to + by } else { by };
        let lengths: Vec<i64> = lengths.into_iter().map(near(original)).map(|length| length.max(0)).collect();
        let position = near(first_tokens)(position);
        let factors = |frequencies| Factors { frequencies, gain: 1.0 };
        let sets =
            FactorSets::new(&[0.0], factors(&[1.0]), factors(&[2.0]), original as u64, first_tokens as u64).unwrap();
        let expected = |length: i64| sets.frequencies_for(position, length as u64).frequencies[0] as i32;
        let found = |choices| host::set_of_token(&choices, sequence, original, position, first_tokens);

        let length = lengths[sequence];
        prop_assert_eq!(found(Choices::ByLength(lengths.clone())), expected(length));
        prop_assert_eq!(found(Choices::Short), expected(0));
        prop_assert_eq!(found(Choices::Long), expected(i64::MAX));
        let indices = lengths.iter().map(|&length| i32::from(length > original)).collect();
        prop_assert_eq!(found(Choices::ByIndex(indices)), expected(length));
    }

    fn an_index_of_no_set_is_bad_even_for_the_first_tokens(
        index in any::<i32>().prop_filter("a set", |index| !(0..2).contains(index)),
        position in -10i64..10,
        first_tokens in 0i64..10,
    ) {
        prop_assert_eq!(host::set_of_token(&Choices::ByIndex(vec![index]), 0, 4096, position, first_tokens), 3);
    }

    fn a_query_sees_the_keys_that_the_reference_allows(mask in mask(), samples in vec(0.0..1.0f64, 20)) {
        let range = mask.visible(mask.position, mask.row);
        prop_assert!(0 <= range.start && range.start <= range.end && range.end <= mask.keys, "{:?}", range);
        // Every key, or of many those beside the ends of the range and some between.
        let keys: Vec<i64> = match mask.keys {
            ..=200 => (0..mask.keys).collect(),
            keys => {
                let ends = [0, range.start, range.end, keys].into_iter().flat_map(|end| end - 2..end + 3);
                let between = samples.iter().map(|x| (x * keys as f64) as i64);
                ends.chain(between).filter(|key| (0..keys).contains(key)).collect()
            }
        };
        for key in keys {
            prop_assert_eq!(range.contains(&key), mask.allows(key), "key {} of {:?}", key, range);
        }
    }

    fn the_queries_that_see_a_tile_of_keys_are_those_to_which_one_of_them_is_visible(
        mask in mask(), at in 0.0..1.0f64, count in 1i64..70, samples in vec(0.0..1.0f64, 20),
    ) {
        let key = (at * mask.keys as f64) as i64;
        let count = count.min(mask.keys - key);
        let queries = mask.row + 1;
        let range = host::seeing(mask.fields(), key, count, queries);
        prop_assert!(0 <= range.start && range.start <= range.end && range.end <= queries, "{:?}", range);
        let ends = [0, range.start, range.end, queries].into_iter().flat_map(|end| end - 2..end + 3);
        let between = samples.iter().map(|x| (x * queries as f64) as i64);
        for query in ends.chain(between).filter(|query| count > 0 && (0..queries).contains(query)) {
            let seen = mask.visible(mask.position, query);
            let sees = seen.start.max(key) < seen.end.min(key + count);
            prop_assert_eq!(range.contains(&query), sees, "query {} of {:?}", query, range);
        }
    }

    fn a_band_shows_what_the_mask_lets_be_seen(mask in mask(), at in 0.0..1.0f64, by_keys in any::<bool>()) {
        // About the query, or anywhere.
        let key = match mask.visible(mask.position, mask.row) {
            seen if at < 0.7 && seen.end > seen.start => (if at < 0.4 { seen.start } else { seen.end } - 30).max(0),
            _ => (at * mask.keys as f64) as i64,
        };
        let (band, all, none) = host::band(mask.fields(), mask.row, key, by_keys);
        let (mut shown, mut hidden) = (0, 0);
        for row in 0..64 {
            for column in 0..64 {
                let (query, key) = if by_keys { (column, key + row) } else { (row, key + column) };
                let in_band = (i64::from(band.start) + row..i64::from(band.end) + row).contains(&column);
                let seen = host::visible(
                    mask.position, mask.causal, mask.fields().2, mask.key_offset, mask.row + query, 1 << 62,
                );
                prop_assert_eq!(in_band, seen.contains(&key), "row {}, column {}, {:?}", row, column, band);
                if (16..48).contains(&row) {
                    if in_band { shown += 1 } else { hidden += 1 }
                }
            }
        }
        prop_assert_eq!((all, none), (hidden == 0, shown == 0));
    }

    fn a_row_of_a_run_sees_what_it_would_see_as_the_first(mask in mask()) {
        prop_assert_eq!(mask.visible(mask.position, mask.row), mask.visible(mask.position + mask.row, 0));
    }
}

fn main() {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$((stringify!($name), $name as fn())),*] };
    }
    let tests = tests![
        a_phase_is_the_product_modulo_a_turn,
        cosine_and_sine_of_every_phase_are_exact,
        cosine_and_sine_in_f32_arithmetic_are_within_their_bound,
        the_angle_of_a_position_is_exact_but_for_the_rounding_of_the_step,
        cosine_and_sine_of_an_f32_angle_are_exact,
        a_pair_has_the_exact_angle_times_the_gain,
        in_parity_mode_a_pair_has_the_angle_of_the_f32_product,
        between_two_sets_a_pair_has_the_difference_of_the_angles_and_the_quotient_of_the_gains,
        a_token_stands_where_its_kind_of_position_says,
        an_index_into_a_table_is_taken_only_within_it,
        a_division_by_a_reciprocal_is_one_by_the_number,
        the_set_of_a_token_is_the_one_that_the_reference_chooses,
        an_index_of_no_set_is_bad_even_for_the_first_tokens,
        a_query_sees_the_keys_that_the_reference_allows,
        the_queries_that_see_a_tile_of_keys_are_those_to_which_one_of_them_is_visible,
        a_band_shows_what_the_mask_lets_be_seen,
        a_row_of_a_run_sees_what_it_would_see_as_the_first,
    ];
    let of_gradients = (
        "staged_rows_are_written_times_the_transpose_of_the_rotation_of_their_positions",
        gradient::staged_rows_are_written_times_the_transpose_of_the_rotation_of_their_positions as fn(),
    );
    let ignored = !host::has_compiler();
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(ignored)
    };
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().chain([of_gradients]).map(trial).collect())
        .exit();
}
