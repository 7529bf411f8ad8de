// The sizes of a decoding kernel, and how a warp loads the keys and values of its steps.
#pragma once

#include "decode_schedule.cuh"
#include "tile.cuh"

namespace longrope {

// The sizes of a kernel.
template <int kDim_, int kRows_>
struct DecodeShape {
    static constexpr int kDim = kDim_;                   // padded head dimension
    static constexpr int kRows = kRows_;                 // rows of queries an item, at most
    static constexpr int kN = kRows / 8;                 // blocks of 8 of them
    static constexpr int kWarps = kDim > 128 ? 2 : 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kTileKeys = 16 * kWarps;
    static constexpr int kHalfBytes = 16 * kDim * 2;     // keys or values of a step
    static constexpr int kSharedBytes = 96 * 1024;
    static constexpr int kStages = kSharedBytes / (kWarps * 2 * kHalfBytes);
    static constexpr int kOutputStride = kDim + 4;       // rows two apart lie eight banks apart
    // Where registers suffice to hold angles from one step to the next (key_rotation.cuh).
    static constexpr int kRotationStep = kDim == 256 || kRows == 32 ? 0 : kTileKeys;
    static_assert(kRows % 8 == 0 && kStages >= 3);
    static_assert(kWarps * kRows * kOutputStride * 4 <= kSharedBytes);
};

// The steps of a warp through its keys of a segment, and the loads that feed them.
template <class T, class Shape>
struct DecodeLoads {
    using Layout = Tile<Shape::kDim>;
    static constexpr int kPasses = Layout::kChunks / 2;  // chunks of 16 keys that a lane loads
    // Rows that a warp loads in a pass, where those are whole.
    static constexpr bool kWholeRows = 32 % Layout::kChunks == 0;
    static constexpr int kRowsAPass = kWholeRows ? 32 / Layout::kChunks : 1;

    const longrope_cache *cache;
    const char *ring;
    int64_t sequence, length, first_key;
    int head, head_dim, steps, lane;
    int ids, next_ids;  // pages of 32 steps, and of the 32 after them; lane l has that of step l
    uint32_t bad;       // bits of longrope_device_status
    // Of the first row of a sequence or page, this lane's first chunk: of keys, of values.
    const T *first[2];

    __device__ __forceinline__ int fetch(int step) const {
        step += lane;
        if (!cache->page_table || step >= steps) return 0;
        const uint32_t key = static_cast<uint32_t>(first_key) + step * Shape::kTileKeys;
        return cache->page_table[sequence * cache->table_stride + key / static_cast<uint32_t>(cache->page_size)];
    }

    __device__ __forceinline__ void start() {
        bad = 0;
        const int row = kWholeRows ? lane / Layout::kChunks : 0, dim = kWholeRows ? lane % Layout::kChunks * 8 : 0;
        first[0] = static_cast<const T *>(cache->k) + head * cache->k_stride[2] + row * cache->k_stride[1] + dim;
        first[1] = static_cast<const T *>(cache->v) + head * cache->v_stride[2] + row * cache->v_stride[1] + dim;
        ids = fetch(0);
        next_ids = fetch(32);
    }

    // Begins to load the keys, or the values, of a step, if there is one. Steps are to come in order, of each the keys first.
    template <bool kValues>
    __device__ __forceinline__ void begin(int step, int stage) {
        if (step < steps) {
            if (!kValues && step % 32 == 0 && step > 0) {
                ids = next_ids;
                next_ids = fetch(step + 32);
            }
            const int64_t key = first_key + static_cast<int64_t>(step) * Shape::kTileKeys;
            int64_t page = sequence, row = key;
            if (cache->page_table) {
                page = __shfl_sync(0xffffffff, ids, step % 32);
                row = static_cast<uint32_t>(key) % static_cast<uint32_t>(cache->page_size);
            }
            int rows = static_cast<int>(min(length - key, int64_t{16}));
            if (page < 0 || page >= cache->pages) {
                bad = LONGROPE_DEVICE_BAD_PAGE;
                rows = 0;
            }
            const int64_t(&stride)[4] = kValues ? cache->v_stride : cache->k_stride;
            copy(shared_address(ring) + stage * 2 * Shape::kHalfBytes + kValues * Shape::kHalfBytes,
                 first[kValues] + page * stride[0] + row * stride[1], stride[1], rows);
        }
        async_copy_commit();
    }

    // Copies so many rows, and zeros in place of the rest of 16.
    __device__ __forceinline__ void copy(uint32_t to, const T *from, int64_t row_stride, int rows) const {
        if constexpr (kWholeRows) {
            const int row = lane / Layout::kChunks, chunk = lane % Layout::kChunks;
            const int left = chunk * 8 < head_dim ? rows - row : 0;
            to += Layout::at(row, chunk);
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                // The bits of this row and of the pass are others, so that their swizzles add up.
                const int r = pass * kRowsAPass;
                async_copy_16_or_zero((to ^ Layout::swizzle(r) << 4) + r * Layout::kRowBytes, from, r < left);
                from += kRowsAPass * row_stride;
            }
        } else {
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                const int i = pass * 32 + lane, r = i / Layout::kChunks, chunk = i % Layout::kChunks;
                async_copy_16_or_zero(to + Layout::at(r, chunk), from + r * row_stride + chunk * 8, r < rows && chunk * 8 < head_dim);
            }
        }
    }
};

}  // namespace longrope
