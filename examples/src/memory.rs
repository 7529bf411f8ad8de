//! Whether a run fits in memory, asked before it starts.

use anyhow::{Result, ensure};

use crate::model::{AttentionKind, COMPOSED_ROWS, Llama, LlamaConfig, Place};

/// Bytes of the device's memory that evaluating sequences of `length` tokens needs, roughly, where at most `chunk` go through the
/// model at a time: weights, the activations of one layer, and the logits of some rows; in chunks, the cache and the hidden states
/// of all tokens too.
pub fn required(config: &LlamaConfig, length: usize, chunk: usize, place: &Place) -> u64 {
    let (queries, keys) = (config.query_heads * config.head_dim(), config.key_heads * config.head_dim());
    // Within the attention: queries, keys and values, the rotated ones, the output. Within the feed-forward layer: gate and
    // up, their product.
    let widest = (3 * queries + 3 * keys).max(3 * config.intermediate_size);
    // Beside them the residual and its norm, which GPUs keep together, and what is added to them or comes out.
    let token = widest + 5 * config.hidden_size;
    let logits = Llama::logit_rows(place).min(length) * config.vocab_size;
    let numbers = (token as u64).saturating_mul(length.min(chunk) as u64).saturating_add(logits as u64);
    let numbers = numbers.saturating_add(config.parameters() as u64);
    // A quarter more for what allocators keep.
    let bytes = (numbers.saturating_mul(place.weight_bytes()) / 4).saturating_mul(5);
    // The hidden states of the chunks, and all of them as one.
    let kept = if length > chunk { 2 * config.layers * keys + 2 * config.hidden_size } else { 0 };
    bytes.saturating_add((kept as u64).saturating_mul(length as u64).saturating_mul(place.weight_bytes()))
}

/// What this attention needs beside [`required`]: the composed one keeps scores, masked scores and weights of a block of
/// queries, and queries, keys, values and output once more.
pub fn of_attention(kind: AttentionKind, config: &LlamaConfig, length: usize, place: &Place) -> u64 {
    if kind == AttentionKind::Fused {
        return 0;
    }
    let scores = (3 * config.query_heads + 2) * COMPOSED_ROWS;
    let token = scores + (4 * config.query_heads + 2 * config.key_heads) * config.head_dim();
    (token as u64).saturating_mul(length as u64).saturating_mul(place.weight_bytes())
}

/// Bytes of the device's memory that training on sequences of `length` tokens needs, roughly, where `trained` numbers are
/// trained: those and their gradients and moments, the residual stream at every block, one block's activations and their gradients.
pub fn of_training(config: &LlamaConfig, length: usize, trained: usize, place: &Place) -> u64 {
    let width = (config.query_heads + 2 * config.key_heads) * config.head_dim();
    // Norms are computed in f32, whatever the model's type.
    let wide = 12 * config.hidden_size;
    let narrow = (config.layers + 8) * config.hidden_size + 4 * width + 8 * config.intermediate_size;
    let token = (narrow as u64).saturating_mul(place.weight_bytes()).saturating_add(4 * wide as u64);
    let logits = if place.is_gpu() { 4096 } else { 256 }.min(length) * config.vocab_size;
    let weights = (config.parameters() as u64).saturating_mul(place.weight_bytes());
    let numbers = (trained as u64).saturating_mul(5 * 4);
    let bytes = token.saturating_mul(length as u64).saturating_add(5 * 4 * logits as u64);
    bytes.saturating_add(weights).saturating_add(numbers) / 4 * 5
}

/// What training needs beside [`of_training`] where the attention of every block is kept.
pub fn of_kept_attention(config: &LlamaConfig, length: usize, place: &Place) -> u64 {
    let head = config.head_dim() as u64 * place.weight_bytes() + 4;
    ((config.layers * config.query_heads) as u64).saturating_mul(head).saturating_mul(length as u64)
}

/// Fails if `bytes` exceed what the device has available. `available` is asked of the system; where it does not tell,
/// nothing is refused.
pub fn check(what: &str, bytes: u64, place: &Place) -> Result<()> {
    compare(what, bytes, if place.is_gpu() { place.free_memory() } else { available() })
}

fn compare(what: &str, bytes: u64, available: Option<u64>) -> Result<()> {
    let Some(available) = available else { return Ok(()) };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        bytes <= available,
        "{what} needs about {} MiB of memory, and {} MiB are available; use a shorter --length or a smaller model",
        mib(bytes),
        mib(available)
    );
    Ok(())
}

/// `MemAvailable` of Linux.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_available_is_refused_with_both_numbers() {
        let message = compare("a window of 9 tokens", 3 << 20, Some(2 << 20)).unwrap_err().to_string();
        assert!(message.contains("about 3 MiB") && message.contains("2 MiB are available"), "{message}");
        assert!(compare("it", 3 << 20, Some(3 << 20)).is_ok());
        assert!(compare("it", u64::MAX, None).is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_what_is_available() {
        assert!(available().unwrap() > 1 << 20);
    }
}
