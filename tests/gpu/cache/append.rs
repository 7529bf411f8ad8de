//! One append into a cache with nothing in it, on random problems: every element that it writes, and every one that it must not.

use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AppendTensors, CacheRotary, CachedKeys, RotaryTensor, Split, Starts};
use longrope::scaling::SetChoice;
use proptest::prelude::*;
use proptest::sample::select;

use crate::buffer::{Buffer, Gpu};
use crate::cache::model::{
    By, Expect, Rotation, appending, check_append, empty, new_tokens, rotation, state,
};
use crate::check_cases;
use crate::decode::model::{Form, Memory, Problem, Sequence};
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[
    ("append_writes_new_tokens_within_the_rotary_bound_and_nothing_else", within_bound),
    ("append_in_parity_mode_rotates_by_the_f32_product", parity),
];

/// Where queries are, and where they go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Queries {
    None,
    InPlace,
    OutOfPlace,
}

#[derive(Debug, Clone)]
struct Case {
    /// Its orders of queries and of the output are those of queries and of rotated ones.
    problem: Problem,
    key_orders: [Order; 2],
    rotation: Rotation,
    by: By,
    numbers: Vec<i32>,
    keys: CachedKeys,
    queries: Queries,
    /// Queries, keys and values are parts of one tensor.
    one_tensor: bool,
}

/// The most sequences of a case.
const MOST: usize = 5;

fn sequences() -> impl Strategy<Value = (Form, Vec<Sequence>)> {
    let length = || {
        prop_oneof![
            1 => Just(0usize),
            2 => select(vec![1usize, 15, 16, 17, 32, 33, 64, 65]),
            4 => 1usize..330,
        ]
    };
    // One at a time, a few, or a part of a prompt.
    let fresh = || prop_oneof![2 => Just(1usize), 2 => 1usize..=16, 1 => 17usize..90];
    let lengths = move || proptest::collection::vec((length(), any::<u64>()), 1..=MOST);
    let dense = (fresh(), lengths()).prop_map(|(fresh, lengths)| {
        let one = |(length, seed): (usize, u64)| Sequence {
            length: if length == 0 { 0 } else { length.max(fresh) },
            fresh,
            seed,
        };
        (Form::Dense, lengths.into_iter().map(one).collect::<Vec<Sequence>>())
    });
    let counts = proptest::collection::vec(prop_oneof![1 => Just(0usize), 4 => fresh()], MOST);
    let starts = (select(vec![Starts::I32, Starts::I64]), [0usize..20, 0usize..20], 0usize..9);
    let packed = (counts, lengths(), starts).prop_map(|(counts, lengths, (starts, around, more))| {
        let one = |((length, seed), fresh): ((usize, u64), usize)| Sequence {
            length,
            fresh: if length == 0 { fresh } else { fresh.min(length) },
            seed,
        };
        let sequences: Vec<Sequence> = lengths.into_iter().zip(counts).map(one).collect();
        let needed = sequences.iter().map(|one| one.fresh).max().unwrap_or(0);
        (Form::Packed { starts, around, most: (needed + more).max(1) }, sequences)
    });
    prop_oneof![dense.boxed(), packed.boxed()]
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![
        1 => select(vec![By::All(SetChoice::Short), By::All(SetChoice::Long)]),
        1 => (40u64..300).prop_map(|length| By::All(SetChoice::ByLength(length))),
        2 => Just(By::Length),
        2 => Just(By::Index),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let page_size = prop_oneof![1 => Just(None), 3 => (1usize..=16).prop_map(|n| Some(16 * n))];
    let dense = || select(vec![Order::Bshd, Order::Bhsd]);
    let cache = (page_size, 0usize..3, dense(), any::<bool>(), any::<u64>());
    let head_dim = prop_oneof![1 => (1usize..=32).prop_map(|n| 8 * n), 1 => select(vec![64, 96, 128, 256])];
    let sets = head_dim.prop_flat_map(|head_dim| {
        let half = head_dim / 2;
        // The vector form takes multiples of 8.
        let pairs = prop_oneof![1 => Just(half), 1 => 1..=half, 1 => Just((half * 3 / 4 / 8 * 8).max(1))];
        (Just(head_dim), pairs.prop_flat_map(rotation))
    });
    let kinds = (
        select(vec![Dtype::Bf16, Dtype::F16]),
        select(vec![CachedKeys::Rotated, CachedKeys::Unrotated]),
        select(vec![Queries::None, Queries::InPlace, Queries::OutOfPlace]),
        any::<bool>(),
    );
    // Tensors of any strides, or such as vectors can be read from.
    let new =
        || prop_oneof![1 => [order(), order(), order(), order()], 1 => [dense(), dense(), dense(), dense()]];
    let numbers = proptest::collection::vec(0i32..2, MOST);
    (sequences(), (1usize..5, 1usize..4), sets, cache, kinds, (new(), by(), numbers)).prop_map(
        |((form, sequences), heads, (head_dim, rotation), cache, kinds, (orders, by, numbers))| {
            let (page_size, room, cache_order, wide_lengths, place) = cache;
            let (dtype, keys, queries, one_tensor) = kinds;
            let problem = Problem {
                dtype,
                out_dtype: dtype,
                heads: heads.into(),
                head_dim,
                sequences,
                form,
                page_size,
                room,
                orders: [cache_order, orders[0], orders[1], Order::Bshd],
                wide_lengths,
                scale: None,
                window: None,
                split: Split::Balanced,
                settled: place % 2 == 0,
                place,
            };
            let key_orders = [orders[2], orders[3]];
            Case { problem, key_orders, rotation, by, numbers, keys, queries, one_tensor }
        },
    )
}

/// The new tokens on the device.
struct New {
    /// Of queries, keys and values; or all of them in the first.
    inputs: Vec<Buffer>,
    q_out: Option<Buffer>,
    tensors: AppendTensors,
}

impl Case {
    fn heads(&self) -> [usize; 3] {
        [self.problem.heads[0], self.problem.heads[1], self.problem.heads[1]]
    }

    fn upload(&self, gpu: &Gpu, bits: &[Vec<u32>; 3]) -> New {
        let (problem, heads) = (&self.problem, self.heads());
        let ([batch, length], head_dim) = (problem.tokens(), problem.head_dim);
        let shape = |heads| [batch, length, heads, head_dim];
        let orders = [problem.orders[1], self.key_orders[0], self.key_orders[1]];
        let new = |order, heads, bits: Option<&[u32]>| {
            Buffer::new(gpu, problem.dtype, order, shape(heads), 0, bits)
        };
        let (inputs, parts) = if self.one_tensor {
            let widths = heads.map(|heads| heads * head_dim);
            let all: Vec<u32> = (0..batch * length)
                .flat_map(|row| {
                    (0..3).flat_map(move |i| bits[i][row * widths[i]..(row + 1) * widths[i]].iter())
                })
                .copied()
                .collect();
            let buffer = new(orders[0], heads.iter().sum(), Some(&all));
            let strides = buffer.tensor.layout.strides();
            let size = problem.dtype.size() as i64;
            let part = |i: usize| {
                let before: usize = heads[..i].iter().sum();
                let address = buffer.tensor.address.wrapping_add_signed(before as i64 * strides[2] * size);
                DeviceTensor { address, layout: Layout::strided(shape(heads[i]), strides), ..buffer.tensor }
            };
            let parts = [part(0), part(1), part(2)];
            (vec![buffer], parts)
        } else {
            let buffers: Vec<Buffer> = (0..3).map(|i| new(orders[i], heads[i], Some(&bits[i]))).collect();
            let parts = [buffers[0].tensor, buffers[1].tensor, buffers[2].tensor];
            (buffers, parts)
        };
        let q_out = (self.queries == Queries::OutOfPlace).then(|| new(problem.orders[2], heads[0], None));
        let output = q_out.as_ref().map_or(parts[0], |buffer| buffer.tensor);
        let q = (self.queries != Queries::None).then_some(RotaryTensor { input: parts[0], output });
        New { inputs, q_out, tensors: AppendTensors { q, k: parts[1], v: parts[2] } }
    }

    /// Bits of the inputs, as they lie on the device now.
    fn inputs(&self, gpu: &Gpu, new: &New) -> [Vec<u32>; 3] {
        let widths = self.heads().map(|heads| heads * self.problem.head_dim);
        if !self.one_tensor {
            return std::array::from_fn(|i| new.inputs[i].read(gpu));
        }
        let all = new.inputs[0].read(gpu);
        std::array::from_fn(|i| {
            let first: usize = widths[..i].iter().sum();
            let rows = all.chunks(widths.iter().sum());
            rows.flat_map(|row| &row[first..first + widths[i]]).copied().collect()
        })
    }

    /// Names pages that are not written to by bad ids: no one is to look at them.
    fn spoil(&self, memory: &mut Memory) {
        let Some(size) = self.problem.page_size else { return };
        for (i, sequence) in self.problem.sequences.iter().enumerate() {
            let needed =
                sequence.length.saturating_sub(sequence.fresh) / size..sequence.length.div_ceil(size);
            for page in (0..memory.width).filter(|page| sequence.fresh == 0 || !needed.contains(page)) {
                memory.table[i * memory.stride + page] = [-1, i32::MAX, i32::MIN][page % 3];
            }
        }
    }
}

fn check(gpu: &Gpu, case: &Case) -> Result<(), TestCaseError> {
    let problem = &case.problem;
    let mut memory = empty(gpu, problem);
    case.spoil(&mut memory);
    let bits = new_tokens(problem);
    let (new, numbers) = (case.upload(gpu, &bits), problem.numbers(gpu, &memory));
    let (sets, choices) = (case.rotation.sets(), gpu.upload(&case.numbers));
    let rotary = CacheRotary {
        sets: &sets,
        pairing: case.rotation.pairing,
        choices: case.by.choices(gpu.address(&choices)),
    };
    let append = appending(gpu, problem, &memory, &numbers, rotary, case.keys);
    let q = |new: &New| match (case.queries, &new.q_out) {
        (Queries::None, _) => Vec::new(),
        (_, Some(output)) => output.read(gpu),
        (_, None) => case.inputs(gpu, new)[0].clone(),
    };
    let before = state(gpu, q(&new), &memory);
    prop_assert!(before[1].iter().chain(&before[2]).all(|&bits| bits == 0xffff));
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe {
        append.validate(&gpu.kernels, &new.tensors, gpu.raw_stream()).unwrap();
        append.run(&gpu.kernels, &new.tensors, gpu.raw_stream()).unwrap();
    }
    let after = state(gpu, q(&new), &memory);
    prop_assert_eq!(gpu.download(&numbers.status)[0], 0);
    let inputs = case.inputs(gpu, &new);
    prop_assert!(case.queries == Queries::InPlace || inputs[0] == bits[0], "queries that were only read");
    prop_assert!(inputs[1..] == bits[1..], "keys and values that were only read");
    let long = |i: usize| case.by.is_long(&case.rotation, problem.sequences[i].length, case.numbers[i]);
    check_append(problem, &memory, &case.rotation, case.keys, &long, &|_, _| Expect::Written, &before, &after)
        .map_err(TestCaseError::fail)
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, case, |case| check(gpu, &case));
}

fn parity(gpu: &Gpu) {
    let parity = || {
        case().prop_map(|mut case| {
            case.rotation.parity = true;
            case
        })
    };
    check_cases(gpu, parity, |case| check(gpu, &case));
}
