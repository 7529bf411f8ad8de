//! SmolLM2-135M-Instruct, quantised, from GGUF: the logits and tokens of transformers.
//!
//! `scripts/fetch-smollm2` fetches the model. Where it is missing the tests show as ignored, or fail if
//! `LONGROPE_REQUIRE_SMOLLM2` is 1.

#[path = "shared/mod.rs"]
mod shared;

use std::process::ExitCode;
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Failed, Trial};
use longrope::scaling::{RopeConfig, SetChoice};
use longrope_drivers::model::{self, Llama};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use shared::{Case, Distance, Golden, repository};
use tokenizers::Tokenizer;

const MODEL: &str = "data/cache/smollm2-135m-instruct.gguf";
const GOLDEN_TEXT: &str = include_str!("../../tests/data/smollm2_logits.json");

static GOLDEN: LazyLock<Golden> = LazyLock::new(|| Golden::parse(GOLDEN_TEXT));
static LOADED: LazyLock<(Llama, Tokenizer)> =
    LazyLock::new(|| model::load(&repository(MODEL)).unwrap_or_else(|error| panic!("{error:#}")));

/// The texts of the golden file.
#[derive(Deserialize)]
struct Texts {
    prompt: String,
    tokenizations: Vec<Tokenization>,
}

#[derive(Deserialize)]
struct Tokenization {
    text: String,
    ids: Vec<u32>,
    /// Where the file's own rule, every digit by itself, gives something else than transformers makes of it.
    ids_digits_split: Option<Vec<u32>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = !repository(MODEL).exists();
    let required = std::env::var("LONGROPE_REQUIRE_SMOLLM2").is_ok_and(|value| value == "1");
    let ignored = missing && !required;
    let trial = |name: &str, test: fn() -> Result<(), Failed>| {
        Trial::test(name, move || present().and_then(|()| test())).with_ignored_flag(ignored)
    };
    let mut trials = vec![
        trial("the_file_is_the_one_of_the_golden_values", the_file_is_the_golden_one),
        trial("the_metadata_gives_the_configuration", the_metadata_gives_the_configuration),
        trial("the_prompt_has_the_tokens_of_transformers", the_prompt_has_its_tokens),
        trial("every_text_has_the_tokens_of_transformers", every_text_has_its_tokens),
        trial("the_comparison_notices_another_method", another_method_is_noticed),
    ];
    for case in &GOLDEN.cases {
        let test = move || present().and_then(|()| logits_are_those_of_transformers(case));
        let name = format!("logits_are_those_of_transformers::{}", case.name);
        trials.push(Trial::test(name, test).with_ignored_flag(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn present() -> Result<(), Failed> {
    expect(repository(MODEL).exists(), || format!("{MODEL} is missing; scripts/fetch-smollm2 fetches it"))
}

fn expect(right: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if right { Ok(()) } else { Err(message().into()) }
}

fn the_file_is_the_golden_one() -> Result<(), Failed> {
    let digest = Sha256::digest(std::fs::read(repository(MODEL))?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    expect(digest == GOLDEN.model_sha256, || format!("{digest} is not {}", GOLDEN.model_sha256))
}

fn the_metadata_gives_the_configuration() -> Result<(), Failed> {
    let config = LOADED.0.config();
    let found = (
        [config.layers, config.hidden_size, config.intermediate_size, config.vocab_size],
        [config.query_heads, config.key_heads, config.head_dim(), config.original_length()],
        config.tied_embeddings,
    );
    expect(found == ([30, 576, 1536, 49152], [9, 3, 64, 8192], true), || format!("{found:?}"))?;
    expect(config.norm_epsilon == f64::from(1e-5f32), || format!("{}", config.norm_epsilon))?;
    let rope = RopeConfig::from_hf(&GOLDEN.case("none").config)?;
    expect(config.rope == rope, || format!("{:?} is not {rope:?}", config.rope))
}

fn tokens(text: &str) -> Result<Vec<u32>, Failed> {
    let encoding = LOADED.1.encode(text, false).map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

fn the_prompt_has_its_tokens() -> Result<(), Failed> {
    let texts: Texts = serde_json::from_str(GOLDEN_TEXT)?;
    let found = tokens(&texts.prompt)?;
    expect(found == GOLDEN.prompt_ids, || format!("{found:?}"))
}

fn every_text_has_its_tokens() -> Result<(), Failed> {
    let texts: Texts = serde_json::from_str(GOLDEN_TEXT)?;
    let split = texts.tokenizations.iter().filter(|case| case.ids_digits_split.is_some());
    expect(split.count() > 0 && texts.tokenizations.len() >= 15, || "too few texts".into())?;
    for Tokenization { text, ids, ids_digits_split } in texts.tokenizations {
        let found = tokens(&text)?;
        let expected = ids_digits_split.unwrap_or(ids);
        expect(found == expected, || format!("{text:?}: {found:?} is not {expected:?}"))?;
    }
    Ok(())
}

fn logits_are_those_of_transformers(case: &Case) -> Result<(), Failed> {
    let rope = RopeConfig::from_hf(&case.config)?;
    for (angles, distance) in GOLDEN.exact_and_parity(&LOADED.0, case, &rope) {
        expect(distance.is_allowed(), || format!("{angles}: {distance:?}"))?;
    }
    Ok(())
}

fn another_method_is_noticed() -> Result<(), Failed> {
    let model = &LOADED.0;
    let none = RopeConfig::from_hf(&GOLDEN.case("none").config)?.factor_sets(8192)?;
    let distance = GOLDEN.distance(model, GOLDEN.case("yarn-4"), &none, SetChoice::Short);
    expect(distance.logit > 100.0 * Distance::ALLOWED.logit, || format!("{distance:?}"))?;
    // Long factors where the short ones belong.
    let case = GOLDEN.case("longrope-original-64-short-prompt");
    let sets = RopeConfig::from_hf(&case.config)?.factor_sets(256)?;
    let distance = GOLDEN.distance(model, case, &sets, SetChoice::Long);
    expect(distance.logit > 100.0 * Distance::ALLOWED.logit, || format!("{distance:?}"))
}
