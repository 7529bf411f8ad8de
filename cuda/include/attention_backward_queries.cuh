// The gradient of the queries of attention, dQ = scale dS k, for every GPU since Ampere.
//
// A block of four warps takes kRows queries of one head, as the forward pass does (attention_sm80.cuh), and walks over the tiles
// of kKeys keys that its mask leaves, from the last to the first. A warp has kRows / 4 of the queries to itself, kM times 16:
//
//   S  = Q K^T,  dP = dO V^T      in registers, and from them dS, rounded to 16 bits in the same registers' place
//   dQ = dQ + dS K                K transposed while it is read, so that it lies in shared memory once
//
// Shared memory, in bytes, with D the head dimension padded to 64, 96, 128 or 256 (kDim):
//   Q, dO   kRows * D * 2 each
//   K, V    kStages * kKeys * D * 2 each
//   dQ      kRows * (D + 8) * 4, in place of all these, to be rotated and written by rows
#pragma once

#include "attention_backward.cuh"

namespace longrope {

// The sizes of a kernel.
template <int kDim_, int kM_, int kKeys_, int kStages_, int kBlocks_, int kBranch_>
struct QueryGradientShape {
    static constexpr int kDim = kDim_;        // padded head dimension
    static constexpr int kM = kM_;            // blocks of 16 queries a warp
    static constexpr int kRows = 64 * kM_;    // queries a block
    static constexpr int kKeys = kKeys_;      // keys a tile
    static constexpr int kStages = kStages_;  // tiles of K, and of V, in shared memory
    static constexpr int kBlocks = kBlocks_;  // blocks a multiprocessor is to hold
    static constexpr int kBranch = kBranch_;  // dimensions of dS K from one branch to the next
    static constexpr int kRowBytes = kRows * kDim * 2;
    static constexpr int kTileBytes = kKeys * kDim * 2;
    static constexpr int kSharedBytes = 2 * kRowBytes + 2 * kStages * kTileBytes;
    using Staged = StagedGradient<kDim, kRows, kBackwardThreads>;
    static_assert(Staged::kBytes <= kSharedBytes);
    // What is declared beside it has 2 KiB.
    static_assert(kSharedBytes <= 97 * 1024, "more than GPUs of compute capability 8.6 and 8.9 have");
    static_assert(kRows <= kBackwardThreads, "a thread reads the log-sum-exp of a row");
};

// dQ = dQ + dS K of a warp's queries and a tile of keys, by this lane's addresses. `exponent` and `delta`: of the warp's rows.
template <class T, class Shape>
__device__ __forceinline__ void add_query_gradients(float (&dq)[Shape::kM][Shape::kDim / 8][4], uint32_t q, uint32_t d_out, uint32_t k,
                                                    uint32_t v, uint32_t k_summed, const float *exponent, const float *delta,
                                                    const MaskBand &band, int columns, float c, int head_dim, int lane) {
    constexpr int kM = Shape::kM, kN = Shape::kKeys / 8, kDim = Shape::kDim;
    using Layout = Tile<kDim>;
    float s[kM][kN][4];
    product<T, kDim>(s, q, k);
    if (!band.shows_all(16 * kM, Shape::kKeys) || columns < Shape::kKeys) hide(s, band, columns, c, lane);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float shift = exponent[16 * m + 8 * half + lane / 4];
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) s[m][n][2 * half + i] = exp2_approx(fmaf(s[m][n][2 * half + i], c, -shift));
            }
        }
    }
    {
        float dp[kM][kN][4];
        product<T, kDim>(dp, d_out, v);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float row_delta = delta[16 * m + 8 * half + lane / 4];
#pragma unroll
                for (int n = 0; n < kN; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) s[m][n][2 * half + i] *= dp[m][n][2 * half + i] - row_delta;
                }
            }
        }
    }
    uint32_t ds[kM][kN / 2][4];
    float back[kM][2];
    round_gradients<T>(ds, back, s);
    // The branches, the first too, keep the assembler from loading keys so early that it runs out of registers.
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
        if (8 * n % Shape::kBranch == 0 && 8 * n >= head_dim) break;
        float sum[kM][2][4];
        sum_rows<T, Layout::kRowBytes>(sum, ds, Layout::advance(k_summed, n));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) dq[m][n + j][i] = fmaf(sum[m][j][i], back[m][i / 2], dq[m][n + j][i]);
            }
        }
    }
}

template <class T, class Shape, bool kVector>
__device__ __forceinline__ void gradients_of_queries(const longrope_attention_backward_params &b) {
    constexpr int kDim = Shape::kDim, kM = Shape::kM, kKeys = Shape::kKeys, kStages = Shape::kStages;
    using Layout = Tile<kDim>;
    const longrope_attention_params &p = b.attention;
    extern __shared__ __align__(128) char shared_bytes[];
    char *const queries = shared_bytes;
    char *const d_outs = queries + Shape::kRowBytes;
    char *const keys = d_outs + Shape::kRowBytes;
    char *const values = keys + kStages * Shape::kTileBytes;
    // In shared memory, since what is needed now and then must not hold a register through the loop.
    __shared__ AttentionBlock block;
    __shared__ int set;
    __shared__ float exponent[Shape::kRows], delta[Shape::kRows];
    const int thread = threadIdx.x;

    if (thread == 0) {
        const int64_t sequence = block.place_at(p, Shape::kRows, blockIdx.x);
        set = gradient_set(b, block, sequence);
    }
    __syncthreads();
    if (block.head >= p.query_heads) return;  // the last section may be short
    if (block.is_bad) {
        if (p.status && thread == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_SEQUENCE);
        return;
    }
    if (block.first_query >= block.query_length) return;
    if (set == kBadSet) {
        if (p.status && thread == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
        return;
    }

    const int64_t rows = block.query_length - block.first_query;  // that exist, or more
    const int64_t last_row = min(static_cast<int64_t>(Shape::kRows), rows) - 1;
    const int64_t first_key = block.limits.visible(0, block.key_length).first;
    const int64_t end_key = block.limits.visible(last_row, block.key_length).end;
    const int64_t first_tile = first_key / kKeys, end_tile = first_key < end_key ? (end_key + kKeys - 1) / kKeys : first_tile;

    const auto begin = [&](int64_t tile, int stage) {
        const int64_t key = tile * kKeys, row = block.key_start + key, there = block.key_length - key;
        const int head = block.head / p.group;
        load_rows<T, kDim, kKeys, kVector>(keys + stage * Shape::kTileBytes, p.k, p.k_stride, block.batch, row, head, there, p.head_dim,
                                           threadIdx.x);
        load_rows<T, kDim, kKeys, kVector>(values + stage * Shape::kTileBytes, p.v, p.v_stride, block.batch, row, head, there,
                                           p.head_dim, threadIdx.x);
        async_copy_commit();
    };
    if (first_tile < end_tile) {
        const int64_t row = block.query_start + block.first_query;
        load_rows<T, kDim, Shape::kRows, kVector>(queries, p.q, p.q_stride, block.batch, row, block.head, rows, p.head_dim, thread);
        load_rows<T, kDim, Shape::kRows, kVector>(d_outs, b.d_out, b.d_out_stride, block.batch, row, block.head, rows, p.head_dim,
                                                  thread);
        begin(end_tile - 1, 0);
        if (thread < Shape::kRows) {
            float lse = -INFINITY, row_delta = 0.0f;
            if (thread < rows) {
                lse = p.lse[block.batch * p.lse_stride[0] + (row + thread) * p.lse_stride[1] + block.head * p.lse_stride[2]];
                row_delta = b.delta[block.batch * b.delta_stride[0] + (row + thread) * b.delta_stride[1] + block.head * b.delta_stride[2]];
            }
            exponent[thread] = exponent_of<T>(lse);
            delta[thread] = lse == -INFINITY ? 0.0f : row_delta;
        }
    }

    float dq[kM][kDim / 8][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) dq[m][n][i] = 0.0f;
        }
    }
    int stage = 0;
#pragma unroll 1
    for (int64_t tile = end_tile - 1; tile >= first_tile; --tile) {
        // What was begun before has come, and nobody uses what the next loads overwrite.
        async_copy_wait<0>();
        __syncthreads();
        const bool more = tile > first_tile;
        if (kStages > 1 && more) begin(tile - 1, stage ^ 1);
        const int now = threadIdx.x;  // not what was held since the start: there is no register for it
        const int warp_row = now / 32 * 16 * kM, now_lane = now % 32;
        const MaskBand band = MaskBand::of_queries(block.limits, tile * kKeys).from_row(warp_row);
        const int columns = static_cast<int>(min(block.key_length - tile * kKeys, static_cast<int64_t>(kKeys)));
        if (!band.shows_none(16 * kM, columns)) {
            const char *const k = keys + stage * Shape::kTileBytes, *const v = values + stage * Shape::kTileBytes;
            add_query_gradients<T, Shape>(
                dq, row_operand<Layout>(queries, warp_row, now_lane), row_operand<Layout>(d_outs, warp_row, now_lane),
                column_operand<Layout>(k, 0, now_lane), column_operand<Layout>(v, 0, now_lane), summed_operand<Layout>(k, 0, now_lane),
                exponent + warp_row, delta + warp_row, band, columns, copysignf(p.scale_log2, b.scale), p.head_dim, now_lane);
        }
        if (kStages > 1) {
            stage ^= 1;
        } else if (more) {
            __syncthreads();
            begin(tile - 1, 0);
        }
    }

    // By rows, in place of the tiles.
    const typename Shape::Staged staged{reinterpret_cast<float *>(shared_bytes)};
    const float factor = b.scale * exp2f(-kWeightBias<T>);
    __syncthreads();  // nobody reads these
    const int now = threadIdx.x;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = now / 32 * 16 * kM + 16 * m + 8 * half + now % 32 / 4;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                staged.put(row, 8 * n + now % 4 * 2, dq[m][n][2 * half] * factor, dq[m][n][2 * half + 1] * factor);
            }
        }
    }
    __syncthreads();
    if (b.rotates) {
        staged.transpose(b.rotary, set, block.position, now);
        __syncthreads();
    }
    const GradientOut out(b.dq, b.dq_stride, block.batch, block.query_start, block.head, b.dq_is_f32, b.accumulate);
    staged.template store<T, kVector>(out, block.first_query, block.query_length - block.first_query, p.head_dim, now);
}

}  // namespace longrope
