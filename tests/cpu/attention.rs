//! Attention.

use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor::{Attention, Layout};
use longrope::reference::{self, Output};
use proptest::prelude::*;

use crate::poison::{POISON, is_poison};
use crate::random::{index, indices, order, place, values};

#[derive(Debug, Clone)]
pub struct Problem {
    pub batch: usize,
    query_length: usize,
    key_length: usize,
    query_heads: usize,
    key_heads: usize,
    head_dim: usize,
    pub attention: Attention,
    pub seed: u64,
}

pub fn problem() -> impl Strategy<Value = Problem> {
    let lengths =
        prop_oneof![(0usize..12, 0usize..12), (60usize..140, 200usize..600), (1usize..3, 500usize..900)];
    let heads = (1usize..4, 1usize..4);
    let offsets = (-300i64..300, -300i64..300, any::<bool>());
    let window = prop_oneof![Just(None), (1u64..20).prop_map(Some), (20u64..700).prop_map(Some)];
    (1usize..3, lengths, heads, 1usize..40, any::<bool>(), window, offsets, any::<u64>()).prop_map(
        |(batch, (query_length, key_length), (key_heads, ratio), head_dim, causal, window, offsets, seed)| {
            let (query_offset, key_offset, far) = offsets;
            let base = if far { 1 << 40 } else { 0 };
            Problem {
                batch,
                query_length,
                key_length,
                query_heads: key_heads * ratio,
                key_heads,
                head_dim,
                attention: Attention {
                    scale: None,
                    causal,
                    window,
                    query_offset: base + query_offset,
                    key_offset: base + key_offset,
                },
                seed,
            }
        },
    )
}

impl Problem {
    pub fn query_shape(&self) -> [usize; 4] {
        [self.batch, self.query_length, self.query_heads, self.head_dim]
    }

    pub fn key_shape(&self) -> [usize; 4] {
        [self.batch, self.key_length, self.key_heads, self.head_dim]
    }

    /// One sequence of a dense tensor.
    pub fn part(&self, batch: usize, x: &[f32]) -> Vec<f64> {
        let size = x.len() / self.batch;
        x[batch * size..(batch + 1) * size].iter().map(|&x| f64::from(x)).collect()
    }

    /// One sequence as the reference has it.
    pub fn reference(&self) -> reference::Problem {
        reference::Problem {
            query_heads: self.query_heads,
            key_heads: self.key_heads,
            query_length: self.query_length,
            key_length: self.key_length,
            head_dim: self.head_dim,
            scale: f64::from(1.0 / (self.head_dim as f32).sqrt()),
            causal: self.attention.causal,
            window: self.attention.window,
            query_offset: self.attention.query_offset,
            key_offset: self.attention.key_offset,
        }
    }

    /// The exact output of one sequence.
    fn exact(&self, batch: usize, q: &[f32], k: &[f32], v: &[f32]) -> Output {
        let part = |x| self.part(batch, x);
        self.reference().forward(&part(q), &part(k), &part(v)).unwrap()
    }
}

pub fn scatter(dense: &[f32], shape: [usize; 4], (layout, offset, size): (Layout, usize, usize)) -> Vec<f32> {
    let mut x = vec![POISON; size];
    for (value, at) in dense.iter().zip(indices(shape)) {
        x[index(&layout, offset, at)] = *value;
    }
    x
}

proptest! {
    #[test]
    fn attention_is_that_of_the_reference_in_every_layout(
        problem in problem(), orders in [order(), order(), order(), order()]
    ) {
        let (query_shape, key_shape) = (problem.query_shape(), problem.key_shape());
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let q: Vec<f32> = values(problem.seed, count(query_shape)).iter().map(|x| x * 3.0).collect();
        let k = values(problem.seed ^ 1, count(key_shape));
        let v = values(problem.seed ^ 2, count(key_shape));
        let places = [query_shape, key_shape, key_shape, query_shape];
        let [qp, kp, vp, op] = std::array::from_fn(|i| place(orders[i], places[i]));
        let (qs, ks, vs) =
            (scatter(&q, query_shape, qp), scatter(&k, key_shape, kp), scatter(&v, key_shape, vp));
        let mut out = vec![POISON; op.2];
        let rows = problem.batch * problem.query_length * problem.query_heads;
        let mut lse = vec![POISON; rows];
        cpu::attention(
            &problem.attention,
            Tensor::at(&qs, qp.1, qp.0),
            Tensor::at(&ks, kp.1, kp.0),
            Tensor::at(&vs, vp.1, vp.0),
            TensorMut::at(&mut out, op.1, op.0),
            Some(&mut lse),
        )
        .unwrap();

        let mut written = vec![false; out.len()];
        let per_sequence = count(query_shape) / problem.batch;
        for batch in 0..problem.batch {
            let exact = problem.exact(batch, &q, &k, &v);
            for (i, at) in indices(query_shape).skip(batch * per_sequence).take(per_sequence).enumerate() {
                let index = index(&op.0, op.1, at);
                written[index] = true;
                // Values are at most 1, weights sum to 1: the errors of f32 logits and sums stay below 5e-6.
                let error = (f64::from(out[index]) - exact.out[i]).abs();
                prop_assert!(error <= 5e-6, "{:?}: {} against {}", at, out[index], exact.out[i]);
            }
            let rows = rows / problem.batch;
            for (found, exact) in lse[batch * rows..(batch + 1) * rows].iter().zip(&exact.lse) {
                let equal = f64::from(*found) == *exact; // minus infinity
                prop_assert!(equal || (f64::from(*found) - exact).abs() <= 5e-6, "{} against {}", found, exact);
            }
        }
        prop_assert!(out.iter().zip(&written).all(|(x, written)| *written || is_poison(*x)));
    }
}

/// Contiguous attention of one head, dimension 8.
fn simple(attention: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let layout = |x: &[f32]| Layout::bshd(1, x.len() / 8, 1, 8);
    let (mut out, mut lse) = (vec![POISON; q.len()], vec![POISON; q.len() / 8]);
    cpu::attention(
        attention,
        Tensor::new(q, layout(q)),
        Tensor::new(k, layout(k)),
        Tensor::new(v, layout(v)),
        TensorMut::new(&mut out, layout(q)),
        Some(&mut lse),
    )
    .unwrap();
    (out, lse)
}

#[test]
fn rows_that_see_nothing_are_zero_and_minus_infinity() {
    let attention = Attention { key_offset: 2, ..Attention::causal() };
    let x = values(1, 32);
    let (out, lse) = simple(&attention, &x, &x, &x);
    assert!(out[..16].iter().all(|x| *x == 0.0) && out[16..].iter().all(|x| *x != 0.0));
    assert!(lse[..2].iter().all(|x| *x == f32::NEG_INFINITY) && lse[2..].iter().all(|x| x.is_finite()));
    let (out, lse) = simple(&Attention::default(), &x, &[], &[]);
    assert!(out.iter().all(|x| *x == 0.0) && lse.iter().all(|x| *x == f32::NEG_INFINITY));
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_weights() {
    let q = vec![1e3f32; 8];
    let mut k = values(5, 8 * 300);
    k[8 * 77..8 * 78].fill(40.0); // one dominant key
    let v = values(6, 8 * 300);
    let (out, lse) = simple(&Attention::default(), &q, &k, &v);
    assert_eq!(out, v[8 * 77..8 * 78]);
    assert!((lse[0] / (8.0 * 1e3 * 40.0 / 8f32.sqrt()) - 1.0).abs() < 1e-6);
}

#[test]
fn what_is_not_a_number_shows_in_the_rows_that_see_it() {
    let (x, v) = (values(1, 32), values(2, 32));
    let rows = |out: &[f32]| out.chunks(8).map(|row| row.iter().all(|x| x.is_nan())).collect::<Vec<_>>();
    // A query: its own row.
    let mut q = x.clone();
    q[8] = f32::NAN;
    let (out, lse) = simple(&Attention::causal(), &q, &x, &v);
    assert_eq!(rows(&out), [false, true, false, false]);
    assert!(lse[1].is_nan() && lse[2].is_finite());
    // A key: the rows from its position on.
    let mut k = x.clone();
    k[2 * 8] = f32::NAN;
    let (out, _) = simple(&Attention::causal(), &x, &k, &v);
    assert_eq!(rows(&out), [false, false, true, true]);
    // Logits beyond f32.
    let huge = vec![1e30f32; 8];
    let (out, lse) = simple(&Attention::default(), &huge, &huge, &v[..8]);
    assert!(rows(&out)[0] && lse[0].is_nan());
}

#[test]
fn a_long_sequence_of_equal_values_does_not_drift() {
    let keys = 1 << 20;
    let (k, v) = (values(7, 8 * keys), vec![0.7f32; 8 * keys]);
    let (out, _) = simple(&Attention::default(), &values(8, 8), &k, &v);
    assert!(out.iter().all(|x| (x / 0.7 - 1.0).abs() < 1e-5), "{out:?}");
}

#[test]
fn the_same_inputs_give_the_same_bits_on_any_number_of_threads() {
    let (q, k, v) = (values(1, 8 * 700), values(2, 8 * 900), values(3, 8 * 900));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| simple(&Attention::default(), &q, &k, &v))
    };
    assert_eq!(run(1), run(3));
}
