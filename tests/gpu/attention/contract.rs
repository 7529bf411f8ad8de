//! The contract of a launch: streams, graphs, threads, equal bits, nothing to do, what is refused.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUdevice_attribute_enum, CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype, Stream};
use longrope::ops::{Attention, AttentionTensors, Packed, Sequences, Starts, Workspace};

use crate::attention::forward::reference_problem;
use crate::attention::oracle::{self, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu, raw, runs_portable_kernels};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("the_same_inputs_give_the_same_bits", same_bits),
    ("a_replayed_graph_follows_queries_starts_and_offsets_on_the_device", graph),
    ("a_launch_stays_on_its_own_stream", own_stream),
    ("two_threads_share_a_context", two_threads),
    ("a_hopper_gpu_runs_its_own_kernel_where_vectors_fit", own_kernel),
    ("tensors_without_elements_are_nothing_to_do", empty),
    ("what_is_not_supported_is_named", refused),
];

const QUERIES: [usize; 4] = [2, 150, 4, 128];
pub const KEYS: [usize; 4] = [2, 200, 2, 128];

pub fn count(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

/// A problem of a size in memory: q, k, v.
pub struct Inputs {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    scratch: Scratch,
}

/// Enough for all launches here, with poison in it. Its address is found before a capture, which must not wait for the upload.
struct Scratch {
    _memory: CudaSlice<u8>,
    workspace: Workspace,
}

fn scratch(gpu: &Gpu) -> Scratch {
    let memory = gpu.upload(&[0xffu8; 1024]);
    Scratch { workspace: Workspace { address: gpu.address(&memory), bytes: memory.len() }, _memory: memory }
}

fn input(gpu: &Gpu, seed: u64, shape: [usize; 4]) -> Buffer {
    let bits = random_bits(Dtype::Bf16, seed, count(shape), 2.0);
    Buffer::new(gpu, Dtype::Bf16, Order::Bshd, shape, 0, Some(&bits))
}

pub fn inputs(gpu: &Gpu, seed: u64) -> Inputs {
    let new = |i: u64, shape| input(gpu, 16 * seed + 2 * i, shape);
    Inputs { q: new(0, QUERIES), k: new(1, KEYS), v: new(2, KEYS), scratch: scratch(gpu) }
}

pub fn output(gpu: &Gpu) -> Buffer {
    Buffer::new(gpu, Dtype::Bf16, Order::Bshd, QUERIES, 0, None)
}

pub fn tensors(inputs: &Inputs, out: &Buffer) -> AttentionTensors {
    let Inputs { q, k, v, .. } = inputs;
    AttentionTensors { q: q.tensor, k: k.tensor, v: v.tensor, out: out.tensor, lse: None }
}

fn run_on(gpu: &Gpu, attention: &Attention, inputs: &Inputs, out: &Buffer, stream: Stream) {
    let tensors = tensors(inputs, out);
    // SAFETY: the buffers are as large as their layouts say, and every test reads the output before it drops them.
    unsafe { attention.run(&gpu.kernels, &tensors, inputs.scratch.workspace, stream) }.unwrap();
}

fn run(gpu: &Gpu, attention: &Attention, inputs: &Inputs, out: &Buffer) {
    run_on(gpu, attention, inputs, out, gpu.raw_stream());
}

fn causal() -> Attention<'static> {
    Attention::new(descriptor::Attention { query_offset: 50, ..descriptor::Attention::causal() })
}

fn same_bits(gpu: &Gpu) {
    let inputs = inputs(gpu, 1);
    let (first, attention) = (output(gpu), causal());
    run(gpu, &attention, &inputs, &first);
    let first = first.read(gpu);
    for _ in 0..10 {
        let again = output(gpu);
        run(gpu, &attention, &inputs, &again);
        assert_eq!(again.read(gpu), first);
    }
}

/// Both sequences packed into tensors with a batch of 1, with all that lies on the device changed between replays.
fn graph(gpu: &Gpu) {
    let (query_shape, key_shape) = ([1, 150, 4, 128], [1, 200, 2, 128]);
    let queries = [input(gpu, 20, query_shape), input(gpu, 22, query_shape)];
    let inputs = Inputs {
        q: Buffer::new(gpu, Dtype::Bf16, Order::Bshd, query_shape, 0, None),
        k: input(gpu, 24, key_shape),
        v: input(gpu, 26, key_shape),
        scratch: scratch(gpu),
    };
    let out = || Buffer::new(gpu, Dtype::Bf16, Order::Bshd, query_shape, 0, None);
    let mut query_starts = gpu.upload(&[0i64; 3]);
    let mut key_starts = gpu.upload(&[0i64; 3]);
    let mut offsets = gpu.upload(&[0i64; 2]);
    let attention = Attention {
        sequences: Sequences::Packed(Packed {
            count: 2,
            query_starts: gpu.address(&query_starts),
            key_starts: gpu.address(&key_starts),
            starts: Starts::I64,
            max_query_length: 150,
        }),
        query_offsets: Some(gpu.address(&offsets)),
        status: None,
        ..Attention::new(descriptor::Attention::causal())
    };
    let replayed = out();
    gpu.stream.synchronize().unwrap();
    gpu.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run(gpu, &attention, &inputs, &replayed);
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).unwrap().expect("a graph with one node");
    assert!(replayed.is_untouched(gpu), "capturing runs nothing");
    let mut seen = Vec::new();
    // The queries, their starts, those of the keys, and the offsets: one changes at a time.
    for (q, new_query_starts, new_key_starts, new_offsets) in [
        (0, [0i64, 70, 150], [0i64, 90, 200], [20i64, 30]),
        (1, [0, 70, 150], [0, 90, 200], [20, 30]),
        (1, [0, 149, 150], [0, 90, 200], [20, 30]),
        (1, [0, 149, 150], [0, 150, 200], [20, 30]),
        (1, [0, 149, 150], [0, 150, 200], [1, 49]),
    ] {
        copy(gpu, &queries[q], &inputs.q);
        gpu.stream.memcpy_htod(&new_query_starts, &mut query_starts).unwrap();
        gpu.stream.memcpy_htod(&new_key_starts, &mut key_starts).unwrap();
        gpu.stream.memcpy_htod(&new_offsets, &mut offsets).unwrap();
        graph.launch().unwrap();
        let direct = out();
        run(gpu, &attention, &inputs, &direct);
        let result = replayed.read(gpu);
        assert_eq!(result, direct.read(gpu));
        assert!(!seen.contains(&result), "each replay follows what is on the device");
        seen.push(result);
    }
}

/// Copies a contiguous tensor on the test's stream, by an attention of which each query sees one key: the value of that key.
fn copy(gpu: &Gpu, from: &Buffer, to: &Buffer) {
    let one = Attention::new(descriptor::Attention { window: Some(1), ..descriptor::Attention::causal() });
    let from = from.tensor;
    let tensors = AttentionTensors { q: from, k: from, v: from, out: to.tensor, lse: None };
    // SAFETY: the buffers are as large as their layouts say, and live until what is launched next was read.
    unsafe { oracle::launch(gpu, &one, &tensors) };
}

/// The queries arrive late on a stream of its own: a kernel on any other stream would read poison.
fn own_stream(gpu: &Gpu) {
    let (attention, complete) = (causal(), inputs(gpu, 4));
    let (expected, out) = (output(gpu), output(gpu));
    run(gpu, &attention, &complete, &expected);
    let expected = expected.read(gpu);
    // Half a gigabyte of copies takes longer than a launch.
    let source = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    let mut target = gpu.stream.alloc_zeros::<u8>(1 << 29).unwrap();
    let late = Inputs { q: output(gpu), ..inputs(gpu, 4) };
    gpu.stream.synchronize().unwrap();
    for _ in 0..4 {
        gpu.stream.memcpy_dtod(&source, &mut target).unwrap();
    }
    copy(gpu, &complete.q, &late.q);
    run(gpu, &attention, &late, &out);
    assert_eq!(out.read(gpu), expected);
}

fn two_threads(gpu: &Gpu) {
    let inputs = [inputs(gpu, 5), inputs(gpu, 6)];
    let attention = causal();
    let expected = [0, 1].map(|i| {
        let out = output(gpu);
        run(gpu, &attention, &inputs[i], &out);
        out.read(gpu)
    });
    assert_ne!(expected[0], expected[1]);
    std::thread::scope(|scope| {
        for i in 0..2 {
            let (inputs, expected, attention) = (&inputs[i], &expected[i], &attention);
            scope.spawn(move || {
                gpu.cuda.bind_to_thread().unwrap();
                let stream = gpu.cuda.new_stream().unwrap();
                for _ in 0..50 {
                    let out = output(gpu);
                    gpu.stream.synchronize().unwrap();
                    run_on(gpu, attention, inputs, &out, raw(&stream));
                    stream.synchronize().unwrap();
                    assert_eq!(&out.read(gpu), expected);
                }
            });
        }
    });
}

/// Queries with room between their elements are for the portable kernel, and its sums are the same however it loads them.
/// So other bits for dense ones are of another kernel. Both are within the bound.
fn own_kernel(gpu: &Gpu) {
    let attribute = |which| gpu.cuda.attribute(which).unwrap();
    let capability = (
        attribute(CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        attribute(CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    );
    let portable = runs_portable_kernels();
    let (lengths, heads) = ([300, 500], [4, 2]);
    for (dtype, head_dim) in [(Dtype::Bf16, 64), (Dtype::F16, 64), (Dtype::Bf16, 128), (Dtype::Bf16, 256)] {
        let shape = |i: usize| [1, lengths[i], heads[i], head_dim];
        let bits =
            [0, 1, 1].map(|i| random_bits(dtype, (90 + head_dim + i) as u64, count(shape(i)), [3.0, 1.0][i]));
        let attention = Attention::new(descriptor::Attention::default());
        let exact = exact(
            &reference_problem(&attention.attention, heads, lengths, head_dim, 0),
            &decode(dtype, &bits[0]),
            &decode(dtype, &bits[1]),
            &decode(dtype, &bits[2]),
        );
        let run = |order| {
            let new = |order, i: usize, bits: &[u32]| Buffer::new(gpu, dtype, order, shape(i), 0, Some(bits));
            let q = new(order, 0, &bits[0]);
            let (k, v) = (new(Order::Bshd, 1, &bits[1]), new(Order::Bshd, 1, &bits[2]));
            let out = Buffer::new(gpu, Dtype::F32, Order::Bshd, shape(0), 0, None);
            let tensors =
                AttentionTensors { q: q.tensor, k: k.tensor, v: v.tensor, out: out.tensor, lse: None };
            // SAFETY: the buffers are as large as their layouts say, and live until the output was read.
            unsafe { oracle::launch(gpu, &attention, &tensors) };
            let out = out.read(gpu);
            oracle::check(&exact, dtype, ONE_CALL, (Dtype::F32, &out), None).unwrap();
            out
        };
        let differ = run(Order::Bshd) != run(Order::Padded);
        let expected = capability == (9, 0) && !portable;
        assert_eq!(differ, expected, "{dtype:?}, head dimension {head_dim}, capability {capability:?}");
    }
}

fn empty(gpu: &Gpu) {
    let nowhere = |dtype, [b, s, h, d]: [usize; 4]| DeviceTensor {
        address: 0,
        dtype,
        layout: Layout::bshd(b, s, h, d),
    };
    for [batch, length, heads] in [[0, 4, 2], [1, 0, 2], [0, 0, 2]] {
        let q = nowhere(Dtype::F16, [batch, length, heads, 64]);
        let k = nowhere(Dtype::F16, [batch, 5, heads, 64]);
        let lse = Some(nowhere(Dtype::F32, [batch, length, heads, 1]));
        // SAFETY: there is no element to read or write.
        unsafe { oracle::launch(gpu, &causal(), &AttentionTensors { q, k, v: k, out: q, lse }) };
    }
    // Queries without a key get zeros and minus infinity, and null keys are not looked at.
    let q = input(gpu, 7, QUERIES);
    let k = nowhere(Dtype::Bf16, [2, 0, 2, 128]);
    let out = output(gpu);
    let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [2, 150, 4, 1], 0, None);
    let tensors = AttentionTensors { q: q.tensor, k, v: k, out: out.tensor, lse: Some(lse.tensor) };
    // SAFETY: there is no key to read; the rest is as large as its layout says, and lives until it was read.
    unsafe { oracle::launch(gpu, &causal(), &tensors) };
    assert!(out.read(gpu).iter().all(|bits| bits & 0x7fff == 0));
    assert!(lse.read(gpu).iter().all(|&bits| f32::from_bits(bits) == f32::NEG_INFINITY));
}

fn refused(gpu: &Gpu) {
    let inputs = inputs(gpu, 10);
    let out = output(gpu);
    let good = tensors(&inputs, &out);
    let message = |attention: &Attention, tensors: &AttentionTensors| {
        assert!(attention.supported(tensors).is_err());
        // SAFETY: nothing is launched.
        let result = unsafe { attention.run(&gpu.kernels, tensors, Workspace::NONE, gpu.raw_stream()) };
        result.unwrap_err().to_string()
    };
    let with = |change: &dyn Fn(&mut AttentionTensors)| {
        let mut tensors = good;
        change(&mut tensors);
        message(&causal(), &tensors)
    };
    let layout = |shape: [usize; 4]| Layout::bshd(shape[0], shape[1], shape[2], shape[3]);
    for (found, argument) in [
        (with(&|t| t.q.dtype = Dtype::F32), "k.dtype: "),
        (with(&|t| t.k.dtype = Dtype::F16), "k.dtype: "),
        (with(&|t| t.out.dtype = Dtype::F16), "out.dtype: "),
        (with(&|t| t.k.layout = layout([2, 200, 3, 128])), "v.heads: "),
        (with(&|t| t.v.layout = layout([2, 199, 2, 128])), "v.length: "),
        (with(&|t| t.q.address = 0), "q: "),
        (with(&|t| t.v.address += 1), "v: "),
        (with(&|t| t.out.layout = Layout::strided(QUERIES, [0, 512, 128, 1])), "out: "),
        (with(&|t| t.lse = Some(t.out)), "lse.dtype: "),
        (with(&|t| t.lse = Some(DeviceTensor { dtype: Dtype::F32, ..t.out })), "lse: "),
    ] {
        assert!(found.starts_with(argument), "{found}");
    }
    let all_f32 = with(&|t| {
        for tensor in [&mut t.q, &mut t.k, &mut t.v, &mut t.out] {
            tensor.dtype = Dtype::F32;
        }
    });
    assert!(all_f32.starts_with("q.dtype: "), "{all_f32}");
    for head_dim in [4, 12, 264] {
        let shape = [2, 150, 4, head_dim];
        let found = with(&|t| {
            for tensor in [&mut t.q, &mut t.k, &mut t.v, &mut t.out] {
                tensor.layout = layout(shape);
            }
        });
        assert!(found.starts_with("q.head_dim: "), "{found}");
    }
    let mut far = causal();
    far.query_offsets = Some(12);
    assert!(message(&far, &good).starts_with("query_offsets: "));
    far = causal();
    far.attention.query_offset = i64::MAX;
    assert!(message(&far, &good).starts_with("query_offset: "));
    let packed =
        Packed { count: 1, query_starts: 0, key_starts: 8, starts: Starts::I32, max_query_length: 150 };
    far = causal();
    far.sequences = Sequences::Packed(packed);
    assert!(message(&far, &good).starts_with("q.batch: "));
    assert!(out.is_untouched(gpu));
}
