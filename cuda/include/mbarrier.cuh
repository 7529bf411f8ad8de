// Barriers in shared memory that some threads arrive at and others wait for (sm_90).
//
// A barrier counts the arrivals of a phase and then begins the next. Who waits names the parity of the phase that must have
// ended: 0 for the first, 1 for the second, and so on in turn.
#pragma once

#include <stdint.h>

namespace longrope {

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes the barriers that this thread has set up known to all that meet it at the next synchronisation.
__device__ __forceinline__ void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival at a barrier, which then also waits for so many bytes of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
    // The hint, in nanoseconds, is how long the hardware may let the thread sleep before it asks again.
    asm volatile(
        "{ .reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1, 10000000; @!p bra again; }" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// What this thread wrote to shared memory by ordinary means, asynchronous copies of 16 bytes among them, is seen by tensor
// cores that read it after a barrier.
__device__ __forceinline__ void fence_for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace longrope
