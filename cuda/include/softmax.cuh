// The online softmax: what a row of attention remembers between tiles of keys.
//
// Logits are taken to base 2, s2 = s * c with c = scale / ln 2 > 0. After some keys a row has
//   maximum  m = max s2, the largest so far
//   sum      l = sum of 2^(s2 - m + bias)
//   output   O = sum of 2^(s2 - m + bias) v
// and the next tile, with m' = max(m, its largest), needs l and O times 2^(m - m'). In the end O / l is the output and
// (m - bias + log2 l) ln 2 the log-sum-exp (FlashAttention, arXiv 2205.14135, algorithm 1).
//
// Weights are rounded to 16 bits before they meet the values. An f16 below 2^-25 is zero, and a million weak keys beside a
// strong one may weigh as much together, so for f16 the bias is 15: weights reach from 2^15 down to 2^-24.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace longrope {

template <class T>
constexpr float kWeightBias = 0.0f;
template <>
constexpr float kWeightBias<__half> = 15.0f;

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to one unit in the last place, for what is neither tiny nor huge. The exact division needs a way for those two, and with it
// more registers than some kernels have left.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A row, held alike by the four lanes that share it, but for the sum: each lane has that of its own columns.
struct RowState {
    float maximum, sum;

    __device__ __forceinline__ void reset() {
        maximum = -INFINITY;
        sum = 0.0f;
    }

    // Takes the largest logit of this lane's columns of a tile; returns the factor of what was summed before.
    __device__ __forceinline__ float raise(float largest, float c) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
        const float before = maximum;
        maximum = fmaxf(before, largest * c);
        // Before the first visible key both are -inf, whose difference is no number.
        const float factor = exp2_approx(before - finite());
        sum *= factor;
        return factor;
    }

    // The maximum, or 0 where no key was seen yet: then all weights are 2^-inf.
    __device__ __forceinline__ float finite() const { return maximum == -INFINITY ? 0.0f : maximum; }

    // The sum over all columns.
    __device__ __forceinline__ float total() const {
        float all = sum + __shfl_xor_sync(0xffffffff, sum, 1);
        return all + __shfl_xor_sync(0xffffffff, all, 2);
    }
};

}  // namespace longrope
