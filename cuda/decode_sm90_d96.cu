// Decoding of one sequence on Hopper, head dimensions up to 96.

#include "include/decode_sm90.cuh"

LONGROPE_DECODE_SM90(96, bf16, __nv_bfloat16, 8)
LONGROPE_DECODE_SM90(96, f16, __half, 8)
