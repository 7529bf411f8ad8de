//! Decoding over keys that are rotated while they are read, against the reference and beside keys that were rotated when appended.

use longrope::descriptor::Pairing;
use longrope::device::Dtype;
use longrope::ops::{CacheChoices, CacheRotary, CachedKeys, Split, Starts};
use longrope::scaling::SetChoice;
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::oracle::Exact;
use crate::buffer::{Buffer, Gpu, format};
use crate::cache::model::{
    By, Rotation, append_tensors, appending, decode_over, empty, exact_rotated, rotation, upload_new,
};
use crate::check_cases;
use crate::decode::model::{Form, Memory, Problem, Sequence};
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[
    ("keys_rotated_while_read_or_when_appended_give_what_the_reference_gives", within_bound),
    ("angles_do_not_drift_over_thirty_thousand_keys", no_drift),
];

#[derive(Debug, Clone)]
struct Case {
    problem: Problem,
    rotation: Rotation,
    by: By,
    numbers: Vec<i32>,
}

/// The most sequences of a case.
const MOST: usize = 4;

fn sequences() -> impl Strategy<Value = (Form, Vec<Sequence>)> {
    let length = || {
        prop_oneof![
            1 => Just(0usize),
            3 => select(vec![1usize, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]),
            4 => 1usize..320,
            1 => 320usize..=700,
        ]
    };
    let fresh = || prop_oneof![2 => Just(1usize), 1 => 2usize..5, 2 => 1usize..=16];
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
    let starts = (select(vec![Starts::I32, Starts::I64]), [0usize..20, 0usize..20]);
    let packed = (counts, lengths(), starts).prop_map(|(counts, lengths, (starts, around))| {
        let one = |((length, seed), fresh): ((usize, u64), usize)| Sequence {
            length,
            fresh: if length == 0 { fresh } else { fresh.min(length) },
            seed,
        };
        let sequences = lengths.into_iter().zip(counts).map(one).collect();
        (Form::Packed { starts, around, most: 16 }, sequences)
    });
    prop_oneof![dense.boxed(), packed.boxed()]
}

fn case() -> impl Strategy<Value = Case> {
    let page_size = prop_oneof![1 => Just(None), 3 => (1usize..=16).prop_map(|n| Some(16 * n))];
    let dense = || select(vec![Order::Bshd, Order::Bhsd]);
    let head_dim = prop_oneof![2 => (2usize..=32).prop_map(|n| 8 * n), 4 => select(vec![64, 96, 128, 256])];
    let sets = head_dim.prop_flat_map(|head_dim| {
        let most = head_dim / 16;
        let pairs = prop_oneof![2 => Just(8 * most), 1 => (1..=most).prop_map(|n| 8 * n)];
        (Just(head_dim), pairs.prop_flat_map(rotation))
    });
    let by = prop_oneof![
        1 => select(vec![By::All(SetChoice::Short), By::All(SetChoice::Long)]),
        2 => Just(By::Length),
        2 => Just(By::Index),
    ];
    let chosen = (by, proptest::collection::vec(0i32..2, MOST));
    let heads = (1usize..4, 1usize..5).prop_map(|(keys, group)| [keys * group, keys]);
    let cache = (page_size, 0usize..3, dense(), any::<bool>(), any::<u64>());
    let kinds = (select(vec![Dtype::Bf16, Dtype::F16]), any::<bool>(), dense(), dense(), order());
    let scale = prop_oneof![4 => Just(None), 1 => (-0.3f32..0.3).prop_map(Some)];
    let window = prop_oneof![1 => Just(None), 1 => (1u64..=400).prop_map(Some)];
    let split = prop_oneof![Just(Split::Balanced).boxed(), (1u32..40).prop_map(Split::Fixed).boxed()];
    (sequences(), heads, sets, cache, kinds, (scale, window, split), chosen).prop_map(
        |((form, sequences), heads, (head_dim, rotation), cache, kinds, rest, (by, numbers))| {
            let (page_size, room, cache_order, wide_lengths, place) = cache;
            let (dtype, wide, q_order, out_order, lse_order) = kinds;
            let (scale, window, split) = rest;
            let problem = Problem {
                dtype,
                out_dtype: if wide { Dtype::F32 } else { dtype },
                heads,
                head_dim,
                sequences,
                form,
                page_size,
                room,
                orders: [cache_order, q_order, out_order, lse_order],
                wide_lengths,
                scale,
                window,
                split,
                settled: place % 2 == 0,
                place,
            };
            Case { problem, rotation, by, numbers }
        },
    )
}

/// A memory whose cache an append of all tokens has rotated and written.
fn appended(gpu: &Gpu, problem: &Problem, rotary: CacheRotary) -> Memory {
    let whole = |one: &Sequence| Sequence { fresh: one.length, ..*one };
    let sequences: Vec<Sequence> = problem.sequences.iter().map(whole).collect();
    let most = sequences.iter().map(|one| one.fresh).max().unwrap_or(0).max(1);
    let form = Form::Packed { starts: Starts::I64, around: [0, 1], most };
    let whole = Problem { sequences, form, window: None, ..problem.clone() };
    let memory = empty(gpu, &whole);
    let numbers = whole.numbers(gpu, &memory);
    let append = appending(gpu, &whole, &memory, &numbers, rotary, CachedKeys::Rotated);
    let new = upload_new(gpu, &whole);
    // SAFETY: the buffers are as large as their layouts say, and live until the status was read.
    unsafe { append.run(&gpu.kernels, &append_tensors(&new), gpu.raw_stream()) }.unwrap();
    assert_eq!(gpu.download(&numbers.status)[0], 0);
    memory
}

/// Decodes both ways, and checks either against the same reference: so they are close to each other too.
fn check_both(
    gpu: &Gpu,
    problem: &Problem,
    exact: &[Exact],
    rotary: CacheRotary,
    q: impl Fn(Memory) -> Memory,
) -> Result<(), String> {
    let memory = q(problem.memory(gpu));
    let found = decode_over(gpu, problem, &memory, Some(rotary))?;
    if found.status != 0 {
        return Err(format!("status {}", found.status));
    }
    problem.check(exact, &found, &[]).map_err(|error| format!("rotated while read: {error}"))?;
    let Memory { k, v, table, stride, width, .. } = appended(gpu, problem, rotary);
    let memory = Memory { k, v, table, stride, width, ..memory };
    let found = decode_over(gpu, problem, &memory, None)?;
    problem.check(exact, &found, &[]).map_err(|error| format!("rotated when appended: {error}"))
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, case, |Case { problem, rotation, by, numbers }| {
        let (sets, choices) = (rotation.sets(), gpu.upload(&numbers));
        let rotary = CacheRotary {
            sets: &sets,
            pairing: rotation.pairing,
            choices: by.choices(gpu.address(&choices)),
        };
        let one = |(i, sequence): (usize, &Sequence)| {
            let [q, k, v] = problem.elements(sequence);
            let long = by.is_long(&rotation, sequence.length, numbers[i]);
            exact_rotated(&problem, sequence, &q, [&k, &v], &rotation, long)
        };
        let exact: Vec<Exact> = problem.sequences.iter().enumerate().map(one).collect();
        check_both(gpu, &problem, &exact, rotary, |memory| memory).map_err(TestCaseError::fail)
    });
}

/// A decode whose every query head is aimed at one far key, so that its log-sum-exp is that key's logit: 40, halfway down the slope
/// of its angles, where an error of an angle counts the most.
struct Aimed {
    problem: Problem,
    rotation: Rotation,
    /// Bits of the queries.
    q: Vec<u32>,
    exact: Vec<Exact>,
}

impl Aimed {
    fn new(dtype: Dtype, head_dim: usize, pairing: Pairing, page_size: Option<usize>) -> Self {
        let pairs = head_dim / 2;
        let set = |theta: f64, by: f64| {
            (0..pairs).map(|i| theta.powf(-(i as f64) / pairs as f64) / by).collect::<Vec<f64>>()
        };
        let rotation = Rotation {
            frequencies: [set(1e4, 1.0), set(1e4, 1.1), set(1e4, 1.37)],
            gains: [1.0, 1.0, f64::from(1.19f32)],
            original: 4096,
            first_tokens: 5,
            pairing,
            parity: false,
        };
        let one = |(i, length): (usize, usize)| Sequence { length, fresh: 1, seed: 900 + 2 * i as u64 };
        let problem = Problem {
            dtype,
            out_dtype: Dtype::F32,
            heads: [4, 1],
            head_dim,
            sequences: [9_003, 30_000].into_iter().enumerate().map(one).collect(),
            form: Form::Dense,
            page_size,
            room: 0,
            orders: [Order::Bshd; 4],
            wide_lengths: true,
            scale: None,
            window: None,
            split: Split::Fixed(3),
            place: 5,
            settled: false,
        };
        let (q, exact): (Vec<Vec<u32>>, Vec<Exact>) =
            problem.sequences.iter().map(|one| aim(&problem, &rotation, one)).unzip();
        Self { q: q.concat(), exact, problem, rotation }
    }
}

/// The queries of a sequence, and their exact result.
fn aim(problem: &Problem, rotation: &Rotation, sequence: &Sequence) -> (Vec<u32>, Exact) {
    const LOGIT: f64 = 40.0;
    let (dtype, head_dim, heads) = (problem.dtype, problem.head_dim, problem.heads[0]);
    let pairs = head_dim / 2;
    let [_, keys, values] = problem.elements(sequence);
    let mut q = Vec::new();
    for head in 0..heads {
        let at = sequence.length * (2 * head + 1) / (2 * heads) + 7 * head;
        let key = crate::attention::oracle::decode(dtype, &keys[at * head_dim..(at + 1) * head_dim]);
        let key = rotation.rotate(&key, at, true);
        let square: f64 = key.iter().map(|x| x * x).sum();
        let scale = LOGIT * (head_dim as f64).sqrt() / square;
        // The key, and the key turned by a quarter.
        let aimed = (0..head_dim).map(|i| match rotation.pairing {
            Pairing::HalfSplit if i < pairs => key[i] - key[i + pairs],
            Pairing::HalfSplit => key[i] + key[i - pairs],
            Pairing::Interleaved if i % 2 == 0 => key[i] - key[i + 1],
            Pairing::Interleaved => key[i] + key[i - 1],
        });
        q.extend(aimed.map(|x| format(dtype).round(scale * x)));
    }
    let exact = exact_rotated(problem, sequence, &q, [&keys, &values], rotation, true);
    // That the queries hit what they aim at.
    assert!(exact.lse.iter().all(|lse| (lse - LOGIT).abs() < 2.0), "{:?}", exact.lse);
    (q, exact)
}

fn no_drift(gpu: &Gpu) {
    let cases = [
        (Dtype::F16, 64, Pairing::HalfSplit, Some(64)),
        (Dtype::Bf16, 128, Pairing::Interleaved, Some(16)),
        (Dtype::F16, 128, Pairing::HalfSplit, None),
    ];
    // The references take some seconds each.
    let all: Vec<Aimed> = std::thread::scope(|scope| {
        let threads: Vec<_> = cases
            .into_iter()
            .map(|(dtype, head_dim, pairing, page_size)| {
                scope.spawn(move || Aimed::new(dtype, head_dim, pairing, page_size))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a reference")).collect()
    });
    for Aimed { problem, rotation, q, exact } in all {
        let shape = [problem.sequences.len(), 1, problem.heads[0], problem.head_dim];
        let sets = rotation.sets();
        let rotary = CacheRotary { sets: &sets, pairing: rotation.pairing, choices: CacheChoices::ByLength };
        let dtype = problem.dtype;
        let aim = |memory| Memory { q: Buffer::new(gpu, dtype, Order::Bshd, shape, 0, Some(&q)), ..memory };
        check_both(gpu, &problem, &exact, rotary, aim).unwrap();
    }
}
