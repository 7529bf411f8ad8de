// The gradients of the keys and values of attention, dK = scale dS^T q and dV = P^T dO, for every GPU since Ampere.
//
// A block of four warps takes tiles of kKeys keys of one key head and holds their gradients in registers. It walks over the tiles
// of kQueries queries that see one of them, of all query heads that share the key head, one head after the other: so the sum over
// the heads needs no memory, and has one order.
//
// Two warps, a pair, share 16 kM of the keys, since the gradients of both would take too many registers of one:
//
//                queries ->                          head dimension ->
//              +---------+---------+               +--+--+--+--+--+--+
//   a pair's   | warp 0  | warp 1  |   dK and dV   |0 |1 |0 |1 |0 |1 |    S^T = K Q^T    dP^T = V dO^T    by queries
//     keys     |         |         |               |  |  |  |  |  |  |    dV += P^T dO   dK += dS^T Q     by dimensions
//              +---------+---------+               +--+--+--+--+--+--+
//
// Each makes P^T and dS^T of half of the queries, rounds them, and leaves them in shared memory as the words of an operand, which
// are the same for every lane of either warp. Then each adds what all queries give to half of the dimensions: every other 16.
//
// Shared memory, in bytes, with D the head dimension padded to 64, 96, 128 or 256 (kDim):
//   K, V     kKeys * D * 2 each
//   Q, dO    kStages * kQueries * D * 2 each
//   P, dS    kKeys * kQueries * 2 each
//   dV, dK   kKeys * (D + 8) * 4, one after the other in place of all these, to be rotated and written by rows
#pragma once

#include "attention_backward.cuh"

namespace longrope {

// The sizes of a kernel.
template <int kDim_, int kM_, int kQueries_, int kStages_, int kBlocks_>
struct KeyGradientShape {
    static constexpr int kDim = kDim_;          // padded head dimension
    static constexpr int kM = kM_;              // blocks of 16 keys a pair of warps
    static constexpr int kKeys = 32 * kM_;      // keys a block
    static constexpr int kQueries = kQueries_;  // queries a tile
    static constexpr int kStages = kStages_;    // tiles of Q, and of dO, in shared memory
    static constexpr int kBlocks = kBlocks_;    // blocks a multiprocessor is to hold
    static constexpr int kSteps = kQueries / 16;
    static constexpr int kKeyBytes = kKeys * kDim * 2;
    static constexpr int kTileBytes = kQueries * kDim * 2;
    static constexpr int kWordBytes = kKeys * kQueries * 2;
    static constexpr int kSharedBytes = 2 * kKeyBytes + 2 * kStages * kTileBytes + 2 * kWordBytes;
    using Staged = StagedGradient<kDim, kKeys, kBackwardThreads>;
    static_assert(Staged::kBytes <= kSharedBytes);
    // What is declared beside it has 2 KiB.
    static_assert(kSharedBytes <= 97 * 1024, "more than GPUs of compute capability 8.6 and 8.9 have");
    static_assert(kQueries % 32 == 0 && kQueries <= kBackwardThreads, "warps of a pair take whole operands; a thread reads a row's");
};

// What a block shares beside its tiles.
template <class Shape>
struct KeyGradientShared {
    AttentionBlock block;                                                   // its head is the key head
    int set;                                                                // of the sequence's keys, by which they were rotated
    alignas(8) float lse[Shape::kStages][Shape::kQueries], delta[Shape::kStages][Shape::kQueries];
    float back[2][Shape::kKeys];  // of the rows of dS^T of each warp of a pair (attention_backward.cuh)
    // The tile of keys at hand: its first key, and the tiles of queries that see one of its keys, from the last on backwards.
    int64_t first_key, last_tile;
    int tiles;

    // The first of the queries of a step; each head of the group has `tiles` steps.
    __device__ __forceinline__ int64_t first_query(int step) const { return (last_tile - step % tiles) * Shape::kQueries; }

    // Takes the tile from `key` on.
    __device__ __forceinline__ void take(int64_t key) {
        const int64_t count = min(block.key_length - key, static_cast<int64_t>(Shape::kKeys));
        const QueryRange seeing = block.limits.seeing(key, count, block.query_length);
        first_key = key;
        last_tile = (seeing.end - 1) / Shape::kQueries;
        tiles = seeing.first < seeing.end ? static_cast<int>(last_tile - seeing.first / Shape::kQueries + 1) : 0;
    }
};

// A warp's part: a pair's keys, half of a tile's queries, half of the dimensions.
template <class T, class Shape>
struct KeyGradientWarp {
    static constexpr int kM = Shape::kM, kDim = Shape::kDim, kSteps = Shape::kSteps, kN = Shape::kQueries / 16;
    using Layout = Tile<kDim>;

    // [..][2 i + j]: dimensions 32 i + 16 half + 8 j on, `half` that of the warp in its pair.
    float dk[kM][kDim / 16][4], dv[kM][kDim / 16][4];

    static __device__ __forceinline__ int pair() { return static_cast<int>(threadIdx.x) / 64; }
    static __device__ __forceinline__ int half() { return static_cast<int>(threadIdx.x) / 32 % 2; }
    static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

    __device__ __forceinline__ void reset() {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int n = 0; n < kDim / 16; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) dk[m][n][i] = dv[m][n][i] = 0.0f;
            }
        }
    }

    // The words of P or dS: of a block of 16 keys of a pair and of 16 queries, a lane's four.
    static __device__ __forceinline__ uint4 *words_at(char *words, int m, int step) {
        return reinterpret_cast<uint4 *>(words) + ((pair() * kM + m) * kSteps + step) * 32 + lane();
    }

    // Leaves P^T and dS^T of the pair's keys and this warp's queries.
    static __device__ __forceinline__ void weigh(char *weights, char *d_logits, KeyGradientShared<Shape> &shared, int stage,
                                                 const char *keys, const char *values, const char *queries, const char *d_outs,
                                                 const MaskBand &tile_band, float c) {
        const int first_key = pair() * 16 * kM, first_query = half() * (Shape::kQueries / 2), t = lane() % 4;
        float s[kM][kN][4];
        product<T, kDim>(s, row_operand<Layout>(keys, first_key, lane()), column_operand<Layout>(queries, first_query, lane()));
        const MaskBand band = tile_band.from_row(first_key - first_query);
        // Queries that do not exist have no weights anyway.
        if (!band.shows_all(16 * kM, 8 * kN)) hide(s, band, 8 * kN, c, lane());
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            const float2 lse = *reinterpret_cast<const float2 *>(shared.lse[stage] + first_query + 8 * n + 2 * t);
            const float shift[2] = {exponent_of<T>(lse.x), exponent_of<T>(lse.y)};
#pragma unroll
            for (int m = 0; m < kM; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) s[m][n][i] = exp2_approx(fmaf(s[m][n][i], c, -shift[i % 2]));
            }
        }
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int n = 0; n < kN; n += 2) {
                uint32_t word[4];
                words_of<T>(word, s[m][n], s[m][n + 1]);
                *words_at(weights, m, half() * (kSteps / 2) + n / 2) = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
        {
            float dp[kM][kN][4];
            product<T, kDim>(dp, row_operand<Layout>(values, first_key, lane()), column_operand<Layout>(d_outs, first_query, lane()));
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const int at = first_query + 8 * n + 2 * t;
                const float2 lse = *reinterpret_cast<const float2 *>(shared.lse[stage] + at);
                const float2 delta = *reinterpret_cast<const float2 *>(shared.delta[stage] + at);
                const float of[2] = {lse.x == -INFINITY ? 0.0f : delta.x, lse.y == -INFINITY ? 0.0f : delta.y};
#pragma unroll
                for (int m = 0; m < kM; ++m) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[m][n][i] *= dp[m][n][i] - of[i % 2];
                }
            }
        }
        uint32_t ds[kM][kN / 2][4];
        float back[kM][2];
        round_gradients<T>(ds, back, s);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int step = 0; step < kN / 2; ++step) {
                *words_at(d_logits, m, half() * (kSteps / 2) + step) =
                    make_uint4(ds[m][step][0], ds[m][step][1], ds[m][step][2], ds[m][step][3]);
            }
            if (kScalesLogits<T> && t == 0) {
#pragma unroll
                for (int i = 0; i < 2; ++i) shared.back[half()][first_key + 16 * m + 8 * i + lane() / 4] = back[m][i];
            }
        }
    }

    // x = x + A^T B, over kCount operands' rows of a tile from operand `first` on, each row of A times `back`.
    template <int kCount>
    static __device__ __forceinline__ void add(float (&x)[kM][kDim / 16][4], char *words, int first, const char *tile,
                                               const float (&back)[kM][2], int head_dim) {
        uint32_t a[kM][kCount][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int step = 0; step < kCount; ++step) {
                const uint4 word = *words_at(words, m, first + step);
                a[m][step][0] = word.x, a[m][step][1] = word.y, a[m][step][2] = word.z, a[m][step][3] = word.w;
            }
        }
        const uint32_t rows = summed_operand<Layout>(tile, 2 * half(), lane()) + 16 * first * Layout::kRowBytes;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) {
            // Also keeps the assembler from loading rows so early that it runs out of registers.
            if (32 * i >= head_dim) break;
            float sum[kM][2][4];
            sum_rows<T, Layout::kRowBytes>(sum, a, Layout::advance(rows, 4 * i));
#pragma unroll
            for (int m = 0; m < kM; ++m) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) x[m][2 * i + j][e] = fmaf(sum[m][j][e], back[m][e / 2], x[m][2 * i + j][e]);
                }
            }
        }
    }

    // Adds what a tile's queries give to this warp's dimensions.
    __device__ __forceinline__ void add_tile(char *weights, char *d_logits, const KeyGradientShared<Shape> &shared,
                                             const char *queries, const char *d_outs, int head_dim) {
        float back[kM][2];
#pragma unroll
        for (int m = 0; m < kM; ++m) back[m][0] = back[m][1] = 1.0f;
        add<kSteps>(dv, weights, 0, d_outs, back, head_dim);
        if constexpr (kScalesLogits<T>) {
            // The warps of a pair had powers of two of their own.
#pragma unroll
            for (int part = 0; part < 2; ++part) {
#pragma unroll
                for (int m = 0; m < kM; ++m) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) back[m][i] = shared.back[part][pair() * 16 * kM + 16 * m + 8 * i + lane() / 4];
                }
                add<kSteps / 2>(dk, d_logits, part * (kSteps / 2), queries, back, head_dim);
            }
        } else {
            add<kSteps>(dk, d_logits, 0, queries, back, head_dim);
        }
    }

    // Puts the gradients into shared memory, times a factor.
    static __device__ __forceinline__ void stage(const float (&x)[kM][kDim / 16][4], const typename Shape::Staged &staged, float factor) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int n = 0; n < kDim / 16; ++n) {
                const int dim = 32 * (n / 2) + 16 * half() + n % 2 * 8 + lane() % 4 * 2;
#pragma unroll
                for (int row_half = 0; row_half < 2; ++row_half) {
                    staged.put(pair() * 16 * kM + 16 * m + 8 * row_half + lane() / 4, dim, x[m][n][2 * row_half] * factor,
                               x[m][n][2 * row_half + 1] * factor);
                }
            }
        }
    }
};

template <class T, class Shape, bool kVector>
__device__ __forceinline__ void gradients_of_keys(const longrope_attention_backward_params &b) {
    constexpr int kDim = Shape::kDim, kKeys = Shape::kKeys, kQueries = Shape::kQueries, kStages = Shape::kStages;
    const longrope_attention_params &p = b.attention;
    extern __shared__ __align__(128) char shared_bytes[];
    char *const keys = shared_bytes;
    char *const values = keys + Shape::kKeyBytes;
    char *const queries = values + Shape::kKeyBytes;
    char *const d_outs = queries + kStages * Shape::kTileBytes;
    char *const weights = d_outs + kStages * Shape::kTileBytes;
    char *const d_logits = weights + Shape::kWordBytes;
    __shared__ KeyGradientShared<Shape> shared;
    AttentionBlock &block = shared.block;

    // Blocks of a key head come together, since they read the same queries; those with the first keys, which under a causal mask
    // the most queries see, come first.
    const uint32_t blocks = static_cast<uint32_t>(b.key_blocks), heads = static_cast<uint32_t>(b.key_heads);
    if (threadIdx.x == 0) {
        block.head = static_cast<int>(blockIdx.x / blocks % heads);
        block.first_query = 0;
        block.read_sequence(p, blockIdx.x / blocks / heads);
        shared.set = gradient_set(b, block, blockIdx.x / blocks / heads);
    }
    __syncthreads();
    if (block.is_bad) {
        if (p.status && threadIdx.x == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_SEQUENCE);
        return;
    }

    // Begins to load what a step needs: the tiles of queries of a head from the last on backwards, head after head.
    const auto begin = [&](int step, int stage) {
        const int thread = threadIdx.x, head = block.head * p.group + step / shared.tiles;
        const int64_t query = shared.first_query(step);
        const int64_t row = block.query_start + query, there = block.query_length - query;
        load_rows<T, kDim, kQueries, kVector>(queries + stage * Shape::kTileBytes, p.q, p.q_stride, block.batch, row, head, there,
                                              p.head_dim, thread);
        load_rows<T, kDim, kQueries, kVector>(d_outs + stage * Shape::kTileBytes, b.d_out, b.d_out_stride, block.batch, row, head,
                                              there, p.head_dim, thread);
        if (thread < kQueries) {
            float *const lse = shared.lse[stage] + thread, *const delta = shared.delta[stage] + thread;
            if (thread < there) {
                async_copy_4(lse, p.lse + block.batch * p.lse_stride[0] + (row + thread) * p.lse_stride[1] + head * p.lse_stride[2]);
                async_copy_4(delta, b.delta + block.batch * b.delta_stride[0] + (row + thread) * b.delta_stride[1] +
                                        head * b.delta_stride[2]);
            } else {
                *lse = -INFINITY;
                *delta = 0.0f;
            }
        }
        async_copy_commit();
    };

    const int64_t block_key = static_cast<int64_t>(blockIdx.x % blocks) * kKeys;
    if (block_key >= block.key_length) return;
    if (shared.set == kBadSet) {
        if (p.status && threadIdx.x == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
        return;
    }
    if (threadIdx.x == 0) shared.take(block_key);
    __syncthreads();
#pragma unroll 1
    while (shared.first_key < block.key_length) {
        KeyGradientWarp<T, Shape> warp;
        warp.reset();
        if (shared.tiles > 0) {
            const int64_t row = block.key_start + shared.first_key, there = block.key_length - shared.first_key;
            load_rows<T, kDim, kKeys, kVector>(keys, p.k, p.k_stride, block.batch, row, block.head, there, p.head_dim, threadIdx.x);
            load_rows<T, kDim, kKeys, kVector>(values, p.v, p.v_stride, block.batch, row, block.head, there, p.head_dim, threadIdx.x);
            begin(0, 0);
        }
#pragma unroll 1
        for (int step = 0; step < p.group * shared.tiles; ++step) {
            const int stage = kStages > 1 ? step & 1 : 0;
            // What was begun before has come, and nobody uses what the next loads overwrite.
            async_copy_wait<0>();
            __syncthreads();
            if (kStages > 1 && step + 1 < p.group * shared.tiles) begin(step + 1, stage ^ 1);
            const MaskBand band = MaskBand::of_keys(block.limits, shared.first_key - shared.first_query(step));
            const char *const q = queries + stage * Shape::kTileBytes, *const d_out = d_outs + stage * Shape::kTileBytes;
            warp.weigh(weights, d_logits, shared, stage, keys, values, q, d_out, band, copysignf(p.scale_log2, b.scale));
            __syncthreads();
            warp.add_tile(weights, d_logits, shared, q, d_out, p.head_dim);
            if (kStages == 1 && step + 1 < p.group * shared.tiles) {
                __syncthreads();
                begin(step + 1, 0);
            }
        }
        // By rows, in place of the tiles.
        const auto write = [&](const auto &gradient, const GradientOut &out, float factor, bool rotates) {
            const typename Shape::Staged staged{reinterpret_cast<float *>(shared_bytes)};
            __syncthreads();  // nobody reads what lies there
            warp.stage(gradient, staged, factor);
            __syncthreads();
            if (rotates) {
                staged.transpose(b.rotary, shared.set, key_position(p, shared.first_key), threadIdx.x);
                __syncthreads();
            }
            staged.template store<T, kVector>(out, shared.first_key, block.key_length - shared.first_key, p.head_dim, threadIdx.x);
        };
        const float bias = exp2f(-kWeightBias<T>);
        write(warp.dv, GradientOut(b.dv, b.dv_stride, block.batch, block.key_start, block.head, b.dv_is_f32, b.accumulate), bias, false);
        write(warp.dk, GradientOut(b.dk, b.dk_stride, block.batch, block.key_start, block.head, b.dk_is_f32, b.accumulate),
              b.scale * bias, b.rotates);
        __syncthreads();  // nobody reads what lies in place of the tiles, or which keys these are
        if (threadIdx.x == 0) shared.take(shared.first_key + static_cast<int64_t>(blocks) * kKeys);
        __syncthreads();
    }
}

}  // namespace longrope

// The kernels for a padded head dimension: element type x whether 16 bytes can be moved at once.
#define LONGROPE_ATTENTION_BACKWARD_SM80(name, T, QueryShape, KeyShape, vector)                                       \
    extern "C" __global__ void __launch_bounds__(longrope::kBackwardThreads, QueryShape::kBlocks)                     \
        longrope_attention_backward_queries_##name(const __grid_constant__ longrope_attention_backward_params p) {    \
        longrope::gradients_of_queries<T, QueryShape, vector>(p);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(longrope::kBackwardThreads, KeyShape::kBlocks)                       \
        longrope_attention_backward_keys_##name(const __grid_constant__ longrope_attention_backward_params p) {       \
        longrope::gradients_of_keys<T, KeyShape, vector>(p);                                                          \
    }
