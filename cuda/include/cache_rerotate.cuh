// Keys of a cache, rotated out of one set and into another, where they lie.
//
// How many tokens there are is found on the device, so the grid is of a fixed size: blocks walk through the sequences together,
// each taking every gridDim.x-th group of blockDim.z tokens in the line of all of them.
#pragma once

#include "cache_rotation.cuh"
#include "rotary.cuh"

namespace longrope {

// The tokens of one sequence.
template <class T>
struct RerotateWork {
    struct Source {
        int64_t position;
        CachedRow at;
    };
    using Target = Source;
    static constexpr bool kRotatesAll = true, kStreams = false;

    const longrope_cache_rerotate_params &p;
    int64_t sequence, length;
    int from, to;  // its sets

    __device__ __forceinline__ int64_t tokens() const { return length; }
    __device__ __forceinline__ int heads() const { return p.cache.key_heads; }
    __device__ __forceinline__ int pairs() const { return p.to.pairs; }
    __device__ __forceinline__ int head_dim() const { return p.head_dim; }
    __device__ __forceinline__ int ring_bytes() const { return p.ring_bytes; }

    __device__ __forceinline__ Source source(int64_t token) const { return {token, CachedRow::of(p.cache, sequence, token)}; }
    __device__ __forceinline__ bool is_readable(const Source &source) const {
        if (source.at.page < 0 && p.status && threadIdx.x == 0 && threadIdx.y == 0) {
            atomicOr(p.status, LONGROPE_DEVICE_BAD_PAGE);
        }
        return source.at.page >= 0;
    }
    __device__ __forceinline__ Target target(const Source &source) const { return source; }
    __device__ __forceinline__ bool is_writable(const Target &) const { return true; }

    __device__ __forceinline__ bool angle(const Target &target, int pair, float *cos, float *sin) const {
        pair_cos_sin_between<typename Angle<T>::Real>(cached_factor(p.from, from, target.position, pair),
                                                      cached_factor(p.to, to, target.position, pair), target.position, 0, cos,
                                                      sin);
        return true;
    }

    __device__ __forceinline__ T *key(const Source &source, int head) const {
        return static_cast<T *>(p.cache.k) + source.at.offset(p.cache.k_stride, head);
    }
    __device__ __forceinline__ const T *input(const Source &source, int head) const { return key(source, head); }
    __device__ __forceinline__ Head<T> head(const Source &source, const Target &, int head) const {
        T *const at = key(source, head);
        return {at, at, 1, 1, true};
    }
};

// What a sequence has to be done.
struct RerotateSequence {
    int64_t length;  // 0: nothing
    int from, to;

    static __device__ __forceinline__ RerotateSequence of(const longrope_cache_rerotate_params &p, int64_t sequence) {
        RerotateSequence one{0, kShort, kShort};
        if (sequence >= p.cache.sequences) return one;
        const int64_t length = number_at(p.cache.lengths, p.cache.lengths_are_wide, sequence);
        uint32_t bad = length < 0 || length > p.cache.capacity ? LONGROPE_DEVICE_BAD_LENGTH : 0;
        if (bad == 0 && length > 0) {
            one.from = cached_set(p.from, length, sequence);
            one.to = cached_set(p.to, length, sequence);
            if (one.from == kBadSet || one.to == kBadSet) bad = LONGROPE_DEVICE_BAD_CHOICE;
            if (bad == 0 && !(p.same_sets && one.from == one.to)) one.length = length;
        }
        if (bad && p.status && blockIdx.x == 0) atomicOr(p.status, bad);
        return one;
    }
};

template <class T, int N, bool kInterleaved>
__device__ __forceinline__ void rerotate_cache(const longrope_cache_rerotate_params &p) {
    // Many sequences at once, lest each wait for its own length. Blocks need not be whole warps, so that these are handed round in
    // shared memory.
    constexpr int kAtOnce = 32;
    __shared__ RerotateSequence sequences[kAtOnce];
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int64_t group = blockIdx.x;
    for (int64_t base = 0; base < p.cache.sequences; base += kAtOnce) {
        for (int i = thread; i < kAtOnce; i += blockDim.x * blockDim.y * blockDim.z) {
            sequences[i] = RerotateSequence::of(p, base + i);
        }
        __syncthreads();
        for (int i = 0; i < kAtOnce; ++i) {
            const RerotateWork<T> work{p, base + i, sequences[i].length, sequences[i].from, sequences[i].to};
            const int64_t groups = (work.length + blockDim.z - 1) / blockDim.z;
            for (; group < groups; group += gridDim.x) {
                rotate_tokens<T, N, kInterleaved>(work, group * blockDim.z);
                __syncthreads();  // the angles are read
            }
            group -= groups;
        }
        __syncthreads();  // and the sequences
    }
}

}  // namespace longrope
