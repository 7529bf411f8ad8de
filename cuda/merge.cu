// The instances of the merge kernel: type of the output x whether four dimensions can be moved at once.

#include "include/merge.cuh"

#define LONGROPE_MERGE(name, T)                                                          \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads)                \
        longrope_merge_##name##_vector(const __grid_constant__ longrope_merge_params p) { \
        longrope::merge<T, 4>(p);                                                        \
    }                                                                                    \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads)                \
        longrope_merge_##name##_strided(const __grid_constant__ longrope_merge_params p) { \
        longrope::merge<T, 1>(p);                                                        \
    }

LONGROPE_MERGE(f32, float)
LONGROPE_MERGE(f16, __half)
LONGROPE_MERGE(bf16, __nv_bfloat16)
