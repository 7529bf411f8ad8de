// Decoding over keys that are rotated while they are read, head dimensions up to 256.

#include "include/decode.cuh"

LONGROPE_DECODE_ROTATING(256, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_ROTATING(256, f16, __half, 8)
