// The sum of out * d_out over the head dimension, for each query of each head: what the backward pass of attention calls delta.
//
//   delta_i = sum_d out_id d_out_id = sum_j P_ij dP_ij
//
// A row is shared by `lanes` neighbouring lanes of a warp, each of which takes kWide dimensions of every kWide * lanes; a warp
// has 32 / lanes rows. Products of two 16-bit numbers are exact in f32, and sums have one order.
#pragma once

#include "elements.cuh"
#include "params_backward.h"

namespace longrope {

constexpr int kDeltaThreads = 256;

// The sum of products of this lane's dimensions of a row. TOut: of the output.
template <class T, class TOut, int kWide>
__device__ __forceinline__ float sum_of_products(const longrope_attention_delta_params &p, const void *out_row, const void *d_out_row,
                                                 int lane) {
    const TOut *const out = static_cast<const TOut *>(out_row);
    const T *const d_out = static_cast<const T *>(d_out_row);
    float sum = 0.0f;
    for (int dim = lane * kWide; dim < p.head_dim; dim += p.lanes * kWide) {
        if constexpr (kWide == 8) {
            const Vector<T, 8> y = load_vector<T, 8>(d_out + dim);
            // Of f32, two times 16 bytes.
            constexpr int kOutWide = 16 / sizeof(TOut);
#pragma unroll
            for (int i = 0; i < 8; i += kOutWide) {
                const Vector<TOut, kOutWide> x = load_vector<TOut, kOutWide>(out + dim + i);
#pragma unroll
                for (int j = 0; j < kOutWide; ++j) sum = fmaf(widen(x.element[j]), widen(y.element[i + j]), sum);
            }
        } else {
            sum = fmaf(widen(out[dim * p.out_stride[3]]), widen(d_out[dim * p.d_out_stride[3]]), sum);
        }
    }
    return sum;
}

template <class T, int kWide>
__device__ __forceinline__ void attention_delta(const longrope_attention_delta_params &p) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * kDeltaThreads + threadIdx.x) / p.lanes;
    const int lane = static_cast<int>(threadIdx.x) % p.lanes;
    float sum = 0.0f;
    const bool exists = row < p.batch * p.length * p.heads;
    const int64_t token_of_all = row / p.heads;
    const int64_t head = row - token_of_all * p.heads, batch = token_of_all / p.length;
    const int64_t token = token_of_all - batch * p.length;
    if (exists) {
        const int64_t out_offset = batch * p.out_stride[0] + token * p.out_stride[1] + head * p.out_stride[2];
        const T *const d_out =
            static_cast<const T *>(p.d_out) + batch * p.d_out_stride[0] + token * p.d_out_stride[1] + head * p.d_out_stride[2];
        sum = p.out_is_f32
                  ? sum_of_products<T, float, kWide>(p, static_cast<const float *>(p.out) + out_offset, d_out, lane)
                  : sum_of_products<T, T, kWide>(p, static_cast<const T *>(p.out) + out_offset, d_out, lane);
    }
    for (int distance = p.lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (exists && lane == 0) {
        p.delta[batch * p.delta_stride[0] + token * p.delta_stride[1] + head * p.delta_stride[2]] = sum;
    }
}

}  // namespace longrope
