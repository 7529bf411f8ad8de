//! Gradients through the operations on the CPU: against the reference, against finite differences, and none that is missing.

use candle_core::{DType, Device, Tensor, Var};
use longrope::reference;
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Direction, KeptAttention, Rotary, attention, rotary_attention};

use crate::shared::{elements, values};

const QUERIES: (usize, usize, usize, usize) = (2, 37, 4, 16);
const KEYS: (usize, usize, usize, usize) = (2, 37, 2, 16);

fn random(seed: u64, shape: (usize, usize, usize, usize), dtype: DType) -> Tensor {
    let values = values(dtype, seed, shape.0 * shape.1 * shape.2 * shape.3);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Plain, short and long frequencies that differ, with a gain, and first tokens that stay.
fn rotary() -> Rotary {
    let frequencies = |base: f64| -> Vec<f64> { (0..6).map(|i| base.powi(i)).collect() };
    let exact = |base, gain| FactorSet::exact(&frequencies(base), gain).unwrap();
    let sets = FactorSets::new(exact(0.5, 1.0), exact(0.4, 1.25), exact(0.3, 1.25), 20, 5).unwrap();
    Rotary::new(sets, SetChoice::ByLength(37))
}

/// A layer: `q` and `k` rotated, then attention with a window, as `sum(out * weights)` in f32.
fn loss([q, k, v]: [&Tensor; 3], weights: &Tensor) -> Tensor {
    let (q, k) = rotary().at(1).apply(q, k).unwrap();
    let masks = Attention { window: Some(19), ..Attention::causal() };
    let out = attention(&q, &k, v, &masks).unwrap();
    (out * weights).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap()
}

fn number(x: &Tensor) -> f64 {
    f64::from(x.to_scalar::<f32>().unwrap())
}

#[test]
fn gradients_of_attention_are_those_of_the_reference() {
    for (dtype, bound) in [(DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let [q, k, v] = [(1, QUERIES), (2, KEYS), (3, KEYS)]
            .map(|(seed, shape)| Var::from_tensor(&random(seed, shape, dtype)).unwrap());
        let weights = random(4, QUERIES, dtype);
        let out = attention(&q, &k, &v, &Attention::causal()).unwrap();
        let gradients = (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let problem = reference::Problem {
            query_heads: 4,
            key_heads: 2,
            query_length: 37,
            key_length: 37,
            head_dim: 16,
            scale: 0.25,
            causal: true,
            window: None,
            query_offset: 0,
            key_offset: 0,
        };
        for batch in 0..2 {
            let part = |x: &Tensor| -> Vec<f64> {
                let x = elements(&x.narrow(0, batch, 1).unwrap());
                x.into_iter().map(f64::from).collect()
            };
            let exact = problem.backward(&part(&q), &part(&k), &part(&v), &part(&weights), None).unwrap();
            for (x, exact) in [(&q, exact.dq), (&k, exact.dk), (&v, exact.dv)] {
                let found = part(gradients.get(x).unwrap());
                let largest = exact.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                for (found, exact) in found.iter().zip(&exact) {
                    // The output is rounded to its type before the backward pass reads it, and gradients are after it.
                    assert!((found - exact).abs() <= bound * largest, "{dtype:?}: {found} is not {exact}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_a_layer_are_its_finite_differences() {
    let inputs = [(1, QUERIES), (2, KEYS), (3, KEYS)]
        .map(|(seed, shape)| Var::from_tensor(&random(seed, shape, DType::F32)).unwrap());
    let weights = random(4, QUERIES, DType::F32);
    let [q, k, v] = [0, 1, 2].map(|i| inputs[i].as_tensor());
    let gradients = loss([q, k, v], &weights).backward().unwrap();
    for i in 0..3 {
        for seed in 10..14 {
            let direction = random(seed, if i == 0 { QUERIES } else { KEYS }, DType::F32);
            let step = 0.01;
            let at = |step: f64| {
                let moved = (inputs[i].as_tensor() + (&direction * step).unwrap()).unwrap();
                let mut tensors = [q, k, v];
                tensors[i] = &moved;
                number(&loss(tensors, &weights))
            };
            let difference = (at(step) - at(-step)) / (2.0 * step);
            let gradient = gradients.get(inputs[i].as_tensor()).unwrap();
            let product = number(&(gradient * &direction).unwrap().sum_all().unwrap());
            // Third derivatives times the square of the step, and the rounding of sums of some thousand terms over the step.
            assert!(
                (product - difference).abs() < 5e-3 * (1.0 + product.abs()),
                "{i}: {product}, {difference}"
            );
        }
    }
}

#[test]
fn the_gradient_through_a_rotation_is_the_transposed_rotation() {
    let gradient = random(2, QUERIES, DType::F32);
    for direction in [Direction::Forward, Direction::Backward] {
        let rotary = Rotary { direction, ..rotary() };
        let x = Var::from_tensor(&random(1, QUERIES, DType::F32)).unwrap();
        let one = (rotary.apply_one(&x).unwrap() * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
        let other = match direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        let expected = elements(&Rotary { direction: other, ..rotary.clone() }.apply_one(&gradient).unwrap());
        assert_eq!(elements(one.get(&x).unwrap()), expected);
        // Of two at once, each has its own.
        let y = Var::from_tensor(&random(3, KEYS, DType::F32)).unwrap();
        let (first, second) = rotary.apply(&x, &y).unwrap();
        let sum = ((first * &gradient).unwrap().sum_all().unwrap() + second.sum_all().unwrap()).unwrap();
        let both = sum.backward().unwrap();
        assert_eq!(elements(both.get(&x).unwrap()), expected);
        let ones = Tensor::ones(KEYS, DType::F32, &Device::Cpu).unwrap();
        let expected = elements(&Rotary { direction: other, ..rotary }.apply_one(&ones).unwrap());
        assert_eq!(elements(both.get(&y).unwrap()), expected);
    }
}

#[test]
fn a_kept_attention_gives_the_bits_of_one_that_is_made_again() {
    let masks = Attention { window: Some(19), ..Attention::causal() };
    for dtype in [DType::F32, DType::BF16] {
        let [q, k, v] = [(1, QUERIES), (2, KEYS), (3, KEYS)]
            .map(|(seed, shape)| Var::from_tensor(&random(seed, shape, dtype)).unwrap());
        let weights = random(4, QUERIES, dtype);
        let kept = KeptAttention::new(&q, &k, &v, &rotary(), &masks).unwrap();
        let whole = rotary_attention(&q, &k, &v, &rotary(), &masks).unwrap();
        // It leaves no trace: a gradient would need the activations.
        let unrecorded = kept.out().sum_all().unwrap().backward().unwrap();
        assert!(unrecorded.get(&q).is_none());
        let again = kept.again(&q, &k, &v).unwrap();
        assert_eq!(elements(kept.out()), elements(&whole));
        assert_eq!(elements(&again), elements(&whole));
        let gradients = |out: &Tensor| (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (found, expected) = (gradients(&again), gradients(&whole));
        for x in [&q, &k, &v] {
            assert_eq!(elements(found.get(x).unwrap()), elements(expected.get(x).unwrap()));
        }
        let message = kept.again(&q, &k.narrow(1, 0, 36).unwrap(), &v).unwrap_err().to_string();
        assert!(message.contains("k: ") && message.contains("as before"), "{message}");
    }
}

#[test]
fn no_gradient_is_missing() {
    let constant = [(1, QUERIES), (2, KEYS), (3, KEYS)].map(|(seed, shape)| random(seed, shape, DType::F32));
    let weights = random(4, QUERIES, DType::F32);
    for i in 0..3 {
        let variable = Var::from_tensor(&constant[i]).unwrap();
        let mut tensors = [&constant[0], &constant[1], &constant[2]];
        tensors[i] = &variable;
        let gradients = loss(tensors, &weights).backward().unwrap();
        let gradient = elements(gradients.get(&variable).expect("a gradient"));
        assert!(gradient.iter().all(|x| x.is_finite()) && gradient.iter().any(|x| *x != 0.0), "{i}");
    }
    // Views share their variable's gradient: q, k and v as parts of one.
    let packed = Var::from_tensor(&random(5, (2, 37, 8, 16), DType::F32)).unwrap();
    let part = |start, heads| packed.narrow(2, start, heads).unwrap();
    let gradients = loss([&part(0, 4), &part(4, 2), &part(6, 2)], &weights).backward().unwrap();
    // All but the first token, whose query sees one key, so that nothing depends on it.
    let gradient = gradients.get(&packed).unwrap().narrow(1, 1, 36).unwrap();
    assert!(elements(&gradient).chunks(16).all(|row| row.iter().any(|x| *x != 0.0)));
}

#[test]
fn where_nothing_asks_for_a_gradient_none_is_made() {
    let x = Var::from_tensor(&random(1, QUERIES, DType::F32)).unwrap();
    let constant = random(2, QUERIES, DType::F32);
    let result = attention(&constant, &constant, &constant, &Attention::causal()).unwrap();
    let gradients = (result * &*x).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some() && gradients.get(&constant).is_none());
}
