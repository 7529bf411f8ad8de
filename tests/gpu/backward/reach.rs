//! What a launch reads and writes: no element beyond the tensors, and every one of them at strides that are large, or zero.

use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, Packed, Sequences, Starts};

use crate::attention::forward::reference_problem;
use crate::attention::oracle::{decode, random_bits};
use crate::backward::oracle::{self, Delta, Exact, Expected};
use crate::backward::problem::launch;
use crate::buffer::{Buffer, Gpu, format};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("what_lies_beyond_the_tensors_does_not_matter", beyond_the_tensors),
    ("a_sequence_does_not_see_the_next_one", beyond_the_sequence),
    ("strides_past_two_to_the_32", strides),
    ("keys_of_stride_zero_are_shared", shared_keys),
];

fn count(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

fn check(exact: &Exact, dtype: Dtype, found: [&[u32]; 3]) {
    let (gradients, bounds) = (&exact.gradients, &exact.bounds);
    let expected = [
        ("dq", &gradients.dq, &bounds.dq),
        ("dk", &gradients.dk, &bounds.dk),
        ("dv", &gradients.dv, &bounds.dv),
    ];
    for ((name, exact, bound), found) in expected.into_iter().zip(found) {
        oracle::check(&Expected { name, exact, bound, before: None }, dtype, found).unwrap();
    }
}

/// Numbers of rows as f32, contiguous in memory.
fn row_bits(values: &[f64]) -> Vec<u32> {
    values.iter().map(|&x| format(Dtype::F32).round(x)).collect()
}

/// Tensors of some tokens in memory for 60 more, of which the rest is NaN; and some dimensions of rows of 256.
fn beyond_the_tensors(gpu: &Gpu) {
    for (dtype, head_dim, length) in [
        (Dtype::Bf16, 128, 200),
        (Dtype::F16, 72, 129),
        (Dtype::Bf16, 256, 65),
        (Dtype::F16, 88, 1),
        (Dtype::Bf16, 40, 63),
        (Dtype::F16, 8, 33),
    ] {
        let (heads, row) = (2, 256);
        let shape = [1, length + 60, heads, row];
        let bits = [70, 72, 74, 76].map(|seed| {
            let mut bits = random_bits(dtype, seed, count(shape), 1.0);
            for (i, x) in bits.iter_mut().enumerate() {
                let (token, dim) = (i / (heads * row), i % row);
                if token >= length || dim >= head_dim {
                    *x = u32::MAX;
                }
            }
            bits
        });
        let buffers = bits.each_ref().map(|bits| Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(bits)));
        // The tensors are the first tokens and dimensions of what lies there.
        let [q, k, v, d_out] = buffers.each_ref().map(|buffer| DeviceTensor {
            layout: Layout::strided([1, length, heads, head_dim], buffer.tensor.layout.strides()),
            ..buffer.tensor
        });
        let dense = bits.each_ref().map(|bits| -> Vec<f64> {
            let rows = bits.chunks(row).take(length * heads);
            rows.flat_map(|bits| decode(dtype, &bits[..head_dim])).collect()
        });
        let attention = descriptor::Attention::default();
        let one = reference_problem(&attention, [heads, heads], [length, length], head_dim, 0);
        let exact = oracle::exact(&one, dtype, Delta::Given, dense.each_ref().map(Vec::as_slice));
        let rows = |values: &[f64]| {
            let mut bits = row_bits(values);
            bits.resize((length + 60) * heads, u32::MAX);
            Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, length + 60, heads, 1], 0, Some(&bits))
        };
        let (lse, delta) = (rows(&exact.lse), rows(&exact.delta));
        let part =
            |buffer: &Buffer| DeviceTensor { layout: Layout::bshd(1, length, heads, 1), ..buffer.tensor };
        // The buffers of the gradients are guarded.
        let outputs =
            [0; 3].map(|_| Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, length, heads, head_dim], 0, None));
        let tensors = AttentionBackwardTensors {
            q,
            k,
            v,
            out: None,
            lse: part(&lse),
            delta: Some(part(&delta)),
            d_out,
            dq: outputs[0].tensor,
            dk: outputs[1].tensor,
            dv: outputs[2].tensor,
        };
        // SAFETY: the buffers hold more than the layouts say, and live until the gradients were read.
        unsafe { launch(gpu, &AttentionBackward::new(attention), &tensors) };
        let found = outputs.each_ref().map(|output| output.read(gpu));
        check(&exact, Dtype::F32, found.each_ref().map(Vec::as_slice));
    }
}

/// The first of two packed sequences, its last tiles shared with a second that is all NaN.
fn beyond_the_sequence(gpu: &Gpu) {
    for head_dim in [64, 96, 128, 256] {
        for lengths in [[70, 90], [1, 1], [128, 64], [65, 129]] {
            beyond_the_first(gpu, head_dim, lengths);
        }
    }
}

fn beyond_the_first(gpu: &Gpu, head_dim: usize, [queries, keys]: [usize; 2]) {
    let (query_shape, key_shape) = ([1, 150, 4, head_dim], [1, 200, 2, head_dim]);
    let shapes = [query_shape, key_shape, key_shape, query_shape];
    let lengths = [queries, keys, keys, queries];
    let bits = [0, 1, 2, 3].map(|i| {
        let mut bits = random_bits(Dtype::F16, 80 + 2 * i as u64, count(shapes[i]), 1.0);
        bits[lengths[i] * shapes[i][2] * head_dim..].fill(u32::MAX);
        bits
    });
    let values = [0, 1, 2, 3].map(|i| decode(Dtype::F16, &bits[i][..lengths[i] * shapes[i][2] * head_dim]));
    let descriptor = descriptor::Attention::default();
    let one = reference_problem(&descriptor, [4, 2], [queries, keys], head_dim, 0);
    let exact = oracle::exact(&one, Dtype::F16, Delta::Given, values.each_ref().map(Vec::as_slice));
    let inputs =
        [0, 1, 2, 3].map(|i| Buffer::new(gpu, Dtype::F16, Order::Bshd, shapes[i], 0, Some(&bits[i])));
    let rows = |values: &[f64]| {
        let mut bits = row_bits(values);
        bits.resize(150 * 4, u32::MAX);
        Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, 150, 4, 1], 0, Some(&bits))
    };
    let (lse, delta) = (rows(&exact.lse), rows(&exact.delta));
    let outputs = [query_shape, key_shape, key_shape]
        .map(|shape| Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, None));
    let query_starts = gpu.upload(&[0i32, queries as i32, 150]);
    let key_starts = gpu.upload(&[0i32, keys as i32, 200]);
    let backward = AttentionBackward {
        sequences: Sequences::Packed(Packed {
            count: 2,
            query_starts: gpu.address(&query_starts),
            key_starts: gpu.address(&key_starts),
            starts: Starts::I32,
            max_query_length: 150,
        }),
        ..AttentionBackward::new(descriptor)
    };
    let [q, k, v, d_out] = inputs.each_ref().map(|input| input.tensor);
    let [dq, dk, dv] = outputs.each_ref().map(|output| output.tensor);
    let delta_tensor = Some(delta.tensor);
    let tensors = AttentionBackwardTensors {
        q,
        k,
        v,
        out: None,
        lse: lse.tensor,
        delta: delta_tensor,
        d_out,
        dq,
        dk,
        dv,
    };
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe { launch(gpu, &backward, &tensors) };
    let found = outputs.each_ref().map(|output| output.read(gpu));
    let ends = [queries * 4 * head_dim, keys * 2 * head_dim, keys * 2 * head_dim];
    check(&exact, Dtype::F32, [0, 1, 2].map(|i| &found[i][..ends[i]]));
    // Of NaN comes NaN.
    for i in 0..3 {
        assert!(found[i][ends[i]..].iter().all(|&bits| f32::from_bits(bits).is_nan()));
    }
}

/// Three tokens, 2^31 elements apart, and two heads, 2^29 apart, of every tensor; then two batches, 9 * 2^29 apart.
fn strides(gpu: &Gpu) {
    let head_dim = 64;
    let shape = [2usize, 3, 2, head_dim];
    // Three gradients lie in the room between rows: so many elements after one another.
    const APART: usize = 256;
    for strides in [[head_dim as i64, 1 << 31, 1 << 29, 1], [9 << 29, 64, 1 << 29, 1]] {
        let start = |i: usize| {
            let at = [i / 6, i / 2 % 3, i % 2];
            (0..3).map(|dim| at[dim] * strides[dim] as usize).sum::<usize>()
        };
        let elements = (0..12).map(start).max().unwrap() + head_dim + 2 * APART;
        assert!(elements > 1 << 32);
        // Queries, keys, values and the gradient of the output are the same tensor.
        let inputs = random_bits(Dtype::Bf16, 90, 12 * head_dim, 2.0);
        let mut memory = gpu.stream.alloc_zeros::<u16>(elements).unwrap();
        let mut out = gpu.stream.alloc_zeros::<u16>(elements).unwrap();
        for (i, row) in inputs.chunks(head_dim).enumerate() {
            let row: Vec<u16> = row.iter().map(|&bits| bits as u16).collect();
            gpu.stream.memcpy_htod(&row, &mut memory.slice_mut(start(i)..start(i) + head_dim)).unwrap();
            for first in [0, APART, 2 * APART].map(|apart| start(i) + apart) {
                let poison = vec![u16::MAX; head_dim];
                gpu.stream.memcpy_htod(&poison, &mut out.slice_mut(first..first + head_dim)).unwrap();
            }
        }
        let layout = Layout::strided(shape, strides);
        let attention = descriptor::Attention::causal();
        let exact = [0, 1].map(|batch| {
            let one = reference_problem(&attention, [2, 2], [3, 3], head_dim, 0);
            let x = decode(Dtype::Bf16, &inputs[batch * 6 * head_dim..(batch + 1) * 6 * head_dim]);
            oracle::exact(&one, Dtype::Bf16, Delta::Given, [&x, &x, &x, &x])
        });
        let rows = |of: fn(&Exact) -> &[f64]| {
            let bits: Vec<u32> = exact.iter().flat_map(|exact| row_bits(of(exact))).collect();
            Buffer::new(gpu, Dtype::F32, Order::Bshd, [2, 3, 2, 1], 0, Some(&bits))
        };
        let (lse, delta) = (rows(|exact| &exact.lse), rows(|exact| &exact.delta));
        let tensor = |address| DeviceTensor { address, dtype: Dtype::Bf16, layout };
        let x = tensor(gpu.address(&memory));
        let gradient = |i: usize| tensor(gpu.address(&out) + (2 * i * APART) as u64);
        let tensors = AttentionBackwardTensors {
            q: x,
            k: x,
            v: x,
            out: None,
            lse: lse.tensor,
            delta: Some(delta.tensor),
            d_out: x,
            dq: gradient(0),
            dk: gradient(1),
            dv: gradient(2),
        };
        // SAFETY: the last element of the layouts is the last of the buffers, and the gradients lie between one another's rows.
        unsafe { launch(gpu, &AttentionBackward::new(attention), &tensors) };
        for (batch, exact) in exact.iter().enumerate() {
            let found = [0, 1, 2].map(|which| -> Vec<u32> {
                (batch * 6..batch * 6 + 6)
                    .map(|i| start(i) + which * APART)
                    .flat_map(|first| gpu.stream.clone_dtoh(&out.slice(first..first + head_dim)).unwrap())
                    .map(u32::from)
                    .collect()
            });
            check(exact, Dtype::Bf16, found.each_ref().map(Vec::as_slice));
        }
    }
}

/// Keys and values of the first head for all heads: as if they had been copied.
fn shared_keys(gpu: &Gpu) {
    let (queries, keys, dim) = ([1, 70, 4, 64], [1, 90, 4, 64], 64);
    let new = |seed, shape| {
        let bits = random_bits(Dtype::F16, seed, count(shape), 1.0);
        Buffer::new(gpu, Dtype::F16, Order::Bshd, shape, 0, Some(&bits))
    };
    let (q, d_out, k, v) = (new(120, queries), new(122, queries), new(124, keys), new(126, keys));
    let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, 70, 4, 1], 0, Some(&vec![4f32.to_bits(); 280]));
    let copied = |buffer: &Buffer| {
        let bits = buffer.read(gpu);
        let bits: Vec<u32> = (0..360).flat_map(|row| bits[row / 4 * 4 * dim..][..dim].to_vec()).collect();
        Buffer::new(gpu, Dtype::F16, Order::Bshd, keys, 0, Some(&bits))
    };
    let run = |k: DeviceTensor, v: DeviceTensor| {
        let outputs =
            [queries, keys, keys].map(|shape| Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, None));
        let [dq, dk, dv] = outputs.each_ref().map(|output| output.tensor);
        let tensors = AttentionBackwardTensors {
            q: q.tensor,
            k,
            v,
            out: Some(q.tensor),
            lse: lse.tensor,
            delta: None,
            d_out: d_out.tensor,
            dq,
            dk,
            dv,
        };
        // SAFETY: the layouts reach no further than those of the buffers, which live until the gradients were read.
        unsafe { launch(gpu, &AttentionBackward::new(descriptor::Attention::causal()), &tensors) };
        outputs.map(|output| output.read(gpu))
    };
    let share = |tensor: DeviceTensor| {
        let [batch, length, _, dim] = tensor.layout.strides();
        DeviceTensor { layout: Layout::strided(tensor.layout.shape(), [batch, length, 0, dim]), ..tensor }
    };
    let (k_copied, v_copied) = (copied(&k), copied(&v));
    assert!(run(share(k.tensor), share(v.tensor)) == run(k_copied.tensor, v_copied.tensor));
}
