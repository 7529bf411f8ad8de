// Decoding over keys that are rotated while they are read, head dimensions up to 64.

#include "include/decode.cuh"

LONGROPE_DECODE_ROTATING(64, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_ROTATING(64, bf16, __nv_bfloat16, 32)
LONGROPE_DECODE_ROTATING(64, f16, __half, 8)
LONGROPE_DECODE_ROTATING(64, f16, __half, 32)
