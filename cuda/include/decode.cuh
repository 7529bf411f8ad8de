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
#include "key_rotation.cuh"
#include "dependent_launch.cuh"
#include "mma.cuh"
#include "softmax.cuh"
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

// Part of an item: some of its tiles.
struct DecodeSegment {
    DecodeItem item;
    int64_t first_tile, tiles;  // by their number in the sequence
    int64_t slot;               // of the partial result, or -1: it is the whole
};

// One of the rows that a lane has in a product: all lanes of one l % 4 hold it alike, but for the sum of their own keys.
struct ColumnState {
    float maximum, sum;

    __device__ __forceinline__ float finite() const { return maximum == -INFINITY ? 0.0f : maximum; }

    // Takes the logits of this lane's two keys; returns the factor of what was summed before.
    __device__ __forceinline__ float raise(float a, float b, float c) {
        float largest = fmaxf(a, b);
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
        }
        const float before = maximum;
        maximum = fmaxf(before, largest * c);
        const float factor = exp2_approx(before - finite());
        sum *= factor;
        return factor;
    }

    __device__ __forceinline__ float total() const {
        float all = sum;
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) all += __shfl_xor_sync(0xffffffff, all, distance);
        return all;
    }
};

// The steps of a warp through its keys of a segment, and the loads that feed them.
template <class T, class Shape>
struct DecodeLoads {
    using Layout = Tile<Shape::kDim>;
    static constexpr int kPasses = Layout::kChunks / 2;  // chunks of 16 keys that a lane loads

    const longrope_cache &cache;
    const char *ring;
    int64_t sequence, length, first_key;
    int head, head_dim, steps, lane;
    int ids, next_ids;  // pages of 32 steps, and of the 32 after them; lane l has that of step l
    uint32_t bad;       // bits of longrope_device_status

    __device__ __forceinline__ int fetch(int step) const {
        step += lane;
        if (!cache.page_table || step >= steps) return 0;
        const uint32_t key = static_cast<uint32_t>(first_key) + step * Shape::kTileKeys;
        return cache.page_table[sequence * cache.table_stride + key / static_cast<uint32_t>(cache.page_size)];
    }

    __device__ __forceinline__ void start() {
        bad = 0;
        ids = fetch(0);
        next_ids = fetch(32);
    }

    // Begins to load the keys and values of a step, if there is one. Steps are to come in order.
    __device__ __forceinline__ void begin(int step, int stage) {
        if (step < steps) {
            if (step % 32 == 0 && step > 0) {
                ids = next_ids;
                next_ids = fetch(step + 32);
            }
            const int64_t key = first_key + static_cast<int64_t>(step) * Shape::kTileKeys;
            int64_t page = sequence, row = key;
            if (cache.page_table) {
                page = __shfl_sync(0xffffffff, ids, step % 32);
                row = static_cast<uint32_t>(key) % static_cast<uint32_t>(cache.page_size);
            }
            int rows = static_cast<int>(min(length - key, int64_t{16}));
            if (page < 0 || page >= cache.pages) {
                bad = LONGROPE_DEVICE_BAD_PAGE;
                rows = 0;
            }
            const T *const k = static_cast<const T *>(cache.k) + page * cache.k_stride[0] + row * cache.k_stride[1] +
                               head * cache.k_stride[2];
            const T *const v = static_cast<const T *>(cache.v) + page * cache.v_stride[0] + row * cache.v_stride[1] +
                               head * cache.v_stride[2];
            const uint32_t to = shared_address(ring) + stage * 2 * Shape::kHalfBytes;
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                const int i = pass * 32 + lane, r = i / Layout::kChunks, chunk = i % Layout::kChunks;
                const bool there = r < rows && chunk * 8 < head_dim;
                async_copy_16_or_zero(to + Layout::at(r, chunk), k + r * cache.k_stride[1] + chunk * 8, there);
            }
#pragma unroll
            for (int pass = 0; pass < kPasses; ++pass) {
                const int i = pass * 32 + lane, r = i / Layout::kChunks, chunk = i % Layout::kChunks;
                const bool there = r < rows && chunk * 8 < head_dim;
                async_copy_16_or_zero(to + Shape::kHalfBytes + Layout::at(r, chunk), v + r * cache.v_stride[1] + chunk * 8, there);
            }
        }
        async_copy_commit();
    }
};

// The queries of an item and what a warp has summed for them.
template <class T, class Shape>
struct DecodeWarp {
    static constexpr int kN = Shape::kN, kSteps = Shape::kDim / 16;
    using Layout = Tile<Shape::kDim>;

    uint32_t q[kN][kSteps][2];
    float output[kSteps][kN][4];
    ColumnState column[kN][2];

    __device__ __forceinline__ void start(const longrope_decode_params &p, const DecodeItem &item, int lane) {
        const uint32_t sign = p.negate ? 0x80008000u : 0;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            const int row = 8 * n + lane / 4;
            const T *const from = static_cast<const T *>(p.q) + (row < item.rows ? item.offset(p, p.q_stride, row) : 0);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int dim = 16 * step + 8 * half;
                    q[n][step][half] = 0;
                    if (row < item.rows && dim < p.head_dim) {
                        q[n][step][half] = *reinterpret_cast<const uint32_t *>(from + dim + lane % 4 * 2) ^ sign;
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) output[step][n][i] = 0.0f;
            }
            column[n][0] = column[n][1] = ColumnState{-INFINITY, 0.0f};
        }
    }

    // Adds 16 keys and values, from `key` on.
    __device__ __forceinline__ void step(const longrope_decode_params &p, const DecodeItem &item, const char *tile, int64_t key,
                                         bool masked, int lane) {
        float s[kN][4];
        const uint32_t keys = shared_address(tile) + Layout::at(lane % 16, lane / 16);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t a[4];
            load_matrices(a, Layout::advance(keys, 2 * step));
#pragma unroll
            for (int n = 0; n < kN; ++n) mma(s[n], a, q[n][step][0], q[n][step][1], step == 0, T());
        }
        if (masked) mask(s, p, item, key, lane);
        uint32_t weights[kN][2];
        float factor[kN][2];
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                ColumnState &one = column[n][i];
                factor[n][i] = one.raise(s[n][i], s[n][2 + i], p.scale_log2);
                const float shift = kWeightBias<T> - one.finite();
                x[i] = exp2_approx(fmaf(s[n][i], p.scale_log2, shift));
                x[2 + i] = exp2_approx(fmaf(s[n][2 + i], p.scale_log2, shift));
                one.sum += x[i] + x[2 + i];
            }
            weights[n][0] = transposed(pack(x[0], x[1], T()));
            weights[n][1] = transposed(pack(x[2], x[3], T()));
        }
        const uint32_t values = shared_address(tile) + Shape::kHalfBytes + Layout::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t a[4];
            load_matrices_transposed(a, Layout::advance(values, 2 * step));
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                float sum[4];
                mma(sum, a, weights[n][0], weights[n][1], true, T());
#pragma unroll
                for (int i = 0; i < 4; ++i) output[step][n][i] = fmaf(output[step][n][i], factor[n][i % 2], sum[i]);
            }
        }
    }

    // Masks what the rows of this lane do not see.
    static __device__ __forceinline__ void mask(float (&s)[kN][4], const longrope_decode_params &p, const DecodeItem &item,
                                                int64_t key, int lane) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int64_t at = key + lane / 4 + i / 2 * 8;
                const int64_t position = item.sequence.first_position() + item.token(p, 8 * n + lane % 4 * 2 + i % 2);
                if (at > position || (p.window > 0 && at <= position - p.window)) s[n][i] = -INFINITY;
            }
        }
    }

    // An 8 x 8 matrix of 16-bit elements, held as products leave them, transposed.
    static __device__ __forceinline__ uint32_t transposed(uint32_t x) {
        uint32_t y;
        asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
        return y;
    }
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
