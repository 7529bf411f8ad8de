// Decoding of one sequence on Hopper over keys that are rotated while they are read, head dimensions up to 128.

#include "include/decode_sm90.cuh"

LONGROPE_DECODE_ROTATING_SM90(128, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_ROTATING_SM90(128, f16, __half, 8)
