// What becomes of an accumulator of wgmma.cuh: sums in device memory that round, and stores of its rows.
#pragma once

#include "attention_sm90_items.cuh"
#include "mma.cuh"

#include <utility>

namespace longrope {

// Where a thread folds an accumulator of kSize numbers: device memory that it alone reads and writes, so that the order of its
// sums is given. Four numbers of neighbouring threads lie side by side.
template <int kSize, int kThreads>
struct Folded {
    float4 *first;

    // Fold number `index` of all that there are.
    __device__ __forceinline__ Folded(float *sums, int64_t index, int thread) {
        first = reinterpret_cast<float4 *>(sums) + index * (kSize / 4 * kThreads) + thread;
    }

    __device__ __forceinline__ void put(const float (&x)[kSize]) const { put_at(x, std::make_integer_sequence<int, kSize / 4>()); }
    // Adds by the second-level cache: the thread waits for nothing.
    __device__ __forceinline__ void add(const float (&x)[kSize]) const { add_at(x, std::make_integer_sequence<int, kSize / 4>()); }
    // Reads what is there, from where it was added.
    __device__ __forceinline__ void take(float (&x)[kSize]) const { take_at(x, std::make_integer_sequence<int, kSize / 4>()); }

private:
    // With one address, and distances that instructions hold, for want of registers.
    template <int... n>
    __device__ __forceinline__ void put_at(const float (&x)[kSize], std::integer_sequence<int, n...>) const {
        (put_four<n>(x[4 * n], x[4 * n + 1], x[4 * n + 2], x[4 * n + 3]), ...);
    }
    template <int... n>
    __device__ __forceinline__ void add_at(const float (&x)[kSize], std::integer_sequence<int, n...>) const {
        (add_four<n>(x[4 * n], x[4 * n + 1], x[4 * n + 2], x[4 * n + 3]), ...);
    }
    template <int... n>
    __device__ __forceinline__ void take_at(float (&x)[kSize], std::integer_sequence<int, n...>) const {
        (take_four<n>(x[4 * n], x[4 * n + 1], x[4 * n + 2], x[4 * n + 3]), ...);
    }

    template <int n>
    __device__ __forceinline__ void put_four(float x, float y, float z, float w) const {
        asm volatile("st.relaxed.gpu.global.v4.f32 [%0 + %5], {%1, %2, %3, %4};" ::"l"(first), "f"(x), "f"(y), "f"(z), "f"(w),
                     "n"(n * kThreads * 16)
                     : "memory");
    }
    template <int n>
    __device__ __forceinline__ void add_four(float x, float y, float z, float w) const {
        asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0 + %5], {%1, %2, %3, %4};" ::"l"(first), "f"(x), "f"(y), "f"(z), "f"(w),
                     "n"(n * kThreads * 16)
                     : "memory");
    }
    template <int n>
    __device__ __forceinline__ void take_four(float &x, float &y, float &z, float &w) const {
        asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4 + %5];"
                     : "=f"(x), "=f"(y), "=f"(z), "=f"(w)
                     : "l"(first), "n"(n * kThreads * 16)
                     : "memory");
    }
};

// Exchanges the second word of lanes without a bit for the first of those with it.
__device__ __forceinline__ void exchange_words(uint32_t &first, uint32_t &second, int lane, int bit) {
    const bool has = lane & bit;
    const uint32_t other = __shfl_xor_sync(0xffffffff, has ? first : second, bit);
    (has ? first : second) = other;
}

// Writes one of the two rows of a thread, times a factor, as 16 bits. `to`: the row, at this lane's 8 dimensions of every 32;
// `dims`: how many there are from there on. Of four neighbouring blocks of 8 dimensions, each of the four lanes of a row takes one.
template <class T, int kSize>
__device__ __forceinline__ void store_words(T *to, const float (&x)[kSize], int half, float factor, int dims, int lane) {
#pragma unroll
    for (int n = 0; n < kSize / 4; n += 4) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            word[i] = pack(x[4 * (n + i) + 2 * half] * factor, x[4 * (n + i) + 2 * half + 1] * factor, T());
        }
        exchange_words(word[0], word[1], lane, 1);
        exchange_words(word[2], word[3], lane, 1);
        exchange_words(word[0], word[2], lane, 2);
        exchange_words(word[1], word[3], lane, 2);
        if (8 * n < dims) *reinterpret_cast<uint4 *>(to + 8 * n) = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

// The same as f32, or added to what is there. `to`: the row, at this lane's 2 dimensions of every 8; `dims`: of the row.
template <int kSize>
__device__ __forceinline__ void store_floats(float *to, const float (&x)[kSize], int half, float factor, int dims, bool accumulate) {
#pragma unroll
    for (int n = 0; n < kSize / 4; ++n) {
        if (8 * n >= dims) break;
        float2 *const at = reinterpret_cast<float2 *>(to + 8 * n);
        float2 y = make_float2(x[4 * n + 2 * half] * factor, x[4 * n + 2 * half + 1] * factor);
        if (accumulate) {
            const float2 before = *at;
            y.x += before.x, y.y += before.y;
        }
        *at = y;
    }
}

}  // namespace longrope
