// Asking the second-level cache for what will be read soon (sm_90). A kernel that was launched before the one it depends on has
// ended (dependent_launch.cuh) may ask before it waits: what comes is what memory has, and it is written through that cache.
// Where to look is a guess then, since lengths and pages may change until the wait, and is to be checked like any other.
// Compiled for older GPUs it is nothing.
#pragma once

#include "cache.cuh"

namespace longrope {

// Asks for the 256 bytes around an address. It is a load whose result nobody waits for, past the first-level cache: the copy engine and
// the prefetch instructions ask for far less at a time.
__device__ __forceinline__ void prefetch_256(const void *at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b32 unused; ld.global.cg.L2::256B.b32 unused, [%0]; }" ::"l"(at) : "memory");
#endif
}

// The multiprocessors of this GPU, or somewhat more.
__device__ __forceinline__ uint32_t multiprocessors() {
    uint32_t count;
    asm("mov.u32 %0, %%nsmid;" : "=r"(count));
    return count;
}

// A number that may change until this kernel has waited. It is read past the first-level cache, which would keep it.
__device__ __forceinline__ int64_t number_for_now(const void *numbers, bool wide, int64_t i) {
    return wide ? __ldcg(static_cast<const long long *>(numbers) + i) : __ldcg(static_cast<const int32_t *>(numbers) + i);
}

}  // namespace longrope
