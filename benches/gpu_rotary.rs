//! The rotary kernel on a GPU, beside a device-to-device copy of the same bytes.

mod gpu;

use cudarc::driver::CudaSlice;
use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

use gpu::{Gpu, Measurements, Peer, Unit};

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

fn main() {
    gpu::run("rotary", |gpu, measurements| {
        for case in CASES {
            bandwidth(gpu, measurements, &case);
        }
        one_token(gpu, measurements);
    });
}

fn bandwidth(gpu: &Gpu, measurements: &mut Measurements<'_>, case: &Case) {
    let size = case.dtype.size();
    let elements = case.heads.map(|heads| case.tokens * heads * case.head_dim);
    let bytes: usize = elements.iter().sum::<usize>() * size;
    let value_heads = if case.form == Form::Packed { case.heads[1] } else { 0 };
    let total = bytes + case.tokens * value_heads * case.head_dim * size;
    let input = gpu.random(case.dtype, total / size);
    let mut output = gpu.zeros(bytes);
    let tensors = tensors(gpu, case, &input, &output, value_heads);

    let pairs = case.head_dim / 2;
    let frequencies: Vec<f64> = (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs as f64)).collect();
    let set = |by: f64| {
        let frequencies: Vec<f64> = frequencies.iter().map(|f| f / by).collect();
        FactorSet::exact(&frequencies, 1.0).expect("frequencies in range")
    };
    let sets = FactorSets::new(set(1.0), set(1.1), set(8.0), 4096, 0).expect("sets of one size");
    let positions: Vec<i64> = (0..case.tokens as i64).collect();
    let positions = gpu.stream.clone_htod(&positions).expect("device memory");
    let rotary = Rotary {
        sets: &sets,
        pairing: case.pairing,
        direction: Direction::Forward,
        positions: match case.per_token {
            true => DevicePositions::PerToken(gpu.address(&positions)),
            false => DevicePositions::Offset(0),
        },
        choices: DeviceChoices::All(SetChoice::Long),
        status: None,
    };
    let from_choices = DeviceChoices::All(SetChoice::Short);
    let rerotate = Rerotate { to: rotary, from: &sets, from_choices, shift: 0 };
    let ours = || {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        let launched = unsafe {
            match case.rerotate {
                true => rerotate.run(&gpu.kernels, &tensors, gpu.raw_stream()),
                false => rotary.run(&gpu.kernels, &tensors, gpu.raw_stream()),
            }
        };
        launched.expect("a launch");
    };
    let mut copy = || {
        gpu.stream.memcpy_dtod(&input.slice(0..bytes), &mut output).expect("a copy");
    };
    let what = gpu::Case {
        op: case.name.to_owned(),
        shape: format!(
            "b1 s{} h{}/{} d{} {:?}",
            case.tokens, case.heads[0], case.heads[1], case.head_dim, case.dtype
        ),
        unit: Unit::Bytes(2.0 * bytes as f64),
    };
    measurements.measure(&what, ours, Peer::Work("device copy", &mut copy));
}

fn tensors(
    gpu: &Gpu,
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
            let address = gpu.address(memory) + (first * size) as u64;
            DeviceTensor { address, dtype: case.dtype, layout }
        };
        let input = tensor(input, case.form == Form::Packed);
        let output = if case.form == Form::OutOfPlace { tensor(output, false) } else { input };
        tensors.push(RotaryTensor { input, output });
    }
    tensors
}

/// One token, as in decoding: a node of a graph.
fn one_token(gpu: &Gpu, measurements: &mut Measurements<'_>) {
    let memory = gpu.random(Dtype::Bf16, 40 * 128);
    let case = Case { tokens: 1, form: Form::InPlace, ..BASE };
    let tensors = tensors(gpu, &case, &memory, &memory, 0);
    let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.0).expect("frequencies in range"));
    let rotary = Rotary {
        sets: &sets,
        pairing: Pairing::HalfSplit,
        direction: Direction::Forward,
        positions: DevicePositions::Offset(1 << 20),
        choices: DeviceChoices::All(SetChoice::Long),
        status: None,
    };
    let graph = gpu.capture(|| {
        for _ in 0..NODES {
            // SAFETY: the buffer is as large as the layouts say, and outlives the graph.
            unsafe { rotary.run(&gpu.kernels, &tensors, gpu.raw_stream()) }.expect("a launch");
        }
    });
    let what = gpu::Case {
        op: "one_token".to_owned(),
        shape: "b1 s1 h32/8 d128 Bf16 (graph node)".to_owned(),
        unit: Unit::Launches(NODES),
    };
    measurements.measure(&what, || graph.launch().expect("a launch"), Peer::Goal(2.0));
}
