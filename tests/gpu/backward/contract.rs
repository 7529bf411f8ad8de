//! The contract of a launch: equal bits, graphs, streams, nothing to do, rows that see nothing, what is refused.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use longrope::descriptor::{self, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype, Stream};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, CacheChoices, CacheRotary, Workspace};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

use crate::attention::oracle::random_bits;
use crate::backward::problem;
use crate::buffer::{Gpu, raw};

pub const TESTS: &[crate::Test] = &[
    ("the_same_inputs_give_the_same_bits", same_bits),
    ("many_blocks_that_add_to_the_same_gradients_give_the_same_bits", same_bits_of_many),
    ("a_replayed_graph_follows_what_lies_on_the_device", graph),
    ("two_streams_do_not_meet", two_streams),
    ("tensors_without_elements_are_nothing_to_do", empty),
    ("rows_that_see_nothing_add_nothing", blind),
    ("what_is_not_supported_is_named_and_writes_nothing", refused),
];

const QUERIES: [usize; 4] = [2, 150, 4, 128];
const KEYS: [usize; 4] = [2, 200, 2, 128];
const ROWS: [usize; 4] = [2, 150, 4, 1];
/// More than is needed: delta, counters and slabs.
const WORKSPACE: usize = 2 << 20;

fn count(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

fn bits(seed: u64, shape: [usize; 4]) -> Vec<u16> {
    random_bits(Dtype::Bf16, seed, count(shape), 1.0).into_iter().map(|bits| bits as u16).collect()
}

/// What is read, and memory for delta. Output and log-sum-exp are of no forward pass: that is not needed to tell bits apart.
struct Inputs {
    q: CudaSlice<u16>,
    k: CudaSlice<u16>,
    v: CudaSlice<u16>,
    out: CudaSlice<u16>,
    d_out: CudaSlice<u16>,
    lse: CudaSlice<f32>,
    workspace: CudaSlice<u8>,
}

type Outputs = [CudaSlice<u16>; 3];

fn inputs(gpu: &Gpu, seed: u64) -> Inputs {
    let new = |i: u64, shape| gpu.upload(&bits(16 * seed + 2 * i, shape));
    let lse: Vec<f32> = (0..count(ROWS)).map(|row| 5.0 + (row % 7) as f32 * 0.1).collect();
    Inputs {
        q: new(0, QUERIES),
        k: new(1, KEYS),
        v: new(2, KEYS),
        out: new(3, QUERIES),
        d_out: new(4, QUERIES),
        lse: gpu.upload(&lse),
        workspace: gpu.upload(&vec![0xffu8; WORKSPACE]),
    }
}

fn outputs(gpu: &Gpu) -> Outputs {
    [QUERIES, KEYS, KEYS].map(|shape| gpu.upload(&vec![u16::MAX; count(shape)]))
}

fn tensor<T>(gpu: &Gpu, memory: &CudaSlice<T>, dtype: Dtype, [b, s, h, d]: [usize; 4]) -> DeviceTensor {
    DeviceTensor { address: gpu.address(memory), dtype, layout: Layout::bshd(b, s, h, d) }
}

fn tensors(gpu: &Gpu, inputs: &Inputs, [dq, dk, dv]: &Outputs) -> AttentionBackwardTensors {
    let new = |memory: &CudaSlice<u16>, shape| tensor(gpu, memory, Dtype::Bf16, shape);
    AttentionBackwardTensors {
        q: new(&inputs.q, QUERIES),
        k: new(&inputs.k, KEYS),
        v: new(&inputs.v, KEYS),
        out: Some(new(&inputs.out, QUERIES)),
        lse: tensor(gpu, &inputs.lse, Dtype::F32, ROWS),
        delta: None,
        d_out: new(&inputs.d_out, QUERIES),
        dq: new(dq, QUERIES),
        dk: new(dk, KEYS),
        dv: new(dv, KEYS),
    }
}

fn causal() -> AttentionBackward<'static> {
    AttentionBackward::new(descriptor::Attention { query_offset: 50, ..descriptor::Attention::causal() })
}

/// Launches with tensors and a workspace that were found before, since a capture must not wait for anything.
fn run_on(gpu: &Gpu, tensors: &AttentionBackwardTensors, workspace: Workspace, stream: Stream) {
    // SAFETY: the memory is as large as the layouts say, and every test reads the outputs before it drops it.
    unsafe { causal().run(&gpu.kernels, tensors, workspace, stream) }.unwrap();
}

fn workspace(gpu: &Gpu, inputs: &Inputs) -> Workspace {
    Workspace { address: gpu.address(&inputs.workspace), bytes: inputs.workspace.len() }
}

fn run(gpu: &Gpu, inputs: &Inputs) -> [Vec<u16>; 3] {
    let outputs = outputs(gpu);
    run_on(gpu, &tensors(gpu, inputs, &outputs), workspace(gpu, inputs), gpu.raw_stream());
    outputs.each_ref().map(|output| gpu.download(output))
}

fn same_bits(gpu: &Gpu) {
    let inputs = inputs(gpu, 1);
    let first = run(gpu, &inputs);
    for _ in 0..10 {
        assert!(run(gpu, &inputs) == first);
    }
}

/// More blocks than a GPU has at once add to the same queries, and query heads to the same keys: with a mask and without, in both sizes
/// of a kernel, rotated or not.
fn same_bits_of_many(gpu: &Gpu) {
    let frequencies: Vec<f64> = (0..32).map(|pair| 1e4f64.powf(-f64::from(pair) / 32.0)).collect();
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.0).unwrap());
    for (length, heads, dim, causal, rotates) in [
        (6000, [4, 2], 128, true, false),
        (6000, [4, 2], 128, false, false),
        (3000, [9, 3], 64, true, true),
        (20_000, [1, 1], 128, true, false),
    ] {
        let [of_queries, of_keys] = heads.map(|heads| [1, length, heads, dim]);
        let new = |seed: u64, shape| gpu.upload(&bits(900 + 2 * seed, shape));
        let [q, d_out] = [0, 1].map(|i| new(i, of_queries));
        let [k, v] = [2, 3].map(|i| new(i, of_keys));
        let rows = [1, length, heads[0], 1];
        // Weights of which many count.
        let lse = gpu.upload(&vec![8.0f32; count(rows)]);
        let delta = gpu.upload(&vec![0.1f32; count(rows)]);
        let choices = CacheChoices::All(SetChoice::Short);
        let rotary = CacheRotary { sets: &sets, pairing: Pairing::HalfSplit, choices };
        let attention = descriptor::Attention { causal, ..descriptor::Attention::default() };
        let backward =
            AttentionBackward { rotary: rotates.then_some(rotary), ..AttentionBackward::new(attention) };
        let run = || {
            let outputs =
                [of_queries, of_keys, of_keys].map(|shape| gpu.upload(&vec![u16::MAX; count(shape)]));
            let input = |memory: &CudaSlice<u16>, shape| tensor(gpu, memory, Dtype::Bf16, shape);
            let tensors = AttentionBackwardTensors {
                q: input(&q, of_queries),
                k: input(&k, of_keys),
                v: input(&v, of_keys),
                out: None,
                lse: tensor(gpu, &lse, Dtype::F32, rows),
                delta: Some(tensor(gpu, &delta, Dtype::F32, rows)),
                d_out: input(&d_out, of_queries),
                dq: input(&outputs[0], of_queries),
                dk: input(&outputs[1], of_keys),
                dv: input(&outputs[2], of_keys),
            };
            // SAFETY: the memory is as large as the layouts say, and lives until the outputs were read.
            unsafe { problem::launch(gpu, &backward, &tensors) };
            outputs.map(|output| gpu.download(&output))
        };
        let first = run();
        for time in 0..15 {
            assert!(run() == first, "{length} tokens, {heads:?} heads of {dim}, time {time}");
        }
    }
}

fn graph(gpu: &Gpu) {
    let mut inputs = inputs(gpu, 2);
    let outputs = outputs(gpu);
    let (tensors, workspace) = (tensors(gpu, &inputs, &outputs), workspace(gpu, &inputs));
    gpu.stream.synchronize().unwrap();
    gpu.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run_on(gpu, &tensors, workspace, gpu.raw_stream());
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags).unwrap().expect("a graph of three nodes");
    assert!(gpu.download(&outputs[0]).iter().all(|&x| x == u16::MAX), "capturing runs nothing");
    let mut seen = Vec::new();
    // One after the other is changed.
    for step in 0..6 {
        match step {
            1 => gpu.stream.memcpy_htod(&bits(101, QUERIES), &mut inputs.q).unwrap(),
            2 => gpu.stream.memcpy_htod(&bits(103, KEYS), &mut inputs.k).unwrap(),
            3 => gpu.stream.memcpy_htod(&bits(105, KEYS), &mut inputs.v).unwrap(),
            4 => gpu.stream.memcpy_htod(&bits(107, QUERIES), &mut inputs.out).unwrap(),
            5 => gpu.stream.memcpy_htod(&bits(109, QUERIES), &mut inputs.d_out).unwrap(),
            _ => {}
        }
        graph.launch().unwrap();
        let replayed = outputs.each_ref().map(|output| gpu.download(output));
        assert!(replayed == run(gpu, &inputs), "step {step}");
        assert!(!seen.contains(&replayed), "each replay follows what is on the device");
        seen.push(replayed);
    }
}

fn two_streams(gpu: &Gpu) {
    let inputs = [inputs(gpu, 5), inputs(gpu, 6)];
    let expected = [run(gpu, &inputs[0]), run(gpu, &inputs[1])];
    assert!(expected[0] != expected[1]);
    let streams = [gpu.cuda.new_stream().unwrap(), gpu.cuda.new_stream().unwrap()];
    for _ in 0..20 {
        let outputs = [outputs(gpu), outputs(gpu)];
        gpu.stream.synchronize().unwrap();
        for i in 0..2 {
            let tensors = tensors(gpu, &inputs[i], &outputs[i]);
            run_on(gpu, &tensors, workspace(gpu, &inputs[i]), raw(&streams[i]));
        }
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
        for i in 0..2 {
            assert!(outputs[i].each_ref().map(|output| gpu.download(output)) == expected[i]);
        }
    }
}

fn launch(gpu: &Gpu, backward: &AttentionBackward, tensors: &AttentionBackwardTensors, inputs: &Inputs) {
    // SAFETY: the memory is as large as the layouts say, and every test reads the outputs before it drops it.
    unsafe { backward.run(&gpu.kernels, tensors, workspace(gpu, inputs), gpu.raw_stream()) }.unwrap();
}

fn is_zero(bits: &[u16]) -> bool {
    bits.iter().all(|bits| bits & 0x7fff == 0)
}

fn empty(gpu: &Gpu) {
    let inputs = inputs(gpu, 7);
    let without = |tensor: DeviceTensor| {
        let [batch, _, heads, dims] = tensor.layout.shape();
        DeviceTensor { address: 0, layout: Layout::bshd(batch, 0, heads, dims), ..tensor }
    };
    // Without queries the gradients of keys are zero, and null queries are not looked at.
    let [dq, dk, dv] = outputs(gpu);
    let outputs_of = [dq, dk, dv];
    let mut none = tensors(gpu, &inputs, &outputs_of);
    for tensor in [&mut none.q, &mut none.lse, &mut none.d_out, &mut none.dq] {
        *tensor = without(*tensor);
    }
    none.out = none.out.map(without);
    launch(gpu, &causal(), &none, &inputs);
    let [dq, dk, dv] = outputs_of.each_ref().map(|output| gpu.download(output));
    assert!(dq.iter().all(|&x| x == u16::MAX) && is_zero(&dk) && is_zero(&dv));
    // Without keys those of queries are.
    let outputs_of = outputs(gpu);
    let mut none = tensors(gpu, &inputs, &outputs_of);
    for tensor in [&mut none.k, &mut none.v, &mut none.dk, &mut none.dv] {
        *tensor = without(*tensor);
    }
    launch(gpu, &causal(), &none, &inputs);
    let [dq, dk, dv] = outputs_of.each_ref().map(|output| gpu.download(output));
    assert!(is_zero(&dq) && dk.iter().chain(&dv).all(|&x| x == u16::MAX));
}

/// All queries stand before all keys: tiles are not even visited. Then the last 50 of 150 queries see some, and the log-sum-exps of
/// the others, which lie in the same tiles, are minus infinity.
fn blind(gpu: &Gpu) {
    let mut inputs = inputs(gpu, 8);
    let backward = |query_offset| {
        AttentionBackward::new(descriptor::Attention { query_offset, ..descriptor::Attention::causal() })
    };
    for query_offset in [-150, -100] {
        let lse: Vec<f32> = (0..count(ROWS))
            .map(|row| if (row / 4 % 150) as i64 + query_offset < 0 { f32::NEG_INFINITY } else { 5.0 })
            .collect();
        gpu.stream.memcpy_htod(&lse, &mut inputs.lse).unwrap();
        let outputs = outputs(gpu);
        launch(gpu, &backward(query_offset), &tensors(gpu, &inputs, &outputs), &inputs);
        let [dq, dk, dv] = outputs.each_ref().map(|output| gpu.download(output));
        assert!(
            [&dq, &dk, &dv].iter().all(|bits| bits.iter().all(|x| x & 0x7f80 != 0x7f80)),
            "all is finite"
        );
        let row = |query: usize| -> &[u16] { &dq[query * 512..(query + 1) * 512] };
        assert!((0..100).all(|query| is_zero(row(query)) && is_zero(row(150 + query))));
        assert_eq!(is_zero(row(149)), query_offset == -150);
        // Key 49 is the last that is seen.
        let key = |bits: &[u16], key: usize| is_zero(&bits[key * 256..(key + 1) * 256]);
        assert!((50..200).all(|i| key(&dk, i) && key(&dv, i)));
        assert_eq!(key(&dv, 49), query_offset == -150);
    }
}

fn refused(gpu: &Gpu) {
    let inputs = inputs(gpu, 10);
    let outputs = outputs(gpu);
    let good = tensors(gpu, &inputs, &outputs);
    let message = |backward: &AttentionBackward, tensors: &AttentionBackwardTensors, workspace: Workspace| {
        // SAFETY: nothing is launched.
        unsafe { backward.run(&gpu.kernels, tensors, workspace, gpu.raw_stream()) }.unwrap_err().to_string()
    };
    let with = |change: &dyn Fn(&mut AttentionBackward, &mut AttentionBackwardTensors)| {
        let (mut backward, mut tensors) = (causal(), good);
        change(&mut backward, &mut tensors);
        assert!(backward.supported(&tensors).is_err());
        message(&backward, &tensors, workspace(gpu, &inputs))
    };
    let shape = |[b, s, h, d]: [usize; 4]| Layout::bshd(b, s, h, d);
    for (found, argument) in [
        (with(&|_, t| t.k.dtype = Dtype::F16), "k.dtype: "),
        (with(&|_, t| t.d_out.dtype = Dtype::F32), "d_out.dtype: "),
        (with(&|_, t| t.dq.dtype = Dtype::F16), "dq.dtype: "),
        (with(&|_, t| t.d_out.layout = shape(KEYS)), "d_out: "),
        (with(&|_, t| t.dk.layout = shape([2, 200, 4, 128])), "dk: "),
        (with(&|_, t| t.lse.layout = shape([2, 150, 2, 1])), "lse: "),
        (with(&|_, t| t.out = None), "out: "),
        (with(&|_, t| t.dv.address += 1), "dv: "),
        (with(&|_, t| t.q.address = 0), "q: "),
        (with(&|_, t| t.dq.layout = Layout::strided(QUERIES, [0, 512, 128, 1])), "dq: "),
        (with(&|b, _| b.accumulate = true), "dq.dtype: "),
        (with(&|b, _| b.attention.window = Some(0)), "window: "),
        (with(&|b, _| b.status = Some(2)), "status: "),
    ] {
        assert!(found.starts_with(argument), "{found}, where {argument} was expected");
    }
    let needed = causal().workspace_size(&good).unwrap();
    assert!((4 * count(ROWS)..=WORKSPACE).contains(&needed));
    let address = gpu.address(&inputs.workspace);
    for (workspace, argument) in [
        (Workspace::NONE, "workspace.bytes: "),
        (Workspace { address, bytes: needed - 1 }, "workspace.bytes: "),
        (Workspace { address: 0, bytes: needed }, "workspace.address: "),
        (Workspace { address: address + 4, bytes: needed }, "workspace.address: "),
    ] {
        let found = message(&causal(), &good, workspace);
        assert!(found.starts_with(argument), "{found}, where {argument} was expected");
    }
    assert!(outputs.iter().all(|output| gpu.download(output).iter().all(|&x| x == u16::MAX)));
}
