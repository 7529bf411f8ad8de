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
    int steps, lane;
    // Of keys and of values, where this lane's first chunk lies, or its row where rows are not whole: of the next step, or of the first row
    // of the first page.
    const T *from[2];
    // Of the step whose keys were asked for last: its row in its page, which moves on by so many; and how many rows it has, as the last
    // step has.
    int row, row_step, rows, last_rows;
    int64_t page;
    int ids, next_ids;  // pages of 32 steps, and of the 32 after them; lane l has that of step l
    uint32_t bad;       // bits of longrope_device_status
    int head_dim;
    bool has_chunk;     // whether this lane's chunk is of the head dimension

    DecodeLoads() = default;

    // Reads nothing from memory.
    __device__ __forceinline__ DecodeLoads(const longrope_cache &cache_, char *ring_, int64_t sequence_, int64_t length_,
                                           int64_t first_key_, int steps_, int head, int head_dim_, int lane_)
        : cache(&cache_), ring(ring_), sequence(sequence_), length(length_), first_key(first_key_), steps(steps_), lane(lane_), row(0),
          row_step(0), rows(0), page(0), ids(0), next_ids(0), bad(0), head_dim(head_dim_) {
        const int chunk = kWholeRows ? lane % Layout::kChunks : 0, own_row = kWholeRows ? lane / Layout::kChunks : 0;
        has_chunk = chunk * 8 < head_dim;
        from[0] = static_cast<const T *>(cache->k) + head * cache->k_stride[2] + own_row * cache->k_stride[1] + chunk * 8;
        from[1] = static_cast<const T *>(cache->v) + head * cache->v_stride[2] + own_row * cache->v_stride[1] + chunk * 8;
        last_rows = static_cast<int>(min(length - first_key - static_cast<int64_t>(steps - 1) * Shape::kTileKeys, int64_t{16}));
        if (cache->page_table) {
            const uint32_t size = static_cast<uint32_t>(cache->page_size);
            row_step = Shape::kTileKeys % size;
            row = static_cast<uint32_t>(first_key) % size;
            row -= row_step;  // before the first step
        } else {
            from[0] += sequence * cache->k_stride[0] + first_key * cache->k_stride[1];
            from[1] += sequence * cache->v_stride[0] + first_key * cache->v_stride[1];
        }
    }

    __device__ __forceinline__ int fetch(int step) const {
        step += lane;
        if (!cache->page_table || step >= steps) return 0;
        const uint32_t key = static_cast<uint32_t>(first_key) + step * Shape::kTileKeys;
        return cache->page_table[sequence * cache->table_stride + key / static_cast<uint32_t>(cache->page_size)];
    }

    // To be called before the first step.
    __device__ __forceinline__ void start() {
        ids = fetch(0);
        next_ids = fetch(32);
    }

    // Begins to load the keys, or the values, of a step, if there is one. Steps are to come in order, of each the keys first.
    template <bool kValues>
    __device__ __forceinline__ void begin(int step, int stage) {
        if (step < steps) {
            if (!kValues) go_to(step);
            const int64_t(&stride)[4] = kValues ? cache->v_stride : cache->k_stride;
            const T *at = from[kValues];
            if (cache->page_table) {
                at += page * stride[0] + row * stride[1];
            } else {
                from[kValues] += Shape::kTileKeys * stride[1];
            }
            copy(shared_address(ring) + stage * 2 * Shape::kHalfBytes + kValues * Shape::kHalfBytes, at, stride[1]);
        }
        async_copy_commit();
    }

    __device__ __forceinline__ void go_to(int step) {
        rows = step + 1 < steps ? 16 : last_rows;
        if (!cache->page_table) return;
        if (step % 32 == 0 && step > 0) {
            ids = next_ids;
            next_ids = fetch(step + 32);
        }
        page = __shfl_sync(0xffffffff, ids, step % 32);
        row += row_step;
        if (row >= cache->page_size) row -= cache->page_size;
        if (page < 0 || page >= cache->pages) {
            bad = LONGROPE_DEVICE_BAD_PAGE;
            rows = 0;
        }
    }

    // Copies the rows of the step, and zeros in place of the rest of 16.
    __device__ __forceinline__ void copy(uint32_t to, const T *at, int64_t row_stride) const {
        if constexpr (kWholeRows) {
            const int own_row = lane / Layout::kChunks;
            const int left = has_chunk ? rows - own_row : 0;
            to += Layout::at(own_row, lane % Layout::kChunks);
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                // The bits of this row and of the pass are others, so that their swizzles add up.
                const int r = pass * kRowsAPass;
                async_copy_16_or_zero((to ^ Layout::swizzle(r) << 4) + r * Layout::kRowBytes, at, r < left);
                at += kRowsAPass * row_stride;
            }
        } else {
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                const int i = pass * 32 + lane, r = i / Layout::kChunks, chunk = i % Layout::kChunks;
                async_copy_16_or_zero(to + Layout::at(r, chunk), at + r * row_stride + chunk * 8, r < rows && chunk * 8 < head_dim);
            }
        }
    }
};

}  // namespace longrope
