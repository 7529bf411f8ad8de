// The instances of the merge kernel: type of the output x whether four dimensions can be moved at once.

#include "include/merge.cuh"

#define LONGROPE_MERGE_KERNEL(name, T, wide)                                              \
    extern "C" __global__ void __launch_bounds__(longrope::kMergeThreads, 4)              \
        longrope_merge_##name(const __grid_constant__ longrope_merge_params p) {          \
        longrope::merge<T, wide>(p);                                                      \
    }

LONGROPE_MERGE_KERNEL(f32_vector, float, 4)
LONGROPE_MERGE_KERNEL(f32_strided, float, 1)
LONGROPE_MERGE_KERNEL(f16_vector, __half, 4)
LONGROPE_MERGE_KERNEL(f16_strided, __half, 1)
LONGROPE_MERGE_KERNEL(bf16_vector, __nv_bfloat16, 4)
LONGROPE_MERGE_KERNEL(bf16_strided, __nv_bfloat16, 1)
