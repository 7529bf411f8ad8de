// The instances of Hopper's attention kernel for head dimensions padded to 128 and many keys: with larger tiles, which the queries
// of short sequences would fill worse.

#include "include/attention_sm90.cuh"

// As in attention_sm90_d128.cu.
using Shape = longrope::HopperShape<128, 2, 176, 2, 1, true>;

LONGROPE_ATTENTION_SM90(d128_long_bf16, __nv_bfloat16, Shape)
LONGROPE_ATTENTION_SM90(d128_long_f16, __half, Shape)
