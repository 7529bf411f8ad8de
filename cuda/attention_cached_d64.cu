// Attention of many new tokens over a cache, head dimensions up to 64.

#include "include/attention_cached.cuh"

// As that of the portable kernel (attention_sm80_d64.cu).
using Shape = longrope::AttentionShape<64, 2, 112, 1, 2, 64>;

LONGROPE_ATTENTION_CACHED(d64_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_CACHED(d64_f16, __half, Shape)
