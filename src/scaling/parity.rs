//! Hugging Face's inverse frequencies, by its own f32 operations in their order.
//!
//! A checkpoint was trained with frequencies that transformers computed in f32. To compare with it, the same roundings
//! are made here: each operation on a tensor rounds to f32, scalars are f64 until they meet one. The power is taken in
//! f64 and rounded once, which is what a correctly rounded `powf` gives.

use crate::scaling::method::dynamic_growth;
use crate::scaling::{Geometry, Llama3, Scaling, Yarn};

/// `1 / (factor * base^(2i/d))` and its variants, as `modeling_rope_utils.py` of transformers 5.23 computes them.
pub(super) fn inverse_frequencies(geometry: &Geometry, scaling: &Scaling, length: u64) -> Vec<f32> {
    let powers = powers(geometry, geometry.theta());
    match scaling {
        Scaling::Default => powers.into_iter().map(f32::recip).collect(),
        Scaling::Linear { factor } => powers.into_iter().map(|p| p.recip() / *factor as f32).collect(),
        // No such type there: users raise `rope_theta`, so that is what parity means.
        Scaling::NtkAware { factor } => ntk(geometry, *factor),
        Scaling::DynamicNtk { factor } => {
            ntk(geometry, dynamic_growth(*factor, length, geometry.original_length()))
        }
        Scaling::Yarn(yarn) => yarn_blend(geometry, yarn, &powers),
        Scaling::Llama3(llama3) => {
            powers.into_iter().map(|p| llama3_frequency(geometry, llama3, p.recip())).collect()
        }
        Scaling::LongRope(longrope) => {
            let factors = match length > geometry.original_length() {
                true => &longrope.long_factor,
                false => &longrope.short_factor,
            };
            powers.iter().zip(factors).map(|(p, &factor)| (factor as f32 * p).recip()).collect()
        }
    }
}

/// `base^(2i/d)` of each pair: the exponent is an f32 quotient, the base is rounded to f32.
fn powers(geometry: &Geometry, base: f64) -> Vec<f32> {
    let base = f64::from(base as f32);
    (0..geometry.pairs())
        .map(|i| {
            let exponent = (2 * i) as f32 / geometry.rotary_dim() as f32;
            base.powf(f64::from(exponent)) as f32
        })
        .collect()
}

fn ntk(geometry: &Geometry, growth: f64) -> Vec<f32> {
    let d = geometry.rotary_dim() as f64;
    let base = geometry.theta() * growth.powf(d / (d - 2.0));
    powers(geometry, base).into_iter().map(f32::recip).collect()
}

fn yarn_blend(geometry: &Geometry, yarn: &Yarn, powers: &[f32]) -> Vec<f32> {
    let (low, high) = yarn.ramp.ends(geometry);
    powers
        .iter()
        .enumerate()
        .map(|(i, &power)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            let (extrapolated, interpolated) = (power.recip(), (yarn.factor as f32 * power).recip());
            interpolated * (1.0 - kept) + extrapolated * kept
        })
        .collect()
}

fn llama3_frequency(geometry: &Geometry, llama3: &Llama3, inverse: f32) -> f32 {
    let original = geometry.original_length() as f64;
    let (low, high) = (llama3.low_frequency_factor, llama3.high_frequency_factor);
    let factor = llama3.factor as f32;
    let wavelength = inverse.recip() * std::f64::consts::TAU as f32;
    let divided = match wavelength > (original / low) as f32 {
        true => inverse / factor,
        false => inverse,
    };
    if wavelength < (original / high) as f32 || wavelength > (original / low) as f32 {
        return divided;
    }
    let smooth = (wavelength.recip() * original as f32 - low as f32) / (high - low) as f32;
    ((1.0 - smooth) * divided) / factor + smooth * divided
}
