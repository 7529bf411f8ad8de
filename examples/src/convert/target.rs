//! Factors as a format can hold them. What it can't hold is an error, unless the user lets it go.

use anyhow::{Result, bail, ensure};
use longrope::scaling::hf::Generation;
use longrope::scaling::{LongRope, RopeConfig, Scaling, Schedule, rescale};
use serde_json::Value;

use super::{Loss, Source};

/// How far two attention factors may differ and still be the same one, rounded to f32.
const SAME: f64 = 1e-6;

/// What a format holds, and what was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Written<T> {
    /// What is to be written.
    pub contents: T,
    /// A line for everything that was lost.
    pub dropped: Vec<String>,
}

/// The losses that the user allows, and those that came about.
struct Ledger<'a> {
    allowed: &'a [Loss],
    format: &'static str,
    dropped: Vec<String>,
}

impl Ledger<'_> {
    /// Loses `what`, if that is allowed.
    fn lose(&mut self, loss: Loss, what: String) -> Result<()> {
        ensure!(
            self.allowed.contains(&loss),
            "{} can't hold {what}; --drop {loss} leaves that out",
            self.format
        );
        self.dropped.push(what);
        Ok(())
    }

    fn first_tokens(&mut self, rope: RopeConfig) -> Result<RopeConfig> {
        let Scaling::LongRope(longrope) = rope.scaling() else { return Ok(rope) };
        if longrope.first_tokens == 0 {
            return Ok(rope);
        }
        self.lose(
            Loss::FirstTokens,
            format!("the first {} tokens, which keep the plain frequencies", longrope.first_tokens),
        )?;
        let scaling = Scaling::LongRope(LongRope { first_tokens: 0, ..longrope.clone() });
        Ok(RopeConfig::new(*rope.geometry(), rope.max_length(), scaling)?)
    }

    /// The rotary embedding of one model. Of a schedule: its longest bucket, and that of the original length.
    fn config(&mut self, source: &Source) -> Result<RopeConfig> {
        let schedule = match source {
            Source::Config(rope) => return Ok(rope.clone()),
            Source::Schedule(schedule) => schedule,
        };
        let rope = schedule.to_config(schedule.max_length())?;
        // What a configuration gives back is what it holds.
        if !same(schedule, &Schedule::from_configs(std::slice::from_ref(&rope))?) {
            let lengths: Vec<String> =
                schedule.buckets().iter().map(|bucket| bucket.max_length.to_string()).collect();
            self.lose(
                Loss::OtherLengths,
                format!(
                    "all of the buckets {} (it has one set up to {} tokens and one beyond, with one attention factor)",
                    lengths.join(", "),
                    schedule.geometry().original_length()
                ),
            )?;
        }
        Ok(rope)
    }
}

/// Whether two schedules give every length the same.
fn same(a: &Schedule, b: &Schedule) -> bool {
    let given = |schedule: &Schedule, length: u64| {
        let bucket = schedule.choose(length).ok()?;
        Some((bucket.factors.clone(), bucket.attention_factor, bucket.first_tokens))
    };
    let lengths = a.buckets().iter().chain(b.buckets()).map(|bucket| bucket.max_length);
    a.geometry() == b.geometry() && lengths.into_iter().all(|length| given(a, length) == given(b, length))
}

/// The fields of a Hugging Face configuration. If `model` is the text of a `config.json`, they replace its own.
///
/// # Errors
/// First tokens or buckets of a schedule that the user does not let go; a `model` that is not a JSON object.
pub fn hugging_face(
    source: &Source,
    generation: Generation,
    model: Option<&str>,
    allowed: &[Loss],
) -> Result<Written<Value>> {
    let mut ledger = Ledger { allowed, format: "a Hugging Face configuration", dropped: Vec::new() };
    let rope = ledger.config(source)?;
    let rope = ledger.first_tokens(rope)?;
    let mut contents = rope.to_hf(generation);
    if let Some(model) = model {
        let own = RopeConfig::from_hf_json(model)?;
        check_model(&rope, &own)?;
        let Value::Object(mut merged) = serde_json::from_str(model)? else { bail!("not a JSON object") };
        // The spellings of both generations: what is left of the other one would count.
        for key in [
            "rope_scaling",
            "rope_parameters",
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        ] {
            merged.remove(key);
        }
        if let Value::Object(fields) = contents {
            merged.extend(fields);
        }
        contents = Value::Object(merged);
        let read = RopeConfig::from_hf(&contents)?;
        ensure!(
            read.to_hf(generation) == rope.to_hf(generation),
            "the model's type gives {read:?} another meaning"
        );
    }
    Ok(Written { contents, dropped: ledger.dropped })
}

/// Factors belong to pairs of certain frequencies: a model with others can't take them.
fn check_model(rope: &RopeConfig, own: &RopeConfig) -> Result<()> {
    let (found, expected) = (rope.geometry(), own.geometry());
    for (name, found, expected) in [
        ("head_dim", found.head_dim() as f64, expected.head_dim() as f64),
        ("rotary_dim", found.rotary_dim() as f64, expected.rotary_dim() as f64),
        ("rope_theta", found.theta(), expected.theta()),
    ] {
        // NTK-aware scaling is another base, without any other scaling.
        let same = found as f32 == expected as f32
            || (name == "rope_theta" && matches!(rope.scaling(), Scaling::Default));
        ensure!(same, "{name}: {found} is not valid; expected {expected}, that of --model");
    }
    Ok(())
}

/// The rotary embedding as GGUF holds it: LongRoPE without first tokens.
///
/// # Errors
/// First tokens or buckets of a schedule that the user does not let go; dynamic NTK.
pub fn longrope_for_gguf(source: &Source, allowed: &[Loss]) -> Result<Written<RopeConfig>> {
    let mut ledger = Ledger { allowed, format: "GGUF", dropped: Vec::new() };
    let rope = ledger.config(source)?.to_longrope()?;
    let contents = ledger.first_tokens(rope)?;
    Ok(Written { contents, dropped: ledger.dropped })
}

/// The one set that a CSV file holds: the factors beyond the original length, or those up to it if the user drops the
/// others.
///
/// # Errors
/// Anything else that the user does not let go: a short set other than ones, first tokens, an attention factor other than
/// LongRoPE's, buckets of a schedule; dynamic NTK.
pub fn one_set(source: &Source, allowed: &[Loss]) -> Result<Written<Vec<f64>>> {
    let mut ledger = Ledger { allowed, format: "a CSV file", dropped: Vec::new() };
    let rope = ledger.config(source)?.to_longrope()?;
    let rope = ledger.first_tokens(rope)?;
    let Scaling::LongRope(longrope) = rope.scaling() else { bail!("{:?} is not LongRoPE", rope.scaling()) };
    let original = rope.geometry().original_length();
    let contents = if allowed.contains(&Loss::LongSet) {
        ensure!(!allowed.contains(&Loss::ShortSet), "--drop: short-set and long-set leave nothing");
        ledger.lose(Loss::LongSet, format!("the factors beyond {original} tokens"))?;
        longrope.short_factor.clone()
    } else {
        if longrope.short_factor.iter().any(|&factor| factor != 1.0) {
            ledger
                .lose(Loss::ShortSet, format!("the factors up to {original} tokens beside those beyond"))?;
        }
        longrope.long_factor.clone()
    };
    let by_rule = rescale::longrope_attention_factor(rope.max_length() as f64 / original as f64, original);
    let own = rope.attention_factor();
    if (own / by_rule - 1.0).abs() > SAME {
        ledger.lose(
            Loss::AttentionFactor,
            format!("the attention factor {own} (readers take {by_rule}, from the lengths)"),
        )?;
    }
    Ok(Written { contents, dropped: ledger.dropped })
}

/// A schedule of one or several sources of one model.
///
/// # Errors
/// A schedule beside another source; configurations that do not go together.
pub fn schedule(sources: &[Source]) -> Result<Schedule> {
    if let [Source::Schedule(schedule)] = sources {
        return Ok(schedule.clone());
    }
    let configs = sources
        .iter()
        .map(|source| match source {
            Source::Config(rope) => Ok(rope.clone()),
            Source::Schedule(_) => {
                bail!("--from: a schedule beside others is not supported; expected TOKENS=PATH, which takes one bucket of it")
            }
        })
        .collect::<Result<Vec<RopeConfig>>>()?;
    Ok(Schedule::from_configs(&configs)?)
}
