//! Which rotary kernel runs, and how its work lies over blocks and threads: by shapes, types and options alone.

use crate::Error;
use crate::descriptor::Pairing;
use crate::device::{Dtype, Family, Grid};

/// Threads of a block, at most. The kernels are compiled for this bound.
const MAX_THREADS: usize = 192;
/// Tokens that a block takes at a time, at most.
const MAX_TOKENS: usize = 8;
/// Heads that a thread takes in a step (`kHeads` in the kernel).
const HEADS: usize = 2;
/// Steps in the ring of loads under way (`kStages` in the kernel).
const STAGES: usize = 3;
/// Bytes of a thread in a step of the ring: two 16-byte vectors for each head.
const STEP_BYTES: usize = 32 * HEADS;

/// Threads of all blocks, up to which tokens are few: 51 tokens of 40 heads of 128.
const FEW_THREADS: usize = 1 << 16;
/// Threads of a block for few tokens.
const FEW_BLOCK: usize = 128;
/// Pairs of a thread for few tokens.
const FEW_PAIRS: usize = 2;
/// Blocks and tokens below which the kernel may divide by a reciprocal (`divide.cuh`).
const FEW_INDICES: usize = 1 << 15;

/// Where the angles of a launch come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Sets by value.
    Sets,
    /// Two groups of sets, for a re-rotation.
    Between,
    /// Sets in device memory.
    Table,
}

/// What a launch depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) dtype: Dtype,
    pub(super) pairing: Pairing,
    /// Whether 16 bytes along the head dimension can be read at once.
    pub(super) vector: bool,
    /// Whether the angles are f32 products.
    pub(super) parity: bool,
    pub(super) source: Source,
    /// Neither is 0, and their product fits.
    pub(super) batch: usize,
    pub(super) length: usize,
    /// Of queries and keys together; not 0.
    pub(super) heads: usize,
    /// 1 to 128.
    pub(super) pairs: usize,
}

/// A kernel, its grid, and the parameters that tell it about the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) kernel: &'static str,
    pub(super) grid: Grid,
    pub(super) ring_bytes: i32,
    pub(super) token_blocks: u32,
    pub(super) token_blocks_reciprocal: u32,
    pub(super) length_reciprocal: u32,
}

impl Launch {
    /// The launch of `work`, or an error where it has too many tokens.
    pub(super) fn of(work: &Work) -> Result<Self, Error> {
        match Self::few(work) {
            Some(launch) => Ok(launch),
            None => Self::many(work),
        }
    }

    fn many(work: &Work) -> Result<Self, Error> {
        let tokens = work.batch * work.length;
        let block = block(tokens, work.heads, work.pairs, work.vector.then_some(16 / work.dtype.size()), 1);
        let blocks = u32::try_from(tokens.div_ceil(block.tokens)).ok().filter(|blocks| *blocks < 1 << 31);
        let blocks = blocks.ok_or_else(|| {
            Error::unsupported("tensors", format!("{tokens} tokens"), "fewer than 2^31 tokens")
        })?;
        let kernel = kernel(work.dtype, work.pairing, if work.vector { VECTOR } else { STRIDED });
        Ok(Self {
            kernel: kernel[work.source as usize],
            grid: Grid { blocks, threads: block.threads, shared_bytes: block.shared_bytes },
            ring_bytes: block.ring_bytes,
            token_blocks: 0,
            token_blocks_reciprocal: 0,
            length_reciprocal: 0,
        })
    }

    /// The launch for few tokens, if these are few.
    fn few(work: &Work) -> Option<Self> {
        if !work.vector || work.parity || work.source != Source::Sets {
            return None;
        }
        let (tokens, chunks) = (work.batch * work.length, work.pairs / FEW_PAIRS);
        let threads = tokens.checked_mul(work.heads)?.checked_mul(chunks)?;
        let heads = work.heads.min(FEW_BLOCK / chunks);
        let token_blocks = work.heads.div_ceil(heads);
        if threads > FEW_THREADS || tokens * token_blocks > FEW_INDICES {
            return None;
        }
        Some(Self {
            kernel: kernel(work.dtype, work.pairing, FEW)[Source::Sets as usize],
            grid: Grid {
                blocks: (tokens * token_blocks) as u32,
                threads: [chunks as u32, heads as u32, 1],
                shared_bytes: 0,
            },
            ring_bytes: 0,
            token_blocks: token_blocks as u32,
            token_blocks_reciprocal: reciprocal(token_blocks as u32),
            length_reciprocal: reciprocal(work.length as u32),
        })
    }
}

/// What the kernel multiplies by instead of dividing by `divisor`, which is not 0.
fn reciprocal(divisor: u32) -> u32 {
    (1u32 << 31).div_ceil(divisor)
}

/// A block of `rotate_tokens` (`rotary.cuh`).
pub(super) struct Block {
    /// Tokens that it takes at a time.
    pub(super) tokens: usize,
    pub(super) threads: [u32; 3],
    /// Of the ring and of the angles.
    pub(super) shared_bytes: u32,
    pub(super) ring_bytes: i32,
}

/// The block for so many tokens. `lanes`: elements of a vector, if they move by vectors; `least`: steps of a token, at least.
pub(super) fn block(tokens: usize, heads: usize, pairs: usize, lanes: Option<usize>, least: usize) -> Block {
    let chunks = lanes.map_or(pairs, |lanes| pairs / lanes);
    let shape = Shape::new(tokens, heads, chunks, least);
    let threads = chunks * shape.heads * shape.tokens;
    let ring = if lanes.is_some() { STAGES.min(shape.steps) * STEP_BYTES * threads } else { 0 };
    Block {
        tokens: shape.tokens,
        threads: [chunks as u32, shape.heads as u32, shape.tokens as u32],
        shared_bytes: (ring + shape.tokens * pairs * 8) as u32,
        ring_bytes: ring as i32,
    }
}

/// How the work of many tokens is laid out over blocks and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Tokens of a block.
    tokens: usize,
    /// Threads that share a token and a chunk: each takes [`HEADS`] heads in a step.
    heads: usize,
    /// Steps until all heads are done.
    steps: usize,
}

impl Shape {
    /// The layout for `tokens` tokens of `heads` heads of `chunks` chunks, in so many steps at least.
    fn new(tokens: usize, heads: usize, chunks: usize, least: usize) -> Self {
        // As few steps as the bound on threads allows, of equal size.
        let fewest = (heads * chunks).div_ceil(HEADS * MAX_THREADS).max(least);
        let block_heads = heads.div_ceil(HEADS * fewest).clamp(1, MAX_THREADS / chunks);
        let block_tokens = (MAX_THREADS / (chunks * block_heads)).clamp(1, MAX_TOKENS.min(tokens));
        Self { tokens: block_tokens, heads: block_heads, steps: heads.div_ceil(HEADS * block_heads) }
    }
}

/// The names of a kernel by [`Source`]; empty where there is none.
type Kernel = [&'static str; 3];

macro_rules! kernels {
    ($($dtype:literal),*) => {
        [$([
            [kernels!(all $dtype, "_vector_half_split"), kernels!(all $dtype, "_vector_interleaved")],
            [kernels!(all $dtype, "_strided_half_split"), kernels!(all $dtype, "_strided_interleaved")],
            [
                [concat!("longrope_rotary_", $dtype, "_few_half_split"), "", ""],
                [concat!("longrope_rotary_", $dtype, "_few_interleaved"), "", ""],
            ],
        ]),*]
    };
    (all $dtype:literal, $name:literal) => {
        [
            concat!("longrope_rotary_", $dtype, $name),
            concat!("longrope_rerotate_", $dtype, $name),
            concat!("longrope_rotary_table_", $dtype, $name),
        ]
    };
}

/// Numbers of the forms in [`KERNELS`].
const VECTOR: usize = 0;
const STRIDED: usize = 1;
const FEW: usize = 2;

/// By type, then form, then half-split or interleaved: the instances in `cuda/rotary.cu`.
static KERNELS: [[[Kernel; 2]; 3]; 3] = kernels!["f32", "f16", "bf16"];

fn kernel(dtype: Dtype, pairing: Pairing, form: usize) -> &'static Kernel {
    let dtype = match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    };
    &KERNELS[dtype][form][usize::from(pairing == Pairing::Interleaved)]
}

/// The kernels of this family.
pub(super) fn family() -> Family {
    let kernels =
        KERNELS.iter().flatten().flatten().flatten().copied().filter(|name| !name.is_empty()).collect();
    Family::portable("rotary", kernels, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECODE: Work = Work {
        dtype: Dtype::Bf16,
        pairing: Pairing::HalfSplit,
        vector: true,
        parity: false,
        source: Source::Sets,
        batch: 1,
        length: 1,
        heads: 40,
        pairs: 64,
    };

    #[test]
    fn few_tokens_of_vectors_with_exact_angles_have_a_kernel_of_their_own() {
        let kernel = |work: &Work| Launch::of(work).unwrap().kernel;
        assert_eq!(kernel(&DECODE), "longrope_rotary_bf16_few_half_split");
        assert_eq!(kernel(&Work { batch: 51, ..DECODE }), "longrope_rotary_bf16_few_half_split");
        assert_eq!(kernel(&Work { batch: 52, ..DECODE }), "longrope_rotary_bf16_vector_half_split");
        assert_eq!(kernel(&Work { parity: true, ..DECODE }), "longrope_rotary_bf16_vector_half_split");
        let from = |source| Work { source, ..DECODE };
        assert_eq!(kernel(&from(Source::Between)), "longrope_rerotate_bf16_vector_half_split");
        assert_eq!(kernel(&from(Source::Table)), "longrope_rotary_table_bf16_vector_half_split");
        let strided = Work { vector: false, dtype: Dtype::F32, pairing: Pairing::Interleaved, ..DECODE };
        assert_eq!(kernel(&strided), "longrope_rotary_f32_strided_interleaved");
    }

    #[test]
    fn every_head_of_every_token_has_a_thread_and_no_block_is_too_large() {
        for (batch, heads, pairs) in
            [(1, 40, 64), (3, 1, 4), (7, 33, 128), (51, 40, 64), (1, 5000, 4), (2, 9, 12)]
        {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let launch = Launch::of(&Work { dtype, batch, heads, pairs, ..DECODE }).unwrap();
                let [x, y, z] = launch.grid.threads.map(|threads| threads as usize);
                assert!(x * y * z <= FEW_BLOCK && z == 1 && x * FEW_PAIRS == pairs);
                let blocks = launch.token_blocks as usize;
                assert!(blocks * y >= heads && (blocks - 1) * y < heads);
                assert_eq!(launch.grid.blocks as usize, batch * blocks);
            }
        }
        for (length, heads, chunks) in [(1 << 20, 40, 8), (5, 1, 1), (9, 3, 128), (1 << 31, 1 << 20, 32)] {
            for least in 1..4 {
                let shape = Shape::new(length, heads, chunks, least);
                assert!(chunks * shape.heads * shape.tokens <= MAX_THREADS);
                assert!(shape.steps * HEADS * shape.heads >= heads);
            }
        }
    }

    #[test]
    fn tokens_beyond_the_largest_grid_are_refused() {
        let work = Work { length: 1 << 40, ..DECODE };
        let message = Launch::of(&work).unwrap_err().to_string();
        assert!(message.contains("fewer than 2^31 tokens"), "{message}");
    }
}
