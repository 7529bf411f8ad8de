//! The backward pass of attention on a GPU: all of it, and what delta takes alone beside a device-to-device copy.

mod gpu;

use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, AttentionDelta, Workspace};

use gpu::{Gpu, Measurements, Peer, Unit};

/// Launches in a graph, for what is shorter than an event can time; and the lengths that are.
const NODES: usize = 50;
const SHORT: usize = 1024;

#[derive(Clone, Copy)]
struct Case {
    op: &'static str,
    batch: usize,
    length: usize,
    /// Of queries and of keys.
    heads: [usize; 2],
    head_dim: usize,
    causal: bool,
    dtype: Dtype,
    /// Of the gradients.
    out_dtype: Dtype,
    /// Elements from one dimension to the next.
    step: usize,
}

const BASE: Case = Case {
    op: "backward",
    batch: 1,
    length: 16_384,
    heads: [16, 16],
    head_dim: 128,
    causal: true,
    dtype: Dtype::Bf16,
    out_dtype: Dtype::Bf16,
    step: 1,
};

const CASES: [Case; 21] = [
    Case { batch: 8, length: 2048, ..BASE },
    BASE,
    Case { causal: false, ..BASE },
    Case { heads: [32, 8], ..BASE },
    Case { heads: [32, 32], head_dim: 64, ..BASE },
    Case { head_dim: 96, ..BASE },
    Case { heads: [8, 8], head_dim: 256, ..BASE },
    // The other type, other forms, the heads of a small model.
    Case { dtype: Dtype::F16, out_dtype: Dtype::F16, ..BASE },
    Case { heads: [9, 3], head_dim: 64, ..BASE },
    Case { op: "backward_f32", out_dtype: Dtype::F32, ..BASE },
    Case { op: "backward_strided", step: 2, ..BASE },
    // Sums of any order.
    Case { op: "fast", batch: 8, length: 2048, ..BASE },
    Case { op: "fast", ..BASE },
    Case { op: "fast", causal: false, ..BASE },
    Case { op: "fast", heads: [32, 8], ..BASE },
    Case { op: "fast", length: 131_072, heads: [8, 2], ..BASE },
    Case { op: "fast", heads: [32, 32], head_dim: 64, ..BASE },
    Case { op: "fast", length: 65_536, heads: [8, 8], head_dim: 64, ..BASE },
    Case { op: "fast", head_dim: 96, ..BASE },
    Case { op: "fast", heads: [8, 8], head_dim: 256, ..BASE },
    Case { op: "backward_short", length: 512, heads: [9, 3], head_dim: 64, ..BASE },
];

fn main() {
    gpu::run("backward", |gpu, measurements| {
        CASES.iter().for_each(|case| backward(gpu, measurements, case));
        delta(gpu, measurements);
    });
}

impl Case {
    fn shape(&self) -> String {
        let Case { batch, length, heads: [q, k], head_dim, .. } = self;
        let mask = if self.causal { "causal" } else { "full" };
        format!("b{batch} s{length} h{q}/{k} d{head_dim} {mask} {:?}", self.dtype)
    }

    fn layout(&self, heads: usize) -> Layout {
        let row = (self.head_dim * self.step) as i64;
        let (token, shape) = (heads as i64 * row, [self.batch, self.length, heads, self.head_dim]);
        Layout::strided(shape, [self.length as i64 * token, token, row, self.step as i64])
    }

    /// Five products of two operations: 2.5 times those of the forward pass. Of a causal mask half, as is the custom.
    fn operations(&self) -> f64 {
        let logits = self.batch as f64 * (self.length as f64).powi(2) / if self.causal { 2.0 } else { 1.0 };
        10.0 * logits * (self.heads[0] * self.head_dim) as f64
    }
}

fn elements(layout: &Layout) -> usize {
    layout.batch() * layout.strides()[0] as usize
}

fn backward(gpu: &Gpu, measurements: &mut Measurements<'_>, case: &Case) {
    let [of_queries, of_keys] = case.heads.map(|heads| case.layout(heads));
    let layouts = [of_queries, of_keys, of_keys, of_queries, of_queries];
    let memory = layouts.map(|layout| gpu.random(case.dtype, elements(&layout)));
    let input =
        |i: usize| DeviceTensor { address: gpu.address(&memory[i]), dtype: case.dtype, layout: layouts[i] };
    let out_layouts = [of_queries, of_keys, of_keys];
    let outputs = out_layouts.map(|layout| gpu.zeros(elements(&layout) * case.out_dtype.size()));
    let output = |i: usize| DeviceTensor {
        address: gpu.address(&outputs[i]),
        dtype: case.out_dtype,
        layout: out_layouts[i],
    };
    // Of no forward pass; zeros do, since weights of any size take the same time.
    let rows = Layout::bshd(case.batch, case.length, case.heads[0], 1);
    let lse = gpu.zeros(elements(&rows) * 4);
    let tensors = AttentionBackwardTensors {
        q: input(0),
        k: input(1),
        v: input(2),
        out: Some(input(3)),
        lse: DeviceTensor { address: gpu.address(&lse), dtype: Dtype::F32, layout: rows },
        delta: None,
        d_out: input(4),
        dq: output(0),
        dk: output(1),
        dv: output(2),
    };
    let descriptor = descriptor::Attention { causal: case.causal, ..descriptor::Attention::default() };
    let backward = AttentionBackward { fast: case.op == "fast", ..AttentionBackward::new(descriptor) };
    let bytes = backward.workspace_size(&tensors).expect("a supported case");
    let scratch = gpu.zeros(bytes.max(1));
    let workspace = Workspace { address: gpu.address(&scratch), bytes };
    let ours = || {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { backward.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.expect("a launch");
    };
    let what = |shape, unit| gpu::Case { op: case.op.to_owned(), shape, unit };
    if case.length < SHORT {
        let graph = gpu.capture(|| (0..NODES).for_each(|_| ours()));
        let what = what(case.shape() + " (graph node)", Unit::Launches(NODES));
        return measurements.measure(&what, || graph.launch().expect("a launch"), Peer::Nothing);
    }
    measurements.measure(&what(case.shape(), Unit::Operations(case.operations())), ours, Peer::Nothing);
}

/// The bandwidth of the kernel that sums outputs times their gradients.
fn delta(gpu: &Gpu, measurements: &mut Measurements<'_>) {
    let (length, heads, head_dim) = (65_536, 32, 128);
    let elements = length * heads * head_dim;
    let [out, d_out] = [0; 2].map(|_| gpu.random(Dtype::Bf16, elements));
    let result = gpu.zeros(length * heads * 4);
    let tensor = |memory, dtype, dims| DeviceTensor {
        address: gpu.address(memory),
        dtype,
        layout: Layout::bshd(1, length, heads, dims),
    };
    let delta = AttentionDelta {
        out: tensor(&out, Dtype::Bf16, head_dim),
        d_out: tensor(&d_out, Dtype::Bf16, head_dim),
        delta: tensor(&result, Dtype::F32, 1),
    };
    let ours = || {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { delta.run(&gpu.kernels, gpu.raw_stream()) }.expect("a launch");
    };
    let bytes = 4 * elements + 4 * length * heads;
    // The copy reads half of as many bytes, and writes them.
    let (from, mut to) = (gpu.random(Dtype::Bf16, bytes / 4), gpu.zeros(bytes / 4 * 2));
    let mut copy = || gpu.stream.memcpy_dtod(&from, &mut to).expect("a copy");
    let what = gpu::Case {
        op: "delta".to_owned(),
        shape: format!("b1 s{length} h{heads} d{head_dim} Bf16"),
        unit: Unit::Bytes(bytes as f64),
    };
    measurements.measure(&what, ours, Peer::Work("device copy", &mut copy));
}
