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

namespace longrope {

// Attends to a segment, and writes what comes of it.
template <class T, class Shape, class Rotation>
__device__ __forceinline__ void attend_segment(const longrope_decode_params &p, const typename Rotation::Params &rotary,
                                               const DecodeSegment &segment, int64_t sequence, char *shared, bool waits) {
    __shared__ WarpSums<Shape> all;
    DecodeWarp<T, Shape> warp;
    // Kernels of many rows have no register for queries until the ring is asked for.
    const bool asks_late = waits || Shape::kN > 1;
    if (!asks_late) warp.ask(p, {p, segment.item, static_cast<int>(threadIdx.x % 32)});
    DecodeLoads<T, Shape> loads = loads_of<T, Shape>(p, segment, sequence, shared);
    // What it reads would wait behind the keys.
    Rotation rotation(rotary, segment.item.sequence.length, sequence, loads.lane);
    fill_ring(loads, waits, segment.item.sequence.first_position());
    const uint32_t bad = sum_keys<T, Shape, Rotation>(p, rotary, rotation, segment, loads, warp, waits, asks_late);
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
    for (int row = threadIdx.x / 32; row < segment.item.rows; row += Shape::kWarps) {
        const WarpWeights<Shape> weights(all, row);
        for (int dim = threadIdx.x % 32 * 4; dim < p.head_dim; dim += 128) {
            RowSums sums = weights.join(outputs, row, dim);
            write_row<T>(p, segment, row, dim, row_place(p, segment, row) + dim, sums);
        }
    }
    __syncthreads();  // the next segment's loads overwrite what was joined
}

// What a block does, a segment after the other.
template <class Shape>
struct BlockWork {
    WorkPlace place;
    int64_t tile, end;         // in the line of work
    int64_t sequence, before;  // of the tile, as far as thread 0 has looked, and the tiles before that sequence

    // To be called by all threads.
    __device__ __forceinline__ explicit BlockWork(const longrope_decode_params &p) {
        if (p.splits > 0) {  // one segment, found by its number
            tile = 0;
            end = 1;
            return;
        }
        place = find_work<Shape::kThreads>(p, blockIdx.x, -1);
        const bool has_work = blockIdx.x < place.blocks;
        tile = has_work ? place.first_tile(blockIdx.x) : 0;
        end = has_work ? place.first_tile(blockIdx.x + 1) : 0;
        sequence = place.sequence;
        before = place.before;
    }

    __device__ __forceinline__ bool has_more() const { return tile < end; }
    __device__ __forceinline__ void advance(const longrope_decode_params &p, int64_t tiles) { tile = p.splits > 0 ? end : tile + tiles; }

    // The segment that begins at `tile`, and in `sequence` whose it is.
    __device__ __forceinline__ DecodeSegment find(const longrope_decode_params &p) {
        if (p.splits > 0) return find_fixed(p);
        for (; sequence < p.cache.sequences; ++sequence) {
            const CachedSequence one(p.cache, p.tokens, sequence);
            const SequenceWork work(p, one);
            if (tile - before < work.total) {
                const int64_t index = quotient(tile - before, work.tiles), first = tile - before - index * work.tiles;
                const int64_t tiles = min(work.tiles - first, end - tile), block = blockIdx.x;
                const int64_t slot = tiles == work.tiles ? -1 : first > 0 ? 2 * block : 2 * block + 1;
                const int64_t head = quotient(index, work.row_tiles);
                return {DecodeItem(p, one, head, index - head * work.row_tiles), work.first_tile + first, tiles, slot};
            }
            before += work.total;
        }
        // Lengths became shorter meanwhile, against a promise.
        return {};
    }

    // Where each item is split a fixed number of times; of a bad sequence without rows.
    __device__ __forceinline__ DecodeSegment find_fixed(const longrope_decode_params &p) {
        const uint32_t row_tiles = most_row_tiles(p), index = blockIdx.x / p.splits, part = blockIdx.x % p.splits;
        const uint32_t head = index / row_tiles;
        sequence = head / p.cache.key_heads;
        const CachedSequence one(p.cache, p.tokens, sequence);
        const SequenceWork work(p, one);
        const int64_t first = quotient(work.tiles * part, p.splits), last = quotient(work.tiles * (part + 1), p.splits);
        return {DecodeItem(p, one, head % p.cache.key_heads, index % row_tiles), work.first_tile + first, last - first,
                p.splits == 1 ? -1 : static_cast<int64_t>(blockIdx.x)};
    }
};

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode(const longrope_decode_params &p, const typename Rotation::Params &rotary) {
    extern __shared__ __align__(128) char shared_bytes[];
    __shared__ DecodeSegment segment;
    __shared__ int64_t sequence;
    bool waits = p.settled;
    if (waits) {
        drop_cached();
    } else {
        pass_on();
    }
    for (BlockWork<Shape> work(p); work.has_more();) {
        if (threadIdx.x == 0) {
            segment = work.find(p);
            sequence = work.sequence;
        }
        __syncthreads();
        work.advance(p, segment.tiles);
        if (segment.item.rows <= 0) break;
        attend_segment<T, Shape, Rotation>(p, rotary, segment, sequence, shared_bytes, waits);
        waits = false;
    }
    if (waits) pass_on();
    if (blockIdx.x == 0 && p.status) report_bad_sequences(p.cache, p.tokens, p.status);
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
