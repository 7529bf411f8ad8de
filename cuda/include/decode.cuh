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
#pragma once

#include "decode_segment.cuh"
#include "dependent_launch.cuh"

namespace longrope {

// Attends to a segment, and writes what comes of it.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ void attend_segment(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                               const DecodeSegment &segment, int64_t sequence, char *shared) {
    __shared__ WarpSums<Shape> all;
    DecodeWarp<T, Shape> warp;
    const uint32_t bad = attend_keys<T, Shape, Rotation>(p, rotary, segment, sequence, shared, warp);
    if (bad && p.status) atomicOr(p.status, bad);
    float *const outputs = reinterpret_cast<float *>(shared);
    // All warps are done with their rings.
    if (__syncthreads_or(bad != 0)) {
        mark_bad(p, segment);
        __syncthreads();
        return;
    }
    put_sums<T, Shape>(warp, outputs, all);
    __syncthreads();
    const int quarters = p.head_dim / 4;
    for (int i = threadIdx.x; i < segment.item.rows * quarters; i += Shape::kThreads) {
        const int row = i / quarters, dim = i % quarters * 4;
        RowSums sums = join_warps<Shape>(outputs, all, row, dim);
        write_row<T>(p, segment, row, dim, sums);
    }
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
