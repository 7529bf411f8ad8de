// Loads of boxes of tensors into shared memory by Hopper's copy engine (TMA), which the host described by a tensor map.
#pragma once

#include "params.h"

namespace longrope {

// Where a box begins in a tensor.
struct BoxPlace {
    int row, head, batch;
};

// Begins to load a box, 64 dimensions from `dim` on, and counts its bytes at a barrier when they have come. What lies outside
// of the tensor is zero.
__device__ __forceinline__ void load_box(uint32_t to, const longrope_tensor_map &map, int dim, const BoxPlace &place,
                                         uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(dim), "r"(place.row), "r"(place.head), "r"(place.batch)
        : "memory");
}

}  // namespace longrope
