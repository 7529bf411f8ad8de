//! Rotary embedding and attention as one operation on the CPU: against the two, against finite differences, and no gradient
//! that is missing.

use candle_core::{DType, Device, Tensor, Var};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Pairing, Rotary, attention, rotary_attention};

use crate::shared::{elements, values};

type Shape = (usize, usize, usize, usize);

/// Shapes of queries, and of keys and values.
const SHAPES: [Shape; 3] = [(2, 29, 4, 16), (2, 43, 2, 16), (2, 43, 2, 16)];

fn random(seed: u64, shape: Shape, dtype: DType) -> Tensor {
    let values = values(dtype, seed, shape.0 * shape.1 * shape.2 * shape.3);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn variables(dtype: DType) -> [Var; 3] {
    [0, 1, 2].map(|i: usize| Var::from_tensor(&random(i as u64 + 1, SHAPES[i], dtype)).unwrap())
}

/// Gain of the short and of the long set.
const GAIN: f64 = 1.25;

/// Six pairs of eight, in plain, short and long frequencies that differ, with a gain, and first tokens that stay.
fn rotary(pairing: Pairing, choice: SetChoice) -> Rotary {
    let frequencies = |base: f64| -> Vec<f64> { (0..6).map(|i| base.powi(i)).collect() };
    let exact = |base, gain| FactorSet::exact(&frequencies(base), gain).unwrap();
    let sets = FactorSets::new(exact(0.5, 1.0), exact(0.4, GAIN), exact(0.3, GAIN), 20, 15).unwrap();
    Rotary { pairing, ..Rotary::new(sets, choice) }.at(3)
}

/// Queries that follow 14 keys, so that the rotary's first tokens are keys alone, and not all of these.
fn masks() -> Attention {
    Attention { window: Some(23), query_offset: 19, key_offset: 5, scale: Some(0.4), ..Attention::causal() }
}

fn in_two([q, k, v]: [&Tensor; 3], rotary: &Rotary, masks: &Attention) -> Tensor {
    let q = rotary.at(rotary.offset + masks.query_offset).apply_one(q).unwrap();
    let k = rotary.at(rotary.offset + masks.key_offset).apply_one(k).unwrap();
    attention(&q, &k, v, masks).unwrap()
}

/// The sum of an output times weights, in f32.
fn weighted(out: &Tensor) -> Tensor {
    let weights = random(4, SHAPES[0], out.dtype());
    (out * weights).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap()
}

fn loss([q, k, v]: [&Tensor; 3], masks: &Attention) -> Tensor {
    let rotary = rotary(Pairing::HalfSplit, SetChoice::ByLength(43));
    weighted(&rotary_attention(q, k, v, &rotary, masks).unwrap())
}

fn number(x: &Tensor) -> f64 {
    f64::from(x.to_scalar::<f32>().unwrap())
}

#[test]
fn values_and_gradients_are_those_of_the_two_operations() {
    // Units of rounding. In f32 both compute the same; in 16 bits the two round gradients between them, this one does not.
    let types = [(DType::F32, 0.0), (DType::F16, f32::powi(2.0, -11)), (DType::BF16, f32::powi(2.0, -8))];
    for (dtype, unit) in types {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            for choice in
                [SetChoice::Short, SetChoice::Long, SetChoice::ByLength(21), SetChoice::ByLength(20)]
            {
                let rotary = rotary(pairing, choice);
                let inputs = variables(dtype);
                let [q, k, v] = [0, 1, 2].map(|i: usize| inputs[i].as_tensor());
                let one = rotary_attention(q, k, v, &rotary, &masks()).unwrap();
                let two = in_two([q, k, v], &rotary, &masks());
                assert_eq!(one.dims(), two.dims());
                assert_eq!(elements(&one), elements(&two));
                let (one, two) = (weighted(&one).backward().unwrap(), weighted(&two).backward().unwrap());
                for (i, x) in inputs.iter().enumerate() {
                    let [found, expected] = [&one, &two].map(|of| elements(of.get(x).unwrap()));
                    let largest = expected.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                    // Two numbers of a pair are rounded and turned to at most the root of 2 of the largest, then all are rounded.
                    let bound = if i == 2 { 0.0 } else { 3.5 * unit * largest };
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() <= bound, "{dtype:?} {i}: {found}, {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn where_both_offsets_are_zero_it_is_apply_and_then_attention() {
    let rotary = rotary(Pairing::HalfSplit, SetChoice::Long);
    let x = random(1, SHAPES[0], DType::F32);
    let (q, k) = rotary.apply(&x, &x).unwrap();
    let two = attention(&q, &k, &x, &Attention::causal()).unwrap();
    let one = rotary_attention(&x, &x, &x, &rotary, &Attention::causal()).unwrap();
    assert_eq!(elements(&one), elements(&two));
}

#[test]
fn views_are_read_and_differentiated_as_they_lie() {
    let rotary = rotary(Pairing::Interleaved, SetChoice::Short);
    let dense = variables(DType::F32);
    let results = [false, true].map(|is_view| {
        let [q, k, v] = [0, 1, 2].map(|i: usize| match is_view {
            true => dense[i].transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap(),
            false => dense[i].as_tensor().clone(),
        });
        assert_eq!(q.is_contiguous(), !is_view);
        let out = rotary_attention(&q, &k, &v, &rotary, &masks()).unwrap();
        let gradients = weighted(&out).backward().unwrap();
        let gradients = [0, 1, 2].map(|i: usize| elements(gradients.get(&dense[i]).unwrap()));
        (elements(&out), gradients)
    });
    assert_eq!(results[0], results[1]);
}

#[test]
fn gradients_are_finite_differences() {
    let inputs = variables(DType::F32);
    let [q, k, v] = [0, 1, 2].map(|i: usize| inputs[i].as_tensor());
    let gradients = loss([q, k, v], &masks()).backward().unwrap();
    for i in 0..3 {
        for seed in 10..14 {
            let direction = random(seed, SHAPES[i], DType::F32);
            let step = 0.01;
            let at = |step: f64| {
                let moved = (inputs[i].as_tensor() + (&direction * step).unwrap()).unwrap();
                let mut tensors = [q, k, v];
                tensors[i] = &moved;
                number(&loss(tensors, &masks()))
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
fn no_gradient_is_missing() {
    let constant = [0, 1, 2].map(|i: usize| random(i as u64 + 1, SHAPES[i], DType::F32));
    for i in 0..3 {
        let variable = Var::from_tensor(&constant[i]).unwrap();
        let mut tensors = [&constant[0], &constant[1], &constant[2]];
        tensors[i] = &variable;
        // Every query sees a key and every key is seen, so that every row has one.
        let gradients = loss(tensors, &Attention::default()).backward().unwrap();
        let gradient = elements(gradients.get(&variable).expect("a gradient"));
        assert!(gradient.iter().all(|x| x.is_finite()), "{i}");
        assert!(gradient.chunks(16).all(|row| row.iter().any(|x| *x != 0.0)), "{i}");
    }
    // Where there is nothing to differentiate, there is none.
    let x = Var::from_tensor(&constant[0]).unwrap();
    let [q, k, v] = [0, 1, 2].map(|i: usize| &constant[i]);
    let sum = (loss([q, k, v], &masks()) + x.sum_all().unwrap()).unwrap();
    let gradients = sum.backward().unwrap();
    assert!(gradients.get(&x).is_some() && constant.iter().all(|x| gradients.get(x).is_none()));
}

#[test]
fn a_sum_of_two_uses_has_the_sum_of_their_gradients() {
    let inputs = variables(DType::F32);
    let [q, k, v] = [0, 1, 2].map(|i: usize| inputs[i].as_tensor());
    let uses = || [masks(), Attention::default()].map(|masks| loss([q, k, v], &masks));
    let [first, second] = uses().map(|loss| loss.backward().unwrap());
    let [one, two] = uses();
    let both = (one + two).unwrap().backward().unwrap();
    for x in &inputs {
        let [first, second, both] = [&first, &second, &both].map(|of| elements(of.get(x).unwrap()));
        assert!(first.iter().any(|x| *x != 0.0) && second.iter().any(|x| *x != 0.0));
        let sum: Vec<f32> = first.iter().zip(&second).map(|(x, y)| x + y).collect();
        assert_eq!(both, sum);
    }
}

#[test]
fn one_variable_as_queries_keys_and_values_has_all_three_gradients() {
    let rotary = rotary(Pairing::HalfSplit, SetChoice::Short);
    let gradient = |inputs: &[&Tensor; 3], of: &[&Var]| -> Vec<Vec<f32>> {
        let out = rotary_attention(inputs[0], inputs[1], inputs[2], &rotary, &Attention::causal()).unwrap();
        let gradients = weighted(&out).backward().unwrap();
        of.iter().map(|x| elements(gradients.get(x).unwrap())).collect()
    };
    let values = random(1, SHAPES[0], DType::F32);
    let [x, q, k, v] = [(); 4].map(|()| Var::from_tensor(&values).unwrap());
    let shared = gradient(&[&x, &x, &x], &[&x]);
    let apart = gradient(&[&q, &k, &v], &[&q, &k, &v]);
    let sum: Vec<f32> = (0..shared[0].len()).map(|i| apart[0][i] + apart[1][i] + apart[2][i]).collect();
    assert_eq!(shared[0], sum);
}
