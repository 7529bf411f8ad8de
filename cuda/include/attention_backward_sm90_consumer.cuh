// What a warpgroup computes in Hopper's kernels of attention's backward pass: the gradients of 64 rows of an item after the other.
//
// Logits, their weights and gradients, and the sums are in its registers, as accumulators of wgmma.cuh; rows and columns in shared
// memory. An f16 has a short range (attention_backward.cuh): weights are times 2^15, and gradients of logits times a power of two
// of each row, by the largest seen so far, to which the row's sum is brought along.
#pragma once

#include "accumulator.cuh"
#include "attention_backward_sm90_items.cuh"
#include "wgmma.cuh"

namespace longrope {

// Of a width that no other kernel sums over.
LONGROPE_WGMMA_ADD(96, __nv_bfloat16, "bf16", LONGROPE_NAMES_48, LONGROPE_D48(d), "%48, %49, %50, %51", "%52")

// 64 rows of a consumer: this thread's share of them.
template <class T, class Shape>
struct GradientConsumer {
    static constexpr bool kOfKeys = Shape::kOfKeys;
    static constexpr int kDim = Shape::kDim, kColumns = Shape::kColumns, kBlocks = kColumns / 8;
    using Sum = float[kDim / 2];
    using Words = uint32_t[kBlocks][2];

    Sum of_logits;                    // dK or dQ, before the scale: [blocks of 8 dimensions][4]
    float of_weights[kOfKeys ? kDim / 2 : 1];  // dV
    float x[kBlocks][4];              // logits, then weights, then their gradients: blocks of 8 columns
    float d[kBlocks][4];              // dP
    Words gradients;                  // of logits, rounded
    uint32_t weights[kOfKeys ? kBlocks : 1][2];
    float exponent[2], delta[2];      // of this thread's rows, for dQ
    uint32_t power[2];                // of the rows' factors, by the exponent of the largest gradient; for f16

    static __device__ __forceinline__ int lane() { return thread_again() % 32; }
    // Of the consumers' threads; and the first of the rows that it holds, of the block's.
    static __device__ __forceinline__ int thread() { return thread_again() - Shape::kFirstConsumer; }
    // Consumers have rows of their own, or both the same.
    static __device__ __forceinline__ int first_row() {
        const int warp = thread() / 32;
        return (Shape::kSharesRows ? warp % 4 : warp) * 16;
    }
    static __device__ __forceinline__ int row() { return first_row() + lane() / 4; }

    template <int N>
    static __device__ __forceinline__ float (&flat(float (&y)[N][4]))[4 * N] {
        return reinterpret_cast<float(&)[4 * N]>(y);
    }

    __device__ __forceinline__ void clear_sums() {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) of_logits[i] = 0.0f;
        if constexpr (kOfKeys) {
#pragma unroll
            for (int i = 0; i < kDim / 2; ++i) of_weights[i] = 0.0f;
        }
    }

    __device__ __forceinline__ void reset() {
        clear_sums();
        // The smallest; see round_gradients.
        power[0] = power[1] = 15;
    }

    __device__ __forceinline__ void hold_sum() { hold(of_logits); }
    __device__ __forceinline__ void hold_weighted_sum() {
        if constexpr (kOfKeys) hold(of_weights);
    }

    // Reads what belongs to this thread's rows, for dQ.
    __device__ __forceinline__ void read_rows(const longrope_attention_backward_params &b, const GradientItem &item) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = row() + 8 * half;
            float lse = -INFINITY, row_delta = 0.0f;
            if (query < item.rows) {
                lse = b.attention.lse[item.lse_at + query * b.attention.lse_stride[1]];
                row_delta = b.delta[item.delta_at + query * b.delta_stride[1]];
            }
            exponent[half] = exponent_of<T>(lse);
            delta[half] = lse == -INFINITY ? 0.0f : row_delta;
        }
    }

    // Begins y = A B^T over the head dimension: the consumer's rows of a tile, and a tile of columns.
    static __device__ __forceinline__ void begin_product(float (&y)[kColumns / 2], uint32_t rows, uint32_t columns) {
        const uint64_t a = matrix_descriptor(rows, 16), b = matrix_descriptor(columns, 16);
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
            // 16 dimensions are 32 bytes of a row; after 64 comes the next part of the tile. Descriptors count 16 bytes.
            const int a_at = step / 4 * Shape::kRows * 8 + step % 4 * 2, b_at = step / 4 * kColumns * 8 + step % 4 * 2;
            if (step == 0) {
                wgmma_product(y, a, b, T());
            } else {
                wgmma_logits(y, a + a_at, b + b_at, 1, T());
            }
        }
        wgmma_commit();
    }

    // Begins sum += A B over the columns: A from registers.
    static __device__ __forceinline__ void begin_sum(Sum &sum, const Words &a, uint32_t columns) {
        // Not known how it was found: else the compiler holds the descriptor of one slot over the loop.
        asm volatile("" : "+r"(columns));
        const uint64_t b = matrix_descriptor(columns, kColumns * 128);
#pragma unroll
        for (int step = 0; step < kColumns / 16; ++step) {
            // 16 rows of 128 bytes.
            wgmma_add(sum, a[2 * step], a[2 * step + 1], b + step * 128, T());
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void begin_logits(uint32_t rows, uint32_t columns) { begin_product(flat(x), rows, columns); }
    __device__ __forceinline__ void begin_d(uint32_t rows, uint32_t columns) { begin_product(flat(d), rows, columns); }
    __device__ __forceinline__ void begin_of_logits(uint32_t columns) { begin_sum(of_logits, gradients, columns); }
    __device__ __forceinline__ void begin_of_weights(uint32_t columns) {
        if constexpr (kOfKeys) begin_sum(of_weights, weights, columns);
    }

    // Turns logits into weights, still in f32. `exponents`: of the columns, for dK and dV.
    __device__ __forceinline__ void weigh(const float *exponents, float c) {
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            float2 of_column = make_float2(0.0f, 0.0f);
            if (kOfKeys) of_column = *reinterpret_cast<const float2 *>(exponents + 8 * n + lane() % 4 * 2);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float shift = !kOfKeys ? exponent[i / 2] : i % 2 ? of_column.y : of_column.x;
                x[n][i] = exp2_approx(fmaf(x[n][i], c, -shift));
            }
        }
    }

    // Hides the weights outside of the mask, in a tile from `first_column` on.
    __device__ __forceinline__ void mask(const GradientItem &item, int first_column) {
        const int column = first_column + lane() % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Of the columns that this lane holds.
            const int low = item.see_first + row() + 8 * half - column;
            const int high = min(item.see_end + row() + 8 * half, item.columns) - column;
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * n + i < low || 8 * n + i >= high) x[n][2 * half + i] = 0.0f;
                }
            }
        }
    }

    // Rounds the weights. The products that read the last ones must have ended.
    __device__ __forceinline__ void round_weights() {
        if constexpr (kOfKeys) {
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
                weights[n][0] = pack(x[n][0], x[n][1], T());
                weights[n][1] = pack(x[n][2], x[n][3], T());
            }
        }
    }

    // Makes the gradients of the logits of weights and dP. `deltas`: of the columns, for dK and dV.
    __device__ __forceinline__ void differentiate(const float *deltas) {
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            float2 of_column = make_float2(0.0f, 0.0f);
            if (kOfKeys) of_column = *reinterpret_cast<const float2 *>(deltas + 8 * n + lane() % 4 * 2);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[n][i] *= d[n][i] - (!kOfKeys ? delta[i / 2] : i % 2 ? of_column.y : of_column.x);
        }
    }

    // Rounds them. The products that read the last ones, and those that add to their sum, must have ended.
    __device__ __forceinline__ void round_gradients() {
        if constexpr (kScalesLogits<T>) {
            float factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = 0.0f;
#pragma unroll
                for (int n = 0; n < kBlocks; ++n) largest = fmaxf(largest, fmaxf(fabsf(x[n][2 * half]), fabsf(x[n][2 * half + 1])));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
                // By its exponent e: times 2^(14 - e), as in the portable kernels.
                const uint32_t before = power[half];
                power[half] = max(before, min(__float_as_uint(largest) >> 23, 254u));
                const float scale = __uint_as_float((268u - power[half]) << 23);
                factor[half] = __int_as_float(max(127 + static_cast<int>(before) - static_cast<int>(power[half]), 0) << 23);
#pragma unroll
                for (int n = 0; n < kBlocks; ++n) x[n][2 * half] *= scale, x[n][2 * half + 1] *= scale;
            }
            multiply(factor);
        }
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            gradients[n][0] = pack(x[n][0], x[n][1], T());
            gradients[n][1] = pack(x[n][2], x[n][3], T());
        }
    }

    __device__ __forceinline__ void multiply(const float (&factor)[2]) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) of_logits[i] *= factor[i / 2 % 2];
    }

    // Takes the rows' powers of two back.
    __device__ __forceinline__ void unscale() {
        if constexpr (kScalesLogits<T>) {
            const float factor[2] = {__uint_as_float((power[0] - 14u) << 23), __uint_as_float((power[1] - 14u) << 23)};
            multiply(factor);
        }
    }

    using Place = Folded<kDim / 2, 128 * Shape::kConsumers>;
    static __device__ __forceinline__ Place place(float *sums, int which) {
        return Place(sums, static_cast<int64_t>(blockIdx.x) * Shape::kSums + which, thread());
    }

    // Adds the sums to those in device memory, and clears them; the first time, puts them there.
    __device__ __forceinline__ void fold(float *sums, bool is_first) {
        unscale();
        if (is_first) {
            place(sums, 0).put(of_logits);
            if constexpr (kOfKeys) place(sums, 1).put(of_weights);
        } else {
            place(sums, 0).add(of_logits);
            if constexpr (kOfKeys) place(sums, 1).add(of_weights);
        }
        clear_sums();
    }

    // Takes all of them back. They are added where the others are, since two sets of them are more than there are registers.
    __device__ __forceinline__ void unfold(float *sums) {
        fold(sums, false);
        place(sums, 0).take(of_logits);
        if constexpr (kOfKeys) place(sums, 1).take(of_weights);
    }

    // Writes this thread's rows of a gradient.
    static __device__ __forceinline__ void store(const Sum &sum, void *out, int64_t at, int64_t row_stride, bool is_f32,
                                                 const longrope_attention_backward_params &b, float factor, int rows) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int mine = row() + 8 * half;
            const int64_t row_at = at + mine * row_stride;
            const int dims = mine < rows ? b.attention.head_dim : 0;
            if (is_f32) {
                store_floats(static_cast<float *>(out) + row_at + lane() % 4 * 2, sum, half, factor, dims, b.accumulate);
            } else {
                store_words(static_cast<T *>(out) + row_at + lane() % 4 * 8, sum, half, factor, dims - lane() % 4 * 8, lane());
            }
        }
    }

    // Writes them after the transpose of their rotation, eight rows at a time. `position`: of the first row of the block. `staged`: of
    // this warp.
    static __device__ __forceinline__ void store_rotated(const Sum &sum, const GradientOut &out,
                                                         const longrope_attention_backward_params &b, float factor, int set,
                                                         int64_t position, int rows, const typename Shape::Staged &staged) {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            const int first = thread() / 32 * 16 + 8 * half;
            __syncwarp();
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                staged.put(lane() / 4, 8 * n + lane() % 4 * 2, (half ? sum[4 * n + 2] : sum[4 * n]) * factor,
                           (half ? sum[4 * n + 3] : sum[4 * n + 1]) * factor);
            }
            __syncwarp();
            staged.transpose(b.rotary, set, position + first, lane());
            __syncwarp();
            staged.template store<T, true>(out, first, rows - first, b.attention.head_dim, lane());
        }
    }

    // Writes all gradients of an item.
    __device__ __forceinline__ void store_all(const longrope_attention_backward_params &b, const GradientItem &item) {
        const float bias = exp2f(-kWeightBias<T>);
        if constexpr (kOfKeys) {
            store(of_weights, b.dv, item.out_at[1], b.dv_stride[1], b.dv_is_f32, b, bias, item.rows);
            store(of_logits, b.dk, item.out_at[0], b.dk_stride[1], b.dk_is_f32, b, b.scale * bias, item.rows);
        } else {
            store(of_logits, b.dq, item.out_at[0], b.dq_stride[1], b.dq_is_f32, b, b.scale * bias, item.rows);
        }
    }

    // The same with the transpose of the rotation. `staged`: of this warp.
    __device__ __forceinline__ void store_all_rotated(const longrope_attention_backward_params &b, const GradientItem &item,
                                                      const typename Shape::Staged &staged) {
        const float bias = exp2f(-kWeightBias<T>);
        if constexpr (kOfKeys) store(of_weights, b.dv, item.out_at[1], b.dv_stride[1], b.dv_is_f32, b, bias, item.rows);
        const GradientOut to(kOfKeys ? b.dk : b.dq, item.out_at[0], kOfKeys ? b.dk_stride[1] : b.dq_stride[1],
                             kOfKeys ? b.dk_is_f32 : b.dq_is_f32, b.accumulate);
        store_rotated(of_logits, to, b, b.scale * bias, item.set, item.position, item.rows, staged);
    }
};

}  // namespace longrope
