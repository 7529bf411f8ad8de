//! The CPU form of attention against the f64 reference, on random sequences, masks, positions and layouts.

use longrope::descriptor::Layout;
use longrope::reference::Problem;
use proptest::prelude::*;

use crate::abi::{AttentionDesc, AttentionTensors, Status, Tensor};
use crate::api::{self, NONE, api, message, status};
use crate::random::{Order, index, indices, order, place, values};

/// What outputs hold before a call: an element that was not written shows.
pub const POISON: f32 = f32::from_bits(0x7fc0_dead);

/// Where a sequence lies in its tensors: batch, first query, queries, first key, keys.
pub type Span = (usize, usize, usize, usize, usize);

/// An attention as C asks for it, without the tensors.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Queries and keys of each sequence. Dense: all those of the first.
    pub lengths: Vec<(usize, usize)>,
    /// Packed: the type of the starts; and tokens before the first sequence, which belong to none.
    pub packed: Option<(i32, usize)>,
    pub key_heads: usize,
    pub ratio: usize,
    pub head_dim: usize,
    pub causal: bool,
    /// 0: by the head dimension.
    pub scale: f32,
    pub window: i64,
    pub query_offset: i64,
    pub key_offset: i64,
    /// Offsets of the sequences, if there are any.
    pub offsets: Option<Vec<i64>>,
    pub seed: u64,
}

pub fn asked() -> impl Strategy<Value = Asked> {
    let lengths = prop::collection::vec((0usize..24, 0usize..40), 1..4);
    let packed = prop::option::of((prop_oneof![Just(0), Just(32), Just(64)], 0usize..3));
    let heads = (1usize..3, 1usize..4, 1usize..20);
    let mask = (
        any::<bool>(),
        prop_oneof![Just(0.0f32), Just(-0.7), Just(1.5)],
        prop_oneof![Just(0), 1i64..12, Just(i64::MAX)],
    );
    let offsets =
        (any::<bool>(), -30i64..30, -30i64..30, prop::option::of(prop::collection::vec(-20i64..20, 3)));
    (lengths, packed, heads, mask, offsets, any::<u64>()).prop_map(
        |(lengths, packed, heads, mask, offsets, seed)| {
            let (key_heads, ratio, head_dim) = heads;
            let (causal, scale, window) = mask;
            let (far, query_offset, key_offset, offsets) = offsets;
            let base = if far { 1 << 50 } else { 0 };
            let (query_offset, key_offset) = (base + query_offset, base + key_offset);
            Asked {
                lengths,
                packed,
                key_heads,
                ratio,
                head_dim,
                causal,
                scale,
                window,
                query_offset,
                key_offset,
                offsets,
                seed,
            }
        },
    )
}

impl Asked {
    pub fn spans(&self) -> Vec<Span> {
        let Some((_, skip)) = self.packed else {
            let (queries, keys) = self.lengths[0];
            return (0..self.lengths.len()).map(|i| (i, 0, queries, 0, keys)).collect();
        };
        let mut first = (skip, skip);
        let spans = self.lengths.iter().map(|&(queries, keys)| {
            let span = (0, first.0, queries, first.1, keys);
            first = (first.0 + queries, first.1 + keys);
            span
        });
        spans.collect()
    }

    /// Batch, length of queries and of keys of the tensors. Packed, they go on after the last sequence.
    pub fn sizes(&self) -> (usize, usize, usize) {
        match self.packed {
            None => (self.lengths.len(), self.lengths[0].0, self.lengths[0].1),
            Some((_, skip)) => {
                let sum =
                    |length: fn(&(usize, usize)) -> usize| self.lengths.iter().map(length).sum::<usize>();
                (1, skip + sum(|l| l.0) + 1, skip + sum(|l| l.1) + 2)
            }
        }
    }

    /// Starts of queries and of keys.
    pub fn starts(&self) -> [Vec<i64>; 2] {
        let spans = self.spans();
        let starts = |first: fn(&Span) -> usize, length: fn(&Span) -> usize| {
            let end = spans.last().map(|span| first(span) + length(span));
            spans.iter().map(first).chain(end).map(|start| start as i64).collect()
        };
        [starts(|s| s.1, |s| s.2), starts(|s| s.3, |s| s.4)]
    }

    /// A sequence as the reference has it.
    pub fn problem(&self, i: usize) -> Problem {
        let (_, _, query_length, _, key_length) = self.spans()[i];
        let scale = if self.scale == 0.0 { 1.0 / (self.head_dim as f32).sqrt() } else { self.scale };
        Problem {
            query_heads: self.key_heads * self.ratio,
            key_heads: self.key_heads,
            query_length,
            key_length,
            head_dim: self.head_dim,
            scale: f64::from(scale),
            causal: self.causal,
            window: (self.window != 0).then_some(self.window as u64),
            query_offset: self.query_offset + self.offsets.as_ref().map_or(0, |offsets| offsets[i]),
            key_offset: self.key_offset,
        }
    }
}

/// A tensor of random values, or of poison, in some order in a buffer.
pub struct Placed {
    pub buffer: Vec<f32>,
    layout: Layout,
    first: usize,
}

impl Placed {
    pub fn new(order: Order, shape: [usize; 4], values: Option<Vec<f32>>) -> Self {
        let (layout, first, size) = place(order, shape);
        let mut buffer = vec![POISON; size];
        for (value, at) in values.into_iter().flatten().zip(indices(shape)) {
            buffer[index(&layout, first, at)] = value;
        }
        Self { buffer, layout, first }
    }

    pub fn tensor(&mut self) -> Tensor {
        let data = self.buffer.as_mut_ptr().wrapping_add(self.first);
        let shape = self.layout.shape().map(|size| size as i64);
        Tensor { stride: self.layout.strides(), ..api::tensor(data, shape) }
    }

    pub fn index(&self, at: [usize; 4]) -> usize {
        index(&self.layout, self.first, at)
    }

    /// Tokens of a sequence, in the reference's order.
    pub fn tokens(&self, batch: usize, first: usize, count: usize) -> Vec<f64> {
        let [_, _, heads, head_dim] = self.layout.shape();
        indices([1, count, heads, head_dim])
            .map(|[_, s, h, d]| f64::from(self.buffer[self.index([batch, first + s, h, d])]))
            .collect()
    }
}

/// The starts in memory, in the type that was asked for.
pub struct Starts(Vec<i32>, Vec<i64>);

impl Starts {
    pub fn new(starts: &[i64]) -> Self {
        Self(starts.iter().map(|start| *start as i32).collect(), starts.to_vec())
    }

    pub fn pointer(&self, bits: i32) -> *const std::ffi::c_void {
        if bits == 64 { self.1.as_ptr().cast() } else { self.0.as_ptr().cast() }
    }
}

proptest! {
    #[test]
    fn attention_is_that_of_the_reference(
        asked in asked(), orders in [order(), order(), order(), order(), order()], with_lse in any::<bool>()
    ) {
        let (batch, queries, keys) = asked.sizes();
        let heads = asked.key_heads * asked.ratio;
        let (q_shape, k_shape) = ([batch, queries, heads, asked.head_dim], [batch, keys, asked.key_heads, asked.head_dim]);
        let random = |seed, shape: [usize; 4]| Some(values(asked.seed ^ seed, shape.iter().product()));
        let mut q = Placed::new(orders[0], q_shape, random(0, q_shape));
        let mut k = Placed::new(orders[1], k_shape, random(1, k_shape));
        let mut v = Placed::new(orders[2], k_shape, random(2, k_shape));
        let mut out = Placed::new(orders[3], q_shape, None);
        let mut lse = Placed::new(orders[4], [batch, queries, heads, 1], None);
        let tensors = AttentionTensors {
            q: q.tensor(),
            k: k.tensor(),
            v: v.tensor(),
            out: out.tensor(),
            lse: if with_lse { lse.tensor() } else { NONE },
        };
        let [query_starts, key_starts] = asked.starts().map(|starts| Starts::new(&starts));
        let mut word = 0x80;
        let mut desc = AttentionDesc {
            causal: asked.causal.into(),
            scale: asked.scale,
            window: asked.window,
            query_offset: asked.query_offset,
            key_offset: asked.key_offset,
            query_offsets: asked.offsets.as_ref().map_or(std::ptr::null(), |offsets| offsets.as_ptr()),
            status: &mut word,
            ..api::attention()
        };
        if let Some((bits, _)) = asked.packed {
            desc.sequence_kind = 1;
            desc.index_bits = bits;
            desc.sequences = asked.lengths.len() as i64;
            (desc.query_starts, desc.key_starts) = (query_starts.pointer(bits), key_starts.pointer(bits));
            desc.max_query_length = asked.lengths.iter().map(|l| l.0).max().unwrap() as i64;
        }
        // SAFETY: the tensors lie in their buffers, which nothing else uses; starts and offsets are as long as they must be.
        let found = unsafe { (api().attention_cpu)(&desc, &tensors) };
        prop_assert_eq!(status(found), Status::Ok, "{}", message());
        prop_assert_eq!(word, 0x80);

        let (mut out_seen, mut lse_seen) = (vec![false; out.buffer.len()], vec![false; lse.buffer.len()]);
        for (i, (batch, first_query, queries, first_key, keys)) in asked.spans().into_iter().enumerate() {
            let (k, v) = (k.tokens(batch, first_key, keys), v.tokens(batch, first_key, keys));
            let exact = asked.problem(i).forward(&q.tokens(batch, first_query, queries), &k, &v).unwrap();
            for ([_, s, h, d], exact) in indices([1, queries, heads, asked.head_dim]).zip(exact.out) {
                let at = out.index([batch, first_query + s, h, d]);
                out_seen[at] = true;
                // Values and logits are small, weights sum to 1: the errors of f32 stay below 5e-6.
                let found = f64::from(out.buffer[at]);
                prop_assert!((found - exact).abs() <= 5e-6, "sequence {i}, {:?}: {found} against {exact}", [s, h, d]);
            }
            if with_lse {
                for ([_, s, h, _], exact) in indices([1, queries, heads, 1]).zip(exact.lse) {
                    let at = lse.index([batch, first_query + s, h, 0]);
                    lse_seen[at] = true;
                    let found = f64::from(lse.buffer[at]);
                    let equal = found == exact; // minus infinity
                    prop_assert!(equal || (found - exact).abs() <= 5e-6, "sequence {i}, {:?}: {found} against {exact}", [s, h]);
                }
            }
        }
        for (placed, seen) in [(&out, out_seen), (&lse, lse_seen)] {
            let untouched = placed.buffer.iter().zip(seen).all(|(x, seen)| seen || x.to_bits() == POISON.to_bits());
            prop_assert!(untouched, "an element that is of no sequence was written");
        }
    }
}

/// Attention of packed sequences over tensors of 6 queries and 9 keys, 1 head, dimension 2. Answers which queries were written,
/// and the status word.
fn written(
    change: impl FnOnce(&mut AttentionDesc),
    query_starts: &[i64],
    key_starts: &[i64],
) -> (Vec<bool>, u32) {
    let (mut q, mut k) = (values(1, 12), values(2, 18));
    let (mut out, mut lse, mut word) = ([POISON; 12], [POISON; 6], 0x80);
    let (queries, keys) = ([1, 6, 1, 2], [1, 9, 1, 2]);
    let k = api::tensor(k.as_mut_ptr(), keys);
    let tensors = AttentionTensors {
        q: api::tensor(q.as_mut_ptr(), queries),
        k,
        v: k,
        out: api::tensor(out.as_mut_ptr(), queries),
        lse: api::tensor(lse.as_mut_ptr(), [1, 6, 1, 1]),
    };
    let mut desc = AttentionDesc {
        sequence_kind: 1,
        index_bits: 64,
        sequences: query_starts.len() as i64 - 1,
        query_starts: query_starts.as_ptr().cast(),
        key_starts: key_starts.as_ptr().cast(),
        status: &mut word,
        ..api::attention()
    };
    change(&mut desc);
    // SAFETY: the tensors are these arrays; there are as many starts as there must be.
    let found = unsafe { (api().attention_cpu)(&desc, &tensors) };
    assert_eq!(status(found), Status::Ok, "{}", message());
    let is_written = |x: &f32| x.to_bits() != POISON.to_bits();
    let rows: Vec<bool> = lse.iter().map(is_written).collect();
    let elements: Vec<bool> = out.iter().map(is_written).collect();
    assert!(elements.chunks(2).zip(&rows).all(|(pair, row)| pair == [*row; 2]), "{out:?} {lse:?}");
    (rows, word)
}

#[test]
fn a_bad_sequence_is_left_alone_and_sets_its_bit() {
    let bad = 0x80 | longrope::ops::BAD_SEQUENCE;
    let all = written(|_| {}, &[0, 2, 6], &[0, 4, 9]);
    assert_eq!(all, (vec![true; 6], 0x80));
    let (first, last) = ([true, true, false, false, false, false], [false, false, true, true, true, true]);
    let cases: [(&[i64], &[i64], [bool; 6]); 7] = [
        (&[0, 2, 1], &[0, 4, 9], first),
        (&[0, 2, 7], &[0, 4, 9], first),
        (&[0, 2, 6], &[0, 4, 3], first),
        (&[0, 2, 6], &[0, 4, 10], first),
        (&[0, 2, i64::MAX], &[0, 4, 9], first),
        (&[-1, 2, 6], &[0, 4, 9], last),
        (&[0, 2, 6], &[i64::MIN, 4, 9], last),
    ];
    for (queries, keys, expected) in cases {
        assert_eq!(written(|_| {}, queries, keys), (expected.to_vec(), bad), "{queries:?} {keys:?}");
        let without = written(|desc| desc.status = std::ptr::null_mut(), queries, keys);
        assert_eq!(without, (expected.to_vec(), 0x80));
    }
    for (length, expected, word) in [(4, [true; 6], 0x80), (3, first, bad)] {
        let found = written(|desc| desc.max_query_length = length, &[0, 2, 6], &[0, 4, 9]);
        assert_eq!(found, (expected.to_vec(), word), "at most {length} queries");
    }
    let far = 1 << 62;
    for (offset, is_right) in [
        (far - 4, true),
        (far - 3, false),
        (i64::MAX, false),
        (-far, true),
        (-far - 1, false),
        (i64::MIN, false),
    ] {
        let offsets = [0, offset];
        let found = written(|desc| desc.query_offsets = offsets.as_ptr(), &[0, 2, 6], &[0, 4, 9]);
        let expected = if is_right { (vec![true; 6], 0x80) } else { (first.to_vec(), bad) };
        assert_eq!(found, expected, "{offset}");
    }
}

#[test]
fn an_output_may_be_woven_into_its_input() {
    // Queries and outputs by turns: neither is written where the other lies.
    let mut woven = values(3, 2 * 40);
    let before = woven.clone();
    let mut k = values(4, 48);
    let keys = api::tensor(k.as_mut_ptr(), [1, 6, 1, 8]);
    let at = |first: usize, data: *mut f32| Tensor {
        stride: [0, 16, 8, 1],
        ..api::tensor(data.wrapping_add(first), [1, 5, 1, 8])
    };
    let data = woven.as_mut_ptr();
    let tensors = AttentionTensors { q: at(0, data), k: keys, v: keys, out: at(8, data), lse: NONE };
    // SAFETY: the tensors lie in these arrays.
    let found = unsafe { (api().attention_cpu)(&api::attention(), &tensors) };
    assert_eq!(status(found), Status::Ok, "{}", message());
    for (i, (found, before)) in woven.chunks(8).zip(before.chunks(8)).enumerate() {
        assert_eq!(found == before, i % 2 == 0, "row {i}");
    }
}

#[test]
fn tensors_without_queries_are_nothing_to_do() {
    for shape in [[0, 3, 2, 8], [2, 0, 2, 8], [2, 3, 0, 8]] {
        let [batch, ..] = shape;
        let queries = api::tensor(std::ptr::null_mut(), shape);
        let keys = api::tensor(std::ptr::null_mut(), [batch, 0, 1, 8]);
        let tensors = AttentionTensors { q: queries, k: keys, v: keys, out: queries, lse: NONE };
        // SAFETY: there are no elements.
        let found = unsafe { (api().attention_cpu)(&api::attention(), &tensors) };
        assert_eq!(status(found), Status::Ok, "{shape:?}: {}", message());
    }
}
