//! More blocks of queries than multiprocessors, and sums that are put aside and taken up again: what a kernel does whose blocks stay
//! for many of them.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use longrope::descriptor;
use longrope::device::Dtype;
use longrope::ops::{Attention, AttentionTensors, Workspace};

use crate::attention::long::Sequence;
use crate::attention::oracle::{random_bits, scratch};
use crate::buffer::{Buffer, Gpu, format};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("rows_of_many_blocks_of_queries_are_exact_and_the_same_every_time", many_blocks),
    ("a_graph_of_many_blocks_of_queries_may_be_replayed", replayed),
    ("logits_may_grow_by_hundreds_from_some_keys_to_others", growth),
];

/// 6,000 is no multiple of any tile. From each end of a sequence, of tiles, and of heads.
fn many_blocks(gpu: &Gpu) {
    let rows = [
        (0, 0),
        (63, 11),
        (128, 5),
        (191, 7),
        (192, 0),
        (2999, 3),
        (5887, 8),
        (5888, 1),
        (5999, 11),
        (5999, 0),
    ];
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::Bf16, 256), (Dtype::F16, 80)] {
        for causal in [true, false] {
            let mut sequence = Sequence::at_the_end(dtype, 6000, 6000, [12, 3], head_dim);
            sequence.attention.causal = causal;
            let found = sequence.run(gpu);
            sequence.check_random(&found, &rows);
            assert!(sequence.run(gpu) == found, "{dtype:?}, head dimension {head_dim}: other bits");
        }
    }
}

/// Logits that grow towards the first keys: by 130 to base 2 every 4,096 keys, from zero up and from far below zero; and by 12.
fn growth(gpu: &Gpu) {
    let keys = 20_000;
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 256)] {
        for (lowest, rise) in [(0.0, 440.0), (-880.0, 440.0), (-20.0, 40.0)] {
            let mut sequence = Sequence::at_the_end(dtype, keys, 130, [1, 1], head_dim);
            sequence.attention = descriptor::Attention::default();
            sequence.q.fill(format(dtype).round(1.0) as u16);
            // A logit is the key's number times the head dimension's root.
            let root = (head_dim as f64).sqrt();
            for (key, row) in sequence.k.chunks_mut(head_dim).enumerate() {
                let logit = lowest + rise * (1.0 - key as f64 / keys as f64);
                row.fill(format(dtype).round(logit / root) as u16);
            }
            sequence.check_random(&sequence.run(gpu), &[(0, 0), (64, 0), (129, 0)]);
        }
    }
}

/// What is counted in the workspace is counted anew in each replay, whatever lies there.
fn replayed(gpu: &Gpu) {
    let (shape, key_shape) = ([1, 3000, 12, 128], [1, 3000, 4, 128]);
    let new = |seed, shape: [usize; 4]| {
        let bits = random_bits(Dtype::Bf16, seed, shape.iter().product(), 2.0);
        Buffer::new(gpu, Dtype::Bf16, Order::Bshd, shape, 0, Some(&bits))
    };
    let (q, k, v) = (new(70, shape), new(71, key_shape), new(72, key_shape));
    let out = || Buffer::new(gpu, Dtype::Bf16, Order::Bshd, shape, 0, None);
    let tensors =
        |out: &Buffer| AttentionTensors { q: q.tensor, k: k.tensor, v: v.tensor, out: out.tensor, lse: None };
    let attention = Attention::new(descriptor::Attention::causal());
    let (direct, replayed) = (out(), out());
    let mut memory = scratch(gpu, &attention, &tensors(&direct));
    let workspace = Workspace { address: gpu.address(&memory), bytes: memory.len() };
    let run = |out: &Buffer| {
        // SAFETY: the buffers are as large as their layouts say, and live until the last replay was read.
        unsafe { attention.run(&gpu.kernels, &tensors(out), workspace, gpu.raw_stream()) }.unwrap();
    };
    run(&direct);
    let expected = direct.read(gpu);
    gpu.stream.synchronize().unwrap();
    gpu.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run(&replayed);
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).unwrap().expect("a graph with a node");
    for fill in [0xff, 0, 7] {
        gpu.stream.memcpy_htod(&vec![fill; memory.len()], &mut memory).unwrap();
        graph.launch().unwrap();
        assert!(replayed.read(gpu) == expected, "a workspace full of {fill}: other bits");
    }
}
