//! Attention over parts of the keys, merged to attention over all of them: at the end, or each part with what came before.

use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, Carry, Merge, Parts};
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::forward::{dtype, head_dim, heads, reference_problem};
use crate::attention::merge::launch;
use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu};
use crate::check_cases;
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[("attention_over_parts_of_the_keys_merges_to_that_over_all", partition)];

/// Attention over some keys after others.
#[derive(Debug, Clone)]
struct Partition {
    dtype: Dtype,
    heads: (usize, usize),
    head_dim: usize,
    query_length: usize,
    /// Keys of each part; none is legal.
    parts: Vec<usize>,
    attention: descriptor::Attention,
    out_dtype: Dtype,
    seed: u64,
    /// Each part but the first takes in the result before, and the last writes the result of all.
    is_carried: bool,
}

fn partitions() -> impl Strategy<Value = Partition> {
    let part = prop_oneof![1 => Just(0usize), 2 => 1usize..40, 2 => 40usize..200];
    let parts = proptest::collection::vec(part, 1..6);
    let window = prop_oneof![2 => Just(None), 1 => (1u64..150).prop_map(Some)];
    let attention = (any::<bool>(), window, -200i64..400, -100i64..100).prop_map(
        |(causal, window, query_offset, key_offset)| descriptor::Attention {
            scale: None,
            causal,
            window,
            query_offset,
            key_offset,
        },
    );
    let out = select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]);
    let rest = (out, any::<u64>(), any::<bool>());
    (dtype(), heads(), head_dim(), 1usize..140, parts, attention, rest).prop_map(
        |(dtype, heads, head_dim, query_length, parts, attention, (out_dtype, seed, is_carried))| Partition {
            dtype,
            heads,
            head_dim,
            query_length,
            parts,
            attention,
            out_dtype,
            seed,
            is_carried,
        },
    )
}

fn partition(gpu: &Gpu) {
    check_cases(gpu, partitions, |case| run_partition(gpu, &case));
}

fn run_partition(gpu: &Gpu, case: &Partition) -> Result<(), TestCaseError> {
    let Partition { dtype, heads: (query_heads, key_heads), head_dim, query_length, .. } = *case;
    // Attention writes its own type or f32; a merge any.
    let out_dtype = match case.is_carried && case.out_dtype != Dtype::F32 {
        true => dtype,
        false => case.out_dtype,
    };
    let keys: usize = case.parts.iter().sum();
    let (query_shape, key_shape) = ([1, query_length, query_heads, head_dim], [1, keys, key_heads, head_dim]);
    let random = |which: u64, shape: [usize; 4], largest| {
        random_bits(dtype, case.seed ^ which << 32, shape.iter().product(), largest)
    };
    let bits = [random(0, query_shape, 3.0), random(1, key_shape, 1.0), random(2, key_shape, 1.0)];
    let new = |shape, bits: &[u32]| Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(bits));
    let (q, k, v) = (new(query_shape, &bits[0]), new(key_shape, &bits[1]), new(key_shape, &bits[2]));

    let count = case.parts.len();
    let f32s = |shape| Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, None);
    let outs = f32s([count, query_length, query_heads, head_dim]);
    let lses = f32s([count, query_length, query_heads, 1]);
    let (out_stride, lse_stride) = (outs.tensor.layout.strides()[0], lses.tensor.layout.strides()[0]);
    let part = |whole: &Buffer, shape: [usize; 4], part: usize, stride: i64| DeviceTensor {
        address: whole.tensor.address + part as u64 * stride as u64 * 4,
        dtype: Dtype::F32,
        layout: Layout::strided(shape, whole.tensor.layout.strides()),
    };
    let lse_shape = [1, query_length, query_heads, 1];
    let out = Buffer::new(gpu, out_dtype, Order::Bshd, query_shape, 0, None);
    let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, lse_shape, 0, None);
    let mut first = 0;
    for (i, &length) in case.parts.iter().enumerate() {
        let rows = |whole: &Buffer| DeviceTensor {
            address: whole.tensor.address + (first * key_heads * head_dim * 2) as u64,
            dtype,
            layout: Layout::bshd(1, length, key_heads, head_dim),
        };
        let mut attention = Attention::new(case.attention);
        attention.attention.key_offset += first as i64;
        // Carried on, results take turns in two places, or stay in one.
        let place = |i: usize| match case.is_carried {
            true if case.seed.is_multiple_of(2) => 0,
            true => i % 2,
            false => i,
        };
        let of_part = |i| {
            (part(&outs, query_shape, place(i), out_stride), part(&lses, lse_shape, place(i), lse_stride))
        };
        if case.is_carried && i > 0 {
            let (out, lse) = of_part(i - 1);
            attention.carry = Some(Carry { out, lse });
        }
        let (out, lse) = match case.is_carried && i + 1 == count {
            true => (out.tensor, lse.tensor),
            false => of_part(i),
        };
        let tensors = AttentionTensors { q: q.tensor, k: rows(&k), v: rows(&v), out, lse: Some(lse) };
        // SAFETY: the parts lie in buffers that live until the result was read.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        first += length;
    }
    let parts = Parts {
        count,
        out: part(&outs, query_shape, 0, out_stride),
        lse: part(&lses, lse_shape, 0, lse_stride),
        out_stride,
        lse_stride,
    };
    if !case.is_carried {
        // SAFETY: as above.
        unsafe { launch(gpu, &Merge { parts, out: out.tensor, lse: Some(lse.tensor) }) };
    }

    let lengths = [query_length, keys];
    let one = reference_problem(&case.attention, [query_heads, key_heads], lengths, head_dim, 0);
    let [q, k, v] = bits.map(|bits| decode(dtype, &bits));
    let exact = exact(&one, &q, &k, &v);
    // Each part's output is off by what one call's may be; so is each part's log-sum-exp, which is a factor of its weight
    // above and below; and the merge itself adds less than one call does, be it once at the end or with each part.
    let (out, lse) = (out.read(gpu), lse.read(gpu));
    oracle::check(&exact, dtype, 3.0 * ONE_CALL, (out_dtype, &out), Some(&lse)).map_err(TestCaseError::fail)
}
