// The instances of the kernel that merges partial results of decoding: type of the output.

#include "include/decode_merge.cuh"

#define LONGROPE_DECODE_MERGE(name, T)                                                \
    extern "C" __global__ void __launch_bounds__(longrope::kDecodeMergeThreads)       \
        longrope_decode_merge_##name(const __grid_constant__ longrope_decode_params p) { \
        longrope::decode_merge<T>(p);                                                 \
    }

LONGROPE_DECODE_MERGE(bf16, __nv_bfloat16)
LONGROPE_DECODE_MERGE(f16, __half)
