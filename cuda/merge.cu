// The instances of the merge kernel, by the type of the output.

#include "include/merge.cuh"

#define LONGROPE_MERGE(name, T)                                                                    \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads)                          \
        longrope_merge_##name(const __grid_constant__ longrope_merge_params p) {                   \
        longrope::merge<T>(p);                                                                     \
    }

LONGROPE_MERGE(f32, float)
LONGROPE_MERGE(f16, __half)
LONGROPE_MERGE(bf16, __nv_bfloat16)
