// Matrix products of a warp on tensor cores (sm_80 and later), and the loads that feed them.
//
// m16n8k16: D[16][8] = A[16][16] B[16][8] + C, operands of 16 bits, sums in f32. Lane l, with g = l / 4 and t = l % 4, holds
//   A  rows g and g + 8, columns 2t, 2t + 1 and 8 + 2t, 9 + 2t      four words: (g, lo) (g + 8, lo) (g, hi) (g + 8, hi)
//   B  rows 2t, 2t + 1 and 8 + 2t, 9 + 2t, column g                 two words
//   D  rows g and g + 8, columns 2t, 2t + 1                         four f32: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
// so what a D holds of two neighbouring tiles of 8 columns is an A after it is rounded to 16 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace longrope {

// D = A B, or D += A B. `from_zero` is to be a constant once loops are unrolled.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool from_zero,
                                    __nv_bfloat16) {
    const float c[4] = {from_zero ? 0.0f : d[0], from_zero ? 0.0f : d[1], from_zero ? 0.0f : d[2], from_zero ? 0.0f : d[3]};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool from_zero,
                                    __half) {
    const float c[4] = {from_zero ? 0.0f : d[0], from_zero ? 0.0f : d[1], from_zero ? 0.0f : d[2], from_zero ? 0.0f : d[3]};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// Writes such matrices, as load_matrices reads them (sm_90).
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&low)[2], const uint32_t (&high)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(low[0]), "r"(low[1]),
                 "r"(high[0]), "r"(high[1])
                 : "memory");
}

// Two f32 rounded to 16 bits, `lo` in the lower half.
__device__ __forceinline__ uint32_t pack(float lo, float hi, __nv_bfloat16) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
    return packed;
}

__device__ __forceinline__ uint32_t pack(float lo, float hi, __half) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
    return packed;
}

// The two halves of a word: the lower one first.
__device__ __forceinline__ float2 unpack(uint32_t packed, __nv_bfloat16) {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
}

__device__ __forceinline__ float2 unpack(uint32_t packed, __half) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&packed));
}

}  // namespace longrope
