//! From a Hugging Face `config.json` to a [`RopeConfig`].

use serde_json::Value;

use super::field::Object;
use crate::scaling::rescale::YarnRamp;
use crate::scaling::{ConfigError, Geometry, Llama3, LongRope, RopeConfig, Scaling, Yarn};

/// The original length of transformers' Phi-3 where `config.json` has none at its top level.
const PHI3_ORIGINAL_LENGTH: u64 = 4096;

/// Larger files are no model configurations.
const MAX_BYTES: usize = 16 << 20;

impl RopeConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Text that is not JSON, nests deeper than 128 levels or exceeds 16 MiB, and all that
    /// [`from_hf`](Self::from_hf) refuses.
    pub fn from_hf_json(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_BYTES {
            return Err(ConfigError::invalid(
                "configuration",
                format!("{} bytes", text.len()),
                format!("at most {MAX_BYTES} bytes"),
            ));
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ConfigError::Syntax { format: "JSON", reason: error.to_string() })?;
        Self::from_hf(&value)
    }

    /// Reads a configuration with one rotary embedding for all layers.
    ///
    /// # Errors
    /// A field that is missing, of the wrong type or out of range, an unknown `rope_type`, or a block with one entry
    /// per layer type (use [`from_hf_layer`](Self::from_hf_layer)). The message holds the path of the field.
    pub fn from_hf(config: &Value) -> Result<Self, ConfigError> {
        let top = Object::new("", config)?;
        let (path, block) = block(&top);
        if let Some(block) = block {
            let fields = Object::new(path, block)?;
            let has_type = fields.get("rope_type").or(fields.get("type")).is_some();
            let layers: Vec<&str> =
                fields.keys().filter(|(_, value)| value.is_object()).map(|(key, _)| key.as_str()).collect();
            if !has_type && !layers.is_empty() {
                return Err(ConfigError::invalid(
                    path,
                    format!("one entry per layer type ({})", layers.join(", ")),
                    "a single entry, or the layer type named by the caller",
                ));
            }
        }
        read(&top, path, block, true)
    }

    /// Reads the rotary embedding of the layers of type `layer_type` (as in `full_attention`), from a block with one
    /// entry per layer type.
    ///
    /// # Errors
    /// As [`from_hf`](Self::from_hf), and if the block has no such entry.
    pub fn from_hf_layer(config: &Value, layer_type: &str) -> Result<Self, ConfigError> {
        let top = Object::new("", config)?;
        let (path, block) = block(&top);
        let path = format!("{path}.{layer_type}");
        let layer = block
            .and_then(|block| block.get(layer_type))
            .filter(|layer| layer.is_object())
            .ok_or_else(|| ConfigError::missing(&path, "an object with the parameters of this layer type"))?;
        // In a nested block the original length at the top level does not win.
        read(&top, &path, Some(layer), false)
    }
}

/// The block of rotary parameters and its name.
fn block<'a>(top: &Object<'a>) -> (&'static str, Option<&'a Value>) {
    let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    if let Some(value) = top.get("rope_scaling").filter(|value| !empty(value)) {
        return ("rope_scaling", Some(value));
    }
    ("rope_parameters", top.get("rope_parameters"))
}

fn read(
    top: &Object<'_>,
    path: &str,
    block: Option<&Value>,
    top_length_wins: bool,
) -> Result<RopeConfig, ConfigError> {
    let empty = Value::Object(serde_json::Map::new());
    let fields = Object::new(path, block.unwrap_or(&empty))?;

    let max_length = top.required_whole("max_position_embeddings")?;
    let kind = rope_type(top, &fields)?;
    let original_length = match kind {
        "llama3" | "yarn" | "longrope" => {
            let (outer, inner) = (
                top.whole("original_max_position_embeddings")?,
                fields.whole("original_max_position_embeddings")?,
            );
            match (top_length_wins, is_phi3(top)?) {
                // Phi-3's configuration class always has the top-level field.
                (true, true) => outer.unwrap_or(PHI3_ORIGINAL_LENGTH),
                (true, false) => outer.or(inner).unwrap_or(max_length),
                (false, _) => inner.unwrap_or(max_length),
            }
        }
        _ => max_length,
    };

    let head_dim = head_dim(top)?;
    let partial = match fields.number("partial_rotary_factor")? {
        Some(inner) => inner,
        None => top.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(ConfigError::invalid("partial_rotary_factor", partial, "a number above 0, at most 1"));
    }
    // Llama's own default embedding turns the whole head.
    let ignored = kind == "default" && top.text("model_type")? == Some("llama");
    let rotary_dim = if ignored { head_dim } else { (head_dim as f64 * partial) as usize };
    let theta = match fields.number("rope_theta")? {
        Some(inner) => inner,
        None => top.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let geometry = Geometry::new(head_dim, rotary_dim, theta, original_length)?;
    let ratio = max_length as f64 / original_length as f64;
    RopeConfig::at_path(geometry, max_length, scaling(kind, &fields, ratio)?, path)
}

fn rope_type<'a>(top: &Object<'a>, fields: &Object<'a>) -> Result<&'a str, ConfigError> {
    let kind = match fields.text("rope_type")? {
        Some(kind) => kind,
        None => fields.text("type")?.unwrap_or("default"),
    };
    Ok(match kind {
        "su" => "longrope",
        "yarn" if is_phi3(top)? => "longrope",
        kind => kind,
    })
}

fn is_phi3(top: &Object<'_>) -> Result<bool, ConfigError> {
    Ok(top.text("model_type")? == Some("phi3"))
}

fn head_dim(top: &Object<'_>) -> Result<usize, ConfigError> {
    if let Some(head_dim) = top.whole("head_dim")? {
        return Ok(head_dim as usize);
    }
    let hidden = top.whole("hidden_size")?.ok_or_else(|| {
        ConfigError::missing("head_dim", "a whole number, or hidden_size and num_attention_heads")
    })?;
    match top.required_whole("num_attention_heads")? {
        0 => Err(ConfigError::invalid("num_attention_heads", 0, "at least 1")),
        heads => Ok((hidden / heads) as usize),
    }
}

/// The parameters of one type. `ratio` is the maximum over the original length.
fn scaling(kind: &str, fields: &Object<'_>, ratio: f64) -> Result<Scaling, ConfigError> {
    // transformers takes a null or zero beta for an absent one.
    let beta = |name, default| Ok(fields.number(name)?.filter(|beta| *beta != 0.0).unwrap_or(default));
    Ok(match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: fields.required_number("factor")? },
        "dynamic" => Scaling::DynamicNtk { factor: fields.required_number("factor")? },
        "yarn" => Scaling::Yarn(Yarn {
            factor: fields.number("factor")?.unwrap_or(ratio),
            ramp: YarnRamp {
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                truncate: fields.boolean("truncate")?.unwrap_or(true),
            },
            attention_factor: fields.number("attention_factor")?,
            mscale: fields.number("mscale")?,
            mscale_all_dim: fields.number("mscale_all_dim")?,
        }),
        "llama3" => Scaling::Llama3(Llama3 {
            factor: fields.required_number("factor")?,
            low_frequency_factor: fields.required_number("low_freq_factor")?,
            high_frequency_factor: fields.required_number("high_freq_factor")?,
        }),
        "longrope" => Scaling::LongRope(LongRope {
            short_factor: fields.required_numbers("short_factor")?,
            long_factor: fields.required_numbers("long_factor")?,
            factor: fields.number("factor")?.unwrap_or(ratio),
            attention_factor: fields.number("attention_factor")?,
            first_tokens: fields.whole("n_hat")?.unwrap_or(0),
        }),
        other => {
            return Err(ConfigError::invalid(
                fields.path("rope_type"),
                format!("{:?}", other.chars().take(40).collect::<String>()),
                "default, linear, dynamic, yarn, llama3, longrope or su",
            ));
        }
    })
}
