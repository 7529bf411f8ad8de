// Attention of many new tokens over a cache, head dimensions up to 96.

#include "include/attention_cached.cuh"

// As that of the portable kernel (attention_sm80_d96.cu).
using Shape = longrope::AttentionShape<96, 2, 64, 2, 2, 32>;

LONGROPE_ATTENTION_CACHED(d96_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_CACHED(d96_f16, __half, Shape)
