//! Properties of the f64 reference: what every other test relies on, proved without any other implementation.

use longrope::reference::merge::merge;
use longrope::reference::rotary::{rerotate, rotate, rotate_backward, rotate_rows};
use longrope::reference::{
    Angle, Direction, FactorSets, Factors, Gradients, Output, Pairing, Problem, phase,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn the_angle_agrees_with_arbitrary_precision_at_every_golden_case() {
    type Case = (i64, f64, u8, f64, f64, f64, f64);
    // Written by scripts/golden/phase.py with mpmath.
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/phase_golden.json")).unwrap();
    assert!(cases.len() >= 400);
    for (position, frequency, quarter, high, low, sin, cos) in cases {
        let name = format!("{position} · {frequency:e}");
        let reduced = phase::reduce(position, frequency).unwrap();
        assert_eq!((reduced.quarter, reduced.high), (quarter, high), "{name}");
        // 2^-104 of the rest, and 2^-197 rad at the very largest angle.
        let bound = high.abs() * 2f64.powi(-104) + 2f64.powi(-197);
        assert!((reduced.low - low).abs() <= bound, "{name}");

        let found = Angle::of(position, frequency).unwrap();
        for (found, exact) in [(found.sin, sin), (found.cos, cos)] {
            // The golden value is itself rounded: half an ulp on top of one and a half.
            assert!((found - exact).abs() <= 2.0 * f64::EPSILON * exact.abs(), "{name}");
        }
    }
}

/// Frequencies from 2^-70 to 2^60 radians a token.
fn frequency() -> impl Strategy<Value = f64> {
    (1.0..2.0f64, -70..60i32).prop_map(|(mantissa, exponent)| mantissa * 2f64.powi(exponent))
}

/// Positions of every magnitude, both signs.
fn position() -> impl Strategy<Value = i64> {
    (any::<i64>(), 1..63u32).prop_map(|(position, shift)| position >> shift)
}

proptest! {
    #[test]
    fn the_angle_of_a_sum_is_the_composition_of_the_angles(m in position(), n in position(), f in frequency()) {
        let (a, b, sum) = (Angle::of(m, f).unwrap(), Angle::of(n, f).unwrap(), Angle::of(m + n, f).unwrap());
        prop_assert!((sum.sin - (a.sin * b.cos + a.cos * b.sin)).abs() < 8e-16);
        prop_assert!((sum.cos - (a.cos * b.cos - a.sin * b.sin)).abs() < 8e-16);
    }

    #[test]
    fn a_negative_position_negates_the_sine_to_the_bit(m in position(), f in frequency()) {
        let (a, b) = (Angle::of(m, f).unwrap(), Angle::of(-m, f).unwrap());
        prop_assert_eq!((a.sin, a.cos), (-b.sin, b.cos));
        prop_assert!((a.sin.hypot(a.cos) - 1.0).abs() < 4e-16);
    }

    #[test]
    fn a_power_of_two_moves_between_position_and_frequency_without_a_trace(m in -1i64 << 40..1 << 40, shift in 0..20u32, f in frequency()) {
        prop_assert_eq!(Angle::of(m << shift, f / 2f64.powi(shift as i32)), Angle::of(m, f));
    }
}

/// Frequencies of a model: theta^(-2i/d) over a factor.
fn frequencies(pairs: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f64>> {
    vec((0.0..1.0f64, 0.9..65.0f64).prop_map(|(i, factor)| 5e5f64.powf(-i) / factor), pairs)
}

fn pairing() -> impl Strategy<Value = Pairing> {
    prop_oneof![Just(Pairing::HalfSplit), Just(Pairing::Interleaved)]
}

/// Two rows of one head, with frequencies for some or all of it.
fn rows() -> impl Strategy<Value = (Vec<f64>, Vec<f64>, Vec<f64>)> {
    (0..9usize, 0..5usize).prop_flat_map(|(pairs, tail)| {
        let row = || vec(-1.0..1.0f64, 2 * pairs + tail);
        (row(), row(), frequencies(pairs))
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn assert_near(found: &[f64], expected: &[f64], bound: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len());
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        prop_assert!(a == b || (a - b).abs() <= bound, "[{}]: {} is not {}", index, a, b);
    }
    Ok(())
}

const POSITIONS: std::ops::Range<i64> = -1 << 21..1 << 21;

proptest! {
    #[test]
    fn a_score_depends_on_the_distance_of_the_positions_alone(
        (q, k, f) in rows(), pairing in pairing(), gain in 0.5..2.0f64, m in POSITIONS, n in POSITIONS, shift in position(),
    ) {
        let score = |m, n| dot(&rotate(&q, m, &f, gain, pairing).unwrap(), &rotate(&k, n, &f, gain, pairing).unwrap());
        prop_assert!((score(m, n) - score(m + shift / 2, n + shift / 2)).abs() < 1e-13);
        prop_assert!((score(m, n) - score(0, n - m)).abs() < 1e-13);
    }

    #[test]
    fn the_backward_rotation_is_the_transpose(
        (x, y, f) in rows(), pairing in pairing(), gain in 0.5..2.0f64, m in position(),
    ) {
        let forward = dot(&rotate(&x, m, &f, gain, pairing).unwrap(), &y);
        let backward = dot(&x, &rotate_backward(&y, m, &f, gain, pairing).unwrap());
        prop_assert!((forward - backward).abs() < 1e-14);
    }

    #[test]
    fn a_rotation_scales_the_rotated_part_by_the_gain_and_passes_the_tail_untouched(
        (x, _, f) in rows(), pairing in pairing(), gain in 0.5..2.0f64, m in position(),
    ) {
        let turned = rotate(&x, m, &f, gain, pairing).unwrap();
        let (rotary, norm) = (2 * f.len(), |x: &[f64]| dot(x, x).sqrt());
        prop_assert_eq!(&turned[rotary..], &x[rotary..]);
        prop_assert!((norm(&turned[..rotary]) - gain * norm(&x[..rotary])).abs() < 1e-14);
    }

    #[test]
    fn both_pairings_are_one_rotation_up_to_the_order_of_the_elements(
        (x, _, f) in rows(), gain in 0.5..2.0f64, m in position(),
    ) {
        // Interleaved element 2i + s is half-split element i + s · pairs.
        let half = |i: usize| if i < 2 * f.len() { i / 2 + i % 2 * f.len() } else { i };
        let mut split = x.clone();
        (0..x.len()).for_each(|i| split[half(i)] = x[i]);
        let split = rotate(&split, m, &f, gain, Pairing::HalfSplit).unwrap();
        let neighbours = rotate(&x, m, &f, gain, Pairing::Interleaved).unwrap();
        prop_assert!((0..x.len()).all(|i| split[half(i)] == neighbours[i]));
    }

    #[test]
    fn a_re_rotated_row_is_the_row_rotated_by_the_other_factors(
        ((x, _, f), g) in (rows(), frequencies(8)), pairing in pairing(), (a, b) in (0.5..2.0f64, 0.5..2.0f64), m in position(),
    ) {
        let from = Factors { frequencies: &f, gain: a };
        let to = Factors { frequencies: &g[..f.len()], gain: b };
        let cached = rotate(&x, m, &f, a, pairing).unwrap();
        let moved = rerotate(&cached, m, from, to, pairing).unwrap();
        assert_near(&moved, &rotate(&x, m, to.frequencies, b, pairing).unwrap(), 1e-14)?;
    }

    #[test]
    fn rows_of_a_sequence_take_the_set_of_their_own_position(
        f in frequencies(3), x in vec(-1.0..1.0f64, 5 * 2 * 7), pairing in pairing(), first in -12..12i64, n_hat in 0..12u64, length in 90..110u64,
    ) {
        let (short, long): (Vec<_>, Vec<_>) = f.iter().map(|f| (f / 2.0, f / 8.0)).unzip();
        let short = Factors { frequencies: &short, gain: 1.1 };
        let long = Factors { frequencies: &long, gain: 1.2 };
        let sets = FactorSets::new(&f, short, long, 100, n_hat).unwrap();
        let positions: Vec<_> = (first..first + 5).collect();
        let rotated = rotate_rows(&x, 2, &positions, |p| sets.frequencies_for(p, length), pairing, Direction::Forward).unwrap();
        for (index, row) in x.chunks(7).enumerate() {
            let position = positions[index / 2];
            let set = match position {
                p if n_hat > 0 && p < n_hat as i64 => Factors { frequencies: &f, gain: 1.0 },
                _ if length > 100 => long,
                _ => short,
            };
            let expected = rotate(row, position, set.frequencies, set.gain, pairing).unwrap();
            prop_assert_eq!(&rotated[index * 7..][..7], &expected);
        }
    }
}

/// A problem with its tensors: q, k, v, and gradients of the two outputs.
#[derive(Debug, Clone)]
struct Case {
    problem: Problem,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_out: Vec<f64>,
    d_lse: Vec<f64>,
}

impl Case {
    fn forward(&self) -> Output {
        self.problem.forward(&self.q, &self.k, &self.v).unwrap()
    }

    fn backward(&self) -> Gradients {
        self.problem.backward(&self.q, &self.k, &self.v, &self.d_out, Some(&self.d_lse)).unwrap()
    }

    /// What the gradients are those of: Σ out · d_out + Σ lse · d_lse over the rows that see a key.
    fn loss(&self) -> f64 {
        let Output { out, lse } = self.forward();
        let seen = lse.iter().zip(&self.d_lse).filter(|(lse, _)| lse.is_finite());
        dot(&out, &self.d_out) + seen.map(|(lse, d)| lse * d).sum::<f64>()
    }
}

/// Ratios of heads from 1 to 3, lengths from 0, every mask, offsets of both signs; `even` head dims where asked for.
fn cases(even: bool) -> impl Strategy<Value = Case> {
    let shape = (1..3usize, 1..4usize, 0..7usize, 0..9usize, 1..6usize);
    let mask = (any::<bool>(), prop::option::of(0..8u64), -6..6i64, -6..6i64);
    (shape, mask, 0.1..1.5f64).prop_flat_map(move |(shape, mask, scale)| {
        let (key_heads, group, query_length, key_length, head_dim) = shape;
        let (causal, window, query_offset, key_offset) = mask;
        let query_heads = key_heads * group;
        let head_dim = if even { 2 * head_dim } else { head_dim };
        let problem = Problem {
            query_heads,
            key_heads,
            query_length,
            key_length,
            head_dim,
            scale,
            causal,
            window,
            query_offset,
            key_offset,
        };
        let rows = query_length * query_heads;
        let keys = key_length * key_heads * head_dim;
        let tensor = |length| vec(-2.0..2.0f64, length);
        (tensor(rows * head_dim), tensor(keys), tensor(keys), tensor(rows * head_dim), tensor(rows))
            .prop_map(move |(q, k, v, d_out, d_lse)| Case { problem, q, k, v, d_out, d_lse })
    })
}

/// Central differences of `loss` by each element of the tensor that `tensor` finds in the case.
fn differences(case: &Case, tensor: fn(&mut Case) -> &mut Vec<f64>, loss: impl Fn(&Case) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut case = case.clone();
    (0..tensor(&mut case).len())
        .map(|index| {
            let value = tensor(&mut case)[index];
            let mut at = |x| {
                tensor(&mut case)[index] = x;
                loss(&case)
            };
            let difference = (at(value + STEP) - at(value - STEP)) / (2.0 * STEP);
            at(value);
            difference
        })
        .collect()
}

proptest! {
    #[test]
    fn attention_is_the_dense_softmax_over_a_list_of_visible_positions(case in cases(false)) {
        let Case { problem: p, q, k, v, .. } = &case;
        let Output { out, lse } = case.forward();
        let (width, d) = (p.window.map_or(1000, |w| w as i64), p.head_dim);
        for i in 0..p.query_length {
            let position = p.query_offset + i as i64;
            // The list of positions, from its ends: the last `width` up to the query's own, or those nearer than `width`.
            let visible: Vec<i64> = match p.causal {
                true => (position - width + 1..=position).collect(),
                false => (position - width + 1..position + width).collect(),
            };
            for h in 0..p.query_heads {
                let shared = h * p.key_heads / p.query_heads;
                let mut weights = vec![0.0; p.key_length];
                for j in (0..p.key_length).filter(|&j| visible.contains(&(p.key_offset + j as i64))) {
                    let query = &q[(i * p.query_heads + h) * d..][..d];
                    weights[j] = (p.scale * dot(query, &k[(j * p.key_heads + shared) * d..][..d])).exp();
                }
                let total: f64 = weights.iter().sum();
                let row = i * p.query_heads + h;
                assert_near(&[lse[row]], &[total.ln()], 1e-13)?;
                for c in 0..d {
                    let sum: f64 = (0..p.key_length).map(|j| weights[j] * v[(j * p.key_heads + shared) * d + c]).sum();
                    let mean = if total == 0.0 { 0.0 } else { sum / total };
                    assert_near(&[out[row * d + c]], &[mean], 1e-13)?;
                }
            }
        }
    }

    #[test]
    fn constant_values_come_out_constant_and_masked_rows_come_out_zero(mut case in cases(false), constant in -9.0..9.0f64, magnitude in 0..6i32) {
        // Large scores too: a weight must not inherit the rounding of a large log-sum-exp.
        case.problem.scale *= 10f64.powi(magnitude);
        case.v.fill(constant);
        let Output { out, lse } = case.forward();
        for (row, out) in out.chunks(case.problem.head_dim).enumerate() {
            let masked = lse[row] == f64::NEG_INFINITY;
            let expected = if masked { 0.0 } else { constant };
            assert_near(out, &vec![expected; out.len()], if masked { 0.0 } else { 1e-13 })?;
        }
    }

    #[test]
    fn scores_of_any_size_neither_overflow_nor_lose_the_largest(mut case in cases(false)) {
        case.problem.scale = 1e300;
        let Output { out, lse } = case.forward();
        prop_assert!(out.iter().all(|x| x.abs() <= 2.0 + 1e-13));
        prop_assert!(lse.iter().all(|x| !x.is_nan() && *x < f64::INFINITY));
    }

    #[test]
    fn a_shift_of_both_offsets_changes_no_bit(mut case in cases(false), shift in position()) {
        let before = (case.forward(), case.backward());
        case.problem.query_offset += shift;
        case.problem.key_offset += shift;
        prop_assert_eq!(before, (case.forward(), case.backward()));
    }

    #[test]
    fn keys_split_anywhere_and_merged_give_the_result_of_one_call(case in cases(false), mut cuts in vec(0..9usize, 0..5)) {
        let Case { problem, q, k, v, .. } = &case;
        cuts.extend([0, problem.key_length]);
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(problem.key_length));
        cuts.sort();
        let width = problem.key_heads * problem.head_dim;
        let parts: Vec<Output> = cuts
            .windows(2)
            .map(|ends| {
                let keys = ends[0] * width..ends[1] * width;
                let (key_length, key_offset) = (ends[1] - ends[0], problem.key_offset + ends[0] as i64);
                let part = Problem { key_length, key_offset, ..*problem };
                part.forward(q, &k[keys.clone()], &v[keys]).unwrap()
            })
            .collect();
        let merged = merge(problem.query_length * problem.query_heads, problem.head_dim, &parts).unwrap();
        let whole = case.forward();
        assert_near(&merged.out, &whole.out, 1e-13)?;
        assert_near(&merged.lse, &whole.lse, 1e-13)?;
    }

    #[test]
    fn gradients_of_attention_are_its_finite_differences(case in cases(false)) {
        let Gradients { dq, dk, dv } = case.backward();
        assert_near(&dq, &differences(&case, |case| &mut case.q, Case::loss), 2e-8)?;
        assert_near(&dk, &differences(&case, |case| &mut case.k, Case::loss), 2e-8)?;
        assert_near(&dv, &differences(&case, |case| &mut case.v, Case::loss), 2e-8)?;
    }

    #[test]
    fn gradients_through_rotary_and_attention_are_finite_differences(
        case in cases(true), f in frequencies(6), pairs in 0..6usize, pairing in pairing(), gain in 0.7..1.3f64, far in POSITIONS,
    ) {
        let factors = Factors { frequencies: &f[..pairs.min(case.problem.head_dim / 2)], gain };
        // Tokens of even positions turn the other way.
        let choose = |position: i64| if position % 2 == 0 { Factors { gain: -gain, ..factors } } else { factors };
        let p = Problem {
            query_offset: case.problem.query_offset + far,
            key_offset: case.problem.key_offset + far,
            ..case.problem
        };
        let turn = |x: &[f64], heads, length: usize, offset| {
            let positions: Vec<i64> = (offset..).take(length).collect();
            rotate_rows(x, heads, &positions, choose, pairing, Direction::Forward).unwrap()
        };
        let turned = |case: &Case| Case {
            q: turn(&case.q, p.query_heads, p.query_length, p.query_offset),
            k: turn(&case.k, p.key_heads, p.key_length, p.key_offset),
            ..case.clone()
        };
        let rotated = turned(&case).backward();
        let dv = rotated.dv.clone();
        let gradients = rotated.before_rotation(&p, choose, pairing).unwrap();
        let loss = |case: &Case| turned(case).loss();
        assert_near(&gradients.dq, &differences(&case, |case| &mut case.q, loss), 2e-8)?;
        assert_near(&gradients.dk, &differences(&case, |case| &mut case.k, loss), 2e-8)?;
        prop_assert_eq!(gradients.dv, dv);
    }

    #[test]
    fn without_a_gradient_of_the_lse_it_counts_as_zero(mut case in cases(false)) {
        case.d_lse.fill(0.0);
        let without = case.problem.backward(&case.q, &case.k, &case.v, &case.d_out, None).unwrap();
        prop_assert_eq!(without, case.backward());
    }
}

#[test]
fn a_bad_argument_of_attention_is_named_and_nothing_panics() {
    let good = Problem {
        query_heads: 4,
        key_heads: 2,
        query_length: 1,
        key_length: 1,
        head_dim: 2,
        scale: 1.0,
        causal: true,
        window: None,
        query_offset: i64::MAX,
        key_offset: i64::MIN,
    };
    assert!(good.forward(&[0.0; 8], &[0.0; 4], &[0.0; 4]).is_ok());
    let named = |problem: Problem, k: usize, d_lse: usize| {
        let error = problem.backward(&[0.0; 8], &vec![0.0; k], &[0.0; 4], &[0.0; 8], Some(&vec![0.0; d_lse]));
        error.unwrap_err().to_string().split(':').next().unwrap().to_owned()
    };
    assert_eq!(named(Problem { query_heads: 0, ..good }, 4, 4), "problem.query_heads");
    assert_eq!(named(Problem { key_heads: 3, ..good }, 4, 4), "problem.key_heads");
    assert_eq!(named(Problem { key_heads: 0, ..good }, 4, 4), "problem.key_heads");
    assert_eq!(named(Problem { head_dim: 0, ..good }, 4, 4), "problem.head_dim");
    assert_eq!(named(Problem { scale: f64::NAN, ..good }, 4, 4), "problem.scale");
    assert_eq!(named(Problem { query_length: usize::MAX, ..good }, 4, 4), "q");
    assert_eq!(named(good, 5, 4), "k");
    assert_eq!(named(good, 4, 3), "d_lse");
}
