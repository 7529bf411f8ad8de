// The instances of the portable kernels of attention's backward pass for head dimensions padded to 128.

#include "include/attention_backward_keys.cuh"
#include "include/attention_backward_queries.cuh"

// Padded head dimension, blocks of 16 queries a warp, keys a tile, tiles in a ring, blocks a multiprocessor, dimensions between
// branches.
using QueryShape = longrope::QueryGradientShape<128, 2, 32, 2, 2, 32>;
// Padded head dimension, blocks of 16 keys a pair of warps, queries a tile, tiles in a ring, blocks a multiprocessor.
using KeyShape = longrope::KeyGradientShape<128, 2, 64, 1, 2>;

LONGROPE_ATTENTION_BACKWARD_SM80(sm80_d128_bf16_vector, __nv_bfloat16, QueryShape, KeyShape, true)
LONGROPE_ATTENTION_BACKWARD_SM80(sm80_d128_bf16_strided, __nv_bfloat16, QueryShape, KeyShape, false)
LONGROPE_ATTENTION_BACKWARD_SM80(sm80_d128_f16_vector, __half, QueryShape, KeyShape, true)
LONGROPE_ATTENTION_BACKWARD_SM80(sm80_d128_f16_strided, __half, QueryShape, KeyShape, false)
