//! What a launch reads: no element beyond the tensors, and every one of them at strides that are large, or zero.

use longrope::descriptor::{self, Layout};
use longrope::device::{Context, DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, BAD_SEQUENCE, Packed, Sequences, Starts, Workspace};

use crate::attention::contract::{KEYS, count, inputs, output, tensors};
use crate::attention::forward::reference_problem;
use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu, runs_portable_kernels};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("what_lies_beyond_the_keys_does_not_matter", beyond_the_keys),
    ("a_sequence_does_not_see_the_next_one", beyond_the_sequence),
    ("many_blocks_of_packed_sequences_do_not_depend_on_what_the_workspace_holds", workspace_bytes),
    ("strides_past_two_to_the_32", strides),
    ("keys_of_stride_zero_are_shared", shared_keys),
];

/// Keys and values of 200 tokens in memory for 260, of which the rest is NaN; and dimensions of 72 in rows of 128.
fn beyond_the_keys(gpu: &Gpu) {
    for (dtype, head_dim, length) in [
        (Dtype::Bf16, 128, 200),
        (Dtype::F16, 72, 129),
        (Dtype::Bf16, 256, 65),
        (Dtype::F16, 88, 1),
        (Dtype::Bf16, 40, 63),
    ] {
        let (heads, memory_length, row) = (2, length + 60, 256);
        let shape = [1, memory_length, heads, row];
        let spoil = |seed| {
            let mut bits = random_bits(dtype, seed, count(shape), 1.0);
            for (i, x) in bits.iter_mut().enumerate() {
                let (token, dim) = (i / (heads * row), i % row);
                if token >= length || dim >= head_dim {
                    *x = u32::MAX;
                }
            }
            bits
        };
        let bits = [spoil(70), spoil(72), spoil(74)];
        let buffers: Vec<Buffer> =
            bits.iter().map(|bits| Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(bits))).collect();
        // The tensors are the first tokens and dimensions of what lies there.
        let part = |buffer: &Buffer| DeviceTensor {
            layout: Layout::strided([1, length, heads, head_dim], buffer.tensor.layout.strides()),
            ..buffer.tensor
        };
        let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, length, heads, head_dim], 0, None);
        let [q, k, v] = [0, 1, 2].map(|i| part(&buffers[i]));
        let tensors = AttentionTensors { q, k, v, out: out.tensor, lse: None };
        let attention = descriptor::Attention::default();
        // SAFETY: the buffers hold more than the layouts say, and live until the output was read.
        unsafe { oracle::launch(gpu, &Attention::new(attention), &tensors) };
        let dense = |bits: &[u32]| -> Vec<f64> {
            let rows = bits.chunks(row).take(length * heads);
            rows.flat_map(|bits| decode(dtype, &bits[..head_dim])).collect()
        };
        let one = reference_problem(&attention, [heads, heads], [length, length], head_dim, 0);
        let exact = exact(&one, &dense(&bits[0]), &dense(&bits[1]), &dense(&bits[2]));
        oracle::check(&exact, dtype, ONE_CALL, (Dtype::F32, &out.read(gpu)), None).unwrap();
    }
}

/// The first of two packed sequences, its last tile of keys shared with a second that is all NaN.
fn beyond_the_sequence(gpu: &Gpu) {
    for head_dim in [64, 128, 256] {
        for lengths in [[70, 90], [1, 1], [128, 64], [65, 129]] {
            beyond_the_first(gpu, head_dim, lengths);
        }
    }
}

fn beyond_the_first(gpu: &Gpu, head_dim: usize, [queries, keys]: [usize; 2]) {
    let (query_shape, key_shape) = ([1, 150, 4, head_dim], [1, 200, 2, head_dim]);
    let new = |seed, shape: [usize; 4], length| {
        let mut bits = random_bits(Dtype::F16, seed, count(shape), 1.0);
        bits[length * shape[2] * shape[3]..].fill(u32::MAX);
        (Buffer::new(gpu, Dtype::F16, Order::Bshd, shape, 0, Some(&bits)), bits)
    };
    let ((q, q_bits), (k, k_bits), (v, v_bits)) =
        (new(80, query_shape, queries), new(82, key_shape, keys), new(84, key_shape, keys));
    let query_starts = gpu.upload(&[0i32, queries as i32, 150]);
    let key_starts = gpu.upload(&[0i32, keys as i32, 200]);
    let status = gpu.upload(&[0u32]);
    let descriptor = descriptor::Attention::default();
    let attention = Attention {
        sequences: Sequences::Packed(Packed {
            count: 2,
            query_starts: gpu.address(&query_starts),
            key_starts: gpu.address(&key_starts),
            starts: Starts::I32,
            max_query_length: 150,
        }),
        query_offsets: None,
        status: Some(gpu.address(&status)),
        ..Attention::new(descriptor)
    };
    let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, query_shape, 0, None);
    let tensors = AttentionTensors { q: q.tensor, k: k.tensor, v: v.tensor, out: out.tensor, lse: None };
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe { oracle::launch(gpu, &attention, &tensors) };
    let out = out.read(gpu);
    assert_eq!(gpu.download(&status)[0] & BAD_SEQUENCE, 0);
    let one = reference_problem(&descriptor, [4, 2], [queries, keys], head_dim, 0);
    let first =
        |bits: &[u32], rows: usize, heads: usize| decode(Dtype::F16, &bits[..rows * heads * head_dim]);
    let exact = exact(&one, &first(&q_bits, queries, 4), &first(&k_bits, keys, 2), &first(&v_bits, keys, 2));
    let (first, second) = out.split_at(queries * 4 * head_dim);
    oracle::check(&exact, Dtype::F16, ONE_CALL, (Dtype::F32, first), None).unwrap();
    // Of NaN comes NaN.
    assert!(second.iter().all(|&bits| f32::from_bits(bits).is_nan()));
}

/// Queries, and as many keys, of packed sequences: long enough that sums are put aside, empty, of one token, and about tiles' ends.
const LENGTHS: [usize; 9] = [5003, 0, 1, 777, 193, 0, 4225, 81, 1279];

/// Several blocks of queries for each multiprocessor, many of them behind the ends of sequences: other kernels, other launches and
/// other bytes in the workspace give the same rows.
fn workspace_bytes(gpu: &Gpu) {
    // Itself it need not be compared with; and where the driver compiles it from PTX, it is slow to load once more.
    let portable = (!runs_portable_kernels()).then(|| Context::portable(0).unwrap());
    let mut starts = vec![0i32];
    starts.extend(LENGTHS.iter().scan(0, |end, &length| {
        *end += length as i32;
        Some(*end)
    }));
    let total = starts[LENGTHS.len()] as usize;
    let starts = gpu.upload(&starts);
    for (head_dim, causal) in [(64, true), (64, false), (128, true), (128, false), (256, false), (80, true)] {
        let (query_shape, key_shape) = ([1, total, 6, head_dim], [1, total, 2, head_dim]);
        let new = |seed, shape, largest| {
            let bits = random_bits(Dtype::F16, seed, count(shape), largest);
            Buffer::new(gpu, Dtype::F16, Order::Bshd, shape, 0, Some(&bits))
        };
        let (q, k, v) = (new(100, query_shape, 3.0), new(102, key_shape, 1.0), new(104, key_shape, 1.0));
        let attention = Attention {
            sequences: Sequences::Packed(Packed {
                count: LENGTHS.len(),
                query_starts: gpu.address(&starts),
                key_starts: gpu.address(&starts),
                starts: Starts::I32,
                max_query_length: LENGTHS[0],
            }),
            query_offsets: None,
            status: None,
            ..Attention::new(descriptor::Attention { causal, ..descriptor::Attention::default() })
        };
        let run = |kernels: &Context, byte: u8| {
            let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, query_shape, 0, None);
            let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, total, 6, 1], 0, None);
            let (q, k, v) = (q.tensor, k.tensor, v.tensor);
            let tensors = AttentionTensors { q, k, v, out: out.tensor, lse: Some(lse.tensor) };
            let scratch = gpu.upload(&vec![byte; attention.workspace_size(&tensors).unwrap()]);
            let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
            // SAFETY: the buffers are as large as their layouts say, the starts are one more than the sequences, and all live
            // until the results were read.
            unsafe { attention.run(kernels, &tensors, workspace, gpu.raw_stream()) }.unwrap();
            (out.read(gpu), lse.read(gpu))
        };
        let what = format!("head dimension {head_dim}, causal {causal}");
        let found = run(&gpu.kernels, 0xff);
        assert!(run(&gpu.kernels, 0xff) == found, "{what}: other bits of another launch");
        assert!(run(&gpu.kernels, 0) == found, "{what}: other bits by what the workspace held");
        // Each kernel is within the bounds of `oracle` and `long` of the exact row, with A up to 1 and L up to 3 √d; a weight is
        // rounded by 2^-11, and sums are right to 1e-4.
        let r = ONE_CALL * (1.0 + 3.0 * (head_dim as f64).sqrt());
        let close = |found: &[u32], expected: &[u32], bound: f64| {
            let value = |&bits: &u32| f64::from(f32::from_bits(bits));
            // Not so of NaN, which is what lies where nothing was written.
            found.iter().zip(expected).all(|(x, y)| (value(x) - value(y)).abs() <= bound)
        };
        let Some(portable) = &portable else { continue };
        let expected = run(portable, 0xff);
        assert!(close(&found.0, &expected.0, 2.0 * (2f64.powi(-11) + 2.0 * r + 1e-4)), "{what}");
        // A log-sum-exp is below 60.
        assert!(
            close(&found.1, &expected.1, 2.0 * (r + 1e-4 + 60.0 * 2f64.powi(-21))),
            "{what}: log-sum-exps"
        );
    }
}

/// Three tokens, 2^31 elements apart, and two heads, 2^29 apart, of every tensor; then two batches, 9 * 2^29 apart.
fn strides(gpu: &Gpu) {
    let head_dim = 64;
    let shape = [2usize, 3, 2, head_dim];
    for strides in [[head_dim as i64, 1 << 31, 1 << 29, 1], [9 << 29, 64, 1 << 29, 1]] {
        let start = |i: usize| {
            let at = [i / 6, i / 2 % 3, i % 2];
            (0..3).map(|dim| at[dim] * strides[dim] as usize).sum::<usize>()
        };
        let elements = (0..12).map(start).max().unwrap() + head_dim;
        assert!(elements > 1 << 32);
        // Queries, keys and values are the same tensor; the output has memory of its own.
        let inputs = random_bits(Dtype::Bf16, 90, 12 * head_dim, 2.0);
        let mut memory = gpu.stream.alloc_zeros::<u16>(elements).unwrap();
        let mut out = gpu.stream.alloc_zeros::<u16>(elements).unwrap();
        for (i, row) in inputs.chunks(head_dim).enumerate() {
            let row: Vec<u16> = row.iter().map(|&bits| bits as u16).collect();
            gpu.stream.memcpy_htod(&row, &mut memory.slice_mut(start(i)..start(i) + head_dim)).unwrap();
            let poison = vec![u16::MAX; head_dim];
            gpu.stream.memcpy_htod(&poison, &mut out.slice_mut(start(i)..start(i) + head_dim)).unwrap();
        }
        let layout = Layout::strided(shape, strides);
        let tensor = |address| DeviceTensor { address, dtype: Dtype::Bf16, layout };
        let (q, out_tensor) = (tensor(gpu.address(&memory)), tensor(gpu.address(&out)));
        let attention = Attention::new(descriptor::Attention::causal());
        let tensors = AttentionTensors { q, k: q, v: q, out: out_tensor, lse: None };
        // SAFETY: the last element of the layout is the last of the buffers.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        for batch in 0..2 {
            let one = reference_problem(&attention.attention, [2, 2], [3, 3], head_dim, 0);
            let x = decode(Dtype::Bf16, &inputs[batch * 6 * head_dim..(batch + 1) * 6 * head_dim]);
            let exact = exact(&one, &x, &x, &x);
            let found: Vec<u32> = (batch * 6..batch * 6 + 6)
                .flat_map(|i| gpu.stream.clone_dtoh(&out.slice(start(i)..start(i) + head_dim)).unwrap())
                .map(u32::from)
                .collect();
            oracle::check(&exact, Dtype::Bf16, ONE_CALL, (Dtype::Bf16, &found), None).unwrap();
        }
    }
}

/// Heads, and then all tokens, that lie on one another: a broadcast copies nothing.
fn shared_keys(gpu: &Gpu) {
    let inputs = inputs(gpu, 9);
    let [batch, length, heads, head_dim] = KEYS;
    let full = Attention::new(descriptor::Attention::default());
    let with = |zeros: [bool; 3]| {
        let share = |tensor: DeviceTensor| {
            let mut strides = tensor.layout.strides();
            (0..3).filter(|&i| zeros[i]).for_each(|i| strides[i] = 0);
            DeviceTensor { layout: Layout::strided(tensor.layout.shape(), strides), ..tensor }
        };
        let out = output(gpu);
        let tensors = AttentionTensors {
            k: share(inputs.k.tensor),
            v: share(inputs.v.tensor),
            ..tensors(&inputs, &out)
        };
        // SAFETY: the layouts reach no further than those of the buffers, which live until the output was read.
        unsafe { oracle::launch(gpu, &full, &tensors) };
        out.read(gpu)
    };
    // One key and value for all: each row is the value.
    let value = &inputs.v.read(gpu)[..head_dim];
    assert!(with([true; 3]).chunks(head_dim).all(|row| row == value));
    // The first head's keys for all heads: as if they had been copied.
    let copied = |buffer: &Buffer| {
        let bits = buffer.read(gpu);
        let rows = (0..batch * length * heads).map(|row| row / heads * heads);
        let bits: Vec<u32> =
            rows.flat_map(|row| bits[row * head_dim..(row + 1) * head_dim].to_vec()).collect();
        Buffer::new(gpu, Dtype::Bf16, Order::Bshd, KEYS, 0, Some(&bits))
    };
    let (k, v, out) = (copied(&inputs.k), copied(&inputs.v), output(gpu));
    let expanded = AttentionTensors { k: k.tensor, v: v.tensor, ..tensors(&inputs, &out) };
    // SAFETY: as above.
    unsafe { oracle::launch(gpu, &full, &expanded) };
    assert_eq!(with([false, false, true]), out.read(gpu));
}
