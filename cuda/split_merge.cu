// The instances of the kernel that merges partial results of attention over parts of the keys: type of the output.

#include "include/split_merge.cuh"

#define LONGROPE_SPLIT_MERGE(name, T)                                               \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads)            \
        longrope_split_merge_##name(const __grid_constant__ longrope_split_merge_params p) { \
        longrope::split_merge<T>(p);                                                \
    }

LONGROPE_SPLIT_MERGE(bf16, __nv_bfloat16)
LONGROPE_SPLIT_MERGE(f16, __half)
LONGROPE_SPLIT_MERGE(f32, float)
