// The instances of Hopper's backward pass of attention in one kernel for head dimensions padded to 96, 128 and 256.

#include "include/attention_backward_slab.cuh"

// Padded head dimension, queries a tile, tiles of Q and of dO in the rings, whether the copy engine adds dQ, and whether blocks do so in
// one order.
template <int kDim>
using Shape = longrope::FastShape<kDim, 64, 3, 2, true, false>;
template <int kDim>
using InTurn = longrope::FastShape<kDim, 64, 3, 2, true, true>;

LONGROPE_ATTENTION_BACKWARD_FAST(sm90_d96_bf16, __nv_bfloat16, Shape<96>, InTurn<96>)
LONGROPE_ATTENTION_BACKWARD_FAST(sm90_d128_bf16, __nv_bfloat16, Shape<128>, InTurn<128>)
LONGROPE_ATTENTION_BACKWARD_ROLES(sm90_d256_bf16, __nv_bfloat16)
