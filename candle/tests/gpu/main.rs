//! The operations on a GPU. Without one, or without the feature `cuda`, the tests show as ignored; with
//! `LONGROPE_REQUIRE_GPU=1` that is a failure.

#[path = "../shared/mod.rs"]
mod shared;

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
    ("a_backward_pass_through_attention_is_an_error", backward_is_refused),
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

fn backward_is_refused(gpu: &Device) {
    let x = Var::from_tensor(&Tensor::ones((1, 5, 2, 64), DType::BF16, gpu).unwrap()).unwrap();
    let rotated = rotary().apply_one(&x).unwrap();
    let attended = attention(&rotated, &rotated, &x, &Attention::causal()).unwrap();
    let message = attended.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(message.contains("longrope-attention"), "{message}");
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
    let here = x.to_device(&Device::Cpu).unwrap();
    let message = rotary().apply(&x, &here).unwrap_err().to_string();
    assert!(message.starts_with("k: a tensor on Cpu is not valid; expected Cuda"), "{message}");
    let narrow = x.to_dtype(DType::BF16).unwrap().narrow(3, 0, 60).unwrap();
    let message = attention(&narrow, &narrow, &narrow, &Attention::causal()).unwrap_err().to_string();
    assert!(message.contains("60"), "{message}");
    let message = rotary().apply_one(&x.to_dtype(DType::F64).unwrap()).unwrap_err().to_string();
    assert!(message.starts_with("x: type F64 is not valid"), "{message}");
}
