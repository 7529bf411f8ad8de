//! The contract of operations on a cache: bad entries on the device, what `validate` says of them, and that they write nothing.

use longrope::descriptor::Pairing;
use longrope::device::Dtype;
use longrope::ops::{
    Append, BAD_LENGTH, BAD_SEQUENCE, CacheChoices, CacheRotary, CachedKeys, Decode, RerotateCache, Split,
    Starts,
};

use crate::attention::oracle::Exact;
use crate::buffer::{Buffer, Gpu};
use crate::cache::entries::{Bad, Entry, bad_entries, bad_page, bad_starts, set};
use crate::cache::model::{
    Expect, Rotation, append_tensors, appending, check_append, empty, exact_rotated, row, state, upload_new,
};
use crate::decode::model::{Form, Found, Memory, Problem, Sequence, launch, scratch, tensors};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("bad_entries_are_reported_by_an_append_and_nothing_of_them_is_written", append_entries),
    ("bad_entries_are_reported_by_a_decode_that_rotates_and_their_rows_left_alone", decode_entries),
    ("bad_entries_are_reported_by_a_re_rotation_and_their_keys_left_alone", rerotate_entries),
    ("re_rotation_into_the_same_set_keeps_every_bit", same_set),
    ("re_rotation_reaches_every_sequence_by_blocks_of_any_size", many_sequences),
];

const LENGTHS: [usize; 4] = [40, 90, 17, 60];
const FRESH: usize = 3;
/// Of sequences: short, long, long, short.
pub const CHOICES: [i32; 4] = [0, 1, 1, 0];

fn problem(packed: bool) -> Problem {
    let one = |i: usize| Sequence { length: LENGTHS[i], fresh: FRESH, seed: 70 + 2 * i as u64 };
    Problem {
        dtype: Dtype::Bf16,
        out_dtype: Dtype::Bf16,
        heads: [4, 2],
        head_dim: 64,
        sequences: (0..4).map(one).collect(),
        form: match packed {
            true => Form::Packed { starts: Starts::I32, around: [4, 3], most: FRESH },
            false => Form::Dense,
        },
        page_size: Some(16),
        room: 1,
        orders: [Order::Bshd; 4],
        wide_lengths: false,
        scale: None,
        window: None,
        split: Split::Balanced,
        place: 11,
        settled: false,
    }
}

pub fn rotation() -> Rotation {
    let set = |by: f64| (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0) / by).collect::<Vec<f64>>();
    Rotation {
        frequencies: [set(1.0), set(1.2), set(3.1)],
        gains: [1.0, 0.9, f64::from(1.19f32)].map(|gain| f64::from(gain as f32)),
        original: 50,
        first_tokens: 4,
        pairing: Pairing::Interleaved,
        parity: false,
    }
}

/// One append into a cache with nothing in it. What it does with tokens of bad sequences is to be as `expect` says.
fn append(
    gpu: &Gpu,
    problem: &Problem,
    memory: Memory,
    choices: [i32; 4],
    keys: CachedKeys,
    expect: &dyn Fn(usize, usize) -> Expect,
    has_status: bool,
) -> (Memory, u32, Result<(), String>) {
    let rotation = rotation();
    let shape = memory.k.tensor.layout.shape();
    let new_cache = || Buffer::new(gpu, problem.dtype, Order::Bshd, shape, 0, None);
    let memory = Memory { k: new_cache(), v: new_cache(), ..memory };
    let (sets, chosen) = (rotation.sets(), gpu.upload(&choices));
    let by = CacheChoices::ByIndex(gpu.address(&chosen));
    let rotary = CacheRotary { sets: &sets, pairing: rotation.pairing, choices: by };
    let numbers = problem.numbers(gpu, &memory);
    let new = upload_new(gpu, problem);
    let append = appending(gpu, problem, &memory, &numbers, rotary, keys);
    let append = Append { status: append.status.filter(|_| has_status), ..append };
    let tensors = append_tensors(&new);
    let before = state(gpu, new[0].read(gpu), &memory);
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    let said = unsafe {
        append.run(&gpu.kernels, &tensors, gpu.raw_stream()).unwrap();
        append.validate(&gpu.kernels, &tensors, gpu.raw_stream()).map_err(|error| error.to_string())
    };
    let after = state(gpu, new[0].read(gpu), &memory);
    let long = |i: usize| CHOICES[i] == 1;
    check_append(problem, &memory, &rotation, keys, &long, expect, &before, &after).unwrap();
    (memory, gpu.download(&numbers.status)[0], said)
}

fn append_entries(gpu: &Gpu) {
    for (packed, keys) in [(true, CachedKeys::Rotated), (false, CachedKeys::Unrotated)] {
        let problem = problem(packed);
        let (mut memory, mut choices) = (empty(gpu, &problem), CHOICES);
        let mut entries = bad_entries(&problem, &memory, "rotary", FRESH);
        if packed {
            entries.extend(bad_starts(&problem, &memory));
        }
        for Bad { entry, number, status, message, sequence } in entries {
            let good = set(&mut memory, &mut choices, entry, number);
            let expect = |i: usize, token: usize| match entry {
                // Of a page that is bad, its tokens; all others of the sequence are written.
                Entry::Page(_, of) if i == sequence && token / 16 == of / 16 => Expect::Untouched,
                Entry::Page(..) => Expect::Written,
                _ if i == sequence => Expect::Untouched,
                _ => Expect::Written,
            };
            for has_status in [true, false] {
                let (found, said);
                (memory, found, said) = append(gpu, &problem, memory, choices, keys, &expect, has_status);
                let wanted = if has_status { status } else { 0 };
                // So many new tokens may be more than the sequence has.
                let found = if status == BAD_SEQUENCE { found & !BAD_LENGTH } else { found };
                assert_eq!(found, wanted, "{entry:?} is {number}");
                assert_eq!(said, Err(message.clone()), "{entry:?} is {number}");
            }
            set(&mut memory, &mut choices, entry, good);
        }
        // The first page has no new token of these.
        for sequence in [0, 1, 3] {
            let entry = Entry::Page(sequence, 0);
            let good = set(&mut memory, &mut choices, entry, -1);
            let (found, said);
            (memory, found, said) =
                append(gpu, &problem, memory, choices, keys, &|_, _| Expect::Written, true);
            assert_eq!((found, said), (0, Ok(())));
            set(&mut memory, &mut choices, entry, good);
        }
        if packed {
            // Starts that fall mislead the search, so that tokens of good sequences may be left out: but none goes astray.
            let last = memory.starts[3];
            let good = set(&mut memory, &mut choices, Entry::Start(4), last as i32 - 1);
            let expect = |i: usize, _: usize| if i == 3 { Expect::Untouched } else { Expect::Either };
            let (_, found, said) = append(gpu, &problem, memory, choices, keys, &expect, true);
            assert_eq!(found, BAD_SEQUENCE);
            let message = format!(
                "tokens.starts[4]: {} is not valid; expected {last} to {}: starts rise, and end within the tensors",
                last - 1,
                problem.tokens()[1]
            );
            assert_eq!((said, good), (Err(message), last as i32 + FRESH as i32));
        }
    }
}

fn decode_entries(gpu: &Gpu) {
    let rotation = rotation();
    let sets = rotation.sets();
    for (packed, split) in [(true, Split::Balanced), (false, Split::Fixed(3))] {
        let problem = Problem { split, ..problem(packed) };
        let one = |(i, sequence): (usize, &Sequence)| {
            let [q, k, v] = problem.elements(sequence);
            exact_rotated(&problem, sequence, &q, [&k, &v], &rotation, CHOICES[i] == 1)
        };
        let exact: Vec<Exact> = problem.sequences.iter().enumerate().map(one).collect();
        let (mut memory, mut choices) = (problem.memory(gpu), CHOICES);
        let mut entries = bad_entries(&problem, &memory, "rotary", FRESH);
        entries.extend([1, 3].map(|sequence| bad_page(&memory, sequence, 0, -1)));
        if packed {
            entries.extend(bad_starts(&problem, &memory));
        }
        let run = |memory: &Memory, choices: [i32; 4], has_status: bool| {
            let (numbers, chosen) = (problem.numbers(gpu, memory), gpu.upload(&choices));
            let by = CacheChoices::ByIndex(gpu.address(&chosen));
            let rotary = Some(CacheRotary { sets: &sets, pairing: rotation.pairing, choices: by });
            let decode = problem.decode(gpu, memory, &numbers);
            let decode = Decode { rotary, status: decode.status.filter(|_| has_status), ..decode };
            let [out, lse] = problem.outputs(gpu);
            let tensors = tensors(memory.q.tensor, &out, &lse);
            let scratch = scratch(gpu, &decode, &tensors);
            // SAFETY: the buffers are as large as their layouts say, and live until they were read.
            let said = unsafe {
                launch(gpu, &decode, &tensors, &scratch);
                decode.validate(&gpu.kernels, &tensors, gpu.raw_stream()).map_err(|error| error.to_string())
            };
            let (out, lse) = (out.read(gpu), lse.read(gpu));
            (Found { out, lse, status: gpu.download(&numbers.status)[0] }, said)
        };
        for Bad { entry, number, status, message, sequence } in entries {
            let good = set(&mut memory, &mut choices, entry, number);
            for has_status in [true, false] {
                let (found, said) = run(&memory, choices, has_status);
                let wanted = if has_status { status } else { 0 };
                let bits = if status == BAD_SEQUENCE { found.status & !BAD_LENGTH } else { found.status };
                assert_eq!(bits, wanted, "{entry:?} is {number}");
                assert_eq!(said, Err(message.clone()), "{entry:?} is {number}");
                problem.check(&exact, &found, &[sequence]).unwrap();
            }
            set(&mut memory, &mut choices, entry, good);
        }
        let (found, said) = run(&memory, choices, true);
        assert_eq!((found.status, said), (0, Ok(())));
        problem.check(&exact, &found, &[]).unwrap();
    }
}

/// Re-rotates a memory's keys from one set of each sequence to the other. Keys before and after, the status, and what `validate`
/// says.
fn rerotate(
    gpu: &Gpu,
    problem: &Problem,
    memory: &Memory,
    rotation: &Rotation,
    [from, to]: [&[i32]; 2],
    has_status: bool,
) -> ([Vec<u32>; 2], u32, Result<(), String>) {
    let (sets, numbers) = (rotation.sets(), problem.numbers(gpu, memory));
    let [from, to] = [from, to].map(|choices| gpu.upload(choices));
    let by = |choices| CacheRotary {
        sets: &sets,
        pairing: rotation.pairing,
        choices: CacheChoices::ByIndex(gpu.address(choices)),
    };
    let decode = problem.decode(gpu, memory, &numbers);
    let status = decode.status.filter(|_| has_status);
    let rerotate = RerotateCache { cache: decode.cache, from: by(&from), to: by(&to), status };
    let (before, values) = (memory.k.read(gpu), memory.v.read(gpu));
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    let said = unsafe {
        rerotate.run(&gpu.kernels, gpu.raw_stream()).unwrap();
        rerotate.validate(&gpu.kernels, gpu.raw_stream()).map_err(|error| error.to_string())
    };
    let after = memory.k.read(gpu);
    assert!(values == memory.v.read(gpu), "values are not touched");
    ([before, after], gpu.download(&numbers.status)[0], said)
}

fn rerotate_entries(gpu: &Gpu) {
    let problem = problem(false);
    let turned = CHOICES.map(|choice| 1 - choice);
    let fresh = problem.memory(gpu);
    let mut entries = bad_entries(&problem, &fresh, "to", 0);
    entries.push(bad_page(&fresh, 1, 20, -1));
    let width = problem.heads[1] * problem.head_dim;
    for Bad { entry, number, status, message, sequence } in entries {
        for has_status in [true, false] {
            // Where tokens lie is by the good table.
            let (mut memory, mut to) = (problem.memory(gpu), turned);
            let rows = |i: usize| (0..LENGTHS[i]).map(|token| (token, row(&fresh, i, token))).collect();
            let of_rows: Vec<Vec<(usize, usize)>> = (0..4).map(rows).collect();
            set(&mut memory, &mut to, entry, number);
            let ([before, after], found, said) =
                rerotate(gpu, &problem, &memory, &rotation(), [&CHOICES, &to], has_status);
            assert_eq!(found, if has_status { status } else { 0 }, "{entry:?} is {number}");
            assert_eq!(said, Err(message.clone()), "{entry:?} is {number}");
            let mut is_new = vec![false; after.len() / width];
            for (i, rows) in of_rows.iter().enumerate() {
                for &(token, at) in rows {
                    let is_kept = i == sequence
                        && match entry {
                            Entry::Page(_, of) => token / 16 == of / 16,
                            _ => true,
                        };
                    // The plain set of the first tokens is one set.
                    is_new[at] = !is_kept && token as u64 >= rotation().first_tokens;
                }
            }
            let long = |i: usize| turned[i] == 1;
            for (at, is_new) in is_new.into_iter().enumerate() {
                let part = at * width..(at + 1) * width;
                if !is_new {
                    assert!(
                        before[part.clone()] == after[part],
                        "{entry:?} is {number}: row {at} was written"
                    );
                    continue;
                }
                let owner = (0..4).find(|&i| of_rows[i].iter().any(|(_, row)| *row == at)).expect("an owner");
                let token = of_rows[owner].iter().find(|(_, row)| *row == at).expect("a token").0;
                check_turned(
                    &problem,
                    &rotation(),
                    token,
                    long(owner),
                    [&before[part.clone()], &after[part]],
                );
            }
        }
    }
}

/// That keys were re-rotated, within the bound of one rotation.
fn check_turned(problem: &Problem, rotation: &Rotation, token: usize, long: bool, [old, new]: [&[u32]; 2]) {
    use crate::attention::oracle::decode;
    use crate::buffer::format;
    use crate::cache::model::ONE_ROTATION;
    let ratio = rotation.gain(token, long) / rotation.gain(token, !long);
    for (x, y) in old.chunks(problem.head_dim).zip(new.chunks(problem.head_dim)) {
        let x = decode(problem.dtype, x);
        for (i, (&bits, exact)) in y.iter().zip(rotation.rerotate(&x, token, long)).enumerate() {
            let eps = ONE_ROTATION * ratio * rotation.size(&x, i);
            assert!(format(problem.dtype).within(bits, exact, eps).unwrap(), "token {token}, dimension {i}");
        }
    }
}

fn same_set(gpu: &Gpu) {
    let problem = problem(false);
    for (from, to) in [(CHOICES, CHOICES), ([0; 4], [0, 1, 0, 1])] {
        let memory = problem.memory(gpu);
        let ([before, after], found, said) =
            rerotate(gpu, &problem, &memory, &rotation(), [&from, &to], true);
        assert_eq!((found, said), (0, Ok(())));
        let width = problem.heads[1] * problem.head_dim;
        for (i, length) in LENGTHS.into_iter().enumerate() {
            for token in 0..length {
                let at = row(&memory, i, token) * width;
                let is_same = before[at..at + width] == after[at..at + width];
                let is_kept = from[i] == to[i] || (token as u64) < rotation().first_tokens;
                assert_eq!(is_same, is_kept, "sequence {i}, token {token}");
            }
        }
    }
}

/// Many sequences, and blocks of threads that are no whole warps.
fn many_sequences(gpu: &Gpu) {
    for (head_dim, pairs, heads) in [(80, 40, 1), (16, 8, 1), (96, 48, 10), (48, 20, 5), (128, 64, 8)] {
        let set = |by: f64| {
            (0..pairs).map(|i| 1e4f64.powf(-f64::from(i) / f64::from(pairs)) / by).collect::<Vec<f64>>()
        };
        let rotation = Rotation { frequencies: [set(1.0), set(1.2), set(3.1)], ..rotation() };
        let one = |i: usize| Sequence { length: i * 7 % 45, fresh: 1, seed: 300 + 2 * i as u64 };
        let problem =
            Problem { heads: [heads; 2], head_dim, sequences: (0..100).map(one).collect(), ..problem(false) };
        let memory = problem.memory(gpu);
        let [from, to] = [1, 2].map(|by| (0..100).map(|i| i / by % 2).collect::<Vec<i32>>());
        let ([before, after], found, said) = rerotate(gpu, &problem, &memory, &rotation, [&from, &to], true);
        assert_eq!((found, said), (0, Ok(())));
        let width = heads * head_dim;
        for (i, sequence) in problem.sequences.iter().enumerate() {
            for token in 0..sequence.length {
                let at = row(&memory, i, token) * width;
                let [old, new] = [&before, &after].map(|all| &all[at..at + width]);
                if from[i] == to[i] || (token as u64) < rotation.first_tokens {
                    assert!(old == new, "sequence {i}, token {token} was written");
                } else {
                    check_turned(&problem, &rotation, token, to[i] == 1, [old, new]);
                }
            }
        }
    }
}
