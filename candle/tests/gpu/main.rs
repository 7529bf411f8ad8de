//! The operations on a GPU. Without one, or without the feature `cuda`, the tests show as ignored; with
//! `LONGROPE_REQUIRE_GPU=1` that is a failure.

#[path = "../shared/mod.rs"]
mod shared;

mod rotary_attention;

use candle_core::{DType, Device, Tensor, Var};
use libtest_mimic::{Arguments, Failed, Trial};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Rotary, attention};
use shared::views::{View, place};
use shared::{elements, values};

/// A test: its name and what it does on a GPU.
type Test = (&'static str, fn(&Device));

/// Head dimensions that the attention kernels take.
const STEP: usize = 8;

const TESTS: &[Test] = &[
    ("rotary_in_f32_is_within_its_bound_of_the_reference", |gpu| {
        shared::rotary::is_within_its_bound_of_the_reference(gpu, DType::F32);
    }),
    ("rotary_in_f16_is_within_its_bound_of_the_reference", |gpu| {
        shared::rotary::is_within_its_bound_of_the_reference(gpu, DType::F16);
    }),
    ("rotary_in_bf16_is_within_its_bound_of_the_reference", |gpu| {
        shared::rotary::is_within_its_bound_of_the_reference(gpu, DType::BF16);
    }),
    ("attention_in_f16_is_within_its_bound_of_the_reference", |gpu| {
        shared::attention::is_within_its_bound_of_the_reference(gpu, DType::F16, Some(10), STEP);
    }),
    ("attention_in_bf16_is_within_its_bound_of_the_reference", |gpu| {
        shared::attention::is_within_its_bound_of_the_reference(gpu, DType::BF16, Some(7), STEP);
    }),
    ("operations_wait_for_what_was_computed_before_and_are_waited_for", stream_order),
    ("gradients_of_attention_in_f16_are_those_of_the_cpu", |gpu| {
        are_those_of_the_cpu(gpu, DType::F16, 4e-3, [loss, loss]);
    }),
    ("gradients_of_attention_in_bf16_are_those_of_the_cpu", |gpu| {
        are_those_of_the_cpu(gpu, DType::BF16, 3e-2, [loss, loss]);
    }),
    ("gradients_of_a_layer_are_its_finite_differences", |gpu| are_finite_differences(gpu, [loss, loss])),
    ("no_gradient_is_missing", none_is_missing),
    ("rotary_and_attention_as_one_operation_have_the_values_of_two", rotary_attention::has_the_values_of_two),
    ("gradients_of_rotary_and_attention_as_one_operation_in_f16_are_those_of_two_on_the_cpu", |gpu| {
        rotary_attention::has_the_gradients_of_two(gpu, DType::F16, 4e-3);
    }),
    ("gradients_of_rotary_and_attention_as_one_operation_in_bf16_are_those_of_two_on_the_cpu", |gpu| {
        rotary_attention::has_the_gradients_of_two(gpu, DType::BF16, 3e-2);
    }),
    (
        "gradients_of_rotary_and_attention_as_one_operation_are_finite_differences",
        rotary_attention::has_finite_differences,
    ),
    ("no_gradient_of_rotary_and_attention_as_one_operation_is_missing", rotary_attention::none_is_missing),
    ("a_backward_pass_through_the_rotary_embedding_is_that_of_the_cpu", rotary_backward),
    ("what_a_gpu_can_not_compute_is_refused_by_name", refusals),
];

fn main() {
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let gpu = open();
    let trials = TESTS
        .iter()
        .map(|&(name, test)| {
            let gpu = gpu.clone();
            let ignored = gpu.is_err() && !required;
            let run = move || gpu.map(|gpu| test(&gpu)).map_err(Failed::from);
            Trial::test(name, run).with_ignored_flag(ignored)
        })
        .collect();
    let mut arguments = Arguments::from_args();
    // One GPU, and candle's per-thread streams: one at a time.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// The first GPU, or why there is none.
fn open() -> Result<Device, String> {
    // candle panics where there is no driver, so the kernels' own context is asked first.
    longrope::device::Context::new(0).map_err(|error| error.to_string())?;
    Device::new_cuda(0).map_err(|error| error.to_string())
}

fn rotary() -> Rotary {
    let frequencies: Vec<f64> = (0..32).map(|i| f64::powi(0.7, i)).collect();
    Rotary::new(FactorSets::uniform(FactorSet::exact(&frequencies, 1.0).unwrap()), SetChoice::Short)
}

/// A long chain on candle's stream, with our operations between candle's own: another stream, or a missing wait, would read
/// what is not there yet. Each link's result follows from exact arithmetic.
fn stream_order(gpu: &Device) {
    let shape = [1, 4096, 8, 64];
    let dense = values(DType::BF16, 3, shape.iter().product());
    let x = place(&dense, shape, DType::BF16, gpu, View::Packed).unwrap();
    for round in 0..8 {
        // Much work that ends in zeros, and only then the operands.
        let mut slow = Tensor::zeros((2048, 2048), DType::BF16, gpu).unwrap();
        for _ in 0..16 {
            slow = slow.matmul(&slow).unwrap();
        }
        let zero = slow.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap().reshape((1, 1, 1, 1)).unwrap();
        let late = x.broadcast_add(&zero).unwrap();
        let there = rotary().at(round).apply_one(&late).unwrap();
        let rotated = rotary().at(round).apply_one(&x).unwrap();
        assert_eq!(elements(&there), elements(&rotated), "{round}");
        let now = attention(&there, &there, &late, &Attention::causal()).unwrap();
        let then = attention(&rotated, &rotated, &x, &Attention::causal()).unwrap();
        assert_eq!(elements(&now), elements(&then), "{round}");
    }
}

/// Queries, keys and values of a layer, and weights of its output.
const LAYER: [[usize; 4]; 4] = [[2, 70, 4, 64], [2, 70, 2, 64], [2, 70, 2, 64], [2, 70, 4, 64]];

/// A layer: queries and keys rotated, then attention with a window, as the sum of its output times weights.
fn loss([q, k, v, weights]: [&Tensor; 4]) -> Tensor {
    let (q, k) = rotary().at(3).apply(q, k).unwrap();
    let out = attention(&q, &k, v, &Attention { window: Some(41), ..Attention::causal() }).unwrap();
    (out * weights).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap()
}

/// The loss of a layer.
type Loss = fn([&Tensor; 4]) -> Tensor;

/// What the inputs of a layer hold, exact in the type.
fn layer(dtype: DType) -> [Vec<f32>; 4] {
    [0, 1, 2, 3].map(|i: usize| values(dtype, 20 + i as u64, LAYER[i].iter().product()))
}

fn variables(inputs: &[Vec<f32>; 4], dtype: DType, device: &Device) -> [Var; 4] {
    [0, 1, 2, 3].map(|i: usize| {
        let x = Tensor::from_vec(inputs[i].clone(), &LAYER[i], device).unwrap();
        Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()
    })
}

/// The gradients of the layer's inputs.
fn gradients(inputs: &[Vec<f32>; 4], dtype: DType, device: &Device, loss: Loss) -> Vec<Vec<f32>> {
    let variables = variables(inputs, dtype, device);
    let found = loss([0, 1, 2, 3].map(|i: usize| variables[i].as_tensor())).backward().unwrap();
    variables.iter().map(|x| elements(found.get(x).unwrap())).collect()
}

/// Against the CPU in f32: what differs are the roundings of rotated queries and keys, of weights, of the output and of gradients.
fn are_those_of_the_cpu(gpu: &Device, dtype: DType, bound: f32, [on_gpu, on_cpu]: [Loss; 2]) {
    let inputs = layer(dtype);
    let found = gradients(&inputs, dtype, gpu, on_gpu);
    let exact = gradients(&inputs, DType::F32, &Device::Cpu, on_cpu);
    for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
        let largest = exact.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        for (found, exact) in found.iter().zip(exact) {
            assert!(
                (found - exact).abs() <= bound * largest,
                "input {i}: {found} is not {exact}, of up to {largest}"
            );
        }
    }
}

/// The gradients on the GPU against differences of the loss on the CPU, in f32, along random directions.
fn are_finite_differences(gpu: &Device, [on_gpu, on_cpu]: [Loss; 2]) {
    let (dtype, step) = (DType::BF16, 0.01f32);
    let inputs = layer(dtype);
    let found = gradients(&inputs, dtype, gpu, on_gpu);
    for i in 0..3 {
        for seed in 30..34 {
            let direction = values(dtype, seed, inputs[i].len());
            let at = |step: f32| {
                let mut moved = inputs.clone();
                moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                let moved = variables(&moved, DType::F32, &Device::Cpu);
                f64::from(
                    on_cpu([0, 1, 2, 3].map(|i: usize| moved[i].as_tensor())).to_scalar::<f32>().unwrap(),
                )
            };
            let difference = (at(step) - at(-step)) / f64::from(2.0 * step);
            let product: f64 = found[i].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            // Each gradient is rounded, which adds up as a random walk; 2^-8 of the length of all of them is four times that.
            let length =
                found[i].iter().zip(&direction).map(|(g, d)| f64::from(g * d).powi(2)).sum::<f64>().sqrt();
            let bound = 5e-3 * (1.0 + product.abs()) + 4.0 * length / 64.0;
            assert!(
                (product - difference).abs() <= bound,
                "input {i}: {product}, {difference}, bound {bound}"
            );
        }
    }
}

/// Every input has a gradient that is not zero, also one that is used twice.
fn none_is_missing(gpu: &Device) {
    let found = gradients(&layer(DType::BF16), DType::BF16, gpu, loss);
    assert!(found.iter().all(|gradient| gradient.iter().any(|x| *x != 0.0)));
    let x = Var::from_tensor(&Tensor::ones((1, 5, 2, 64), DType::BF16, gpu).unwrap()).unwrap();
    let rotated = rotary().apply_one(&x).unwrap();
    let attended = attention(&rotated, &rotated, &x, &Attention::causal()).unwrap();
    let gradients = attended.sum_all().unwrap().backward().unwrap();
    // Of equal values any weights make the same output, so that the gradient is that of the values alone.
    let found = elements(gradients.get(&x).unwrap());
    let sum: f32 = found.iter().sum();
    assert!((sum - 640.0).abs() < 2.0, "{sum}");
}

/// The gradient through a rotation is the transposed rotation of the gradient, as on the CPU.
fn rotary_backward(gpu: &Device) {
    let shape = [2, 33, 3, 64];
    let dense = values(DType::F32, 5, shape.iter().product());
    let gradient = |device: &Device| {
        let x = Var::from_tensor(&Tensor::ones(&shape, DType::F32, device).unwrap()).unwrap();
        let d_out = place(&dense, shape, DType::F32, device, View::Packed).unwrap();
        let (q, k) = rotary().at(1000).apply(&x, &x).unwrap();
        let both = ((q * &d_out).unwrap() + (k * &d_out).unwrap()).unwrap();
        elements(both.sum_all().unwrap().backward().unwrap().get(&x).unwrap())
    };
    for (found, expected) in gradient(gpu).iter().zip(gradient(&Device::Cpu)) {
        assert!((found - expected).abs() <= 4.0 * 2.4e-7 * 2f32.sqrt(), "{found} is not {expected}");
    }
}

fn refusals(gpu: &Device) {
    let x = Tensor::zeros((1, 5, 2, 64), DType::F32, gpu).unwrap();
    let message = attention(&x, &x, &x, &Attention::causal()).unwrap_err().to_string();
    assert!(message.starts_with("q: type F32 on a GPU is not valid; expected F16 or BF16"), "{message}");
    let as_one = longrope_candle::rotary_attention(&x, &x, &x, &rotary(), &Attention::causal());
    let message = as_one.unwrap_err().to_string();
    assert!(message.starts_with("q: type F32 on a GPU is not valid; expected F16 or BF16"), "{message}");
    let here = x.to_device(&Device::Cpu).unwrap();
    let message = rotary().apply(&x, &here).unwrap_err().to_string();
    assert!(message.starts_with("k: a tensor on Cpu is not valid; expected Cuda"), "{message}");
    let narrow = x.to_dtype(DType::BF16).unwrap().narrow(3, 0, 60).unwrap();
    let message = attention(&narrow, &narrow, &narrow, &Attention::causal()).unwrap_err().to_string();
    assert!(message.contains("60"), "{message}");
    let message = rotary().apply_one(&x.to_dtype(DType::F64).unwrap()).unwrap_err().to_string();
    assert!(message.starts_with("x: type F64 is not valid"), "{message}");
}
