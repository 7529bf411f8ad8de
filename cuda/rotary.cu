// The instances of the rotary kernels: element type x pairs a chunk x pairing, plain and re-rotating.

#include "include/rotary.cuh"

// A block has at most 192 threads; its share of the ring lets five of them onto a multiprocessor.
#define LONGROPE_ROTARY(name, T, N, interleaved)                                                                  \
    extern "C" __global__ void __launch_bounds__(192, 5)                                                          \
        longrope_rotary_##name(const __grid_constant__ longrope_rotary_params p) {                                \
        longrope::rotate_tokens<T, N, interleaved>(p, longrope::PlainAngles{p});                                  \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(192, 5)                                                          \
        longrope_rerotate_##name(const __grid_constant__ longrope_rerotate_params p) {                            \
        longrope::rotate_tokens<T, N, interleaved>(p.rotary, longrope::AnglesBetween{p});                         \
    }

LONGROPE_ROTARY(bf16_vector_half_split, __nv_bfloat16, 8, false)
LONGROPE_ROTARY(bf16_vector_interleaved, __nv_bfloat16, 8, true)
LONGROPE_ROTARY(bf16_strided_half_split, __nv_bfloat16, 1, false)
LONGROPE_ROTARY(bf16_strided_interleaved, __nv_bfloat16, 1, true)
LONGROPE_ROTARY(f16_vector_half_split, __half, 8, false)
LONGROPE_ROTARY(f16_vector_interleaved, __half, 8, true)
LONGROPE_ROTARY(f16_strided_half_split, __half, 1, false)
LONGROPE_ROTARY(f16_strided_interleaved, __half, 1, true)
LONGROPE_ROTARY(f32_vector_half_split, float, 4, false)
LONGROPE_ROTARY(f32_vector_interleaved, float, 4, true)
LONGROPE_ROTARY(f32_strided_half_split, float, 1, false)
LONGROPE_ROTARY(f32_strided_interleaved, float, 1, true)
