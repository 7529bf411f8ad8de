//! GGUF files with factors: this project's readers find them, and all other tensors and metadata are the same bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use longrope::scaling::{LongRope, RopeConfig, Scaling, SetChoice};
use longrope_drivers::gguf::{self, Header};
use longrope_drivers::model;
use proptest::prelude::*;

use super::command::{Dir, config, geometry, json, longrope};
use super::tiny_gguf::Gguf;

/// Metadata, and shape, type and bytes of every tensor, as candle reads them.
type Parts = (HashMap<String, Value>, HashMap<String, (Vec<usize>, GgmlDType, Vec<u8>)>);

fn parts(path: &Path) -> Parts {
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tensors = content.tensor_infos.keys().map(|name| {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        (name.clone(), (tensor.shape().dims().to_vec(), tensor.dtype(), tensor.data().unwrap().to_vec()))
    });
    let tensors = tensors.collect();
    (content.metadata, tensors)
}

/// Copies a model with factors, and gives the rotary embedding that the copy describes.
fn exported(model: &Path, rope: &RopeConfig, out: &Path) -> RopeConfig {
    let (header, mut file) = Header::open(model).unwrap();
    let changes = gguf::changes(&header, rope).unwrap_or_else(|error| panic!("{error:#}"));
    let mut told = Vec::new();
    gguf::copy(&header, &mut file, &changes, out, |done, total| told.push((done, total))).unwrap();
    let size = fs::metadata(out).unwrap().len();
    assert!(
        told.windows(2).all(|pair| pair[0].0 <= pair[1].0) && told.last() == Some(&(size, size)),
        "{told:?}"
    );
    let (header, mut file) = Header::open(out).unwrap();
    gguf::rope_config(&header, &mut file).unwrap()
}

/// Checks that the files differ in nothing but what LongRoPE needs.
fn assert_same_but_factors(before: &Path, after: &Path) {
    let ((mut metadata, mut tensors), (before_metadata, before_tensors)) = (parts(after), parts(before));
    let added = [
        "rope.scaling.type",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "context_length",
    ];
    for key in added {
        assert!(metadata.remove(&format!("llama.{key}")).is_some(), "{key}");
    }
    let kept = before_metadata.iter().filter(|(key, _)| !added.iter().any(|added| key.ends_with(added)));
    assert_eq!(metadata.len(), kept.clone().count());
    for (key, value) in kept {
        assert_eq!(format!("{:?}", metadata[key]), format!("{value:?}"), "{key}");
    }
    for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        assert!(tensors.remove(name).is_some(), "{name}");
    }
    let kept = before_tensors.iter().filter(|(name, _)| !name.starts_with("rope_"));
    assert_eq!(tensors.len(), kept.clone().count());
    for (name, tensor) in kept {
        assert!(&tensors[name] == tensor, "{name}");
    }
}

/// Rounded as the file rounds it.
fn rounded(rope: &RopeConfig) -> RopeConfig {
    let Scaling::LongRope(longrope) = rope.scaling() else { panic!() };
    let narrow = |factors: &[f64]| factors.iter().map(|&factor| f64::from(factor as f32)).collect();
    let scaling = Scaling::LongRope(LongRope {
        short_factor: narrow(&longrope.short_factor),
        long_factor: narrow(&longrope.long_factor),
        factor: rope.max_length() as f64 / rope.geometry().original_length() as f64,
        attention_factor: Some(f64::from(rope.attention_factor() as f32)),
        first_tokens: 0,
    });
    RopeConfig::new(*rope.geometry(), rope.max_length(), scaling).unwrap()
}

/// A file with a few tensors, quantised and not, of sizes that need padding.
fn small(dir: &Path, rows: usize, seed: f32, extra: &[(&str, Value)]) -> std::path::PathBuf {
    let path = dir.join("small.gguf");
    let made = |rows: usize, columns: usize, dtype| {
        let values = (0..rows * columns).map(|i| (i as f32 * seed).sin()).collect();
        QTensor::quantize(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap(), dtype).unwrap()
    };
    let tensors = [
        ("token_embd.weight", made(rows, 32, GgmlDType::Q4_1)),
        ("blk.0.attn_q.weight", made(rows, 7, GgmlDType::F32)),
        ("blk.0.attn_k.weight", made(3, 256, GgmlDType::Q6K)),
        ("output.weight", made(rows, 5, GgmlDType::F16)),
        ("rope_freqs.weight", made(1, 32, GgmlDType::F32)),
    ];
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let text = |text: &str| Value::String(text.to_owned());
    let mut metadata = vec![
        ("general.architecture", text("llama")),
        ("llama.context_length", Value::U32(256)),
        ("llama.embedding_length", Value::U32(256)),
        ("llama.attention.head_count", Value::U32(4)),
        ("tokens", Value::Array((0..rows).map(|i| text(&"ä".repeat(i))).collect())),
        ("numbers", Value::Array(vec![Value::I64(-1), Value::I64(i64::MAX)])),
        ("flag", Value::Bool(true)),
        ("small", Value::I8(-3)),
        ("wide", Value::F64(std::f64::consts::PI)),
    ];
    metadata.extend(extra.iter().cloned());
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = BufWriter::new(File::create(&path).unwrap());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    path
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_factors_come_back_and_nothing_else_changes(
        rows in 1usize..9,
        seed in 0.1f32..2.0,
        factors in prop::collection::vec(1e-2f64..1e3, 64),
        attention_factor in prop::option::of(0.1f64..3.0),
        max_length in 1u64..1 << 31,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let model = small(dir.path(), rows, seed, &[]);
        let scaling = Scaling::LongRope(LongRope {
            short_factor: factors[..32].to_vec(),
            long_factor: factors[32..].to_vec(),
            factor: 3.0,
            attention_factor,
            first_tokens: 0,
        });
        let rope = RopeConfig::new(geometry(), max_length, scaling).unwrap();
        let out = dir.path().join("out.gguf");
        prop_assert_eq!(exported(&model, &rope, &out), rounded(&rope));
        assert_same_but_factors(&model, &out);
        // Once more into the copy: the factors are replaced, and the file is the same.
        let again = dir.path().join("again.gguf");
        exported(&out, &rope, &again);
        prop_assert!(fs::read(out).unwrap() == fs::read(again).unwrap());
    }
}

#[test]
fn the_model_with_factors_has_the_losses_of_its_configuration() {
    let rope = config(longrope());
    let dir = Dir::new().with("a.json", &json(&rope));
    Gguf::tiny().write(&dir.path(""));
    let said = dir.run("--from a.json --to gguf --model model.gguf --output out.gguf");
    assert!(said.ends_with("\nwrote out.gguf\n") && !said.contains("dropped"), "{said}");
    assert_same_but_factors(&dir.path("model.gguf"), &dir.path("out.gguf"));
    let load = |name: &str| model::load(&dir.path(name)).unwrap_or_else(|error| panic!("{error:#}")).0;
    let (before, after) = (load("model.gguf"), load("out.gguf"));
    assert_eq!(after.config().rope, rounded(&rope));
    let tokens: Vec<u32> = (0..300).map(|i| 32 + (i * i) % 90).collect();
    let losses = |model: &model::Llama, rope: &RopeConfig| {
        model.losses(&tokens, &rope.factor_sets(300).unwrap(), SetChoice::ByLength(300)).unwrap()
    };
    let expected = losses(&before, &rounded(&rope));
    assert_eq!(losses(&after, &after.config().rope), expected);
    assert_ne!(losses(&before, &before.config().rope), expected);
    // And back to the formats that hold no model.
    dir.run("--from out.gguf --to hf-old --output back.json");
    assert_eq!(dir.config("back.json"), rounded(&rope));
    dir.run("--from out.gguf --to csv --output back.csv");
}

#[test]
fn other_methods_metadata_goes_and_an_entry_that_is_there_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let extra = [
        ("llama.rope.scaling.type", Value::String("yarn".into())),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("llama.rope.scaling.yarn_beta_fast", Value::F32(16.0)),
        ("llama.rope.scaling.original_context_length", Value::U32(64)),
    ];
    let model = small(dir.path(), 2, 0.5, &extra);
    let out = dir.path().join("out.gguf");
    exported(&model, &config(longrope()), &out);
    let (metadata, tensors) = parts(&out);
    assert_eq!(metadata["llama.rope.scaling.type"].to_string().unwrap(), "longrope");
    assert_eq!(metadata["llama.rope.scaling.original_context_length"].to_u32().unwrap(), 256);
    assert_eq!(metadata["llama.context_length"].to_u32().unwrap(), 2048);
    let factor = metadata["llama.rope.scaling.attn_factor"].to_f32().unwrap();
    assert_eq!(factor, config(longrope()).attention_factor() as f32);
    for gone in ["llama.rope.scaling.factor", "llama.rope.scaling.yarn_beta_fast"] {
        assert!(!metadata.contains_key(gone), "{gone}");
    }
    assert!(!tensors.contains_key("rope_freqs.weight"));
}
