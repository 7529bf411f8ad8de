// How Hopper's attention kernel rotates queries: each consumer those of its own, where they lie in shared memory, before its first
// product of an item.
//
// A thread has two pairs at a time and goes from row to row. It turns their angles on by the same number of rows each time, four
// operations a pair; every kExactRows rows they come from their exact phases again (phase.cuh), so that the error stays below
// 1e-5 (key_rotation.cuh). Angles of first tokens always do.
#pragma once

#include "attention_sm90_items.cuh"
#include "key_rotation.cuh"
#include "wgmma.cuh"

namespace longrope {

// Two words of a row, each of two elements, that are rotated together: half-split, the pairs (2 w, 2 w + 1); interleaved, the
// pairs w and pairs / 2 + w.
struct RotatedWords {
    float2 at[2], by[2];  // cosine and sine, times the gain, of both pairs; and by how much they are turned on

    static __device__ __forceinline__ int pair(const longrope_cache_rotary &rotary, int word, int i) {
        return rotary.interleaved ? word + (i ? rotary.pairs / 2 : 0) : 2 * word + i;
    }

    __device__ __forceinline__ RotatedWords(const longrope_cache_rotary &rotary, int set, int word, int rows_at_once) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint64_t step = factor_of(set_by_number(rotary.sets, set), pair(rotary, word, i)).step;
            const CosSin<float> turn = cos_sin_of_phase<float>(phase_at(rows_at_once, step));
            by[i] = make_float2(turn.cos, turn.sin);
        }
    }

    // Angles at a position, from their phases.
    __device__ __forceinline__ void go_to(const longrope_cache_rotary &rotary, int set, int word, int64_t position) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            pair_cos_sin<float>(cached_factor(rotary, set, position, pair(rotary, word, i)), position, &at[i].x, &at[i].y);
        }
    }

    __device__ __forceinline__ void turn_on() {
#pragma unroll
        for (int i = 0; i < 2; ++i) at[i] = turned(at[i], by[i]);
    }

    template <class T>
    __device__ __forceinline__ void rotate(const longrope_cache_rotary &rotary, uint32_t &x, uint32_t &y, T) const {
        const uint32_t low = rotary.interleaved ? 0x5410 : 0x3210, high = rotary.interleaved ? 0x7632 : 0x7654;
        const float2 a = unpack(__byte_perm(x, y, low), T()), b = unpack(__byte_perm(x, y, high), T());
        const uint32_t as = pack(fmaf(a.x, at[0].x, -(b.x * at[0].y)), fmaf(a.y, at[1].x, -(b.y * at[1].y)), T());
        const uint32_t bs = pack(fmaf(b.x, at[0].x, a.x * at[0].y), fmaf(b.y, at[1].x, a.y * at[1].y), T());
        x = __byte_perm(as, bs, low);
        y = __byte_perm(as, bs, high);
    }
};

__device__ __forceinline__ uint32_t shared_word(uint32_t address) {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}

__device__ __forceinline__ void put_shared_word(uint32_t address, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

// Rotates the 64 queries of a consumer, which are the item's from `first_row` on. `tile`: where they lie. By all of its threads.
template <class T, class Shape>
__device__ __forceinline__ void rotate_queries(const longrope_cache_rotary &rotary, const HopperItem &item, uint32_t tile, int first_row) {
    constexpr int kWords = Shape::kDim / 4;  // pairs of words that a row has at most
    constexpr int kAtOnce = 128 / kWords, kExactRows = 16, kBatch = 4;
    const int thread = thread_again() % 128, word = thread % kWords;
    // Rows of 128 bytes, whose chunks of 16 bytes are swizzled; 64 dimensions after the other.
    const auto place = [&](int row, int word) {
        const int chunk = word / 4 % 8 ^ row % 8;
        return tile + word / 32 * (Shape::kRows * 128) + row * 128 + chunk * 16 + word % 4 * 4;
    };
    if (word < rotary.pairs / 2) {
        RotatedWords mine(rotary, item.set, word, kAtOnce);
        const int64_t position = item.position + first_row;
        const bool has_first_tokens = position < rotary.sets.first_tokens;
        int until_exact = 0;
#pragma unroll 1
        for (int row = thread / kWords; row < 64; row += kBatch * kAtOnce) {
            // Of several rows, so that none waits for what the one before is waiting for.
            uint32_t x[kBatch], y[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                x[i] = shared_word(place(row + i * kAtOnce, word));
                y[i] = shared_word(place(row + i * kAtOnce, word + rotary.pairs / 2));
            }
            if (until_exact == 0) {
                mine.go_to(rotary, item.set, word, position + row);
                until_exact = kExactRows;
            }
            until_exact -= kBatch;
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (has_first_tokens && i > 0) mine.go_to(rotary, item.set, word, position + row + i * kAtOnce);
                mine.rotate(rotary, x[i], y[i], T());
                mine.turn_on();
            }
            if (has_first_tokens) until_exact = 0;
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                put_shared_word(place(row + i * kAtOnce, word), x[i]);
                put_shared_word(place(row + i * kAtOnce, word + rotary.pairs / 2), y[i]);
            }
        }
    }
    fence_for_tensor_cores();
    // Hardware barriers after those of turns (attention_sm90.cuh).
    asm volatile("bar.sync %0, 128;" ::"r"(thread_again() / 128 + Shape::kConsumers) : "memory");
}

}  // namespace longrope
