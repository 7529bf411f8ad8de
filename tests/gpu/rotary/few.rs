//! Few tokens have a kernel of their own: that it makes the same bits as the one for many.

use longrope::descriptor::{Direction, Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{DeviceChoices, DevicePositions, Rotary, RotaryTensor};
use longrope::scaling::{FactorSet, FactorSets};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::buffer::{Buffer, Gpu, format};
use crate::random::{Order, values};

pub const TESTS: &[crate::Test] = &[("a_token_alone_has_the_bits_that_it_has_among_many", alone)];

/// Many tokens, and runs of a few of them.
#[derive(Debug, Clone)]
struct Problem {
    dtype: Dtype,
    pairing: Pairing,
    direction: Direction,
    batch: usize,
    length: usize,
    heads: [usize; 2],
    head_dim: usize,
    pairs: usize,
    gain: f64,
    first_tokens: u64,
    first_position: i64,
    in_place: bool,
    /// Sequence, first token and number of tokens of each run.
    runs: Vec<(usize, usize, usize)>,
    seed: u64,
}

fn problem() -> impl Strategy<Value = Problem> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)];
    let shape = (1usize..3, 1usize..40, 0usize..9, 1usize..17, 0usize..3);
    let position = prop_oneof![any::<i32>().prop_map(i64::from), Just(-5i64), -(1i64 << 40)..1 << 40];
    let runs = proptest::collection::vec(
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..9),
        1..5,
    );
    (dtype, any::<[bool; 3]>(), shape, 0.5..1.6f64, 0u64..9, position, runs, any::<u64>()).prop_map(
        |(dtype, [split, forward, in_place], shape, gain, first_tokens, first_position, runs, seed)| {
            let (batch, q, k, eights, rest) = shape;
            let pairs = 8 * eights;
            // Above the 2^16 threads of two pairs that are still few.
            let length = (1usize << 17).div_ceil(batch * (q + k) * pairs) + 1;
            let run = |(sequence, first, count): (prop::sample::Index, prop::sample::Index, usize)| {
                let first = first.index(length);
                (sequence.index(batch), first, count.min(length - first))
            };
            Problem {
                dtype,
                pairing: if split { Pairing::HalfSplit } else { Pairing::Interleaved },
                direction: if forward { Direction::Forward } else { Direction::Backward },
                batch,
                length,
                heads: [q, k],
                head_dim: 2 * pairs + 8 * rest,
                pairs,
                gain: f64::from(gain as f32),
                first_tokens,
                first_position,
                in_place,
                runs: runs.into_iter().map(run).collect(),
                seed,
            }
        },
    )
}

impl Problem {
    fn sets(&self) -> FactorSets {
        let set = |base: f64, gain| {
            let frequencies: Vec<f64> =
                (0..self.pairs).map(|i| base.powf(-(i as f64) / self.pairs as f64)).collect();
            FactorSet::exact(&frequencies, gain).unwrap()
        };
        FactorSets::new(set(1e4, 1.0), set(2e4, self.gain), set(5e5, self.gain), 4096, self.first_tokens)
            .unwrap()
    }

    fn shape(&self, heads: usize) -> [usize; 4] {
        [self.batch, self.length, heads, self.head_dim]
    }

    /// A contiguous tensor of these heads: the same values each time, or poison.
    fn buffer(&self, gpu: &Gpu, heads: usize, filled: bool) -> Buffer {
        let shape = self.shape(heads);
        let values: Vec<u32> = match filled {
            true => values(self.seed ^ heads as u64, shape.iter().product())
                .iter()
                .map(|&x| format(self.dtype).round(f64::from(x)))
                .collect(),
            false => Vec::new(),
        };
        Buffer::new(gpu, self.dtype, Order::Bshd, shape, 0, filled.then_some(&values[..]))
    }

    /// Inputs, and outputs unless it is in place.
    fn buffers(&self, gpu: &Gpu) -> Vec<(Buffer, Option<Buffer>)> {
        let heads = self.heads.iter().filter(|heads| **heads > 0);
        heads
            .map(|&heads| {
                (self.buffer(gpu, heads, true), (!self.in_place).then(|| self.buffer(gpu, heads, false)))
            })
            .collect()
    }

    fn rotate(&self, gpu: &Gpu, memory: [u64; 2], tensors: &[RotaryTensor]) {
        let sets = self.sets();
        let rotary = Rotary {
            sets: &sets,
            pairing: self.pairing,
            direction: self.direction,
            positions: DevicePositions::PerToken(memory[0]),
            choices: DeviceChoices::ByLength(memory[1]),
            status: None,
        };
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { rotary.run(&gpu.kernels, tensors, gpu.raw_stream()) }.unwrap();
    }
}

/// `count` tokens of a contiguous tensor.
fn part(tensor: &DeviceTensor, sequence: usize, first: usize, count: usize) -> DeviceTensor {
    let ([_, _, heads, dim], strides) = (tensor.layout.shape(), tensor.layout.strides());
    let offset = sequence as u64 * strides[0] as u64 + first as u64 * strides[1] as u64;
    let layout = Layout::strided([1, count, heads, dim], strides);
    DeviceTensor {
        address: tensor.address + offset * tensor.dtype.size() as u64,
        dtype: tensor.dtype,
        layout,
    }
}

fn tensors(buffers: &[(Buffer, Option<Buffer>)]) -> Vec<RotaryTensor> {
    let pair = |(input, output): &(Buffer, Option<Buffer>)| RotaryTensor {
        input: input.tensor,
        output: output.as_ref().unwrap_or(input).tensor,
    };
    buffers.iter().map(pair).collect()
}

fn alone(gpu: &Gpu) {
    let run = |problem: Problem| {
        let tokens = problem.batch * problem.length;
        let positions: Vec<i64> = (0..tokens as i64)
            .map(|i| problem.first_position.wrapping_add(i % problem.length as i64))
            .collect();
        let (positions, lengths) = (gpu.upload(&positions), gpu.upload(&[4096i64, 4097]));
        let memory = [gpu.address(&positions), gpu.address(&lengths)];
        let (many, few) = (problem.buffers(gpu), problem.buffers(gpu));
        problem.rotate(gpu, memory, &tensors(&many));
        let mut done = vec![false; tokens];
        for &(sequence, first, count) in &problem.runs {
            let index = sequence * problem.length + first;
            // In place, what was rotated must not be again.
            if done[index..index + count].iter().any(|done| *done) {
                continue;
            }
            done[index..index + count].fill(true);
            let memory = [memory[0] + 8 * index as u64, memory[1] + 8 * sequence as u64];
            let part = |tensor: &DeviceTensor| part(tensor, sequence, first, count);
            let parts: Vec<RotaryTensor> = tensors(&few)
                .iter()
                .map(|tensor| RotaryTensor { input: part(&tensor.input), output: part(&tensor.output) })
                .collect();
            problem.rotate(gpu, memory, &parts);
        }
        for (many, few) in many.iter().zip(&few) {
            let read =
                |(input, output): &(Buffer, Option<Buffer>)| output.as_ref().unwrap_or(input).read(gpu);
            let (found, expected) = (read(few), read(many));
            let row = found.len() / tokens;
            for token in (0..tokens).filter(|token| done[*token]) {
                let at = token * row..(token + 1) * row;
                prop_assert_eq!(&found[at.clone()], &expected[at], "token {}", token);
            }
        }
        Ok(())
    };
    // Each case is a thousand times the size of those of other tests.
    let config = Config { failure_persistence: None, ..Config::default() };
    let config = Config { cases: config.cases.div_ceil(16).max(4), ..config };
    TestRunner::new(config).run(&problem(), run).unwrap_or_else(|error| panic!("{error}"));
}
