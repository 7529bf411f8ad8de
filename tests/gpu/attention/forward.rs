//! The attention kernel against the reference, on random problems.

use longrope::descriptor;
use longrope::device::Dtype;
use longrope::ops::{Attention, AttentionTensors};
use longrope::reference;
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu};
use crate::check_cases;
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[("attention_is_within_its_bound_of_the_reference", within_bound)];

/// An attention problem.
#[derive(Debug, Clone)]
struct Problem {
    dtype: Dtype,
    out_dtype: Dtype,
    batch: usize,
    query_length: usize,
    key_length: usize,
    query_heads: usize,
    key_heads: usize,
    head_dim: usize,
    attention: descriptor::Attention,
    /// What the device adds to the query offset, for each sequence.
    device_offsets: Option<Vec<i64>>,
    /// Of q, k, v, the output and the log-sum-exp.
    orders: [Order; 5],
    shift: usize,
    with_lse: bool,
    seed: u64,
}

/// Multiples of 8, and more often those that have a kernel of their own size.
pub fn head_dim() -> impl Strategy<Value = usize> {
    prop_oneof![3 => (1usize..=32).prop_map(|n| 8 * n), 4 => select(vec![64, 96, 128, 256])]
}

/// Query heads and key heads.
pub fn heads() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        5 => (1usize..4, 1usize..5).prop_map(|(keys, group)| (keys * group, keys)),
        1 => Just((9, 3)),
        1 => Just((8, 1)),
    ]
}

/// Queries and keys of a sequence.
pub fn lengths() -> impl Strategy<Value = (usize, usize)> {
    // The ends of tiles and of blocks of 16 rows.
    let edge = || select(vec![0usize, 1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 130, 191, 193]);
    prop_oneof![
        2 => (edge(), edge()),
        2 => (0usize..40, 0usize..150),
        1 => (0usize..3, 100usize..600),
        1 => (100usize..280, 1usize..600),
    ]
}

pub fn dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::Bf16), Just(Dtype::F16)]
}

/// A mask, a scale, and offsets.
pub fn attention() -> impl Strategy<Value = descriptor::Attention> {
    let window = prop_oneof![
        4 => Just(None),
        2 => (1u64..20).prop_map(Some),
        2 => (20u64..700).prop_map(Some),
        1 => select(vec![1 << 40, 1 << 63, u64::MAX]).prop_map(Some),
    ];
    let scale = prop_oneof![
        4 => Just(None),
        1 => (-0.3f32..0.3).prop_map(Some),
        1 => Just(Some(0.0f32)),
        1 => Just(Some(-0.0f32)),
    ];
    let base = select(vec![0i64, 1 << 40, -(1 << 40), (1 << 62) - 2000, -(1 << 62) + 2000]);
    let offset = || prop_oneof![1 => Just(0i64), 2 => -300i64..600];
    let apart = prop_oneof![8 => Just(0i64), 1 => select(vec![1i64 << 33, -(1 << 33), 1 << 61, -(1 << 61)])];
    (any::<bool>(), window, scale, base, offset(), offset(), apart).prop_map(
        |(causal, window, scale, base, queries, keys, apart)| {
            // Far from one another, they stay where positions may be.
            let base = if apart == 0 { base } else { base >> 10 };
            descriptor::Attention {
                scale,
                causal,
                window,
                query_offset: base + queries,
                key_offset: base + keys + apart,
            }
        },
    )
}

/// Orders and a shift: half of them such that 16 bytes can be moved at once.
pub fn places() -> impl Strategy<Value = ([Order; 5], usize)> {
    let dense = || select(vec![Order::Bshd, Order::Bhsd, Order::Reversed]).boxed();
    let any_order = || order().boxed();
    let places = prop_oneof![
        (dense(), dense(), dense(), dense(), order(), Just(0usize)),
        (any_order(), any_order(), any_order(), any_order(), order(), 0usize..3),
    ];
    places.prop_map(|(q, k, v, out, lse, shift)| ([q, k, v, out, lse], shift))
}

fn problem() -> impl Strategy<Value = Problem> {
    let offsets =
        prop_oneof![2 => Just(None), 1 => proptest::collection::vec(-300i64..300, 3).prop_map(Some)];
    let form = (dtype(), any::<bool>(), 1usize..4, lengths(), heads(), head_dim());
    (form, attention(), offsets, places(), prop::bool::weighted(0.8), any::<u64>()).prop_map(
        |(form, attention, device_offsets, (orders, shift), with_lse, seed)| {
            let (dtype, wide, batch, (query_length, key_length), (query_heads, key_heads), head_dim) = form;
            Problem {
                dtype,
                out_dtype: if wide { Dtype::F32 } else { dtype },
                batch,
                query_length,
                key_length,
                query_heads,
                key_heads,
                head_dim,
                attention,
                device_offsets,
                orders,
                shift,
                with_lse,
                seed,
            }
        },
    )
}

/// The reference's problem of one sequence.
pub fn reference_problem(
    attention: &descriptor::Attention,
    [query_heads, key_heads]: [usize; 2],
    [query_length, key_length]: [usize; 2],
    head_dim: usize,
    device_offset: i64,
) -> reference::Problem {
    reference::Problem {
        query_heads,
        key_heads,
        query_length,
        key_length,
        head_dim,
        scale: f64::from(attention.scale.unwrap_or(1.0 / (head_dim as f32).sqrt())),
        causal: attention.causal,
        window: attention.window,
        query_offset: attention.query_offset + device_offset,
        key_offset: attention.key_offset,
    }
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, problem, |problem| run(gpu, &problem));
}

fn run(gpu: &Gpu, problem: &Problem) -> Result<(), TestCaseError> {
    let Problem { dtype, out_dtype, batch, query_length, key_length, query_heads, key_heads, .. } = *problem;
    let query_shape = [batch, query_length, query_heads, problem.head_dim];
    let key_shape = [batch, key_length, key_heads, problem.head_dim];
    let count = |shape: [usize; 4]| shape.iter().product::<usize>();
    let q = random_bits(dtype, problem.seed, count(query_shape), 3.0);
    let k = random_bits(dtype, problem.seed ^ 1 << 32, count(key_shape), 1.0);
    let v = random_bits(dtype, problem.seed ^ 2 << 32, count(key_shape), 1.0);
    let new = |dtype, which: usize, shape, values| {
        Buffer::new(gpu, dtype, problem.orders[which], shape, problem.shift, values)
    };
    let tensors = [
        new(dtype, 0, query_shape, Some(&q[..])),
        new(dtype, 1, key_shape, Some(&k[..])),
        new(dtype, 2, key_shape, Some(&v[..])),
    ];
    let out = new(out_dtype, 3, query_shape, None);
    let lse = new(Dtype::F32, 4, [batch, query_length, query_heads, 1], None);
    let device_offsets = problem.device_offsets.as_ref().map(|offsets| gpu.upload(offsets));
    let mut attention = Attention::new(problem.attention);
    attention.query_offsets = device_offsets.as_ref().map(|memory| gpu.address(memory));
    let status = gpu.upload(&[0u32]);
    attention.status = Some(gpu.address(&status));
    let arguments = AttentionTensors {
        q: tensors[0].tensor,
        k: tensors[1].tensor,
        v: tensors[2].tensor,
        out: out.tensor,
        lse: problem.with_lse.then_some(lse.tensor),
    };
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe { oracle::launch(gpu, &attention, &arguments) };
    let (out, found_lse) = (out.read(gpu), lse.read(gpu));
    prop_assert_eq!(gpu.download(&status)[0], 0);
    if !problem.with_lse {
        prop_assert!(lse.is_untouched(gpu));
    }
    for sequence in 0..batch {
        let one = reference_problem(
            &problem.attention,
            [query_heads, key_heads],
            [query_length, key_length],
            problem.head_dim,
            problem.device_offsets.as_ref().map_or(0, |offsets| offsets[sequence]),
        );
        let part = |bits: &[u32]| {
            let size = bits.len() / batch;
            decode(dtype, &bits[sequence * size..(sequence + 1) * size])
        };
        let exact = exact(&one, &part(&q), &part(&k), &part(&v));
        let of = |bits: &[u32]| {
            let size = bits.len() / batch;
            bits[sequence * size..(sequence + 1) * size].to_vec()
        };
        let lse = problem.with_lse.then(|| of(&found_lse));
        oracle::check(&exact, dtype, ONE_CALL, (out_dtype, &of(&out)), lse.as_deref())
            .map_err(|error| TestCaseError::fail(format!("sequence {sequence}, {error}")))?;
    }
    Ok(())
}
