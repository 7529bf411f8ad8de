// How Hopper's attention kernel rotates queries: two warps take each item's queries from the tensor, rotate them, and put them into
// device memory of the block's own, from where they are loaded. They do so while the item before is computed, so that the
// time that it takes is seen once a launch. What they write is small enough to stay in the second-level cache.
//
// A lane has two pairs at a time and goes from row to row. It turns their angles on by the same number of rows each time, four
// operations a pair; every kExactRows rows they come from their exact phases again (phase.cuh), so that the error stays below
// 1e-5 (key_rotation.cuh). Angles of first tokens always do.
#pragma once

#include "attention_sm90_items.cuh"
#include "key_rotation.cuh"

namespace longrope {

constexpr int kRotatingWarps = 2;

// The first row of an item's queries in the memory for rotated ones.
template <class Shape>
__device__ __forceinline__ int rotated_row(int slot) {
    return (static_cast<int>(blockIdx.x) * kItemSlots + slot) * Shape::kRows;
}

// Two words of a row, each of two elements, that are rotated together: half-split, the pairs (2 w, 2 w + 1); interleaved, the
// pairs w and pairs / 2 + w. The registers of these warps are few: what is only needed now and then is in shared memory.
template <class Shape>
struct RotatedWords {
    static constexpr int kThreads = kRotatingWarps * 32;
    static constexpr bool kAnglesAreShared = Shape::kLoaderRegisters < 40;

    float4 *shared;  // this thread's: by how much its angles are turned on, and the angles, if they are there
    float4 held;     // cosine and sine of the first pair, and of the second, times the gain

    static __device__ __forceinline__ float4 *memory() {
        __shared__ float4 words[kThreads * (kAnglesAreShared ? 2 : 1)];
        return words;
    }

    static __device__ __forceinline__ int pair(const longrope_cache_rotary &rotary, int word, int i) {
        return rotary.interleaved ? word + (i ? rotary.pairs / 2 : 0) : 2 * word + i;
    }

    __device__ __forceinline__ float4 angles() const { return kAnglesAreShared ? shared[kThreads] : held; }

    __device__ __forceinline__ void begin(const longrope_cache_rotary &rotary, int set, int word, int rows_at_once) {
        shared = memory() + thread_again() % kThreads;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint64_t step = factor_of(set_by_number(rotary.sets, set), pair(rotary, word, i)).step;
            const CosSin<float> by = cos_sin_of_phase<float>(phase_at(rows_at_once, step));
            reinterpret_cast<float2 *>(shared)[i] = make_float2(by.cos, by.sin);
        }
    }

    // Angles at a position, from their phases.
    __device__ __forceinline__ void go_to(const longrope_cache_rotary &rotary, int set, int word, int64_t position) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float2 at;
            pair_cos_sin<float>(cached_factor(rotary, set, position, pair(rotary, word, i)), position, &at.x, &at.y);
            asm volatile("" : "+f"(at.x), "+f"(at.y)::"memory");
            if (kAnglesAreShared) {
                reinterpret_cast<float2 *>(shared + kThreads)[i] = at;
            } else {
                (i ? held.z : held.x) = at.x, (i ? held.w : held.y) = at.y;
            }
        }
    }

    // Rotates two words, and turns the angles on.
    template <class T>
    __device__ __forceinline__ void rotate(const longrope_cache_rotary &rotary, uint32_t &x, uint32_t &y, T) {
        const uint32_t low = rotary.interleaved ? 0x5410 : 0x3210, high = rotary.interleaved ? 0x7632 : 0x7654;
        const float4 at = angles();
        const float2 a = unpack(__byte_perm(x, y, low), T()), b = unpack(__byte_perm(x, y, high), T());
        const uint32_t as = pack(fmaf(a.x, at.x, -(b.x * at.y)), fmaf(a.y, at.z, -(b.y * at.w)), T());
        const uint32_t bs = pack(fmaf(b.x, at.x, a.x * at.y), fmaf(b.y, at.z, a.y * at.w), T());
        x = __byte_perm(as, bs, low);
        y = __byte_perm(as, bs, high);
        const float4 by = *shared;
        const float2 first = turned(make_float2(at.x, at.y), make_float2(by.x, by.y));
        const float2 second = turned(make_float2(at.z, at.w), make_float2(by.z, by.w));
        (kAnglesAreShared ? shared[kThreads] : held) = make_float4(first.x, first.y, second.x, second.y);
    }
};

// Rotates the queries of an item into the rows of its slot.
template <class T, class Shape>
__device__ __forceinline__ void rotate_queries(const longrope_attention_sm90_params &h, const HopperItem &item, int slot) {
    const longrope_attention_params &p = h.attention;
    const longrope_cache_rotary &rotary = h.rotary;
    constexpr int kWords = Shape::kDim == 64 ? 16 : 32;  // pairs of words that a row has for the lanes
    constexpr int kAtOnce = kRotatingWarps * 32 / kWords, kAhead = Shape::kLoaderRegisters < 40 ? 1 : 2, kExactRows = 16;
    // Found anew each time.
    const auto from = [&](int row) {
        asm volatile("" ::: "memory");
        return reinterpret_cast<const uint32_t *>(static_cast<const T *>(p.q) + item.query_at + row * p.q_stride[1]);
    };
    const auto to = [&](int row) {
        asm volatile("" ::: "memory");
        return static_cast<uint32_t *>(h.rotated) + static_cast<int64_t>(rotated_row<Shape>(slot) + row) * (p.head_dim / 2);
    };
    const auto lane_word = [] { return thread_again() % kWords; };
    const auto lane_row = [] { return thread_again() % (kRotatingWarps * 32) / kWords; };
    // A lane has two rows under way at most: they are not to come from far.
#pragma unroll 1
    for (int row = thread_again() % RotatedWords<Shape>::kThreads; row < item.rows; row += RotatedWords<Shape>::kThreads) {
        const uint32_t *const line = from(row);
        for (int at = 0; at < p.head_dim / 2; at += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(line + at));
    }
#pragma unroll 1
    for (int first = 0; first < Shape::kDim / 4; first += kWords) {
        const auto word = [&] { return first + lane_word(); };
        if (word() >= rotary.pairs / 2) break;
        RotatedWords<Shape> mine;
        mine.begin(rotary, item.set, word(), kAtOnce);
        for (int row = lane_row(); row < item.rows;) {
            mine.go_to(rotary, item.set, word(), item.position + row);
            const bool is_first_token = item.position + row < rotary.sets.first_tokens;
            const int end = min(row + (is_first_token ? 1 : kExactRows * kAtOnce), item.rows);
#pragma unroll 1
            for (; row < end; row += kAhead * kAtOnce) {
                uint32_t x[kAhead], y[kAhead];
#pragma unroll
                for (int i = 0; i < kAhead; ++i) {
                    if (row + i * kAtOnce >= end) break;
                    const uint32_t *const at = from(row + i * kAtOnce) + word();
                    x[i] = at[0], y[i] = at[rotary.pairs / 2];
                }
#pragma unroll
                for (int i = 0; i < kAhead; ++i) {
                    if (row + i * kAtOnce >= end) break;
                    mine.rotate(rotary, x[i], y[i], T());
                    uint32_t *const at = to(row + i * kAtOnce) + word();
                    at[0] = x[i], at[rotary.pairs / 2] = y[i];
                }
            }
            // The next row of this lane, where that was not as many as the loop takes.
            if (is_first_token) row += kAtOnce - kAhead * kAtOnce;
        }
    }
    // Dimensions that are left as they are.
    for (int word = rotary.pairs + lane_word(); word < p.head_dim / 2; word += kWords) {
        for (int row = lane_row(); row < item.rows; row += kAtOnce) to(row)[word] = from(row)[word];
    }
}

// What the warps do that rotate queries.
template <class T, class Shape, class Shared>
__device__ __forceinline__ void rotate_items(const longrope_attention_sm90_params &h, const Shared &shared, const HopperItem *items) {
    static_assert(kItemSlots == 2);
    // How many items there were, for each warp: not in a register either.
    __shared__ volatile int items_before[kRotatingWarps];
    const auto number = [&]() -> volatile int & { return items_before[thread_again() / 32 % kRotatingWarps]; };
    number() = 0;
    for (;;) {
        __syncwarp();
        const int now = number(), slot = now & 1;
        barrier_wait(shared.item_full(slot), now >> 1 & 1);
        if (items[slot].is_last) return;
        rotate_queries<T, Shape>(h, items[slot], slot);
        // The copy engine is to see what was written.
        asm volatile("fence.proxy.async;" ::: "memory");
        __syncwarp();
        const int done = number();
        if (thread_again() % 32 == 0) barrier_arrive(shared.rotated(done & 1));
        __syncwarp();
        number() = done + 1;
    }
}

}  // namespace longrope
