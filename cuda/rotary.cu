// The instances of the rotary kernels: element type x pairs a chunk x pairing; plain, re-rotating, and by a
// table of sets; and for few tokens.

#include "include/rotary_few.cuh"

// A block has at most 192 threads. The registers that this leaves let six blocks of 160 onto a multiprocessor.
#define LONGROPE_ROTARY(name, T, N, interleaved)                                                                    \
    extern "C" __global__ void __launch_bounds__(192, 5)                                                            \
        longrope_rotary_##name(const __grid_constant__ longrope_rotary_params p) {                                  \
        longrope::rotate_tensors<T, N, interleaved>(p, longrope::PlainAngles<longrope::Angle<T>::Real>{p});          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(192, 5)                                                            \
        longrope_rerotate_##name(const __grid_constant__ longrope_rerotate_params p) {                              \
        longrope::rotate_tensors<T, N, interleaved>(p.rotary, longrope::AnglesBetween<longrope::Angle<T>::Real>{p}); \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(192, 5)                                                            \
        longrope_rotary_table_##name(const __grid_constant__ longrope_rotary_table_params p) {                      \
        longrope::rotate_tensors<T, N, interleaved>(p.rotary, longrope::AnglesOfTable<longrope::Angle<T>::Real>{p}); \
    }

#define LONGROPE_ROTARY_FEW(name, T, interleaved)                                  \
    extern "C" __global__ void __launch_bounds__(128)                              \
        longrope_rotary_##name(const __grid_constant__ longrope_rotary_params p) { \
        longrope::rotate_few<T, interleaved>(p);                                   \
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

LONGROPE_ROTARY_FEW(bf16_few_half_split, __nv_bfloat16, false)
LONGROPE_ROTARY_FEW(bf16_few_interleaved, __nv_bfloat16, true)
LONGROPE_ROTARY_FEW(f16_few_half_split, __half, false)
LONGROPE_ROTARY_FEW(f16_few_interleaved, __half, true)
LONGROPE_ROTARY_FEW(f32_few_half_split, float, false)
LONGROPE_ROTARY_FEW(f32_few_interleaved, float, true)
