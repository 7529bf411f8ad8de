// The instances of Hopper's attention kernel for head dimensions padded to 128.

#include "include/attention_sm90.cuh"

// Padded head dimension, warpgroups that compute, keys a tile, tiles in a ring, items of queries in shared memory, whether items
// overlap.
using Shape = longrope::HopperShape<128, 2, 128, 3, 1, true>;

LONGROPE_ATTENTION_SM90(d128_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_SM90(d128_f16, __half, Shape)
