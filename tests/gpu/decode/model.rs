//! Caches on the GPU with what belongs to no sequence poisoned, and the exact result of each sequence.

use cudarc::driver::CudaSlice;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Cache, Decode, DecodeTensors, DeviceLengths, NewTokens, PackedTokens, PageTable, Prefill, Split, Starts,
    Workspace,
};
use longrope::reference;

use crate::attention::oracle::{self, Exact, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu};
use crate::random::{Order, values};

/// A sequence of a cache. Its elements follow from the seed, whatever it is among.
#[derive(Debug, Clone, Copy)]
pub struct Sequence {
    /// Tokens, the new ones included.
    pub length: usize,
    /// New tokens.
    pub fresh: usize,
    pub seed: u64,
}

/// How new tokens lie in their tensors.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    Dense,
    /// With rows before the first sequence and after the last, and the new tokens that a sequence may have.
    Packed {
        starts: Starts,
        around: [usize; 2],
        most: usize,
    },
}

/// A decode of random sequences.
#[derive(Debug, Clone)]
pub struct Problem {
    pub dtype: Dtype,
    pub out_dtype: Dtype,
    /// Of queries and of keys.
    pub heads: [usize; 2],
    pub head_dim: usize,
    /// Dense, all have equally many new tokens.
    pub sequences: Vec<Sequence>,
    pub form: Form,
    /// `None`: contiguous.
    pub page_size: Option<usize>,
    /// Room beyond the longest sequence: pages of the table, or tokens.
    pub room: usize,
    /// Of the cache, the queries, the output and the log-sum-exp.
    pub orders: [Order; 4],
    pub wide_lengths: bool,
    pub scale: Option<f32>,
    pub window: Option<u64>,
    pub split: Split,
    /// Where pages lie follows from it.
    pub place: u64,
    /// Whether decoding may read what is settled before its turn: no kernel that writes it comes just before.
    pub settled: bool,
}

/// Tensors on the device, and what is to be told of them: tests may change the numbers.
pub struct Memory {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    /// Page ids, rows `stride` apart. Contiguous, there are none.
    pub table: Vec<i32>,
    pub stride: usize,
    pub width: usize,
    pub lengths: Vec<i64>,
    pub starts: Vec<i64>,
}

/// The numbers of a call on the device.
pub struct Numbers {
    pub table: CudaSlice<i32>,
    pub lengths: CudaSlice<u8>,
    pub starts: CudaSlice<u8>,
    pub status: CudaSlice<u32>,
}

/// Bits of what was found, row-major, and the status word.
#[derive(Debug, PartialEq)]
pub struct Found {
    pub out: Vec<u32>,
    pub lse: Vec<u32>,
    pub status: u32,
}

/// Whole numbers as the device has them, of 8 bytes or of 4.
pub fn bytes(wide: bool, numbers: &[i64]) -> Vec<u8> {
    let size = if wide { 8 } else { 4 };
    numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(size)).collect()
}

/// 0 to `count` in an order that follows from the seed.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let keys = values(seed, count);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    order
}

impl Problem {
    /// Bits of the queries, keys and values of a sequence, `[tokens, heads, head_dim]`.
    pub fn elements(&self, sequence: &Sequence) -> [Vec<u32>; 3] {
        let [query_heads, key_heads] = self.heads;
        let random = |which: u64, rows: usize, largest| {
            random_bits(self.dtype, sequence.seed ^ which << 32, rows * self.head_dim, largest)
        };
        [
            random(0, sequence.fresh * query_heads, 3.0),
            random(1, sequence.length * key_heads, 1.0),
            random(2, sequence.length * key_heads, 1.0),
        ]
    }

    /// What is asked of the reference for a sequence.
    pub fn reference(&self, sequence: &Sequence) -> reference::Problem {
        reference::Problem {
            query_heads: self.heads[0],
            key_heads: self.heads[1],
            query_length: sequence.fresh,
            key_length: sequence.length,
            head_dim: self.head_dim,
            scale: f64::from(self.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())),
            causal: true,
            window: self.window,
            query_offset: sequence.length as i64 - sequence.fresh as i64,
            key_offset: 0,
        }
    }

    /// The exact result of each sequence.
    pub fn exact(&self) -> Vec<Exact> {
        let one = |sequence: &Sequence| {
            let [q, k, v] = self.elements(sequence).map(|bits| decode(self.dtype, &bits));
            exact(&self.reference(sequence), &q, &k, &v)
        };
        self.sequences.iter().map(one).collect()
    }

    /// The rows of a sequence's new tokens in `[rows, heads, head_dim]`.
    pub fn rows(&self, sequence: usize) -> std::ops::Range<usize> {
        let before: usize = self.sequences[..sequence].iter().map(|one| one.fresh).sum();
        let first = match self.form {
            Form::Dense => before,
            Form::Packed { around, .. } => around[0] + before,
        };
        first..first + self.sequences[sequence].fresh
    }

    /// Batch and length of the tensors of new tokens.
    pub fn tokens(&self) -> [usize; 2] {
        match self.form {
            Form::Dense => [self.sequences.len(), self.sequences[0].fresh],
            Form::Packed { around, .. } => [1, self.rows(self.sequences.len() - 1).end + around[1]],
        }
    }

    /// The first token that a query of the sequence sees; its length if it has none.
    fn first_seen(&self, Sequence { length, fresh, .. }: Sequence) -> usize {
        match self.window {
            _ if fresh == 0 => length,
            // Within the machine's words, since lengths are.
            Some(window) => {
                (length + 1).saturating_sub(fresh).saturating_sub(usize::try_from(window).unwrap())
            }
            None => 0,
        }
    }

    pub fn memory(&self, gpu: &Gpu) -> Memory {
        let [query_heads, key_heads] = self.heads;
        let count = self.sequences.len();
        let longest = self.sequences.iter().map(|one| one.length).max().unwrap_or(0);
        let (page_size, width) = match self.page_size {
            Some(page_size) => (page_size, longest.div_ceil(page_size).max(1) + self.room),
            None => (longest.max(1) + self.room, 1),
        };
        // As many pages again as belong to no sequence, and a row's end that is no page of its own.
        let (pages, stride) =
            if self.page_size.is_some() { (count * width + 3, width + 2) } else { (count, 1) };
        let ids = if self.page_size.is_some() { shuffled(pages, self.place) } else { (0..pages).collect() };
        let bad = [-1, i32::MAX, pages as i32, i32::MIN];
        let mut table: Vec<i32> = (0..count * stride).map(|i| bad[i % bad.len()]).collect();
        let (row, width_of_query) = (key_heads * self.head_dim, query_heads * self.head_dim);
        let [batch, length] = self.tokens();
        let mut q = vec![u32::MAX; batch * length * width_of_query];
        let [mut k, mut v] = [(); 2].map(|()| vec![u32::MAX; pages * page_size * row]);
        for (i, sequence) in self.sequences.iter().enumerate() {
            let [new, keys, values] = self.elements(sequence);
            let rows = self.rows(i);
            q[rows.start * width_of_query..rows.end * width_of_query].copy_from_slice(&new);
            for token in self.first_seen(*sequence) / page_size * page_size..sequence.length {
                let (page, at) = (ids[i * width + token / page_size], token % page_size);
                table[i * stride + token / page_size] = page as i32;
                let to = (page * page_size + at) * row;
                let from = token * row..(token + 1) * row;
                k[to..to + row].copy_from_slice(&keys[from.clone()]);
                v[to..to + row].copy_from_slice(&values[from]);
            }
        }
        let new = |which: usize, shape, bits: &[u32]| {
            Buffer::new(gpu, self.dtype, self.orders[which], shape, 0, Some(bits))
        };
        let shape = [pages, page_size, key_heads, self.head_dim];
        let mut starts: Vec<i64> = (0..count).map(|i| self.rows(i).start as i64).collect();
        starts.push(self.rows(count - 1).end as i64);
        Memory {
            q: new(1, [batch, length, query_heads, self.head_dim], &q),
            k: new(0, shape, &k),
            v: new(0, shape, &v),
            table,
            stride,
            width,
            lengths: self.sequences.iter().map(|one| one.length as i64).collect(),
            starts,
        }
    }

    /// The output and the log-sum-exp, with nothing in them.
    pub fn outputs(&self, gpu: &Gpu) -> [Buffer; 2] {
        let [batch, length] = self.tokens();
        let new = |dtype, which: usize, size| {
            Buffer::new(gpu, dtype, self.orders[which], [batch, length, self.heads[0], size], 0, None)
        };
        [new(self.out_dtype, 2, self.head_dim), new(Dtype::F32, 3, 1)]
    }

    pub fn numbers(&self, gpu: &Gpu, memory: &Memory) -> Numbers {
        let wide_starts = matches!(self.form, Form::Packed { starts: Starts::I64, .. });
        Numbers {
            table: gpu.upload(&memory.table),
            lengths: gpu.upload(&bytes(self.wide_lengths, &memory.lengths)),
            starts: gpu.upload(&bytes(wide_starts, &memory.starts)),
            status: gpu.upload(&[0u32]),
        }
    }

    pub fn decode(&self, gpu: &Gpu, memory: &Memory, numbers: &Numbers) -> Decode<'static> {
        let lengths = gpu.address(&numbers.lengths);
        let table = PageTable {
            address: gpu.address(&numbers.table),
            sequences: self.sequences.len(),
            width: memory.width,
            stride: memory.stride as i64,
        };
        let cache = Cache {
            k: memory.k.tensor,
            v: memory.v.tensor,
            pages: self.page_size.is_some().then_some(table),
            lengths: if self.wide_lengths {
                DeviceLengths::I64(lengths)
            } else {
                DeviceLengths::I32(lengths)
            },
        };
        let tokens = match self.form {
            Form::Dense => NewTokens::Dense,
            Form::Packed { starts, most, .. } => {
                NewTokens::Packed(PackedTokens { starts: gpu.address(&numbers.starts), kind: starts, most })
            }
        };
        let (scale, window, split, settled) = (self.scale, self.window, self.split, self.settled);
        Decode {
            tokens,
            scale,
            window,
            split,
            settled,
            status: Some(gpu.address(&numbers.status)),
            ..Decode::new(cache)
        }
    }

    /// The same tokens as a prefill, which may be any number.
    pub fn prefill(&self, gpu: &Gpu, memory: &Memory, numbers: &Numbers) -> Prefill<'static> {
        let Decode { cache, tokens, rotary, scale, window, status, .. } = self.decode(gpu, memory, numbers);
        Prefill { cache, tokens, rotary, scale, window, status }
    }

    /// One call, with the numbers as the memory has them now.
    pub fn run(&self, gpu: &Gpu, memory: &Memory) -> Found {
        let numbers = self.numbers(gpu, memory);
        let decode = self.decode(gpu, memory, &numbers);
        let [out, lse] = self.outputs(gpu);
        let tensors = tensors(memory.q.tensor, &out, &lse);
        let scratch = scratch(gpu, &decode, &tensors);
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { launch(gpu, &decode, &tensors, &scratch) };
        let (out, lse) = (out.read(gpu), lse.read(gpu));
        Found { out, lse, status: gpu.download(&numbers.status)[0] }
    }

    /// Bits of the output and of the log-sum-exp of one sequence.
    pub fn part<'a>(&self, found: &'a Found, sequence: usize) -> [&'a [u32]; 2] {
        let (rows, heads) = (self.rows(sequence), self.heads[0]);
        let width = heads * self.head_dim;
        [&found.out[rows.start * width..rows.end * width], &found.lse[rows.start * heads..rows.end * heads]]
    }

    /// Checks every element: those of the sequences that are not `bad` against the bound, all others to be as they were.
    pub fn check(&self, exact: &[Exact], found: &Found, bad: &[usize]) -> Result<(), String> {
        let (heads, width) = (self.heads[0], self.heads[0] * self.head_dim);
        let mut written = vec![false; found.lse.len() / heads];
        for i in (0..self.sequences.len()).filter(|i| !bad.contains(i)) {
            written[self.rows(i)].fill(true);
            let [out, lse] = self.part(found, i);
            oracle::check(&exact[i], self.dtype, ONE_CALL, (self.out_dtype, out), Some(lse))
                .map_err(|error| format!("sequence {i}, {error}"))?;
        }
        let poison = if self.out_dtype == Dtype::F32 { u32::MAX } else { 0xffff };
        for row in (0..written.len()).filter(|&row| !written[row]) {
            let out = &found.out[row * width..(row + 1) * width];
            let lse = &found.lse[row * heads..(row + 1) * heads];
            if out.iter().any(|bits| *bits != poison) || lse.iter().any(|bits| *bits != u32::MAX) {
                return Err(format!("row {row} belongs to no good sequence, and was written"));
            }
        }
        Ok(())
    }
}

pub fn tensors(q: DeviceTensor, out: &Buffer, lse: &Buffer) -> DecodeTensors {
    DecodeTensors { q, out: out.tensor, lse: Some(lse.tensor) }
}

/// A workspace, with poison in it.
pub fn scratch(gpu: &Gpu, decode: &Decode, tensors: &DecodeTensors) -> CudaSlice<u8> {
    gpu.upload(&vec![0xffu8; decode.workspace_size(tensors).unwrap().max(1)])
}

/// Launches on the test's stream.
///
/// # Safety
/// As [`Decode::run`]: the memory is valid until the kernels ended, and as large as the layouts say.
pub unsafe fn launch(gpu: &Gpu, decode: &Decode, tensors: &DecodeTensors, scratch: &CudaSlice<u8>) {
    let workspace = Workspace { address: gpu.address(scratch), bytes: scratch.len() };
    // SAFETY: the caller's promise.
    unsafe { decode.run(&gpu.kernels, tensors, workspace, gpu.raw_stream()) }.unwrap();
}
