// The instances of Hopper's kernels of attention's backward pass for head dimensions padded to 128.

#include "include/attention_backward_sm90.cuh"

// Whether of keys, padded head dimension, warpgroups that compute, columns a tile, pairs of tiles in the rings.
using QueryShape = longrope::GradientShape<false, 128, 2, 112, 2>;
using KeyShape = longrope::GradientShape<true, 128, 2, 64, 3>;

LONGROPE_ATTENTION_BACKWARD_SM90(sm90_d128_bf16, __nv_bfloat16, QueryShape, KeyShape)
LONGROPE_ATTENTION_BACKWARD_SM90(sm90_d128_f16, __half, QueryShape, KeyShape)
