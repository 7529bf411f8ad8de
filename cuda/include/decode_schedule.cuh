// How decoding is divided among blocks. Lengths lie on the device, so that each block finds its own share of the work.
//
// Work is counted in tiles of keys and laid out in a line: sequences one after the other, in each its items (key head, then tile
// of query rows), in each item its tiles. Balanced, block b of n takes the tiles from total b / n to total (b + 1) / n: at most
// one item continues from the block before and one into the block after, so that a block has at most two partial results,
//   slot 2 b      of the item that continues from the block before
//   slot 2 b + 1  of the item that continues only into the block after
// and an item within one block has none. Split a fixed number of times, each part of an item has a block and a slot of its own.
#pragma once

#include "cache.cuh"

namespace longrope {

// The binary logarithm of the keys of a tile: 16 keys a warp.
LONGROPE_HD int decode_tile_shift(int head_dim) { return head_dim > 128 ? 5 : 6; }

// a / b, neither below 0. A division of 64 bits takes a good part of a microsecond, which a short launch would feel.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
    if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return a / b;
}

// The work of one sequence.
struct SequenceWork {
    int64_t first_tile, tiles;  // of an item
    int64_t row_tiles;          // items of a key head
    int64_t total;              // tiles of all items

    __device__ __forceinline__ SequenceWork(const longrope_decode_params &p, const CachedSequence &sequence) {
        const int shift = decode_tile_shift(p.head_dim);
        first_tile = 0;
        if (p.window > 0) first_tile = max(saturating_sub(sequence.first_position() + 1, p.window), int64_t{0}) >> shift;
        // New tokens are few.
        const uint32_t rows = static_cast<uint32_t>(sequence.fresh) * p.group, slot_rows = static_cast<uint32_t>(p.slot_rows);
        row_tiles = (rows + slot_rows - 1) / slot_rows;
        // An empty sequence has a tile without keys: its rows are to be written.
        tiles = max(((sequence.length - 1) >> shift) + 1 - first_tile, int64_t{1});
        total = row_tiles * p.cache.key_heads * tiles;
    }
};

// A place in the line of work, and how the line is divided.
struct WorkPlace {
    int64_t total;     // tiles of all sequences
    int64_t blocks;    // that have some
    int64_t sequence;  // that has the tile that was asked for
    int64_t before;    // tiles before that sequence

    // Where blocks begin.
    __device__ __forceinline__ int64_t first_tile(int64_t block) const { return quotient(total * block, blocks); }

    // The block that has a tile.
    __device__ __forceinline__ int64_t block_of(int64_t tile) const { return quotient((tile + 1) * blocks - 1, total); }
};

// Finds the sequence that has the first tile of `block`, or, if `sequence` is not below 0, that sequence. To be called by all
// threads of a block of kThreads.
template <int kThreads>
__device__ __forceinline__ WorkPlace find_work(const longrope_decode_params &p, int64_t block, int64_t sequence) {
    WorkPlace place;
    const int thread = threadIdx.x, lane = thread % 32;
    if (p.cache.sequences == 1) {  // nothing to add up
        const CachedSequence one(p.cache, p.tokens, 0);
        place.total = SequenceWork(p, one).total;
        place.blocks = min(place.total, static_cast<int64_t>(p.blocks));
        place.sequence = place.before = 0;
        return place;
    }
    __shared__ int64_t found_sequence, found_before, warp_sums[kThreads / 32];
    const int64_t each = (p.cache.sequences + kThreads - 1) / kThreads;
    const int64_t first = min(thread * each, static_cast<int64_t>(p.cache.sequences));
    const int64_t end = min(first + each, static_cast<int64_t>(p.cache.sequences));
    int64_t mine = 0;
    for (int64_t i = first; i < end; ++i) {
        mine += SequenceWork(p, CachedSequence(p.cache, p.tokens, i)).total;
    }
    int64_t sum = mine;  // up to this thread's sequences, those included
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffff, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == 31) warp_sums[thread / 32] = sum;
    if (thread == 0) found_sequence = p.cache.sequences;
    __syncthreads();
    int64_t before = sum - mine, total = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) {
        if (i < thread / 32) before += warp_sums[i];
        total += warp_sums[i];
    }
    place.total = total;
    place.blocks = min(total, static_cast<int64_t>(p.blocks));
    const bool by_block = sequence < 0;
    const int64_t tile = by_block && block < place.blocks ? place.first_tile(block) : total;
    const bool here = by_block ? tile >= before && tile < before + mine : sequence >= first && sequence < end;
    if (here) {
        int64_t i = first;
        for (;; ++i) {
            if (i == sequence) break;
            const int64_t work = SequenceWork(p, CachedSequence(p.cache, p.tokens, i)).total;
            if (by_block && tile < before + work) break;
            before += work;
        }
        found_sequence = i;
        found_before = before;
    }
    __syncthreads();
    place.sequence = found_sequence;
    place.before = found_before;
    return place;
}

// Items of a key head of a sequence with as many new tokens as there may be.
__device__ __forceinline__ uint32_t most_row_tiles(const longrope_decode_params &p) {
    const uint32_t slot_rows = static_cast<uint32_t>(p.slot_rows);
    return (static_cast<uint32_t>(p.tokens.most) * p.group + slot_rows - 1) / slot_rows;
}

// Rows of queries of one key head of a sequence.
struct DecodeItem {
    CachedSequence sequence;
    int head;           // key head
    int64_t first_row;  // rows are tokens, and in each the query heads of the key head
    int rows;

    DecodeItem() = default;

    __device__ __forceinline__ DecodeItem(const longrope_decode_params &p, const CachedSequence &sequence, int64_t head,
                                          int64_t row_tile)
        : sequence(sequence), head(static_cast<int>(head)), first_row(row_tile * p.slot_rows) {
        const int64_t left = sequence.fresh * p.group - first_row;
        rows = static_cast<int>(clamp(left, 0, p.slot_rows));
    }

    // The token and the query head of a row of the item.
    __device__ __forceinline__ int64_t token(const longrope_decode_params &p, int row) const {
        return static_cast<uint32_t>(first_row + row) / static_cast<uint32_t>(p.group);
    }
    __device__ __forceinline__ int query_head(const longrope_decode_params &p, int row) const {
        return head * p.group + static_cast<int>(static_cast<uint32_t>(first_row + row) % static_cast<uint32_t>(p.group));
    }

    // From the first element of a tensor of queries to that of a row.
    template <int N>
    __device__ __forceinline__ int64_t offset(const longrope_decode_params &p, const int64_t (&stride)[N], int row) const {
        return sequence.batch * stride[0] + (sequence.row + token(p, row)) * stride[1] + query_head(p, row) * stride[2];
    }
};

}  // namespace longrope
