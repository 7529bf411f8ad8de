// The instances of Hopper's kernels of attention's backward pass for head dimensions padded to 64.

#include "include/attention_backward_sm90.cuh"

// Whether of keys, padded head dimension, warpgroups that compute, columns a tile, pairs of tiles in the rings.
using QueryShape = longrope::GradientShape<false, 64, 3, 80, 3>;
using KeyShape = longrope::GradientShape<true, 64, 2, 96, 3>;

LONGROPE_ATTENTION_BACKWARD_SM90(sm90_d64_bf16, __nv_bfloat16, QueryShape, KeyShape)
LONGROPE_ATTENTION_BACKWARD_SM90(sm90_d64_f16, __half, QueryShape, KeyShape)
