// Pairs of blocks: a cluster of two, which run side by side, and can arrive at barriers and have tiles copied into shared memory of both.
#pragma once

#include "tensor_map.cuh"

namespace longrope {

// Which of its cluster a block is.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Arrives at the barrier that has this place in a block of the cluster.
__device__ __forceinline__ void arrive_in_cluster(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::"r"(
            barrier),
        "r"(rank)
        : "memory");
}

// Waits until all threads of both are here. What they wrote is seen after it.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

// As load_box, to the same place in both blocks, whose barriers at the same place count the bytes.
__device__ __forceinline__ void load_box_for_both(uint32_t to, const longrope_tensor_map &map, int dim, const BoxPlace &place,
                                                  uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], "
        "%7;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(dim), "r"(place.row), "r"(place.head), "r"(place.batch), "h"(static_cast<uint16_t>(3))
        : "memory");
}

}  // namespace longrope
