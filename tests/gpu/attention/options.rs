//! What may be asked of an attention beside its mask: queries that are rotated as they are loaded, a limit of multiprocessors; and keys
//! that are divided among blocks where queries are few.

use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Attention, AttentionTensors, BAD_CHOICE, BAD_SEQUENCE, CacheChoices, CacheRotary, Carry, Packed,
    Sequences, Starts, Workspace,
};
use longrope::scaling::SetChoice;
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::forward::reference_problem;
use crate::attention::long::{Found, Sequence};
use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits, scratch};
use crate::buffer::{Buffer, Gpu, format, runs_portable_kernels};
use crate::cache::model::{By, Rotation, WHILE_READ, rotation};
use crate::check_cases;
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("queries_are_rotated_as_they_are_loaded", rotated_queries),
    ("a_sequence_whose_set_is_none_is_reported_and_its_rows_left_alone", bad_choice),
    ("a_limit_of_multiprocessors_changes_no_bit", limited),
    ("few_queries_divide_their_keys_among_blocks", few_queries),
    ("a_carry_is_taken_in_once_where_keys_are_divided", carried),
    ("packed_sequences_divide_their_keys_and_rows_of_none_are_left_alone", packed),
];

/// Queries to rotate, alike in as many sequences as there are dimensions.
#[derive(Debug, Clone)]
struct Rotated {
    dtype: Dtype,
    head_dim: usize,
    heads: usize,
    length: usize,
    rotation: Rotation,
    by: By,
    offset: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Rotated> {
    let head_dim = prop_oneof![3 => select(vec![64usize, 96, 128]), 1 => (1usize..=16).prop_map(|n| 8 * n), 1 => Just(256)];
    let sets = head_dim.prop_flat_map(|head_dim| {
        let most = head_dim / 4;
        let pairs = prop_oneof![2 => Just(2 * most), 1 => (1..=most).prop_map(|n| 2 * n)];
        (Just(head_dim), pairs.prop_flat_map(rotation))
    });
    let by = prop_oneof![
        1 => select(vec![By::All(SetChoice::Short), By::All(SetChoice::Long)]),
        1 => Just(By::Length),
        1 => Just(By::Index),
    ];
    let length = prop_oneof![select(vec![1usize, 63, 64, 65, 127, 128, 129, 192, 193]), 1usize..260];
    let offset = prop_oneof![2 => 0usize..60, 1 => 0usize..400, 1 => 2_000_000usize..2_100_000];
    (select(vec![Dtype::Bf16, Dtype::F16]), sets, 1usize..3, length, by, offset, any::<u64>()).prop_map(
        |(dtype, (head_dim, rotation), heads, length, by, offset, seed)| Rotated {
            dtype,
            head_dim,
            heads,
            length,
            rotation,
            by,
            offset,
            seed,
        },
    )
}

fn rotated_queries(gpu: &Gpu) {
    check_cases(gpu, cases, |case| run_rotated(gpu, &case).map_err(TestCaseError::fail));
}

/// Sequence `d` has one key, which is 1 in dimension `d` and else 0. So with a scale of 1 its log-sum-exp is what its query has there.
fn run_rotated(gpu: &Gpu, case: &Rotated) -> Result<(), String> {
    let Rotated { dtype, head_dim, heads, length, offset, .. } = *case;
    let shape = [1, length, heads, head_dim];
    let bits = random_bits(dtype, case.seed, shape.iter().product(), 3.0);
    let q = Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(&bits));
    let of_all = Layout::strided([head_dim, length, heads, head_dim], {
        let [_, length, heads, dim] = q.tensor.layout.strides();
        [0, length, heads, dim]
    });
    let one = format(dtype).round(1.0);
    let unit: Vec<u32> =
        (0..head_dim * head_dim).map(|i| if i % (head_dim + 1) == 0 { one } else { 0 }).collect();
    let k = Buffer::new(gpu, dtype, Order::Bshd, [head_dim, 1, 1, head_dim], 0, Some(&unit));
    let out = Buffer::new(gpu, dtype, Order::Bshd, [head_dim, length, heads, head_dim], 0, None);
    let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [head_dim, length, heads, 1], 0, None);
    let tensors = AttentionTensors {
        q: DeviceTensor { layout: of_all, ..q.tensor },
        k: k.tensor,
        v: k.tensor,
        out: out.tensor,
        lse: Some(lse.tensor),
    };
    let numbers: Vec<i32> = (0..head_dim).map(|i| (i % 3 == 1) as i32).collect();
    // Every sequence stands elsewhere.
    let offsets: Vec<i64> = (0..head_dim).map(|i| i as i64 * 5).collect();
    let (numbers_there, offsets_there) = (gpu.upload(&numbers), gpu.upload(&offsets));
    let sets = case.rotation.sets();
    let rotary = CacheRotary {
        sets: &sets,
        pairing: case.rotation.pairing,
        choices: case.by.choices(gpu.address(&numbers_there)),
    };
    let mask = descriptor::Attention { scale: Some(1.0), query_offset: offset as i64, ..Default::default() };
    let attention = Attention {
        query_offsets: Some(gpu.address(&offsets_there)),
        query_rotary: Some(rotary),
        ..Attention::new(mask)
    };
    if runs_portable_kernels() {
        let memory = scratch(gpu, &attention, &tensors);
        let workspace = Workspace { address: gpu.address(&memory), bytes: memory.len() };
        // SAFETY: nothing is launched.
        let refused = unsafe { attention.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) };
        let message = refused.unwrap_err().to_string();
        return if message.starts_with("query_rotary: ") { Ok(()) } else { Err(message) };
    }
    // SAFETY: the buffers are as large as their layouts say, and live until the result was read.
    unsafe { oracle::launch(gpu, &attention, &tensors) };
    let lse = lse.read(gpu);
    let x = decode(dtype, &bits);
    for sequence in 0..head_dim {
        let start = offset + offsets[sequence] as usize;
        let long = case.by.is_long(&case.rotation, start + length, numbers[sequence]);
        for row in 0..length * heads {
            let x = &x[row * head_dim..(row + 1) * head_dim];
            let position = start + row / heads;
            let exact = case.rotation.rotate_one(x, sequence, position, long);
            let eps = WHILE_READ * case.rotation.gain(position, long) * case.rotation.size(x, sequence);
            let found = f64::from(f32::from_bits(lse[sequence * length * heads + row]));
            let format = format(dtype);
            let [low, high] = [exact - eps, exact + eps].map(|x| format.decode(format.round(x)));
            // What the logarithm of its exponential adds.
            let slack = 4e-6 * (1.0 + exact.abs());
            if !(low - slack..=high + slack).contains(&found) {
                return Err(format!(
                    "row {row}, dimension {sequence}, position {position}: {found} against {exact}, from {low} to {high}"
                ));
            }
        }
    }
    Ok(())
}

fn bad_choice(gpu: &Gpu) {
    if runs_portable_kernels() {
        return;
    }
    let (dtype, shape) = (Dtype::Bf16, [3, 200, 2, 128]);
    let bits = random_bits(dtype, 3, shape.iter().product(), 1.0);
    let q = Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(&bits));
    let out = Buffer::new(gpu, dtype, Order::Bshd, shape, 0, None);
    let set = longrope::scaling::FactorSet::exact(&[0.5; 64], 1.0).unwrap();
    let sets = longrope::scaling::FactorSets::new(set.clone(), set.clone(), set, 10, 0).unwrap();
    let (numbers, status) = (gpu.upload(&[1, 2, 0]), gpu.upload(&[0u32]));
    let choices = CacheChoices::ByIndex(gpu.address(&numbers));
    let rotary = CacheRotary { sets: &sets, pairing: descriptor::Pairing::HalfSplit, choices };
    let attention = Attention {
        query_rotary: Some(rotary),
        status: Some(gpu.address(&status)),
        ..Attention::new(descriptor::Attention::causal())
    };
    let tensors = AttentionTensors { q: q.tensor, k: q.tensor, v: q.tensor, out: out.tensor, lse: None };
    // SAFETY: the buffers are as large as their layouts say, and live until the result was read.
    unsafe { oracle::launch(gpu, &attention, &tensors) };
    let found = out.read(gpu);
    assert_eq!(gpu.download(&status), [BAD_CHOICE]);
    for (sequence, rows) in found.chunks(found.len() / 3).enumerate() {
        assert_eq!(rows.iter().all(|bits| *bits == 0xffff), sequence == 1, "sequence {sequence}");
    }
}

fn limited(gpu: &Gpu) {
    for head_dim in [64, 128, 256] {
        let sequence = Sequence::at_the_end(Dtype::Bf16, 1500, 1500, [12, 3], head_dim);
        let all = sequence.run(gpu);
        for most in [1, 7, 1000] {
            if runs_portable_kernels() {
                continue;
            }
            assert!(sequence.run_on(gpu, Some(most)) == all, "head dimension {head_dim}, {most}");
        }
    }
}

/// Causal, with a window, and without a mask; so that the parts are even, and hardly so.
fn few_queries(gpu: &Gpu) {
    let sampled = [(0, 0), (3, 1), (16, 0), (30, 1)];
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::Bf16, 256), (Dtype::F16, 96)] {
        for (keys, window, causal) in
            [(1024, None, true), (1500, None, false), (30_000, Some(9_999), true), (7_777, None, true)]
        {
            let mut sequence = Sequence::at_the_end(dtype, keys, 31, [2, 1], head_dim);
            sequence.attention.causal = causal;
            sequence.attention.window = window;
            let found = sequence.run(gpu);
            sequence.check_random(&found, &sampled);
            assert!(
                sequence.run(gpu) == found,
                "{dtype:?}, head dimension {head_dim}, {keys} keys: other bits"
            );
        }
    }
}

/// Two halves of the keys, the second with what the first gave.
fn carried(gpu: &Gpu) {
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 256)] {
        let sequence = Sequence::at_the_end(dtype, 12_000, 40, [4, 2], head_dim);
        let half_bytes = (sequence.k.len() / 2 * 2) as u64;
        let (q, k, v) = (gpu.upload(&sequence.q), gpu.upload(&sequence.k), gpu.upload(&sequence.v));
        let half = |memory: &_, second: bool| DeviceTensor {
            address: gpu.address(memory) + if second { half_bytes } else { 0 },
            dtype,
            layout: Layout::bshd(1, 6000, 2, head_dim),
        };
        let rows = 40 * 4;
        let out = gpu.upload(&vec![f32::NAN; rows * head_dim]);
        let lse = gpu.upload(&vec![f32::NAN; rows]);
        let result = |memory: &_, dims| DeviceTensor {
            address: gpu.address(memory),
            dtype: Dtype::F32,
            layout: Layout::bshd(1, 40, 4, dims),
        };
        for second in [false, true] {
            let tensors = AttentionTensors {
                q: DeviceTensor { address: gpu.address(&q), dtype, layout: Layout::bshd(1, 40, 4, head_dim) },
                k: half(&k, second),
                v: half(&v, second),
                out: result(&out, head_dim),
                lse: Some(result(&lse, 1)),
            };
            let mask =
                descriptor::Attention { key_offset: if second { 6000 } else { 0 }, ..sequence.attention };
            let carry = Carry { out: tensors.out, lse: result(&lse, 1) };
            let attention = Attention { carry: second.then_some(carry), ..Attention::new(mask) };
            // SAFETY: the memory is as large as the layouts say, and lives until the results were read.
            unsafe { oracle::launch(gpu, &attention, &tensors) };
        }
        let found = Found { out: gpu.download(&out), lse: gpu.download(&lse) };
        sequence.check_random(&found, &[(0, 0), (17, 1), (39, 3)]);
    }
}

/// Three sequences, of which the third may be bad, with rows before, between and behind them that belong to none.
fn packed(gpu: &Gpu) {
    let (dtype, [heads, key_heads], dim) = (Dtype::F16, [2, 1], 64);
    let (query_starts, key_starts) = ([3i64, 23, 33, 63], [5i64, 3005, 4999, 7005]);
    // Beyond the tensor.
    let bad_key_starts = [5i64, 3005, 4999, 7011];
    for (key_starts, bad) in [(key_starts, false), (bad_key_starts, true)] {
        let (queries, keys) = (70, 7010);
        let bits = [(queries, heads, 3.0), (keys, key_heads, 1.0), (keys, key_heads, 1.0)].map(
            |(length, heads, largest)| random_bits(dtype, 40 + heads as u64, length * heads * dim, largest),
        );
        let new = |i: usize, shape| Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(&bits[i]));
        let q = new(0, [1, queries, heads, dim]);
        let (k, v) = (new(1, [1, keys, key_heads, dim]), new(2, [1, keys, key_heads, dim]));
        let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, queries, heads, dim], 0, None);
        let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [1, queries, heads, 1], 0, None);
        let (there, keys_there, status) =
            (gpu.upload(&query_starts), gpu.upload(&key_starts), gpu.upload(&[0u32]));
        let attention = Attention {
            sequences: Sequences::Packed(Packed {
                count: 3,
                query_starts: gpu.address(&there),
                key_starts: gpu.address(&keys_there),
                starts: Starts::I64,
                max_query_length: 30,
            }),
            status: Some(gpu.address(&status)),
            ..Attention::new(descriptor::Attention::default())
        };
        let tensors = AttentionTensors {
            q: q.tensor,
            k: k.tensor,
            v: v.tensor,
            out: out.tensor,
            lse: Some(lse.tensor),
        };
        // SAFETY: the buffers are as large as their layouts say, and live until the results were read.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        let (out, lse) = (out.read(gpu), lse.read(gpu));
        assert_eq!(gpu.download(&status), [if bad { BAD_SEQUENCE } else { 0 }]);
        let mut written = vec![false; queries];
        for i in 0..if bad { 2 } else { 3 } {
            let [rows, of_keys] =
                [&query_starts, &key_starts].map(|starts| starts[i] as usize..starts[i + 1] as usize);
            rows.clone().for_each(|row| written[row] = true);
            let part = |i: usize, rows: &std::ops::Range<usize>, heads| {
                decode(dtype, &bits[i][rows.start * heads * dim..rows.end * heads * dim])
            };
            let problem = reference_problem(
                &attention.attention,
                [heads, key_heads],
                [rows.len(), of_keys.len()],
                dim,
                0,
            );
            let [q, k, v] =
                [part(0, &rows, heads), part(1, &of_keys, key_heads), part(2, &of_keys, key_heads)];
            let exact = exact(&problem, &q, &k, &v);
            let found = &out[rows.start * heads * dim..rows.end * heads * dim];
            let lse = &lse[rows.start * heads..rows.end * heads];
            // Sums of more keys than the bound is for, by so many parts.
            oracle::check(&exact, dtype, 8.0 * ONE_CALL, (Dtype::F32, found), Some(lse)).unwrap();
        }
        for (row, written) in written.into_iter().enumerate() {
            let of_row = &out[row * heads * dim..(row + 1) * heads * dim];
            assert_eq!(of_row.iter().all(|bits| *bits == u32::MAX), !written, "row {row}");
        }
    }
}
