//! A backward pass is an error: a gradient that is silently missing would train the rest of a model wrongly.

use candle_core::{DType, Device, Tensor, Var};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Rotary, attention};

fn variable() -> Var {
    Var::randn(0f32, 1.0, (1, 5, 2, 8), &Device::Cpu).unwrap()
}

fn rotary() -> Rotary {
    let sets = FactorSets::uniform(FactorSet::exact(&[1.0, 0.1, 0.01, 0.001], 1.0).unwrap());
    Rotary::new(sets, SetChoice::Short)
}

/// The message of the error of a backward pass from a result.
fn refused(result: &Tensor) -> String {
    result.sqr().unwrap().sum_all().unwrap().backward().unwrap_err().to_string()
}

#[test]
fn through_the_rotary_embedding_it_is_an_error_that_names_it() {
    let (x, constant) = (variable(), Tensor::zeros((1, 5, 2, 8), DType::F32, &Device::Cpu).unwrap());
    let (q, k) = rotary().apply(&x, &constant).unwrap();
    for result in [q, k, rotary().apply(&constant, &x).unwrap().0, rotary().apply_one(&x).unwrap()] {
        assert!(refused(&result).contains("longrope-rotary"), "{}", refused(&result));
    }
}

#[test]
fn through_attention_it_is_an_error_that_names_it() {
    let (x, constant) = (variable(), Tensor::zeros((1, 5, 2, 8), DType::F32, &Device::Cpu).unwrap());
    for [q, k, v] in [[&*x, &constant, &constant], [&constant, &x, &constant], [&constant, &constant, &x]] {
        let result = attention(q, k, v, &Attention::causal()).unwrap();
        assert!(refused(&result).contains("longrope-attention"), "{}", refused(&result));
    }
}

#[test]
fn where_nothing_asks_for_a_gradient_it_passes() {
    let (x, constant) = (variable(), Tensor::ones((1, 5, 2, 8), DType::F32, &Device::Cpu).unwrap());
    let result = attention(&constant, &constant, &constant, &Attention::causal()).unwrap();
    let loss = (result * &*x).unwrap().sum_all().unwrap();
    assert!(loss.backward().unwrap().get(&x).is_some());
}
