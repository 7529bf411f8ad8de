//! Parts of the keys and of the queries: with the log-sum-exp and delta of the whole, the gradients of the parts are those of the
//! whole.

use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, AttentionDelta};
use proptest::prelude::*;

use crate::attention::forward::{dtype, head_dim, heads, reference_problem};
use crate::attention::oracle::{decode, random_bits};
use crate::backward::oracle::{self, Delta, Exact, Expected};
use crate::backward::problem::launch;
use crate::buffer::{Buffer, Gpu, format};
use crate::check_cases;
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("parts_of_the_keys_give_the_gradients_of_the_whole", parts_of_keys),
    ("parts_of_the_queries_give_the_gradients_of_the_whole", parts_of_queries),
    ("delta_is_the_sum_of_outputs_times_their_gradients", delta),
];

#[derive(Debug, Clone)]
struct Whole {
    dtype: Dtype,
    heads: (usize, usize),
    head_dim: usize,
    /// Queries and keys of each part.
    queries: [usize; 2],
    keys: [usize; 2],
    causal: bool,
    window: Option<u64>,
    /// Of the first query before the first key.
    offset: i64,
    seed: u64,
}

fn whole() -> impl Strategy<Value = Whole> {
    let window = prop_oneof![2 => Just(None), 1 => (1u64..150).prop_map(Some)];
    let lengths = ([1usize..150, 1usize..100], [1usize..150, 1usize..150]);
    (dtype(), heads(), head_dim(), lengths, any::<bool>(), window, -50i64..250, any::<u64>()).prop_map(
        |(dtype, heads, head_dim, (queries, keys), causal, window, offset, seed)| Whole {
            dtype,
            heads,
            head_dim,
            queries,
            keys,
            causal,
            window,
            offset,
            seed,
        },
    )
}

/// What lies on the device: contiguous tensors of a batch of 1.
struct Memory {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    d_out: Buffer,
    lse: Buffer,
    delta: Buffer,
    /// f32, added to.
    gradients: [Buffer; 3],
    exact: Exact,
}

/// Tokens of a contiguous tensor.
fn tokens(tensor: DeviceTensor, first: usize, count: usize) -> DeviceTensor {
    let [_, _, heads, dims] = tensor.layout.shape();
    DeviceTensor {
        address: tensor.address + (first * heads * dims * tensor.dtype.size()) as u64,
        layout: Layout::bshd(1, count, heads, dims),
        ..tensor
    }
}

impl Whole {
    fn memory(&self, gpu: &Gpu) -> Memory {
        let ((query_heads, key_heads), dim) = (self.heads, self.head_dim);
        let (queries, keys) = (self.queries.iter().sum(), self.keys.iter().sum());
        let (of_queries, of_keys) = ([1, queries, query_heads, dim], [1, keys, key_heads, dim]);
        let random = |which: u64, shape: [usize; 4], largest| {
            random_bits(self.dtype, self.seed ^ which << 32, shape.iter().product(), largest)
        };
        let bits = [
            random(0, of_queries, 3.0),
            random(1, of_keys, 1.0),
            random(2, of_keys, 1.0),
            random(3, of_queries, 1.0),
        ];
        let values = bits.each_ref().map(|bits| decode(self.dtype, bits));
        let one = reference_problem(&self.attention(0, 0), [query_heads, key_heads], [queries, keys], dim, 0);
        let exact = oracle::exact(&one, self.dtype, Delta::Given, values.each_ref().map(Vec::as_slice));
        let new = |dtype, shape, bits: &[u32]| Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(bits));
        let rows = |x: &[f64]| {
            let bits: Vec<u32> = x.iter().map(|&x| format(Dtype::F32).round(x)).collect();
            new(Dtype::F32, [1, queries, query_heads, 1], &bits)
        };
        let zeros = |shape: [usize; 4]| new(Dtype::F32, shape, &vec![0; shape.iter().product()]);
        Memory {
            q: new(self.dtype, of_queries, &bits[0]),
            k: new(self.dtype, of_keys, &bits[1]),
            v: new(self.dtype, of_keys, &bits[2]),
            d_out: new(self.dtype, of_queries, &bits[3]),
            lse: rows(&exact.lse),
            delta: rows(&exact.delta),
            gradients: [zeros(of_queries), zeros(of_keys), zeros(of_keys)],
            exact,
        }
    }

    fn attention(&self, first_query: usize, first_key: usize) -> descriptor::Attention {
        descriptor::Attention {
            scale: None,
            causal: self.causal,
            window: self.window,
            query_offset: self.offset + first_query as i64,
            key_offset: first_key as i64,
        }
    }

    /// Adds the gradients of some queries over some keys.
    fn add(&self, gpu: &Gpu, memory: &Memory, queries: std::ops::Range<usize>, keys: std::ops::Range<usize>) {
        let backward = AttentionBackward {
            accumulate: true,
            ..AttentionBackward::new(self.attention(queries.start, keys.start))
        };
        let of_queries = |buffer: &Buffer| tokens(buffer.tensor, queries.start, queries.len());
        let of_keys = |buffer: &Buffer| tokens(buffer.tensor, keys.start, keys.len());
        let [dq, dk, dv] = &memory.gradients;
        let tensors = AttentionBackwardTensors {
            q: of_queries(&memory.q),
            k: of_keys(&memory.k),
            v: of_keys(&memory.v),
            out: None,
            lse: of_queries(&memory.lse),
            delta: Some(of_queries(&memory.delta)),
            d_out: of_queries(&memory.d_out),
            dq: of_queries(dq),
            dk: of_keys(dk),
            dv: of_keys(dv),
        };
        // SAFETY: the parts lie in the buffers, which live until the gradients were read.
        unsafe { launch(gpu, &backward, &tensors) };
    }
}

impl Memory {
    fn check(&self, gpu: &Gpu) -> Result<(), TestCaseError> {
        let (exact, bounds) = (&self.exact.gradients, &self.exact.bounds);
        let expected =
            [("dq", &exact.dq, &bounds.dq), ("dk", &exact.dk, &bounds.dk), ("dv", &exact.dv, &bounds.dv)];
        for ((name, exact, bound), gradient) in expected.into_iter().zip(&self.gradients) {
            let expected = Expected { name, exact, bound, before: None };
            oracle::check(&expected, Dtype::F32, &gradient.read(gpu)).map_err(TestCaseError::fail)?;
        }
        Ok(())
    }
}

/// As in a ring of devices: the keys come in parts, of which the second may come first.
fn parts_of_keys(gpu: &Gpu) {
    check_cases(gpu, whole, |whole| {
        let memory = whole.memory(gpu);
        let (queries, [first, second]) = (whole.queries.iter().sum(), whole.keys);
        whole.add(gpu, &memory, 0..queries, first..first + second);
        whole.add(gpu, &memory, 0..queries, 0..first);
        memory.check(gpu)
    });
}

/// As in a prefill by chunks.
fn parts_of_queries(gpu: &Gpu) {
    check_cases(gpu, whole, |whole| {
        let memory = whole.memory(gpu);
        let (keys, [first, second]) = (whole.keys.iter().sum(), whole.queries);
        whole.add(gpu, &memory, 0..first, 0..keys);
        whole.add(gpu, &memory, first..first + second, 0..keys);
        memory.check(gpu)
    });
}

/// A product of two 16-bit numbers is exact in f32, one with an f32 is rounded; d sums round. So the result is within
/// (d + 1) 2^-24 of the sum of magnitudes.
fn delta(gpu: &Gpu) {
    let case = || {
        let shape = (1usize..4, 0usize..70, 1usize..10, prop_oneof![1usize..300, head_dim()]);
        (
            dtype(),
            any::<bool>(),
            shape,
            [crate::random::order(), crate::random::order(), crate::random::order()],
            0usize..3,
            any::<u64>(),
        )
    };
    check_cases(gpu, case, |(dtype, wide, (batch, length, heads, dim), orders, shift, seed)| {
        let (shape, out_dtype) = ([batch, length, heads, dim], if wide { Dtype::F32 } else { dtype });
        let count = shape.iter().product();
        let (out, d_out) =
            (random_bits(out_dtype, seed, count, 1.0), random_bits(dtype, seed ^ 1, count, 1.0));
        let new = |dtype, i: usize, shape, bits| Buffer::new(gpu, dtype, orders[i], shape, shift, bits);
        let (out_buffer, d_out_buffer) =
            (new(out_dtype, 0, shape, Some(&out[..])), new(dtype, 1, shape, Some(&d_out[..])));
        let found = new(Dtype::F32, 2, [batch, length, heads, 1], None);
        let delta =
            AttentionDelta { out: out_buffer.tensor, d_out: d_out_buffer.tensor, delta: found.tensor };
        // SAFETY: the buffers are as large as their layouts say, and live until the result was read.
        unsafe { delta.run(&gpu.kernels, gpu.raw_stream()) }.unwrap();
        let (a, b) = (decode(out_dtype, &out), decode(dtype, &d_out));
        for (row, bits) in found.read(gpu).into_iter().enumerate() {
            let products = (row * dim..(row + 1) * dim).map(|i| a[i] * b[i]);
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            let error = (f64::from(f32::from_bits(bits)) - sum).abs();
            prop_assert!(error <= (dim + 1) as f64 * 2f64.powi(-24) * size, "row {}: off by {}", row, error);
        }
        Ok(())
    });
}
