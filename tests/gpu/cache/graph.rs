//! A captured step of decoding, an append and a decode over un-rotated keys, replayed while sequences grow and switch their sets.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaGraph, CudaSlice};
use longrope::device::Dtype;
use longrope::ops::{Append, AppendTensors, CacheChoices, CacheRotary, CachedKeys, Decode, Split, Workspace};

use crate::buffer::{Buffer, Gpu};
use crate::cache::model::{Rotation, append_tensors, appending, empty, exact_rotated, upload_new};
use crate::decode::model::{Form, Memory, Numbers, Problem, Sequence, bytes, scratch, tensors};
use crate::random::Order;

pub const TESTS: &[crate::Test] =
    &[("a_captured_graph_serves_a_thousand_steps_and_a_switch_of_factors", graph)];

const STEPS: usize = 1000;

/// What a captured step decodes.
struct Case {
    /// The first length of each sequence.
    first: &'static [usize],
    heads: [usize; 2],
    page_size: Option<usize>,
    split: Split,
    /// Of the replayed steps; the others are never.
    settled: bool,
}

/// Two sequences, one of which grows from nothing, and one, which Hopper decodes by clusters.
const CASES: [Case; 4] = [
    Case { first: &[1, 57], heads: [2, 1], page_size: Some(16), split: Split::Balanced, settled: false },
    Case { first: &[1, 57], heads: [2, 1], page_size: None, split: Split::Fixed(3), settled: true },
    Case { first: &[1, 57], heads: [2, 1], page_size: Some(32), split: Split::Balanced, settled: true },
    Case { first: &[40], heads: [6, 3], page_size: Some(16), split: Split::Balanced, settled: true },
];

/// A cache and all that a step of it needs on the device.
struct Side {
    memory: Memory,
    numbers: Numbers,
    choices: CudaSlice<i32>,
    new: [Buffer; 3],
    results: [Buffer; 2],
    scratch: CudaSlice<u8>,
}

impl Side {
    fn new(gpu: &Gpu, problem: &Problem) -> Self {
        // All tokens are new in turn, so that the table has the pages of all.
        let memory = empty(gpu, problem);
        let numbers = problem.numbers(gpu, &memory);
        let results = problem.outputs(gpu);
        let decode = problem.decode(gpu, &memory, &numbers);
        let scratch = scratch(gpu, &decode, &tensors(memory.q.tensor, &results[0], &results[1]));
        let (choices, new) = (gpu.upload(&vec![0i32; problem.sequences.len()]), upload_new(gpu, problem));
        Self { memory, numbers, choices, new, results, scratch }
    }

    /// One step, by the numbers that lie on the device when it runs. Keys and values are always those of the last token: what
    /// differs is where they go and how they turn. `around` gets the launches: a capture may begin only when all addresses were asked
    /// for, since that puts events on the stream.
    fn step<R>(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        rotation: &Rotation,
        around: impl FnOnce(&dyn Fn()) -> R,
    ) -> R {
        let sets = rotation.sets();
        let choices = CacheChoices::ByIndex(gpu.address(&self.choices));
        let rotary = CacheRotary { sets: &sets, pairing: rotation.pairing, choices };
        let append: Append =
            appending(gpu, problem, &self.memory, &self.numbers, rotary, CachedKeys::Unrotated);
        let decode = Decode { rotary: Some(rotary), ..problem.decode(gpu, &self.memory, &self.numbers) };
        let mut new: AppendTensors = append_tensors(&self.new);
        // Out of place, since a replay takes the same queries again.
        let mut q = new.q.expect("queries");
        q.output = self.memory.q.tensor;
        new.q = Some(q);
        let tensors = tensors(self.memory.q.tensor, &self.results[0], &self.results[1]);
        let workspace = Workspace { address: gpu.address(&self.scratch), bytes: self.scratch.len() };
        // SAFETY: the buffers are as large as their layouts say, and live until the last step was read.
        around(&|| unsafe {
            append.run(&gpu.kernels, &new, gpu.raw_stream()).unwrap();
            decode.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()).unwrap();
        })
    }

    fn launch(&self, gpu: &Gpu, problem: &Problem, rotation: &Rotation) {
        self.step(gpu, problem, rotation, |launch| launch());
    }

    fn capture(&self, gpu: &Gpu, problem: &Problem, rotation: &Rotation) -> CudaGraph {
        self.step(gpu, problem, rotation, |launch| {
            gpu.stream.synchronize().unwrap();
            let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            gpu.stream.begin_capture(mode).unwrap();
            launch();
            let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            gpu.stream.end_capture(flags).unwrap().expect("a graph with kernels")
        })
    }

    fn tell(&mut self, gpu: &Gpu, lengths: &[i64], choices: &[i32]) {
        gpu.stream.memcpy_htod(&bytes(false, lengths), &mut self.numbers.lengths).unwrap();
        gpu.stream.memcpy_htod(choices, &mut self.choices).unwrap();
    }

    /// Bits of rotated queries, of the output and of the log-sum-exp.
    fn read(&self, gpu: &Gpu) -> [Vec<u32>; 3] {
        [self.memory.q.read(gpu), self.results[0].read(gpu), self.results[1].read(gpu)]
    }
}

fn graph(gpu: &Gpu) {
    let set = |by: f64| (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0) / by).collect::<Vec<f64>>();
    let rotation = Rotation {
        frequencies: [set(1.0), set(1.2), set(3.1)],
        gains: [1.0, 1.0, f64::from(1.19f32)],
        original: 300,
        first_tokens: 4,
        pairing: longrope::descriptor::Pairing::HalfSplit,
        parity: false,
    };
    for case in CASES {
        let one = |(i, first)| Sequence { length: first + STEPS, fresh: 1, seed: 40 + 2 * i as u64 };
        let sequences: Vec<Sequence> = case.first.iter().enumerate().map(one).collect();
        let (count, split) = (sequences.len(), case.split);
        let problem = Problem {
            dtype: Dtype::Bf16,
            out_dtype: Dtype::Bf16,
            heads: case.heads,
            head_dim: 64,
            sequences,
            form: Form::Dense,
            page_size: case.page_size,
            room: 0,
            orders: [Order::Bshd; 4],
            wide_lengths: false,
            scale: None,
            window: None,
            split,
            place: 3,
            settled: false,
        };
        let [mut replayed, mut eager] = [(); 2].map(|()| Side::new(gpu, &problem));
        let settled = Problem { settled: case.settled, ..problem.clone() };
        let graph = replayed.capture(gpu, &settled, &rotation);
        assert!(replayed.results[0].is_untouched(gpu), "capturing runs nothing");
        // The cache holds what came before the first step.
        for side in [&mut replayed, &mut eager] {
            for length in 1..case.first[count - 1] {
                let mut lengths = vec![0; count];
                lengths[count - 1] = length as i64;
                side.tell(gpu, &lengths, &vec![0; count]);
                side.launch(gpu, &problem, &rotation);
            }
        }
        let mut before: Option<[Vec<u32>; 3]> = None;
        for step in 0..STEPS {
            let lengths: Vec<i64> = case.first.iter().map(|first| (first + step) as i64).collect();
            // One sequence, then the other, then the first again.
            let choices = &[i32::from((300..700).contains(&step)), i32::from(step >= 500)][..count];
            replayed.tell(gpu, &lengths, choices);
            graph.launch().unwrap();
            eager.tell(gpu, &lengths, choices);
            eager.launch(gpu, &problem, &rotation);
            let found = replayed.read(gpu);
            assert!(
                found == eager.read(gpu),
                "{count} sequences, {split:?}, settled {}, step {step}",
                case.settled
            );
            assert!(before.as_ref() != Some(&found), "each replay follows the numbers on the device");
            if [0, 299, 300, 500, 700, STEPS - 1].contains(&step) {
                check(&problem, &rotation, &lengths, choices, &found);
            }
            before = Some(found);
        }
        for side in [&replayed, &eager] {
            assert_eq!(gpu.download(&side.numbers.status)[0], 0);
        }
        let caches = [&replayed, &eager].map(|side| [side.memory.k.read(gpu), side.memory.v.read(gpu)]);
        assert!(caches[0] == caches[1]);
    }
}

/// Against the reference, whose keys and values are the last token's again and again.
fn check(
    problem: &Problem,
    rotation: &Rotation,
    lengths: &[i64],
    choices: &[i32],
    [q, out, lse]: &[Vec<u32>; 3],
) {
    use crate::attention::oracle::{self, ONE_CALL};
    let width = problem.heads[0] * problem.head_dim;
    for (i, sequence) in problem.sequences.iter().enumerate() {
        let [_, keys, values] = problem.elements(sequence);
        let last = |bits: &[u32]| {
            bits[bits.len() - problem.heads[1] * problem.head_dim..].repeat(lengths[i] as usize)
        };
        let now = Sequence { length: lengths[i] as usize, ..*sequence };
        let (q, long) = (&q[i * width..(i + 1) * width], choices[i] == 1);
        let exact = exact_rotated(problem, &now, q, [&last(&keys), &last(&values)], rotation, long);
        let out = (problem.out_dtype, &out[i * width..(i + 1) * width]);
        let lse = &lse[i * problem.heads[0]..(i + 1) * problem.heads[0]];
        oracle::check(&exact, problem.dtype, ONE_CALL, out, Some(lse)).unwrap();
    }
}
