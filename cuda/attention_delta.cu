// The instances of the kernel that sums out * d_out: type of d_out x whether 16 bytes can be moved at once.

#include "include/attention_delta.cuh"

#define LONGROPE_ATTENTION_DELTA(name, T, wide)                                                      \
    extern "C" __global__ void __launch_bounds__(longrope::kDeltaThreads)                            \
        longrope_attention_delta_##name(const __grid_constant__ longrope_attention_delta_params p) { \
        longrope::attention_delta<T, wide>(p);                                                       \
    }

LONGROPE_ATTENTION_DELTA(bf16_vector, __nv_bfloat16, 8)
LONGROPE_ATTENTION_DELTA(bf16_strided, __nv_bfloat16, 1)
LONGROPE_ATTENTION_DELTA(f16_vector, __half, 8)
LONGROPE_ATTENTION_DELTA(f16_strided, __half, 1)
