// Decoding of one sequence on Hopper, head dimensions up to 64.

#include "include/decode_sm90.cuh"

LONGROPE_DECODE_SM90(64, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_SM90(64, f16, __half, 8)
