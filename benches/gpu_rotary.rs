//! The rotary kernel on a GPU, beside a device-to-device copy of the same bytes.
//!
//! Ours and the copy alternate, repeat by repeat, on the same buffers; each figure is the median of CUDA-event timings.
//! The rows are `family,op,shape,unit,ours,peer,peer_value,ratio`, a ratio above 1 being better than the peer. Without a
//! GPU it says so and measures nothing.
//!
//! Words name the rows wanted. `few_tokens` has no peer and is measured only when it is named: some tokens more than one,
//! and the choices of a decoder (lengths and offsets on the device).

use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags_enum, CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{Context, DeviceTensor, Dtype, Stream};
use longrope::ops::{DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

/// Timed repeats of each side.
const REPEATS: usize = 25;
/// Launches in a graph, for what is shorter than an event can time.
const NODES: usize = 200;

/// How the heads lie in memory.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Queries and keys each contiguous, `[length, heads, head_dim]`, into other buffers.
    OutOfPlace,
    InPlace,
    /// Parts of one packed buffer with as many value heads as key heads, in place.
    Packed,
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    tokens: usize,
    heads: [usize; 2],
    head_dim: usize,
    dtype: Dtype,
    form: Form,
    pairing: Pairing,
    per_token: bool,
    rerotate: bool,
}

const BASE: Case = Case {
    name: "out_of_place",
    tokens: 131_072,
    heads: [32, 8],
    head_dim: 128,
    dtype: Dtype::Bf16,
    form: Form::OutOfPlace,
    pairing: Pairing::HalfSplit,
    per_token: false,
    rerotate: false,
};

const CASES: [Case; 11] = [
    BASE,
    Case { name: "in_place", form: Form::InPlace, ..BASE },
    Case { name: "heads_32_32", heads: [32, 32], tokens: 65_536, ..BASE },
    Case { name: "head_dim_64", head_dim: 64, ..BASE },
    Case { name: "head_dim_96", head_dim: 96, ..BASE },
    Case { name: "head_dim_256", head_dim: 256, tokens: 65_536, ..BASE },
    Case { name: "interleaved", pairing: Pairing::Interleaved, ..BASE },
    Case { name: "packed_qkv", form: Form::Packed, ..BASE },
    Case { name: "int64_positions", per_token: true, ..BASE },
    Case {
        name: "rerotate_keys",
        heads: [0, 8],
        form: Form::InPlace,
        rerotate: true,
        tokens: 524_288,
        ..BASE
    },
    Case { name: "f32", dtype: Dtype::F32, tokens: 65_536, ..BASE },
];

const LONG: DeviceChoices = DeviceChoices::All(SetChoice::Long);

fn main() {
    // Cargo's own arguments mean nothing here, but a test run must not measure.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    // cudarc panics where there is no driver, so a first context tells whether there is one.
    if let Err(reason) = Context::new(0) {
        return println!("not measured: {reason}");
    }
    let cuda = CudaContext::new(0).expect("the context of device 0");
    let kernels = Context::new(0).expect("the kernels, as before");
    let bench = Bench { stream: cuda.new_stream().expect("a stream"), cuda, kernels };
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    println!("family,op,shape,unit,ours,peer,peer_value,ratio");
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        bench.bandwidth(case);
    }
    if wanted("one_token") {
        bench.one_token();
    }
    if words.iter().any(|word| word == "few_tokens") {
        bench.few_tokens();
    }
}

struct Bench {
    cuda: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Context,
}

impl Bench {
    fn raw_stream(&self) -> Stream {
        Stream::from_raw(self.stream.cu_stream().cast())
    }

    /// Milliseconds of the work on the stream.
    fn time(&self, work: &mut dyn FnMut()) -> f32 {
        let event = || self.cuda.new_event(Some(CUevent_flags_enum::CU_EVENT_DEFAULT)).expect("an event");
        let (start, end) = (event(), event());
        start.record(&self.stream).expect("an event is recorded");
        work();
        end.record(&self.stream).expect("an event is recorded");
        start.elapsed_ms(&end).expect("both events passed")
    }

    /// Random elements: zeros would run faster.
    fn random(&self, bytes: usize) -> CudaSlice<u8> {
        let block: Vec<u8> =
            (0..1u32 << 22).map(|i| ((i.wrapping_mul(2_654_435_761) >> 13) & 0x3f) as u8).collect();
        let mut memory = self.stream.alloc_zeros::<u8>(bytes).expect("device memory");
        for start in (0..bytes).step_by(block.len()) {
            let end = bytes.min(start + block.len());
            self.stream
                .memcpy_htod(&block[..end - start], &mut memory.slice_mut(start..end))
                .expect("a copy");
        }
        memory
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    fn bandwidth(&self, case: &Case) {
        let size = case.dtype.size();
        let elements = case.heads.map(|heads| case.tokens * heads * case.head_dim);
        let bytes: usize = elements.iter().sum::<usize>() * size;
        let value_heads = if case.form == Form::Packed { case.heads[1] } else { 0 };
        let total = bytes + case.tokens * value_heads * case.head_dim * size;
        let input = self.random(total);
        let mut output = self.stream.alloc_zeros::<u8>(bytes).expect("device memory");
        let tensors = self.tensors(case, &input, &output, value_heads);

        let pairs = case.head_dim / 2;
        let frequencies: Vec<f64> = (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs as f64)).collect();
        let set = |by: f64| {
            let frequencies: Vec<f64> = frequencies.iter().map(|f| f / by).collect();
            FactorSet::exact(&frequencies, 1.0).expect("frequencies in range")
        };
        let sets = FactorSets::new(set(1.0), set(1.1), set(8.0), 4096, 0).expect("sets of one size");
        let positions: Vec<i64> = (0..case.tokens as i64).collect();
        let positions = self.stream.clone_htod(&positions).expect("device memory");
        let rotary = Rotary {
            sets: &sets,
            pairing: case.pairing,
            direction: Direction::Forward,
            positions: match case.per_token {
                true => DevicePositions::PerToken(positions.device_ptr(&self.stream).0),
                false => DevicePositions::Offset(0),
            },
            choices: LONG,
            status: None,
        };
        let from_choices = DeviceChoices::All(SetChoice::Short);
        let rerotate = Rerotate { to: rotary, from: &sets, from_choices, shift: 0 };
        let mut ours = || {
            // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
            let launched = unsafe {
                match case.rerotate {
                    true => rerotate.run(&self.kernels, &tensors, self.raw_stream()),
                    false => rotary.run(&self.kernels, &tensors, self.raw_stream()),
                }
            };
            launched.expect("a launch");
        };
        let mut copy = || {
            self.stream.memcpy_dtod(&input.slice(0..bytes), &mut output).expect("a copy");
        };
        let (mut our_times, mut copy_times) = (Vec::new(), Vec::new());
        for repeat in 0..REPEATS + 3 {
            let (a, b) = (self.time(&mut ours), self.time(&mut copy));
            if repeat >= 3 {
                our_times.push(a);
                copy_times.push(b);
            }
        }
        let rate = |times: Vec<f32>| 2.0 * bytes as f64 / f64::from(median(times)) / 1e6;
        let (ours, copy) = (rate(our_times), rate(copy_times));
        println!(
            "rotary,{},b1 s{} h{}/{} d{} {:?},GB/s,{ours:.1},device copy,{copy:.1},{:.4}",
            case.name,
            case.tokens,
            case.heads[0],
            case.heads[1],
            case.head_dim,
            case.dtype,
            ours / copy
        );
    }

    fn tensors(
        &self,
        case: &Case,
        input: &CudaSlice<u8>,
        output: &CudaSlice<u8>,
        value_heads: usize,
    ) -> Vec<RotaryTensor> {
        let [q, k] = case.heads;
        let (dim, size) = (case.head_dim, case.dtype.size());
        let mut tensors = Vec::new();
        for (heads, before) in [(q, 0), (k, q)] {
            if heads == 0 {
                continue;
            }
            let tensor = |memory, packed| {
                let (first, token) = match packed {
                    true => (before * dim, (q + k + value_heads) * dim),
                    false => (before * dim * case.tokens, heads * dim),
                };
                let layout = Layout::strided([1, case.tokens, heads, dim], [0, token as i64, dim as i64, 1]);
                let address = self.address(memory) + (first * size) as u64;
                DeviceTensor { address, dtype: case.dtype, layout }
            };
            let input = tensor(input, case.form == Form::Packed);
            let output = if case.form == Form::OutOfPlace { tensor(output, false) } else { input };
            tensors.push(RotaryTensor { input, output });
        }
        tensors
    }

    /// One token, as in decoding: a node of a graph.
    fn one_token(&self) {
        let ours = self.node(&Case { tokens: 1, ..BASE }, DevicePositions::Offset(1 << 20), LONG);
        println!(
            "rotary,one_token,b1 s1 h32/8 d128 Bf16 (graph node),us,{ours:.3},goal,2.000,{:.4}",
            2.0 / ours
        );
    }

    fn few_tokens(&self) {
        let memory = self.stream.clone_htod(&[1i64 << 20]).expect("device memory");
        let length = memory.device_ptr(&self.stream).0;
        let row = |name: &str, case: &Case, time: f32| {
            let [q, k] = case.heads;
            let (tokens, dim, dtype) = (case.tokens, case.head_dim, case.dtype);
            println!("rotary,{name},b1 s{tokens} h{q}/{k} d{dim} {dtype:?} (graph node),us,{time:.3},,,");
        };
        for dtype in [Dtype::Bf16, Dtype::F32] {
            for tokens in [1, 8, 16, 32, 51, 52, 64, 128, 256] {
                let case = Case { tokens, dtype, ..BASE };
                row("few_tokens", &case, self.node(&case, DevicePositions::Offset(1 << 20), LONG));
            }
        }
        let case = Case { tokens: 1, ..BASE };
        let (positions, choices) = (DevicePositions::OffsetAt(length), DeviceChoices::ByLength(length));
        row("few_tokens_of_a_decoder", &case, self.node(&case, positions, choices));
    }

    /// Microseconds of a node in a graph that rotates in place.
    fn node(&self, case: &Case, positions: DevicePositions, choices: DeviceChoices) -> f32 {
        let case = Case { form: Form::InPlace, ..*case };
        let heads: usize = case.heads.iter().sum();
        let memory = self.random(case.tokens * heads * case.head_dim * case.dtype.size());
        let tensors = self.tensors(&case, &memory, &memory, 0);
        let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
        let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.0).expect("frequencies in range"));
        let (pairing, direction) = (case.pairing, Direction::Forward);
        let rotary = Rotary { sets: &sets, pairing, direction, positions, choices, status: None };
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.synchronize().expect("an idle stream");
        self.stream.begin_capture(mode).expect("a capture");
        for _ in 0..NODES {
            // SAFETY: the buffer is as large as the layouts say, and outlives the graph.
            unsafe { rotary.run(&self.kernels, &tensors, self.raw_stream()) }.expect("a launch");
        }
        let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
        let mut times = Vec::new();
        for repeat in 0..REPEATS + 3 {
            let time = self.time(&mut || graph.launch().expect("a launch"));
            if repeat >= 3 {
                times.push(time * 1e3 / NODES as f32);
            }
        }
        median(times)
    }
}

fn median(mut times: Vec<f32>) -> f32 {
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}
