//! Rotary embedding and attention as one operation, against the two.

use candle_core::{DType, Device, Tensor, Var};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Pairing, Rotary, attention, rotary_attention};

use crate::shared::elements;
use crate::{LAYER, Loss, are_finite_differences, are_those_of_the_cpu, gradients, layer, variables};

/// 24 pairs of 32, in sets that differ, with a gain, and first tokens that stay: with [`masks`], the first 3 keys.
fn rotary(pairing: Pairing) -> Rotary {
    let set =
        |base: f64, gain| FactorSet::exact(&(0..24).map(|i| base.powi(i)).collect::<Vec<_>>(), gain).unwrap();
    let sets = FactorSets::new(set(0.7, 1.0), set(0.65, 1.125), set(0.6, 1.125), 80, 9).unwrap();
    Rotary { pairing, ..Rotary::new(sets, SetChoice::ByLength(81)) }.at(3)
}

/// Queries that follow 11 keys.
fn masks() -> Attention {
    Attention { window: Some(41), query_offset: 14, key_offset: 3, ..Attention::causal() }
}

fn in_one([q, k, v]: [&Tensor; 3], pairing: Pairing) -> Tensor {
    rotary_attention(q, k, v, &rotary(pairing), &masks()).unwrap()
}

fn in_two([q, k, v]: [&Tensor; 3], pairing: Pairing) -> Tensor {
    // From the rotary's own position 3.
    let (q, k) = (rotary(pairing).at(17).apply_one(q).unwrap(), rotary(pairing).at(6).apply_one(k).unwrap());
    attention(&q, &k, v, &masks()).unwrap()
}

fn weighted(out: &Tensor, weights: &Tensor) -> Tensor {
    (out * weights).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap()
}

/// For each pairing, the loss of the one operation and that of the two.
const LOSSES: [[Loss; 2]; 2] = [
    [
        |[q, k, v, weights]| weighted(&in_one([q, k, v], Pairing::HalfSplit), weights),
        |[q, k, v, weights]| weighted(&in_two([q, k, v], Pairing::HalfSplit), weights),
    ],
    [
        |[q, k, v, weights]| weighted(&in_one([q, k, v], Pairing::Interleaved), weights),
        |[q, k, v, weights]| weighted(&in_two([q, k, v], Pairing::Interleaved), weights),
    ],
];

/// The same kernels on the same numbers.
pub fn has_the_values_of_two(gpu: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        let inputs = variables(&layer(dtype), dtype, gpu);
        let inputs = [0, 1, 2].map(|i: usize| inputs[i].as_tensor());
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let (one, two) = (in_one(inputs, pairing), in_two(inputs, pairing));
            assert_eq!(elements(&one), elements(&two), "{dtype:?} {pairing:?}");
        }
    }
}

/// Against the two on the CPU, in f32.
pub fn has_the_gradients_of_two(gpu: &Device, dtype: DType, bound: f32) {
    for losses in LOSSES {
        are_those_of_the_cpu(gpu, dtype, bound, losses);
    }
}

/// The gradients of the one against differences of the two.
pub fn has_finite_differences(gpu: &Device) {
    for losses in LOSSES {
        are_finite_differences(gpu, losses);
    }
}

/// Every input has a gradient that is not zero, and one variable in all places of two uses has the sum of all six.
pub fn none_is_missing(gpu: &Device) {
    let mut values = layer(DType::BF16);
    for [one, _] in LOSSES {
        let found = gradients(&values, DType::BF16, gpu, one);
        assert!(found.iter().all(|gradient| gradient.iter().any(|x| *x != 0.0)));
    }
    let weights = Tensor::from_vec(values[3].clone(), &LAYER[3], gpu).unwrap().to_dtype(DType::BF16).unwrap();
    let x = Tensor::from_vec(std::mem::take(&mut values[0]), &LAYER[0], gpu).unwrap();
    let x = x.to_dtype(DType::BF16).unwrap();
    let [x, q, k, v] = [(); 4].map(|()| Var::from_tensor(&x).unwrap());
    let use_of = |inputs| weighted(&in_one(inputs, Pairing::HalfSplit), &weights);
    let apart = use_of([&q, &k, &v]).backward().unwrap();
    let [dq, dk, dv] = [&q, &k, &v].map(|x| elements(apart.get(x).unwrap()));
    let shared = (use_of([&x, &x, &x]) + use_of([&x, &x, &x])).unwrap().backward().unwrap();
    for (i, found) in elements(shared.get(&x).unwrap()).into_iter().enumerate() {
        let (sum, size) = (2.0 * (dq[i] + dk[i] + dv[i]), 2.0 * (dq[i].abs() + dk[i].abs() + dv[i].abs()));
        // Five sums are rounded, each of at most that size and what the roundings before it added.
        assert!((found - sum).abs() <= 5.1 / 256.0 * size, "{i}: {found} is not {sum}");
    }
}
