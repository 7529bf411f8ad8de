//! Packed sequences: any lengths, starts of both types, offsets on the device, and entries that can't be right.

use longrope::descriptor;
use longrope::device::Dtype;
use longrope::ops::{Attention, AttentionTensors, BAD_SEQUENCE, Packed, Sequences, Starts};
use proptest::prelude::*;
use proptest::sample::select;

use cudarc::driver::CudaSlice;

use crate::attention::forward::{dtype, head_dim, heads, places, reference_problem};
use crate::attention::oracle::{self, Exact, ONE_CALL, decode, exact, random_bits};
use crate::buffer::{Buffer, Gpu};
use crate::check_cases;
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("each_packed_sequence_is_within_its_bound_of_the_reference", within_bound),
    ("a_bad_packed_sequence_is_reported_and_its_rows_left_alone", bad_sequences),
    ("a_packed_sequence_longer_than_was_said_is_bad", too_long),
    ("no_sequence_and_no_query_are_nothing_to_do", nothing),
];

#[derive(Debug, Clone)]
struct Problem {
    dtype: Dtype,
    out_dtype: Dtype,
    /// Queries and keys of each sequence.
    lengths: Vec<(usize, usize)>,
    /// Rows of the tensors before the first sequence and after the last.
    around: (usize, usize),
    heads: (usize, usize),
    head_dim: usize,
    attention: descriptor::Attention,
    /// What the device adds to the query offset: `None` nothing, else a number beside what aligns the last query with the
    /// last key.
    beside: Option<i64>,
    starts: Starts,
    /// How many queries more than the longest sequence has are said.
    spare: usize,
    orders: [Order; 5],
    shift: usize,
    seed: u64,
}

fn problem() -> impl Strategy<Value = Problem> {
    let length =
        || prop_oneof![1 => Just(0usize), 2 => 1usize..30, 2 => 30usize..200, 1 => select(vec![64, 128])];
    let lengths = proptest::collection::vec((length(), length()), 1..7);
    let window = prop_oneof![2 => Just(None), 1 => (1u64..150).prop_map(Some)];
    let attention = (any::<bool>(), window, -100i64..100, -100i64..100).prop_map(
        |(causal, window, query_offset, key_offset)| descriptor::Attention {
            scale: None,
            causal,
            window,
            query_offset,
            key_offset,
        },
    );
    let beside = prop_oneof![1 => Just(None), 3 => (-20i64..20).prop_map(Some)];
    let form = (dtype(), any::<bool>(), lengths, (0usize..70, 0usize..70), heads(), head_dim());
    let starts = (select(vec![Starts::I32, Starts::I64]), select(vec![0usize, 1, 200, 1 << 40]));
    (form, attention, beside, starts, places(), any::<u64>()).prop_map(
        |(form, attention, beside, (starts, spare), (orders, shift), seed)| {
            let (dtype, wide, lengths, around, heads, head_dim) = form;
            let out_dtype = if wide { Dtype::F32 } else { dtype };
            Problem {
                dtype,
                out_dtype,
                lengths,
                around,
                heads,
                head_dim,
                attention,
                beside,
                starts,
                spare,
                orders,
                shift,
                seed,
            }
        },
    )
}

/// What lies on the device, and what the host knows of it.
struct Memory {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    exact: Vec<Exact>,
    /// The rows of each sequence's queries.
    rows: Vec<std::ops::Range<usize>>,
    query_starts: Vec<i64>,
    key_starts: Vec<i64>,
    offsets: Vec<i64>,
    max_query_length: usize,
    query_shape: [usize; 4],
}

impl Memory {
    fn starts(&mut self, keys: bool) -> &mut [i64] {
        if keys { &mut self.key_starts } else { &mut self.query_starts }
    }
}

impl Problem {
    fn starts_of(&self, length: impl Fn(&(usize, usize)) -> usize) -> Vec<i64> {
        let mut starts = vec![self.around.0 as i64];
        for lengths in &self.lengths {
            starts.push(starts[starts.len() - 1] + length(lengths) as i64);
        }
        starts
    }

    /// What the device adds to the query offset of each sequence.
    fn offsets(&self) -> Vec<i64> {
        let aligned = |&(queries, keys): &(usize, usize)| {
            self.attention.key_offset + keys as i64 - queries as i64 - self.attention.query_offset
        };
        self.lengths.iter().map(|lengths| self.beside.map_or(0, |beside| aligned(lengths) + beside)).collect()
    }

    fn memory(&self, gpu: &Gpu) -> Memory {
        let (query_starts, key_starts) = (self.starts_of(|of| of.0), self.starts_of(|of| of.1));
        let total = |starts: &[i64]| starts[starts.len() - 1] as usize + self.around.1;
        let (query_heads, key_heads) = self.heads;
        let query_shape = [1, total(&query_starts), query_heads, self.head_dim];
        let key_shape = [1, total(&key_starts), key_heads, self.head_dim];
        let random = |which: u64, shape: [usize; 4], largest| {
            random_bits(self.dtype, self.seed ^ which << 32, shape.iter().product(), largest)
        };
        let q = random(0, query_shape, 3.0);
        let mut k = random(1, key_shape, 1.0);
        let mut v = random(2, key_shape, 1.0);
        // What belongs to no sequence is not to be read, or not to matter.
        let width = key_heads * self.head_dim;
        let (first, end) = (self.around.0 * width, (key_shape[1] - self.around.1) * width);
        for x in [&mut k, &mut v] {
            x[..first].fill(u32::MAX);
            x[end..].fill(u32::MAX);
        }
        let offsets = self.offsets();
        let range = |starts: &[i64], i: usize, width: usize| {
            starts[i] as usize * width..starts[i + 1] as usize * width
        };
        let exact = (0..self.lengths.len())
            .map(|i| {
                let (queries, keys) = self.lengths[i];
                let one = reference_problem(
                    &self.attention,
                    [query_heads, key_heads],
                    [queries, keys],
                    self.head_dim,
                    offsets[i],
                );
                let q = &q[range(&query_starts, i, query_heads * self.head_dim)];
                let keys = range(&key_starts, i, width);
                let part = |bits: &[u32]| decode(self.dtype, bits);
                exact(&one, &part(q), &part(&k[keys.clone()]), &part(&v[keys]))
            })
            .collect();
        let new = |which: usize, shape, bits: &[u32]| {
            Buffer::new(gpu, self.dtype, self.orders[which], shape, self.shift, Some(bits))
        };
        Memory {
            q: new(0, query_shape, &q),
            k: new(1, key_shape, &k),
            v: new(2, key_shape, &v),
            exact,
            rows: (0..self.lengths.len()).map(|i| range(&query_starts, i, 1)).collect(),
            query_starts,
            key_starts,
            offsets,
            max_query_length: self.lengths.iter().map(|of| of.0).max().unwrap_or(0) + self.spare,
            query_shape,
        }
    }

    fn upload_starts(&self, gpu: &Gpu, starts: &[i64]) -> CudaSlice<u8> {
        let bytes: Vec<u8> = match self.starts {
            Starts::I64 => starts.iter().flat_map(|start| start.to_le_bytes()).collect(),
            Starts::I32 => starts.iter().flat_map(|&start| (start as i32).to_le_bytes()).collect(),
        };
        gpu.upload(&bytes)
    }

    /// Launches, and checks every row: of a sequence that is `bad`, of one that is not, and of none.
    fn run(&self, gpu: &Gpu, memory: &Memory, bad: &[usize], with_status: bool) -> Result<(), TestCaseError> {
        let query_starts = self.upload_starts(gpu, &memory.query_starts);
        let key_starts = self.upload_starts(gpu, &memory.key_starts);
        let offsets = gpu.upload(&memory.offsets);
        // A bit of the caller's own, which is not to be cleared.
        let status = gpu.upload(&[1u32 << 31]);
        let [_, length, query_heads, _] = memory.query_shape;
        let new =
            |dtype, which: usize, shape| Buffer::new(gpu, dtype, self.orders[which], shape, self.shift, None);
        let out = new(self.out_dtype, 3, memory.query_shape);
        let lse = new(Dtype::F32, 4, [1, length, query_heads, 1]);
        let attention = Attention {
            sequences: Sequences::Packed(Packed {
                count: self.lengths.len(),
                query_starts: gpu.address(&query_starts),
                key_starts: gpu.address(&key_starts),
                starts: self.starts,
                max_query_length: memory.max_query_length,
            }),
            query_offsets: memory.offsets.iter().any(|x| *x != 0).then(|| gpu.address(&offsets)),
            status: with_status.then(|| gpu.address(&status)),
            ..Attention::new(self.attention)
        };
        let tensors = AttentionTensors {
            q: memory.q.tensor,
            k: memory.k.tensor,
            v: memory.v.tensor,
            out: out.tensor,
            lse: Some(lse.tensor),
        };
        // SAFETY: the buffers are as large as their layouts say, the arrays have a number for each sequence and one more, and
        // all live until they were read.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        let (out, lse) = (out.read(gpu), lse.read(gpu));
        let expected = 1 << 31 | if bad.is_empty() || !with_status { 0 } else { BAD_SEQUENCE };
        prop_assert_eq!(gpu.download(&status)[0], expected, "status");

        let width = query_heads * self.head_dim;
        let poison = if self.out_dtype == Dtype::F32 { u32::MAX } else { 0xffff };
        let mut written = vec![false; length];
        for (i, rows) in memory.rows.iter().enumerate().filter(|(i, _)| !bad.contains(i)) {
            written[rows.clone()].fill(true);
            let out = &out[rows.start * width..rows.end * width];
            let lse = &lse[rows.start * query_heads..rows.end * query_heads];
            oracle::check(&memory.exact[i], self.dtype, ONE_CALL, (self.out_dtype, out), Some(lse))
                .map_err(|error| TestCaseError::fail(format!("sequence {i}, {error}")))?;
        }
        for row in (0..length).filter(|&row| !written[row]) {
            let out = &out[row * width..(row + 1) * width];
            let lse = &lse[row * query_heads..(row + 1) * query_heads];
            let untouched = out.iter().all(|x| *x == poison) && lse.iter().all(|x| *x == u32::MAX);
            prop_assert!(untouched, "row {} belongs to no good sequence, and was written", row);
        }
        Ok(())
    }
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, problem, |problem| problem.run(gpu, &problem.memory(gpu), &[], true));
}

/// What is made wrong of good arrays.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The first start of the queries or of the keys.
    First {
        keys: bool,
        value: i64,
    },
    /// The last one, by a number that is added to what is right, to that before it, or to the end of the tensor.
    Last {
        keys: bool,
        value: i64,
    },
    LastBeforeStart {
        keys: bool,
    },
    LastPastTensor {
        keys: bool,
    },
    /// The position of a sequence, of those there are.
    Offset {
        which: usize,
        value: i64,
    },
}

fn fault() -> impl Strategy<Value = Fault> {
    let far = |sign: i64| select(vec![1i64 << 31, 1 << 40, i64::MAX - 1]).prop_map(move |x| sign * x);
    let beyond = select(vec![(1i64 << 62) + 400, i64::MAX, -(1 << 62) - 400, i64::MIN]);
    prop_oneof![
        (any::<bool>(), -3i64..0).prop_map(|(keys, value)| Fault::First { keys, value }),
        (any::<bool>(), far(-1)).prop_map(|(keys, value)| Fault::First { keys, value }),
        (any::<bool>(), far(1)).prop_map(|(keys, value)| Fault::First { keys, value }),
        (any::<bool>(), far(1)).prop_map(|(keys, value)| Fault::Last { keys, value }),
        (any::<bool>(), far(-1)).prop_map(|(keys, value)| Fault::Last { keys, value }),
        any::<bool>().prop_map(|keys| Fault::LastBeforeStart { keys }),
        any::<bool>().prop_map(|keys| Fault::LastPastTensor { keys }),
        (any::<usize>(), beyond).prop_map(|(which, value)| Fault::Offset { which, value }),
    ]
}

/// Changes the arrays, and tells which sequence is bad by it.
fn spoil(problem: &Problem, memory: &mut Memory, fault: Fault) -> usize {
    let last = problem.lengths.len();
    let key_length = memory.k.tensor.layout.length() as i64;
    let query_length = memory.query_shape[1] as i64;
    let narrow = |value: i64| match problem.starts {
        Starts::I64 => value,
        Starts::I32 => value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
    };
    match fault {
        Fault::First { keys, value } => {
            memory.starts(keys)[0] = narrow(value);
            0
        }
        Fault::Last { keys, value } => {
            memory.starts(keys)[last] = narrow(value);
            last - 1
        }
        Fault::LastBeforeStart { keys } => {
            let starts = memory.starts(keys);
            starts[last] = starts[last - 1] - 1;
            last - 1
        }
        Fault::LastPastTensor { keys } => {
            memory.starts(keys)[last] = if keys { key_length } else { query_length } + 1;
            last - 1
        }
        Fault::Offset { which, value } => {
            memory.offsets[which % last] = value;
            which % last
        }
    }
}

fn bad_sequences(gpu: &Gpu) {
    let run = |(problem, fault): (Problem, Fault)| {
        let mut memory = problem.memory(gpu);
        let bad = spoil(&problem, &mut memory, fault);
        problem.run(gpu, &memory, &[bad], true)?;
        problem.run(gpu, &memory, &[bad], false)
    };
    // A launch for no query at all looks at nothing.
    let some_query = |problem: &Problem| problem.lengths.iter().any(|of| of.0 > 0);
    check_cases(gpu, || (problem().prop_filter("no query", some_query), fault()), run);
}

fn too_long(gpu: &Gpu) {
    let run = |(mut problem, said, more): (Problem, usize, usize)| {
        problem.lengths.iter_mut().for_each(|of| of.0 = of.0.min(said));
        let which = more % problem.lengths.len();
        // One more than was said; or many more.
        problem.lengths[which].0 = said + if more.is_multiple_of(2) { 1 } else { more };
        let mut memory = problem.memory(gpu);
        memory.max_query_length = said;
        problem.run(gpu, &memory, &[which], true)?;
        problem.run(gpu, &memory, &[which], false)
    };
    check_cases(gpu, || (problem(), 1usize..200, 1usize..200), run);
}

fn nothing(gpu: &Gpu) {
    let bits = random_bits(Dtype::Bf16, 1, 9 * 2 * 64, 1.0);
    let shape = [1, 9, 2, 64];
    let input = Buffer::new(gpu, Dtype::Bf16, Order::Bshd, shape, 0, Some(&bits));
    let out = Buffer::new(gpu, Dtype::Bf16, Order::Bshd, shape, 0, None);
    let starts = gpu.upload(&[0i32, 9]);
    for (count, max_query_length) in [(0, 9), (1, 0)] {
        let packed = Packed {
            count,
            query_starts: gpu.address(&starts),
            key_starts: gpu.address(&starts),
            starts: Starts::I32,
            max_query_length,
        };
        let mut attention = Attention::new(descriptor::Attention::causal());
        attention.sequences = Sequences::Packed(packed);
        let (q, out_tensor) = (input.tensor, out.tensor);
        let tensors = AttentionTensors { q, k: q, v: q, out: out_tensor, lse: None };
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { oracle::launch(gpu, &attention, &tensors) };
        assert!(out.is_untouched(gpu));
    }
}
