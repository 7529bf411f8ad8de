//! The CPU form against the f64 reference, on every kind of position, choice and layout; and the factor sets against the
//! crate's own.

use std::collections::BTreeMap;
use std::ptr::null_mut;

use longrope::cpu::{TensorMut, rotary_in_place};
use longrope::descriptor::{self, Direction, Layout};
use longrope::reference::rotary::{rotate, rotate_backward};
use longrope::reference::{Factors, Pairing};
use longrope::scaling::{FactorSets, RopeConfig, SetChoice};

use crate::abi::{Choices, Dtype, Positions, RotaryDesc, Status, Tensor, TensorIo};
use crate::api::{self, IN_PLACE, Sets, api, frequencies, message, status, tensor};

const BATCH: usize = 2;
const LENGTH: usize = 3;
const HEAD_DIM: usize = 10;
const PAIRS: usize = 3;
const ORIGINAL_LENGTH: i64 = 100;
const FIRST_TOKENS: i64 = 1;
const PLAIN: [f64; PAIRS] = [1.0, 0.1, 0.001];
const SHORT: [f64; PAIRS] = [0.9, 0.09, 0.0008];
const LONG: [f64; PAIRS] = [0.7, 0.03, 0.0001];
const SHORT_GAIN: f64 = 1.25;
const LONG_GAIN: f64 = 1.5;

fn sets() -> Sets {
    let mut given = frequencies(&SHORT);
    (given.long_frequencies, given.plain) = (LONG.as_ptr(), PLAIN.as_ptr());
    (given.short_gain, given.long_gain) = (SHORT_GAIN, LONG_GAIN);
    (given.original_length, given.first_tokens) = (ORIGINAL_LENGTH, FIRST_TOKENS);
    Sets::from_frequencies(&given).ok().unwrap()
}

/// Values in -1 to 1, the same every time.
fn values(seed: u32) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// A tensor in a buffer: where it begins, and its strides.
#[derive(Clone, Copy)]
struct View {
    first: usize,
    stride: [i64; 4],
}

impl View {
    fn index(&self, [b, s, h, d]: [usize; 4]) -> usize {
        let offset: i64 = [b, s, h, d].iter().zip(self.stride).map(|(i, stride)| *i as i64 * stride).sum();
        (self.first as i64 + offset) as usize
    }

    fn tensor(&self, buffer: *mut f32, heads: usize) -> Tensor {
        let shape = [BATCH, LENGTH, heads, HEAD_DIM].map(|size| size as i64);
        let data = buffer.wrapping_add(self.first).cast();
        Tensor { data, dtype: Dtype::F32 as i32, shape, stride: self.stride }
    }
}

/// Tensors in one buffer: number of heads, from where, and to where, if not in place.
struct Arrangement {
    name: &'static str,
    elements: usize,
    tensors: Vec<(usize, View, Option<View>)>,
}

fn arrangements() -> Vec<Arrangement> {
    let d = HEAD_DIM as i64;
    let bshd = |first, heads: i64| View { first, stride: [LENGTH as i64 * heads * d, heads * d, d, 1] };
    let bhsd =
        |first, heads: i64| View { first, stride: [LENGTH as i64 * heads * d, d, LENGTH as i64 * d, 1] };
    let size = |heads: usize| BATCH * LENGTH * heads * HEAD_DIM;
    let token = 3 * d; // two heads of queries, one of keys
    let packed = |first| View { first, stride: [LENGTH as i64 * token, token, d, 1] };
    let woven = |first| View { first, stride: [2 * LENGTH as i64 * d, 2 * d, 2 * d * LENGTH as i64 * 2, 2] };
    vec![
        Arrangement { name: "one in place", elements: size(2), tensors: vec![(2, bshd(0, 2), None)] },
        Arrangement {
            name: "from one order into the other",
            elements: 2 * size(2),
            tensors: vec![(2, bhsd(0, 2), Some(bshd(size(2), 2)))],
        },
        Arrangement {
            name: "backwards, with gaps",
            elements: 7 * size(1) + 9,
            tensors: vec![(
                1,
                View { first: 3 * size(1) + HEAD_DIM, stride: [-(LENGTH as i64) * 2 * d, 2 * d, 0, -1] },
                Some(View {
                    first: 4 * size(1) + HEAD_DIM,
                    stride: [LENGTH as i64 * 3, 3, 0, 2 * LENGTH as i64 * 3],
                }),
            )],
        },
        Arrangement {
            name: "queries and keys of a packed buffer",
            elements: BATCH * LENGTH * token as usize,
            tensors: vec![(2, packed(0), None), (1, packed(2 * HEAD_DIM), None)],
        },
        Arrangement {
            name: "input and output woven into each other",
            elements: 2 * size(1),
            tensors: vec![(1, woven(0), Some(woven(1)))],
        },
    ]
}

/// Positions and choices of a rotation, and the memory they are in.
struct Asked {
    position_kind: Positions,
    choice_kind: Choices,
    backward: bool,
    interleaved: bool,
}

const OFFSETS: [i64; 2] = [-1, 7_000_000_000];
const PER_TOKEN: [i64; BATCH * LENGTH] = [0, 5, -9, 1 << 40, 99, 1];
const PER_TOKEN_I32: [i32; BATCH * LENGTH] = [0, 5, -9, i32::MAX, i32::MIN, 1];
const LENGTHS: [i64; BATCH] = [ORIGINAL_LENGTH, ORIGINAL_LENGTH + 1];
const INDICES: [i32; BATCH] = [1, 0];

impl Asked {
    fn desc(&self, sets: &Sets) -> RotaryDesc {
        let mut desc = api::rotary(sets);
        desc.pairing = self.interleaved.into();
        desc.backward = self.backward.into();
        desc.position_kind = self.position_kind as i32;
        desc.choice_kind = self.choice_kind as i32;
        match self.position_kind {
            Positions::Offset => desc.position_offset = OFFSETS[0],
            Positions::OffsetAt | Positions::OffsetPerSequence => desc.positions = OFFSETS.as_ptr().cast(),
            Positions::PerToken => desc.positions = PER_TOKEN.as_ptr().cast(),
            Positions::PerTokenI32 => desc.positions = PER_TOKEN_I32.as_ptr().cast(),
        }
        match self.choice_kind {
            Choices::Length => desc.choice_length = ORIGINAL_LENGTH + 1,
            Choices::Short | Choices::Long => {}
            Choices::ByLength => desc.choices = LENGTHS.as_ptr().cast(),
            Choices::ByIndex => desc.choices = INDICES.as_ptr().cast(),
        }
        desc
    }

    fn position(&self, sequence: usize, token: usize) -> i64 {
        match self.position_kind {
            Positions::Offset | Positions::OffsetAt => OFFSETS[0] + token as i64,
            Positions::OffsetPerSequence => OFFSETS[sequence] + token as i64,
            Positions::PerToken => PER_TOKEN[sequence * LENGTH + token],
            Positions::PerTokenI32 => PER_TOKEN_I32[sequence * LENGTH + token].into(),
        }
    }

    fn factors(&self, sequence: usize, position: i64) -> Factors<'static> {
        let is_long = match self.choice_kind {
            Choices::Length | Choices::Long => true,
            Choices::Short => false,
            Choices::ByLength => LENGTHS[sequence] > ORIGINAL_LENGTH,
            Choices::ByIndex => INDICES[sequence] == 1,
        };
        match (position < FIRST_TOKENS, is_long) {
            (true, _) => Factors { frequencies: &PLAIN, gain: 1.0 },
            (_, true) => Factors { frequencies: &LONG, gain: LONG_GAIN },
            (_, false) => Factors { frequencies: &SHORT, gain: SHORT_GAIN },
        }
    }

    /// A rotated row, and the bound of each element.
    fn rotate(&self, row: &[f64], sequence: usize, token: usize) -> Vec<(f64, f64)> {
        let position = self.position(sequence, token);
        let Factors { frequencies, gain } = self.factors(sequence, position);
        let pairing = if self.interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
        let rotate = if self.backward { rotate_backward } else { rotate };
        let exact = rotate(row, position, frequencies, gain, pairing).unwrap();
        let partner = |d: usize| if self.interleaved { d ^ 1 } else { (d + PAIRS) % (2 * PAIRS) };
        let bound =
            |d: usize| if d < 2 * PAIRS { 2.4e-7 * gain * row[d].hypot(row[partner(d)]) } else { 0.0 };
        exact.into_iter().enumerate().map(|(d, exact)| (exact, bound(d))).collect()
    }
}

fn rotates_right(asked: &Asked, arrangement: &Arrangement, sets: &Sets, seed: u32) {
    let mut buffer: Vec<f32> = values(seed).take(arrangement.elements).collect();
    let mut expected: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (heads, input, output) in &arrangement.tensors {
        for i in 0..BATCH * LENGTH * heads {
            let (b, s, h) = (i / heads / LENGTH, i / heads % LENGTH, i % heads);
            let row: Vec<f64> = (0..HEAD_DIM).map(|d| f64::from(buffer[input.index([b, s, h, d])])).collect();
            let rotated = asked.rotate(&row, b, s);
            let output = output.unwrap_or(*input);
            expected.extend((0..HEAD_DIM).map(|d| (output.index([b, s, h, d]), rotated[d])));
        }
    }
    let before = buffer.clone();
    let at = buffer.as_mut_ptr();
    let io: Vec<TensorIo> = arrangement
        .tensors
        .iter()
        .map(|(heads, input, output)| TensorIo {
            input: input.tensor(at, *heads),
            output: output.map_or(IN_PLACE, |output| output.tensor(at, *heads)),
        })
        .collect();
    let desc = asked.desc(sets);
    // SAFETY: the views lie in the buffer, which nothing else uses; positions and choices are as long as the shape says.
    let found = unsafe { (api().rotary_cpu)(&desc, io.as_ptr(), io.len()) };
    let name = || {
        format!(
            "{}, {:?}, {:?}, backward {}",
            arrangement.name, asked.position_kind, asked.choice_kind, asked.backward
        )
    };
    assert_eq!(status(found), Status::Ok, "{}: {}", name(), message());
    for (i, (found, before)) in buffer.iter().zip(before).enumerate() {
        match expected.get(&i) {
            Some((exact, bound)) => {
                let error = (f64::from(*found) - exact).abs();
                assert!(error <= *bound, "{}: element {i} is {found}, not {exact}", name());
            }
            None => {
                assert_eq!(found.to_bits(), before.to_bits(), "{}: element {i} is not of an output", name())
            }
        }
    }
}

#[test]
fn the_cpu_form_rotates_as_the_reference_does() {
    let sets = sets();
    let mut seed = 0;
    for arrangement in arrangements() {
        for &(position_kind, _) in Positions::ALL {
            for &(choice_kind, _) in Choices::ALL {
                for (backward, interleaved) in [(false, false), (false, true), (true, false), (true, true)] {
                    seed += 1;
                    let asked = Asked { position_kind, choice_kind, backward, interleaved };
                    rotates_right(&asked, &arrangement, &sets, seed);
                }
            }
        }
    }
}

#[test]
fn a_bad_index_leaves_its_sequence_alone_and_sets_its_bit() {
    let sets = sets();
    for bad in [2, -1, i32::MIN] {
        let indices = [bad, 1];
        let mut word = 0x80;
        let mut desc = api::rotary(&sets);
        (desc.choice_kind, desc.choices) = (Choices::ByIndex as i32, indices.as_ptr().cast());
        for word in [null_mut(), &raw mut word] {
            desc.status = word;
            let mut x: Vec<f32> = values(9).take(BATCH * LENGTH * HEAD_DIM).collect();
            let before = x.clone();
            let shape = [BATCH as i64, LENGTH as i64, 1, HEAD_DIM as i64];
            let io = TensorIo { input: tensor(x.as_mut_ptr(), shape), output: IN_PLACE };
            // SAFETY: the addresses are of these variables, which are as long as the shape says.
            assert_eq!(status(unsafe { (api().rotary_cpu)(&desc, &io, 1) }), Status::Ok);
            let half = x.len() / 2;
            assert_eq!(x[..half], before[..half]);
            assert_ne!(x[half..], before[half..]);
        }
        assert_eq!(word, 0x80 | longrope::ops::BAD_CHOICE, "set, with what was there before");
    }
}

/// Rotates with factor sets of the library's, and with sets of the crate's: the bits must be equal.
#[track_caller]
fn same_bits(made: &Sets, ours: &FactorSets, shape: [usize; 4]) {
    let [batch, length, heads, head_dim] = shape;
    for (position, choice) in [(0, 0), (3, 17), (1 << 20, 16), (1 << 31, 1 << 20)] {
        let x: Vec<f32> = values(77).take(shape.iter().product()).collect();
        let (mut found, mut expected) = (x.clone(), x);
        let desc = RotaryDesc { position_offset: position, choice_length: choice, ..api::rotary(made) };
        let io =
            TensorIo { input: tensor(found.as_mut_ptr(), shape.map(|size| size as i64)), output: IN_PLACE };
        // SAFETY: the tensor is as large as its shape says.
        assert_eq!(status(unsafe { (api().rotary_cpu)(&desc, &io, 1) }), Status::Ok, "{}", message());
        let rotary = descriptor::Rotary {
            sets: ours,
            pairing: descriptor::Pairing::HalfSplit,
            direction: Direction::Forward,
            positions: descriptor::Positions::Offset(position),
            choices: descriptor::Choices::All(SetChoice::ByLength(choice as u64)),
        };
        rotary_in_place(&rotary, TensorMut::new(&mut expected, Layout::bshd(batch, length, heads, head_dim)))
            .unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&expected), "position {position}, length {choice}");
    }
}

const CONFIG: &str = r#"{"head_dim": 8, "max_position_embeddings": 64, "original_max_position_embeddings": 16,
    "rope_theta": 500000.0, "rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1.1, 1.3, 2],
    "long_factor": [1, 2.5, 3.7, 4]}}"#;

#[test]
fn a_configuration_gives_the_sets_that_the_crate_makes_of_it() {
    let shape = [2, 5, 3, 8];
    let config = RopeConfig::from_hf_json(CONFIG).unwrap();
    same_bits(&Sets::from_json(CONFIG, 0, 0).ok().unwrap(), &config.factor_sets(64).unwrap(), shape);
    same_bits(&Sets::from_json(CONFIG, 0, 1).ok().unwrap(), &config.parity_sets(64).unwrap(), shape);

    // The other way to the exact phase of the f32 frequencies: from the frequencies themselves.
    let (short, long) = (config.inverse_frequencies_f32(16), config.inverse_frequencies_f32(17));
    let gain = config.attention_factor();
    for angles in 0..=2 {
        let mut given = frequencies(&short);
        (given.angles, given.long_frequencies) = (angles, long.as_ptr());
        (given.short_gain, given.original_length) = (gain, 16);
        let made = Sets::from_frequencies_f32(&given).ok().unwrap();
        let ours = match angles {
            1 => config.parity_sets(64).unwrap(),
            _ => {
                let set = |f| longrope::scaling::FactorSet::exact_from_f32(f, gain).unwrap();
                FactorSets::new(set(&short), set(&short), set(&long), 16, 0).unwrap()
            }
        };
        same_bits(&made, &ours, shape);
        if angles == 2 {
            same_bits(&Sets::from_json(CONFIG, 0, angles).ok().unwrap(), &ours, shape);
        }
    }
}

#[test]
fn the_length_of_a_configuration_is_that_of_dynamic_ntk() {
    let config = r#"{"head_dim": 8, "max_position_embeddings": 16, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}"#;
    let ours = RopeConfig::from_hf_json(config).unwrap();
    assert_ne!(ours.frequencies(64), ours.frequencies(32));
    for length in [0, 17, 64] {
        let used = if length == 0 { 16 } else { length as u64 };
        let made = Sets::from_json(config, length, 0).ok().unwrap();
        same_bits(&made, &ours.factor_sets(used).unwrap(), [1, 3, 1, 8]);
    }
}

#[test]
fn one_set_alone_serves_every_length() {
    let (short, set) = ([1.0, 0.5, 0.25], |f: &[f64]| longrope::scaling::FactorSet::exact(f, 1.0).unwrap());
    let made = Sets::from_frequencies(&frequencies(&short)).ok().unwrap();
    same_bits(&made, &FactorSets::uniform(set(&short)), [1, 4, 2, 6]);
    // A gain of the short set is that of the long one.
    let mut given = frequencies(&short);
    (given.long_frequencies, given.original_length, given.short_gain) = (LONG.as_ptr(), 16, 1.25);
    let with = |f: &[f64]| longrope::scaling::FactorSet::exact(f, 1.25).unwrap();
    let ours = FactorSets::new(set(&short), with(&short), with(&LONG), 16, 0).unwrap();
    same_bits(&Sets::from_frequencies(&given).ok().unwrap(), &ours, [1, 4, 2, 6]);
}

#[test]
fn tensors_larger_than_a_part_are_rotated_whole() {
    let config = RopeConfig::from_hf_json(CONFIG).unwrap();
    let (made, ours) = (Sets::from_json(CONFIG, 0, 0).ok().unwrap(), config.factor_sets(64).unwrap());
    for shape in [[1, 70_000, 2, 8], [1, 2, 140_000, 8], [2, 1, 3, 600_000]] {
        same_bits(&made, &ours, shape);
    }
}

#[test]
fn no_scratch_memory_is_needed() {
    let sets = sets();
    let io = [TensorIo { input: tensor(16 as *mut f32, [1, 1, 1, 8]), output: IN_PLACE }];
    let mut bytes = usize::MAX;
    // SAFETY: asks for a size; the tensor is not read.
    let found = unsafe { (api().rotary_workspace_size)(&api::rotary(&sets), io.as_ptr(), 1, &mut bytes) };
    assert_eq!((status(found), bytes), (Status::Ok, 0));
}
