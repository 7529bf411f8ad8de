//! The contract of decoding: bad entries on the device, equal bits, graphs, a million keys.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    BAD_LENGTH, BAD_PAGE, BAD_SEQUENCE, Cache, Decode, DecodeTensors, DeviceLengths, Split, Starts, Workspace,
};
use longrope::reference;

use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu};
use crate::decode::model::{Form, Found, Problem, Sequence, bytes, launch, scratch, tensors};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("a_bad_length_is_reported_and_its_rows_left_alone", bad_lengths),
    ("a_bad_page_is_reported_and_its_rows_left_alone", bad_pages),
    ("a_bad_start_is_reported_and_its_rows_left_alone", bad_starts),
    ("the_same_inputs_give_the_same_bits", same_bits),
    ("a_captured_graph_serves_growing_sequences", graph),
    ("one_long_sequence_of_a_million_keys_among_short_ones", million),
];

/// Sequences of these lengths with `fresh` new tokens each, in pages of 16.
fn problem(lengths: &[usize], fresh: usize, split: Split) -> Problem {
    let one = |(i, &length): (usize, &usize)| Sequence { length, fresh, seed: 100 + 2 * i as u64 };
    Problem {
        dtype: Dtype::Bf16,
        out_dtype: Dtype::Bf16,
        heads: [8, 2],
        head_dim: 128,
        sequences: lengths.iter().enumerate().map(one).collect(),
        form: Form::Dense,
        page_size: Some(16),
        room: 1,
        orders: [Order::Bshd; 4],
        wide_lengths: false,
        scale: None,
        window: None,
        split,
        place: 7,
        settled: false,
    }
}

const SPLITS: [Split; 2] = [Split::Balanced, Split::Fixed(5)];

fn bad_lengths(gpu: &Gpu) {
    for (page_size, wide_lengths, split) in [
        (Some(16), false, Split::Balanced),
        (Some(16), true, Split::Fixed(5)),
        (None, false, Split::Fixed(5)),
        (None, true, Split::Balanced),
    ] {
        let problem = Problem { page_size, wide_lengths, ..problem(&[40, 900, 17, 300], 3, split) };
        let (mut memory, exact) = (problem.memory(gpu), problem.exact());
        let capacity = (memory.width * memory.k.tensor.layout.length()) as i64;
        let far: &[i64] = if wide_lengths { &[1 << 32, i64::MAX, i64::MIN] } else { &[] };
        let near = [1, 2, -1, capacity + 1, i64::from(i32::MAX), i64::from(i32::MIN)];
        for &length in near.iter().chain(far) {
            for bad in 0..problem.sequences.len() {
                let good = std::mem::replace(&mut memory.lengths[bad], length);
                let found = problem.run(gpu, &memory);
                memory.lengths[bad] = good;
                assert_eq!(found.status, BAD_LENGTH, "length {length} of sequence {bad}");
                problem.check(&exact, &found, &[bad]).unwrap();
            }
        }
    }
}

fn bad_pages(gpu: &Gpu) {
    for split in SPLITS {
        // Every query sees a key of every page.
        let problem = problem(&[40, 900, 17, 300], 2, split);
        let (mut memory, exact) = (problem.memory(gpu), problem.exact());
        let pages = memory.k.tensor.layout.batch() as i32;
        for (bad, page) in [(0, 0), (1, 0), (1, 28), (1, 56), (2, 1), (3, 9)] {
            for id in [pages, -1, i32::MAX, i32::MIN] {
                let at = bad * memory.stride + page;
                let good = std::mem::replace(&mut memory.table[at], id);
                let found = problem.run(gpu, &memory);
                memory.table[at] = good;
                assert_eq!(found.status, BAD_PAGE, "id {id} of page {page} of sequence {bad}");
                problem.check(&exact, &found, &[bad]).unwrap();
            }
        }
        let found = problem.run(gpu, &memory);
        assert_eq!(found.status, 0);
        problem.check(&exact, &found, &[]).unwrap();
    }
}

/// Starts that make one sequence bad: the first by where it begins, the last by where it ends.
fn bad_starts(gpu: &Gpu) {
    for (starts, split) in [(Starts::I32, Split::Balanced), (Starts::I64, Split::Fixed(5))] {
        let form = Form::Packed { starts, around: [4, 3], most: 3 };
        let problem = Problem { form, ..problem(&[40, 900, 17, 300], 3, split) };
        let (mut memory, exact) = (problem.memory(gpu), problem.exact());
        let (last, total) = (problem.sequences.len(), memory.q.tensor.layout.length() as i64);
        let before_last = memory.starts[last - 1];
        for (which, start, bad) in [
            (0, -1, 0),
            (0, i64::from(i32::MIN), 0),
            // One token more than a sequence may have.
            (0, memory.starts[1] - 4, 0),
            (last, before_last + 4, last - 1),
            (last, before_last - 1, last - 1),
            (last, total + 1, last - 1),
            (last, i64::from(i32::MAX), last - 1),
        ] {
            let good = std::mem::replace(&mut memory.starts[which], start);
            let found = problem.run(gpu, &memory);
            memory.starts[which] = good;
            // So many new tokens may be more than the sequence has.
            assert_eq!(found.status & !BAD_LENGTH, BAD_SEQUENCE, "start {which} is {start}");
            problem.check(&exact, &found, &[bad]).unwrap();
        }
    }
}

fn same_bits(gpu: &Gpu) {
    for split in SPLITS {
        let problem = problem(&[40, 900, 0, 17, 300], 2, split);
        let memory = problem.memory(gpu);
        let first = problem.run(gpu, &memory);
        assert_eq!(first.status, 0);
        problem.check(&problem.exact(), &first, &[]).unwrap();
        for _ in 0..10 {
            assert!(problem.run(gpu, &memory) == first, "{split:?}");
        }
    }
}

/// One new token each: the sequences grow by one between replays, the first from nothing, and their keys are there already.
fn graph(gpu: &Gpu) {
    const STEPS: usize = 100;
    for (page_size, split) in
        [(Some(16), Split::Balanced), (Some(32), Split::Fixed(5)), (None, Split::Balanced)]
    {
        let problem = Problem { page_size, ..problem(&[100, 117, 350, 900], 1, split) };
        let mut memory = problem.memory(gpu);
        for length in &mut memory.lengths {
            *length -= STEPS as i64;
        }
        let mut numbers = problem.numbers(gpu, &memory);
        let decode = problem.decode(gpu, &memory, &numbers);
        let [out, lse] = problem.outputs(gpu);
        let tensors = tensors(memory.q.tensor, &out, &lse);
        let scratch = scratch(gpu, &decode, &tensors);
        let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
        gpu.stream.synchronize().unwrap();
        gpu.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        // SAFETY: the buffers are as large as their layouts say, and live until the last replay was read.
        unsafe { decode.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.unwrap();
        let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = gpu.stream.end_capture(flags).unwrap().expect("a graph with a kernel");
        assert!(out.is_untouched(gpu) && lse.is_untouched(gpu), "capturing runs nothing");
        let mut before = None;
        for step in 0..=STEPS {
            let lengths = bytes(problem.wide_lengths, &memory.lengths);
            gpu.stream.memcpy_htod(&lengths, &mut numbers.lengths).unwrap();
            graph.launch().unwrap();
            let (out, lse) = (out.read(gpu), lse.read(gpu));
            let replayed = Found { out, lse, status: gpu.download(&numbers.status)[0] };
            assert_eq!(replayed.status, 0);
            assert!(replayed == problem.run(gpu, &memory), "{split:?}, step {step}");
            assert!(before.as_ref() != Some(&replayed), "each replay follows the lengths on the device");
            before = Some(replayed);
            if step < STEPS {
                memory.lengths.iter_mut().for_each(|length| *length += 1);
            }
        }
        problem.check(&problem.exact(), &before.expect("the last replay"), &[]).unwrap();
    }
}

/// Keys repeat after so many, so that the log-sum-exp of very many is known.
const PERIOD: usize = 4096;

/// Each value is the same for all keys of a sequence: their mean is the value, and the log-sum-exp tells that no key was left
/// out. In f16, whose roundings of the weights leave the mean well within 1e-4.
fn million(gpu: &Gpu) {
    const HEADS: usize = 8;
    const HEAD_DIM: usize = 64;
    const CAPACITY: usize = 1 << 20;
    let lengths = [5usize, CAPACITY, 700];
    let dtype = Dtype::F16;
    let q = random_bits(dtype, 200, lengths.len() * HEADS * HEAD_DIM, 2.0);
    let k = random_bits(dtype, 202, PERIOD * HEAD_DIM, 1.0);
    // Away from zero, since the bound is relative.
    let v: Vec<u32> =
        (0..lengths.len() * HEAD_DIM).map(|i| (0x3800 + 16 * i as u32) | (i as u32 & 1) << 15).collect();
    let half = |bits: &[u32]| bits.iter().flat_map(|bits| (*bits as u16).to_le_bytes()).collect::<Vec<u8>>();
    let row = 2 * HEAD_DIM;
    let [mut keys, mut values] = [(); 2].map(|()| vec![0xffu8; lengths.len() * CAPACITY * row]);
    let (key_rows, value_rows) = (half(&k), half(&v));
    for (i, &length) in lengths.iter().enumerate() {
        for token in 0..length {
            let (to, from) = ((i * CAPACITY + token) * row, token % PERIOD * row);
            keys[to..to + row].copy_from_slice(&key_rows[from..from + row]);
            values[to..to + row].copy_from_slice(&value_rows[i * row..(i + 1) * row]);
        }
    }
    let (keys, values) = (gpu.upload(&keys), gpu.upload(&values));
    let layout = Layout::bshd(lengths.len(), CAPACITY, 1, HEAD_DIM);
    let device_lengths = gpu.upload(&lengths.map(|length| length as i64));
    let cache = Cache {
        k: DeviceTensor { address: gpu.address(&keys), dtype, layout },
        v: DeviceTensor { address: gpu.address(&values), dtype, layout },
        pages: None,
        lengths: DeviceLengths::I64(gpu.address(&device_lengths)),
    };
    let shape = [lengths.len(), 1, HEADS, HEAD_DIM];
    let queries = Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(&q));
    let exact_of = |i: usize, length: usize| {
        let problem = reference::Problem {
            query_heads: HEADS,
            key_heads: 1,
            query_length: 1,
            key_length: length,
            head_dim: HEAD_DIM,
            scale: 1.0 / 8.0,
            causal: true,
            window: None,
            query_offset: length as i64 - 1,
            key_offset: 0,
        };
        let q = decode(dtype, &q[i * HEADS * HEAD_DIM..(i + 1) * HEADS * HEAD_DIM]);
        let v = decode(dtype, &v[i * HEAD_DIM..(i + 1) * HEAD_DIM]).repeat(length);
        exact(&problem, &q, &decode(dtype, &k[..length * HEAD_DIM]), &v)
    };
    for split in [Split::Balanced, Split::Fixed(256)] {
        let decode_all = Decode { split, ..Decode::new(cache) };
        let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, shape, 0, None);
        let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [lengths.len(), 1, HEADS, 1], 0, None);
        let tensors: DecodeTensors = tensors(queries.tensor, &out, &lse);
        let scratch = scratch(gpu, &decode_all, &tensors);
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { launch(gpu, &decode_all, &tensors, &scratch) };
        let (out, lse) = (out.read(gpu), lse.read(gpu));
        for (i, &length) in lengths.iter().enumerate() {
            let out = &out[i * HEADS * HEAD_DIM..(i + 1) * HEADS * HEAD_DIM];
            let lse = &lse[i * HEADS..(i + 1) * HEADS];
            let exact = exact_of(i, length.min(PERIOD));
            if length <= PERIOD {
                oracle::check(&exact, dtype, ONE_CALL, (Dtype::F32, out), Some(lse)).unwrap();
                continue;
            }
            for (at, (&bits, &value)) in out.iter().zip(&exact.out).enumerate() {
                let found = f64::from(f32::from_bits(bits));
                assert!(
                    (found - value).abs() <= 1e-4 * value.abs(),
                    "{split:?}, element {at}: {found} {value}"
                );
            }
            for (head, (&bits, &one)) in lse.iter().zip(&exact.lse).enumerate() {
                let (found, all) = (f64::from(f32::from_bits(bits)), one + ((length / PERIOD) as f64).ln());
                assert!((found - all).abs() <= 1e-4, "{split:?}, head {head}: lse {found} against {all}");
            }
        }
    }
}
