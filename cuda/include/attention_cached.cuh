// Attention of many new tokens over cached keys and values, for every GPU since Ampere: the walk of attention_sm80.cuh over tiles
// whose rows lie in pages.
//
// Of each 16 keys of a tile, which lie in one page, a thread finds the place, two tiles ahead, by an id that was asked for three
// tiles ahead; ids and places are in shared memory. Keys that lie as they were before rotation are rotated there as well (key_rotation.cuh), by all warps,
// before they are multiplied.
//
// Where queries are few, the tiles that a block's queries see are divided among `splits` blocks. Their results are merged after.
#pragma once

#include "attention_sm80.cuh"
#include "key_rotation.cuh"

namespace longrope {

// Where the rows of tiles lie.
template <int kKeys>
struct TilePlaces {
    static constexpr int kGroups = kKeys / 16;
    static constexpr int64_t kNowhere = INT64_MIN;

    int64_t offset[2][2][kGroups];  // [even or odd tile][keys, values][group of 16]: elements from the tensor's first
    int page[2][kGroups];           // [even or odd tile][group of 16]
};

// Loads tiles of keys or values, as TileLoader does.
template <class T, int kDim, int kKeys>
struct CachedTileLoader : TilePasses<kDim, kKeys, kAttentionThreads> {
    using Passes = TilePasses<kDim, kKeys, kAttentionThreads>;
    using Passes::dims, Passes::kPasses, Passes::kRowsAPass, Passes::pass_offset, Passes::row, Passes::shared;
    static_assert(16 % kRowsAPass == 0, "the rows of a pass lie in one page");

    __device__ __forceinline__ CachedTileLoader(int head_dim, int thread) : Passes(head_dim, thread) {}

    __device__ __forceinline__ void begin(char *tile, const void *tensor, const int64_t *offsets, int64_t row_stride,
                                          int rows) const {
        if (this->is_idle()) return;
        const T *const from = static_cast<const T *>(tensor) + row * row_stride + threadIdx.x % Passes::Layout::kChunks * 8;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const int64_t group = offsets[pass * kRowsAPass / 16];
            const bool there = row + pass * kRowsAPass < rows && dims > 0 && group != TilePlaces<kKeys>::kNowhere;
            const T *const at = from + (there ? group + pass * kRowsAPass % 16 * row_stride : 0);
            async_copy_16_or_zero(tile + shared + pass_offset(pass), at, there);
        }
    }
};

// Marks this block's rows in a partial result.
__device__ __forceinline__ void mark_bad_rows(const longrope_cached_attention_params &c, const AttentionBlock &block, int64_t part,
                                              int rows) {
    const longrope_attention_params &p = c.attention;
    if (c.splits == 1) return;
    for (int row = threadIdx.x; row < rows; row += kAttentionThreads) {
        p.lse[(block.batch + part * c.batches) * p.lse_stride[0] +
              (block.query_start + block.first_query + row) * p.lse_stride[1] + block.head * p.lse_stride[2]] =
            __uint_as_float(kBadPart);
    }
}

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void attend_cached(const longrope_cached_attention_params &c,
                                              const typename Rotation::Params &rotary) {
    const longrope_attention_params &p = c.attention;
    constexpr int kKeys = Shape::kKeys, kStages = Shape::kStages;
    using Places = TilePlaces<kKeys>;
    using QueryLoader = TileLoader<T, Shape::kDim, Shape::kRows, kAttentionThreads, true>;
    using Loader = CachedTileLoader<T, Shape::kDim, kKeys>;
    extern __shared__ __align__(128) char shared_bytes[];
    char *const queries = shared_bytes;
    char *const keys = queries + Shape::kRows * Shape::kDim * 2;
    char *const values = keys + kStages * Shape::kTileBytes;
    const int thread = threadIdx.x, lane = thread % 32, first_row = thread / 32 * 16 * Shape::kM;

    __shared__ AttentionBlock block;
    __shared__ TileRange ranges[kAttentionThreads / 32];
    __shared__ Places places;
    __shared__ int64_t sequence, part;
    __shared__ int first_tile, end_tile, first_group, end_group, bad;  // groups of 16 keys
    if (thread == 0) {
        const uint32_t index = blockIdx.x / static_cast<uint32_t>(c.splits);
        part = blockIdx.x - index * static_cast<uint32_t>(c.splits);
        sequence = block.place(p, Shape::kRows, index);
        const CachedSequence one(c.cache, c.tokens, sequence);
        block.batch = one.batch;
        block.query_start = one.row;
        block.query_length = one.fresh;
        block.key_start = 0;
        block.key_length = one.length;
        block.limits = mask_limits(one.first_position() + block.first_query, true, p.window, 0);
        bad = static_cast<int>(one.bad);
    }
    __syncthreads();
    if (block.head >= p.query_heads) return;  // the last section may be short
    if (bad) {
        if (p.status && thread == 0) atomicOr(p.status, bad);
        return;
    }
    if (block.first_query >= block.query_length) return;
    const int rows = static_cast<int>(min(static_cast<int64_t>(Shape::kRows), block.query_length - block.first_query));
    Rotation rotation(rotary, block.key_length, sequence, lane);
    if (rotation.is_bad()) {
        if (p.status && thread == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
        mark_bad_rows(c, block, part, rows);
        return;
    }
    if (lane == 0) ranges[thread / 32] = TileRange(block, first_row, 16 * Shape::kM, kKeys);
    if (thread == 0) {
        const TileRange all(block, 0, Shape::kRows, kKeys);
        const int64_t count = all.end - all.first;
        first_tile = all.first + static_cast<int>(count * part / c.splits);
        end_tile = all.first + static_cast<int>(count * (part + 1) / c.splits);
        // Pages that no query of the block sees, for the window, are not looked at.
        first_group = static_cast<int>(clamp(block.limits.first, 0, block.key_length) / 16);
        first_group = max(first_group, first_tile * Places::kGroups);
        end_group = static_cast<int>((block.key_length + 15) / 16);
    }
    __syncthreads();

    // The number of a thread's group of a tile, or -1 where none is needed.
    const auto group_of = [&](int tile) {
        const int group = tile * Places::kGroups + static_cast<int>(threadIdx.x);
        return threadIdx.x < Places::kGroups && group >= first_group && group < end_group ? group : -1;
    };
    // Asks for the pages of a tile.
    const auto ask = [&](int tile) {
        const int group = group_of(tile);
        if (group < 0 || !c.cache.page_table) return;
        const int64_t at = sequence * c.cache.table_stride + 16u * group / static_cast<uint32_t>(c.cache.page_size);
        async_copy_4(&places.page[tile & 1][threadIdx.x], c.cache.page_table + at);
    };
    // Finds the places of a tile, whose pages have come.
    const auto find = [&](int tile) {
        if (threadIdx.x >= Places::kGroups) return;
        const int group = group_of(tile);
        int64_t of_keys = Places::kNowhere, of_values = Places::kNowhere;
        if (group >= 0) {
            CachedRow row = {sequence, int64_t{16} * group};
            bool is_bad = false;
            if (c.cache.page_table) {
                const int page = places.page[tile & 1][threadIdx.x];
                row = {page, 16u * group % static_cast<uint32_t>(c.cache.page_size)};
                is_bad = page < 0 || page >= c.cache.pages;
            }
            if (is_bad) {
                atomicOr(&bad, static_cast<int>(LONGROPE_DEVICE_BAD_PAGE));
            } else {
                const int head = block.head / p.group;
                of_keys = row.offset(c.cache.k_stride, head);
                of_values = row.offset(c.cache.v_stride, head);
            }
        }
        places.offset[tile & 1][0][threadIdx.x] = of_keys;
        places.offset[tile & 1][1][threadIdx.x] = of_values;
    };
    const Loader loader(p.head_dim, thread);
    const auto begin_keys = [&](int tile, int stage) {
        const int there = static_cast<int>(min(static_cast<int64_t>(kKeys), block.key_length - static_cast<int64_t>(tile) * kKeys));
        loader.begin(keys + stage * Shape::kTileBytes, c.cache.k, places.offset[tile & 1][0], c.cache.k_stride[1], there);
    };
    const auto begin_values = [&](int tile, int stage) {
        const int there = static_cast<int>(min(static_cast<int64_t>(kKeys), block.key_length - static_cast<int64_t>(tile) * kKeys));
        loader.begin(values + stage * Shape::kTileBytes, c.cache.v, places.offset[tile & 1][1], c.cache.v_stride[1], there);
    };

    AttentionWarp<T, Shape> warp;
    warp.reset();
    if (first_tile < end_tile) {
        const int last = end_tile - 1, first_stage = kStages > 1 ? last & 1 : 0;
        ask(last);
        ask(last - 1);
        async_copy_commit();
        async_copy_wait<0>();
        find(last);
        find(last - 1);
        __syncthreads();
        const T *const q = static_cast<const T *>(p.q) + block.batch * p.q_stride[0] +
                           (block.query_start + block.first_query) * p.q_stride[1] + block.head * p.q_stride[2];
        QueryLoader(q, p.q_stride[1], p.q_stride[3], p.head_dim, thread)
            .template begin<false>(queries, p.q_stride[1], p.q_stride[3], rows);
        ask(last - 2);
        begin_keys(last, first_stage);
        if (kStages > 1) begin_values(last, first_stage);
        async_copy_commit();
        if (p.negate) {
            async_copy_wait<0>();
            __syncthreads();
            negate_queries<Shape>(queries, thread);
        }
    }
    for (int tile = end_tile - 1; tile >= first_tile; --tile) {
        const int stage = kStages > 1 ? tile & 1 : 0;
        // What was begun before has come, and nobody uses what the next loads overwrite.
        async_copy_wait<0>();
        __syncthreads();
        const bool more = tile > first_tile;
        ask(tile - 3);
        const TileRange &sees = ranges[static_cast<int>(threadIdx.x) / 32];
        const bool seen = tile >= sees.first && tile < sees.end;
        const bool masked = tile < sees.full_first || tile >= sees.full_end;
        if (kStages == 1) {
            begin_values(tile, 0);
            async_copy_commit();
        } else if (more) {
            begin_keys(tile - 1, stage ^ 1);
            begin_values(tile - 1, stage ^ 1);
            async_copy_commit();
        }
        if constexpr (Rotation::kRotates) {
            for (int group = static_cast<int>(threadIdx.x) / 32; group < Places::kGroups; group += kAttentionThreads / 32) {
                rotation.rotate(rotary, keys + stage * Shape::kTileBytes + group * 16 * Tile<Shape::kDim>::kRowBytes,
                                static_cast<int64_t>(tile) * kKeys + 16 * group, static_cast<int>(threadIdx.x) % 32);
            }
            __syncthreads();
        }
        uint32_t weights[Shape::kM][kKeys / 8][2];
        float factor[Shape::kM][2];
        if (seen) {
            float s[Shape::kM][kKeys / 8][4];
            warp.logits(s, warp.query_address(queries), warp.key_address(keys + stage * Shape::kTileBytes));
            if (masked) {
                const int now = threadIdx.x;  // not what was held since the start: there is no register for it
                mask_logits<Shape>(s, block, now / 32 * 16 * Shape::kM, static_cast<int64_t>(tile) * kKeys, now % 32);
            }
            warp.weigh(weights, factor, s, p.scale_log2);
        }
        if (kStages == 1) {
            async_copy_wait<0>();
            __syncthreads();
            if (more) begin_keys(tile - 1, 0);
            async_copy_commit();
        }
        // The loads of this tile are begun, and nobody needs its places any more.
        find(tile - 2);
        if (seen) warp.add_values(weights, factor, warp.value_address(values + stage * Shape::kTileBytes), p.head_dim);
    }
    __syncthreads();
    if (bad) {
        if (p.status && thread == 0) atomicOr(p.status, bad);
        mark_bad_rows(c, block, part, rows);
        return;
    }
    if (thread == 0) block.batch += part * c.batches;
    __syncthreads();
    store_rows<T, Shape, true>(p, block, warp, queries);
}

}  // namespace longrope

// The kernels of a padded head dimension and an element type: over keys as they are, and over keys that are rotated while they
// are read.
#define LONGROPE_ATTENTION_CACHED(name, T, Shape)                                                                   \
    extern "C" __global__ void __launch_bounds__(longrope::kAttentionThreads, Shape::kBlocks)                       \
        longrope_attention_cached_##name(const __grid_constant__ longrope_cached_attention_params p) {              \
        longrope::attend_cached<T, Shape, longrope::KeysAsTheyAre>(p, {});                                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(longrope::kAttentionThreads, Shape::kBlocks)                       \
        longrope_attention_cached_rotating_##name(const __grid_constant__ longrope_cached_attention_rotating_params p) { \
        using Rotation = longrope::KeyRotation<T, Shape::kDim, longrope::kAttentionThreads, 0>;                     \
        longrope::attend_cached<T, Shape, Rotation>(p.cached, p.rotary);                                            \
    }
