// Attention of a few new tokens over cached keys and values, where time is that of reading the cache.
//
//   out = softmax(scale q k^T + mask) v        query head h reads key head h / group
//
// The query heads of a key head and the new tokens are packed into up to kRows rows. Keys are the rows of the tensor cores'
// products and queries their columns, of which eight are the fewest:
//
//   S^T [16 keys][8 rows] = K Q^T        O^T [16 dims][8 rows] += V^T P^T
//
// A block walks over its share of the work (decode_schedule.cuh). Of each tile of keys a warp takes 16, through a ring of its own
// in shared memory, filled by asynchronous copies; so warps meet only where an item ends, to join their results. All 16 keys
// lie in one page: page sizes are multiples of 16. Ids of pages are read 32 steps at a time, 32 steps ahead.
//
// Sums do not drift: P V of 16 keys is summed on the tensor cores from zero, and added to O by an FMA that rounds.
//
// Shared memory, in bytes, with D the head dimension padded to 64, 96, 128 or 256 (kDim): 96 KiB
//   ring     kWarps * kStages * (16 + 16) * D * 2     [warp][stage][K, V][key][dim], swizzled (tile.cuh); keys that are to be
//                                                     rotated are so in place (key_rotation.cuh)
// and in its place where an item ends
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

// Joins the results of the warps, and writes them.
template <class T, class Shape>
__device__ __forceinline__ void finish_segment(const longrope_decode_params &p, const DecodeSegment &segment,
                                               const DecodeWarp<T, Shape> &warp, float *shared, uint32_t bad) {
    __shared__ float maxima[Shape::kWarps][Shape::kRows], sums[Shape::kWarps][Shape::kRows];
    const int thread = threadIdx.x, lane = thread % 32, number = thread / 32;
    const DecodeItem &item = segment.item;
    float *const mine = shared + number * Shape::kRows * Shape::kOutputStride;
    if (bad && p.status) atomicOr(p.status, bad);
    // All warps are done with their rings.
    if (__syncthreads_or(bad != 0)) {
        if (segment.slot >= 0 && thread < item.rows) {
            p.parts_lse[segment.slot * p.slot_rows + thread] = __uint_as_float(kBadPart);
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = 8 * n + lane % 4 * 2 + i;
            const float sum = warp.column[n][i].total();
            if (lane < 4) {
                maxima[number][row] = warp.column[n][i].maximum;
                sums[number][row] = sum;
            }
            float *const to = mine + row * Shape::kOutputStride + lane / 4;
#pragma unroll
            for (int step = 0; step < Shape::kDim / 16; ++step) {
                to[16 * step] = warp.output[step][n][i];
                to[16 * step + 8] = warp.output[step][n][2 + i];
            }
        }
    }
    __syncthreads();
    const int quarters = p.head_dim / 4;
    for (int i = thread; i < item.rows * quarters; i += Shape::kThreads) {
        const int row = i / quarters, dim = i % quarters * 4;
        float largest = -INFINITY;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) largest = fmaxf(largest, maxima[w][row]);
        float x[4] = {}, sum = 0.0f;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
            if (maxima[w][row] == -INFINITY) {
                sum += sums[w][row];  // 0, or the NaN of a logit
                continue;
            }
            const float weight = exp2f(maxima[w][row] - largest);
            const float4 part =
                *reinterpret_cast<const float4 *>(shared + (w * Shape::kRows + row) * Shape::kOutputStride + dim);
            sum = fmaf(weight, sums[w][row], sum);
            x[0] = fmaf(weight, part.x, x[0]);
            x[1] = fmaf(weight, part.y, x[1]);
            x[2] = fmaf(weight, part.z, x[2]);
            x[3] = fmaf(weight, part.w, x[3]);
        }
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        const float lse = sum == 0.0f ? -INFINITY : (log2f(sum) + (largest - kWeightBias<T>)) * 0.693147180559945f;
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] *= inverse;
        if (segment.slot < 0) {
            store_output<T>(p, item, row, dim, x);
            if (dim == 0) store_lse(p, item, row, lse);
        } else {
            const int64_t at = segment.slot * p.slot_rows + row;
            *reinterpret_cast<float4 *>(p.parts + at * p.head_dim + dim) = make_float4(x[0], x[1], x[2], x[3]);
            if (dim == 0) p.parts_lse[at] = lse;
        }
    }
}

// Attends to the keys of a segment.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ void attend_segment(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                               const DecodeSegment &segment, int64_t sequence, char *shared) {
    const int thread = threadIdx.x, lane = thread % 32, number = thread / 32;
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
    Rotation rotation(rotary, length, sequence, lane);
    if (rotation.is_bad()) steps = 0;

    char *const ring = shared + number * Shape::kStages * 2 * Shape::kHalfBytes;
    DecodeLoads<T, Shape> loads = {p.cache, ring, sequence, length, key, item.head, p.head_dim, static_cast<int>(steps), lane,
                                   0,       0,    0};
    loads.start();
    if (rotation.is_bad()) loads.bad = LONGROPE_DEVICE_BAD_CHOICE;
#pragma unroll
    for (int i = 0; i < Shape::kStages - 1; ++i) loads.begin(i, i);
    DecodeWarp<T, Shape> warp;
    warp.start(p, item, lane);
    // Keys that every row sees.
    const int64_t whole_first = p.window > 0 ? saturating_sub(length, p.window) : 0, whole_end = item.sequence.first_position() + 1;
    int stage = 0;
    for (int step = 0; step < static_cast<int>(steps); ++step) {
        async_copy_wait<Shape::kStages - 2>();
        __syncwarp();  // what all lanes loaded has come, and they are done with the stage before
        loads.begin(step + Shape::kStages - 1, stage == 0 ? Shape::kStages - 1 : stage - 1);
        const int64_t at = key + static_cast<int64_t>(step) * Shape::kTileKeys;
        const bool masked = at < whole_first || at + 16 > whole_end;
        rotation.rotate(rotary, ring + stage * 2 * Shape::kHalfBytes, at, lane);
        warp.step(p, item, ring + stage * 2 * Shape::kHalfBytes, at, masked, lane);
        stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    }
    async_copy_wait<0>();
    finish_segment<T, Shape>(p, segment, warp, reinterpret_cast<float *>(shared), loads.bad);
    __syncthreads();  // the next segment's loads overwrite what was joined
}

// The work of a block where each item is split a fixed number of times.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode_fixed(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                             char *shared) {
    __shared__ DecodeSegment segment;
    __shared__ int64_t sequence;
    if (threadIdx.x == 0) {
        const uint32_t row_tiles = most_row_tiles(p), index = blockIdx.x / p.splits, part = blockIdx.x % p.splits;
        const uint32_t head = index / row_tiles;
        sequence = head / p.cache.key_heads;
        const CachedSequence one(p.cache, p.tokens, sequence);
        const SequenceWork work(p, one);
        if (one.bad && p.status) atomicOr(p.status, one.bad);
        const int64_t first = quotient(work.tiles * part, p.splits), end = quotient(work.tiles * (part + 1), p.splits);
        segment = DecodeSegment{DecodeItem(p, one, head % p.cache.key_heads, index % row_tiles), work.first_tile + first,
                                end - first, p.splits == 1 ? -1 : static_cast<int64_t>(blockIdx.x)};
    }
    __syncthreads();
    if (segment.item.rows > 0) attend_segment<T, Shape, Rotation>(p, rotary, segment, sequence, shared);
}

// The work of a block where all get as much.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode_balanced(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                             char *shared) {
    __shared__ DecodeSegment segment;
    __shared__ int64_t shared_sequence, shared_before;
    const WorkPlace place = find_work<Shape::kThreads>(p, blockIdx.x, -1, blockIdx.x == 0);
    if (blockIdx.x >= place.blocks) return;
    const int64_t end = place.first_tile(blockIdx.x + 1);
    int64_t tile = place.first_tile(blockIdx.x);
    if (threadIdx.x == 0) {
        shared_sequence = place.sequence;
        shared_before = place.before;
    }
    while (tile < end) {
        if (threadIdx.x == 0) {
            int64_t sequence = shared_sequence, before = shared_before;
            for (;; ++sequence) {
                const CachedSequence one(p.cache, p.tokens, sequence);
                const SequenceWork work(p, one);
                if (tile - before < work.total) {
                    const int64_t index = quotient(tile - before, work.tiles), first = tile - before - index * work.tiles;
                    const int64_t tiles = min(work.tiles - first, end - tile), block = blockIdx.x;
                    const int64_t slot = tiles == work.tiles ? -1 : first > 0 ? 2 * block : 2 * block + 1;
                    const int64_t head = quotient(index, work.row_tiles);
                    segment = DecodeSegment{DecodeItem(p, one, head, index - head * work.row_tiles), work.first_tile + first,
                                            tiles, slot};
                    break;
                }
                before += work.total;
            }
            shared_sequence = sequence;
            shared_before = before;
        }
        __syncthreads();
        tile += segment.tiles;
        attend_segment<T, Shape, Rotation>(p, rotary, segment, shared_sequence, shared);
    }
}

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode(const longrope_decode_params &p, const typename Rotation::Params &rotary) {
    extern __shared__ __align__(128) char shared_bytes[];
    wait_for_dependency();
    // Not before: the merge reads lengths before it waits for this kernel.
    let_dependents_begin();
    if (p.splits > 0) {
        decode_fixed<T, Shape, Rotation>(p, rotary, shared_bytes);
    } else {
        decode_balanced<T, Shape, Rotation>(p, rotary, shared_bytes);
    }
}

}  // namespace longrope

// The kernels of a padded head dimension: element type x rows of queries.
#define LONGROPE_DECODE(dim, name, T, rows)                                                                              \
    extern "C" __global__ void __launch_bounds__(longrope::DecodeShape<dim, rows>::kThreads, 2)                          \
        longrope_decode_d##dim##_##name##_r##rows(const __grid_constant__ longrope_decode_params p) {                    \
        longrope::decode<T, longrope::DecodeShape<dim, rows>, longrope::KeysAsTheyAre>(p, {});                           \
    }

// The same over keys that lie in the cache as they were before rotation.
#define LONGROPE_DECODE_ROTATING(dim, name, T, rows)                                                                     \
    extern "C" __global__ void __launch_bounds__(longrope::DecodeShape<dim, rows>::kThreads, 2)                          \
        longrope_decode_rotating_d##dim##_##name##_r##rows(const __grid_constant__ longrope_decode_rotating_params p) {  \
        using Shape = longrope::DecodeShape<dim, rows>;                                                                  \
        using Rotation = longrope::KeyRotation<T, dim, Shape::kThreads, Shape::kRotationStep>;                           \
        longrope::decode<T, Shape, Rotation>(p.decode, p.rotary);                                                        \
    }
