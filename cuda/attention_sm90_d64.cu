// The instances of Hopper's attention kernel for head dimensions padded to 64.

#include "include/attention_sm90.cuh"

// Padded head dimension, warpgroups that compute, tiles in a ring.
using Shape = longrope::HopperShape<64, 3, 3>;

LONGROPE_ATTENTION_SM90(d64_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_SM90(d64_f16, __half, Shape)
