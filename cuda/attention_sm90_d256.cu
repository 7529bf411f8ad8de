// The instances of Hopper's attention kernel for head dimensions padded to 256.

#include "include/attention_sm90.cuh"

// Padded head dimension, warpgroups that compute, keys a tile, tiles in a ring, items of queries in shared memory, whether items
// overlap.
using Shape = longrope::HopperShape<256, 2, 80, 2, 1, false>;

LONGROPE_ATTENTION_SM90(d256_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_SM90(d256_f16, __half, Shape)
