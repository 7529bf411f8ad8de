// Attention forward by blocks of queries, for every GPU since Ampere.
//
//   out = softmax(scale q k^T + mask) v        query head h reads key head h / group
//
// A block of four warps takes kRows queries of one head and walks over the tiles of kKeys keys that its mask leaves, from the
// last to the first, with the online softmax of softmax.cuh. A warp has kRows / 4 of the queries to itself, kM times 16.
//
//            keys ->
//          +-------+-------+-------+
//   warp 0 |       |       |##     |      S = Q K^T     16-bit operands, f32 sums, in registers
//   warp 1 |       |       |####   |      P = 2^(c S - m), rounded to 16 bits, in the same registers' place
//   warp 2 |       |       |###### |      O = O 2^(m_old - m) + P V
//   warp 3 |       |       |#######|
//          +-------+-------+-------+
//                     <- walk
//
// Sums do not drift: P V of a tile is summed on the tensor cores from zero, and added to O by an FMA that rounds, the same
// that rescales O. Keys and values go through rings of kStages tiles, filled by asynchronous copies while others are in use.
//
// Shared memory, in bytes, with D the head dimension padded to 64, 96, 128 or 256 (kDim), at most 96 KiB:
//   Q     kRows * D * 2                later the output, on its way to 16-byte stores
//   K, V  kStages * kKeys * D * 2 each
#pragma once

#include "attention_block.cuh"
#include "carry.cuh"
#include "mma.cuh"
#include "softmax.cuh"
#include "tile.cuh"

namespace longrope {

constexpr int kAttentionThreads = 128;

// The sizes of a kernel.
template <int kDim_, int kM_, int kKeys_, int kStages_, int kBlocks_, int kBranch_>
struct AttentionShape {
    static constexpr int kDim = kDim_;        // padded head dimension
    static constexpr int kM = kM_;            // blocks of 16 queries a warp
    static constexpr int kRows = 64 * kM_;    // queries a block
    static constexpr int kKeys = kKeys_;      // keys a tile
    static constexpr int kStages = kStages_;  // tiles of K, and of V, in shared memory
    static constexpr int kBlocks = kBlocks_;  // blocks a multiprocessor is to hold
    static constexpr int kBranch = kBranch_;  // dimensions of P V from one branch to the next
    static constexpr int kTileBytes = kKeys * kDim * 2;
    static constexpr int kSharedBytes = kRows * kDim * 2 + 2 * kStages * kTileBytes;
    static_assert(kSharedBytes <= 99 * 1024, "more than GPUs of compute capability 8.6 and 8.9 have");
};

// The part of a warp: its queries, their sums, and how a tile of keys is added.
template <class T, class Shape>
struct AttentionWarp {
    static constexpr int kM = Shape::kM, kKeys = Shape::kKeys, kDim = Shape::kDim;
    static constexpr int kKeyBlocks = kKeys / 8, kDimBlocks = kDim / 8;
    using Layout = Tile<kDim>;

    float output[kM][kDimBlocks][4];
    RowState row[kM][2];

    __device__ __forceinline__ void reset() {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int n = 0; n < kDimBlocks; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) output[m][n][i] = 0.0f;
            }
            row[m][0].reset();
            row[m][1].reset();
        }
    }

    // The address of a lane's first matrix row in a tile of queries, of keys, of values.
    static __device__ __forceinline__ uint32_t query_address(const char *tile) {
        const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
        return shared_address(tile) + Layout::at(thread / 32 * 16 * kM + lane % 16, lane / 16);
    }
    static __device__ __forceinline__ uint32_t key_address(const char *tile) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        return shared_address(tile) + Layout::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }
    static __device__ __forceinline__ uint32_t value_address(const char *tile) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        return shared_address(tile) + Layout::at(lane % 16, lane / 16);
    }

    // S = Q K^T of this warp's queries and a tile of keys, by the addresses of this lane.
    static __device__ __forceinline__ void logits(float (&s)[kM][kKeyBlocks][4], uint32_t q, uint32_t k) {
        // Not known to be the same in every tile: what follows from it is not to hold registers between them.
        asm volatile("" : "+r"(q));
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
            uint32_t a[kM][4];
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                load_matrices(a[m], Layout::advance(q, 2 * step) + 16 * m * Layout::kRowBytes);
            }
#pragma unroll
            for (int n = 0; n < kKeyBlocks; n += 2) {
                uint32_t b[4];
                load_matrices(b, Layout::advance(k, 2 * step) + 8 * n * Layout::kRowBytes);
#pragma unroll
                for (int m = 0; m < kM; ++m) {
                    mma(s[m][n], a[m], b[0], b[1], step == 0, T());
                    mma(s[m][n + 1], a[m], b[2], b[3], step == 0, T());
                }
            }
        }
    }

    // Turns logits into weights of 16 bits, and returns the factors of what was summed before.
    __device__ __forceinline__ void weigh(uint32_t (&p)[kM][kKeyBlocks][2], float (&factor)[kM][2],
                                          const float (&s)[kM][kKeyBlocks][4], float c) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = -INFINITY;
#pragma unroll
                for (int n = 0; n < kKeyBlocks; ++n) {
                    largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                }
                factor[m][half] = row[m][half].raise(largest, c);
                const float shift = kWeightBias<T> - row[m][half].finite();
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < kKeyBlocks; ++n) {
                    const float x = exp2_approx(fmaf(s[m][n][2 * half], c, shift));
                    const float y = exp2_approx(fmaf(s[m][n][2 * half + 1], c, shift));
                    sum += x + y;
                    p[m][n][half] = pack(x, y, T());
                }
                row[m][half].sum += sum;
            }
        }
    }

    // O = O factor + P V, by this lane's address of the values. Dimensions come by kBranch, as far as there are any. The
    // branches, the first too, also keep the assembler from loading values so early that it runs out of registers.
    __device__ __forceinline__ void add_values(const uint32_t (&p)[kM][kKeyBlocks][2], const float (&factor)[kM][2],
                                               uint32_t v, int head_dim) {
#pragma unroll
        for (int n = 0; n < kDimBlocks; n += 2) {
            if (8 * n % Shape::kBranch == 0 && 8 * n >= head_dim) break;
            float sum[kM][2][4];
#pragma unroll
            for (int step = 0; step < kKeys / 16; ++step) {
                uint32_t b[4];
                load_matrices_transposed(b, Layout::advance(v, n) + 16 * step * Layout::kRowBytes);
#pragma unroll
                for (int m = 0; m < kM; ++m) {
                    const uint32_t a[4] = {p[m][2 * step][0], p[m][2 * step][1], p[m][2 * step + 1][0],
                                           p[m][2 * step + 1][1]};
                    mma(sum[m][0], a, b[0], b[1], step == 0, T());
                    mma(sum[m][1], a, b[2], b[3], step == 0, T());
                }
            }
#pragma unroll
            for (int m = 0; m < kM; ++m) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        output[m][n + j][i] = fmaf(output[m][n + j][i], factor[m][i / 2], sum[m][j][i]);
                    }
                }
            }
        }
    }
};

// Merges a row with the earlier result; then nothing is left for its output to be divided by. The lane has two of each eight
// dimensions of `output`.
template <int kBlocks>
__device__ __forceinline__ void carry_in(const longrope_attention_params &p, const AttentionBlock &block, int64_t query,
                                         float (&output)[kBlocks][4], int half, float &inverse, float &lse) {
    const CarriedRow row(p, block.batch, query, block.head, lse);
    const float *const from = row.out(p, block.batch, query, block.head) + threadIdx.x % 4 * 2 * p.carry_stride[3];
    const float own = row.own * inverse;
    inverse = 1.0f;
    lse = row.lse;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
        float x = 0.0f, y = 0.0f;
        if (row.earlier != 0.0f && 8 * n < p.head_dim) {
            x = from[8 * n * p.carry_stride[3]];
            y = from[(8 * n + 1) * p.carry_stride[3]];
        }
        output[n][2 * half] = fmaf(output[n][2 * half], own, x * row.earlier);
        output[n][2 * half + 1] = fmaf(output[n][2 * half + 1], own, y * row.earlier);
    }
}

// Writes this warp's rows: the output over the sum, and the log-sum-exp.
template <class T, class Shape, bool kVector>
__device__ __forceinline__ void store_rows(const longrope_attention_params &p, const AttentionBlock &block,
                                           AttentionWarp<T, Shape> &warp, char *staging) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, first_row = thread / 32 * 16 * Shape::kM;
    using Layout = Tile<Shape::kDim>;
    constexpr int kM = Shape::kM;
    const int64_t first = block.first_query + first_row;  // this warp's first query
    float inverse[kM][2];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = warp.row[m][half].total();
            inverse[m][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
            const float log2_sum = log2f(sum) + (warp.row[m][half].finite() - kWeightBias<T>);
            float lse = sum == 0.0f ? -INFINITY : log2_sum * 0.693147180559945f;
            const int64_t query = first + 16 * m + 8 * half + lane / 4;
            if (query >= block.query_length) continue;
            if (p.carry) carry_in(p, block, block.query_start + query, warp.output[m], half, inverse[m][half], lse);
            if (p.lse && lane % 4 == 0) {
                p.lse[block.batch * p.lse_stride[0] + (block.query_start + query) * p.lse_stride[1] + block.head * p.lse_stride[2]] = lse;
            }
        }
    }
    const int64_t head_offset =
        block.batch * p.out_stride[0] + block.query_start * p.out_stride[1] + block.head * p.out_stride[2];
    if (p.out_is_f32) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t query = first + 16 * m + 8 * half + lane / 4;
                if (query >= block.query_length) continue;
                float *const out = static_cast<float *>(p.out) + head_offset + query * p.out_stride[1] + lane % 4 * 2 * p.out_stride[3];
#pragma unroll
                for (int n = 0; n < Shape::kDim / 8; ++n) {
                    if (8 * n >= p.head_dim) break;
                    const float x = warp.output[m][n][2 * half] * inverse[m][half];
                    const float y = warp.output[m][n][2 * half + 1] * inverse[m][half];
                    if constexpr (kVector) {
                        *reinterpret_cast<float2 *>(out + 8 * n) = make_float2(x, y);
                    } else {
                        out[8 * n * p.out_stride[3]] = x;
                        out[(8 * n + 1) * p.out_stride[3]] = y;
                    }
                }
            }
        }
        return;
    }
    // Through shared memory, into rows of 16-byte chunks. The place of this warp's queries, which it alone reads, and has read.
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < Shape::kDim / 8; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + 16 * m + 8 * half + lane / 4;
                *reinterpret_cast<uint32_t *>(staging + Layout::at(row, n) + lane % 4 * 4) =
                    pack(warp.output[m][n][2 * half] * inverse[m][half], warp.output[m][n][2 * half + 1] * inverse[m][half], T());
            }
        }
    }
    __syncwarp();
    T *const out = static_cast<T *>(p.out) + head_offset;
    for (int i = lane; i < 16 * kM * Layout::kChunks; i += 32) {
        const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
        const int64_t query = first + row;
        if (query >= block.query_length) continue;
        const auto x = *reinterpret_cast<const Vector<T, 8> *>(staging + Layout::at(first_row + row, chunk));
        T *const to = out + query * p.out_stride[1] + chunk * 8 * p.out_stride[3];
        if constexpr (kVector) {
            if (chunk * 8 < p.head_dim) store_vector<T, 8>(to, x);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                if (chunk * 8 + j < p.head_dim) to[j * p.out_stride[3]] = x.element[j];
            }
        }
    }
}

// Flips the sign of every query: a scale below zero, as a scale above.
template <class Shape>
__device__ __forceinline__ void negate_queries(char *queries, int thread) {
    uint32_t *const words = reinterpret_cast<uint32_t *>(queries);
    for (int i = thread; i < Shape::kRows * Shape::kDim / 2; i += kAttentionThreads) words[i] ^= 0x80008000u;
}

template <class T, class Shape, bool kVector>
__device__ __forceinline__ void attend(const longrope_attention_params &p) {
    constexpr int kKeys = Shape::kKeys, kStages = Shape::kStages;
    using QueryLoader = TileLoader<T, Shape::kDim, Shape::kRows, kAttentionThreads, kVector>;
    using Loader = TileLoader<T, Shape::kDim, kKeys, kAttentionThreads, kVector>;
    extern __shared__ __align__(128) char shared_bytes[];
    char *const queries = shared_bytes;
    char *const keys = queries + Shape::kRows * Shape::kDim * 2;
    char *const values = keys + kStages * Shape::kTileBytes;
    const int thread = threadIdx.x, lane = thread % 32, first_row = thread / 32 * 16 * Shape::kM;

    // In shared memory, since what is needed now and then must not hold a register through the loop.
    __shared__ AttentionBlock block;
    __shared__ TileRange ranges[kAttentionThreads / 32];
    __shared__ int first_tile;
    if (thread == 0) block = AttentionBlock(p, Shape::kRows, blockIdx.x);
    __syncthreads();
    if (block.head >= p.query_heads) return;  // the last section may be short
    if (block.is_bad) {
        if (p.status && thread == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_SEQUENCE);
        return;
    }
    if (block.first_query >= block.query_length) return;

    const int rows = static_cast<int>(min(static_cast<int64_t>(Shape::kRows), block.query_length - block.first_query));
    const TileRange all(block, 0, Shape::kRows, kKeys);
    if (lane == 0) ranges[thread / 32] = TileRange(block, first_row, 16 * Shape::kM, kKeys);
    const T *const q = static_cast<const T *>(p.q) + block.batch * p.q_stride[0] +
                       (block.query_start + block.first_query) * p.q_stride[1] + block.head * p.q_stride[2];
    const int64_t last_key = static_cast<int64_t>(all.end - 1) * kKeys;
    const auto last_tile = [&](const void *tensor, const int64_t(&stride)[4]) {
        return static_cast<const T *>(tensor) + block.batch * stride[0] + (block.key_start + last_key) * stride[1] +
               block.head / p.group * stride[2];
    };
    Loader key_loader(last_tile(p.k, p.k_stride), p.k_stride[1], p.k_stride[3], p.head_dim, thread);
    Loader value_loader(last_tile(p.v, p.v_stride), p.v_stride[1], p.v_stride[3], p.head_dim, thread);

    if (thread == 0) first_tile = all.first;
    __syncthreads();

    AttentionWarp<T, Shape> warp;
    warp.reset();
    if (all.first < all.end) {
        const int first_stage = kStages > 1 ? (all.end - 1) % 2 * Shape::kTileBytes : 0;
        // Tiles before the last are whole.
        const int there = static_cast<int>(min(static_cast<int64_t>(kKeys), block.key_length - last_key));
        QueryLoader(q, p.q_stride[1], p.q_stride[3], p.head_dim, thread)
            .template begin<false>(queries, p.q_stride[1], p.q_stride[3], rows);
        key_loader.template begin<false>(keys + first_stage, p.k_stride[1], p.k_stride[3], there);
        if (kStages > 1) value_loader.template begin<false>(values + first_stage, p.v_stride[1], p.v_stride[3], there);
        async_copy_commit();
        if (p.negate) {
            async_copy_wait<0>();
            __syncthreads();
            negate_queries<Shape>(queries, thread);
        }
    }
    for (int tile = all.end - 1; tile >= first_tile; --tile) {
        const int stage = kStages > 1 ? tile & 1 : 0;
        // What was begun before has come, and nobody uses what the next loads overwrite.
        async_copy_wait<0>();
        __syncthreads();
        const bool more = tile > first_tile;
        const TileRange &sees = ranges[static_cast<int>(threadIdx.x) / 32];
        const bool seen = tile >= sees.first && tile < sees.end;
        const bool masked = tile < sees.full_first || tile >= sees.full_end;
        if (kStages == 1) {
            // The last tile of a sequence may be short.
            const int there = static_cast<int>(min(static_cast<int64_t>(kKeys), block.key_length - static_cast<int64_t>(tile) * kKeys));
            value_loader.template begin<false>(values, p.v_stride[1], p.v_stride[3], there);
            async_copy_commit();
        } else if (more) {
            key_loader.template begin<true>(keys + (stage ^ 1) * Shape::kTileBytes, p.k_stride[1], p.k_stride[3], kKeys);
            value_loader.template begin<true>(values + (stage ^ 1) * Shape::kTileBytes, p.v_stride[1], p.v_stride[3], kKeys);
            async_copy_commit();
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
            if (more) key_loader.template begin<true>(keys, p.k_stride[1], p.k_stride[3], kKeys);
            async_copy_commit();
        }
        if (seen) warp.add_values(weights, factor, warp.value_address(values + stage * Shape::kTileBytes), p.head_dim);
    }
    store_rows<T, Shape, kVector>(p, block, warp, queries);
}

}  // namespace longrope

// A kernel for a padded head dimension: element type x whether 16 bytes can be moved at once.
#define LONGROPE_ATTENTION_SM80(name, T, Shape, vector)                                                       \
    extern "C" __global__ void __launch_bounds__(longrope::kAttentionThreads, Shape::kBlocks)                 \
        longrope_attention_sm80_##name(const __grid_constant__ longrope_attention_params p) {                 \
        longrope::attend<T, Shape, vector>(p);                                                                \
    }
