// What a block of an attention kernel works on, and what its mask leaves of the keys. Shared by the kernels of all GPUs.
//
// Blocks are numbered so that those with the most keys come first, and those that share keys come together:
//   sequence, section of heads, tile of queries from the last to the first, head in its section
#pragma once

#include "mask.cuh"
#include "params.h"

namespace longrope {

// What a block works on: queries of one head of one sequence, from `first_query` on.
struct AttentionBlock {
    int64_t batch, first_query, query_length, key_length;
    int64_t query_start, key_start;  // of the sequence, in its tensors
    int64_t position;                // of the first query
    MaskLimits limits;               // of the block's queries
    int head;
    bool is_bad;

    AttentionBlock() = default;

    // Reads starts[i] and starts[i + 1].
    static __device__ __forceinline__ void span(const void *starts, bool wide, int64_t i, int64_t &start, int64_t &end) {
        if (wide) {
            start = static_cast<const int64_t *>(starts)[i];
            end = static_cast<const int64_t *>(starts)[i + 1];
        } else {
            start = static_cast<const int32_t *>(starts)[i];
            end = static_cast<const int32_t *>(starts)[i + 1];
        }
    }

    // Block `index` of blocks of so many rows.
    __device__ __forceinline__ AttentionBlock(const longrope_attention_params &p, int rows, uint32_t index) {
        place_at(p, rows, index);
    }

    // Its head and its queries; returns its sequence.
    __device__ __forceinline__ int64_t place(const longrope_attention_params &p, int rows, uint32_t index) {
        const uint32_t tiles = static_cast<uint32_t>(p.tiles);
        const uint32_t in_section = index % p.section_heads;
        index /= p.section_heads;
        const uint32_t tile = tiles - 1 - index % tiles;
        index /= tiles;
        head = static_cast<int>(index % p.sections * p.section_heads + in_section);
        first_query = static_cast<int64_t>(tile) * rows;
        return index / p.sections;
    }

    // All of it; returns its sequence.
    __device__ __forceinline__ int64_t place_at(const longrope_attention_params &p, int rows, uint32_t index) {
        const int64_t sequence = place(p, rows, index);
        read_sequence(p, sequence);
        return sequence;
    }

    // What there is of a sequence, and whether it can be. `first_query` is set.
    __device__ __forceinline__ void read_sequence(const longrope_attention_params &p, int64_t sequence) {
        batch = sequence;
        query_start = key_start = 0;
        query_length = p.query_length;
        key_length = p.key_length;
        is_bad = false;
        if (p.sequence_kind == LONGROPE_SEQUENCES_PACKED) {
            int64_t query_end, key_end;
            span(p.query_starts, p.starts_are_wide, sequence, query_start, query_end);
            span(p.key_starts, p.starts_are_wide, sequence, key_start, key_end);
            is_bad = query_start < 0 || query_end < query_start || query_end > p.query_length || key_start < 0 ||
                     key_end < key_start || key_end > p.key_length || query_end - query_start > p.max_query_length;
            batch = 0;
            query_length = query_end - query_start;
            key_length = key_end - key_start;
        }
        position = p.query_offset;
        if (p.query_offsets) {
            position = saturating_add(position, p.query_offsets[sequence]);
            const int64_t far = int64_t{1} << 62;
            is_bad |= position < -far || position > far - query_length;
        }
        position += first_query;
        limits = mask_limits(position, p.causal, p.window, p.key_offset);
    }
};

// What some queries of a block see, in tiles of keys.
struct TileRange {
    int first, end;            // with a key that one of them sees
    int full_first, full_end;  // with keys that all of them see

    TileRange() = default;

    // Queries `first_row` to before `first_row + rows` of the block, as far as they exist.
    __device__ __forceinline__ TileRange(const AttentionBlock &block, int first_row, int rows, int keys) {
        const int64_t last = block.query_length - block.first_query - 1;
        const KeyRange top = block.limits.visible(min(static_cast<int64_t>(first_row), last), block.key_length);
        const KeyRange bottom = block.limits.visible(min(static_cast<int64_t>(first_row + rows - 1), last), block.key_length);
        first = static_cast<int>(top.first / keys);
        end = bottom.end > top.first ? static_cast<int>((bottom.end + keys - 1) / keys) : first;
        full_first = static_cast<int>((bottom.first + keys - 1) / keys);
        full_end = static_cast<int>(top.end / keys);
    }
};

// Masks the logits of a tile that a warp holds as products leave them (mma.cuh): of each row, what lies outside of its visible
// keys. `first_row`: the first of the warp's rows in the block; `first_key`: of the tile.
template <class Shape>
__device__ __forceinline__ void mask_logits(float (&s)[Shape::kM][Shape::kKeys / 8][4], const AttentionBlock &block,
                                            int first_row, int64_t first_key, int lane) {
    // Relative to the tile. Beyond this, a row sees all of it or nothing.
    constexpr int kFar = 1 << 20;
    const int first = static_cast<int>(clamp(block.limits.first - first_key, -kFar, kFar)) + first_row + lane / 4;
    const int end = static_cast<int>(clamp(block.limits.end - first_key, -kFar, kFar)) + first_row + lane / 4;
    const int length = static_cast<int>(clamp(block.key_length - first_key, 0, Shape::kKeys));
#pragma unroll
    for (int m = 0; m < Shape::kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Of the columns that this lane holds.
            const int low = first + 16 * m + 8 * half - lane % 4 * 2;
            const int high = min(end + 16 * m + 8 * half, length) - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * n + i < low || 8 * n + i >= high) s[m][n][2 * half + i] = -INFINITY;
                }
            }
        }
    }
}

}  // namespace longrope
