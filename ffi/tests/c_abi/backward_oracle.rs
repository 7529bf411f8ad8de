//! The CPU form of attention's gradients against the f64 reference, on random sequences, masks, positions and layouts.

use longrope::reference::Problem;
use proptest::prelude::*;

use crate::abi::{
    AttentionBackwardDesc, AttentionBackwardTensors, AttentionDesc, AttentionTensors, Status, Tensor,
};
use crate::api::{self, NONE, api, message, status};
use crate::attention_oracle::{Asked, POISON, Placed, Starts, asked};
use crate::random::{indices, order, values};

/// How far f32 may be from exact gradients of queries, keys and values: a weight is off by a factor of at most `e^error`, and a
/// term of a gradient by as much of its parts, so bounds are sums of magnitudes times that error.
fn bounds(problem: &Problem, [q, k, v, d_out]: [&[f64]; 4], lse: &[f64]) -> [Vec<f64>; 3] {
    let (dim, heads, ratio) =
        (problem.head_dim, problem.query_heads, problem.query_heads / problem.key_heads);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![0.0; x.len()]);
    let magnitude = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
    for row in 0..problem.query_length * heads {
        let (query, head, scale) = (row / heads, row % heads, problem.scale);
        let (q_row, d_row) = (&q[row * dim..][..dim], &d_out[row * dim..][..dim]);
        let at = |key: usize| (key * problem.key_heads + head / ratio) * dim;
        let keys: Vec<usize> = (0..problem.key_length).filter(|&key| problem.allows(query, key)).collect();
        // The output is a mean of values: its product with d_out is at most the largest.
        let delta = keys.iter().map(|&key| magnitude(d_row, &v[at(key)..][..dim])).fold(0.0, f64::max);
        for at in keys.into_iter().map(at) {
            let (k_row, v_row) = (&k[at..][..dim], &v[at..][..dim]);
            let logit: f64 = q_row.iter().zip(k_row).map(|(a, b)| scale * a * b).sum();
            let weight = (logit - lse[row]).exp();
            let term = scale.abs() * weight * (magnitude(d_row, v_row) + delta);
            // As many roundings as there are additions, and those of the logit, the exponential and the log-sum-exp.
            let logit = scale.abs() * magnitude(q_row, k_row);
            let error = 2f64.powi(-24) * ((dim as f64 + 8.0) * (1.0 + logit) + lse[row].abs() + 16.0);
            for d in 0..dim {
                dq[row * dim + d] += error * term * k_row[d].abs();
                dk[at + d] += error * term * q_row[d].abs();
                dv[at + d] += error * weight * d_row[d].abs();
            }
        }
    }
    [dq, dk, dv]
}

/// The backward pass that is asked for, without tensors.
fn backward(asked: &Asked, starts: &[Starts; 2], word: &mut u32) -> AttentionBackwardDesc {
    let mut desc = AttentionBackwardDesc {
        causal: asked.causal.into(),
        scale: asked.scale,
        window: asked.window,
        query_offset: asked.query_offset,
        key_offset: asked.key_offset,
        query_offsets: asked.offsets.as_ref().map_or(std::ptr::null(), |offsets| offsets.as_ptr()),
        status: word,
        ..api::attention_backward()
    };
    if let Some((bits, _)) = asked.packed {
        (desc.sequence_kind, desc.index_bits) = (1, bits);
        desc.sequences = asked.lengths.len() as i64;
        (desc.query_starts, desc.key_starts) = (starts[0].pointer(bits), starts[1].pointer(bits));
        desc.max_query_length = asked.lengths.iter().map(|l| l.0).max().unwrap() as i64;
    }
    desc
}

/// The attention that it is the backward pass of.
fn forward(desc: &AttentionBackwardDesc) -> AttentionDesc {
    AttentionDesc {
        causal: desc.causal,
        scale: desc.scale,
        window: desc.window,
        query_offset: desc.query_offset,
        key_offset: desc.key_offset,
        sequence_kind: desc.sequence_kind,
        index_bits: desc.index_bits,
        sequences: desc.sequences,
        query_starts: desc.query_starts,
        key_starts: desc.key_starts,
        max_query_length: desc.max_query_length,
        query_offsets: desc.query_offsets,
        ..api::attention()
    }
}

proptest! {
    #[test]
    fn gradients_are_those_of_the_reference(
        asked in asked(), orders in prop::array::uniform10(order()), accumulate in any::<bool>(), with_delta in any::<bool>()
    ) {
        let (batch, queries, keys) = asked.sizes();
        let heads = asked.key_heads * asked.ratio;
        let (q_shape, k_shape) = ([batch, queries, heads, asked.head_dim], [batch, keys, asked.key_heads, asked.head_dim]);
        let row_shape = [batch, queries, heads, 1];
        let random = |seed, shape: [usize; 4]| Some(values(asked.seed ^ seed, shape.iter().product()));
        let [mut q, mut k, mut v, mut d_out] =
            [(0, q_shape), (1, k_shape), (2, k_shape), (3, q_shape)].map(|(i, shape)| Placed::new(orders[i as usize], shape, random(i, shape)));
        let [mut out, mut lse, mut delta] =
            [(4, q_shape), (5, row_shape), (6, row_shape)].map(|(i, shape)| Placed::new(orders[i], shape, None));
        // What gradients are added to.
        let mut gradients = [(7, q_shape), (8, k_shape), (9, k_shape)].map(|(i, shape)| {
            Placed::new(orders[i as usize], shape, if accumulate { random(i, shape) } else { None })
        });
        let starts = asked.starts().map(|starts| Starts::new(&starts));
        let mut word = 0x80;
        let mut desc = backward(&asked, &starts, &mut word);
        desc.accumulate = accumulate.into();
        let (q_at, k_at, v_at, out_at, lse_at) = (q.tensor(), k.tensor(), v.tensor(), out.tensor(), lse.tensor());
        let (delta_at, d_out_at) = (delta.tensor(), d_out.tensor());
        let [dq, dk, dv] = gradients.each_mut().map(Placed::tensor);
        let given = AttentionBackwardTensors {
            q: q_at,
            k: k_at,
            v: v_at,
            out: if with_delta { NONE } else { out_at },
            lse: lse_at,
            delta: if with_delta { delta_at } else { NONE },
            d_out: d_out_at,
            dq,
            dk,
            dv,
        };
        let before = gradients.each_ref().map(|placed| placed.buffer.clone());
        // SAFETY: the tensors lie in their buffers, which nothing else uses; starts and offsets are as long as they must be.
        unsafe {
            let tensors = AttentionTensors { q: q_at, k: k_at, v: v_at, out: out_at, lse: lse_at };
            prop_assert_eq!(status((api().attention_cpu)(&forward(&desc), &tensors)), Status::Ok, "{}", message());
            if with_delta {
                let found = (api().attention_delta_cpu)(&out_at, &d_out_at, &delta_at);
                prop_assert_eq!(status(found), Status::Ok, "{}", message());
            }
            let found = (api().attention_backward_cpu)(&desc, &given);
            prop_assert_eq!(status(found), Status::Ok, "{}", message());
        }
        prop_assert_eq!(word, 0x80);

        let mut seen = before.each_ref().map(|buffer| vec![false; buffer.len()]);
        for (i, (batch, first_query, queries, first_key, keys)) in asked.spans().into_iter().enumerate() {
            let problem = asked.problem(i);
            let parts = [q.tokens(batch, first_query, queries), k.tokens(batch, first_key, keys),
                v.tokens(batch, first_key, keys), d_out.tokens(batch, first_query, queries)];
            let [q, k, v, d_out] = parts.each_ref().map(Vec::as_slice);
            let exact = problem.backward(q, k, v, d_out, None).unwrap();
            let bounds = bounds(&problem, [q, k, v, d_out], &problem.forward(q, k, v).unwrap().lse);
            let spans = [(first_query, queries, heads), (first_key, keys, asked.key_heads), (first_key, keys, asked.key_heads)];
            for (which, (exact, bounds)) in [exact.dq, exact.dk, exact.dv].into_iter().zip(bounds).enumerate() {
                let (first, count, heads) = spans[which];
                for (([_, s, h, d], exact), bound) in indices([1, count, heads, asked.head_dim]).zip(exact).zip(bounds) {
                    let at = gradients[which].index([batch, first + s, h, d]);
                    seen[which][at] = true;
                    let start = if accumulate { f64::from(before[which][at]) } else { 0.0 };
                    let found = f64::from(gradients[which].buffer[at]);
                    // And the rounding of the sum.
                    let bound = bound + if accumulate { 2f64.powi(-24) * (start.abs() + exact.abs()) } else { 0.0 };
                    let error = (found - start - exact).abs();
                    prop_assert!(error <= bound, "{} of sequence {i} at {:?}: {found} against {exact}, bound {bound}",
                        ["dq", "dk", "dv"][which], [s, h, d]);
                }
            }
        }
        for (which, seen) in seen.iter().enumerate() {
            let pairs = gradients[which].buffer.iter().zip(&before[which]);
            let untouched = pairs.zip(seen).all(|((now, before), seen)| *seen || now.to_bits() == before.to_bits());
            prop_assert!(untouched, "an element that is of no sequence was written");
        }
    }
}

/// Gradients of packed sequences over tensors of 6 queries and 9 keys, 1 head, dimension 2. Answers which rows of dq, dk and dv
/// were written, and the status word.
fn written(query_starts: &[i64], key_starts: &[i64], most: i64) -> ([Vec<bool>; 3], u32) {
    let mut inputs =
        [values(1, 12), values(2, 18), values(3, 18), values(4, 12), values(5, 12), values(6, 6)];
    let mut outputs = [vec![POISON; 12], vec![POISON; 18], vec![POISON; 18]];
    let (queries, keys) = ([1, 6, 1, 2], [1, 9, 1, 2]);
    let [q, k, v, out, d_out, lse] = inputs.each_mut().map(|x| x.as_mut_ptr());
    let [dq, dk, dv] = outputs.each_mut().map(|x| x.as_mut_ptr());
    let tensors = AttentionBackwardTensors {
        q: api::tensor(q, queries),
        k: api::tensor(k, keys),
        v: api::tensor(v, keys),
        out: api::tensor(out, queries),
        lse: api::tensor(lse, [1, 6, 1, 1]),
        delta: NONE,
        d_out: api::tensor(d_out, queries),
        dq: api::tensor(dq, queries),
        dk: api::tensor(dk, keys),
        dv: api::tensor(dv, keys),
    };
    let mut word = 0x80;
    let desc = AttentionBackwardDesc {
        sequence_kind: 1,
        index_bits: 64,
        sequences: query_starts.len() as i64 - 1,
        query_starts: query_starts.as_ptr().cast(),
        key_starts: key_starts.as_ptr().cast(),
        max_query_length: most,
        status: &mut word,
        ..api::attention_backward()
    };
    // SAFETY: the tensors are these arrays; there are as many starts as there must be.
    let found = unsafe { (api().attention_backward_cpu)(&desc, &tensors) };
    assert_eq!(status(found), Status::Ok, "{}", message());
    let rows = outputs.map(|output| {
        let row = |pair: &[f32]| {
            let written = [0, 1].map(|i| pair[i].to_bits() != POISON.to_bits());
            assert_eq!(written[0], written[1]);
            written[0]
        };
        output.chunks(2).map(row).collect::<Vec<bool>>()
    });
    (rows, word)
}

#[test]
fn a_bad_sequence_is_left_alone_and_sets_its_bit() {
    let bad = 0x80 | longrope::ops::BAD_SEQUENCE;
    let up_to = |end: usize, count: usize| (0..count).map(|i| i < end).collect::<Vec<bool>>();
    let all = [up_to(6, 6), up_to(9, 9), up_to(9, 9)];
    assert_eq!(written(&[0, 2, 6], &[0, 4, 9], 0), (all.clone(), 0x80));
    assert_eq!(written(&[0, 2, 6], &[0, 4, 9], 4), (all, 0x80));
    let first = [up_to(2, 6), up_to(4, 9), up_to(4, 9)];
    for (queries, keys, most) in [
        ([0, 2, 1], [0, 4, 9], 0),
        ([0, 2, 7], [0, 4, 9], 0),
        ([0, 2, 6], [0, 4, 3], 0),
        ([0, 2, 6], [0, 4, i64::MAX], 0),
        ([0, 2, 6], [0, 4, 9], 3),
    ] {
        assert_eq!(written(&queries, &keys, most), (first.clone(), bad), "{queries:?} {keys:?}");
    }
    // Keys of a sequence without queries get zeros; queries without keys as well.
    let without_queries = [up_to(2, 6), up_to(9, 9), up_to(9, 9)];
    assert_eq!(written(&[0, 2, 2], &[0, 4, 9], 0), (without_queries, 0x80));
    let without_keys = [up_to(6, 6), up_to(4, 9), up_to(4, 9)];
    assert_eq!(written(&[0, 2, 6], &[0, 4, 4], 0), (without_keys, 0x80));
}

#[test]
fn keys_that_no_query_sees_get_zeros_or_are_left_as_they_are() {
    for (accumulate, expected) in [(0, 0.0), (1, 3.0)] {
        let (mut dk, mut dv) = ([3.0f32; 12], [3.0f32; 12]);
        let none = api::tensor(std::ptr::null_mut(), [2, 0, 4, 3]);
        let keys = api::tensor(std::ptr::null_mut(), [2, 2, 1, 3]);
        let tensors = AttentionBackwardTensors {
            q: none,
            k: keys,
            v: keys,
            out: none,
            lse: api::tensor(std::ptr::null_mut(), [2, 0, 4, 1]),
            delta: NONE,
            d_out: none,
            dq: none,
            dk: Tensor { data: dk.as_mut_ptr().cast(), ..keys },
            dv: Tensor { data: dv.as_mut_ptr().cast(), ..keys },
        };
        let desc = AttentionBackwardDesc { accumulate, ..api::attention_backward() };
        // SAFETY: what is written are these arrays, and nothing is read.
        let found = unsafe { (api().attention_backward_cpu)(&desc, &tensors) };
        assert_eq!(status(found), Status::Ok, "{}", message());
        assert_eq!((dk, dv), ([expected; 12], [expected; 12]));
    }
}

#[test]
fn a_delta_without_dimensions_is_zero() {
    let mut delta = [3.0f32; 6];
    let rows = api::tensor(std::ptr::null_mut(), [1, 3, 2, 0]);
    let to = api::tensor(delta.as_mut_ptr(), [1, 3, 2, 1]);
    // SAFETY: what is written is this array, and nothing is read.
    let found = unsafe { (api().attention_delta_cpu)(&rows, &rows, &to) };
    assert_eq!(status(found), Status::Ok, "{}", message());
    assert_eq!(delta, [0.0; 6]);
}
