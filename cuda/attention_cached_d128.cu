// Attention of many new tokens over a cache, head dimensions up to 128.

#include "include/attention_cached.cuh"

// As that of the portable kernel (attention_sm80_d128.cu).
using Shape = longrope::AttentionShape<128, 2, 64, 2, 2, 32>;

LONGROPE_ATTENTION_CACHED(d128_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_CACHED(d128_f16, __half, Shape)
