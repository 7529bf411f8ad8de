//! Runs on the bundled model: they resume bit for bit, stop where nothing is finite, and leave what is loaded again.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use longrope::scaling::SetChoice;
use longrope_candle::Rotary;
use tempfile::TempDir;

use super::*;
use crate::model::{self, LoraAdapter, Origin, Place, Projection, TrainedOn};
use crate::progress::Progress;
use crate::text;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny")
}

fn lora() -> Method {
    Method::Lora(Lora { rank: 4, alpha: 8.0, projections: Projection::ALL.to_vec() })
}

fn load(method: &Method) -> TrainableLlama {
    let opened = model::open(&tiny()).unwrap();
    TrainableLlama::new(opened.config, &*opened.weights, &Place::cpu(), method.clone(), 7).unwrap()
}

/// Short documents of the committed text.
fn texts() -> Vec<Vec<u32>> {
    let (_, tokenizer) = model::load(&tiny()).unwrap();
    let tokens = text::read_tokens(&tiny().join("../../texts/moby-dick-search.txt"), &tokenizer).unwrap();
    tokens[..3000].chunks(130).map(<[u32]>::to_vec).collect()
}

fn rotary() -> Rotary {
    let rope = model::open(&tiny()).unwrap().config.rope;
    Rotary::new(rope.factor_sets(48).unwrap(), SetChoice::ByLength(48))
}

fn recipe(steps: usize, every: usize) -> Recipe {
    Recipe {
        batch: 2,
        learning_rate: LearningRate { highest: 1e-3, warm_up: 2, steps },
        weight_decay: 0.01,
        clip: 1.0,
        checkpoint_every: every,
    }
}

/// What a run is of, with an output directory of its own.
struct Fixture {
    model: TrainableLlama,
    texts: Vec<Vec<u32>>,
    rotary: Rotary,
    dir: TempDir,
}

impl Fixture {
    fn new(method: &Method) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { model: load(method), texts: texts(), rotary: rotary(), dir }
    }

    fn windows(&self) -> Windows<'_> {
        Windows::new(&self.texts, 48, Packing::Documents, 5).unwrap()
    }

    fn held_out(&self) -> Vec<Pack> {
        vec![Pack::one(self.texts[3][..48].to_vec())]
    }

    fn checkpoints(&self) -> Checkpoints {
        settings(self.dir.path(), &[("--length", "48"), ("--model", &"a".repeat(64))])
    }
}

fn settings(dir: &Path, settings: &[(&str, &str)]) -> Checkpoints {
    let owned = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Checkpoints::new(dir, owned.collect(), false)
}

fn bits(model: &TrainableLlama) -> Vec<u32> {
    let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let all = model.parameters().iter().flat_map(|parameter| values(parameter.value()));
    all.map(f32::to_bits).collect()
}

#[test]
fn twenty_steps_are_eight_and_twelve_resumed_bit_for_bit() {
    for method in [Method::Full, lora()] {
        let whole = Fixture::new(&method);
        let (windows, checkpoints) = (whole.windows(), whole.checkpoints());
        let recipe = recipe(20, 6);
        let mut unbroken =
            Run::new(&whole.model, &windows, &whole.rotary, recipe, &whole.held_out()).unwrap();
        unbroken.train(&checkpoints, &Progress::new("steps"), None).unwrap();

        let first = Fixture::new(&method);
        let checkpoints = first.checkpoints();
        let mut run = Run::new(&first.model, &windows, &first.rotary, recipe, &first.held_out()).unwrap();
        for _ in 0..8 {
            let (record, _) = run.step(&checkpoints).unwrap();
            run.record(record);
        }
        run.save(&checkpoints).unwrap();
        let newest = checkpoints.newest().unwrap().unwrap();
        assert!(newest.ends_with("checkpoint-8"), "{newest:?}");
        assert_eq!(fs::read_dir(first.dir.path()).unwrap().count(), 1, "an older checkpoint stayed");

        // Another process: other tensors, of another seed.
        let opened = model::open(&tiny()).unwrap();
        let again =
            TrainableLlama::new(opened.config, &*opened.weights, &Place::cpu(), method.clone(), 99).unwrap();
        let resumed = Run::resumed(&again, &windows, &whole.rotary, recipe, (&checkpoints, &newest));
        let mut resumed = resumed.unwrap();
        resumed.train(&checkpoints, &Progress::new("steps"), None).unwrap();
        assert!(bits(&again) == bits(&whole.model), "{method:?}: other bits");
        let untimed = |run: &Run<'_>| -> Vec<Record> {
            run.done().history.iter().map(|record| Record { seconds: 0.0, ..record.clone() }).collect()
        };
        assert_eq!(untimed(&resumed), untimed(&unbroken));
        assert_eq!(resumed.done().loss_before, unbroken.done().loss_before);
        // Trained, and on the whole for the better.
        assert!(bits(&again) != bits(&load(&method)));
        let after = resumed.loss(&whole.held_out()).unwrap();
        assert!(after < resumed.done().loss_before, "{after} after {}", resumed.done().loss_before);
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let fixture = Fixture::new(&lora());
    let (windows, checkpoints) = (fixture.windows(), fixture.checkpoints());
    let held_out = fixture.held_out();
    let mut run = Run::new(&fixture.model, &windows, &fixture.rotary, recipe(20, 2), &held_out).unwrap();
    for _ in 0..3 {
        let (record, _) = run.step(&checkpoints).unwrap();
        run.record(record);
    }
    let good = checkpoints.newest().unwrap().unwrap();
    assert!(good.ends_with("checkpoint-2"));
    let parameter = &fixture.model.parameters()[1];
    for wrong in [f32::INFINITY, f32::NAN] {
        parameter.set(&parameter.value().ones_like().unwrap().affine(wrong.into(), 0.0).unwrap()).unwrap();
        let message = format!("{:#}", run.train(&checkpoints, &Progress::new("steps"), None).unwrap_err());
        assert!(
            message.starts_with("step 4: the loss is NaN, not finite; expected to be with a lower"),
            "{message}"
        );
        let message = format!("{:#}", run.save(&checkpoints).unwrap_err());
        assert!(
            message.starts_with("step 3: model.layers.0.self_attn.q_proj.lora_B.weight is "),
            "{message}"
        );
        assert_eq!(checkpoints.newest().unwrap(), Some(good.clone()));
    }
    checkpoints.load(&good, fixture.model.parameters()).unwrap();
    assert!(fixture.model.parameters().iter().all(|parameter| {
        let sum = parameter.value().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        sum.is_finite()
    }));
}

#[test]
fn a_checkpoint_that_is_cut_short_changed_or_foreign_is_named_with_what_is_wrong() {
    let fixture = Fixture::new(&lora());
    let (windows, checkpoints) = (fixture.windows(), fixture.checkpoints());
    let held_out = fixture.held_out();
    let run = Run::new(&fixture.model, &windows, &fixture.rotary, recipe(20, 2), &held_out).unwrap();
    run.save(&checkpoints).unwrap();
    let path = checkpoints.newest().unwrap().unwrap();
    let parameters = fixture.model.parameters();
    let before = bits(&fixture.model);
    let message = |checkpoints: &Checkpoints| {
        let message = format!("{:#}", checkpoints.load(&path, parameters).err().unwrap());
        message.strip_prefix(&format!("{}/", path.display())).unwrap_or(&message).to_owned()
    };
    let other = |name: &str, value: &str| message(&settings(fixture.dir.path(), &[(name, value)]));
    let expected = "state.json: made with --length 48, which is not 64; run with the same, or in another";
    assert!(other("--length", "64").starts_with(expected), "{}", other("--length", "64"));
    let another = other("--model", &"b".repeat(64));
    assert!(another.starts_with("state.json: made with another --model; run with the same"), "{another}");
    assert_eq!(other("--clip", "1"), "state.json: settings: --clip is missing");

    let change = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let file = path.join(file);
        let kept = fs::read(&file).unwrap();
        fs::write(&file, change(kept.clone())).unwrap();
        let message = message(&checkpoints);
        fs::write(&file, kept).unwrap();
        message
    };
    let cut = change("tensors.safetensors", &|bytes| bytes[..bytes.len() - 5].to_vec());
    assert!(cut.starts_with("tensors.safetensors: ") && cut.ends_with("cut short or was changed"), "{cut}");
    let changed = change("tensors.safetensors", &|mut bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    });
    assert!(changed.ends_with("cut short or was changed"), "{changed}");
    let cut = change("state.json", &|bytes| bytes[..bytes.len() / 2].to_vec());
    assert!(cut.starts_with("state.json: not a valid checkpoint: "), "{cut}");
    let newer = change("state.json", &|bytes| {
        String::from_utf8(bytes).unwrap().replace("\"format\": 1", "\"format\": 2").into_bytes()
    });
    assert_eq!(newer, "state.json: format 2 is not valid; expected 1");
    fs::remove_file(path.join("tensors.safetensors")).unwrap();
    assert!(message(&checkpoints).starts_with("tensors.safetensors: can't be read"));

    // A model with other parameters; nothing was changed by any of these.
    let larger = Method::Lora(Lora { rank: 5, alpha: 8.0, projections: Projection::ALL.to_vec() });
    let foreign = Fixture::new(&larger);
    let foreign_run = Run::new(&foreign.model, &windows, &foreign.rotary, recipe(20, 2), &held_out).unwrap();
    foreign_run.save(&foreign.checkpoints()).unwrap();
    let foreign_path = foreign.checkpoints().newest().unwrap().unwrap();
    let message = format!("{:#}", checkpoints.load(&foreign_path, parameters).err().unwrap());
    assert!(message.contains("lora_A.weight: F32 of [5, 256] is not valid; expected F32 of [4, 256]"));
    assert!(bits(&fixture.model) == before);
}

#[test]
#[cfg(unix)]
fn an_output_that_can_not_be_written_is_named_and_what_was_there_stays() {
    let fixture = Fixture::new(&lora());
    let (windows, checkpoints) = (fixture.windows(), fixture.checkpoints());
    let held_out = fixture.held_out();
    let mut run = Run::new(&fixture.model, &windows, &fixture.rotary, recipe(20, 50), &held_out).unwrap();
    run.save(&checkpoints).unwrap();
    let good = checkpoints.newest().unwrap().unwrap();
    let (record, _) = run.step(&checkpoints).unwrap();
    run.record(record);
    // Neither a folder that can be removed nor one that can be made.
    let aside = fixture.dir.path().join("checkpoint-1.new");
    fs::write(&aside, "a file in the way").unwrap();
    let message = format!("{:#}", run.save(&checkpoints).unwrap_err());
    assert!(message.starts_with(&format!("{}: can't be removed", aside.display())), "{message}");
    assert_eq!(checkpoints.newest().unwrap(), Some(good.clone()));
    fs::remove_file(&aside).unwrap();
    let elsewhere = settings(&aside.join("below"), &[]);
    let message = format!("{:#}", run.save(&elsewhere).unwrap_err());
    assert!(message.contains("checkpoint-1.new: can't be made: No such file"), "{message}");
    // What was left aside by a run that was killed is no checkpoint, and not in the way.
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("state.json"), "half").unwrap();
    fs::create_dir(fixture.dir.path().join("checkpoint-7.new")).unwrap();
    assert_eq!(checkpoints.newest().unwrap(), Some(good.clone()));
    run.save(&checkpoints).unwrap();
    assert!(checkpoints.newest().unwrap().unwrap().ends_with("checkpoint-1"));
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 1);
}

#[test]
fn an_exported_model_has_the_losses_of_the_trained_one() {
    for method in [Method::Full, lora()] {
        let fixture = Fixture::new(&method);
        let (windows, checkpoints) = (fixture.windows(), fixture.checkpoints());
        let (model, held_out) = (&fixture.model, fixture.held_out());
        let mut run = Run::new(model, &windows, &fixture.rotary, recipe(3, 9), &held_out).unwrap();
        run.train(&checkpoints, &Progress::new("steps"), None).unwrap();
        let expected = run.loss(&held_out).unwrap();
        assert_ne!(expected, run.done().loss_before);

        let opened = model::open(&tiny()).unwrap();
        let factors = Factors::choose(&opened.config.rope, &tiny(), 512, None).unwrap();
        let dir = fixture.dir.path().join("model");
        assert!(merged(model, &tiny(), &opened, &factors.source, &dir).unwrap().is_empty());
        let (exported, _) = model::load(&dir).unwrap();
        assert_eq!(exported.config().rope.max_length(), 512);
        let own = opened.config.rope.factor_sets(48).unwrap();
        let losses = exported.losses(held_out[0].tokens(), &own, SetChoice::ByLength(48)).unwrap();
        let found = losses.iter().sum::<f64>() / losses.len() as f64;
        // Sums in another order, in f32.
        assert!((found - expected).abs() < 1e-5, "{method:?}: {found}, {expected} trained");

        let Method::Lora(lora) = &method else { continue };
        let dir = fixture.dir.path().join("adapter");
        let texts = TrainedOn { texts: vec!["a text".into()] };
        adapter(model, lora, &tiny(), Some(&texts), &dir).unwrap();
        assert_eq!(TrainedOn::of(&dir).unwrap(), Some(texts));
        let again = load(&method);
        let written = LoraAdapter::open(&dir).unwrap();
        read_adapter(&again, lora, &written).unwrap();
        assert!(bits(&again) == bits(model));
        // The model it began with and the adapter are the merged one.
        let origin = Origin { model: tiny(), adapter: Some(dir) };
        let (adapted, _) = origin.load_at(&Place::cpu()).unwrap();
        assert_eq!(adapted.losses(held_out[0].tokens(), &own, SetChoice::ByLength(48)).unwrap(), losses);
        let other = Lora { alpha: 3.0, ..lora.clone() };
        let message = read_adapter(&again, &other, &written).unwrap_err().to_string();
        assert!(message.ends_with("lora_alpha: 8 is not valid; expected 3, --alpha"), "{message}");
    }
}
