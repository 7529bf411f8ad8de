// The instances of the kernel that merges partial results of attention over a cache: type of the output.

#include "include/cached_merge.cuh"

#define LONGROPE_CACHED_MERGE(name, T)                                               \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads)            \
        longrope_cached_merge_##name(const __grid_constant__ longrope_cached_merge_params p) { \
        longrope::cached_merge<T>(p);                                                \
    }

LONGROPE_CACHED_MERGE(bf16, __nv_bfloat16)
LONGROPE_CACHED_MERGE(f16, __half)
LONGROPE_CACHED_MERGE(f32, float)
