//! How much of a device's arithmetic a training step uses.

use super::llama::{Method, TrainableLlama};
use super::packing::Pack;

/// Floating-point operations that a step on this sequence needs: those of the products and of causal attention, forward and
/// backward, each once. What is made again to save memory does not count.
pub fn flops(model: &TrainableLlama, pack: &Pack) -> f64 {
    let config = model.config();
    let heads = config.query_heads * config.head_dim();
    let keys = config.key_heads * config.head_dim();
    let block = 2 * config.hidden_size * (heads + keys) + 3 * config.hidden_size * config.intermediate_size;
    let matrices = (config.layers * block + config.vocab_size * config.hidden_size) as f64;
    // Two each for the product, the gradient of its input, and that of its matrix if this is trained.
    let token = match model.method() {
        Method::Full => 6.0 * matrices,
        Method::Lora(_) => 4.0 * matrices + 6.0 * model.trained() as f64,
    };
    let pairs: f64 = pack
        .documents()
        .iter()
        .map(|rows| rows.len() as f64)
        .map(|length| length * (length + 1.0) / 2.0)
        .sum();
    // Scores and weighted values, two each; the backward pass has twice as many.
    let attention = 12.0 * pairs * (config.layers * heads) as f64;
    pack.tokens().len() as f64 * token + attention
}

/// The peak rate of a device by its name, in floating-point operations a second: dense, in 16 bits, as its maker gives it.
pub fn peak(device: &str) -> Option<f64> {
    let known =
        [("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H200", 989e12), ("A100", 312e12)];
    known.iter().find(|(name, _)| device.contains(name)).map(|(_, rate)| *rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Place, Projection};
    use crate::training::Lora;

    #[test]
    fn operations_are_counted_by_hand() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/tiny");
        let load = |method| {
            let opened = model::open(&path).unwrap();
            TrainableLlama::new(opened.config, &*opened.weights, &Place::cpu(), method, 0).unwrap()
        };
        let pack = Pack::of(&[&[1; 3], &[2; 2]]);
        // 4 blocks of 256x256 twice, 128x256 twice, 688x256 thrice; 256 tokens of a vocabulary.
        let matrices = (4 * (2 * 65_536 + 2 * 32_768 + 3 * 176_128) + 65_536) as f64;
        // 6 and 3 pairs of a query and a key, 256 dimensions of heads, 4 blocks.
        let attention = 12.0 * 9.0 * 1024.0;
        assert_eq!(flops(&load(Method::Full), &pack), 5.0 * 6.0 * matrices + attention);
        let lora = Lora { rank: 2, alpha: 4.0, projections: vec![Projection::Q] };
        let adapters = f64::from(4 * 2 * 2 * 256);
        assert_eq!(
            flops(&load(Method::Lora(lora)), &pack),
            5.0 * (4.0 * matrices + 6.0 * adapters) + attention
        );
    }

    #[test]
    fn a_device_is_known_by_its_name() {
        assert_eq!(peak("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(peak("Unheard-of 9"), None);
    }
}
