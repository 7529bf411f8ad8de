//! Backward passes with random inputs: what lies on the device, what the reference gives, and the comparison.

use cudarc::driver::CudaSlice;
use longrope::descriptor;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Attention, AttentionBackward, AttentionBackwardTensors, AttentionTensors, BAD_CHOICE, BAD_SEQUENCE,
    Packed, Sequences, Starts, Workspace,
};
use proptest::prelude::*;

use crate::attention;
use crate::attention::forward::reference_problem;
use crate::attention::oracle::{decode, random_bits};
use crate::backward::oracle::{self, Delta, Exact, Expected};
use crate::backward::rotation::Turned;
use crate::buffer::{Buffer, Gpu, format};
use crate::random::Order;

/// How sequences are packed.
#[derive(Debug, Clone)]
pub struct Packing {
    /// Rows of the tensors before the first sequence and after the last.
    pub around: (usize, usize),
    pub starts: Starts,
    /// How many queries more than the longest sequence has are said.
    pub spare: usize,
}

/// A backward pass.
#[derive(Debug, Clone)]
pub struct Problem {
    pub dtype: Dtype,
    /// Of the gradients.
    pub out_dtype: Dtype,
    pub accumulate: bool,
    pub fast: bool,
    pub delta: Delta,
    /// Queries and keys of each sequence; all alike where they are not packed.
    pub lengths: Vec<(usize, usize)>,
    pub packing: Option<Packing>,
    /// Query heads and key heads.
    pub heads: (usize, usize),
    pub head_dim: usize,
    pub attention: descriptor::Attention,
    /// What the device adds to the query offset, for each sequence.
    pub device_offsets: Option<Vec<i64>>,
    /// How queries and keys were rotated, if they were.
    pub turned: Option<Turned>,
    /// Of the queries, keys, values, what is like the queries, and numbers for each row.
    pub orders: [Order; 5],
    pub shift: usize,
    /// The largest gradient of an output.
    pub largest: f64,
    pub seed: u64,
}

/// What lies on the device, and what the host knows of it.
pub struct Memory {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub d_out: Buffer,
    pub out: Option<Buffer>,
    pub lse: Buffer,
    pub delta: Option<Buffer>,
    pub exact: Vec<Exact>,
    /// The rows of each sequence's queries and keys.
    pub query_starts: Vec<i64>,
    pub key_starts: Vec<i64>,
    pub offsets: Vec<i64>,
    pub max_query_length: usize,
}

/// What was written: bits, row-major.
#[derive(PartialEq)]
pub struct Found {
    pub gradients: [Vec<u32>; 3],
    pub status: u32,
}

const NAMES: [&str; 3] = ["dq", "dk", "dv"];
/// A bit of the caller's own in the status word, which is not to be cleared.
const OWN_BIT: u32 = 1 << 31;

impl Problem {
    fn starts_of(&self, length: impl Fn(&(usize, usize)) -> usize) -> Vec<i64> {
        let mut starts = vec![self.around().0 as i64];
        for lengths in &self.lengths {
            starts.push(starts[starts.len() - 1] + length(lengths) as i64);
        }
        starts
    }

    fn around(&self) -> (usize, usize) {
        self.packing.as_ref().map_or((0, 0), |packing| packing.around)
    }

    /// The shape of tensors with so many tokens in all.
    fn shape(&self, tokens: usize, heads: usize, dims: usize) -> [usize; 4] {
        match self.packing {
            Some(_) => [1, tokens, heads, dims],
            None => [self.lengths.len(), tokens / self.lengths.len(), heads, dims],
        }
    }

    pub fn query_shape(&self, dims: usize) -> [usize; 4] {
        let tokens = self.lengths.iter().map(|of| of.0).sum::<usize>() + self.around().0 + self.around().1;
        self.shape(tokens, self.heads.0, dims)
    }

    pub fn key_shape(&self) -> [usize; 4] {
        let tokens = self.lengths.iter().map(|of| of.1).sum::<usize>() + self.around().0 + self.around().1;
        self.shape(tokens, self.heads.1, self.head_dim)
    }

    fn new_buffer(&self, gpu: &Gpu, dtype: Dtype, order: usize, shape: [usize; 4], bits: &[u32]) -> Buffer {
        Buffer::new(gpu, dtype, self.orders[order], shape, self.shift, Some(bits))
    }

    pub fn memory(&self, gpu: &Gpu) -> Memory {
        let (query_starts, key_starts) = (self.starts_of(|of| of.0), self.starts_of(|of| of.1));
        let (query_shape, key_shape) = (self.query_shape(self.head_dim), self.key_shape());
        // What belongs to no sequence is not to be read, or not to matter.
        let random = |which: u64, shape: [usize; 4], starts: &[i64], largest| {
            let width = shape[2] * shape[3];
            let mut bits = random_bits(self.dtype, self.seed ^ which << 32, shape.iter().product(), largest);
            let count = bits.len();
            bits[..starts[0] as usize * width].fill(u32::MAX);
            bits[count.min(starts[starts.len() - 1] as usize * width)..].fill(u32::MAX);
            bits
        };
        let q = random(0, query_shape, &query_starts, 3.0);
        let k = random(1, key_shape, &key_starts, 1.0);
        let v = random(2, key_shape, &key_starts, 1.0);
        let d_out = random(3, query_shape, &query_starts, self.largest);
        let part = |bits: &[u32], starts: &[i64], i: usize, heads: usize| {
            let width = heads * self.head_dim;
            decode(self.dtype, &bits[starts[i] as usize * width..starts[i + 1] as usize * width])
        };
        let (query_heads, key_heads) = self.heads;
        let exact: Vec<Exact> = (0..self.lengths.len())
            .map(|i| {
                let (queries, keys) = self.lengths[i];
                let offset = self.device_offsets.as_ref().map_or(0, |offsets| offsets[i]);
                let one = reference_problem(
                    &self.attention,
                    [query_heads, key_heads],
                    [queries, keys],
                    self.head_dim,
                    offset,
                );
                let inputs = [
                    part(&q, &query_starts, i, query_heads),
                    part(&k, &key_starts, i, key_heads),
                    part(&v, &key_starts, i, key_heads),
                    part(&d_out, &query_starts, i, query_heads),
                ];
                let mut exact =
                    oracle::exact(&one, self.dtype, self.delta, inputs.each_ref().map(Vec::as_slice));
                if let Some(turned) = &self.turned {
                    turned.transpose(&mut exact, &one, i);
                }
                exact
            })
            .collect();
        // Of all sequences, with NaN around them.
        let all = |dtype: Dtype, width: usize, of: fn(&Exact) -> &[f64]| -> Vec<u32> {
            let values = exact.iter().flat_map(|exact| of(exact).iter().map(|&x| format(dtype).round(x)));
            let (before, after) = (self.around().0 * width, self.around().1 * width);
            let nan = |count| std::iter::repeat_n(u32::MAX, count);
            nan(before).chain(values).chain(nan(after)).collect()
        };
        let rows = self.query_shape(1);
        let lse = all(Dtype::F32, query_heads, |exact| &exact.lse);
        let lse = self.new_buffer(gpu, Dtype::F32, 4, rows, &lse);
        let (out, delta) = match self.delta {
            Delta::Given => {
                let delta = all(Dtype::F32, query_heads, |exact| &exact.delta);
                (None, Some(self.new_buffer(gpu, Dtype::F32, 4, rows, &delta)))
            }
            Delta::OfOutput(dtype) | Delta::OfKernel(dtype) => {
                let out = all(dtype, query_heads * self.head_dim, |exact| &exact.out);
                (Some(self.new_buffer(gpu, dtype, 3, query_shape, &out)), None)
            }
        };
        let memory = Memory {
            q: self.new_buffer(gpu, self.dtype, 0, query_shape, &q),
            k: self.new_buffer(gpu, self.dtype, 1, key_shape, &k),
            v: self.new_buffer(gpu, self.dtype, 2, key_shape, &v),
            d_out: self.new_buffer(gpu, self.dtype, 3, query_shape, &d_out),
            out,
            lse,
            delta,
            exact,
            query_starts,
            key_starts,
            offsets: self.device_offsets.clone().unwrap_or_default(),
            max_query_length: self.lengths.iter().map(|of| of.0).max().unwrap_or(0)
                + self.packing.as_ref().map_or(0, |packing| packing.spare),
        };
        if matches!(self.delta, Delta::OfKernel(_)) {
            self.run_forward(gpu, &memory);
        }
        memory
    }

    /// Has the forward kernel write the output and the log-sum-exp. The sequences are not packed.
    fn run_forward(&self, gpu: &Gpu, memory: &Memory) {
        assert!(self.packing.is_none());
        let offsets = (!memory.offsets.is_empty()).then(|| gpu.upload(&memory.offsets));
        let mut forward = Attention::new(self.attention);
        forward.query_offsets = offsets.as_ref().map(|memory| gpu.address(memory));
        let tensors = AttentionTensors {
            q: memory.q.tensor,
            k: memory.k.tensor,
            v: memory.v.tensor,
            out: memory.out.as_ref().expect("delta is made from the output").tensor,
            lse: Some(memory.lse.tensor),
        };
        // SAFETY: the buffers are as large as their layouts say, and live until what comes after this was read.
        unsafe { attention::oracle::launch(gpu, &forward, &tensors) };
        gpu.stream.synchronize().unwrap();
    }

    fn upload_starts(&self, gpu: &Gpu, starts: &[i64]) -> CudaSlice<u8> {
        let bytes: Vec<u8> = match self.packing.as_ref().map(|packing| packing.starts) {
            Some(Starts::I32) => starts.iter().flat_map(|&start| (start as i32).to_le_bytes()).collect(),
            _ => starts.iter().flat_map(|start| start.to_le_bytes()).collect(),
        };
        gpu.upload(&bytes)
    }

    /// What a gradient holds before the launch, if it is added to.
    fn before(&self, which: usize, shape: [usize; 4]) -> Option<Vec<u32>> {
        let largest = self.largest;
        let random =
            || random_bits(Dtype::F32, self.seed ^ (8 + which as u64) << 32, shape.iter().product(), largest);
        self.accumulate.then(random)
    }

    /// Launches, and reads what was written.
    pub fn launch(&self, gpu: &Gpu, memory: &Memory) -> Found {
        let query_starts = self.upload_starts(gpu, &memory.query_starts);
        let key_starts = self.upload_starts(gpu, &memory.key_starts);
        let offsets = (!memory.offsets.is_empty()).then(|| gpu.upload(&memory.offsets));
        let status = gpu.upload(&[OWN_BIT]);
        let shapes = [self.query_shape(self.head_dim), self.key_shape(), self.key_shape()];
        let outputs = [0, 1, 2].map(|i| {
            let before = self.before(i, shapes[i]);
            Buffer::new(gpu, self.out_dtype, self.orders[i], shapes[i], self.shift, before.as_deref())
        });
        let turned = self.turned.as_ref().map(|turned| (turned, turned.sets(), gpu.upload(&turned.numbers)));
        let backward = AttentionBackward {
            attention: self.attention,
            sequences: match &self.packing {
                None => Sequences::Dense,
                Some(packing) => Sequences::Packed(Packed {
                    count: self.lengths.len(),
                    query_starts: gpu.address(&query_starts),
                    key_starts: gpu.address(&key_starts),
                    starts: packing.starts,
                    max_query_length: memory.max_query_length,
                }),
            },
            query_offsets: offsets.as_ref().map(|memory| gpu.address(memory)),
            status: Some(gpu.address(&status)),
            accumulate: self.accumulate,
            rotary: turned.as_ref().map(|(turned, sets, numbers)| turned.rotary(sets, gpu.address(numbers))),
            fast: self.fast,
        };
        let tensor =
            |buffer: &Option<Buffer>| -> Option<DeviceTensor> { buffer.as_ref().map(|buffer| buffer.tensor) };
        let tensors = AttentionBackwardTensors {
            q: memory.q.tensor,
            k: memory.k.tensor,
            v: memory.v.tensor,
            out: tensor(&memory.out),
            lse: memory.lse.tensor,
            delta: tensor(&memory.delta),
            d_out: memory.d_out.tensor,
            dq: outputs[0].tensor,
            dk: outputs[1].tensor,
            dv: outputs[2].tensor,
        };
        // SAFETY: the buffers are as large as their layouts say, the arrays have a number for each sequence and one more, and
        // all live until they were read.
        unsafe { launch(gpu, &backward, &tensors) };
        let gradients = outputs.map(|output| output.read(gpu));
        Found { gradients, status: gpu.download(&status)[0] }
    }

    /// Checks every row: of a sequence that is `bad`, of one that is not, and of none.
    pub fn check(&self, memory: &Memory, found: &Found, bad: &[usize]) -> Result<(), TestCaseError> {
        let set_less = |i: usize| self.turned.as_ref().is_some_and(|turned| turned.is_bad(i));
        let has_rows = |i: usize| self.lengths[i] != (0, 0);
        let expected = OWN_BIT
            | if bad.is_empty() { 0 } else { BAD_SEQUENCE }
            | if (0..self.lengths.len()).any(|i| set_less(i) && has_rows(i)) { BAD_CHOICE } else { 0 };
        prop_assert_eq!(found.status, expected, "status");
        let shapes = [self.query_shape(self.head_dim), self.key_shape(), self.key_shape()];
        let good: Vec<usize> =
            (0..self.lengths.len()).filter(|&i| !bad.contains(&i) && !set_less(i)).collect();
        for which in 0..3 {
            let (name, bits) = (NAMES[which], &found.gradients[which]);
            let width = shapes[which][2] * shapes[which][3];
            let before = self.before(which, shapes[which]);
            let mut written = vec![false; bits.len()];
            let mut start = self.around().0 * width;
            for i in 0..self.lengths.len() {
                // Where the sequence lies if nothing is spoiled.
                let length = if which == 0 { self.lengths[i].0 } else { self.lengths[i].1 };
                let at = start..start + length * width;
                start = at.end;
                if !good.contains(&i) {
                    continue;
                }
                written[at.clone()].fill(true);
                let Exact { gradients, bounds, .. } = &memory.exact[i];
                let before = before.as_ref().map(|bits| decode(Dtype::F32, &bits[at.clone()]));
                let (exact, bound) = match which {
                    0 => (&gradients.dq, &bounds.dq),
                    1 => (&gradients.dk, &bounds.dk),
                    _ => (&gradients.dv, &bounds.dv),
                };
                let expected = Expected { name, exact, bound, before: before.as_deref() };
                oracle::check(&expected, self.out_dtype, &bits[at])
                    .map_err(|error| TestCaseError::fail(format!("sequence {i}, {error}")))?;
            }
            let poison = if self.out_dtype == Dtype::F32 { u32::MAX } else { 0xffff };
            for i in (0..bits.len()).filter(|&i| !written[i]) {
                let untouched = before.as_ref().map_or(poison, |before| before[i]);
                prop_assert_eq!(
                    bits[i],
                    untouched,
                    "{}[{}] belongs to no good sequence, and was written",
                    name,
                    i
                );
            }
        }
        Ok(())
    }

    /// Launches, and checks everything.
    pub fn run(&self, gpu: &Gpu) -> Result<(), TestCaseError> {
        let memory = self.memory(gpu);
        self.check(&memory, &self.launch(gpu, &memory), &[])
    }
}

/// Launches on the test's stream, with poison in the workspace, which is freed there too, after the launch.
///
/// # Safety
/// As [`AttentionBackward::run`]: the tensors' memory is valid until the kernels ended, and as large as the layouts say.
pub unsafe fn launch(gpu: &Gpu, backward: &AttentionBackward, tensors: &AttentionBackwardTensors) {
    let scratch = gpu.upload(&vec![0xffu8; backward.workspace_size(tensors).unwrap().max(1)]);
    let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
    // SAFETY: the caller's promise.
    unsafe { backward.run(&gpu.kernels, tensors, workspace, gpu.raw_stream()) }.unwrap();
}
