// The instances of the portable attention kernel for head dimensions padded to 96.

#include "include/attention_sm80.cuh"

// Padded head dimension, blocks of 16 queries a warp, keys a tile, tiles in a ring, blocks a multiprocessor, dimensions between
// branches. docs/lab/attention-sm80.md has what others gave.
using Shape = longrope::AttentionShape<96, 2, 64, 2, 2, 32>;
// Loads by elements are not under way while others are worked on, so a ring would be of no use.
using Strided = longrope::AttentionShape<96, 2, 64, 1, 2, 32>;

LONGROPE_ATTENTION_SM80(d96_bf16_vector, __nv_bfloat16, Shape, true)
LONGROPE_ATTENTION_SM80(d96_bf16_strided, __nv_bfloat16, Strided, false)
LONGROPE_ATTENTION_SM80(d96_f16_vector, __half, Shape, true)
LONGROPE_ATTENTION_SM80(d96_f16_strided, __half, Strided, false)
