// The instances of the kernels that write to a cache: element type x pairs a chunk x pairing; appending, and re-rotating.

#include "include/append.cuh"
#include "include/cache_rerotate.cuh"

// Threads as those of the rotary kernels. Re-rotation needs some more registers.
#define LONGROPE_CACHE(name, T, N, interleaved)                                                       \
    extern "C" __global__ void __launch_bounds__(192, 5)                                              \
        longrope_append_##name(const __grid_constant__ longrope_append_params p) {                    \
        longrope::append<T, N, interleaved>(p);                                                       \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(192, 4)                                              \
        longrope_cache_rerotate_##name(const __grid_constant__ longrope_cache_rerotate_params p) {    \
        longrope::rerotate_cache<T, N, interleaved>(p);                                               \
    }

LONGROPE_CACHE(bf16_vector_half_split, __nv_bfloat16, 8, false)
LONGROPE_CACHE(bf16_vector_interleaved, __nv_bfloat16, 8, true)
LONGROPE_CACHE(bf16_strided_half_split, __nv_bfloat16, 1, false)
LONGROPE_CACHE(bf16_strided_interleaved, __nv_bfloat16, 1, true)
LONGROPE_CACHE(f16_vector_half_split, __half, 8, false)
LONGROPE_CACHE(f16_vector_interleaved, __half, 8, true)
LONGROPE_CACHE(f16_strided_half_split, __half, 1, false)
LONGROPE_CACHE(f16_strided_interleaved, __half, 1, true)
