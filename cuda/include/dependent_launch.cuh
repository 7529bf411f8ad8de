// Launches that begin before the kernel that they depend on has ended (sm_90): they do what does not depend on it, then wait.
// Compiled for older GPUs both are nothing, and the launch is to be an ordinary one.
#pragma once

namespace longrope {

// The kernels that depend on this one may be put onto multiprocessors, beside its blocks.
__device__ __forceinline__ void let_dependents_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernel that this one depends on has ended, and all it wrote is seen.
__device__ __forceinline__ void wait_for_dependency() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Has the second-level cache hold four bytes that are read after the wait, so that they do not come from memory then. What they are now
// may change until then: they are not used, and pass the first-level cache by, which would keep them.
__device__ __forceinline__ void fetch_early(const void *at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    // A load without a use would be none.
    asm volatile("{ .reg .b32 x; ld.volatile.global.b32 x, [%0]; }" ::"l"(at) : "memory");
#endif
}

// Drops what the first-level cache has of earlier kernels: a launch that begins before its turn finds it as they left it.
__device__ __forceinline__ void drop_cached() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// A whole number of the device's memory, as it is there now and not as the first-level cache may have it.
__device__ __forceinline__ int64_t read_anew(const void *at, bool wide) {
    int64_t x;
    if (wide) {
        asm volatile("ld.volatile.global.s64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
    } else {
        int32_t narrow;
        asm volatile("ld.volatile.global.s32 %0, [%1];" : "=r"(narrow) : "l"(at) : "memory");
        x = narrow;
    }
    return x;
}

}  // namespace longrope
