// Matrix products of a warpgroup, four warps, on the tensor cores of sm_90a.
//
// D[64][N] += A[64][16] B[16][N], sums in f32. They run by themselves: after `wgmma_commit` a group of them is under way, and
// `wgmma_wait` waits for all but the latest groups. Until then nothing may touch the registers of D, nor those of A. Lane l of
// warp w holds of D, with g = l / 4 and t = l % 4, rows 16 w + g and 16 w + g + 8 and columns 8 j + 2 t, 8 j + 2 t + 1: what
// mma.cuh has for each warp, so that D becomes an A after it is rounded to 16 bits.
//
// What lies in shared memory is tiles of rows of 128 bytes, whose chunks of 16 bytes are swizzled, chunk ^ row % 8, from
// addresses that are multiples of 1024. A descriptor names one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace longrope {

// Rows of 128 bytes from `address` on. `next_columns`: bytes from 64 columns to the next 64, where the operand is read along
// its columns; otherwise it does not matter.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, int next_columns) {
    constexpr uint64_t kEightRows = 1024, kSwizzle128 = 1;
    return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(next_columns >> 4) << 16 | kEightRows >> 4 << 32 | kSwizzle128 << 62;
}

// What was written to registers before is seen by the products after it.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of registers across this place.
template <int N>
__device__ __forceinline__ void hold(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// The registers of D, and their names in an instruction.
#define LONGROPE_R8(how, d, i) \
    how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3]), how(d[i + 4]), how(d[i + 5]), how(d[i + 6]), how(d[i + 7])
#define LONGROPE_R16(how, d, i) LONGROPE_R8(how, d, i), LONGROPE_R8(how, d, i + 8)
#define LONGROPE_R32(how, d, i) LONGROPE_R8(how, d, i), LONGROPE_R8(how, d, i + 8), LONGROPE_R8(how, d, i + 16), LONGROPE_R8(how, d, i + 24)
#define LONGROPE_R40(how, d) LONGROPE_R32(how, d, 0), LONGROPE_R8(how, d, 32)
#define LONGROPE_R48(how, d) LONGROPE_R40(how, d), LONGROPE_R8(how, d, 40)
#define LONGROPE_R56(how, d) LONGROPE_R48(how, d), LONGROPE_R8(how, d, 48)
#define LONGROPE_R64(how, d) LONGROPE_R32(how, d, 0), LONGROPE_R32(how, d, 32)
#define LONGROPE_D8(d, i) LONGROPE_R8("+f", d, i)
#define LONGROPE_D16(d, i) LONGROPE_R16("+f", d, i)
#define LONGROPE_D32(d, i) LONGROPE_R32("+f", d, i)
#define LONGROPE_D40(d) LONGROPE_R40("+f", d)
#define LONGROPE_D48(d) LONGROPE_R48("+f", d)
#define LONGROPE_D56(d) LONGROPE_R56("+f", d)
#define LONGROPE_D64(d) LONGROPE_R64("+f", d)
#define LONGROPE_D88(d) LONGROPE_D64(d), LONGROPE_D8(d, 64), LONGROPE_D8(d, 72), LONGROPE_D8(d, 80)
#define LONGROPE_D128(d) LONGROPE_D64(d), LONGROPE_D32(d, 64), LONGROPE_D32(d, 96)
#define LONGROPE_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LONGROPE_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LONGROPE_NAMES_40 LONGROPE_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define LONGROPE_NAMES_48 LONGROPE_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define LONGROPE_NAMES_56 LONGROPE_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define LONGROPE_NAMES_64 LONGROPE_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define LONGROPE_NAMES_88 LONGROPE_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87"
#define LONGROPE_NAMES_128 \
    LONGROPE_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// D[64][N] = A B, or D += A B if `add`; both from shared memory, read along their rows. `a`, `b`, `add_name`: the names after
// those of D.
#define LONGROPE_WGMMA_LOGITS(N, Type, type, names, registers, a_name, b_name, add_name)                                    \
    __device__ __forceinline__ void wgmma_logits(float (&d)[N / 2], uint64_t a, uint64_t b, int add, Type) {                \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " add_name ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
                     "." type " {" names "}, " a_name ", " b_name ", p, 1, 1, 0, 0; }"                                     \
                     : registers                                                                                           \
                     : "l"(a), "l"(b), "r"(add));                                                                          \
    }

// D[64][N] = A B likewise. What D was before is not kept, so that until then its registers are free for others.
#define LONGROPE_WGMMA_PRODUCT(N, Type, type, names, registers, a_name, b_name)                                             \
    __device__ __forceinline__ void wgmma_product(float (&d)[N / 2], uint64_t a, uint64_t b, Type) {                        \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type   \
                     " {" names "}, " a_name ", " b_name ", p, 1, 1, 0, 0; }"                                              \
                     : registers                                                                                           \
                     : "l"(a), "l"(b));                                                                                    \
    }

// D[64][N] += A B; A from registers, B from shared memory, read along its columns.
#define LONGROPE_WGMMA_ADD(N, Type, type, names, registers, a_names, b_name)                                                \
    __device__ __forceinline__ void wgmma_add(float (&d)[N / 2], const uint32_t (&low)[2], const uint32_t (&high)[2],       \
                                              uint64_t b, Type) {                                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" names "}, {" a_names "}, "       \
                     b_name ", 1, 1, 1, 1;"                                                                                \
                     : registers                                                                                           \
                     : "r"(low[0]), "r"(low[1]), "r"(high[0]), "r"(high[1]), "l"(b));                                      \
    }

// D[64][N] = A B, or D += A B; both from shared memory, read along their columns: A has 16 rows of 64 there, the columns of which
// are the rows of the product.
#define LONGROPE_WGMMA_ACROSS(N, Type, type, names, inputs, outputs, a_name, b_name)                                        \
    __device__ __forceinline__ void wgmma_product_across(float (&d)[N / 2], uint64_t a, uint64_t b, Type) {                 \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type   \
                     " {" names "}, " a_name ", " b_name ", p, 1, 1, 1, 1; }"                                              \
                     : outputs                                                                                             \
                     : "l"(a), "l"(b));                                                                                    \
    }                                                                                                                      \
    __device__ __forceinline__ void wgmma_add_across(float (&d)[N / 2], uint64_t a, uint64_t b, Type) {                     \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" names "}, " a_name ", " b_name    \
                     ", 1, 1, 1, 1, 1;"                                                                                    \
                     : inputs                                                                                              \
                     : "l"(a), "l"(b));                                                                                    \
    }

#define LONGROPE_WGMMA(Type, type)                                                                                         \
    LONGROPE_WGMMA_LOGITS(64, Type, type, LONGROPE_NAMES_32, LONGROPE_D32(d, 0), "%32", "%33", "%34")                      \
    LONGROPE_WGMMA_LOGITS(80, Type, type, LONGROPE_NAMES_40, LONGROPE_D40(d), "%40", "%41", "%42")                         \
    LONGROPE_WGMMA_LOGITS(96, Type, type, LONGROPE_NAMES_48, LONGROPE_D48(d), "%48", "%49", "%50")                         \
    LONGROPE_WGMMA_LOGITS(112, Type, type, LONGROPE_NAMES_56, LONGROPE_D56(d), "%56", "%57", "%58")                        \
    LONGROPE_WGMMA_LOGITS(128, Type, type, LONGROPE_NAMES_64, LONGROPE_D64(d), "%64", "%65", "%66")                        \
    LONGROPE_WGMMA_LOGITS(176, Type, type, LONGROPE_NAMES_88, LONGROPE_D88(d), "%88", "%89", "%90")                        \
    LONGROPE_WGMMA_PRODUCT(64, Type, type, LONGROPE_NAMES_32, LONGROPE_R32("=f", d, 0), "%32", "%33")                      \
    LONGROPE_WGMMA_PRODUCT(80, Type, type, LONGROPE_NAMES_40, LONGROPE_R40("=f", d), "%40", "%41")                         \
    LONGROPE_WGMMA_PRODUCT(96, Type, type, LONGROPE_NAMES_48, LONGROPE_R48("=f", d), "%48", "%49")                         \
    LONGROPE_WGMMA_PRODUCT(112, Type, type, LONGROPE_NAMES_56, LONGROPE_R56("=f", d), "%56", "%57")                        \
    LONGROPE_WGMMA_PRODUCT(128, Type, type, LONGROPE_NAMES_64, LONGROPE_R64("=f", d), "%64", "%65")                        \
    LONGROPE_WGMMA_ACROSS(32, Type, type, LONGROPE_NAMES_16, LONGROPE_D16(d, 0), LONGROPE_R16("=f", d, 0), "%16", "%17")   \
    LONGROPE_WGMMA_ACROSS(64, Type, type, LONGROPE_NAMES_32, LONGROPE_D32(d, 0), LONGROPE_R32("=f", d, 0), "%32", "%33")   \
    LONGROPE_WGMMA_ADD(64, Type, type, LONGROPE_NAMES_32, LONGROPE_D32(d, 0), "%32, %33, %34, %35", "%36")                 \
    LONGROPE_WGMMA_ADD(128, Type, type, LONGROPE_NAMES_64, LONGROPE_D64(d), "%64, %65, %66, %67", "%68")                   \
    LONGROPE_WGMMA_ADD(256, Type, type, LONGROPE_NAMES_128, LONGROPE_D128(d), "%128, %129, %130, %131", "%132")

LONGROPE_WGMMA(__nv_bfloat16, "bf16")
LONGROPE_WGMMA(__half, "f16")

}  // namespace longrope
