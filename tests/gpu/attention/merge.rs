//! Merging partial results, against the reference.

use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Merge, Parts};
use longrope::reference::{self, Output};
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::oracle::{decode, random_bits};
use crate::buffer::{Buffer, Gpu, format};
use crate::check_cases;
use crate::random::{self, Order, order};

pub const TESTS: &[crate::Test] = &[
    ("merging_is_within_its_bound_of_the_reference", within_bound),
    ("a_merge_may_write_into_one_of_its_parts", in_place),
    ("two_parts_lie_anywhere", pair),
    ("no_part_gives_zeros_and_minus_infinity", no_part),
    ("a_merge_of_nothing_is_nothing_to_do", empty),
];

/// Random partial results, `[count, rows, head_dim]` and `[count, rows]`.
#[derive(Debug, Clone)]
struct Problem {
    count: usize,
    shape: [usize; 4],
    /// How far the log-sum-exps of the parts are apart.
    spread: f32,
    /// Of the parts' outputs and log-sum-exps, and of the result's.
    orders: [Order; 4],
    shift: usize,
    out_dtype: Dtype,
    seed: u64,
}

fn problem() -> impl Strategy<Value = Problem> {
    let shape =
        (1usize..3, 0usize..6, 1usize..4, prop_oneof![1usize..40, select(vec![64, 128, 255, 256, 300])]);
    let spread = select(vec![0.0f32, 1.0, 20.0, 1e4, 1e30]);
    let orders = (order(), order(), order(), order()).prop_map(|(a, b, c, d)| [a, b, c, d]);
    let out = select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]);
    // From 33 on, a warp looks at the log-sum-exps more than once.
    let count = prop_oneof![6 => 0usize..21, 1 => 31usize..70];
    (count, shape, spread, orders, 0usize..3, out, any::<u64>()).prop_map(
        |(count, (b, s, h, d), spread, orders, shift, out_dtype, seed)| Problem {
            count,
            shape: [b, s, h, d],
            spread,
            orders,
            shift,
            out_dtype,
            seed,
        },
    )
}

/// Partial results in device memory, all parts in one buffer.
struct Memory {
    out: Buffer,
    lse: Buffer,
    parts: Vec<Output>,
    out_bits: Vec<u32>,
    lse_bits: Vec<u32>,
}

impl Problem {
    fn rows(&self) -> usize {
        self.shape[..3].iter().product()
    }

    fn memory(&self, gpu: &Gpu) -> Memory {
        let [batch, length, heads, head_dim] = self.shape;
        let rows = self.rows();
        let mut out = random_bits(Dtype::F32, self.seed, self.count * rows * head_dim, 2.0);
        let lse: Vec<u32> = random::values(self.seed ^ 1 << 32, self.count * rows)
            .iter()
            .zip(random::values(self.seed ^ 2 << 32, self.count * rows))
            // One in five saw no key.
            .map(|(x, chance)| if chance > 0.6 { f32::NEG_INFINITY } else { x * self.spread })
            .map(f32::to_bits)
            .collect();
        for (row, lse) in out.chunks_mut(head_dim).zip(&lse) {
            if f32::from_bits(*lse) == f32::NEG_INFINITY {
                row.fill(f32::NAN.to_bits());
            }
        }
        let parts = (0..self.count)
            .map(|part| Output {
                out: decode(Dtype::F32, &out[part * rows * head_dim..(part + 1) * rows * head_dim]),
                lse: decode(Dtype::F32, &lse[part * rows..(part + 1) * rows]),
            })
            .collect();
        let new = |which: usize, head_dim, bits: &[u32]| {
            let shape = [self.count * batch, length, heads, head_dim];
            Buffer::new(gpu, Dtype::F32, self.orders[which], shape, self.shift, Some(bits))
        };
        Memory { out: new(0, head_dim, &out), lse: new(1, 1, &lse), parts, out_bits: out, lse_bits: lse }
    }

    /// The result's bits against the reference.
    ///
    /// With w the exact weights and g the differences of log-sum-exps to the largest: a difference rounds once, its product
    /// with 1 / ln 2 too, and the exponential is off by 2^-22, so a weight is within 2^-22 (1 + g) of the exact one,
    /// relatively. Up to 70 terms are added, each sum rounding once, above and below the line. So the output is within
    /// Σ w (2^-16 + 2^-21 g) |out_p| of the exact one, the log-sum-exp within 2^-17 + 2^-22 |lse|.
    fn check(&self, parts: &[Output], out: &[u32], lse: Option<&[u32]>) -> Result<(), TestCaseError> {
        let head_dim = self.shape[3];
        let exact = reference::merge::merge(self.rows(), head_dim, parts).unwrap();
        let dtype = format(self.out_dtype);
        prop_assert_eq!(out.len(), exact.out.len());
        for (row, &exact_lse) in exact.lse.iter().enumerate() {
            let empty = exact_lse == f64::NEG_INFINITY;
            if let Some(lse) = lse {
                let found = f64::from(f32::from_bits(lse[row]));
                let close = (found - exact_lse).abs() <= 2f64.powi(-17) + 2f64.powi(-22) * exact_lse.abs();
                prop_assert!(
                    found == exact_lse || !empty && close,
                    "row {}: {} against {}",
                    row,
                    found,
                    exact_lse
                );
            }
            let seen: Vec<&Output> = parts.iter().filter(|part| part.lse[row] > f64::NEG_INFINITY).collect();
            let largest = seen.iter().map(|part| part.lse[row]).fold(f64::NEG_INFINITY, f64::max);
            for (dim, &bits) in out[row * head_dim..(row + 1) * head_dim].iter().enumerate() {
                let i = row * head_dim + dim;
                let eps: f64 = seen
                    .iter()
                    .map(|part| {
                        let (weight, g) = ((part.lse[row] - exact_lse).exp(), largest - part.lse[row]);
                        // Of a weight that vanishes, its error does too; f32 holds those above 2^-126.
                        let error = weight * (2f64.powi(-16) + 2f64.powi(-21) * g.min(1e3));
                        error * part.out[i].abs() + 2f64.powi(-120)
                    })
                    .sum();
                let good = match empty {
                    true => dtype.decode(bits) == 0.0,
                    false => dtype.within(bits, exact.out[i], eps).unwrap(),
                };
                prop_assert!(
                    good,
                    "row {}, dimension {}: {} against {}, bound {}",
                    row,
                    dim,
                    dtype.decode(bits),
                    exact.out[i],
                    eps
                );
            }
        }
        Ok(())
    }
}

impl Memory {
    fn parts(&self, problem: &Problem) -> Parts {
        // The buffers hold all parts as one batch.
        let first = |tensor: DeviceTensor| {
            let [_, length, heads, dim] = tensor.layout.shape();
            let layout = Layout::strided([problem.shape[0], length, heads, dim], tensor.layout.strides());
            DeviceTensor { layout, ..tensor }
        };
        let stride = |tensor: DeviceTensor| problem.shape[0] as i64 * tensor.layout.strides()[0];
        Parts {
            count: problem.count,
            out: first(self.out.tensor),
            lse: first(self.lse.tensor),
            out_stride: stride(self.out.tensor),
            lse_stride: stride(self.lse.tensor),
        }
    }

    /// The output and the log-sum-exp of a part.
    fn part(&self, problem: &Problem, part: usize) -> (DeviceTensor, DeviceTensor) {
        let parts = self.parts(problem);
        let at = |tensor: DeviceTensor, stride: i64| DeviceTensor {
            address: tensor.address + (part as i64 * stride * 4) as u64,
            ..tensor
        };
        (at(parts.out, parts.out_stride), at(parts.lse, parts.lse_stride))
    }
}

/// Launches on the test's stream.
///
/// # Safety
/// As [`Merge::run`].
pub unsafe fn launch(gpu: &Gpu, merge: &Merge) {
    // SAFETY: the caller's promise.
    unsafe { merge.run(&gpu.kernels, gpu.raw_stream()) }.unwrap();
}

fn within_bound(gpu: &Gpu) {
    let run = |(problem, with_lse): (Problem, bool)| {
        let memory = problem.memory(gpu);
        let [batch, length, heads, _] = problem.shape;
        let out = Buffer::new(gpu, problem.out_dtype, problem.orders[2], problem.shape, problem.shift, None);
        let lse_shape = [batch, length, heads, 1];
        let lse = Buffer::new(gpu, Dtype::F32, problem.orders[3], lse_shape, problem.shift, None);
        let merge =
            Merge { parts: memory.parts(&problem), out: out.tensor, lse: with_lse.then_some(lse.tensor) };
        // SAFETY: the buffers are as large as their layouts say, and live until they were read.
        unsafe { launch(gpu, &merge) };
        let found = lse.read(gpu);
        prop_assert!(with_lse || lse.is_untouched(gpu));
        prop_assert_eq!(&memory.out.read(gpu), &memory.out_bits);
        prop_assert_eq!(&memory.lse.read(gpu), &memory.lse_bits);
        problem.check(&memory.parts, &out.read(gpu), with_lse.then_some(&found[..]))
    };
    check_cases(gpu, || (problem(), prop::bool::weighted(0.8)), run);
}

fn in_place(gpu: &Gpu) {
    let run = |(mut problem, which): (Problem, usize)| {
        problem.count = problem.count.max(1);
        problem.out_dtype = Dtype::F32;
        let which = which % problem.count;
        let memory = problem.memory(gpu);
        let (out, lse) = memory.part(&problem, which);
        let merge = Merge { parts: memory.parts(&problem), out, lse: Some(lse) };
        // SAFETY: the result is that of a part, with its strides.
        unsafe { launch(gpu, &merge) };
        let (mut out, mut lse) = (memory.out.read(gpu), memory.lse.read(gpu));
        let rows = problem.rows();
        let (first, width) = (which * rows, problem.shape[3]);
        let merged = out[first * width..(first + rows) * width].to_vec();
        let merged_lse = lse[first..first + rows].to_vec();
        problem.check(&memory.parts, &merged, Some(&merged_lse))?;
        // The other parts are as they were.
        let before = &memory.out_bits[first * width..(first + rows) * width];
        out[first * width..(first + rows) * width].copy_from_slice(before);
        lse[first..first + rows].copy_from_slice(&memory.lse_bits[first..first + rows]);
        prop_assert_eq!(&out, &memory.out_bits);
        prop_assert_eq!(&lse, &memory.lse_bits);
        Ok(())
    };
    check_cases(gpu, || (problem(), any::<usize>()), run);
}

fn pair(gpu: &Gpu) {
    let run = |(mut problem, swap): (Problem, bool)| {
        problem.count = 1;
        problem.out_dtype = Dtype::F32;
        let mut other = problem.clone();
        other.seed ^= 7 << 40;
        let memories = [problem.memory(gpu), other.memory(gpu)];
        // In either order in memory.
        let [first, second] = if swap { [1, 0] } else { [0, 1] };
        let (out, lse) = memories[second].part(&problem, 0);
        let parts = Parts::pair(memories[first].part(&problem, 0), (out.address, lse.address));
        let merge = Merge { parts, out, lse: Some(lse) };
        // SAFETY: the result is that of the second part, which has the strides of the first.
        unsafe { launch(gpu, &merge) };
        let exact = [memories[first].parts[0].clone(), memories[second].parts[0].clone()];
        let (out, lse) = (memories[second].out.read(gpu), memories[second].lse.read(gpu));
        prop_assert_eq!(&memories[first].out.read(gpu), &memories[first].out_bits);
        problem.check(&exact, &out, Some(&lse))
    };
    check_cases(gpu, || (problem(), any::<bool>()), run);
}

fn no_part(gpu: &Gpu) {
    let layout = Layout::bshd(2, 3, 2, 64);
    let nowhere = |layout| DeviceTensor { address: 0, dtype: Dtype::F32, layout };
    let out = Buffer::new(gpu, Dtype::Bf16, Order::Bshd, layout.shape(), 0, None);
    let lse = Buffer::new(gpu, Dtype::F32, Order::Bshd, [2, 3, 2, 1], 0, None);
    let parts = Parts {
        count: 0,
        out: nowhere(layout),
        lse: nowhere(Layout::bshd(2, 3, 2, 1)),
        out_stride: 0,
        lse_stride: 0,
    };
    // SAFETY: there is no part to read, and the result is as large as its layout says.
    unsafe { launch(gpu, &Merge { parts, out: out.tensor, lse: Some(lse.tensor) }) };
    assert!(out.read(gpu).iter().all(|bits| bits & 0x7fff == 0));
    assert!(lse.read(gpu).iter().all(|&bits| f32::from_bits(bits) == f32::NEG_INFINITY));
}

fn empty(gpu: &Gpu) {
    for shape in [[0, 4, 2, 64], [1, 0, 2, 64], [1, 4, 0, 64]] {
        let [b, s, h, d] = shape;
        let tensor = |d| DeviceTensor { address: 0, dtype: Dtype::F32, layout: Layout::bshd(b, s, h, d) };
        let (out, lse) = (tensor(d), tensor(1));
        let parts = Parts { count: 2, out, lse, out_stride: 0, lse_stride: 0 };
        // SAFETY: there is no element to read or write.
        unsafe { launch(gpu, &Merge { parts, out, lse: Some(lse) }) };
    }
}
