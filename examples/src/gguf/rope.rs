//! The rotary embedding that a GGUF file describes: metadata, and the factor tensors of LongRoPE models.

use std::fs::File;

use anyhow::{Result, bail, ensure};
use longrope::scaling::{Geometry, LongRope, RopeConfig, Scaling, Yarn, rescale};

use super::{Header, LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS};

/// The rotary embedding of the model in `file`, of any architecture.
///
/// # Errors
/// Metadata that is missing, of the wrong type or out of range; factor tensors of the wrong type or length; a scaling
/// type other than none, linear, yarn and longrope.
pub fn rope_config(header: &Header, file: &mut File) -> Result<RopeConfig> {
    let architecture = header.architecture()?;
    let key = |name: &str| format!("{architecture}.{name}");
    let geometry = geometry(header)?;
    let max_length = header.required(&key("context_length"))?;
    let ratio = max_length as f64 / geometry.original_length() as f64;
    let mut factors = |name: &str| -> Result<Vec<f64>> {
        Ok(header.floats(file, name, geometry.pairs())?.into_iter().map(f64::from).collect())
    };
    let kind = header.text(&key("rope.scaling.type"))?.unwrap_or("none");
    let factor = header.number(&key("rope.scaling.factor"))?;
    let attention_factor = header.number(&key("rope.scaling.attn_factor"))?;
    let scaling = if header.tensor(LONG_FACTORS).is_some() {
        Scaling::LongRope(LongRope {
            short_factor: factors(SHORT_FACTORS)?,
            long_factor: factors(LONG_FACTORS)?,
            factor: ratio,
            attention_factor,
            first_tokens: 0,
        })
    } else if header.tensor(LLAMA3_FACTORS).is_some() {
        // Llama 3: the file holds the divisors themselves, the same at every length.
        let divisors = factors(LLAMA3_FACTORS)?;
        Scaling::LongRope(LongRope {
            short_factor: divisors.clone(),
            long_factor: divisors,
            factor: 1.0,
            attention_factor: Some(1.0),
            first_tokens: 0,
        })
    } else {
        match kind {
            "none" => Scaling::Default,
            "linear" => Scaling::Linear { factor: factor.unwrap_or(ratio) },
            "yarn" => {
                // ggml multiplies the file's factor with the one it computes itself.
                let scale = factor.unwrap_or(ratio);
                let gain = |by| by * rescale::yarn_attention_factor(scale, 1.0);
                Scaling::Yarn(Yarn { attention_factor: attention_factor.map(gain), ..Yarn::new(scale) })
            }
            "longrope" => bail!("{LONG_FACTORS}: missing; expected the factors of longrope"),
            other => bail!(
                "{}: {other:?} is not supported; expected none, linear, yarn or longrope",
                key("rope.scaling.type")
            ),
        }
    };
    Ok(RopeConfig::new(geometry, max_length, scaling)?)
}

/// Head dimensions, base and original length of the model.
pub(super) fn geometry(header: &Header) -> Result<Geometry> {
    let architecture = header.architecture()?;
    let key = |name: &str| format!("{architecture}.{name}");
    let head_dim = head_dim(header, architecture)?;
    let rotary_dim = header.whole(&key("rope.dimension_count"))?.map_or(head_dim, |dim| dim as usize);
    let theta = header.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let original_length = match header.whole(&key("rope.scaling.original_context_length"))? {
        Some(length) => length,
        None => header.required(&key("context_length"))?,
    };
    Ok(Geometry::new(head_dim, rotary_dim, theta, original_length)?)
}

/// Dimensions of a head.
fn head_dim(header: &Header, architecture: &str) -> Result<usize> {
    if let Some(length) = header.whole(&format!("{architecture}.attention.key_length"))? {
        return Ok(length as usize);
    }
    let heads = header.required(&format!("{architecture}.attention.head_count"))?;
    ensure!(heads > 0, "{architecture}.attention.head_count: 0 is not valid; expected at least 1");
    Ok((header.required(&format!("{architecture}.embedding_length"))? / heads) as usize)
}
