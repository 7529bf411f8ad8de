// Attention forward by blocks of queries, on Hopper's tensor cores.
//
//   out = softmax(scale q k^T + mask) v        query head h reads key head h / group
//
// A block is one warpgroup that loads and kConsumers that compute, each on 64 queries of the same head. All walk over the same
// tiles of 128 keys, from the last to the first, with the online softmax of softmax.cuh.
//
//   loader      K0 and Q | K1 | V0 | K2 | V1 | ...      16-byte asynchronous copies into two rings
//   consumer    S = Q K0 | softmax of S             | S = Q K1                       | softmax of S | ...
//                                                   | O += P V0, under way the while  ->            | O scaled, ...
//
// A consumer begins the logits of the next tile and the output of this one together, and turns logits into weights while the
// output is still being summed. S, P and O stay in its registers; Q, K and V are read from shared memory by the products.
//
// Sums do not drift. These tensor cores cut off as they accumulate, which over a million keys makes outputs one percent too
// small; so every kFoldTiles tiles a consumer adds O to a sum of its own in shared memory, by an FMA that rounds, and starts
// from zero.
//
// Shared memory, in bytes, D the padded head dimension (64 or 128), R = 64 kConsumers:
//   Q     R * D * 2                 tiles are columns of 64, each of rows of 128 bytes (wgmma.cuh)
//   K, V  kStages * 128 * D * 2 each
//   sums  R * D * 4                 by thread: [element][thread]
#pragma once

#include "attention_block.cuh"
#include "async_copy.cuh"
#include "elements.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "softmax.cuh"
#include "tile.cuh"
#include "wgmma.cuh"

namespace longrope {

// The sizes of a kernel.
template <int kDim_, int kConsumers_, int kStages_>
struct HopperShape {
    static constexpr int kDim = kDim_;              // padded head dimension
    static constexpr int kConsumers = kConsumers_;  // warpgroups that compute
    static constexpr int kStages = kStages_;        // tiles of K, and of V, in shared memory
    static constexpr int kKeys = 128;               // keys a tile
    static constexpr int kM = 1;                    // blocks of 16 queries a warp
    static constexpr int kRows = 64 * kConsumers;   // queries a block
    static constexpr int kThreads = 128 * (kConsumers + 1);
    static constexpr int kTileBytes = kKeys * kDim * 2;
    static constexpr int kSumBytes = kRows * kDim * 4;
    // 1 KiB for the alignment of tiles.
    static constexpr int kSharedBytes = 1024 + kRows * kDim * 2 + 2 * kStages * kTileBytes + kSumBytes;
    // 4,096 keys: the products cut off less than 4e-5 of the sum in as many.
    static constexpr int kFoldTiles = 32;
    // Registers a thread, of 64 Ki for a block.
    static constexpr int kLoaderRegisters = kConsumers == 3 ? 32 : 40;
    static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232;
    static_assert(kSharedBytes <= 231 * 1024, "more than a multiprocessor gives, beside the barriers");
};

// What a thread of the loader copies of every tile: one chunk of each kRowsAPass-th row, from the last row to the first. Rows
// and dimensions that are not there are filled with zeros.
template <class T, int kDim, int kRows>
struct HopperLoader {
    static constexpr int kChunks = kDim / 8, kRowsAPass = 128 / kChunks, kPasses = kRows / kRowsAPass;

    const T *from;    // what this thread copies next
    int row;          // this thread's row in a pass
    bool has_dims;    // whether its chunk is within the head dimension
    uint32_t offset;  // bytes to its chunk in pass 0

    // `tile`: the first row of the last tile of a head.
    __device__ __forceinline__ HopperLoader(const T *tile, int64_t row_stride, int head_dim, int thread) {
        const int chunk = thread % kChunks;
        row = thread / kChunks;
        from = tile + (kRows - kRowsAPass + row) * row_stride + chunk * 8;
        has_dims = chunk * 8 < head_dim;
        offset = chunk / 8 * kRows * 128 + row * 128 + ((chunk ^ row) % 8 << 4);
    }

    // Begins to load a tile, of which the first `rows` rows are there, or all if kWhole.
    template <bool kWhole>
    __device__ __forceinline__ void begin(uint32_t tile, int64_t row_stride, int rows) {
#pragma unroll
        for (int pass = kPasses - 1; pass >= 0; --pass, from -= kRowsAPass * row_stride) {
            const bool there = kWhole || row + pass * kRowsAPass < rows;
            async_copy_16_or_zero(tile + offset + pass * kRowsAPass * 128, from, there && has_dims);
        }
    }
};

// Where things lie in shared memory, and the barriers of the rings: a tile is full when the loader has filled it, and empty
// when every consumer has read it.
template <class Shape>
struct HopperShared {
    uint32_t queries, keys, values, sums, barriers;

    static constexpr int kBarriers = 4 * Shape::kStages;

    __device__ __forceinline__ HopperShared(const char *dynamic, const uint64_t *barrier_words) {
        queries = (shared_address(dynamic) + 1023) / 1024 * 1024;
        keys = queries + Shape::kRows * Shape::kDim * 2;
        values = keys + Shape::kStages * Shape::kTileBytes;
        sums = values + Shape::kStages * Shape::kTileBytes;
        barriers = shared_address(barrier_words);
    }

    __device__ __forceinline__ uint32_t keys_full(int stage) const { return barriers + 8 * stage; }
    __device__ __forceinline__ uint32_t values_full(int stage) const { return barriers + 8 * (Shape::kStages + stage); }
    __device__ __forceinline__ uint32_t keys_empty(int stage) const { return barriers + 8 * (2 * Shape::kStages + stage); }
    __device__ __forceinline__ uint32_t values_empty(int stage) const { return barriers + 8 * (3 * Shape::kStages + stage); }

    // By one thread.
    __device__ __forceinline__ void set_up() const {
        for (int stage = 0; stage < Shape::kStages; ++stage) {
            barrier_init(keys_full(stage), 128);
            barrier_init(values_full(stage), 128);
            barrier_init(keys_empty(stage), Shape::kConsumers);
            barrier_init(values_empty(stage), Shape::kConsumers);
        }
        barrier_init_done();
    }
};

// The stage of the i-th tile, and the parity of its round through the ring.
template <class Shape>
struct Turn {
    int stage, parity;

    __device__ __forceinline__ explicit Turn(int tile) {
        stage = tile % Shape::kStages;
        parity = tile / Shape::kStages & 1;
    }
};

// What the loader does. A tile is declared full two batches after it was begun, when its copies have come.
template <class T, class Shape>
__device__ __forceinline__ void load_tiles(const longrope_attention_params &p, const AttentionBlock &block,
                                           const HopperShared<Shape> &shared, const TileRange &all, int thread) {
    using Turn = Turn<Shape>;
    constexpr int kKeys = Shape::kKeys;
    const int tiles = all.end - all.first;
    const int rows = static_cast<int>(min(static_cast<int64_t>(Shape::kRows), block.query_length - block.first_query));
    const int64_t last_key = static_cast<int64_t>(all.end - 1) * kKeys;
    const int there = static_cast<int>(min(static_cast<int64_t>(kKeys), block.key_length - last_key));
    const T *const q = static_cast<const T *>(p.q) + block.batch * p.q_stride[0] +
                       (block.query_start + block.first_query) * p.q_stride[1] + block.head * p.q_stride[2];
    const auto last_tile = [&](const void *tensor, const int64_t(&stride)[4]) {
        return static_cast<const T *>(tensor) + block.batch * stride[0] + (block.key_start + last_key) * stride[1] +
               block.head / p.group * stride[2];
    };
    const auto declare = [&](uint32_t barrier) {
        fence_for_tensor_cores();
        barrier_arrive(barrier);
    };

    HopperLoader<T, Shape::kDim, Shape::kRows>(q, p.q_stride[1], p.head_dim, thread)
        .template begin<false>(shared.queries, p.q_stride[1], rows);
    HopperLoader<T, Shape::kDim, kKeys> keys(last_tile(p.k, p.k_stride), p.k_stride[1], p.head_dim, thread);
    HopperLoader<T, Shape::kDim, kKeys> values(last_tile(p.v, p.v_stride), p.v_stride[1], p.head_dim, thread);
    keys.template begin<false>(shared.keys, p.k_stride[1], there);
    async_copy_commit();
    for (int i = 0; i < tiles; ++i) {
        const Turn before(i - 1 + Shape::kStages), now(i), next(i + 1);
        if (i + 1 < tiles) {
            if (i + 1 >= Shape::kStages) barrier_wait(shared.keys_empty(next.stage), next.parity ^ 1);
            keys.template begin<true>(shared.keys + next.stage * Shape::kTileBytes, p.k_stride[1], kKeys);
        }
        async_copy_commit();
        async_copy_wait<1>();
        declare(i == 0 ? shared.keys_full(0) : shared.values_full(before.stage));

        if (i >= Shape::kStages) barrier_wait(shared.values_empty(now.stage), now.parity ^ 1);
        const uint32_t to = shared.values + now.stage * Shape::kTileBytes;
        if (i == 0) {
            values.template begin<false>(to, p.v_stride[1], there);
        } else {
            values.template begin<true>(to, p.v_stride[1], kKeys);
        }
        async_copy_commit();
        async_copy_wait<1>();
        if (i + 1 < tiles) declare(shared.keys_full(next.stage));
    }
    async_copy_wait<0>();
    declare(shared.values_full((tiles - 1) % Shape::kStages));
}

// What a thread has folded into shared memory.
template <class Shape>
struct FoldedSums {
    static constexpr int kStride = 128 * Shape::kConsumers;

    float *output;   // every kStride-th from here on, in the order of Consumer::output
    float *maximum;  // of the thread's first row, and eight further of the second: what the sums are relative to
};

// 64 queries of a consumer: this thread's share of their sums.
template <class T, class Shape>
struct Consumer {
    static constexpr int kDim = Shape::kDim, kKeys = Shape::kKeys;

    float output[kDim / 2];         // as an accumulator of wgmma.cuh: [columns of 8][4]
    float logits[1][kKeys / 8][4];  // likewise; then their weights
    uint32_t weights[kKeys / 8][2];
    RowState row[2];

    __device__ __forceinline__ void reset() {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) output[i] = 0.0f;
        row[0].reset();
        row[1].reset();
    }

    __device__ __forceinline__ float (&flat_logits())[kKeys / 2] { return reinterpret_cast<float(&)[kKeys / 2]>(logits); }

    // Begins S = Q K^T.
    __device__ __forceinline__ void begin_logits(uint32_t queries, uint32_t keys) {
        const uint64_t q = matrix_descriptor(queries, 16), k = matrix_descriptor(keys, 16);
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
            // 16 columns are 32 bytes of a row; after 64 comes the next part of the tile. Descriptors count 16 bytes.
            const int q_at = step / 4 * Shape::kRows * 8 + step % 4 * 2, k_at = step / 4 * kKeys * 8 + step % 4 * 2;
            wgmma_n128(flat_logits(), q + q_at, k + k_at, step > 0, T());
        }
        wgmma_commit();
    }

    // Begins O += P V.
    __device__ __forceinline__ void begin_output(uint32_t values) {
        const uint64_t v = matrix_descriptor(values, kKeys * 128);
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            // 16 rows of 128 bytes.
            wgmma_add(output, weights[2 * step][0], weights[2 * step][1], weights[2 * step + 1][0], weights[2 * step + 1][1],
                      v + step * 128, T());
        }
        wgmma_commit();
    }

    // Turns logits into weights, still in f32, and returns the factors of what was summed before.
    __device__ __forceinline__ void weigh(float (&factor)[2], float c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
                largest = fmaxf(largest, fmaxf(logits[0][n][2 * half], logits[0][n][2 * half + 1]));
            }
            factor[half] = row[half].raise(largest, c);
            const float shift = kWeightBias<T> - row[half].finite();
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    logits[0][n][i] = exp2_approx(fmaf(logits[0][n][i], c, shift));
                }
                sum += logits[0][n][2 * half] + logits[0][n][2 * half + 1];
            }
            row[half].sum += sum;
        }
    }

    // Rounds the weights to 16 bits. The products that read the last ones must have ended.
    __device__ __forceinline__ void round_weights() {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
            weights[n][0] = pack(logits[0][n][0], logits[0][n][1], T());
            weights[n][1] = pack(logits[0][n][2], logits[0][n][3], T());
        }
    }

    __device__ __forceinline__ void scale_output(const float (&factor)[2]) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) output[i] *= factor[i / 2 % 2];
    }

    // Adds the output to the sums in shared memory, and clears it; the first time, puts it there.
    __device__ __forceinline__ void fold(const FoldedSums<Shape> &sums, bool is_first) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float factor = exp2_approx(sums.maximum[8 * half] - row[half].finite());
            __syncwarp();
            sums.maximum[8 * half] = row[half].maximum;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
                for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
                    float &sum = sums.output[i * FoldedSums<Shape>::kStride];
                    sum = is_first ? output[i] : fmaf(sum, factor, output[i]);
                    output[i] = 0.0f;
                }
            }
        }
    }

    // Takes the sums back into the output.
    __device__ __forceinline__ void unfold(const FoldedSums<Shape> &sums) {
        const float factor[2] = {exp2_approx(sums.maximum[0] - row[0].finite()), exp2_approx(sums.maximum[8] - row[1].finite())};
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) {
            output[i] = fmaf(sums.output[i * FoldedSums<Shape>::kStride], factor[i / 2 % 2], output[i]);
        }
    }

    // Writes this warp's 16 rows from `first` on: the output over the sum, and the log-sum-exp.
    __device__ __forceinline__ void store(const longrope_attention_params &p, const AttentionBlock &block, int64_t first, int lane) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = row[half].total();
            const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
            const int64_t query = first + 8 * half + lane / 4;
            if (query >= block.query_length) continue;
            if (p.lse && lane % 4 == 0) {
                const float log2_sum = log2f(sum) + (row[half].finite() - kWeightBias<T>);
                p.lse[block.batch * p.lse_stride[0] + (block.query_start + query) * p.lse_stride[1] +
                      block.head * p.lse_stride[2]] = sum == 0.0f ? -INFINITY : log2_sum * 0.693147180559945f;
            }
            const int64_t at = block.batch * p.out_stride[0] + (block.query_start + query) * p.out_stride[1] +
                               block.head * p.out_stride[2] + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                if (8 * n >= p.head_dim) break;
                const float x = output[4 * n + 2 * half] * inverse, y = output[4 * n + 2 * half + 1] * inverse;
                if (p.out_is_f32) {
                    *reinterpret_cast<float2 *>(static_cast<float *>(p.out) + at + 8 * n) = make_float2(x, y);
                } else {
                    *reinterpret_cast<uint32_t *>(static_cast<T *>(p.out) + at + 8 * n) = pack(x, y, T());
                }
            }
        }
    }
};

// What a consumer does: `group` counts them, `thread` is within it.
template <class T, class Shape>
__device__ __forceinline__ void consume_tiles(const longrope_attention_params &p, const AttentionBlock &block,
                                              const HopperShared<Shape> &shared, const TileRange &all,
                                              const FoldedSums<Shape> &sums, int group, int thread) {
    using Turn = Turn<Shape>;
    const int lane = thread % 32, first_row = 64 * group + thread / 32 * 16;
    const int tiles = all.end - all.first;
    const uint32_t queries = shared.queries + group * 64 * 128;
    const bool speaks = thread == 0;

    Consumer<T, Shape> mine;
    mine.reset();
    if (tiles > 0) {
        const TileRange sees(block, first_row, 16, Shape::kKeys);
        const auto mask = [&](int tile) {
            if (tile >= sees.full_first && tile < sees.full_end) return;
            mask_logits<Shape>(mine.logits, block, first_row, static_cast<int64_t>(tile) * Shape::kKeys, lane);
        };
        float factor[2];
        barrier_wait(shared.keys_full(0), 0);
        wgmma_fence();
        mine.begin_logits(queries, shared.keys);
        wgmma_wait<0>();
        hold(mine.flat_logits());
        if (speaks) barrier_arrive(shared.keys_empty(0));
        mask(all.end - 1);
        mine.weigh(factor, p.scale_log2);
        mine.round_weights();
        const auto step = [&](int i) {
            const Turn before(i - 1), now(i);
            barrier_wait(shared.keys_full(now.stage), now.parity);
            hold(mine.flat_logits());
            hold(mine.output);
            wgmma_fence();
            mine.begin_logits(queries, shared.keys + now.stage * Shape::kTileBytes);
            barrier_wait(shared.values_full(before.stage), before.parity);
            // Once more, since the way here had a branch.
            wgmma_fence();
            mine.begin_output(shared.values + before.stage * Shape::kTileBytes);
            wgmma_wait<1>();
            hold(mine.flat_logits());
            if (speaks) barrier_arrive(shared.keys_empty(now.stage));
            mask(all.end - 1 - i);
            mine.weigh(factor, p.scale_log2);
            wgmma_wait<0>();
            hold(mine.output);
            if (speaks) barrier_arrive(shared.values_empty(before.stage));
            mine.round_weights();
            mine.scale_output(factor);
        };
        // Without a branch in the inner loop.
#pragma unroll 1
        for (int i = 1; i < tiles;) {
            const int end = min(i + Shape::kFoldTiles, tiles);
#pragma unroll 1
            for (; i < end; ++i) step(i);
            if (i < tiles) mine.fold(sums, i <= 1 + Shape::kFoldTiles);
        }
        const Turn last(tiles - 1);
        barrier_wait(shared.values_full(last.stage), last.parity);
        hold(mine.output);
        wgmma_fence();
        mine.begin_output(shared.values + last.stage * Shape::kTileBytes);
        wgmma_wait<0>();
        hold(mine.output);
        if (tiles > 1 + Shape::kFoldTiles) mine.unfold(sums);
    }
    mine.store(p, block, block.first_query + first_row, lane);
}

template <class T, class Shape>
__device__ __forceinline__ void attend_on_hopper(const longrope_attention_params &p) {
    extern __shared__ __align__(1024) char shared_bytes[];
    __shared__ AttentionBlock block;
    __shared__ __align__(8) uint64_t barriers[HopperShared<Shape>::kBarriers];
    __shared__ float folded_maxima[Shape::kRows];
    const HopperShared<Shape> shared(shared_bytes, barriers);
    const int thread = threadIdx.x;
    if (thread == 0) {
        block = AttentionBlock(p, Shape::kRows);
        shared.set_up();
    }
    __syncthreads();
    if (block.head >= p.query_heads) return;  // the last section may be short
    if (block.is_bad) {
        if (p.status && thread == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_SEQUENCE);
        return;
    }
    if (block.first_query >= block.query_length) return;
    const TileRange all(block, 0, Shape::kRows, Shape::kKeys);
    if (thread < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kLoaderRegisters));
        if (all.first < all.end) load_tiles<T>(p, block, shared, all, thread);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kConsumerRegisters));
        float *const folded = reinterpret_cast<float *>(shared_bytes + (shared.sums - shared_address(shared_bytes)));
        const int mine = thread - 128;
        const FoldedSums<Shape> sums{folded + mine, folded_maxima + mine / 32 * 16 + mine % 32 / 4};
        consume_tiles<T>(p, block, shared, all, sums, mine / 128, mine % 128);
    }
}

}  // namespace longrope

#define LONGROPE_ATTENTION_SM90(name, T, Shape)                                                 \
    extern "C" __global__ void __launch_bounds__(Shape::kThreads, 1)                            \
        longrope_attention_sm90_##name(const __grid_constant__ longrope_attention_params p) {   \
        longrope::attend_on_hopper<T, Shape>(p);                                                \
    }
