// Copies from device memory to shared memory that a thread begins and later waits for (sm_80 and later).
#pragma once

#include <stdint.h>

namespace longrope {

// Begins a copy of 16 bytes. Both addresses must be multiples of 16. The first-level cache is passed by; the second-level one
// fetches 256 bytes, for streams that will ask for the rest at once.
__device__ __forceinline__ void async_copy_16(void *shared, const void *from) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// The same, or zeros instead where `there` is false: then nothing is read.
__device__ __forceinline__ void async_copy_16_or_zero(uint32_t shared, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void async_copy_16_or_zero(void *shared, const void *from, bool there) {
    async_copy_16_or_zero(static_cast<uint32_t>(__cvta_generic_to_shared(shared)), from, there);
}

// Begins a copy of 4 bytes, both addresses multiples of 4.
__device__ __forceinline__ void async_copy_4(void *shared, const void *from) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// Closes a batch: the copies that this thread began since the last one.
__device__ __forceinline__ void async_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest batches are under way.
template <int kPending>
__device__ __forceinline__ void async_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace longrope
