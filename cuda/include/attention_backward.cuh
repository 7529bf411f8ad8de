// What both kernels of the backward pass of attention share: products of a warp, weights and gradients of logits, stores.
//
//   P  = 2^(c S - lse / ln 2)    with S = q k^T and c = scale / ln 2     made again, not kept (FlashAttention, arXiv 2205.14135)
//   dP = dO v^T
//   dS = P (dP - delta)
//   dQ = scale dS k        dK = scale dS^T q        dV = P^T dO
//
// There are two kernels, one for dQ (attention_backward_queries.cuh) and one for dK and dV (attention_backward_keys.cuh). Each
// makes P and dS for itself, which is 7 products in place of 5; but every sum is a block's own, in one order. So there are no
// atomics, nothing is put aside in device memory, and the same inputs give the same bits. Where that is not asked for, Hopper has
// one kernel (attention_backward_sm90_fast.cuh).
//
// Sums do not drift: what a tile adds is summed on the tensor cores from zero, and added by an FMA that rounds.
//
// P and dS are rounded to 16 bits before they meet q, k and dO. An f16 has a short range, so
//   P   is times 2^15 (softmax.cuh): it is at most 1, and over a million keys about 2^-20;
//   dS  may be of any size, by that of dO. Each row of a tile is times a power of two that brings its largest to 2^14 or above
//       and below 2^15. What it is taken back by goes into the FMA that adds the tile's sum.
// What is lost of an element of dS is then below 2^-39 of the largest in its row of the tile, or the rounding of its 11 bits.
//
// Where queries and keys were rotated, dQ and dK go through the transpose of it before they are written (gradient_rotation.cuh).
#pragma once

#include "attention_block.cuh"
#include "cache_rotation.cuh"
#include "gradient_rotation.cuh"
#include "mma.cuh"
#include "params_backward.h"
#include "softmax.cuh"
#include "tile.cuh"

namespace longrope {

constexpr int kBackwardThreads = 128;

template <class T>
constexpr bool kScalesLogits = false;
template <>
inline constexpr bool kScalesLogits<__half> = true;

// Begins to load a tile: kRows rows of a head from `row` on, of which `there` exist; zeros for the others.
template <class T, int kDim, int kRows, bool kVector>
__device__ __forceinline__ void load_rows(char *tile, const void *tensor, const int64_t (&stride)[4], int64_t batch, int64_t row,
                                          int head, int64_t there, int head_dim, int thread) {
    const T *const first = static_cast<const T *>(tensor) + batch * stride[0] + row * stride[1] + head * stride[2];
    TileLoader<T, kDim, kRows, kBackwardThreads, kVector>(first, stride[1], stride[3], head_dim, thread)
        .template begin<false>(tile, stride[1], stride[3], static_cast<int>(min(there, static_cast<int64_t>(kRows))));
}

// The address of a lane's first matrix row: of an operand whose rows are those of the product, of one whose rows are its columns,
// and of one whose rows are summed over, read transposed from its chunk `chunk` on, below 4.
template <class Layout>
__device__ __forceinline__ uint32_t row_operand(const char *tile, int first_row, int lane) {
    return shared_address(tile) + Layout::at(first_row + lane % 16, lane / 16);
}
template <class Layout>
__device__ __forceinline__ uint32_t column_operand(const char *tile, int first_row, int lane) {
    return shared_address(tile) + Layout::at(first_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
template <class Layout>
__device__ __forceinline__ uint32_t summed_operand(const char *tile, int chunk, int lane) {
    return shared_address(tile) + Layout::at(lane % 16, chunk + lane / 16);
}

// x = A B^T over the head dimension: 16 kM rows of one tile by 8 kN rows of another, by this lane's addresses.
template <class T, int kDim, int kM, int kN>
__device__ __forceinline__ void product(float (&x)[kM][kN][4], uint32_t a_rows, uint32_t b_rows) {
    using Layout = Tile<kDim>;
    // Not known to be the same in every tile: what follows from it is not to hold registers between them.
    asm volatile("" : "+r"(a_rows), "+r"(b_rows));
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) load_matrices(a[m], Layout::advance(a_rows, 2 * step) + 16 * m * Layout::kRowBytes);
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
            uint32_t b[4];
            load_matrices(b, Layout::advance(b_rows, 2 * step) + 8 * n * Layout::kRowBytes);
#pragma unroll
            for (int m = 0; m < kM; ++m) {
                mma(x[m][n], a[m], b[0], b[1], step == 0, T());
                mma(x[m][n + 1], a[m], b[2], b[3], step == 0, T());
            }
        }
    }
}

// sum = A B for 16 of B's columns, over 16 kSteps rows of B by this lane's address; A as products leave it, rounded.
template <class T, int kRowBytes, int kM, int kSteps>
__device__ __forceinline__ void sum_rows(float (&sum)[kM][2][4], const uint32_t (&a)[kM][kSteps][4], uint32_t b_rows) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        load_matrices_transposed(b, b_rows + 16 * step * kRowBytes);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
            mma(sum[m][0], a[m][step], b[0], b[1], step == 0, T());
            mma(sum[m][1], a[m][step], b[2], b[3], step == 0, T());
        }
    }
}

// Hides the logits outside of the band: their weights become 0, whatever the sign of c.
template <int kM, int kN>
__device__ __forceinline__ void hide(float (&s)[kM][kN][4], const MaskBand &band, int columns, float c, int lane) {
    const float hidden = c < 0.0f ? INFINITY : -INFINITY;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Of the columns that this lane holds.
            const int row = 16 * m + 8 * half + lane / 4;
            const int low = band.low + row - lane % 4 * 2;
            const int high = min(band.high + row, columns) - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * n + i < low || 8 * n + i >= high) s[m][n][2 * half + i] = hidden;
                }
            }
        }
    }
}

// What is subtracted from c S, by the log-sum-exp of a row. A row that sees nothing has -inf, and weights of 0: 2^-inf.
template <class T>
__device__ __forceinline__ float exponent_of(float lse) {
    return lse == -INFINITY ? INFINITY : fmaf(lse, 1.44269504088896f, -kWeightBias<T>);
}

// Two neighbouring blocks of 8 columns, each [2][2] of row half and column, as the words of an operand.
template <class T>
__device__ __forceinline__ void words_of(uint32_t (&word)[4], const float (&left)[4], const float (&right)[4]) {
    word[0] = pack(left[0], left[1], T());
    word[1] = pack(left[2], left[3], T());
    word[2] = pack(right[0], right[1], T());
    word[3] = pack(right[2], right[3], T());
}

// Rounds gradients of logits to 16 bits, each row times a power of two, and gives what takes it back.
template <class T, int kM, int kN>
__device__ __forceinline__ void round_gradients(uint32_t (&words)[kM][kN / 2][4], float (&back)[kM][2], float (&x)[kM][kN][4]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            back[m][half] = 1.0f;
            if constexpr (kScalesLogits<T>) {
                float largest = 0.0f;
#pragma unroll
                for (int n = 0; n < kN; ++n) largest = fmaxf(largest, fmaxf(fabsf(x[m][n][2 * half]), fabsf(x[m][n][2 * half + 1])));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
                // By its exponent e: times 2^(14 - e). Both powers of two are normal numbers; the ends are far from an f16's.
                const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 15u), 254u);
                const float scale = __uint_as_float((268u - exponent) << 23);
                back[m][half] = __uint_as_float((exponent - 14u) << 23);
#pragma unroll
                for (int n = 0; n < kN; ++n) {
                    x[m][n][2 * half] *= scale;
                    x[m][n][2 * half + 1] *= scale;
                }
            }
        }
#pragma unroll
        for (int n = 0; n < kN; n += 2) words_of<T>(words[m][n / 2], x[m][n], x[m][n + 1]);
    }
}

// The set by which the queries and keys of a sequence were rotated: it is as long as its last query says. `block`: of the sequence.
__device__ __forceinline__ int gradient_set(const longrope_attention_backward_params &b, const AttentionBlock &block, int64_t sequence) {
    if (!b.rotates) return kShort;
    return cached_set(b.rotary, block.position - block.first_query + block.query_length, sequence);
}

// The position of a key.
__device__ __forceinline__ int64_t key_position(const longrope_attention_params &p, int64_t key) {
    return static_cast<int64_t>(static_cast<uint64_t>(p.key_offset) + static_cast<uint64_t>(key));
}

// A gradient in memory: where its rows lie, and how they are written.
struct GradientOut {
    void *first;  // of the tensor
    int64_t offset, row_stride, dim_stride;
    bool is_f32, accumulate;

    // From the element at `offset` on, dimensions side by side.
    __device__ __forceinline__ GradientOut(void *first, int64_t offset, int64_t row_stride, bool is_f32, bool accumulate)
        : first(first), offset(offset), row_stride(row_stride), dim_stride(1), is_f32(is_f32), accumulate(accumulate) {}

    __device__ __forceinline__ GradientOut(void *first, const int64_t (&stride)[4], int64_t batch, int64_t row, int head, bool is_f32,
                                           bool accumulate)
        : first(first), offset(batch * stride[0] + row * stride[1] + head * stride[2]), row_stride(stride[1]),
          dim_stride(stride[3]), is_f32(is_f32), accumulate(accumulate) {}

    __device__ __forceinline__ int64_t element(int64_t row, int dim) const { return offset + row * row_stride + dim * dim_stride; }

    // Of two neighbouring dimensions of a row, adds what is there, if it is added to.
    template <bool kVector>
    __device__ __forceinline__ void add_before(int64_t at, float &x, float &y) const {
        if (!accumulate) return;
        const float *const from = static_cast<const float *>(first) + at;
        if constexpr (kVector) {
            const float2 before = *reinterpret_cast<const float2 *>(from);
            x += before.x, y += before.y;
        } else {
            x += from[0], y += from[dim_stride];
        }
    }
    // Writes them.
    template <class T, bool kVector>
    __device__ __forceinline__ void write(int64_t at, float x, float y) const {
        if (is_f32) {
            float *const to = static_cast<float *>(first) + at;
            if constexpr (kVector) {
                *reinterpret_cast<float2 *>(to) = make_float2(x, y);
            } else {
                to[0] = x;
                to[dim_stride] = y;
            }
        } else {
            T *const to = static_cast<T *>(first) + at;
            if constexpr (kVector) {
                *reinterpret_cast<uint32_t *>(to) = pack(x, y, T());
            } else {
                to[0] = narrow<T>(x);
                to[dim_stride] = narrow<T>(y);
            }
        }
    }
};

}  // namespace longrope
