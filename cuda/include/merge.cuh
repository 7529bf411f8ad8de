// The union of partial results of attention over disjoint keys.
//
//   lse = ln sum_p exp(lse_p)        out = sum_p exp(lse_p - lse) out_p
//
// A warp takes a row: one query of one head. It finds the largest lse of the parts, then adds the parts in their order, so that
// the same parts give the same bits. A part whose lse is -inf saw no key: its row is not read, and may hold anything.
//
// The lse of 32 parts are read at once, one a lane, and their weights handed round, so that the rows can follow one another
// without waiting for anything. Where the dimensions of a row lie side by side, a lane takes four at a time.
#pragma once

#include "elements.cuh"
#include "params.h"

namespace longrope {

constexpr int kMergeThreads = 256;

// The largest over a warp; NaN does not hide behind a number.
__device__ __forceinline__ float largest_of_warp(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, x, distance);
        x = other > x || isnan(other) ? other : x;
    }
    return x;
}

// Where the dimensions of lane `lane` lie: kWide side by side, of each 32 kWide.
template <class T, int kWide>
struct MergedRow {
    const float *parts;
    int64_t part_stride, in_dim, out_dim;
    T *out;
    int head_dim;

    __device__ __forceinline__ void load(float (&x)[kWide], int64_t part, int dim) const {
        if constexpr (kWide == 4) {
            *reinterpret_cast<float4 *>(x) = *reinterpret_cast<const float4 *>(parts + part * part_stride + dim);
        } else {
            x[0] = parts[part * part_stride + dim * in_dim];
        }
    }

    __device__ __forceinline__ void store(const float (&x)[kWide], int dim) const {
        if constexpr (kWide == 4) {
            Vector<T, 4> packed;
#pragma unroll
            for (int i = 0; i < 4; ++i) packed.element[i] = narrow<T>(x[i]);
            store_vector<T, 4>(out + dim, packed);
        } else {
            out[dim * out_dim] = narrow<T>(x[0]);
        }
    }
};

template <class T, int kWide>
__device__ __forceinline__ void merge_row(const longrope_merge_params &p, int64_t batch, int64_t query, int head, int lane) {
    const float *const lse = p.parts_lse + batch * p.in_lse_stride[0] + query * p.in_lse_stride[1] + head * p.in_lse_stride[2];
    const MergedRow<T, kWide> row = {
        p.parts + batch * p.in_stride[0] + query * p.in_stride[1] + head * p.in_stride[2], p.part_stride, p.in_stride[3],
        p.out_stride[3],
        static_cast<T *>(p.out) + batch * p.out_stride[0] + query * p.out_stride[1] + head * p.out_stride[2], p.head_dim};
    const auto lse_of = [&](int64_t part) { return part < p.part_count ? lse[part * p.part_lse_stride] : -INFINITY; };

    const float first_lse = lse_of(lane);
    float largest = first_lse;
    for (int64_t part = 32 + lane; part < p.part_count; part += 32) {
        const float x = lse[part * p.part_lse_stride];
        largest = x > largest || isnan(x) ? x : largest;
    }
    largest = largest_of_warp(largest);

    float sum = 0.0f;
    for (int first = 0; first < p.head_dim; first += 32 * kWide) {
        const int dim = first + lane * kWide;
        float x[kWide] = {};
        sum = 0.0f;
        for (int64_t base = 0; base < p.part_count; base += 32) {
            const float mine = base == 0 ? first_lse : lse_of(base + lane);
            const float my_weight = mine == -INFINITY ? 0.0f : expf(mine - largest);
            const unsigned seen = __ballot_sync(0xffffffff, mine != -INFINITY);
            const int count = static_cast<int>(min(p.part_count - base, static_cast<int64_t>(32)));
#pragma unroll (kWide == 4 ? 4 : 1)
            for (int i = 0; i < count; ++i) {
                const float weight = __shfl_sync(0xffffffff, my_weight, i);
                if (!(seen >> i & 1)) continue;
                sum += weight;
                if (dim < p.head_dim) {
                    float part[kWide];
                    row.load(part, base + i, dim);
#pragma unroll
                    for (int j = 0; j < kWide; ++j) x[j] = fmaf(weight, part[j], x[j]);
                }
            }
        }
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
        for (int j = 0; j < kWide; ++j) x[j] *= inverse;
        if (dim < p.head_dim) row.store(x, dim);
    }
    // The output may be one of the parts: all lanes have read before one writes.
    __syncwarp();
    if (p.lse && lane == 0) {
        p.lse[batch * p.lse_stride[0] + query * p.lse_stride[1] + head * p.lse_stride[2]] =
            sum == 0.0f ? -INFINITY : largest + logf(sum);
    }
}

// A row to merge, in order of batch, query, head.
struct MergePlace {
    int64_t batch, query;
    int head;
    bool exists;

    static __device__ __forceinline__ MergePlace of(const longrope_merge_params &p, int64_t row) {
        const int64_t rows = p.batch * p.length * p.heads;
        if (row >= rows) return {0, 0, 0, false};
        int64_t token, batch;
        if (rows >> 32 == 0) {  // a division of 64 bits takes longer than the row
            token = static_cast<uint32_t>(row) / static_cast<uint32_t>(p.heads);
            batch = static_cast<uint32_t>(token) / static_cast<uint32_t>(p.length);
        } else {
            token = row / p.heads;
            batch = token / p.length;
        }
        return {batch, token - batch * p.length, static_cast<int>(row - token * p.heads), true};
    }

    // That of this warp.
    static __device__ __forceinline__ MergePlace of_warp(const longrope_merge_params &p) {
        return of(p, static_cast<int64_t>(blockIdx.x) * (kMergeThreads / 32) + threadIdx.x / 32);
    }
};

template <class T, int kWide>
__device__ __forceinline__ void merge(const longrope_merge_params &p) {
    const MergePlace place = MergePlace::of_warp(p);
    if (place.exists) merge_row<T, kWide>(p, place.batch, place.query, place.head, threadIdx.x % 32);
}

}  // namespace longrope
