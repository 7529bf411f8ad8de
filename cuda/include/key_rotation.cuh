// Rotation of cached keys while they are read: a warp rotates 16 keys at a time where they lie in shared memory, before they are
// multiplied.
//
// A lane has one chunk of pairs and, of the 16 keys, every kRowsAtOnce-th: so its pairs never change. It holds their cosines and
// sines at its first key in registers, and turns them on by kRowsAtOnce keys within a step and by kStepKeys keys to the next
// step: four operations a pair, where an angle from its phase takes forty. By how much lies in shared memory, for all warps. Each
// turn adds about 1e-7 to the error, at worst 4e-7; every kExactSteps steps the angle comes from its exact phase (phase.cuh) again,
// so that it stays below 1e-5 at worst, and below 3e-6 as seen: far below half an ulp of f16 (2.4e-4).
//
// Steps with first tokens, which take another set, take all of their angles from their phases.
#pragma once

#include "cache_rotation.cuh"
#include "mma.cuh"
#include "tile.cuh"

namespace longrope {

// Keys that are rotated already.
struct KeysAsTheyAre {
    static constexpr bool kRotates = false;
    struct Params {};
    __device__ __forceinline__ KeysAsTheyAre(const Params &, int64_t, int64_t, int) {}
    __device__ __forceinline__ bool is_bad() const { return false; }
    __device__ __forceinline__ void rotate(const Params &, char *, int64_t, int) {}
};

// (x, y) turned by an angle that is given by its cosine and sine.
__device__ __forceinline__ float2 turned(float2 at, float2 by) {
    return make_float2(fmaf(at.x, by.x, -(at.y * by.y)), fmaf(at.y, by.x, at.x * by.y));
}

// Keys as they were before rotation. Pairs are a multiple of 8; angles are exact ones. kStepKeys: from a step's keys to those of
// the next; 0 where steps do not follow one another, or there is no register to hold angles between them.
template <class T, int kDim, int kThreads, int kStepKeys>
struct KeyRotation {
    using Params = longrope_cache_rotary;
    using Layout = Tile<kDim>;
    static constexpr bool kRotates = true;
    static constexpr int kPairs = 8;  // of a chunk
    static constexpr int kSlots = kDim == 64 ? 4 : kDim == 256 ? 16 : 8;  // chunks, at most
    static constexpr int kRowsAtOnce = 32 / kSlots;
    static constexpr int kExactSteps = kStepKeys > 0 ? 16 : 1;
    static_assert(kSlots * 16 >= kDim);

    int set;
    int until_exact;     // steps
    float2 at[kPairs];   // cosine and sine, times the gain, at this lane's first key of the next step

    // By how much angles are turned on, for all pairs, two at a time: by kRowsAtOnce keys, and kTurns further by kStepKeys.
    static constexpr int kTurns = kSlots * kPairs / 2;
    static __device__ __forceinline__ float4 *turns() {
        __shared__ float4 table[2 * kTurns];
        return table;
    }

    // To be called by all threads of a block.
    __device__ __forceinline__ KeyRotation(const Params &rotary, int64_t length, int64_t sequence, int lane) {
        set = length > 0 ? cached_set(rotary, length, sequence) : kShort;
        until_exact = 0;
        for (int i = threadIdx.x; i < 2 * kSlots * kPairs && set != kBadSet; i += kThreads) {
            const int slot = i / kPairs % kSlots;
            if (!has_pairs(rotary, slot)) continue;
            const uint64_t step = factor_of(set_by_number(rotary.sets, set), pair(rotary, slot, i % kPairs)).step;
            const CosSin<float> turn =
                cos_sin_of_phase<float>(phase_at(i < kSlots * kPairs ? kRowsAtOnce : kStepKeys, step));
            reinterpret_cast<float2 *>(turns())[i] = make_float2(turn.cos, turn.sin);
        }
        __syncthreads();
    }

    // Turns a lane's angles on by what the table has from there.
    static __device__ __forceinline__ void turn(float2 (&angles)[kPairs], const float4 *by, int lane) {
#pragma unroll
        for (int i = 0; i < kPairs / 2; ++i) {
            const float4 two = by[lane % kSlots * (kPairs / 2) + i];
            angles[2 * i] = turned(angles[2 * i], make_float2(two.x, two.y));
            angles[2 * i + 1] = turned(angles[2 * i + 1], make_float2(two.z, two.w));
        }
    }

    __device__ __forceinline__ bool is_bad() const { return set == kBadSet; }

    static __device__ __forceinline__ bool has_pairs(const Params &rotary, int lane) {
        return lane % kSlots < rotary.pairs / kPairs;
    }

    // The i-th pair of a lane's chunk, in the order in which the words of its two vectors hold them.
    static __device__ __forceinline__ int pair(const Params &rotary, int lane, int i) {
        const int chunk = lane % kSlots;
        if (!rotary.interleaved) return kPairs * chunk + i;
        return kPairs / 2 * chunk + i / 2 + (i % 2 ? rotary.pairs / 2 : 0);
    }

    // Angles at a position, from their phases.
    static __device__ __forceinline__ void exact(float2 (&angles)[kPairs], const Params &rotary, int set, int64_t position,
                                                 int lane) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            pair_cos_sin<float>(cached_factor(rotary, set, position, pair(rotary, lane, i)), position, &angles[i].x, &angles[i].y);
            asm volatile("" : "+f"(angles[i].x), "+f"(angles[i].y) :: "memory");
        }
    }

    // Rotates the 16 keys of a tile, the first of which stands at `key`. To be called by a whole warp.
    __device__ __forceinline__ void rotate(const Params &rotary, char *tile, int64_t key, int lane) {
        // Not known to be the same in every step: what follows from it is not to hold registers between them.
        asm volatile("" : "+r"(lane));
        if (has_pairs(rotary, lane)) rotate_chunks(rotary, tile, key + lane / kSlots, lane);
        __syncwarp();
    }

    __device__ __forceinline__ void rotate_chunks(const Params &rotary, char *tile, int64_t position, int lane) {
        const int row = lane / kSlots, chunk = lane % kSlots, other = chunk + rotary.pairs / kPairs;
        if (position - row < rotary.sets.first_tokens) {
            until_exact = 0;
#pragma unroll 1
            for (int r = row; r < 16; r += kRowsAtOnce, position += kRowsAtOnce) {
                float2 angles[kPairs];
                exact(angles, rotary, set, position, lane);
                rotate_chunk(rotary, tile + Layout::at(r, chunk), tile + Layout::at(r, other), angles);
            }
            return;
        }
        if (kExactSteps == 1 || until_exact == 0) {
            exact(at, rotary, set, position, lane);
            until_exact = kExactSteps;
        }
        --until_exact;
        float2 angles[kPairs];
#pragma unroll
        for (int i = 0; i < kPairs; ++i) angles[i] = at[i];
#pragma unroll
        for (int r = 0; r < 16; r += kRowsAtOnce) {
            rotate_chunk(rotary, tile + Layout::at(row + r, chunk), tile + Layout::at(row + r, other), angles);
            if (r + kRowsAtOnce < 16) turn(angles, turns(), lane);
        }
        if (kExactSteps > 1) turn(at, turns() + kTurns, lane);
    }

    // Rotates the pairs of two vectors. A word of the first and that of the second hold two pairs (a, b): half-split, as
    // (a, a) and (b, b); interleaved, as (a, b) and (a, b).
    static __device__ __forceinline__ void rotate_chunk(const Params &rotary, char *first, char *second,
                                                        const float2 (&angles)[kPairs]) {
        const uint32_t low = rotary.interleaved ? 0x5410 : 0x3210, high = rotary.interleaved ? 0x7632 : 0x7654;
        int4 x = *reinterpret_cast<const int4 *>(first), y = *reinterpret_cast<const int4 *>(second);
        uint32_t *const xs = reinterpret_cast<uint32_t *>(&x), *const ys = reinterpret_cast<uint32_t *>(&y);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 a = unpack(__byte_perm(xs[i], ys[i], low), T()), b = unpack(__byte_perm(xs[i], ys[i], high), T());
            const float2 s = angles[2 * i], t = angles[2 * i + 1];
            const uint32_t as = pack(fmaf(a.x, s.x, -(b.x * s.y)), fmaf(a.y, t.x, -(b.y * t.y)), T());
            const uint32_t bs = pack(fmaf(b.x, s.x, a.x * s.y), fmaf(b.y, t.x, a.y * t.y), T());
            xs[i] = __byte_perm(as, bs, low);
            ys[i] = __byte_perm(as, bs, high);
        }
        *reinterpret_cast<int4 *>(first) = x;
        *reinterpret_cast<int4 *>(second) = y;
    }
};

}  // namespace longrope
