//! The rotation of cached sequences as the reference has it, new tokens on the GPU, and what an append must leave in a cache.
//!
//! # The bound of keys that are rotated while they are read
//! A kernel rounds each element of a rotated key to 16 bits, as appending would have. Before that it is within eps = 3e-6 gain
//! hypot(x1, x2) of the exact one (key_rotation.cuh), so it is a number between `round(exact - eps)` and `round(exact + eps)`.
//! Mostly both are the rounded exact element, which the reference takes; where a rounding border lies between them, the element may
//! be off by δ, one step. A logit is then off by at most D = |scale| max Σ |q| δ over the keys that the query sees, each weight
//! before normalisation by a factor within exp(±D), a normalised one within exp(±2 D). So the output is off by at most
//! (exp(2 D) - 1) A and the log-sum-exp by D, beside the bound of one call (oracle.rs). That is an addition of (exp(2 D) - 1) / 2
//! to its r. The largest key grows by no more than 2^-8 of itself, which the room in r holds.

use longrope::descriptor::Pairing;
use longrope::device::Dtype;
use longrope::ops::{Append, AppendTensors, CacheChoices, CacheRotary, CachedKeys, RotaryTensor};
use longrope::reference;
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use proptest::prelude::*;
use rayon::prelude::*;

use crate::attention::oracle::{Exact, ONE_CALL, decode, exact};
use crate::buffer::{Buffer, Gpu, format};
use crate::decode::model::{Found, Memory, Numbers, Problem, Sequence, launch, scratch, tensors};
use crate::random::Order;

/// Of an element that one rotation makes, against gain hypot(x1, x2): the rotary kernels' bound.
pub const ONE_ROTATION: f64 = 1e-6;
/// The same of a key that is rotated while it is read.
pub const WHILE_READ: f64 = 3e-6;

/// Three factor sets: plain, short and long.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub frequencies: [Vec<f64>; 3],
    pub gains: [f64; 3],
    pub original: u64,
    pub first_tokens: u64,
    pub pairing: Pairing,
    /// Angles are products in f32.
    pub parity: bool,
}

/// Random sets of so many pairs, whose original length short sequences cross.
pub fn rotation(pairs: usize) -> impl Strategy<Value = Rotation> {
    let set = || proptest::collection::vec(1e-7..7.0f64, pairs);
    let gain = || (0.5..1.6f64).prop_map(|gain| f64::from(gain as f32));
    let first_tokens = prop_oneof![2 => Just(0u64), 3 => 1u64..40];
    ((set(), set(), set()), (gain(), gain(), gain()), 40u64..300, first_tokens, any::<bool>()).prop_map(
        |(sets, gains, original, first_tokens, split)| Rotation {
            frequencies: sets.into(),
            gains: gains.into(),
            original,
            first_tokens,
            pairing: if split { Pairing::HalfSplit } else { Pairing::Interleaved },
            parity: false,
        },
    )
}

impl Rotation {
    pub fn sets(&self) -> FactorSets {
        let set = |which: usize| {
            let (frequencies, gain) = (&self.frequencies[which], self.gains[which]);
            if self.parity {
                let narrow: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
                return FactorSet::parity(&narrow, gain).unwrap();
            }
            FactorSet::exact(frequencies, gain).unwrap()
        };
        FactorSets::new(set(0), set(1), set(2), self.original, self.first_tokens).unwrap()
    }

    fn set(&self, position: usize, long: bool) -> usize {
        if (position as u64) < self.first_tokens { 0 } else { 1 + usize::from(long) }
    }

    /// The other dimension of the pair that dimension `i` belongs to, if it turns.
    fn partner(&self, i: usize) -> Option<usize> {
        let pairs = self.frequencies[0].len();
        match self.pairing {
            _ if i >= 2 * pairs => None,
            Pairing::HalfSplit if i < pairs => Some(i + pairs),
            Pairing::HalfSplit => Some(i - pairs),
            Pairing::Interleaved => Some(i ^ 1),
        }
    }

    /// The length of the pair that dimension `i` belongs to; 0 if it does not turn.
    pub fn size(&self, x: &[f64], i: usize) -> f64 {
        self.partner(i).map_or(0.0, |j| x[i].hypot(x[j]))
    }

    pub fn gain(&self, position: usize, long: bool) -> f64 {
        self.gains[self.set(position, long)]
    }

    fn factors(&self, position: usize, long: bool) -> reference::Factors<'_> {
        let set = self.set(position, long);
        reference::Factors { frequencies: &self.frequencies[set], gain: self.gains[set] }
    }

    fn reference_pairing(&self) -> reference::Pairing {
        match self.pairing {
            Pairing::HalfSplit => reference::Pairing::HalfSplit,
            Pairing::Interleaved => reference::Pairing::Interleaved,
        }
    }

    /// A head at a position of a sequence whose set is the long one, or the short one.
    pub fn rotate(&self, x: &[f64], position: usize, long: bool) -> Vec<f64> {
        let factors = self.factors(position, long);
        if !self.parity {
            let pairing = self.reference_pairing();
            let frequencies = factors.frequencies;
            return reference::rotary::rotate(x, position as i64, frequencies, factors.gain, pairing)
                .unwrap();
        }
        let mut y = x.to_vec();
        for (pair, &frequency) in factors.frequencies.iter().enumerate() {
            let first = if self.pairing == Pairing::HalfSplit { pair } else { 2 * pair };
            let second = self.partner(first).expect("a dimension that turns");
            // The f32 product as the oracle of the angle; then exact cosine and sine of it.
            let (sin, cos) = f64::from(position as f32 * frequency as f32).sin_cos();
            y[first] = factors.gain * (x[first] * cos - x[second] * sin);
            y[second] = factors.gain * (x[second] * cos + x[first] * sin);
        }
        y
    }

    /// Dimension `i` of the same, with exact angles.
    pub fn rotate_one(&self, x: &[f64], i: usize, position: usize, long: bool) -> f64 {
        let Some(partner) = self.partner(i) else { return x[i] };
        let (first, second) = (i.min(partner), i.max(partner));
        let pair = if self.pairing == Pairing::HalfSplit { first } else { first / 2 };
        let reference::Factors { frequencies, gain } = self.factors(position, long);
        let (x, frequency) = ([x[first], x[second]], [frequencies[pair]]);
        let pairing = reference::Pairing::HalfSplit;
        let turned = reference::rotary::rotate(&x, position as i64, &frequency, gain, pairing).unwrap();
        turned[usize::from(i == second)]
    }

    /// Out of the short set and into the long one, or back.
    pub fn rerotate(&self, x: &[f64], position: usize, to_long: bool) -> Vec<f64> {
        let (from, to) = (self.factors(position, !to_long), self.factors(position, to_long));
        reference::rotary::rerotate(x, position as i64, from, to, self.reference_pairing()).unwrap()
    }

    /// Checks heads of bits `y` that are to be the rotated `x`, all at one position.
    pub fn check(
        &self,
        dtype: Dtype,
        head_dim: usize,
        position: usize,
        long: bool,
        [x, y]: [&[u32]; 2],
    ) -> Result<(), String> {
        for (x, y) in x.chunks(head_dim).zip(y.chunks(head_dim)) {
            let x = decode(dtype, x);
            let exact = self.rotate(&x, position, long);
            for (i, (&bits, exact)) in y.iter().zip(exact).enumerate() {
                let eps = ONE_ROTATION * self.gain(position, long) * self.size(&x, i);
                if !format(dtype).within(bits, exact, eps).unwrap() {
                    let found = format(dtype).decode(bits);
                    return Err(format!("position {position}, dimension {i}: {found} against {exact}"));
                }
            }
        }
        Ok(())
    }
}

/// How the set of each sequence is chosen.
#[derive(Debug, Clone, Copy)]
pub enum By {
    All(SetChoice),
    Length,
    /// By numbers on the device.
    Index,
}

impl By {
    pub fn is_long(self, rotation: &Rotation, length: usize, number: i32) -> bool {
        match self {
            Self::All(SetChoice::Short) => false,
            Self::All(SetChoice::Long) => true,
            Self::All(SetChoice::ByLength(length)) => length > rotation.original,
            Self::Length => length as u64 > rotation.original,
            Self::Index => number == 1,
        }
    }

    pub fn choices(self, numbers: u64) -> CacheChoices {
        match self {
            Self::All(choice) => CacheChoices::All(choice),
            Self::Length => CacheChoices::ByLength,
            Self::Index => CacheChoices::ByIndex(numbers),
        }
    }
}

/// The memory of a problem with nothing in its cache.
pub fn empty(gpu: &Gpu, problem: &Problem) -> Memory {
    let memory = problem.memory(gpu);
    let shape = memory.k.tensor.layout.shape();
    let new = || Buffer::new(gpu, problem.dtype, problem.orders[0], shape, 0, None);
    Memory { k: new(), v: new(), ..memory }
}

/// Where a token of a sequence lies: its row among those of all pages.
pub fn row(memory: &Memory, sequence: usize, token: usize) -> usize {
    let size = memory.k.tensor.layout.length();
    memory.table[sequence * memory.stride + token / size] as usize * size + token % size
}

/// Bits of queries, keys and values of the new tokens of all sequences, `[rows, heads, head_dim]`; poison where there is none.
pub fn new_tokens(problem: &Problem) -> [Vec<u32>; 3] {
    let [batch, length] = problem.tokens();
    let [queries, keys] = problem.heads.map(|heads| heads * problem.head_dim);
    let mut all = [queries, keys, keys].map(|width| vec![0xffff; batch * length * width]);
    for (i, sequence) in problem.sequences.iter().enumerate().filter(|(_, one)| one.length > 0) {
        let rows = problem.rows(i);
        for (which, (bits, width)) in
            problem.elements(sequence).into_iter().zip([queries, keys, keys]).enumerate()
        {
            let from = if which == 0 { 0 } else { (sequence.length - sequence.fresh) * width };
            all[which][rows.start * width..rows.end * width].copy_from_slice(&bits[from..]);
        }
    }
    all
}

/// The new tokens of a problem on the device, each tensor by itself, queries in place.
pub fn upload_new(gpu: &Gpu, problem: &Problem) -> [Buffer; 3] {
    let [batch, length] = problem.tokens();
    let heads = [problem.heads[0], problem.heads[1], problem.heads[1]];
    let bits = new_tokens(problem);
    std::array::from_fn(|i| {
        let shape = [batch, length, heads[i], problem.head_dim];
        Buffer::new(gpu, problem.dtype, Order::Bshd, shape, 0, Some(&bits[i]))
    })
}

pub fn append_tensors([q, k, v]: &[Buffer; 3]) -> AppendTensors {
    AppendTensors { q: Some(RotaryTensor::in_place(q.tensor)), k: k.tensor, v: v.tensor }
}

/// An append that belongs to a problem's memory.
pub fn appending<'a>(
    gpu: &Gpu,
    problem: &Problem,
    memory: &Memory,
    numbers: &Numbers,
    rotary: CacheRotary<'a>,
    keys: CachedKeys,
) -> Append<'a> {
    let decode = problem.decode(gpu, memory, numbers);
    Append { cache: decode.cache, tokens: decode.tokens, rotary, keys, status: decode.status }
}

/// What an append is to have done with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Written,
    Untouched,
    /// One or the other, whole.
    Either,
}

/// Bits before an append or after it: rotated queries (none if there are none), keys and values of the cache.
pub type State = [Vec<u32>; 3];

/// The cache of a memory; beside it the queries.
pub fn state(gpu: &Gpu, q: Vec<u32>, memory: &Memory) -> State {
    [q, memory.k.read(gpu), memory.v.read(gpu)]
}

/// Checks every element of queries and of the cache. `long`: whether a sequence takes the long set. `expect`: by the sequence and
/// the position.
#[allow(clippy::too_many_arguments)]
pub fn check_append(
    problem: &Problem,
    memory: &Memory,
    rotation: &Rotation,
    keys: CachedKeys,
    long: &dyn Fn(usize) -> bool,
    expect: &dyn Fn(usize, usize) -> Expect,
    before: &State,
    after: &State,
) -> Result<(), String> {
    let (dtype, head_dim) = (problem.dtype, problem.head_dim);
    let widths = [problem.heads[0], problem.heads[1], problem.heads[1]].map(|heads| heads * head_dim);
    let new = new_tokens(problem);
    let mut is_done: [Vec<bool>; 3] = std::array::from_fn(|i| vec![false; before[i].len() / widths[i]]);
    for (i, sequence) in problem.sequences.iter().enumerate().filter(|(_, one)| one.length > 0) {
        for (token, source) in problem.rows(i).enumerate() {
            let position = sequence.length - sequence.fresh + token;
            let expected = expect(i, position);
            if expected == Expect::Untouched {
                continue;
            }
            let at = row(memory, i, position);
            let targets = [source, at, at];
            let part = |of: &State, which: usize| {
                let (target, width) = (targets[which], widths[which]);
                of[which][target * width..(target + 1) * width].to_vec()
            };
            let present = usize::from(before[0].is_empty())..3;
            let is_same = present.clone().all(|which| part(before, which) == part(after, which));
            if expected == Expect::Either && is_same {
                continue;
            }
            for which in present {
                let (x, y) =
                    (&new[which][source * widths[which]..(source + 1) * widths[which]], part(after, which));
                let is_rotated = which == 0 || which == 1 && keys == CachedKeys::Rotated;
                let found = match is_rotated {
                    true => rotation.check(dtype, head_dim, position, long(i), [x, &y]),
                    false if x == y => Ok(()),
                    false => Err(format!("position {position}: other bits than those that came")),
                };
                let name = ["queries", "keys", "values"][which];
                found.map_err(|error| format!("sequence {i}, {name}, {error}"))?;
                is_done[which][targets[which]] = true;
            }
        }
    }
    for which in 0..3 {
        let width = widths[which];
        for at in (0..is_done[which].len()).filter(|&at| !is_done[which][at]) {
            let of = at * width..(at + 1) * width;
            if before[which][of.clone()] != after[which][of] {
                return Err(format!("row {at} of tensor {which} is of no new token, and was written"));
            }
        }
    }
    Ok(())
}

/// A key's elements, and which of them may be off, by how much.
type RotatedKey = (Vec<f64>, Vec<(usize, f64)>);

/// The exact result of a sequence over keys rotated and rounded, with the bound that the module derives. For these bits of queries,
/// of keys before their rotation and of values.
pub fn exact_rotated(
    problem: &Problem,
    sequence: &Sequence,
    q: &[u32],
    [keys, values]: [&[u32]; 2],
    rotation: &Rotation,
    long: bool,
) -> Exact {
    let (dtype, heads) = (problem.dtype, problem.heads);
    let format = format(dtype);
    let rotated: Vec<RotatedKey> = keys
        .par_chunks(problem.head_dim)
        .enumerate()
        .map(|(row, bits)| {
            let (x, position) = (decode(dtype, bits), row / heads[1]);
            let mut unsure = Vec::new();
            let mut rounded = rotation.rotate(&x, position, long);
            for (i, element) in rounded.iter_mut().enumerate() {
                let eps = WHILE_READ * rotation.gain(position, long) * rotation.size(&x, i);
                let [low, at, high] =
                    [*element - eps, *element, *element + eps].map(|y| format.decode(format.round(y)));
                let off = (high - at).max(at - low);
                if off > 0.0 {
                    unsure.push((i, off));
                }
                *element = at;
            }
            (rounded, unsure)
        })
        .collect();
    let k: Vec<f64> = rotated.iter().flat_map(|(key, _)| key).copied().collect();
    let (q, v) = (decode(dtype, q), decode(dtype, values));
    let reference = problem.reference(sequence);
    let mut exact = exact(&reference, &q, &k, &v);
    for (row, (logit, q)) in exact.logit.iter_mut().zip(q.chunks(problem.head_dim)).enumerate() {
        let (query, head) = (row / heads[0], row % heads[0] / (heads[0] / heads[1]));
        let seen = (0..sequence.length).filter(|&token| reference.allows(query, token));
        let off =
            |token: usize| rotated[token * heads[1] + head].1.iter().map(|(i, off)| q[*i].abs() * off).sum();
        let largest: f64 = seen.map(off).fold(0.0, f64::max) * reference.scale.abs();
        *logit += ((2.0 * largest).exp() - 1.0) / 2.0 / ONE_CALL;
    }
    exact
}

/// One decode, with the numbers and the queries as the memory has them now, over keys that `rotary` rotates if there is one.
pub fn decode_over(
    gpu: &Gpu,
    problem: &Problem,
    memory: &Memory,
    rotary: Option<CacheRotary>,
) -> Result<Found, String> {
    let numbers = problem.numbers(gpu, memory);
    let decode = longrope::ops::Decode { rotary, ..problem.decode(gpu, memory, &numbers) };
    let [out, lse] = problem.outputs(gpu);
    let tensors = tensors(memory.q.tensor, &out, &lse);
    let scratch = scratch(gpu, &decode, &tensors);
    // SAFETY: the buffers are as large as their layouts say, and live until they were read.
    unsafe {
        decode.validate(&gpu.kernels, &tensors, gpu.raw_stream()).map_err(|error| error.to_string())?;
        launch(gpu, &decode, &tensors, &scratch);
    }
    Ok(Found { out: out.read(gpu), lse: lse.read(gpu), status: gpu.download(&numbers.status)[0] })
}
