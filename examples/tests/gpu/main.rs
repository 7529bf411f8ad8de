//! The model on a GPU. Without one, or without the feature `cuda`, the tests show as ignored; with `LONGROPE_REQUIRE_GPU=1`
//! that is a failure. Those of SmolLM2 show as ignored where it is not fetched.
//!
//! The programs may run on another machine than they were built on, from the root of the repository or from a package.

mod ops;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use libtest_mimic::{Arguments, Failed, Trial};
use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use longrope_drivers::model::{self, DeviceKind, Llama, Place, Projection, WeightType};
use longrope_drivers::training::{
    Gradients, Lora, Method, Pack, Parameter, TrainableLlama, loss_and_gradients,
};
use longrope_drivers::{memory, methods, text};
use ops::values;

/// A test: its name, what it needs of `data/`, and what it does on a GPU.
type Test = (&'static str, Option<&'static str>, fn(&Place));

const SMOLLM2: &str = "data/cache/smollm2-135m-instruct.gguf";
const EMMA: &str = "data/cache/emma.txt";

const TESTS: &[Test] = &[
    // First: it asks what is free, and the pool keeps what other tests took.
    ("131072_tokens_of_smollm2_take_the_memory_that_was_estimated", Some(SMOLLM2), long_sequence),
    ("the_activation_is_exact_to_one_rounding", None, ops::activation),
    ("the_residual_and_its_norm_are_exact_to_one_rounding", None, ops::residual),
    ("the_gradients_of_the_activation_are_those_of_f64", None, ops::activation_gradients),
    ("the_gradients_of_the_norm_are_those_of_f64", None, ops::norm_gradients),
    ("the_gradient_of_the_losses_is_that_of_f64", None, ops::loss_gradient),
    ("losses_are_those_of_f64_in_every_width", None, ops::losses_of_logits),
    ("losses_of_what_is_not_finite_are_those_of_the_cpu", None, ops::losses_of_what_is_not_finite),
    ("the_bundled_model_loses_what_it_does_on_the_cpu_by_every_method", None, tiny_is_that_of_the_cpu),
    ("the_same_tokens_give_the_same_bits", None, repeated),
    ("chunks_lose_what_one_pass_does", None, chunks),
    ("gradients_are_those_of_the_cpu_and_the_same_bits_every_time", None, training_gradients),
    ("smollm2_loses_what_it_does_on_the_cpu", Some(SMOLLM2), smollm2_is_that_of_the_cpu),
];

fn main() {
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let place = Place::choose(Some(DeviceKind::Cuda), None).map_err(|error| format!("{error:#}"));
    let mut trials: Vec<Trial> = TESTS
        .iter()
        .map(|&(name, needs, test)| {
            let place = place.clone();
            let missing = needs.is_some_and(|path| !repository(path).exists());
            let ignored = missing || place.is_err() && !required;
            let run = move || place.map(|place| test(&place)).map_err(Failed::from);
            Trial::test(name, run).with_ignored_flag(ignored)
        })
        .collect();
    // Needs the compiler, and no GPU.
    let compiled = Trial::test("the_kernels_compile", || kernels_compile().map_err(Failed::from));
    trials.push(compiled.with_ignored_flag(!cfg!(feature = "cuda")));
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// A path of the repository.
fn repository(path: &str) -> PathBuf {
    let roots = [".", "..", concat!(env!("CARGO_MANIFEST_DIR"), "/..")];
    let root = roots.iter().find(|root| Path::new(root).join("data/manifest.json").exists());
    Path::new(root.unwrap_or(&".")).join(path)
}

#[cfg(feature = "cuda")]
fn kernels_compile() -> Result<(), String> {
    let ptx = model::ops::ptx().map_err(|error| error.to_string())?;
    match ptx.matches(".entry").count() {
        36 => Ok(()),
        count => Err(format!("{count} kernels instead of 36")),
    }
}

#[cfg(not(feature = "cuda"))]
fn kernels_compile() -> Result<(), String> {
    Err("built without the feature cuda".to_owned())
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// 16-bit activations: each loss is off by some hundredths either way, and their mean by much less.
const MEAN_DIFFERENCE: f64 = 0.01;

fn tiny(place: &Place) -> (Llama, Vec<u32>) {
    let (model, tokenizer) = model::load_at(&repository("data/models/tiny"), place).unwrap();
    let tokens = text::read_tokens(&repository("data/texts/moby-dick-eval.txt"), &tokenizer).unwrap();
    // More than one piece of logits.
    (model, tokens[..2 * Llama::LOGIT_ROWS_GPU + 3].to_vec())
}

fn tiny_is_that_of_the_cpu(gpu: &Place) {
    let (on_cpu, tokens) = tiny(&Place::cpu());
    for dtype in [WeightType::Bf16, WeightType::F16] {
        let place = Place::choose(Some(DeviceKind::Cuda), Some(dtype)).unwrap();
        assert_eq!(place.device.location(), gpu.device.location());
        let (on_gpu, _) = tiny(&place);
        for method in methods::baselines(&on_cpu.config().rope, 2048).unwrap() {
            for length in [2, 256, 2048] {
                let sets = method.rope.factor_sets(length as u64).unwrap();
                let choice = SetChoice::ByLength(length as u64);
                let [cpu, gpu] =
                    [&on_cpu, &on_gpu].map(|model| model.losses(&tokens[..length], &sets, choice).unwrap());
                assert_eq!(gpu.len(), length - 1);
                let difference = mean(&gpu) - mean(&cpu);
                // One token alone averages nothing.
                let allowed = if length == 2 { 0.2 } else { MEAN_DIFFERENCE };
                assert!(difference.abs() < allowed, "{} at {length}: {difference}", method.name);
            }
        }
    }
}

fn repeated(place: &Place) {
    let (model, tokens) = tiny(place);
    let sets = model.config().rope.factor_sets(256).unwrap();
    let once = model.losses(&tokens, &sets, SetChoice::Short).unwrap();
    assert_eq!(once.len(), tokens.len() - 1);
    assert_eq!(once, model.losses(&tokens, &sets, SetChoice::Short).unwrap());
    // Causal: the beginning loses the same without the rest, to the rounding of other block sizes.
    let part = model.losses(&tokens[..300], &sets, SetChoice::Short).unwrap();
    assert!((mean(&part) - mean(&once[..299])).abs() < MEAN_DIFFERENCE);
}

fn chunks(place: &Place) {
    let (model, tokens) = tiny(place);
    let sets = model.config().rope.factor_sets(256).unwrap();
    let whole = model.losses(&tokens, &sets, SetChoice::Short).unwrap();
    // The last chunk is not full, and shorter than a tile.
    let model = model.with_chunk(4096);
    let found = model.losses(&tokens, &sets, SetChoice::Short).unwrap();
    assert_eq!(found, model.losses(&tokens, &sets, SetChoice::Short).unwrap());
    for (part, (found, whole)) in found.chunks(4096).zip(whole.chunks(4096)).enumerate() {
        let difference = mean(found) - mean(whole);
        // Of the last one, three tokens.
        let allowed = if found.len() < 4096 { 0.1 } else { MEAN_DIFFERENCE };
        assert!(difference.abs() < allowed, "chunk {part}: {difference}");
    }
}

fn smollm2(place: &Place, text: &str) -> (Llama, Vec<u32>) {
    let (model, tokenizer) = model::load_at(&repository(SMOLLM2), place).unwrap();
    let tokens = text::read_tokens(&repository(text), &tokenizer).unwrap();
    (model, tokens)
}

fn smollm2_is_that_of_the_cpu(place: &Place) {
    let text = "data/texts/moby-dick-eval.txt";
    let [cpu, gpu] = [&Place::cpu(), place].map(|place| {
        let (model, tokens) = smollm2(place, text);
        let sets = model.config().rope.factor_sets(1024).unwrap();
        model.losses(&tokens[..1024], &sets, SetChoice::Short).unwrap()
    });
    let difference = mean(&gpu) - mean(&cpu);
    assert!(difference.abs() < MEAN_DIFFERENCE, "{} on the CPU, {difference} more on the GPU", mean(&cpu));
}

fn long_sequence(place: &Place) {
    let text = if repository(EMMA).exists() { EMMA } else { "data/texts/moby-dick-eval.txt" };
    let length = 131_072;
    let before = place.free_memory().unwrap();
    let (model, tokens) = smollm2(place, text);
    let tokens: Vec<u32> = tokens.iter().copied().cycle().take(length).collect();
    let estimate = memory::required(model.config(), length, Llama::CHUNK, place);
    let rope = methods::baselines(&model.config().rope, length).unwrap().pop().unwrap().rope;
    let sets = rope.factor_sets(length as u64).unwrap();
    let losses = model.losses(&tokens, &sets, SetChoice::ByLength(length as u64)).unwrap();
    assert_eq!(losses.len(), length - 1);
    assert!(losses.iter().all(|loss| loss.is_finite() && *loss >= 0.0), "a loss that is none");
    // The pool keeps what was once taken, so what is gone now is the peak.
    let taken = before.saturating_sub(place.free_memory().unwrap());
    let mib = |bytes: u64| bytes >> 20;
    let allowed = estimate / 3..=estimate + (1 << 30);
    assert!(allowed.contains(&taken), "{} MiB taken, {} MiB estimated", mib(taken), mib(estimate));
    assert!(mib(estimate) < 16 << 10, "{} MiB estimated", mib(estimate));
}

/// The loss of three documents of the bundled model, and its gradients.
fn gradients_at(place: &Place, method: &Method) -> (f64, Vec<(String, Tensor)>) {
    let opened = model::open(&repository("data/models/tiny")).unwrap();
    let tokens =
        text::read_tokens(&repository("data/texts/moby-dick-search.txt"), &opened.tokenizer).unwrap();
    let pack = Pack::of(&[&tokens[..700], &tokens[700..701], &tokens[701..1024]]);
    let rope = methods::baselines(&opened.config.rope, 1024).unwrap().pop().unwrap().rope;
    let rotary = Rotary::new(rope.factor_sets(1024).unwrap(), SetChoice::ByLength(1024));
    let model = TrainableLlama::new(opened.config, &*opened.weights, place, method.clone(), 1).unwrap();
    for parameter in model.parameters().iter().filter(|parameter| parameter.name().contains("lora_B")) {
        // At zero the gradients of the other half would be none.
        let value = parameter.value();
        let small: Vec<f32> =
            values(DType::BF16, 3, value.elem_count()).iter().map(|x| *x as f32 * 0.02).collect();
        parameter.set(&Tensor::from_vec(small, value.shape(), value.device()).unwrap()).unwrap();
    }
    let mut sums = Gradients::new(model.parameters().len());
    let loss = loss_and_gradients(&model, &pack, &rotary, &mut sums).unwrap();
    let gradient = |(index, parameter): (usize, &Parameter)| {
        let gradient = sums.get(index).unwrap().to_device(&Device::Cpu).unwrap();
        (parameter.name().to_owned(), gradient)
    };
    (loss.sum, model.parameters().iter().enumerate().map(gradient).collect())
}

fn training_gradients(place: &Place) {
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let lora = Lora { rank: 8, alpha: 16.0, projections: Projection::ALL.to_vec() };
    for method in [Method::Full, Method::Lora(lora)] {
        let (exact_loss, exact) = gradients_at(&Place::cpu(), &method);
        let (loss, found) = gradients_at(place, &method);
        assert!((loss / exact_loss - 1.0).abs() < 5e-3, "{loss} on the GPU, {exact_loss} on the CPU");
        for ((name, found), (_, exact)) in found.iter().zip(&exact) {
            let (found, exact) = (flat(found), flat(exact));
            let square = |x: f32| f64::from(x) * f64::from(x);
            let off: f64 = found.iter().zip(&exact).map(|(found, exact)| square(found - exact)).sum();
            let size: f64 = exact.iter().copied().map(square).sum();
            // Four blocks, each of some roundings to 8 bits, of activations and of gradients.
            assert!((off / size).sqrt() < 0.08, "{name}: {} of {}", off.sqrt(), size.sqrt());
        }
        let (again_loss, again) = gradients_at(place, &method);
        assert_eq!(loss.to_bits(), again_loss.to_bits());
        for ((name, found), (_, again)) in found.iter().zip(&again) {
            let bits = |x: &Tensor| flat(x).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(found) == bits(again), "{name}: other bits");
        }
    }
}
