// What a decoding warp sums: the products of its keys with the queries of an item, their weights, and the values by those.
#pragma once

#include "decode_loads.cuh"
#include "mma.cuh"
#include "softmax.cuh"

namespace longrope {

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

// The queries of an item and what a warp has summed for them.
template <class T, class Shape>
struct DecodeWarp {
    static constexpr int kN = Shape::kN, kSteps = Shape::kDim / 16;
    using Layout = Tile<Shape::kDim>;

    uint32_t q[kN][kSteps][2];
    float output[kSteps][kN][4];
    ColumnState column[kN][2];
    // Of the step.
    float s[kN][4], factor[kN][2];
    uint32_t weights[kN][2];

    // Where this lane's rows of queries lie; null: there is none.
    struct Place {
        const T *row[kN];

        Place() = default;
        __device__ __forceinline__ Place(const longrope_decode_params &p, const DecodeItem &item, int lane) {
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const int i = 8 * n + lane / 4;
                row[n] = i < item.rows ? static_cast<const T *>(p.q) + item.offset(p, p.q_stride, i) + lane % 4 * 2 : nullptr;
            }
        }
    };

    // Asks for the queries.
    __device__ __forceinline__ void ask(const longrope_decode_params &p, const Place &place) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int dim = 16 * step + 8 * half;
                    q[n][step][half] = 0;
                    if (place.row[n] && dim < p.head_dim) q[n][step][half] = *reinterpret_cast<const uint32_t *>(place.row[n] + dim);
                }
            }
        }
    }

    // Takes them when they have come, and begins with nothing summed.
    __device__ __forceinline__ void start(const longrope_decode_params &p) {
        const uint32_t sign = p.negate ? 0x80008000u : 0;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                q[n][step][0] ^= sign;
                q[n][step][1] ^= sign;
#pragma unroll
                for (int i = 0; i < 4; ++i) output[step][n][i] = 0.0f;
            }
            column[n][0] = column[n][1] = ColumnState{-INFINITY, 0.0f};
        }
    }

    // Logits of 16 keys.
    __device__ __forceinline__ void multiply_keys(const char *tile, int lane) {
        const uint32_t keys = shared_address(tile) + Layout::at(lane % 16, lane / 16);
        // Two sums of half of the dimensions each, as a product waits for the one before it that it adds to.
        float odd[kN][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t a[4];
            load_matrices(a, Layout::advance(keys, 2 * step));
#pragma unroll
            for (int n = 0; n < kN; ++n) mma(step % 2 ? odd[n] : s[n], a, q[n][step][0], q[n][step][1], step < 2, T());
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
        }
    }

    // Turns logits into weights; the keys are those from `key` on.
    __device__ __forceinline__ void weigh(const longrope_decode_params &p, const DecodeItem &item, int64_t key, bool masked,
                                          int lane) {
        if (masked) mask(s, p, item, key, lane);
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
    }

    // Adds the values of those keys.
    __device__ __forceinline__ void add_values(const char *tile, int lane) {
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

}  // namespace longrope
