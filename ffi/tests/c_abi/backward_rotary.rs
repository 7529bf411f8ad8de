//! Gradients of attention by queries and keys as they were before their rotation.

use std::f64::consts::TAU;

use longrope::reference::{self, FactorSets, Factors, Gradients};
use proptest::prelude::*;

use crate::abi::{AttentionBackwardDesc, AttentionBackwardTensors, CacheRotaryDesc, Choices, Dtype, Status};
use crate::api::{self, NONE, Sets, api, frequencies, message, status};
use crate::attention_errors::SOMEWHERE;
use crate::attention_options::{rotary, sets};
use crate::attention_oracle::{Asked, POISON, Starts, asked};
use crate::backward_errors::{ask_cpu, not_offered, refused, right, tensors};
use crate::random::values;

/// Bytes of a workspace: delta of 20 rows, and what Hopper's kernels count in.
const WORKSPACE: usize = 80 + 128;

#[test]
fn any_pairs_and_any_choice_are_offered_but_for_parity_mode() {
    let (eight, seven, one, parity) = (sets(8, 0), sets(7, 0), sets(1, 0), sets(8, 1));
    for sets in [&eight, &seven, &one] {
        for pairing in [0, 1] {
            let by_length = CacheRotaryDesc { pairing, ..rotary(sets) };
            right(|desc, _| desc.rotary = &by_length, WORKSPACE);
            let by_index =
                CacheRotaryDesc { choice_kind: Choices::ByIndex as i32, choices: SOMEWHERE, ..by_length };
            right(|desc, _| desc.rotary = &by_index, WORKSPACE);
        }
    }
    let parity = rotary(&parity);
    not_offered(
        |desc, _| desc.rotary = &parity,
        "desc.rotary.sets: angles in parity mode is not supported; expected exact angles",
    );
}

#[test]
fn a_rotation_that_means_nothing_is_named() {
    let (eight, nine) = (sets(8, 0), sets(9, 0));
    let by_index = CacheRotaryDesc { choice_kind: Choices::ByIndex as i32, ..rotary(&eight) };
    for (rotary, message) in [
        (CacheRotaryDesc { sets: std::ptr::null(), ..rotary(&eight) }, "sets: NULL is not valid; expected"),
        (rotary(&nine), "sets: 9 pairs is not valid; expected 1 to 8, half of the head dimension"),
        (CacheRotaryDesc { flags: 1, ..rotary(&eight) }, "flags: 1 is not valid; expected 0"),
        (by_index, "choices: a null address is not valid; expected"),
        (
            CacheRotaryDesc { choices: SOMEWHERE.wrapping_byte_add(2), ..by_index },
            "choices: address 0x1002 is not valid; expected a multiple of 4",
        ),
    ] {
        refused(|desc, _| desc.rotary = &rotary, &format!("desc.rotary.{message}"));
    }
}

#[test]
fn a_struct_of_the_first_version_has_no_rotation() {
    // What lies behind it is not the library's to read.
    let desc = AttentionBackwardDesc {
        struct_size: 104,
        rotary: std::ptr::without_provenance(1),
        ..api::attention_backward()
    };
    let (found, said) = ask_cpu(&desc, &tensors(Dtype::Bf16));
    assert_eq!(found, Status::Unsupported, "{said}");
    assert!(said.starts_with("tensors.q.dtype"), "{said}");
}

/// Contiguous gradients of dense or packed sequences, and the status word.
struct Made {
    gradients: [Vec<f32>; 3],
    word: u32,
}

/// Numbers in `[batch, length, heads, head_dim]`.
fn shapes(asked: &Asked) -> [[i64; 4]; 2] {
    let (batch, queries, keys) = asked.sizes();
    let shape = |length: usize, heads: usize| [batch, length, heads, asked.head_dim].map(|size| size as i64);
    [shape(queries, asked.key_heads * asked.ratio), shape(keys, asked.key_heads)]
}

/// The CPU form on random inputs; the log-sum-exp and delta are what they are.
fn make(asked: &Asked, rotary: *const CacheRotaryDesc, before: Option<&[Vec<f32>; 3]>) -> Made {
    let [q_shape, k_shape] = shapes(asked);
    let count = |shape: [i64; 4]| shape.iter().product::<i64>() as usize;
    let [rows, _] = shapes(asked).map(|[batch, length, heads, _]| [batch, length, heads, 1]);
    let mut inputs = [q_shape, k_shape, k_shape, q_shape, rows, rows];
    let mut inputs: [Vec<f32>; 6] = {
        let mut seed = asked.seed;
        inputs.each_mut().map(|shape| {
            seed = seed.wrapping_add(1);
            values(seed, count(*shape))
        })
    };
    // So that weights are below 1.
    inputs[4].iter_mut().for_each(|lse| *lse += 6.0);
    let mut gradients = match before {
        Some(before) => before.clone(),
        None => [q_shape, k_shape, k_shape].map(|shape| vec![POISON; count(shape)]),
    };
    let starts = asked.starts().map(|starts| Starts::new(&starts));
    let mut word = 0x80;
    let mut desc = AttentionBackwardDesc {
        causal: asked.causal.into(),
        scale: asked.scale,
        window: asked.window,
        query_offset: asked.query_offset,
        key_offset: asked.key_offset,
        query_offsets: asked.offsets.as_ref().map_or(std::ptr::null(), |offsets| offsets.as_ptr()),
        status: &mut word,
        accumulate: before.is_some().into(),
        rotary,
        ..api::attention_backward()
    };
    if let Some((bits, _)) = asked.packed {
        (desc.sequence_kind, desc.index_bits) = (1, bits);
        desc.sequences = asked.lengths.len() as i64;
        (desc.query_starts, desc.key_starts) = (starts[0].pointer(bits), starts[1].pointer(bits));
    }
    let [q, k, v, d_out, lse, delta] = inputs.each_mut().map(|x| x.as_mut_ptr());
    let [dq, dk, dv] = gradients.each_mut().map(|x| x.as_mut_ptr());
    let given = AttentionBackwardTensors {
        q: api::tensor(q, q_shape),
        k: api::tensor(k, k_shape),
        v: api::tensor(v, k_shape),
        out: NONE,
        lse: api::tensor(lse, rows),
        delta: api::tensor(delta, rows),
        d_out: api::tensor(d_out, q_shape),
        dq: api::tensor(dq, q_shape),
        dk: api::tensor(dk, k_shape),
        dv: api::tensor(dv, k_shape),
    };
    // SAFETY: the tensors are these arrays, which nothing else uses; starts, offsets and numbers are as many as sequences.
    let found = unsafe { (api().attention_backward_cpu)(&desc, &given) };
    assert_eq!(status(found), Status::Ok, "{}", message());
    Made { gradients, word }
}

/// How what is asked for was rotated.
#[derive(Debug, Clone)]
struct Turned {
    frequencies: [Vec<f64>; 3],
    gains: [f64; 2],
    original: u64,
    first_tokens: u64,
    interleaved: bool,
    /// By number, or else by length.
    numbers: Option<Vec<i32>>,
}

fn turned() -> impl Strategy<Value = (Asked, Turned)> {
    let number = prop_oneof![4 => Just(0), 4 => Just(1), 1 => Just(2), 1 => Just(-1)];
    let numbers = prop::option::of(prop::collection::vec(number, 3));
    let gains = [0.5..1.6f64, 0.5..1.6].prop_map(|gains| gains.map(|gain| f64::from(gain as f32)));
    (asked(), 0.0..1.0f64, gains, 1u64..40, 0u64..20, any::<bool>(), numbers).prop_flat_map(
        |(mut asked, pairs, gains, original, first_tokens, interleaved, numbers)| {
            asked.head_dim += 1;
            let pairs = 1 + (pairs * (asked.head_dim / 2) as f64) as usize % (asked.head_dim / 2).max(1);
            let set = || prop::collection::vec(1e-4..3.0f64, pairs);
            (Just(asked), [set(), set(), set()]).prop_map(move |(asked, frequencies)| {
                let numbers = numbers.clone();
                (asked, Turned { frequencies, gains, original, first_tokens, interleaved, numbers })
            })
        },
    )
}

proptest! {
    #[test]
    fn gradients_are_those_of_what_was_rotated_before_it((asked, turned) in turned(), accumulate in any::<bool>()) {
        let [plain, short, long] = &turned.frequencies;
        let mut frequencies = frequencies(short);
        frequencies.long_frequencies = long.as_ptr();
        frequencies.plain = plain.as_ptr();
        (frequencies.short_gain, frequencies.long_gain) = (turned.gains[0], turned.gains[1]);
        frequencies.original_length = turned.original as i64;
        frequencies.first_tokens = turned.first_tokens as i64;
        let sets = Sets::from_frequencies(&frequencies).unwrap();
        let mut desc = CacheRotaryDesc { pairing: turned.interleaved.into(), ..rotary(&sets) };
        if let Some(numbers) = &turned.numbers {
            desc.choice_kind = Choices::ByIndex as i32;
            desc.choices = numbers.as_ptr().cast();
        }
        let rotated = make(&asked, std::ptr::null(), None).gradients;
        let before = rotated.each_ref().map(|gradient| values(asked.seed ^ 77, gradient.len()));
        let made = make(&asked, &desc, accumulate.then_some(&before));

        let factors = |frequencies, gain| Factors { frequencies, gain };
        let reference_sets = FactorSets::new(
            plain, factors(short, turned.gains[0]), factors(long, turned.gains[1]), turned.original, turned.first_tokens,
        ).unwrap();
        let pairing = if turned.interleaved { reference::Pairing::Interleaved } else { reference::Pairing::HalfSplit };
        let mut seen = made.gradients.each_ref().map(|gradient| vec![false; gradient.len()]);
        let mut word = 0x80;
        let [q_shape, k_shape] = shapes(&asked).map(|shape| shape.map(|size| size as usize));
        for (i, (batch, first_query, queries, first_key, keys)) in asked.spans().into_iter().enumerate() {
            let problem = asked.problem(i);
            let length = match turned.numbers.as_ref().map(|numbers| numbers[i]) {
                None => (problem.query_offset + queries as i64).max(0) as u64,
                Some(0) => 0,
                Some(1) => u64::MAX,
                Some(_) => {
                    if (queries, keys) != (0, 0) {
                        word |= longrope::ops::BAD_CHOICE;
                    }
                    continue;
                }
            };
            let spans = [(q_shape, first_query, queries), (k_shape, first_key, keys), (k_shape, first_key, keys)];
            let at = spans.map(|([_, tokens, heads, dim], first, count)| {
                let start = (batch * tokens + first) * heads * dim;
                start..start + count * heads * dim
            });
            let part = |which: usize| rotated[which][at[which].clone()].iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let gradients = Gradients { dq: part(0), dk: part(1), dv: part(2) };
            let choose = |position| reference_sets.frequencies_for(position, length);
            let exact = gradients.before_rotation(&problem, choose, pairing).unwrap();
            for (which, exact) in [exact.dq, exact.dk, exact.dv].into_iter().enumerate() {
                for (at, exact) in at[which].clone().zip(exact) {
                    seen[which][at] = true;
                    let start = if accumulate { f64::from(before[which][at]) } else { 0.0 };
                    let row = at / asked.head_dim * asked.head_dim;
                    let size = rotated[which][row..row + asked.head_dim].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    // The rotation's own bound, the rounding of a step at positions up to 2^51, and the rounding of the sum.
                    let angle = 2.4e-7 + (2f64.powi(51) * 2f64.powi(-65) * TAU) * f64::from(asked.query_offset.unsigned_abs() >= 1 << 49);
                    let bound = 1.7 * angle * size + 2f64.powi(-24) * (start.abs() + exact.abs());
                    let error = (f64::from(made.gradients[which][at]) - start - exact).abs();
                    prop_assert!(error <= bound, "{} [{at}]: off by {error:e}, bound {bound:e}", ["dq", "dk", "dv"][which]);
                }
            }
        }
        prop_assert_eq!(made.word, word);
        for (which, seen) in seen.iter().enumerate() {
            for (at, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
                let untouched = if accumulate { before[which][at] } else { POISON };
                prop_assert_eq!(made.gradients[which][at].to_bits(), untouched.to_bits(), "{} [{}] was written", which, at);
            }
        }
    }
}
