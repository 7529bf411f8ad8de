// Blocks of a cluster: they run at the same time, on multiprocessors that lie together, and read each other's shared memory (sm_90).
#pragma once

#include <stdint.h>

namespace longrope {

// The number of this block in its cluster, and how many there are.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ uint32_t cluster_blocks() {
    uint32_t blocks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}

// A barrier of all threads of the cluster, in two halves. It does not wait for what a thread wrote before it arrived.
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address, in the shared memory of another block of the cluster, of what lies at `address` in this one's.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Sends to such an address; it has come when the barrier (mbarrier.cuh) at another such address of the same block has counted its
// bytes. That block must have begun, and be there until then.
__device__ __forceinline__ void send_to_block(uint32_t address, const float4 &x, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
                 "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void send_to_block(uint32_t address, const float2 &x, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
                 "f"(x.x), "f"(x.y), "r"(barrier)
                 : "memory");
}

// As barrier_wait, of what other blocks of the cluster send: what came with it is seen.
__device__ __forceinline__ void barrier_wait_for_cluster(uint32_t barrier, int parity) {
    asm volatile(
        "{ .reg .pred p; again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1, 10000000; @!p bra again; }" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
}

}  // namespace longrope
