// Decoding over keys that are rotated while they are read, head dimensions up to 128.

#include "include/decode.cuh"

LONGROPE_DECODE_ROTATING(128, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_ROTATING(128, bf16, __nv_bfloat16, 16)
LONGROPE_DECODE_ROTATING(128, f16, __half, 8)
LONGROPE_DECODE_ROTATING(128, f16, __half, 16)
