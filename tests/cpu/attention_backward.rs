//! Gradients of attention.

use longrope::cpu::{self, AttentionGradients, Tensor, TensorMut};
use longrope::descriptor::{Attention, Layout};
use longrope::reference;
use proptest::prelude::*;

use crate::attention::{problem, scatter};
use crate::poison::{POISON, is_poison};
use crate::random::{index, indices, order, place, values};

/// How far f32 may be from exact gradients, an element of dq, dk and dv each.
///
/// Logits, products with values and deltas are sums of `head_dim` products in f32. So a weight is off by a factor of at most
/// `e^error`, and each term of a gradient by as much of its parts: bounds are sums of magnitudes times that error.
struct Bounds {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// The bounds of one sequence, by plain loops.
fn bounds(problem: &reference::Problem, [q, k, v, d_out]: [&[f64]; 4], lse: &[f64]) -> Bounds {
    let (dim, heads, ratio) =
        (problem.head_dim, problem.query_heads, problem.query_heads / problem.key_heads);
    let mut found = Bounds { dq: vec![0.0; q.len()], dk: vec![0.0; k.len()], dv: vec![0.0; v.len()] };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
    let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for row in 0..problem.query_length * heads {
        let (query, head) = (row / heads, row % heads);
        let (q_row, d_row) = (&q[row * dim..][..dim], &d_out[row * dim..][..dim]);
        // The output is a mean of values: its product with d_out is at most the largest.
        let keys: Vec<usize> = (0..problem.key_length).filter(|&key| problem.allows(query, key)).collect();
        let at = |key: usize| (key * problem.key_heads + head / ratio) * dim;
        let delta = keys.iter().map(|&key| dot(d_row, &v[at(key)..][..dim])).fold(0.0, f64::max);
        for key in keys {
            let at = at(key);
            let (k_row, v_row) = (&k[at..][..dim], &v[at..][..dim]);
            let weight = (problem.scale * sum(q_row, k_row) - lse[row]).exp();
            let magnitude = weight * (dot(d_row, v_row) + delta);
            // As many roundings as there are additions, and those of the logit, the exponential and the log-sum-exp.
            let logit = problem.scale * dot(q_row, k_row);
            let error = 2f64.powi(-24) * ((dim as f64 + 8.0) * (1.0 + logit) + lse[row].abs() + 16.0);
            for d in 0..dim {
                found.dq[row * dim + d] += error * problem.scale * magnitude * k_row[d].abs();
                found.dk[at + d] += error * problem.scale * magnitude * q_row[d].abs();
                found.dv[at + d] += error * weight * d_row[d].abs();
            }
        }
    }
    found
}

proptest! {
    #[test]
    fn gradients_are_those_of_the_reference_in_every_layout(
        problem in problem(), orders in [order(), order(), order(), order(), order(), order(), order(), order()]
    ) {
        let (query_shape, key_shape) = (problem.query_shape(), problem.key_shape());
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let q: Vec<f32> = values(problem.seed, count(query_shape)).iter().map(|x| x * 3.0).collect();
        let k = values(problem.seed ^ 1, count(key_shape));
        let v = values(problem.seed ^ 2, count(key_shape));
        let d_out = values(problem.seed ^ 3, count(query_shape));
        // q, k, v, out, d_out, dq, dk, dv.
        let shapes = [0, 1, 1, 0, 0, 0, 1, 1].map(|which| [query_shape, key_shape][which]);
        let places: [_; 8] = std::array::from_fn(|i| place(orders[i], shapes[i]));
        let inputs = [&q, &k, &v].into_iter().enumerate();
        let inputs: Vec<Vec<f32>> = inputs.map(|(i, x)| scatter(x, shapes[i], places[i])).collect();
        let tensor = |x, i: usize| Tensor::at(x, places[i].1, places[i].0);
        let mut out = vec![POISON; places[3].2];
        let rows = count(query_shape) / query_shape[3];
        let (mut lse, mut delta) = (vec![POISON; rows], vec![POISON; rows]);
        let [qs, ks, vs] = [0, 1, 2].map(|i| tensor(&inputs[i], i));
        let to = TensorMut::at(&mut out, places[3].1, places[3].0);
        cpu::attention(&problem.attention, qs, ks, vs, to, Some(&mut lse)).unwrap();
        let d_outs = scatter(&d_out, query_shape, places[4]);
        cpu::attention_delta(tensor(&out, 3), tensor(&d_outs, 4), &mut delta).unwrap();
        let [mut dq, mut dk, mut dv] = [5, 6, 7].map(|i| vec![POISON; places[i].2]);
        let gradients = AttentionGradients {
            dq: TensorMut::at(&mut dq, places[5].1, places[5].0),
            dk: TensorMut::at(&mut dk, places[6].1, places[6].0),
            dv: TensorMut::at(&mut dv, places[7].1, places[7].0),
        };
        let d_outs = tensor(&d_outs, 4);
        cpu::attention_backward(&problem.attention, qs, ks, vs, d_outs, &lse, &delta, gradients).unwrap();

        let reference = problem.reference();
        let mut written = [&dq, &dk, &dv].map(|x| vec![false; x.len()]);
        for batch in 0..problem.batch {
            let parts = [&q, &k, &v, &d_out].map(|x| problem.part(batch, x));
            let [q, k, v, d_out] = [0, 1, 2, 3].map(|i| &parts[i][..]);
            let exact = reference.backward(q, k, v, d_out, None).unwrap();
            let lse = reference.forward(q, k, v).unwrap().lse;
            let bounds = bounds(&reference, [q, k, v, d_out], &lse);
            let results = [(&dq, exact.dq, bounds.dq), (&dk, exact.dk, bounds.dk), (&dv, exact.dv, bounds.dv)];
            for (i, (found, exact, bounds)) in results.into_iter().enumerate() {
                let size = exact.len();
                let (layout, offset, _) = places[5 + i];
                let elements = indices(shapes[5 + i]).skip(batch * size).take(size);
                for ((at, exact), bound) in elements.zip(exact).zip(bounds) {
                    let index = index(&layout, offset, at);
                    written[i][index] = true;
                    let error = (f64::from(found[index]) - exact).abs();
                    prop_assert!(error <= bound, "{} {at:?}: {} against {exact}, bound {bound}", ["dq", "dk", "dv"][i], found[index]);
                }
            }
        }
        for (x, written) in [&dq, &dk, &dv].into_iter().zip(&written) {
            prop_assert!(x.iter().zip(written).all(|(x, written)| *written || is_poison(*x)));
        }
    }
}

/// Contiguous gradients of one head, dimension 8, and the log-sum-exp and delta they were made with.
fn simple(attention: &Attention, [q, k, v, d_out]: [&[f32]; 4]) -> [Vec<f32>; 5] {
    let layout = |x: &[f32]| Layout::bshd(1, x.len() / 8, 1, 8);
    let tensor = |x| Tensor::new(x, layout(x));
    let (mut out, mut lse) = (vec![POISON; q.len()], vec![POISON; q.len() / 8]);
    let to = TensorMut::new(&mut out, layout(q));
    cpu::attention(attention, tensor(q), tensor(k), tensor(v), to, Some(&mut lse)).unwrap();
    let mut delta = vec![POISON; lse.len()];
    cpu::attention_delta(tensor(&out), tensor(d_out), &mut delta).unwrap();
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![POISON; x.len()]);
    let gradients = AttentionGradients {
        dq: TensorMut::new(&mut dq, layout(q)),
        dk: TensorMut::new(&mut dk, layout(k)),
        dv: TensorMut::new(&mut dv, layout(v)),
    };
    let [q, k, v, d_out] = [q, k, v, d_out].map(tensor);
    cpu::attention_backward(attention, q, k, v, d_out, &lse, &delta, gradients).unwrap();
    [dq, dk, dv, lse, delta]
}

#[test]
fn rows_that_see_nothing_add_nothing() {
    let attention = Attention { key_offset: 2, ..Attention::causal() };
    let x = values(1, 32);
    let mut d_out = values(2, 32);
    let [dq, dk, dv, ..] = simple(&attention, [&x, &x, &x, &d_out]);
    assert!(dq[..16].iter().all(|x| *x == 0.0) && dq[16..].iter().any(|x| *x != 0.0));
    // The third and fourth keys stand behind all queries.
    assert!(dk[16..].iter().chain(&dv[16..]).all(|x| *x == 0.0) && dv[..16].iter().all(|x| *x != 0.0));
    // Not even where their own gradients are not finite.
    d_out[..16].fill(f32::NAN);
    let again = simple(&attention, [&x, &x, &x, &d_out]);
    assert_eq!([&again[0], &again[1], &again[2]], [&dq, &dk, &dv]);
    // Without keys, without queries.
    let [dq, dk, ..] = simple(&Attention::default(), [&x, &[], &[], &x]);
    assert!(dq.iter().all(|x| *x == 0.0) && dk.is_empty());
    let [_, dk, dv, ..] = simple(&Attention::default(), [&[], &x, &x, &[]]);
    assert!(dk.iter().chain(&dv).all(|x| *x == 0.0));
}

#[test]
fn parts_of_the_keys_add_up_to_all_of_them() {
    let (q, k, v, d_out) = (values(1, 8 * 90), values(2, 8 * 300), values(3, 8 * 300), values(4, 8 * 90));
    let all = Attention { query_offset: 210, ..Attention::causal() };
    let [dq, dk, dv, lse, delta] = simple(&all, [&q, &k, &v, &d_out]);
    let layout = |x: &[f32]| Layout::bshd(1, x.len() / 8, 1, 8);
    let mut sum = vec![0.0; dq.len()];
    for (start, end) in [(0, 100), (100, 257), (257, 300)] {
        let (k, v) = (&k[8 * start..8 * end], &v[8 * start..8 * end]);
        let [mut part_q, mut part_k, mut part_v] = [&q[..], k, v].map(|x| vec![POISON; x.len()]);
        let gradients = AttentionGradients {
            dq: TensorMut::new(&mut part_q, layout(&q)),
            dk: TensorMut::new(&mut part_k, layout(k)),
            dv: TensorMut::new(&mut part_v, layout(v)),
        };
        let [q, k, v, d_out] = [&q[..], k, v, &d_out].map(|x| Tensor::new(x, layout(x)));
        let attention = Attention { key_offset: start as i64, ..all };
        cpu::attention_backward(&attention, q, k, v, d_out, &lse, &delta, gradients).unwrap();
        sum.iter_mut().zip(part_q).for_each(|(sum, part)| *sum += part);
        // Nothing is summed over the other keys. The blocks of queries are others, and so the order of sums.
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&part_k, &dk[8 * start..8 * end]) && close(&part_v, &dv[8 * start..8 * end]));
    }
    assert!(sum.iter().zip(&dq).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn equal_values_have_gradients_that_do_not_drift() {
    // Of equal values every mean is the same: nothing depends on queries and keys, and dV adds up to d_out.
    let keys = 1 << 18;
    let (q, k, v) = (values(8, 16), values(7, 8 * keys), vec![0.5f32; 8 * keys]);
    let d_out = vec![1.0f32; 16];
    let [dq, _, dv, ..] = simple(&Attention::default(), [&q, &k, &v, &d_out]);
    assert!(dq.iter().all(|x| x.abs() < 1e-5), "{dq:?}");
    for d in 0..8 {
        let total: f64 = dv.iter().skip(d).step_by(8).map(|x| f64::from(*x)).sum();
        assert!((total / 2.0 - 1.0).abs() < 1e-5, "{total}");
    }
}

#[test]
fn the_same_inputs_give_the_same_bits_on_any_number_of_threads() {
    let inputs = [(1, 700), (2, 900), (3, 900), (4, 700)].map(|(seed, tokens)| values(seed, 8 * tokens));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| simple(&Attention::default(), [0, 1, 2, 3].map(|i| &inputs[i][..])))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let x = values(1, 8 * 6);
    let layout = Layout::bshd(1, 3, 2, 8);
    let message = |change: fn(&mut [Layout; 5], &mut [usize; 2])| {
        // d_out, dq, dk, dv, and q's own; lse and delta.
        let (mut layouts, mut rows) = ([layout; 5], [6, 6]);
        change(&mut layouts, &mut rows);
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![POISON; 48]);
        let gradients = AttentionGradients {
            dq: TensorMut::new(&mut dq, layouts[1]),
            dk: TensorMut::new(&mut dk, layouts[2]),
            dv: TensorMut::new(&mut dv, layouts[3]),
        };
        let [q, k, d_out] = [layouts[4], layout, layouts[0]].map(|layout| Tensor::new(&x, layout));
        let (lse, delta) = (vec![0.0; rows[0]], vec![0.0; rows[1]]);
        let found = cpu::attention_backward(&Attention::causal(), q, k, k, d_out, &lse, &delta, gradients);
        let written = dq.iter().chain(&dk).chain(&dv).any(|x| !is_poison(*x));
        assert_eq!(written, found.is_ok());
        found.map_or_else(|error| error.to_string(), |()| String::new())
    };
    assert_eq!(message(|_, _| ()), "");
    let other = "shape: [1, 2, 2, 8] is not valid; expected [1, 3, 2, 8], as";
    for (i, name, whose) in [(0, "d_out", "q"), (1, "dq", "q"), (2, "dk", "k"), (3, "dv", "v")] {
        let found = match i {
            0 => message(|layouts, _| layouts[0] = Layout::bshd(1, 2, 2, 8)),
            1 => message(|layouts, _| layouts[1] = Layout::bshd(1, 2, 2, 8)),
            2 => message(|layouts, _| layouts[2] = Layout::bshd(1, 2, 2, 8)),
            _ => message(|layouts, _| layouts[3] = Layout::bshd(1, 2, 2, 8)),
        };
        assert_eq!(found, format!("{name}.{other} {whose}"));
    }
    assert!(message(|_, rows| rows[0] = 5).starts_with("lse: 5 values is not valid; expected 6 "));
    assert!(message(|_, rows| rows[1] = 7).starts_with("delta: 7 values is not valid; expected 6 "));
    // Two elements in one place; beyond the buffer.
    let overlapping = |layouts: &mut [Layout; 5], _: &mut [usize; 2]| {
        layouts[1] = Layout::strided([1, 3, 2, 8], [48, 8, 8, 1]);
    };
    assert!(message(overlapping).starts_with("dq"), "{}", message(overlapping));
    let beyond = |layouts: &mut [Layout; 5], _: &mut [usize; 2]| {
        layouts[2] = Layout::strided([1, 3, 2, 8], [48, 17, 8, 1]);
    };
    assert!(message(beyond).starts_with("dk"), "{}", message(beyond));
    let unlike = message(|layouts, _| layouts[4] = Layout::bshd(1, 3, 1, 8));
    assert!(unlike.starts_with("k.heads: 2 "), "{unlike}");

    let delta = |out, d_out, rows: usize| {
        let [out, d_out] = [out, d_out].map(|layout| Tensor::new(&x, layout));
        cpu::attention_delta(out, d_out, &mut vec![0.0; rows]).unwrap_err().to_string()
    };
    assert!(delta(layout, Layout::bshd(1, 3, 1, 8), 6).starts_with("d_out.shape: [1, 3, 1, 8] "));
    assert!(delta(layout, layout, 5).starts_with("delta: 5 values "));
}
