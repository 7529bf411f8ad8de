// What a warpgroup computes in Hopper's attention kernel: 64 queries of an item after the other.
//
// Logits, weights and output are in its registers, as accumulators of wgmma.cuh; queries, keys and values in shared memory.
#pragma once

#include "attention_sm90_items.cuh"
#include "carry.cuh"
#include "mma.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace longrope {

// Where a thread folds its output: memory that it alone reads and writes, so that the order of its sums is given.
template <class Shape>
struct FoldedSums {
    static constexpr int kStride = 128 * Shape::kConsumers;  // from four numbers of a thread to its next four

    float4 *output;    // in device memory, in the order of Consumer::output
    float *reference;  // in shared memory, of the thread's first row, and eight further of the second: what sums are relative to

    __device__ __forceinline__ FoldedSums(float *sums, float *references) {
        const int thread = thread_again() - 128;
        output = reinterpret_cast<float4 *>(sums) + static_cast<int64_t>(blockIdx.x) * (Shape::kRows * Shape::kDim / 4) + thread;
        reference = references + thread / 32 * 16 + thread % 32 / 4;
    }

    __device__ __forceinline__ void put(int n, const float4 &x) const { output[n * kStride] = x; }

    // Adds by the second-level cache: the thread waits for nothing.
    __device__ __forceinline__ void add(int n, const float4 &x) const {
        asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(output + n * kStride), "f"(x.x), "f"(x.y),
                     "f"(x.z), "f"(x.w)
                     : "memory");
    }

    // Reads from there too.
    __device__ __forceinline__ float4 get(int n) const {
        float4 x;
        asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                     : "l"(output + n * kStride)
                     : "memory");
        return x;
    }

    __device__ __forceinline__ void scale(float low, float high) const {
#pragma unroll 1
        for (int n = 0; n < Shape::kDim / 8; ++n) {
            const float4 x = get(n);
            put(n, make_float4(x.x * low, x.y * low, x.z * high, x.w * high));
        }
    }
};

// 64 queries of a consumer: this thread's share of their sums.
template <class T, class Shape>
struct Consumer {
    static constexpr int kDim = Shape::kDim, kKeys = Shape::kKeys;

    float output[kDim / 2];         // as an accumulator of wgmma.cuh: [columns of 8][4]
    float logits[kKeys / 8][4];  // likewise; then their weights
    uint32_t weights[kKeys / 8][2];
    RowState row[2];

    __device__ __forceinline__ void clear_output() {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) output[i] = 0.0f;
    }

    // So that they hold no registers before.
    __device__ __forceinline__ void clear_logits() {
#pragma unroll
        for (float &x : flat_logits()) asm volatile("mov.f32 %0, 0f00000000;" : "=f"(x));
    }

    __device__ __forceinline__ void reset_rows() {
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
            wgmma_logits(flat_logits(), q + q_at, k + k_at, step > 0, T());
        }
        wgmma_commit();
    }

    // Begins O += P V.
    __device__ __forceinline__ void begin_output(uint32_t values) {
        const uint64_t v = matrix_descriptor(values, kKeys * 128);
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            // 16 rows of 128 bytes.
            wgmma_add(output, weights[2 * step], weights[2 * step + 1], v + step * 128, T());
        }
        wgmma_commit();
    }

    // Masks the logits of a tile whose first key is `first_key`.
    __device__ __forceinline__ void mask(const HopperItem &item, int first_key) {
        const int thread = thread_again() - 128, lane = thread % 32;
        const int column = first_key + lane % 4 * 2, row = thread / 32 * 16 + lane / 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Of the columns that this lane holds.
            const int low = item.see_first + row + 8 * half - column;
            const int high = min(item.see_end + row + 8 * half, item.keys) - column;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * n + i < low || 8 * n + i >= high) logits[n][2 * half + i] = -INFINITY;
                }
            }
        }
    }

    // Turns logits into weights, still in f32, and returns the factors of what was summed before.
    __device__ __forceinline__ void weigh(float (&factor)[2], float c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
                largest = fmaxf(largest, fmaxf(logits[n][2 * half], logits[n][2 * half + 1]));
            }
            factor[half] = row[half].raise(largest, c);
            const float shift = kWeightBias<T> - row[half].finite();
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    logits[n][i] = exp2_approx(fmaf(logits[n][i], c, shift));
                }
                sum += logits[n][2 * half] + logits[n][2 * half + 1];
            }
            row[half].sum += sum;
        }
    }

    // Rounds the weights to 16 bits. The products that read the last ones must have ended.
    __device__ __forceinline__ void round_weights() {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
            weights[n][0] = pack(logits[n][0], logits[n][1], T());
            weights[n][1] = pack(logits[n][2], logits[n][3], T());
        }
    }

    __device__ __forceinline__ void scale_output(const float (&factor)[2]) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) output[i] *= factor[i / 2 % 2];
    }

    // Adds the output to the folded sums, and clears it; the first time, puts it there. The sums stay relative to the maximum of
    // the first time, unless that has since grown so far that they might overflow.
    __device__ __forceinline__ void fold(const FoldedSums<Shape> &sums, const RowState (&row)[2], bool is_first) {
        constexpr float kFar = 60.0f;
        float above[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) above[half] = row[half].finite() - sums.reference[8 * half];
        // A reference of the warp's own rows; all lanes of a row write the same.
        __syncwarp();
        // Below zero only where no key was seen before: the sums are zero.
        const bool is_far = __any_sync(0xffffffff, above[0] > kFar || above[1] > kFar || above[0] < 0.0f || above[1] < 0.0f);
        if (is_first || is_far) {
#pragma unroll
            for (int half = 0; half < 2; ++half) sums.reference[8 * half] = row[half].finite();
            if (!is_first) sums.scale(exp2_approx(fminf(-above[0], 0.0f)), exp2_approx(fminf(-above[1], 0.0f)));
            above[0] = above[1] = 0.0f;
        }
        const float factor[2] = {exp2_approx(above[0]), exp2_approx(above[1])};
        scale_output(factor);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            const float4 x = make_float4(output[4 * n], output[4 * n + 1], output[4 * n + 2], output[4 * n + 3]);
            if (is_first) {
                sums.put(n, x);
            } else {
                sums.add(n, x);
            }
        }
        clear_output();
    }

    // Takes all sums back into the output, for rows that ended with `ended`. They are added where the others are, since two sets
    // of them are more than there are registers.
    __device__ __forceinline__ void unfold(const FoldedSums<Shape> &sums, const RowState (&ended)[2]) {
        fold(sums, ended, false);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            const float4 x = sums.get(n);
            output[4 * n] = x.x, output[4 * n + 1] = x.y, output[4 * n + 2] = x.z, output[4 * n + 3] = x.w;
        }
        const float factor[2] = {exp2_approx(sums.reference[0] - ended[0].finite()), exp2_approx(sums.reference[8] - ended[1].finite())};
        scale_output(factor);
    }

    // Writes this warp's 16 rows: the output over the sum, and the log-sum-exp.
    __device__ __forceinline__ void store(const longrope_attention_sm90_params &h, const HopperItem &item, const RowState (&row)[2]) {
        const longrope_attention_params &p = h.attention;
        const int thread = thread_again() - 128, first = thread / 32 * 16, lane = thread % 32;
        if (item.is_bad) {
            if (p.status && lane == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_PAGE);
            if (thread == 0) mark_bad_rows(h, item);
            return;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = row[half].total();
            float inverse = sum == 0.0f ? 0.0f : reciprocal_approx(sum);
            float lse = sum == 0.0f ? -INFINITY : (log2f(sum) + (row[half].finite() - kWeightBias<T>)) * 0.693147180559945f;
            const int query = first + 8 * half + lane / 4;
            const bool is_there = query < item.rows;
            // With parts, the first one takes it in.
            if (p.carry && item.part == 0 && is_there) carry_in(p, item, query, half, inverse, lse);
            if (p.lse && is_there && lane % 4 == 0) p.lse[item.lse_at + query * p.lse_stride[1]] = lse;
            const int64_t at = item.out_at + query * p.out_stride[1];
            if (p.out_is_f32) {
                store_floats(static_cast<float *>(p.out) + at + lane % 4 * 2, inverse, half, is_there ? p.head_dim : 0);
            } else {
                store_words(static_cast<T *>(p.out) + at + lane % 4 * 8, inverse, half, is_there ? p.head_dim - lane % 4 * 8 : 0);
            }
        }
    }

    // Merges a row with the earlier result; then nothing is left for its output to be divided by.
    __device__ __forceinline__ void carry_in(const longrope_attention_params &p, const HopperItem &item, int query, int half,
                                             float &inverse, float &lse) {
        const int64_t at = item.first_query + query;
        const CarriedRow row(p, item.batch, at, item.head, lse);
        const float *const from = row.out(p, item.batch, at, item.head) + thread_again() % 4 * 2;
        const float own = row.own * inverse;
        inverse = 1.0f;
        lse = row.lse;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            float2 x = make_float2(0.0f, 0.0f);
            if (row.earlier != 0.0f && 8 * n < p.head_dim) x = *reinterpret_cast<const float2 *>(from + 8 * n);
            output[4 * n + 2 * half] = fmaf(output[4 * n + 2 * half], own, x.x * row.earlier);
            output[4 * n + 2 * half + 1] = fmaf(output[4 * n + 2 * half + 1], own, x.y * row.earlier);
        }
    }

    __device__ __forceinline__ void store_floats(float *to, float inverse, int half, int dims) const {
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            const float x = output[4 * n + 2 * half] * inverse, y = output[4 * n + 2 * half + 1] * inverse;
            if (8 * n < dims) *reinterpret_cast<float2 *>(to + 8 * n) = make_float2(x, y);
        }
    }

    // Of four neighbouring blocks of 8 columns, each of the four lanes of a row takes one, and writes it at once.
    __device__ __forceinline__ void store_words(T *to, float inverse, int half, int dims) const {
        const int lane = thread_again() % 32;
#pragma unroll
        for (int n = 0; n < kDim / 8; n += 4) {
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                word[i] = pack(output[4 * (n + i) + 2 * half] * inverse, output[4 * (n + i) + 2 * half + 1] * inverse, T());
            }
            exchange(word[0], word[1], lane, 1);
            exchange(word[2], word[3], lane, 1);
            exchange(word[0], word[2], lane, 2);
            exchange(word[1], word[3], lane, 2);
            if (8 * n < dims) *reinterpret_cast<uint4 *>(to + 8 * n) = make_uint4(word[0], word[1], word[2], word[3]);
        }
    }

    // Exchanges the second word of lanes without a bit for the first of those with it.
    static __device__ __forceinline__ void exchange(uint32_t &first, uint32_t &second, int lane, int bit) {
        const bool has = lane & bit;
        const uint32_t other = __shfl_xor_sync(0xffffffff, has ? first : second, bit);
        (has ? first : second) = other;
    }
};

}  // namespace longrope
