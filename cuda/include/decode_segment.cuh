// What a block of a decoding kernel does with a part of an item: each warp sums its own keys, then their results are joined.
//
// Shared memory, in bytes, with D the padded head dimension (kDim):
//   ring     kWarps * kStages * (16 + 16) * D * 2     [warp][stage][K, V][key][dim], swizzled (tile.cuh); keys that are to be
//                                                     rotated are so in place (key_rotation.cuh)
// and in its place where the part ends
//   output   kWarps * kRows * (D + 4) * 4             [warp][row][dim]
#pragma once

#include "decode_output.cuh"
#include "decode_warp.cuh"
#include "dependent_launch.cuh"
#include "key_rotation.cuh"

namespace longrope {

// Part of an item: some of its tiles.
struct DecodeSegment {
    DecodeItem item;
    int64_t first_tile, tiles;  // by their number in the sequence
    int64_t slot;               // of the partial result, or -1: it is the whole
};

// Waits for the kernel before this one, and lets the one after it begin. Not before: a merge reads lengths before it waits for this
// kernel.
__device__ __forceinline__ void pass_on() {
    wait_for_dependency();
    let_dependents_begin();
}

// The loads of this warp's keys of a segment.
template <class T, class Shape>
__device__ __forceinline__ DecodeLoads<T, Shape> loads_of(const longrope_decode_params &p, const DecodeSegment &segment, int64_t sequence,
                                                          char *shared) {
    const int lane = threadIdx.x % 32, number = threadIdx.x / 32;
    const DecodeItem &item = segment.item;
    const int64_t length = item.sequence.length;
    // This warp's first keys, and how many of its steps have any: a tile may begin before the window, or end beyond the length.
    int64_t key = segment.first_tile * Shape::kTileKeys + 16 * number;
    int64_t steps = segment.tiles;
    const int64_t seen = p.window > 0 ? max(saturating_sub(item.sequence.first_position() + 1, p.window), int64_t{0}) : 0;
    if (steps > 0 && key + 16 <= seen) {
        key += Shape::kTileKeys;
        --steps;
    }
    if (steps > 0 && key + (steps - 1) * Shape::kTileKeys >= length) --steps;
    return {p.cache,  shared + number * Shape::kStages * 2 * Shape::kHalfBytes, sequence, length, key, static_cast<int>(steps), item.head,
            p.head_dim, lane};
}

// Begins as many as the ring has room for. `waits`: the kernel before this one has not been waited for; it is, before what that may
// write is asked for, which are the keys from `settled` on.
template <class T, class Shape>
__device__ __forceinline__ void fill_ring(DecodeLoads<T, Shape> &loads, bool waits, int64_t settled) {
    loads.start();
#pragma unroll 1
    for (int i = 0; i < Shape::kStages; ++i) {
        if (waits && loads.first_key + i * Shape::kTileKeys + 16 > settled) wait_for_dependency();
        loads.template begin<false>(i, i);
        loads.template begin<true>(i, i);
    }
}

// Sums the keys of a segment, whose loads have begun, in `warp`; returns bits of longrope_device_status. `waits`: the kernel before this
// one has not been waited for; `asks`: nor have queries been asked for.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ uint32_t sum_keys(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                             Rotation &rotation, const DecodeSegment &segment, DecodeLoads<T, Shape> &loads,
                                             DecodeWarp<T, Shape> &warp, bool waits, bool asks) {
    const DecodeItem &item = segment.item;
    const int lane = loads.lane;
    const int64_t length = item.sequence.length;
    if (waits) pass_on();
    if (asks) warp.ask(p, {p, item, lane});
    if (rotation.is_bad()) {
        loads.bad = LONGROPE_DEVICE_BAD_CHOICE;
        loads.steps = 0;
    }
    warp.start(p);
    // Keys that every row sees.
    const int64_t whole_first = p.window > 0 ? saturating_sub(length, p.window) : 0, whole_end = item.sequence.first_position() + 1;
    int stage = 0;
    for (int step = 0; step < loads.steps; ++step) {
        // Keys, and values likewise: what all lanes loaded has come; when they are done with it, its place is filled anew.
        async_copy_wait<2 * Shape::kStages - 1>();
        __syncwarp();
        const int64_t at = loads.first_key + static_cast<int64_t>(step) * Shape::kTileKeys;
        const bool masked = at < whole_first || at + 16 > whole_end;
        char *const tile = const_cast<char *>(loads.ring) + stage * 2 * Shape::kHalfBytes;
        rotation.rotate(rotary, tile, at, lane);
        warp.multiply_keys(tile, lane);
        __syncwarp();
        loads.template begin<false>(step + Shape::kStages, stage);
        warp.weigh(p, item, at, masked, lane);
        async_copy_wait<2 * Shape::kStages - 1>();
        __syncwarp();
        warp.add_values(tile, lane);
        __syncwarp();
        loads.template begin<true>(step + Shape::kStages, stage);
        stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    }
    async_copy_wait<0>();
    return loads.bad;
}

// Of each row of each warp: the largest logit, and the sum of weights beside it.
template <class Shape>
struct WarpSums {
    float maxima[Shape::kWarps][Shape::kRows], sums[Shape::kWarps][Shape::kRows];
};

// Puts what the warps have summed into shared memory, once all are done with their rings.
template <class T, class Shape>
__device__ __forceinline__ void put_sums(const DecodeWarp<T, Shape> &warp, float *outputs, WarpSums<Shape> &all) {
    const int lane = threadIdx.x % 32, number = threadIdx.x / 32;
    float *const mine = outputs + number * Shape::kRows * Shape::kOutputStride;
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = 8 * n + lane % 4 * 2 + i;
            const float sum = warp.column[n][i].total();
            if (lane < 4) {
                all.maxima[number][row] = warp.column[n][i].maximum;
                all.sums[number][row] = sum;
            }
            float *const to = mine + row * Shape::kOutputStride + lane / 4;
#pragma unroll
            for (int step = 0; step < Shape::kDim / 16; ++step) {
                to[16 * step] = warp.output[step][n][i];
                to[16 * step + 8] = warp.output[step][n][2 + i];
            }
        }
    }
}

// Four dimensions of a row: values by their weights, and the sum of those, both times 2^-largest.
struct RowSums {
    float x[4] = {}, sum = 0.0f, largest = -INFINITY;

    // The weight beside `largest` of what was summed beside another largest logit, which is not above it; 0 for no logits.
    __device__ __forceinline__ float weight_of(float part_largest) const {
        return exp2_approx(part_largest - (largest == -INFINITY ? 0.0f : largest));
    }

    __device__ __forceinline__ void add(const float4 &part, float part_sum, float weight) {
        sum = fmaf(weight, part_sum, sum);
        x[0] = fmaf(weight, part.x, x[0]);
        x[1] = fmaf(weight, part.y, x[1]);
        x[2] = fmaf(weight, part.z, x[2]);
        x[3] = fmaf(weight, part.w, x[3]);
    }

    // Divides by the weights, and returns their log-sum-exp.
    template <class T>
    __device__ __forceinline__ float finish() {
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] *= inverse;
        return sum == 0.0f ? -INFINITY : (log2f(sum) + (largest - kWeightBias<T>)) * 0.693147180559945f;
    }
};

// How the results of the warps are joined, of one row.
template <class Shape>
struct WarpWeights {
    float largest, weight[Shape::kWarps], sum[Shape::kWarps];

    __device__ __forceinline__ WarpWeights(const WarpSums<Shape> &all, int row) : largest(-INFINITY) {
        RowSums joined;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) joined.largest = fmaxf(joined.largest, all.maxima[w][row]);
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
            weight[w] = joined.weight_of(all.maxima[w][row]);
            sum[w] = all.sums[w][row];
        }
        largest = joined.largest;
    }

    // Four dimensions from `dim` on.
    __device__ __forceinline__ RowSums join(const float *outputs, int row, int dim) const {
        RowSums joined;
        joined.largest = largest;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
            joined.add(*reinterpret_cast<const float4 *>(outputs + (w * Shape::kRows + row) * Shape::kOutputStride + dim), sum[w],
                       weight[w]);
        }
        return joined;
    }
};

// Where a row of a segment goes: in the output, or, if it is a part of an item, in the parts.
__device__ __forceinline__ int64_t row_place(const longrope_decode_params &p, const DecodeSegment &segment, int row) {
    if (segment.slot < 0) return segment.item.offset(p, p.out_stride, row);
    return (segment.slot * p.slot_rows + row) * p.head_dim;
}

// Writes four dimensions of a row of a segment there; `to`: of the first of them.
template <class T>
__device__ __forceinline__ void write_row(const longrope_decode_params &p, const DecodeSegment &segment, int row, int dim, int64_t to,
                                          RowSums &sums) {
    const float lse = sums.finish<T>();
    if (segment.slot < 0) {
        store_output<T>(p, to, sums.x);
        if (dim == 0) store_lse(p, segment.item, row, lse);
        return;
    }
    *reinterpret_cast<float4 *>(p.parts + to) = make_float4(sums.x[0], sums.x[1], sums.x[2], sums.x[3]);
    if (dim == 0) p.parts_lse[segment.slot * p.slot_rows + row] = lse;
}

// Marks the slot of a segment with a bad entry.
__device__ __forceinline__ void mark_bad(const longrope_decode_params &p, const DecodeSegment &segment) {
    if (segment.slot >= 0 && threadIdx.x < segment.item.rows) {
        p.parts_lse[segment.slot * p.slot_rows + threadIdx.x] = __uint_as_float(kBadPart);
    }
}

}  // namespace longrope
