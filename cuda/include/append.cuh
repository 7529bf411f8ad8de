// New tokens go into the cache, and their queries are rotated, in one launch: a token is rotated as in rotary.cuh, its heads
// being those of the queries, of the keys and of the values.
//
// A block takes whole tokens by their rows in the tensors of new tokens, so that their loads begin before it is known whose
// they are.
#pragma once

#include "cache_rotation.cuh"
#include "dependent_launch.cuh"
#include "rotary.cuh"

namespace longrope {

template <class T>
struct AppendWork {
    // A row of the tensors of new tokens; of a dense batch also the length of its sequence, which is asked for before all else.
    struct Source {
        int64_t batch, row, length;
    };
    // Where a token goes, and how it turns; `set` is bad if nothing is to be written of it, and so is its page.
    struct Target {
        int64_t position;
        CachedRow to;
        int set;
    };
    static constexpr bool kRotatesAll = false, kStreams = true;

    const longrope_append_params &p;

    __device__ __forceinline__ int64_t tokens() const {
        return p.tokens.starts ? p.tokens.total : p.cache.sequences * p.tokens.total;
    }
    __device__ __forceinline__ int heads() const { return p.query_heads + 2 * p.cache.key_heads; }
    __device__ __forceinline__ int pairs() const { return p.rotary.pairs; }
    __device__ __forceinline__ int head_dim() const { return p.head_dim; }
    __device__ __forceinline__ int ring_bytes() const { return p.ring_bytes; }

    __device__ __forceinline__ Source source(int64_t token) const {
        if (p.tokens.starts) return {0, token, 0};
        const bool is_narrow = ((token | p.tokens.total) >> 32) == 0;
        const int64_t sequence = is_narrow ? static_cast<uint32_t>(token) / static_cast<uint32_t>(p.tokens.total)
                                           : token / p.tokens.total;
        return {sequence, token - sequence * p.tokens.total, number_at(p.cache.lengths, p.cache.lengths_are_wide, sequence)};
    }
    __device__ __forceinline__ bool is_readable(const Source &) const { return true; }

    __device__ __forceinline__ Target target(const Source &source) const {
        Target target{0, {0, 0}, kBadSet};
        const int64_t sequence = p.tokens.starts ? sequence_of_row(p.tokens, p.cache.sequences, source.row) : source.batch;
        if (sequence < 0) return target;
        const CachedSequence one = p.tokens.starts ? CachedSequence(p.cache, p.tokens, sequence)
                                                   : CachedSequence(p.cache, p.tokens, sequence, source.length);
        if (one.length == 0) return target;
        target.position = one.first_position() + source.row - one.row;
        target.to = CachedRow::of(p.cache, sequence, target.position);
        target.set = cached_set(p.rotary, one.length, sequence);
        if (target.set == kBadSet) report(LONGROPE_DEVICE_BAD_CHOICE);
        return target;
    }

    __device__ __forceinline__ void report(uint32_t bad) const {
        if (p.status && threadIdx.x == 0 && threadIdx.y == 0) atomicOr(p.status, bad);
    }

    // Asked after the angles, which need not wait for the page's id.
    __device__ __forceinline__ bool is_writable(const Target &target) const {
        if (target.to.page < 0) report(LONGROPE_DEVICE_BAD_PAGE);
        return target.to.page >= 0;
    }

    __device__ __forceinline__ bool angle(const Target &target, int pair, float *cos, float *sin) const {
        if (target.set == kBadSet) return false;
        const PairFactor factor = cached_factor(p.rotary, target.set, target.position, pair);
        pair_cos_sin_by_kind<typename Angle<T>::Real>(p.rotary.parity, factor, target.position, cos, sin);
        return true;
    }

    // Whose head it is: 0 queries, 1 keys, 2 values; and its number among those.
    __device__ __forceinline__ int kind_of(int &head) const {
        if (head < p.query_heads) return 0;
        head -= p.query_heads;
        if (head < p.cache.key_heads) return 1;
        head -= p.cache.key_heads;
        return 2;
    }

    __device__ __forceinline__ const T *input(const Source &source, int kind, int head) const {
        const int64_t(&stride)[4] = kind == 0 ? p.q_stride : kind == 1 ? p.k_stride : p.v_stride;
        const void *const from = kind == 0 ? p.q : kind == 1 ? p.k : p.v;
        return static_cast<const T *>(from) + source.batch * stride[0] + source.row * stride[1] + head * stride[2];
    }
    __device__ __forceinline__ const T *input(const Source &source, int head) const {
        const int kind = kind_of(head);
        return input(source, kind, head);
    }

    __device__ __forceinline__ Head<T> head(const Source &source, const Target &target, int head) const {
        const int kind = kind_of(head);
        const T *const in = input(source, kind, head);
        if (kind == 0) {
            T *const out = static_cast<T *>(p.q_out) + source.batch * p.q_out_stride[0] + source.row * p.q_out_stride[1] +
                           head * p.q_out_stride[2];
            return {in, out, p.q_stride[3], p.q_out_stride[3], true};
        }
        if (kind == 1) {
            return {in, static_cast<T *>(p.cache.k) + target.to.offset(p.cache.k_stride, head), p.k_stride[3], 1,
                    !p.keys_unrotated};
        }
        return {in, static_cast<T *>(p.cache.v) + target.to.offset(p.cache.v_stride, head), p.v_stride[3], 1, false};
    }
};

template <class T, int N, bool kInterleaved>
__device__ __forceinline__ void append(const longrope_append_params &p) {
    wait_for_dependency();
    let_dependents_begin();
    if (blockIdx.x == 0 && p.status) report_bad_sequences(p.cache, p.tokens, p.status);
    rotate_tokens<T, N, kInterleaved>(AppendWork<T>{p}, static_cast<int64_t>(blockIdx.x) * blockDim.z);
}

}  // namespace longrope
