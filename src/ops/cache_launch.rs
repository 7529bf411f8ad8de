//! The kernels that write to a cache, and how their work lies over blocks.

use crate::Error;
use crate::device::{Family, Grid};
use crate::ops::rotary_launch::{Block, block};

/// Blocks that a multiprocessor runs at once, by the registers that the re-rotating kernels are compiled for.
const BLOCKS_EACH: usize = 4;

/// New tokens from which a block takes each in two steps, and so twice as many: what it waits for before it can write, the length and
/// then a page's id, is waited for half as often. Fewer are spread over more blocks.
const MANY_TOKENS: usize = 512;

/// A grid, and what the kernel is told of it.
pub(super) struct Launch {
    pub(super) grid: Grid,
    pub(super) ring_bytes: i32,
}

/// The launch of so many tokens.
pub(super) fn launch(tokens: usize, heads: usize, pairs: usize, vector: bool) -> Result<Launch, Error> {
    let least = if tokens < MANY_TOKENS { 1 } else { 2 };
    let block = block(tokens, heads, pairs, vector.then_some(8), least);
    let blocks = u32::try_from(tokens.div_ceil(block.tokens)).ok().filter(|blocks| *blocks < 1 << 31);
    let blocks = blocks
        .ok_or_else(|| Error::unsupported("tensors", format!("{tokens} tokens"), "fewer than 2^31 tokens"))?;
    Ok(of(&block, blocks))
}

/// The launch of tokens of which only the device knows how many there are; at most so many.
pub(super) fn walking_launch(
    most: usize,
    heads: usize,
    pairs: usize,
    vector: bool,
    multiprocessors: u32,
) -> Launch {
    let block = block(most, heads, pairs, vector.then_some(8), 1);
    let blocks = most.div_ceil(block.tokens).clamp(1, BLOCKS_EACH * multiprocessors.max(1) as usize);
    of(&block, blocks as u32)
}

fn of(block: &Block, blocks: u32) -> Launch {
    Launch {
        grid: Grid { blocks, threads: block.threads, shared_bytes: block.shared_bytes },
        ring_bytes: block.ring_bytes,
    }
}

macro_rules! kernels {
    ($name:literal) => {
        [
            concat!("longrope_", $name, "_bf16_strided_half_split"),
            concat!("longrope_", $name, "_bf16_strided_interleaved"),
            concat!("longrope_", $name, "_bf16_vector_half_split"),
            concat!("longrope_", $name, "_bf16_vector_interleaved"),
            concat!("longrope_", $name, "_f16_strided_half_split"),
            concat!("longrope_", $name, "_f16_strided_interleaved"),
            concat!("longrope_", $name, "_f16_vector_half_split"),
            concat!("longrope_", $name, "_f16_vector_interleaved"),
        ]
    };
}

/// By type, then form, then pairing: the instances in `cuda/cache.cu`.
static APPEND: [&str; 8] = kernels!("append");
static REROTATE: [&str; 8] = kernels!("cache_rerotate");

fn index(is_f16: bool, vector: bool, interleaved: bool) -> usize {
    4 * usize::from(is_f16) + 2 * usize::from(vector) + usize::from(interleaved)
}

pub(super) fn append_kernel(is_f16: bool, vector: bool, interleaved: bool) -> &'static str {
    APPEND[index(is_f16, vector, interleaved)]
}

pub(super) fn rerotate_kernel(is_f16: bool, vector: bool, interleaved: bool) -> &'static str {
    REROTATE[index(is_f16, vector, interleaved)]
}

/// What a context loads.
pub(super) fn family() -> Family {
    let kernels = APPEND.iter().chain(&REROTATE).copied().collect();
    Family::portable("cache", kernels, 0)
}
