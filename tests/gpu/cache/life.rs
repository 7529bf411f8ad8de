//! Random lives of one cache: appends, switches of factor sets, re-rotations, decodes and chunks of a prompt, each against the
//! reference.

use longrope::device::Dtype;
use longrope::ops::{CacheChoices, CacheRotary, CachedKeys, RerotateCache, Split, Starts};
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::oracle::{self, Exact, decode, unit_roundoff};
use crate::buffer::{Buffer, Gpu, format};
use crate::cache::model::{
    Expect, ONE_ROTATION, Rotation, append_tensors, appending, check_append, decode_over, empty,
    exact_rotated, rotation, row, state, upload_new,
};
use crate::cache::prefill;
use crate::check_cases;
use crate::decode::model::{Form, Memory, Problem, Sequence};
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[("lives_of_sequences_agree_with_the_reference", lives)];

/// Sequences of a life.
const COUNT: usize = 3;

/// First some sequences change their sets; then each gets so many new tokens, and is decoded, or prefilled if the tokens are a chunk
/// of a prompt.
#[derive(Debug, Clone)]
struct Step {
    switched: [bool; COUNT],
    fresh: [usize; COUNT],
    is_chunk: bool,
}

/// New tokens of a sequence in a step, at most.
const FEW: usize = 16;
const CHUNK: usize = 5 * FEW;

#[derive(Debug, Clone)]
struct Life {
    /// Its sequences are those at the end.
    problem: Problem,
    rotation: Rotation,
    keys: CachedKeys,
    steps: Vec<Step>,
}

fn life() -> impl Strategy<Value = Life> {
    let fresh = || prop_oneof![1 => Just(0usize), 2 => Just(1usize), 2 => 1usize..=FEW];
    let step = (
        [prop::bool::weighted(0.3), prop::bool::weighted(0.3), prop::bool::weighted(0.3)],
        [fresh(), fresh(), fresh()],
        prop::bool::weighted(0.2),
    )
        .prop_map(|(switched, fresh, is_chunk)| {
            let times = if is_chunk { CHUNK / FEW } else { 1 };
            Step { switched, fresh: fresh.map(|fresh| fresh * times), is_chunk }
        });
    let steps = proptest::collection::vec(step, 2..9);
    let sets = select(vec![16usize, 64, 96, 128]).prop_flat_map(|head_dim| {
        let pairs = (1..=head_dim / 16).prop_map(|n| 8 * n);
        (Just(head_dim), pairs.prop_flat_map(rotation))
    });
    let heads = (1usize..3, 1usize..4).prop_map(|(keys, group)| [keys * group, keys]);
    let page_size = prop_oneof![1 => Just(None), 3 => (1usize..=4).prop_map(|n| Some(16 * n))];
    let cache = (page_size, select(vec![Order::Bshd, Order::Bhsd]), any::<bool>(), any::<[u64; 4]>());
    let split = prop_oneof![Just(Split::Balanced).boxed(), (1u32..9).prop_map(Split::Fixed).boxed()];
    let kinds = (
        select(vec![Dtype::Bf16, Dtype::F16]),
        select(vec![CachedKeys::Rotated, CachedKeys::Unrotated]),
        prop_oneof![2 => Just(None), 1 => (1u64..60).prop_map(Some)],
        split,
    );
    (steps, sets, heads, cache, kinds).prop_map(|(steps, (head_dim, rotation), heads, cache, kinds)| {
        let (page_size, order, wide_lengths, seeds) = cache;
        let (dtype, keys, window, split) = kinds;
        let end = |i: usize| Sequence {
            length: steps.iter().map(|step| step.fresh[i]).sum(),
            fresh: 0,
            seed: seeds[i],
        };
        let problem = Problem {
            dtype,
            out_dtype: dtype,
            heads,
            head_dim,
            sequences: (0..COUNT).map(end).collect(),
            form: Form::Packed { starts: Starts::I32, around: [1, 2], most: CHUNK },
            page_size,
            room: 1,
            orders: [order, Order::Bshd, Order::Bshd, Order::Bshd],
            wide_lengths,
            scale: None,
            window,
            split,
            place: seeds[3],
            settled: seeds[3] % 2 == 0,
        };
        Life { problem, rotation, keys, steps }
    })
}

/// A cache while it lives.
struct State<'a> {
    gpu: &'a Gpu,
    life: &'a Life,
    memory: Memory,
    /// The number of each sequence's set.
    numbers: [i32; COUNT],
    /// How often each token of a sequence was rotated.
    passes: [Vec<i32>; COUNT],
    lengths: [usize; COUNT],
}

impl State<'_> {
    /// Bits of a token's keys, of all keys of a cache.
    fn keys<'b>(&self, all: &'b [u32], sequence: usize, token: usize) -> &'b [u32] {
        let width = self.life.problem.heads[1] * self.life.problem.head_dim;
        let at = row(&self.memory, sequence, token) * width;
        &all[at..at + width]
    }

    /// The problem as it is now, with so many new tokens.
    fn problem(&self, fresh: &[usize; COUNT]) -> Problem {
        let end = &self.life.problem;
        let now = |i: usize| Sequence { length: self.lengths[i], fresh: fresh[i], ..end.sequences[i] };
        let most = if fresh.iter().all(|fresh| *fresh <= FEW) { FEW } else { CHUNK };
        let form = Form::Packed { starts: Starts::I32, around: [1, 2], most };
        Problem { sequences: (0..COUNT).map(now).collect(), form, ..end.clone() }
    }

    /// Lengths and starts of a problem into the memory's numbers.
    fn tell(&mut self, problem: &Problem) {
        self.memory.lengths = problem.sequences.iter().map(|one| one.length as i64).collect();
        self.memory.starts = (0..COUNT).map(|i| problem.rows(i).start as i64).collect();
        self.memory.starts.push(problem.rows(COUNT - 1).end as i64);
    }

    /// Changes the sets of some sequences. Rotated keys go with them: each from the bits that lie there, within the bound of one
    /// rotation.
    fn switch(&mut self, switched: &[bool; COUNT]) -> Result<(), String> {
        let (gpu, rotation) = (self.gpu, &self.life.rotation);
        let old = self.numbers;
        for (number, _) in self.numbers.iter_mut().zip(switched).filter(|(_, switched)| **switched) {
            *number = 1 - *number;
        }
        if self.life.keys == CachedKeys::Unrotated {
            return Ok(());
        }
        let problem = self.problem(&[0; COUNT]);
        self.tell(&problem);
        let (sets, numbers) = (rotation.sets(), problem.numbers(gpu, &self.memory));
        let [from, to] = [old, self.numbers].map(|numbers| gpu.upload(&numbers));
        let by = |numbers| CacheRotary {
            sets: &sets,
            pairing: rotation.pairing,
            choices: CacheChoices::ByIndex(gpu.address(numbers)),
        };
        let rerotate = RerotateCache {
            cache: problem.decode(gpu, &self.memory, &numbers).cache,
            from: by(&from),
            to: by(&to),
            status: Some(gpu.address(&numbers.status)),
        };
        let before = state(gpu, Vec::new(), &self.memory);
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe {
            rerotate.validate(&gpu.kernels, gpu.raw_stream()).map_err(|error| error.to_string())?;
            rerotate.run(&gpu.kernels, gpu.raw_stream()).map_err(|error| error.to_string())?;
        }
        let after = state(gpu, Vec::new(), &self.memory);
        if gpu.download(&numbers.status)[0] != 0 || before[2] != after[2] {
            return Err("a re-rotation found something bad, or wrote values".to_owned());
        }
        let mut expected = before[1].clone();
        for i in (0..COUNT).filter(|&i| switched[i]) {
            for token in 0..self.lengths[i] {
                let (old, new) = (self.keys(&before[1], i, token), self.keys(&after[1], i, token));
                self.check_rerotated(i, token, old, new)?;
                self.check_drift(i, token, new)?;
                let at = row(&self.memory, i, token) * new.len();
                expected[at..at + new.len()].copy_from_slice(new);
            }
        }
        // What is of no sequence that switched has the bits it had.
        if expected != after[1] {
            return Err("a re-rotation wrote to keys of no switched sequence".to_owned());
        }
        Ok(())
    }

    fn check_rerotated(&self, sequence: usize, token: usize, old: &[u32], new: &[u32]) -> Result<(), String> {
        let (rotation, dtype) = (&self.life.rotation, self.life.problem.dtype);
        let head_dim = self.life.problem.head_dim;
        let long = self.numbers[sequence] == 1;
        let ratio = rotation.gain(token, long) / rotation.gain(token, !long);
        for (x, y) in old.chunks(head_dim).zip(new.chunks(head_dim)) {
            let x = decode(dtype, x);
            for (i, (&bits, exact)) in y.iter().zip(rotation.rerotate(&x, token, long)).enumerate() {
                let eps = ONE_ROTATION * ratio * rotation.size(&x, i);
                if !format(dtype).within(bits, exact, eps).unwrap() {
                    let found = format(dtype).decode(bits);
                    return Err(format!(
                        "re-rotated: sequence {sequence}, token {token}, dimension {i}: {found} against {exact}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// That keys are those rotated anew, but for a rounding of each pass. A rounding is off by at most u of an element, so of the
    /// pair; below f16's normal range by 2^-25 instead. Passes multiply what was off before by the ratio of two gains, as the pair
    /// itself, or of 2^-25 by at most 1.6 / 0.5: with both elements of a pair, below 2^-22.
    fn check_drift(&mut self, sequence: usize, token: usize, bits: &[u32]) -> Result<(), String> {
        self.passes[sequence][token] += 1;
        let problem = &self.life.problem;
        let (rotation, dtype, head_dim) = (&self.life.rotation, problem.dtype, problem.head_dim);
        let long = self.numbers[sequence] == 1;
        let passes = self.passes[sequence][token];
        let one = Sequence { length: token + 1, ..problem.sequences[sequence] };
        let [_, original, _] = problem.elements(&one);
        let original = &original[original.len() - bits.len()..];
        for (x, y) in original.chunks(head_dim).zip(bits.chunks(head_dim)) {
            let x = decode(dtype, x);
            for (i, (&bits, exact)) in y.iter().zip(rotation.rotate(&x, token, long)).enumerate() {
                let relative = (1.0 + unit_roundoff(dtype) + 1.5 * ONE_ROTATION).powi(passes) - 1.0;
                let size = rotation.gain(token, long) * rotation.size(&x, i);
                let off = (format(dtype).decode(bits) - exact).abs();
                // Where nothing turns, nothing is rounded.
                let is_changed = size == 0.0 && off > 0.0;
                if is_changed || off > relative * size + f64::from(passes) * 2f64.powi(-22) {
                    return Err(format!(
                        "sequence {sequence}, token {token}, dimension {i}: off by {off} after {passes} passes"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Appends new tokens, and decodes or prefills them.
    fn grow(&mut self, fresh: &[usize; COUNT], is_chunk: bool) -> Result<(), String> {
        let (gpu, rotation, keys) = (self.gpu, &self.life.rotation, self.life.keys);
        for (i, fresh) in fresh.iter().enumerate() {
            self.lengths[i] += fresh;
            self.passes[i].resize(self.lengths[i], 0);
        }
        let problem = self.problem(fresh);
        self.tell(&problem);
        let (sets, chosen) = (rotation.sets(), gpu.upload(&self.numbers));
        let rotary = CacheRotary {
            sets: &sets,
            pairing: rotation.pairing,
            choices: CacheChoices::ByIndex(gpu.address(&chosen)),
        };
        let numbers = problem.numbers(gpu, &self.memory);
        let append = appending(gpu, &problem, &self.memory, &numbers, rotary, keys);
        let new = upload_new(gpu, &problem);
        let before = state(gpu, new[0].read(gpu), &self.memory);
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { append.run(&gpu.kernels, &append_tensors(&new), gpu.raw_stream()) }
            .map_err(|error| error.to_string())?;
        let after = state(gpu, new[0].read(gpu), &self.memory);
        let long = |i: usize| self.numbers[i] == 1;
        let written = |_: usize, _: usize| Expect::Written;
        check_append(&problem, &self.memory, rotation, keys, &long, &written, &before, &after)?;
        if keys == CachedKeys::Rotated {
            for (i, &fresh) in fresh.iter().enumerate() {
                for token in self.lengths[i] - fresh..self.lengths[i] {
                    let bits = self.keys(&after[1], i, token).to_vec();
                    self.check_drift(i, token, &bits)?;
                }
            }
        }
        let [q, ..] = new;
        self.attend(&problem, q, &after, rotary, is_chunk)
    }

    /// Attention of the queries that an append rotated. The reference takes rotated keys as they lie in the cache, where their bits
    /// were checked.
    fn attend(
        &mut self,
        problem: &Problem,
        q: Buffer,
        [queries, keys, _]: &[Vec<u32>; 3],
        rotary: CacheRotary,
        is_chunk: bool,
    ) -> Result<(), String> {
        let width = problem.heads[0] * problem.head_dim;
        let exact = |i: usize| -> Exact {
            let (sequence, rows) = (&problem.sequences[i], problem.rows(i));
            let q = &queries[rows.start * width..rows.end * width];
            let [_, original, values] = problem.elements(sequence);
            if self.life.keys == CachedKeys::Unrotated {
                let (rotation, long) = (&self.life.rotation, self.numbers[i] == 1);
                return exact_rotated(problem, sequence, q, [&original, &values], rotation, long);
            }
            let stored: Vec<u32> =
                (0..sequence.length).flat_map(|token| self.keys(keys, i, token)).copied().collect();
            let [q, k, v] = [q, &stored, &values].map(|bits| decode(problem.dtype, bits));
            oracle::exact(&problem.reference(sequence), &q, &k, &v)
        };
        let exact: Vec<Exact> = (0..COUNT).map(exact).collect();
        self.memory.q = q;
        let is_rotating = self.life.keys == CachedKeys::Unrotated;
        let rotary = is_rotating.then_some(rotary);
        if is_chunk {
            for kernels in self.gpu.contexts() {
                let ran = prefill::run(self.gpu, kernels, problem, &self.memory, rotary, true);
                prefill::check(problem, &exact, &ran)?;
            }
            return Ok(());
        }
        let found = decode_over(self.gpu, problem, &self.memory, rotary)?;
        if found.status != 0 {
            return Err(format!("status {}", found.status));
        }
        problem.check(&exact, &found, &[])
    }
}

fn lives(gpu: &Gpu) {
    check_cases(gpu, life, |life| {
        // The table is made for all that is to come, whatever the window.
        let all = |one: &Sequence| Sequence { fresh: one.length, ..*one };
        let sequences = life.problem.sequences.iter().map(all).collect();
        let memory = empty(gpu, &Problem { sequences, window: None, ..life.problem.clone() });
        let passes = [(); COUNT].map(|()| Vec::new());
        let mut state = State { gpu, life: &life, memory, numbers: [0; COUNT], passes, lengths: [0; COUNT] };
        for (number, step) in life.steps.iter().enumerate() {
            let run = state.switch(&step.switched).and_then(|()| state.grow(&step.fresh, step.is_chunk));
            run.map_err(|error| TestCaseError::fail(format!("step {number}: {error}")))?;
        }
        Ok(())
    });
}
