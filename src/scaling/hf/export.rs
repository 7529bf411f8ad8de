//! From a [`RopeConfig`] to the fields of a Hugging Face `config.json`.

use serde_json::{Map, Value, json};

use crate::scaling::rescale::YarnRamp;
use crate::scaling::{RopeConfig, Scaling};

/// The spelling of the rotary block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Generation {
    /// `rope_scaling`, with `rope_theta` at the top level: transformers 4, vLLM, llama.cpp's converter. Both
    /// `rope_type` and its older name `type` are written.
    RopeScaling,
    /// `rope_parameters`, with `rope_theta` inside: transformers 5.
    RopeParameters,
}

/// The share of a head that turns, so that readers, who multiply and round down, find the same number of dimensions.
fn partial_factor(rotary_dim: usize, head_dim: usize) -> f64 {
    let quotient = rotary_dim as f64 / head_dim as f64;
    match head_dim as f64 * quotient < rotary_dim as f64 {
        true => quotient.next_up(),
        false => quotient,
    }
}

impl RopeConfig {
    /// The fields to merge into a model's `config.json`: the block in the spelling of `generation`, the lengths, and
    /// what the geometry needs. [`from_hf`](Self::from_hf) reads them back to an equal configuration, except that
    /// NTK-aware scaling, which has no type there, becomes the larger `rope_theta` it stands for.
    ///
    /// The number of first tokens (n_hat) has no field in Hugging Face's format. If it is not 0 it is written as
    /// `n_hat`, which this crate reads and transformers ignores with a warning.
    pub fn to_hf(&self, generation: Generation) -> Value {
        let geometry = self.geometry();
        let theta = match self.scaling() {
            Scaling::NtkAware { factor } if geometry.rotary_dim() > 2 => {
                let d = geometry.rotary_dim() as f64;
                geometry.theta() * factor.powf(d / (d - 2.0))
            }
            _ => geometry.theta(),
        };
        let partial = partial_factor(geometry.rotary_dim(), geometry.head_dim());

        let mut config = Map::new();
        config.insert("head_dim".into(), json!(geometry.head_dim()));
        config.insert("max_position_embeddings".into(), json!(self.max_length()));
        let mut block = self.block();
        if block.contains_key("original_max_position_embeddings") {
            // Engines look in either place.
            config.insert("original_max_position_embeddings".into(), json!(geometry.original_length()));
        }
        match generation {
            Generation::RopeScaling => {
                config.insert("rope_theta".into(), json!(theta));
                if partial < 1.0 {
                    config.insert("partial_rotary_factor".into(), json!(partial));
                }
                let scaling = if matches!(block["rope_type"].as_str(), Some("default")) {
                    Value::Null
                } else {
                    block.insert("type".into(), block["rope_type"].clone());
                    Value::Object(block)
                };
                config.insert("rope_scaling".into(), scaling);
            }
            Generation::RopeParameters => {
                block.insert("rope_theta".into(), json!(theta));
                if partial < 1.0 {
                    block.insert("partial_rotary_factor".into(), json!(partial));
                }
                config.insert("rope_parameters".into(), Value::Object(block));
            }
        }
        Value::Object(config)
    }

    /// The fields that belong to the method.
    fn block(&self) -> Map<String, Value> {
        let mut block = Map::new();
        let mut put = |key: &str, value: Value| {
            block.insert(key.into(), value);
        };
        match self.scaling() {
            Scaling::Default | Scaling::NtkAware { .. } => put("rope_type", json!("default")),
            Scaling::Linear { factor } => {
                put("rope_type", json!("linear"));
                put("factor", json!(factor));
            }
            Scaling::DynamicNtk { factor } => {
                put("rope_type", json!("dynamic"));
                put("factor", json!(factor));
            }
            Scaling::Yarn(yarn) => {
                let YarnRamp { beta_fast, beta_slow, truncate } = yarn.ramp;
                put("rope_type", json!("yarn"));
                put("factor", json!(yarn.factor));
                put("beta_fast", json!(beta_fast));
                put("beta_slow", json!(beta_slow));
                if !truncate {
                    put("truncate", json!(false));
                }
                let optional = [
                    ("attention_factor", yarn.attention_factor),
                    ("mscale", yarn.mscale),
                    ("mscale_all_dim", yarn.mscale_all_dim),
                ];
                for (key, value) in optional {
                    if let Some(value) = value {
                        put(key, json!(value));
                    }
                }
            }
            Scaling::Llama3(llama3) => {
                put("rope_type", json!("llama3"));
                put("factor", json!(llama3.factor));
                put("low_freq_factor", json!(llama3.low_frequency_factor));
                put("high_freq_factor", json!(llama3.high_frequency_factor));
            }
            Scaling::LongRope(longrope) => {
                put("rope_type", json!("longrope"));
                put("short_factor", json!(longrope.short_factor));
                put("long_factor", json!(longrope.long_factor));
                // The ratio of the lengths is what readers assume.
                let ratio = self.max_length() as f64 / self.geometry().original_length() as f64;
                if longrope.factor != ratio {
                    put("factor", json!(longrope.factor));
                }
                if let Some(attention_factor) = longrope.attention_factor {
                    put("attention_factor", json!(attention_factor));
                }
                if longrope.first_tokens > 0 {
                    put("n_hat", json!(longrope.first_tokens));
                }
            }
        }
        if matches!(self.scaling(), Scaling::Yarn(_) | Scaling::Llama3(_) | Scaling::LongRope(_)) {
            block.insert("original_max_position_embeddings".into(), json!(self.geometry().original_length()));
        }
        block
    }
}
