// The instances of Hopper's backward pass of attention in one kernel for head dimensions padded to 64.

#include "include/attention_backward_slab.cuh"

// Padded head dimension, queries a tile, tiles of Q and of dO in the rings, whether the copy engine adds dQ, and whether blocks do so in
// one order.
using Shape = longrope::FastShape<64, 64, 3, 2, false, false>;
using InTurn = longrope::FastShape<64, 64, 3, 2, true, true>;

LONGROPE_ATTENTION_BACKWARD_FAST(sm90_d64_bf16, __nv_bfloat16, Shape, InTurn)
