//! Attention against the reference.

use candle_core::{DType, Device};
use longrope::reference;
use longrope_candle::{Attention, attention};
use proptest::prelude::*;

use super::views::{View, place, view};
use super::{check_element, elements, for_all, least_length, values};

/// An attention over random queries, keys and values.
#[derive(Debug, Clone)]
pub struct Problem {
    batch: usize,
    lengths: [usize; 2],
    heads: [usize; 2],
    head_dim: usize,
    attention: Attention,
    seed: u64,
    views: [View; 3],
}

/// Head dimensions are multiples of `step`, as the device demands.
fn problem(step: usize, least: usize) -> impl Strategy<Value = Problem> {
    let lengths = prop_oneof![(least..12, least..12), (60usize..140, 100usize..300)];
    let window = prop_oneof![Just(None), (1u64..20).prop_map(Some), (20u64..400).prop_map(Some)];
    let scale = prop_oneof![Just(None), (0.01f32..2.0).prop_map(Some)];
    (
        (1usize..3, lengths, 1usize..4, 1usize..4, 1usize..=48 / step),
        (any::<bool>(), window, scale, -150i64..150, -150i64..150),
        any::<u64>(),
        [view(), view(), view()],
    )
        .prop_map(move |(shape, (causal, window, scale, query_offset, key_offset), seed, views)| {
            let (batch, lengths, key_heads, ratio, steps) = shape;
            Problem {
                batch,
                lengths: lengths.into(),
                heads: [key_heads * ratio, key_heads],
                head_dim: step * steps,
                attention: Attention { scale, causal, window, query_offset, key_offset },
                seed,
                views,
            }
        })
}

impl Problem {
    /// Of queries (0) or of keys (1).
    fn shape(&self, which: usize) -> [usize; 4] {
        [self.batch, self.lengths[which], self.heads[which], self.head_dim]
    }

    /// The exact output, `[batch, length, heads, head_dim]`.
    fn exact(&self, [q, k, v]: [&[f32]; 3]) -> Vec<f64> {
        let problem = reference::Problem {
            query_heads: self.heads[0],
            key_heads: self.heads[1],
            query_length: self.lengths[0],
            key_length: self.lengths[1],
            head_dim: self.head_dim,
            scale: f64::from(self.attention.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())),
            causal: self.attention.causal,
            window: self.attention.window,
            query_offset: self.attention.query_offset,
            key_offset: self.attention.key_offset,
        };
        let mut out = Vec::new();
        for batch in 0..self.batch {
            let part = |x: &[f32]| -> Vec<f64> {
                let size = x.len() / self.batch;
                x[batch * size..][..size].iter().map(|&x| f64::from(x)).collect()
            };
            out.extend(problem.forward(&part(q), &part(k), &part(v)).unwrap().out);
        }
        out
    }
}

/// Values are at most 1 and weights sum to 1, so the output is within the largest relative error of a weight: 5e-6 in f32;
/// where `weights` is given, the kernel keeps the weights in that many bits of fraction, rounded to nearest. Then the result
/// is rounded once to its type.
pub fn is_within_its_bound_of_the_reference(
    device: &Device,
    dtype: DType,
    weights: Option<i32>,
    step: usize,
) {
    let eps = 1e-5 + weights.map_or(0.0, |bits| f64::powi(2.0, -1 - bits));
    for_all(problem(step, least_length(device)), |problem| {
        let shapes = [problem.shape(0), problem.shape(1), problem.shape(1)];
        let dense: [Vec<f32>; 3] =
            std::array::from_fn(|i| values(dtype, problem.seed ^ i as u64, shapes[i].iter().product()));
        let [q, k, v] =
            std::array::from_fn(|i| place(&dense[i], shapes[i], dtype, device, problem.views[i]).unwrap());
        let out = attention(&q, &k, &v, &problem.attention).unwrap();
        prop_assert_eq!(out.dims(), &shapes[0]);
        prop_assert!(out.is_contiguous() && out.dtype() == dtype);
        let exact = problem.exact([&dense[0], &dense[1], &dense[2]]);
        for (found, exact) in elements(&out).into_iter().zip(exact) {
            check_element(dtype, found, exact, eps)?;
        }
        Ok(())
    });
}
