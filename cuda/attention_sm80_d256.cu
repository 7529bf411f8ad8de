// The instances of the portable attention kernel for head dimensions padded to 256.

#include "include/attention_sm80.cuh"

// Padded head dimension, blocks of 16 queries a warp, keys a tile, tiles in a ring, blocks a multiprocessor, dimensions between
// branches. docs/lab/attention-sm80.md has what others gave.
using Shape = longrope::AttentionShape<256, 1, 64, 1, 2, 64>;

LONGROPE_ATTENTION_SM80(d256_bf16_vector, __nv_bfloat16, Shape, true)
LONGROPE_ATTENTION_SM80(d256_bf16_strided, __nv_bfloat16, Shape, false)
LONGROPE_ATTENTION_SM80(d256_f16_vector, __half, Shape, true)
LONGROPE_ATTENTION_SM80(d256_f16_strided, __half, Shape, false)
