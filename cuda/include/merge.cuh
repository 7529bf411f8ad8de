// The union of partial results of attention over disjoint keys.
//
//   lse = ln sum_p exp(lse_p)        out = sum_p exp(lse_p - lse) out_p
//
// A warp takes a row: one query of one head. It finds the largest lse of the parts, then adds the parts in their order, so that
// the same parts give the same bits. A part whose lse is -inf saw no key: its row is not read, and may hold anything.
#pragma once

#include "elements.cuh"
#include "params.h"

namespace longrope {

constexpr int kMergeThreads = 256;

template <class T>
__device__ __forceinline__ void merge_row(const longrope_merge_params &p, int64_t batch, int64_t query, int head, int lane) {
    const float *const lse = p.parts_lse + batch * p.in_lse_stride[0] + query * p.in_lse_stride[1] + head * p.in_lse_stride[2];
    const float *const parts = p.parts + batch * p.in_stride[0] + query * p.in_stride[1] + head * p.in_stride[2];
    T *const out = static_cast<T *>(p.out) + batch * p.out_stride[0] + query * p.out_stride[1] + head * p.out_stride[2];

    // NaN must not hide behind a number.
    float largest = -INFINITY;
    for (int64_t part = lane; part < p.part_count; part += 32) {
        const float x = lse[part * p.part_lse_stride];
        largest = x > largest || isnan(x) ? x : largest;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, largest, distance);
        largest = other > largest || isnan(other) ? other : largest;
    }

    float sum = 0.0f;
    for (int first = 0; first < p.head_dim; first += 128) {
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        sum = 0.0f;
        for (int64_t part = 0; part < p.part_count; ++part) {
            const float part_lse = lse[part * p.part_lse_stride];
            if (part_lse == -INFINITY) continue;
            const float weight = expf(part_lse - largest);
            sum += weight;
            const float *const row = parts + part * p.part_stride;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int dim = first + 32 * i + lane;
                if (dim < p.head_dim) x[i] = fmaf(weight, row[dim * p.in_stride[3]], x[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int dim = first + 32 * i + lane;
            if (dim < p.head_dim) out[dim * p.out_stride[3]] = narrow<T>(sum == 0.0f ? 0.0f : x[i] / sum);
        }
    }
    // The output may be one of the parts: all lanes have read before one writes.
    __syncwarp();
    if (p.lse && lane == 0) {
        p.lse[batch * p.lse_stride[0] + query * p.lse_stride[1] + head * p.lse_stride[2]] =
            sum == 0.0f ? -INFINITY : largest + logf(sum);
    }
}

// Rows in order of batch, query, head.
template <class T>
__device__ __forceinline__ void merge(const longrope_merge_params &p) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kMergeThreads / 32) + threadIdx.x / 32;
    if (row >= p.batch * p.length * p.heads) return;
    const int head = static_cast<int>(row % p.heads);
    const int64_t token = row / p.heads;
    merge_row<T>(p, token / p.length, token % p.length, head, threadIdx.x % 32);
}

}  // namespace longrope
