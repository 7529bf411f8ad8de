//! Decode attention on a GPU: bytes of keys and values a second, beside a kernel that only reads as many.
//!
//! Needs the library of NVRTC beside the driver, for the reading kernel. A cold case is a graph whose launches have a cache
//! each, as the layers of a model have, so that none finds its keys and values in the L2 cache.

mod gpu;

use cudarc::driver::CudaSlice;
use longrope::descriptor::{Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Append, AppendTensors, Cache, CacheChoices, CacheRotary, CachedKeys, Decode, DecodeTensors,
    DeviceLengths, NewTokens, PageTable, RotaryTensor, Workspace,
};
use longrope::scaling::{FactorSet, FactorSets};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use gpu::read::Reader;
use gpu::{Gpu, Measurements, Peer, Unit};

const DTYPE: Dtype = Dtype::Bf16;
const MILLION: usize = 1_048_576;
/// Keys and values of the longest sequence here. All cases have their caches in one memory of this size.
const POOL_BYTES: usize = BASE.token_bytes() * 2 * MILLION;
/// What is uploaded, and repeated through that memory.
const BLOCK_BYTES: usize = 64 << 20;
/// More than any case's workspace.
const SCRATCH_BYTES: usize = 64 << 20;

/// One new token of each sequence.
#[derive(Clone, Copy)]
struct Case {
    op: &'static str,
    length: usize,
    heads: [usize; 2],
    head_dim: usize,
    /// Rows of a page; `None` is contiguous.
    page_size: Option<usize>,
    /// Launches in a graph; 1 is a launch without one.
    nodes: usize,
    /// In microseconds a launch, where the time is what matters.
    goal: Option<f64>,
}

const BASE: Case = Case {
    op: "contiguous",
    length: MILLION,
    heads: [32, 8],
    head_dim: 128,
    page_size: None,
    nodes: 1,
    goal: None,
};

const CONTIGUOUS: [Case; 3] =
    [Case { length: MILLION / 8, ..BASE }, BASE, Case { length: 2 * MILLION, ..BASE }];
const PAGED: [Case; 2] = [
    Case { op: "paged_16", page_size: Some(16), ..BASE },
    Case { op: "paged_64", page_size: Some(64), ..BASE },
];
const ROTATING: [Case; 3] = [
    Case { op: "rotate_on_read", length: MILLION / 8, ..BASE },
    Case { op: "rotate_on_read", ..BASE },
    Case { op: "rotate_on_read", length: 2 * MILLION, ..BASE },
];
const MIXED: Case = Case { op: "mixed_lengths", page_size: Some(64), ..BASE };
const COLD: [Case; 5] = [
    Case { op: "cold", length: 4096, nodes: 40, goal: Some(10.0), ..BASE },
    Case { op: "cold", length: 16_384, nodes: 40, goal: Some(27.0), ..BASE },
    Case { op: "cold", length: MILLION / 8, heads: [9, 3], head_dim: 64, nodes: 40, ..BASE },
    Case { op: "cold", length: MILLION / 8, heads: [32, 32], nodes: 2, ..BASE },
    Case { op: "cold", length: MILLION / 8, nodes: 14, ..BASE },
];
/// The same launches, of which none writes what another one reads.
const SETTLED: &str = "cold_settled";

fn main() {
    gpu::run("decode", |gpu, measurements| {
        let bench = Bench::new(gpu);
        bench.read_alone(measurements);
        CONTIGUOUS.iter().for_each(|case| bench.beside_read(measurements, case, &[case.length]));
        PAGED.iter().for_each(|case| bench.beside_contiguous(measurements, case));
        ROTATING.iter().for_each(|case| bench.beside_contiguous(measurements, case));
        bench.beside_read(measurements, &MIXED, &mixed_lengths());
        COLD.iter().for_each(|case| bench.cold(measurements, case));
        COLD.iter().for_each(|case| bench.cold(measurements, &Case { op: SETTLED, ..*case }));
        bench.append(measurements);
        bench.check();
    });
}

/// LongRoPE's kind of factors for a head dimension of 128: short and long ones, and first tokens without.
fn factor_sets() -> FactorSets {
    let set = |largest: f64| {
        let frequency = |i: i32| {
            let at = f64::from(i) / 64.0;
            1e4f64.powf(-at) / largest.powf(at)
        };
        FactorSet::exact(&(0..64).map(frequency).collect::<Vec<f64>>(), 1.19).expect("frequencies in range")
    };
    FactorSets::new(set(1.0), set(1.5), set(32.0), 4096, 64).expect("sets of one size")
}

/// One of a million tokens, and 63 of 1024 to 16,384.
fn mixed_lengths() -> Vec<usize> {
    let short = (0..63).map(|i| 1024 + i * (16_384 - 1024) / 62);
    std::iter::once(MILLION).chain(short).collect()
}

impl Case {
    /// Keys and values of a token.
    const fn token_bytes(&self) -> usize {
        2 * self.heads[1] * self.head_dim * 2
    }

    /// A row's name for it.
    fn what(&self, lengths: &[usize], unit: Unit) -> gpu::Case {
        let [q, k] = self.heads;
        let rest = match lengths {
            [_, first, .., last] => format!(" and {first} to {last}"),
            _ => String::new(),
        };
        let node = if matches!(unit, Unit::Launches(_)) { " (graph node)" } else { "" };
        let (batch, length, dim) = (lengths.len(), self.length, self.head_dim);
        gpu::Case {
            op: self.op.to_owned(),
            shape: format!("b{batch} q1 s{length}{rest} h{q}/{k} d{dim} {DTYPE:?}{node}"),
            unit,
        }
    }
}

/// What all cases use.
struct Bench<'a> {
    gpu: &'a Gpu,
    /// The caches. Their address: asking for one puts an event on the stream.
    _memory: CudaSlice<u8>,
    pool: u64,
    scratch: CudaSlice<u8>,
    /// The status word of all launches.
    status: CudaSlice<u32>,
    reader: Reader,
    sets: FactorSets,
}

/// A launch, and the memory that is its own.
struct Launch<'a> {
    decode: Decode<'a>,
    tensors: DecodeTensors,
    workspace: Workspace,
    _rows: [CudaSlice<u8>; 2],
    _numbers: [CudaSlice<i32>; 2],
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu) -> Self {
        let block = gpu.random(DTYPE, BLOCK_BYTES / DTYPE.size());
        let mut pool = gpu.zeros(POOL_BYTES);
        for start in (0..POOL_BYTES).step_by(BLOCK_BYTES) {
            let end = POOL_BYTES.min(start + BLOCK_BYTES);
            let part = &mut pool.slice_mut(start..end);
            gpu.stream.memcpy_dtod(&block.slice(..end - start), part).expect("a copy");
        }
        Self {
            gpu,
            pool: gpu.address(&pool),
            _memory: pool,
            scratch: gpu.zeros(SCRATCH_BYTES),
            status: gpu.stream.alloc_zeros(1).expect("device memory"),
            reader: Reader::new(gpu),
            sets: factor_sets(),
        }
    }

    /// A launch on the cache that begins at this byte of the pool.
    fn launch(&self, case: &Case, lengths: &[usize], start: usize) -> Launch<'_> {
        let gpu = self.gpu;
        let ([query_heads, key_heads], dim) = (case.heads, case.head_dim);
        let sequences = lengths.len();
        let page_size = case.page_size.unwrap_or(case.length);
        let counts: Vec<usize> = lengths.iter().map(|length| length.div_ceil(page_size)).collect();
        let pages: usize = counts.iter().sum();
        let bytes = pages * page_size * case.token_bytes();
        assert!(start + bytes <= POOL_BYTES, "{}: the cache is larger than the pool", case.op);

        // A sequence's pages lie anywhere.
        let mut ids: Vec<i32> = (0..pages as i32).collect();
        ids.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        let (mut rest, width) = (ids.into_iter(), counts.iter().copied().max().unwrap_or(0));
        let mut table = vec![0; sequences * width];
        for (row, count) in table.chunks_mut(width).zip(counts) {
            row.iter_mut().zip(rest.by_ref().take(count)).for_each(|(entry, id)| *entry = id);
        }
        let table = gpu.stream.clone_htod(&table).expect("device memory");
        let ends: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let ends = gpu.stream.clone_htod(&ends).expect("device memory");

        let half = |offset| DeviceTensor {
            address: self.pool + (start + offset) as u64,
            dtype: DTYPE,
            layout: Layout::bhsd(pages, page_size, key_heads, dim),
        };
        let mut decode = Decode::new(Cache {
            k: half(0),
            v: half(bytes / 2),
            pages: case.page_size.map(|_| PageTable {
                address: gpu.address(&table),
                sequences,
                width,
                stride: width as i64,
            }),
            lengths: DeviceLengths::I32(gpu.address(&ends)),
        });
        decode.status = Some(gpu.address(&self.status));
        decode.settled = case.op == SETTLED;
        decode.rotary = (case.op == "rotate_on_read").then(|| self.rotary());
        let elements = sequences * query_heads * dim;
        let rows = [gpu.random(DTYPE, elements), gpu.zeros(elements * DTYPE.size())];
        let layout = Layout::bshd(sequences, 1, query_heads, dim);
        let [q, out] = [0, 1].map(|i| DeviceTensor { address: gpu.address(&rows[i]), dtype: DTYPE, layout });
        let workspace = Workspace { address: gpu.address(&self.scratch), bytes: SCRATCH_BYTES };
        let tensors = DecodeTensors { q, out, lse: None };
        Launch { decode, tensors, workspace, _rows: rows, _numbers: [table, ends] }
    }

    fn rotary(&self) -> CacheRotary<'_> {
        CacheRotary { sets: &self.sets, pairing: Pairing::HalfSplit, choices: CacheChoices::ByLength }
    }

    /// Reads the pool's first bytes.
    fn read(&self, bytes: usize) {
        self.reader.read(self.gpu, self.pool, bytes);
    }

    /// What the device can read.
    fn read_alone(&self, measurements: &mut Measurements<'_>) {
        let bytes = MILLION * BASE.token_bytes();
        let what = Case { op: "read", ..BASE }.what(&[MILLION], Unit::Bytes(bytes as f64));
        measurements.measure(&what, || self.read(bytes), Peer::Nothing);
    }

    fn beside_read(&self, measurements: &mut Measurements<'_>, case: &Case, lengths: &[usize]) {
        let bytes = lengths.iter().sum::<usize>() * case.token_bytes();
        let launch = self.launch(case, lengths, 0);
        let what = case.what(lengths, Unit::Bytes(bytes as f64));
        let peer = &mut || self.read(bytes);
        measurements.measure(&what, || launch.run(self.gpu), Peer::Work("read ceiling", peer));
    }

    fn beside_contiguous(&self, measurements: &mut Measurements<'_>, case: &Case) {
        let bytes = case.length * case.token_bytes();
        let [launch, contiguous] =
            [*case, Case { length: case.length, ..BASE }].map(|case| self.launch(&case, &[case.length], 0));
        let what = case.what(&[case.length], Unit::Bytes(bytes as f64));
        let peer = &mut || contiguous.run(self.gpu);
        measurements.measure(&what, || launch.run(self.gpu), Peer::Work("contiguous", peer));
    }

    fn cold(&self, measurements: &mut Measurements<'_>, case: &Case) {
        let each = case.length * case.token_bytes();
        let launches: Vec<Launch<'_>> =
            (0..case.nodes).map(|i| self.launch(case, &[case.length], i * each)).collect();
        let graph = self.gpu.capture(|| launches.iter().for_each(|launch| launch.run(self.gpu)));
        let bytes = case.nodes * each;
        let mut read = || self.read(bytes);
        let (unit, peer) = match case.goal {
            Some(goal) => (Unit::Launches(case.nodes), Peer::Goal(goal)),
            None => (Unit::Bytes(bytes as f64), Peer::Work("read ceiling", &mut read)),
        };
        let what = case.what(&[case.length], unit);
        measurements.measure(&what, || graph.launch().expect("a launch"), peer);
    }

    /// New tokens of one sequence, into pages that lie anywhere.
    fn append(&self, measurements: &mut Measurements<'_>) {
        const TOKENS: usize = 8192;
        let case = Case { op: "append", length: MILLION / 8, page_size: Some(64), ..BASE };
        let ([q, k], dim) = (case.heads, case.head_dim);
        let cached = self.launch(&case, &[case.length], 0);
        let new = |heads| self.gpu.random(DTYPE, TOKENS * heads * dim);
        let memory = [new(q), new(q), new(k), new(k)];
        let [from, to, keys, values] = [0, 1, 2, 3].map(|i| DeviceTensor {
            address: self.gpu.address(&memory[i]),
            dtype: DTYPE,
            layout: Layout::bshd(1, TOKENS, if i < 2 { q } else { k }, dim),
        });
        let tensors = AppendTensors { q: Some(RotaryTensor { input: from, output: to }), k: keys, v: values };
        let append = Append {
            cache: cached.decode.cache,
            tokens: NewTokens::Dense,
            rotary: self.rotary(),
            keys: CachedKeys::Rotated,
            status: cached.decode.status,
        };
        let ours = || {
            // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
            unsafe { append.run(&self.gpu.kernels, &tensors, self.gpu.raw_stream()) }.expect("a launch");
        };
        let bytes = TOKENS * (q + 2 * k) * dim * DTYPE.size();
        let (input, mut output) = (self.gpu.random(DTYPE, bytes / DTYPE.size()), self.gpu.zeros(bytes));
        let mut copy = || self.gpu.stream.memcpy_dtod(&input, &mut output).expect("a copy");
        let what = gpu::Case {
            op: case.op.to_owned(),
            shape: format!("b1 s{TOKENS} h{q}/{k} d{dim} {DTYPE:?}"),
            unit: Unit::Bytes(2.0 * bytes as f64),
        };
        measurements.measure(&what, ours, Peer::Work("device copy", &mut copy));
    }

    /// That no launch was refused on the device, which would have been fast.
    fn check(&self) {
        let status = self.gpu.stream.clone_dtoh(&self.status).expect("a copy");
        assert_eq!(status, [0], "the status word of all launches");
    }
}

impl Launch<'_> {
    fn run(&self, gpu: &Gpu) {
        // SAFETY: the buffers are as large as the layouts say, and outlive the timing.
        unsafe { self.decode.run(&gpu.kernels, &self.tensors, self.workspace, gpu.raw_stream()) }
            .expect("a launch");
    }
}
