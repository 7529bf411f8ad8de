// Attention of many new tokens over a cache, head dimensions up to 256.

#include "include/attention_cached.cuh"

// As that of the portable kernel (attention_sm80_d256.cu).
using Shape = longrope::AttentionShape<256, 1, 64, 1, 2, 64>;

LONGROPE_ATTENTION_CACHED(d256_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_CACHED(d256_f16, __half, Shape)
