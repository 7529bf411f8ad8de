//! The attention kernels on a GPU, and the merge of partial results beside a device-to-device copy.
//!
//! Others' kernels stand beside ours in benches/peers/attention.py. With `CUDA_FORCE_PTX_JIT=1` the driver takes no machine
//! code from the images but compiles their PTX, as it does for a GPU that came after them; then all cases are those of the
//! portable kernels.

mod gpu;

use cudarc::driver::CudaSlice;
use longrope::Error;
use longrope::descriptor::{self, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Attention, AttentionTensors, Cache, CacheChoices, CacheRotary, DecodeTensors, DeviceLengths, Merge,
    Packed, PageTable, Parts, Prefill, Sequences, Starts, Workspace,
};
use longrope::scaling::{FactorSet, FactorSets};

use gpu::{Gpu, Measurements, Peer, Unit};

/// Launches in a graph, for what is shorter than an event can time.
const NODES: usize = 200;

/// How the tensors lie in memory, and what comes out.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Contiguous, `[batch, length, heads, head_dim]`.
    Dense,
    /// The same with an f32 output and the log-sum-exp: a part that is to be merged.
    Partial,
    /// The head dimension has a stride of 2.
    Strided,
    /// Queries come as they were before rotation.
    Rotated,
    /// As many sequences as a batch, one longer than the other; or, of 0, lengths from 1 to 65,536.
    Packed(usize),
}

#[derive(Clone, Copy)]
struct Case {
    op: &'static str,
    batch: usize,
    /// Of queries and of keys; queries stand at the end of the keys.
    lengths: [usize; 2],
    heads: [usize; 2],
    head_dim: usize,
    causal: bool,
    window: Option<u64>,
    dtype: Dtype,
    form: Form,
}

const BASE: Case = Case {
    op: "forward",
    batch: 1,
    lengths: [16_384; 2],
    heads: [16, 16],
    head_dim: 128,
    causal: true,
    window: None,
    dtype: Dtype::Bf16,
    form: Form::Dense,
};

const CASES: [Case; 24] = [
    // As in benches/peers/attention.py, but for the million tokens, of which a launch takes a second and more.
    Case { batch: 8, lengths: [2048; 2], ..BASE },
    BASE,
    Case { causal: false, ..BASE },
    Case { heads: [32, 8], ..BASE },
    Case { lengths: [131_072; 2], heads: [8, 2], ..BASE },
    Case { heads: [32, 32], head_dim: 64, ..BASE },
    Case { lengths: [65_536; 2], heads: [8, 8], head_dim: 64, ..BASE },
    Case { heads: [8, 8], head_dim: 256, ..BASE },
    Case { head_dim: 96, ..BASE },
    // What they don't have: the other type, other forms, a chunk of a prefill, the heads of a small model.
    Case { dtype: Dtype::F16, ..BASE },
    Case { lengths: [131_072; 2], heads: [9, 3], head_dim: 64, ..BASE },
    // Longer still, at the same operations a clock as 131,072 if keys are found in the second-level cache.
    Case { lengths: [262_144; 2], heads: [8, 2], ..BASE },
    Case { lengths: [1_048_576; 2], heads: [2, 1], ..BASE },
    Case { op: "padded_head_dim", head_dim: 80, ..BASE },
    Case { op: "partial", form: Form::Partial, ..BASE },
    Case { op: "strided", form: Form::Strided, ..BASE },
    Case { op: "window_4096", lengths: [131_072; 2], heads: [8, 2], window: Some(4096), ..BASE },
    Case { op: "chunk", lengths: [4096, 1_048_576], heads: [8, 2], ..BASE },
    // Blocks of queries for half of the multiprocessors.
    Case { op: "chunk", lengths: [1024, 1_048_576], heads: [8, 2], ..BASE },
    Case { op: "rotated_queries", form: Form::Rotated, ..BASE },
    Case { op: "rotated_queries", form: Form::Rotated, lengths: [131_072; 2], heads: [8, 2], ..BASE },
    Case { op: "packed", form: Form::Packed(16), lengths: [32_768; 2], ..BASE },
    Case { op: "packed_mixed", form: Form::Packed(0), lengths: [87_382; 2], ..BASE },
    Case { op: "packed_full", form: Form::Packed(16), lengths: [32_768; 2], causal: false, ..BASE },
];

fn main() {
    gpu::run("attention", |gpu, measurements| {
        CASES.iter().for_each(|case| attention(gpu, measurements, case));
        [None, Some(64), Some(16)].into_iter().for_each(|page| prefill(gpu, measurements, page));
        for (count, dtype) in [(8, Dtype::Bf16), (2, Dtype::Bf16), (2, Dtype::F32)] {
            merge(gpu, measurements, count, dtype);
        }
        merge_one_token(gpu, measurements);
    });
}

impl Case {
    /// The lengths of packed sequences: the first shares of a whole, in the proportions 1, 2, 3, …
    fn sequence_lengths(&self, count: usize) -> Vec<usize> {
        if count == 0 {
            // Each four times the one before; together 87,381, and one more.
            return (0..9).map(|i| 1 << (2 * i)).chain([1]).collect();
        }
        let all = count * (count + 1) / 2;
        (1..=count).map(|share| self.lengths[0] * share / all).collect()
    }

    /// Logits that the mask leaves, of a head; of a causal mask half, as is the custom.
    fn logits(&self) -> f64 {
        let square = |length: usize| (length as f64).powi(2);
        let [queries, keys] = self.lengths.map(|length| length as f64);
        let all = match self.form {
            Form::Packed(count) => self.sequence_lengths(count).into_iter().map(square).sum(),
            _ if self.window.is_some() => queries * self.window.unwrap_or(0) as f64,
            _ if self.causal => 2.0 * queries * (keys - queries / 2.0),
            _ => queries * keys,
        };
        self.batch as f64 * if self.causal && self.window.is_none() { all / 2.0 } else { all }
    }

    fn shape(&self) -> String {
        let [queries, keys] = self.lengths;
        let length =
            if queries == keys { format!("s{keys}") } else { format!("s{queries}+{}", keys - queries) };
        let mask = if self.causal { "causal" } else { "full" };
        let [q, k] = self.heads;
        format!("b{} {length} h{q}/{k} d{} {mask} {:?}", self.batch, self.head_dim, self.dtype)
    }

    fn layout(&self, length: usize, heads: usize, is_input: bool) -> Layout {
        let (step, dim) = (if self.form == Form::Strided && is_input { 2 } else { 1 }, self.head_dim);
        let row = (dim * step) as i64;
        let token = heads as i64 * row;
        Layout::strided([self.batch, length, heads, dim], [length as i64 * token, token, row, step as i64])
    }
}

fn elements(layout: &Layout) -> usize {
    layout.batch() * layout.strides()[0] as usize
}

/// The sets of a model whose original length is 4,096.
fn sets(pairs: usize) -> FactorSets {
    let frequencies: Vec<f64> = (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs as f64)).collect();
    let set = || FactorSet::exact(&frequencies, 1.0).expect("frequencies");
    FactorSets::new(set(), set(), set(), 4096, 0).expect("sets of as many pairs")
}

fn attention(gpu: &Gpu, measurements: &mut Measurements<'_>, case: &Case) {
    let ([queries, keys], [query_heads, key_heads]) = (case.lengths, case.heads);
    let layouts = [
        case.layout(queries, query_heads, true),
        case.layout(keys, key_heads, true),
        case.layout(keys, key_heads, true),
    ];
    let memory = layouts.map(|layout| gpu.random(case.dtype, elements(&layout)));
    let input =
        |i: usize| DeviceTensor { address: gpu.address(&memory[i]), dtype: case.dtype, layout: layouts[i] };
    let partial = case.form == Form::Partial;
    let out_dtype = if partial { Dtype::F32 } else { case.dtype };
    let out_layout = case.layout(queries, query_heads, false);
    let out = gpu.zeros(elements(&out_layout) * out_dtype.size());
    let lse_layout = Layout::bshd(case.batch, queries, query_heads, 1);
    let lse = gpu.zeros(elements(&lse_layout) * 4);
    let tensors = AttentionTensors {
        q: input(0),
        k: input(1),
        v: input(2),
        out: DeviceTensor { address: gpu.address(&out), dtype: out_dtype, layout: out_layout },
        lse: partial.then(|| DeviceTensor {
            address: gpu.address(&lse),
            dtype: Dtype::F32,
            layout: lse_layout,
        }),
    };

    let mut attention = Attention::new(descriptor::Attention {
        causal: case.causal,
        window: case.window,
        query_offset: (keys - queries) as i64,
        ..descriptor::Attention::default()
    });
    let mut starts = vec![0i64];
    if let Form::Packed(count) = case.form {
        let mut end = 0;
        starts.extend(case.sequence_lengths(count).into_iter().map(|length| {
            end += length as i64;
            end
        }));
    }
    let starts_memory = gpu.stream.clone_htod(&starts).expect("device memory");
    if let Form::Packed(_) = case.form {
        let address = gpu.address(&starts_memory);
        attention.sequences = Sequences::Packed(Packed {
            count: starts.len() - 1,
            query_starts: address,
            key_starts: address,
            starts: Starts::I64,
            max_query_length: starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) as usize,
        });
    }
    let sets = sets(case.head_dim / 2);
    attention.query_rotary = (case.form == Form::Rotated).then_some(CacheRotary {
        sets: &sets,
        pairing: Pairing::HalfSplit,
        choices: CacheChoices::ByLength,
    });
    let bytes = attention.workspace_size(&tensors).expect("a supported case");
    let scratch = gpu.zeros(bytes.max(1));
    let workspace = Workspace { address: gpu.address(&scratch), bytes };
    let launch = || {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { attention.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }
    };
    if let (Form::Rotated, Err(Error::Unsupported { .. })) = (case.form, launch()) {
        return eprintln!("{}: not measured: the portable kernel rotates no queries", case.op);
    }
    // What takes the portable kernel too long for a bench: it is Hopper's that is held to these lengths.
    let limited = Attention { max_multiprocessors: Some(u32::MAX), ..attention };
    let is_long = queries.min(keys) > 131_072;
    // SAFETY: as above.
    if is_long && unsafe { limited.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.is_err() {
        return eprintln!("{} of {keys} keys: not measured with the portable kernel", case.op);
    }
    let ours = || launch().expect("a launch");
    let of_rotated = Attention { query_rotary: None, ..attention };
    let mut rotated = || {
        // SAFETY: as above; it needs no more memory.
        unsafe { of_rotated.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.expect("a launch");
    };
    // Two products of two operations.
    let operations = 4.0 * case.logits() * (query_heads * case.head_dim) as f64;
    let what = gpu::Case { op: case.op.to_owned(), shape: case.shape(), unit: Unit::Operations(operations) };
    let peer = match case.form {
        Form::Rotated => Peer::Work("queries rotated before", &mut rotated),
        _ => Peer::Nothing,
    };
    measurements.measure(&what, ours, peer);
}

/// 4,096 new tokens of a sequence of 131,072 whose keys and values lie in pages of so many, or side by side.
fn prefill(gpu: &Gpu, measurements: &mut Measurements<'_>, page: Option<usize>) {
    let (keys, queries, [heads, key_heads], dim) = (131_072, 4096, [8, 2], 128);
    let (dtype, page_size) = (Dtype::Bf16, page.unwrap_or(keys));
    let pages = keys / page_size;
    let [k, v] = [0, 1].map(|_| gpu.random(dtype, keys * key_heads * dim));
    let (q, out) = (gpu.random(dtype, queries * heads * dim), gpu.zeros(queries * heads * dim * 2));
    // A stride that is prime to their number, so that no page follows the one before.
    let table: Vec<i32> = (0..pages).map(|i| (i * 1009 % pages) as i32).collect();
    let table = gpu.stream.clone_htod(&table).expect("device memory");
    let lengths = gpu.stream.clone_htod(&[keys as i64]).expect("device memory");
    let tensor = |memory, shape: [usize; 4]| {
        let [batch, length, heads, dim] = shape;
        DeviceTensor { address: gpu.address(memory), dtype, layout: Layout::bshd(batch, length, heads, dim) }
    };
    let of_cache = [pages, page_size, key_heads, dim];
    let prefill = Prefill::new(Cache {
        k: tensor(&k, of_cache),
        v: tensor(&v, of_cache),
        pages: page.map(|_| PageTable {
            address: gpu.address(&table),
            sequences: 1,
            width: pages,
            stride: pages as i64,
        }),
        lengths: DeviceLengths::I64(gpu.address(&lengths)),
    });
    let of_queries = [1, queries, heads, dim];
    let tensors = DecodeTensors { q: tensor(&q, of_queries), out: tensor(&out, of_queries), lse: None };
    let bytes = prefill.workspace_size(&tensors).expect("a supported case");
    let scratch = gpu.zeros(bytes.max(1));
    let workspace = Workspace { address: gpu.address(&scratch), bytes };
    let ours = || {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { prefill.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.expect("a launch");
    };
    let logits = queries as f64 * (keys as f64 - queries as f64 / 2.0);
    let what = gpu::Case {
        op: page.map_or("prefill".to_owned(), |size| format!("prefill_page_{size}")),
        shape: format!("b1 s{queries}+{} h{heads}/{key_heads} d{dim} causal {dtype:?}", keys - queries),
        unit: Unit::Operations(4.0 * logits * (heads * dim) as f64),
    };
    measurements.measure(&what, ours, Peer::Nothing);
}

/// Parts of some tokens of 32 heads of 128 in device memory, and what they are merged to.
struct MergeMemory {
    merge: Merge,
    /// Read and written by a launch.
    bytes: usize,
    _memory: [CudaSlice<u8>; 4],
}

const MERGE_HEADS: usize = 32;
const MERGE_DIM: usize = 128;

fn merge_memory(gpu: &Gpu, length: usize, count: usize, dtype: Dtype) -> MergeMemory {
    let rows = length * MERGE_HEADS;
    let parts_out = gpu.random(Dtype::F32, count * rows * MERGE_DIM);
    let parts_lse = gpu.random(Dtype::F32, count * rows);
    let (out, lse) = (gpu.zeros(rows * MERGE_DIM * dtype.size()), gpu.zeros(rows * 4));
    let tensor = |memory, dtype, dim| DeviceTensor {
        address: gpu.address(memory),
        dtype,
        layout: Layout::bshd(1, length, MERGE_HEADS, dim),
    };
    let merge = Merge {
        parts: Parts {
            count,
            out: tensor(&parts_out, Dtype::F32, MERGE_DIM),
            lse: tensor(&parts_lse, Dtype::F32, 1),
            out_stride: (rows * MERGE_DIM) as i64,
            lse_stride: rows as i64,
        },
        out: tensor(&out, dtype, MERGE_DIM),
        lse: Some(tensor(&lse, Dtype::F32, 1)),
    };
    let bytes = rows * (MERGE_DIM * (4 * count + dtype.size()) + 4 * (count + 1));
    MergeMemory { merge, bytes, _memory: [parts_out, parts_lse, out, lse] }
}

impl MergeMemory {
    fn run(&self, gpu: &Gpu) {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { self.merge.run(&gpu.kernels, gpu.raw_stream()) }.expect("a launch");
    }
}

/// The bandwidth of parts of 16,384 tokens.
fn merge(gpu: &Gpu, measurements: &mut Measurements<'_>, count: usize, dtype: Dtype) {
    let length = 16_384;
    let memory = merge_memory(gpu, length, count, dtype);
    // The copy reads half of as many bytes, and writes them.
    let (from, mut to) = (gpu.random(Dtype::F32, memory.bytes / 8), gpu.zeros(memory.bytes / 8 * 4));
    let mut copy = || gpu.stream.memcpy_dtod(&from, &mut to).expect("a copy");
    let what = gpu::Case {
        op: format!("merge_{count}"),
        shape: format!("b1 s{length} h{MERGE_HEADS} d{MERGE_DIM} F32 to {dtype:?}"),
        unit: Unit::Bytes(memory.bytes as f64),
    };
    measurements.measure(&what, || memory.run(gpu), Peer::Work("device copy", &mut copy));
}

/// One token in eight parts, as after a decode whose keys were split: a node of a graph.
fn merge_one_token(gpu: &Gpu, measurements: &mut Measurements<'_>) {
    let memory = merge_memory(gpu, 1, 8, Dtype::Bf16);
    let graph = gpu.capture(|| (0..NODES).for_each(|_| memory.run(gpu)));
    let what = gpu::Case {
        op: "merge_8_one_token".to_owned(),
        shape: format!("b1 s1 h{MERGE_HEADS} d{MERGE_DIM} F32 to Bf16 (graph node)"),
        unit: Unit::Launches(NODES),
    };
    measurements.measure(&what, || graph.launch().expect("a launch"), Peer::Nothing);
}
