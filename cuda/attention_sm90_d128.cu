// The instances of Hopper's attention kernel for head dimensions padded to 128.

#include "include/attention_sm90.cuh"

// Padded head dimension, warpgroups that compute, tiles in a ring.
using Shape = longrope::HopperShape<128, 2, 2>;

LONGROPE_ATTENTION_SM90(d128_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_SM90(d128_f16, __half, Shape)
