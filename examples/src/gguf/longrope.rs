//! What makes a GGUF model a LongRoPE model: two tensors and four metadata entries.
//!
//! llama.cpp divides the angle of each pair by the long tensor's factor where the context of a sequence exceeds
//! `rope.scaling.original_context_length`, else by the short one's, and multiplies cosine and sine by
//! `rope.scaling.attn_factor`. The context is the one that was asked for, not the length of the text.

use anyhow::{Result, bail, ensure};
use longrope::scaling::{RopeConfig, Scaling};

use super::{Changes, Entry, Header, LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS};

/// The architectures whose factor tensors llama.cpp reads. Of others it refuses the file, since it counts the tensors.
///
/// `llama`, and `minicpm` and `granite`, which it loads alike, read them where `rope.scaling.type` is `longrope`, and
/// then no `rope_freqs.weight`. `phi3`, `phimoe` and `minicpm3` read them whatever the type.
pub const ARCHITECTURES: [&str; 6] = ["llama", "granite", "minicpm", "minicpm3", "phi3", "phimoe"];

/// Metadata of other methods, which would act on top of the factors.
const OTHER_METHODS: [&str; 7] = [
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
];

/// What has to change in the file of `header` for the model to have the factors of `rope`, which is LongRoPE. Factors and
/// attention factor are rounded to f32.
///
/// # Errors
/// An architecture that llama.cpp reads no factors of, or one of several files of a model; another method than LongRoPE, or first tokens, which the format
/// can't hold; another base or number of pairs than the model's; a length beyond 32 bits; a factor beyond f32.
pub fn changes(header: &Header, rope: &RopeConfig) -> Result<Changes> {
    let architecture = header.architecture()?;
    ensure!(
        ARCHITECTURES.contains(&architecture),
        "general.architecture: {architecture:?} is not supported; expected one that llama.cpp reads factors of: {}",
        ARCHITECTURES.join(", ")
    );
    let parts = header.whole("split.count")?.unwrap_or(1);
    ensure!(parts <= 1, "split.count: {parts} is not supported; expected a model in one file");
    let key = |name: &str| format!("{architecture}.{name}");
    let Scaling::LongRope(longrope) = rope.scaling() else { bail!("{:?} is not LongRoPE", rope.scaling()) };
    ensure!(
        longrope.first_tokens == 0,
        "first tokens: {} is not valid; expected 0, since GGUF has no field for them",
        longrope.first_tokens
    );

    let own = super::rope::geometry(header)?;
    let geometry = rope.geometry();
    ensure!(
        geometry.pairs() == own.pairs(),
        "{} pairs is not valid; expected {}, those of the model",
        geometry.pairs(),
        own.pairs()
    );
    // The file holds the base in 32 bits.
    ensure!(
        geometry.theta() as f32 == own.theta() as f32,
        "rope_theta: {} is not valid; expected {}, that of the model",
        geometry.theta(),
        own.theta()
    );
    let length = |name: &str, tokens: u64| -> Result<Entry> {
        let Ok(tokens) = u32::try_from(tokens) else {
            bail!("{}: {tokens} is not valid; expected at most {}", key(name), u32::MAX);
        };
        Ok(Entry::u32(&key(name), tokens))
    };
    Ok(Changes {
        entries: vec![
            length("context_length", rope.max_length())?,
            Entry::text(&key("rope.scaling.type"), "longrope"),
            length("rope.scaling.original_context_length", geometry.original_length())?,
            Entry::f32(
                &key("rope.scaling.attn_factor"),
                narrow("attention_factor", rope.attention_factor())?,
            ),
        ],
        removed_entries: OTHER_METHODS.iter().map(|name| key(name)).collect(),
        tensors: vec![
            (LONG_FACTORS.to_owned(), narrow_all("long_factor", &longrope.long_factor)?),
            (SHORT_FACTORS.to_owned(), narrow_all("short_factor", &longrope.short_factor)?),
        ],
        removed_tensors: vec![LLAMA3_FACTORS.to_owned()],
    })
}

fn narrow_all(name: &str, factors: &[f64]) -> Result<Vec<f32>> {
    factors.iter().enumerate().map(|(i, &factor)| narrow(&format!("{name}[{i}]"), factor)).collect()
}

/// The nearest f32, if it is neither zero nor infinite.
fn narrow(name: &str, value: f64) -> Result<f32> {
    let narrow = value as f32;
    ensure!(narrow.is_normal(), "{name}: {value} is not valid; expected a number that f32 can hold");
    Ok(narrow)
}
