//! Attention of any number of new tokens over a cache: against the reference, where keys are divided among blocks and where they are
//! not, and its contract.

use longrope::device::{Context, Dtype};
use longrope::ops::{BAD_LENGTH, BAD_SEQUENCE, CacheChoices, CacheRotary, Prefill, Split, Starts, Workspace};
use longrope::scaling::SetChoice;
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::oracle::{self, Exact, ONE_CALL};
use crate::buffer::Gpu;
use crate::cache::contract::{self, CHOICES};
use crate::cache::entries::{Bad, Entry, bad_entries, bad_page, bad_starts, set};
use crate::cache::model::{By, Rotation, exact_rotated, rotation};
use crate::check_cases;
use crate::decode::model::{Form, Found, Memory, Problem, Sequence, tensors};
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[
    ("prefill_is_within_its_bound_of_the_reference", within_bound),
    ("prefill_over_keys_rotated_while_read_is_within_its_bound", rotating),
    ("prefill_of_few_queries_divides_the_keys_of_a_long_cache", few_queries),
    ("prefill_of_sequences_much_shorter_than_their_room_has_empty_parts", short_sequences),
    ("prefill_reports_bad_entries_and_leaves_their_rows_alone", entries),
    ("prefill_gives_the_same_bits_for_the_same_inputs", same_bits),
];

/// What one call did.
pub struct Ran {
    found: Found,
    /// What `validate` said.
    said: Result<(), String>,
    /// Bytes of the workspace.
    workspace: usize,
}

/// One call of a context's kernel, with the numbers as the memory has them now.
pub fn run(
    gpu: &Gpu,
    kernels: &Context,
    problem: &Problem,
    memory: &Memory,
    rotary: Option<CacheRotary>,
    has_status: bool,
) -> Ran {
    const GUARD: usize = 256;
    let numbers = problem.numbers(gpu, memory);
    let prefill = problem.prefill(gpu, memory, &numbers);
    let prefill = Prefill { rotary, status: prefill.status.filter(|_| has_status), ..prefill };
    let [out, lse] = problem.outputs(gpu);
    let tensors = tensors(memory.q.tensor, &out, &lse);
    let bytes = prefill.workspace_size(&tensors).unwrap();
    let scratch = gpu.upload(&vec![0xffu8; bytes + GUARD]);
    let workspace = Workspace { address: gpu.address(&scratch), bytes };
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    let said = unsafe {
        prefill.run(kernels, &tensors, workspace, gpu.raw_stream()).unwrap();
        prefill.validate(kernels, &tensors, gpu.raw_stream()).map_err(|error| error.to_string())
    };
    assert!(gpu.download(&scratch)[bytes..].iter().all(|byte| *byte == 0xff), "beyond the workspace");
    let (out, lse) = (out.read(gpu), lse.read(gpu));
    Ran { found: Found { out, lse, status: gpu.download(&numbers.status)[0] }, said, workspace: bytes }
}

/// That a call on good numbers gave what is exact.
pub fn check(problem: &Problem, exact: &[Exact], ran: &Ran) -> Result<(), String> {
    if ran.found.status != 0 {
        return Err(format!("status {}", ran.found.status));
    }
    ran.said.clone()?;
    problem.check(exact, &ran.found, &[])
}

/// The most sequences of a case.
const MOST: usize = 4;

/// New tokens and lengths: many queries, or few on more keys. The ends of tiles of keys and of queries come often.
fn sequences(longest: usize) -> impl Strategy<Value = (Form, Vec<Sequence>)> {
    let edge = || select(vec![1usize, 15, 16, 17, 63, 64, 65, 111, 112, 113, 127, 128, 129, 191, 193, 225]);
    let count = move |is_wide: bool| match is_wide {
        true => prop_oneof![2 => edge(), 2 => 1usize..=140, 1 => 140usize..=300].boxed(),
        false => prop_oneof![1 => Just(1usize), 3 => 1usize..=16, 1 => 17usize..=40].boxed(),
    };
    let length = move |is_wide: bool| match is_wide {
        true => prop_oneof![1 => Just(0usize), 3 => edge(), 4 => 1usize..=360].boxed(),
        false => prop_oneof![1 => Just(0usize), 2 => edge(), 2 => 1usize..400, 3 => 400..=longest].boxed(),
    };
    any::<bool>().prop_flat_map(move |is_wide| {
        let lengths = proptest::collection::vec((length(is_wide), any::<u64>()), 1..=MOST);
        let counts = proptest::collection::vec(prop_oneof![1 => Just(0usize), 5 => count(is_wide)], MOST);
        // How many more new tokens than any sequence has are said.
        let spare = select(vec![0usize, 1, 7, 150, 1 << 40]);
        let starts = (select(vec![Starts::I32, Starts::I64]), [0usize..20, 0usize..150], spare);
        (lengths, count(is_wide), counts, starts, any::<bool>()).prop_map(
            |(lengths, fresh, counts, (starts, around, spare), is_packed)| {
                let one = |((length, seed), count): ((usize, u64), usize)| match (is_packed, length) {
                    (true, 0) => Sequence { length, fresh: count, seed },
                    (true, _) => Sequence { length, fresh: count.min(length), seed },
                    (false, 0) => Sequence { length, fresh, seed },
                    (false, _) => Sequence { length: length.max(fresh), fresh, seed },
                };
                let sequences: Vec<Sequence> = lengths.into_iter().zip(counts).map(one).collect();
                let needed = sequences.iter().map(|one| one.fresh).max().unwrap_or(0);
                let packed = Form::Packed { starts, around, most: (needed + spare).max(1) };
                (if is_packed { packed } else { Form::Dense }, sequences)
            },
        )
    })
}

fn problem(longest: usize, head_dim: impl Strategy<Value = usize>) -> impl Strategy<Value = Problem> {
    let heads = prop_oneof![
        5 => (1usize..4, 1usize..4).prop_map(|(keys, group)| [keys * group, keys]),
        1 => Just([8, 2]),
        1 => Just([7, 1]),
    ];
    let page_size = prop_oneof![1 => Just(None), 3 => (1usize..=16).prop_map(|n| Some(16 * n))];
    let dense = || select(vec![Order::Bshd, Order::Bhsd]);
    let cache = (page_size, 0usize..3, dense(), any::<bool>(), any::<u64>());
    let kinds = (select(vec![Dtype::Bf16, Dtype::F16]), any::<bool>(), dense(), dense(), order());
    let scale = prop_oneof![3 => Just(None), 1 => (-0.3f32..0.3).prop_map(Some), 1 => Just(Some(0.0f32))];
    let window = prop_oneof![
        3 => Just(None),
        3 => (1u64..=500).prop_map(Some),
        1 => select(vec![1u64, 16, 64, 112, 1 << 40]).prop_map(Some),
    ];
    (sequences(longest), heads, head_dim, cache, kinds, scale, window).prop_map(
        |((form, sequences), heads, head_dim, cache, kinds, scale, window)| {
            let (page_size, room, cache_order, wide_lengths, place) = cache;
            let (dtype, wide, q_order, out_order, lse_order) = kinds;
            Problem {
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
                split: Split::Balanced,
                settled: place % 2 == 0,
                place,
            }
        },
    )
}

/// Multiples of 8, and more often those that have a kernel of their own size.
fn head_dim(least: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1 => (least..=32).prop_map(|n| 8 * n), 2 => select(vec![64, 96, 128, 256])]
}

fn within_bound(gpu: &Gpu) {
    let case = || problem(1500, head_dim(1));
    check_cases(gpu, case, |problem| {
        let (memory, exact) = (problem.memory(gpu), problem.exact());
        for kernels in gpu.contexts() {
            let ran = run(gpu, kernels, &problem, &memory, None, true);
            check(&problem, &exact, &ran).map_err(TestCaseError::fail)?;
        }
        let most = match problem.form {
            Form::Dense => problem.sequences[0].fresh,
            Form::Packed { most, .. } => most,
        };
        if most > 16 {
            return Ok(());
        }
        let found = problem.run(gpu, &memory);
        prop_assert_eq!(found.status, 0);
        let by_decode = problem.check(&exact, &found, &[]);
        by_decode.map_err(|error| TestCaseError::fail(format!("the same by Decode: {error}")))
    });
}

/// The exact result of each sequence over keys that are rotated while they are read.
fn all_rotated(problem: &Problem, rotation: &Rotation, long: impl Fn(usize) -> bool) -> Vec<Exact> {
    let one = |(i, sequence): (usize, &Sequence)| {
        let [q, k, v] = problem.elements(sequence);
        exact_rotated(problem, sequence, &q, [&k, &v], rotation, long(i))
    };
    problem.sequences.iter().enumerate().map(one).collect()
}

fn rotating(gpu: &Gpu) {
    let case = || {
        let sets = head_dim(2).prop_flat_map(|head_dim| {
            let most = head_dim / 16;
            let pairs = prop_oneof![2 => Just(8 * most), 1 => (1..=most).prop_map(|n| 8 * n)];
            (Just(head_dim), pairs.prop_flat_map(rotation))
        });
        let by = prop_oneof![
            1 => select(vec![By::All(SetChoice::Short), By::All(SetChoice::Long)]),
            2 => Just(By::Length),
            2 => Just(By::Index),
        ];
        let problem =
            sets.prop_flat_map(|(head_dim, rotation)| (problem(700, Just(head_dim)), Just(rotation)));
        (problem, by, proptest::collection::vec(0i32..2, MOST))
    };
    check_cases(gpu, case, |((problem, rotation), by, numbers)| {
        let (sets, pairing, chosen) = (rotation.sets(), rotation.pairing, gpu.upload(&numbers));
        let choices = by.choices(gpu.address(&chosen));
        let rotary = CacheRotary { sets: &sets, pairing, choices };
        let long = |i: usize| by.is_long(&rotation, problem.sequences[i].length, numbers[i]);
        let exact = all_rotated(&problem, &rotation, long);
        let ran = run(gpu, &gpu.kernels, &problem, &problem.memory(gpu), Some(rotary), true);
        check(&problem, &exact, &ran).map_err(TestCaseError::fail)
    });
}

/// Sequences of these lengths and new tokens, dense if they have equally many.
fn fixed(sequences: &[(usize, usize)], head_dim: usize, page_size: Option<usize>, room: usize) -> Problem {
    let one = |(i, &(length, fresh)): (usize, &(usize, usize))| Sequence {
        length,
        fresh,
        seed: 300 + 2 * i as u64,
    };
    let (fresh, most) = (sequences[0].1, sequences.iter().map(|one| one.1).max().expect("a sequence"));
    Problem {
        dtype: Dtype::Bf16,
        out_dtype: Dtype::Bf16,
        heads: [1, 1],
        head_dim,
        sequences: sequences.iter().enumerate().map(one).collect(),
        form: match sequences.iter().all(|one| one.1 == fresh) {
            true => Form::Dense,
            false => Form::Packed { starts: Starts::I32, around: [3, 5], most },
        },
        page_size,
        room,
        orders: [Order::Bshd; 4],
        wide_lengths: false,
        scale: None,
        window: None,
        split: Split::Balanced,
        place: 13,
        settled: false,
    }
}

/// All parts that there may be, of a cache of 50,000 keys with room for more.
fn few_queries(gpu: &Gpu) {
    const PARTS: usize = 32;
    for (dtype, out_dtype, head_dim, page_size, scale, window) in [
        (Dtype::Bf16, Dtype::Bf16, 64, Some(16), None, None),
        (Dtype::F16, Dtype::F32, 96, Some(48), Some(-0.1), None),
        (Dtype::Bf16, Dtype::F32, 128, None, None, Some(30_001)),
        (Dtype::F16, Dtype::F16, 256, Some(256), None, None),
    ] {
        let room = page_size.map_or(10_000, |size| 10_000usize.div_ceil(size));
        let problem = fixed(&[(50_000, 20)], head_dim, page_size, room);
        let problem = Problem { dtype, out_dtype, scale, window, ..problem };
        let (memory, exact) = (problem.memory(gpu), problem.exact());
        for kernels in gpu.contexts() {
            let ran = run(gpu, kernels, &problem, &memory, None, true);
            assert!(ran.workspace >= PARTS * 20 * (head_dim + 1) * 4);
            check(&problem, &exact, &ran).unwrap();
        }
    }
    let (problem, rotation) = (fixed(&[(50_000, 20)], 64, Some(32), 313), contract::rotation());
    let (sets, pairing) = (rotation.sets(), rotation.pairing);
    let rotary = CacheRotary { sets: &sets, pairing, choices: CacheChoices::ByLength };
    let ran = run(gpu, &gpu.kernels, &problem, &problem.memory(gpu), Some(rotary), true);
    assert_eq!(ran.workspace, PARTS * 20 * 65 * 4);
    check(&problem, &all_rotated(&problem, &rotation, |_| true), &ran).unwrap();
}

/// Fewer tiles of keys than parts, down to none.
fn short_sequences(gpu: &Gpu) {
    // Of 130 new tokens there are two blocks of queries of a head; of 7 sequences of two heads, 28: 9 parts make up to 256.
    let packed = (&[(0, 1), (1, 1), (17, 9), (130, 130), (700, 0), (333, 2), (0, 0)][..], 9);
    let dense = (&[(0, 7), (7, 7), (113, 7), (600, 7)][..], 32);
    for ((sequences, parts), head_dim, page_size, window) in [
        (packed, 64, Some(64), None),
        (packed, 128, None, Some(40)),
        (dense, 256, Some(16), Some(100)),
        (dense, 64, None, None),
    ] {
        let room = page_size.map_or(16_000, |size| 16_000 / size);
        let problem = Problem { heads: [2, 1], window, ..fixed(sequences, head_dim, page_size, room) };
        let (memory, exact) = (problem.memory(gpu), problem.exact());
        for kernels in gpu.contexts() {
            let ran = run(gpu, kernels, &problem, &memory, None, true);
            let rows = 2 * problem.tokens().iter().product::<usize>();
            assert!(ran.workspace >= parts * rows * (head_dim + 1) * 4);
            check(&problem, &exact, &ran).unwrap();
        }
    }
}

/// Checks all sequences but some bad ones, of which only rows that do not see what is bad may have been written, and then rightly.
/// `sees`: by the sequence and the query.
fn check_bad(
    problem: &Problem,
    exact: &[Exact],
    found: &Found,
    bad: &[usize],
    sees: impl Fn(usize, usize) -> bool,
) -> Result<(), String> {
    let (heads, width) = (problem.heads[0], problem.heads[0] * problem.head_dim);
    let mut others = Found { out: found.out.clone(), lse: found.lse.clone(), status: 0 };
    for &i in bad {
        for (query, row) in problem.rows(i).enumerate() {
            let (wide, narrow) = (row * width..(row + 1) * width, row * heads..(row + 1) * heads);
            let (out, lse) = (&found.out[wide.clone()], &found.lse[narrow.clone()]);
            others.out[wide].fill(0xffff);
            others.lse[narrow].fill(u32::MAX);
            if out.iter().all(|bits| *bits == 0xffff) && lse.iter().all(|bits| *bits == u32::MAX) {
                continue;
            }
            if sees(i, query) {
                return Err(format!("query {query} of the bad sequence {i} was written"));
            }
            let part = |x: &[f64], size: usize| x[query * size..(query + 1) * size].to_vec();
            let one = Exact {
                out: part(&exact[i].out, width),
                size: part(&exact[i].size, width),
                lse: part(&exact[i].lse, heads),
                logit: part(&exact[i].logit, heads),
                key_length: exact[i].key_length,
            };
            oracle::check(&one, problem.dtype, ONE_CALL, (problem.out_dtype, out), Some(lse))
                .map_err(|error| format!("query {query} of sequence {i}, {error}"))?;
        }
    }
    problem.check(exact, &others, bad)
}

/// Two blocks of queries of each head of each sequence.
const FRESH: usize = 140;
const LENGTHS: [usize; 4] = [300, 480, 150, 420];

/// With more room, keys are divided.
fn bad_problem(is_packed: bool, is_divided: bool) -> Problem {
    let problem =
        fixed(&LENGTHS.map(|length| (length, FRESH)), 64, Some(16), if is_divided { 100 } else { 1 });
    let packed = Form::Packed { starts: Starts::I32, around: [4, 3], most: FRESH };
    Problem { heads: [2, 1], form: if is_packed { packed } else { Form::Dense }, ..problem }
}

fn entries(gpu: &Gpu) {
    let rotation = contract::rotation();
    let sets = rotation.sets();
    for (is_packed, is_divided, rotates) in
        [(true, true, true), (false, false, true), (false, true, false), (true, false, false)]
    {
        let problem = bad_problem(is_packed, is_divided);
        let exact = match rotates {
            true => all_rotated(&problem, &rotation, |i| CHOICES[i] == 1),
            false => problem.exact(),
        };
        let (mut memory, mut choices) = (problem.memory(gpu), CHOICES);
        let call = |kernels: &Context, memory: &Memory, choices: [i32; 4], has_status: bool| {
            let chosen = gpu.upload(&choices);
            let by = CacheChoices::ByIndex(gpu.address(&chosen));
            let rotary = CacheRotary { sets: &sets, pairing: rotation.pairing, choices: by };
            run(gpu, kernels, &problem, memory, rotates.then_some(rotary), has_status)
        };
        let mut all = bad_entries(&problem, &memory, "rotary", FRESH);
        for (sequence, token) in [(0, 0), (1, 130), (1, 400), (2, 20), (3, 0)] {
            all.push(bad_page(&memory, sequence, token, -1));
        }
        if is_packed {
            all.extend(bad_starts(&problem, &memory));
        }
        for Bad { entry, number, status, message, sequence } in all {
            if matches!(entry, Entry::Choice(_)) && !rotates {
                continue;
            }
            let good = set(&mut memory, &mut choices, entry, number);
            let sees = |_: usize, query: usize| match entry {
                Entry::Page(_, token) => LENGTHS[sequence] - FRESH + query >= token / 16 * 16,
                _ => true,
            };
            let each =
                gpu.contexts().into_iter().flat_map(|kernels| [true, false].map(|status| (kernels, status)));
            for (kernels, has_status) in each {
                let Ran { found, said, .. } = call(kernels, &memory, choices, has_status);
                let wanted = if has_status { status } else { 0 };
                // So many new tokens may be more than the sequence has.
                let bits = if status == BAD_SEQUENCE { found.status & !BAD_LENGTH } else { found.status };
                assert_eq!(bits, wanted, "{entry:?} is {number}");
                assert_eq!(said, Err(message.clone()), "{entry:?} is {number}");
                check_bad(&problem, &exact, &found, &[sequence], sees)
                    .unwrap_or_else(|error| panic!("{entry:?} is {number}: {error}"));
            }
            set(&mut memory, &mut choices, entry, good);
        }
        check(&problem, &exact, &call(&gpu.kernels, &memory, choices, true)).unwrap();
        if is_packed {
            // Starts that fall mislead the merge, which finds rows by halving: rows of the sequence before may be left out.
            let last = memory.starts[3];
            set(&mut memory, &mut choices, Entry::Start(4), last as i32 - 1);
            let unsure: &[usize] = if is_divided { &[2, 3] } else { &[3] };
            for kernels in gpu.contexts() {
                let Ran { found, said, .. } = call(kernels, &memory, choices, true);
                assert_eq!((found.status, said.is_err()), (BAD_SEQUENCE, true));
                check_bad(&problem, &exact, &found, unsure, |i, _| i == 3).unwrap();
            }
        }
    }
}

fn same_bits(gpu: &Gpu) {
    // Whole, and divided.
    for sequences in [[(300, 140), (500, 200), (40, 1)], [(5000, 33), (700, 2), (0, 3)]] {
        let problem = Problem { heads: [6, 3], ..fixed(&sequences, 128, Some(32), 0) };
        let (memory, exact) = (problem.memory(gpu), problem.exact());
        for kernels in gpu.contexts() {
            let first = run(gpu, kernels, &problem, &memory, None, true);
            check(&problem, &exact, &first).unwrap();
            for _ in 0..10 {
                assert!(run(gpu, kernels, &problem, &memory, None, true).found == first.found);
            }
        }
    }
}
