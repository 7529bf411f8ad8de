//! Every parameter of every kind has its gradient: by finite differences, and as plain autograd over the whole graph gives it.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::block::{Documents, Kept};
use super::linear::View;
use super::*;
use crate::model::ops::rms_norm;
use crate::model::{LlamaConfig, Place, Projection, Weights};

/// Weights drawn anew for each name.
struct Random(u64);

impl Weights for Random {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let seed = name.bytes().fold(self.0, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let centre = if name.contains("norm") { 1.0 } else { 0.0 };
        Ok(random(seed, shape).affine(0.5, centre)?)
    }
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn config(tied: bool) -> LlamaConfig {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 23,
        "max_position_embeddings": 16, "rope_theta": 100.0, "tie_word_embeddings": tied
    });
    LlamaConfig::from_json(&json.to_string()).unwrap()
}

fn lora(projections: &[Projection]) -> Method {
    Method::Lora(Lora { rank: 3, alpha: 6.0, projections: projections.to_vec() })
}

/// A model whose adapters do something.
fn model(tied: bool, method: Method) -> TrainableLlama {
    model_in(DType::F32, tied, method)
}

fn model_in(dtype: DType, tied: bool, method: Method) -> TrainableLlama {
    let mut place = Place::cpu();
    place.dtype = dtype;
    let mut model = TrainableLlama::new(config(tied), &Random(1), &place, method, 2).unwrap();
    // Several chunks, the last of which is not full.
    model.logit_rows = 8;
    for (index, parameter) in model.parameters().iter().enumerate() {
        if parameter.name().contains("lora_B") {
            let value = random(100 + index as u64, parameter.value().dims());
            parameter.set(&(value * 0.3).unwrap()).unwrap();
        }
    }
    model
}

/// Three documents, one of a single token.
fn pack() -> Pack {
    let tokens: Vec<u32> = (0..27).map(|i| i * i % 23).collect();
    Pack::of(&[&tokens[..11], &tokens[11..12], &tokens[12..]])
}

fn rotary() -> Rotary {
    let sets = config(true).rope.factor_sets(27).unwrap();
    Rotary::new(Arc::new(sets), SetChoice::ByLength(27))
}

fn gradients(model: &TrainableLlama) -> (Loss, Vec<Tensor>) {
    let mut gradients = Gradients::new(model.parameters().len());
    let loss = loss_and_gradients(model, &pack(), &rotary(), &mut gradients).unwrap();
    let all = (0..model.parameters().len()).map(|index| gradients.get(index).unwrap().clone()).collect();
    (loss, all)
}

/// The same as one graph: all activations and all logits at once.
fn whole_graph(model: &TrainableLlama) -> (f64, Vec<Tensor>) {
    let (pack, rotary) = (pack(), rotary());
    let view = View { parameters: model.parameters(), recorded: true };
    let rows = pack.documents();
    let documents = Documents { rows: &rows, rotary: &rotary };
    let ids = Tensor::new(pack.tokens(), &Device::Cpu).unwrap();
    let mut x = view.get(&model.embedding).index_select(&ids, 0).unwrap();
    for block in &model.blocks {
        x = block.forward(&x, view, model.config(), &documents, Kept::Nothing).unwrap();
    }
    let x = rms_norm(&x, &view.get(&model.norm), model.config().norm_epsilon).unwrap();
    let logits = x.matmul(&view.get(model.output()).t().unwrap()).unwrap();
    let losses = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
    let targets = pack.targets();
    let tokens = Tensor::new(targets.tokens, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let counted = Tensor::new(targets.counted, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let loss = (losses.gather(&tokens, 1).unwrap() * counted).unwrap().sum_all().unwrap().neg().unwrap();
    let mut found = loss.backward().unwrap();
    let gradient = |parameter: &Parameter| found.remove(&parameter.working(true)).unwrap();
    let all = model.parameters().iter().map(gradient).collect();
    (loss.to_scalar::<f32>().unwrap().into(), all)
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let product = (a.to_dtype(DType::F64).unwrap() * b.to_dtype(DType::F64).unwrap()).unwrap();
    product.sum_all().unwrap().to_scalar().unwrap()
}

fn methods() -> Vec<(bool, Method)> {
    vec![
        (true, Method::Full),
        (false, Method::Full),
        (true, lora(&Projection::ALL)),
        (false, lora(&[Projection::Q, Projection::V])),
    ]
}

#[test]
fn every_weight_is_a_parameter_or_has_its_adapters() {
    let names = |tied, method| -> Vec<String> {
        model(tied, method).parameters().iter().map(|parameter| parameter.name().to_owned()).collect()
    };
    // Embedding, last norm, and nine tensors a block; the output matrix where it is one of its own.
    assert_eq!(names(true, Method::Full).len(), 2 + 9 * 3);
    assert_eq!(names(false, Method::Full).len(), 3 + 9 * 3);
    assert_eq!(names(true, lora(&Projection::ALL)).len(), 2 * 7 * 3);
    let some = names(true, lora(&[Projection::Q, Projection::Down]));
    assert_eq!(some.len(), 2 * 2 * 3);
    assert_eq!(some[0], "model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(some[11], "model.layers.2.mlp.down_proj.lora_B.weight");
}

#[test]
fn gradients_are_those_of_the_whole_graph() {
    for (tied, method) in methods() {
        let model = model(tied, method.clone());
        let (loss, found) = gradients(&model);
        let (expected_loss, expected) = whole_graph(&model);
        assert_eq!(loss.tokens, 27 - 3);
        assert!((loss.sum - expected_loss).abs() < 1e-5 * expected_loss, "{loss:?} {expected_loss}");
        for ((parameter, found), expected) in model.parameters().iter().zip(&found).zip(&expected) {
            let distance = (found - expected).unwrap();
            let (off, size) = (dot(&distance, &distance).sqrt(), dot(expected, expected).sqrt());
            // Sums in another order, in f32.
            assert!(size > 1e-3 && off < 1e-5 * size, "{}: {off} of {size}", parameter.name());
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let (pack, rotary) = (pack(), rotary());
    for (tied, method) in methods() {
        let model = model(tied, method);
        let (at_start, found) = gradients(&model);
        assert_eq!(loss(&model, &pack, &rotary).unwrap(), at_start);
        for (index, (parameter, gradient)) in model.parameters().iter().zip(&found).enumerate() {
            let size = dot(gradient, gradient).sqrt();
            let along = (gradient / size).unwrap();
            let any = random(index as u64, gradient.dims());
            let any = (&any / dot(&any, &any).sqrt()).unwrap();
            for direction in [along, any] {
                let start = parameter.value().copy().unwrap();
                let step = 0.005;
                let at = |step: f64| {
                    parameter.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
                    loss(&model, &pack, &rotary).unwrap().sum
                };
                // Of fourth order: the loss bends strongly with the embedding.
                let [near, far] = [1.0, 2.0].map(|times| at(times * step) - at(-times * step));
                let difference = (8.0 * near - far) / (12.0 * step);
                parameter.set(&start).unwrap();
                let slope = dot(gradient, &direction);
                assert!(size > 0.2, "{}: too small to be told from rounding", parameter.name());
                // Fifth derivatives times the fourth power of the step, and the rounding of 24 losses over the step.
                let allowed = 1e-3 * size + 5e-3;
                assert!(
                    (slope - difference).abs() < allowed,
                    "{}: {slope}, by differences {difference}, of {size}",
                    parameter.name()
                );
            }
        }
    }
}

#[test]
fn gradients_in_16_bits_are_those_of_f32_but_for_rounding() {
    // Three blocks of large weights, each of some roundings of activations and of gradients: to 11 bits, or to 8, eight times as far.
    for (dtype, bound) in [(DType::F16, 0.02), (DType::BF16, 0.16)] {
        for (tied, method) in methods() {
            let (exact_loss, exact) = gradients(&model(tied, method.clone()));
            let model = model_in(dtype, tied, method);
            let (loss, found) = gradients(&model);
            assert!(
                (loss.sum - exact_loss.sum).abs() < 1e-2 * exact_loss.sum,
                "{dtype:?}: {loss:?} {exact_loss:?}"
            );
            for ((parameter, found), exact) in model.parameters().iter().zip(&found).zip(&exact) {
                assert_eq!(found.dtype(), DType::F32);
                let distance = (found - exact).unwrap();
                let (off, size) = (dot(&distance, &distance).sqrt(), dot(exact, exact).sqrt());
                assert!(off < bound * size, "{dtype:?} {}: {off} of {size}", parameter.name());
            }
        }
    }
}

#[test]
fn gradients_are_the_same_bits_whether_attention_is_kept_or_not() {
    for (tied, method) in methods() {
        let model = model(tied, method);
        assert!(model.keeps_attention());
        let (loss, kept) = gradients(&model);
        let (again, made_again) = gradients(&model.keeping_attention(false));
        assert_eq!(loss, again);
        for (kept, made_again) in kept.iter().zip(&made_again) {
            let [kept, made_again] =
                [kept, made_again].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(kept, made_again);
        }
    }
}

#[test]
fn documents_of_a_pack_do_not_see_each_other() {
    let (model, rotary) = (model(true, Method::Full), rotary());
    let tokens: Vec<u32> = (0..27).map(|i| i * i % 23).collect();
    let parts = [&tokens[..11], &tokens[11..12], &tokens[12..]];
    let mut apart = Loss::default();
    let mut sums = Gradients::new(model.parameters().len());
    for part in parts {
        apart += loss_and_gradients(&model, &Pack::one(part.to_vec()), &rotary, &mut sums).unwrap();
    }
    let (packed, found) = gradients(&model);
    assert_eq!(apart.tokens, packed.tokens);
    assert!((apart.sum - packed.sum).abs() < 1e-5 * packed.sum, "{apart:?} {packed:?}");
    for (index, found) in found.iter().enumerate() {
        let distance = (found - sums.get(index).unwrap()).unwrap();
        assert!(dot(&distance, &distance).sqrt() < 1e-5 * dot(found, found).sqrt());
    }
    let one = loss(&model, &Pack::one(tokens), &rotary).unwrap();
    assert!(one.tokens == 26 && (one.mean() - packed.mean()).abs() > 1e-3);
}

#[test]
fn the_loss_is_that_of_the_model_that_evaluates() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny");
    let opened = crate::model::open(&path).unwrap();
    let sets = opened.config.rope.factor_sets(300).unwrap();
    let trained =
        TrainableLlama::new(opened.config, &*opened.weights, &Place::cpu(), Method::Full, 0).unwrap();
    let (llama, _) = crate::model::load(&path).unwrap();
    let tokens: Vec<u32> = (0..300).map(|i| 97 + i * 7 % 26).collect();
    let choice = SetChoice::ByLength(300);
    let expected: f64 = llama.losses(&tokens, &sets, choice).unwrap().iter().sum();
    let found = loss(&trained, &Pack::one(tokens), &Rotary::new(sets, choice)).unwrap();
    assert!(found.tokens == 299 && (found.sum - expected).abs() < 1e-5 * expected, "{found:?} {expected}");
}

#[test]
fn a_token_beyond_the_vocabulary_and_a_rank_beyond_the_matrix_are_refused() {
    let model = model(true, Method::Full);
    let message = loss(&model, &Pack::one(vec![1, 23]), &rotary()).unwrap_err().to_string();
    assert_eq!(message, "tokens: 23 is not valid; expected 0 to 22, the vocabulary of the model");
    for rank in [0, 17] {
        let method = Method::Lora(Lora { rank, alpha: 1.0, projections: vec![Projection::K] });
        let refused = TrainableLlama::new(config(true), &Random(1), &Place::cpu(), method, 2);
        let message = refused.err().unwrap().to_string();
        assert!(message.starts_with(&format!("--lora: {rank} is not valid; expected a rank of 1 to 16")));
    }
}
