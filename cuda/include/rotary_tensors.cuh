// Queries and keys as tensors, by the three ways that their angles may be found.
#pragma once

#include "factors.cuh"
#include "rotary.cuh"

namespace longrope {

// A token's sequence and its index there.
struct Place {
    int64_t sequence, token;

    static __device__ __forceinline__ Place of(const longrope_rotary_params &p, int64_t index) {
        if (p.batch == 1) return {0, index};
        const bool is_narrow = ((index | p.length) >> 32) == 0;
        const int64_t sequence = is_narrow ? static_cast<uint32_t>(index) / static_cast<uint32_t>(p.length) : index / p.length;
        return {sequence, index - sequence * p.length};
    }
};

// One head among those of q and k.
template <class T>
__device__ __forceinline__ Head<T> tensor_head(const longrope_rotary_params &p, const Place &place, int head) {
    const int which = head < p.tensor[0].heads ? 0 : 1;
    const longrope_rotary_tensor &x = p.tensor[which];
    if (which) head -= p.tensor[0].heads;
    const int64_t in = place.sequence * x.in_stride[0] + place.token * x.in_stride[1] + head * x.in_stride[2];
    const int64_t out = place.sequence * x.out_stride[0] + place.token * x.out_stride[1] + head * x.out_stride[2];
    return {static_cast<const T *>(x.in) + in, static_cast<T *>(x.out) + out, x.in_stride[3], x.out_stride[3], true};
}

// Where a token's cosines and sines come from; the three kernels differ in nothing else.
template <class Real>
struct PlainAngles {
    const longrope_rotary_params &p;

    __device__ __forceinline__ bool operator()(int64_t sequence, int64_t position, int pair, float *cos,
                                               float *sin) const {
        const int of_sequence = sequence_set(p.choice_kind, p.choices, sequence, p.sets.original_length);
        if (of_sequence == kBadSet) return false;
        const int set = token_set(of_sequence, position, p.sets.first_tokens);
        pair_cos_sin_by_kind<Real>(p.parity, factor_of(set_by_number(p.sets, set), pair), position, cos, sin);
        return true;
    }
};

template <class Real>
struct AnglesOfTable {
    const longrope_rotary_table_params &p;

    __device__ __forceinline__ bool operator()(int64_t sequence, int64_t position, int pair, float *cos,
                                               float *sin) const {
        const int64_t index = table_index(p.rotary.choices, sequence, p.count);
        if (index < 0) return false;
        const bool is_first = token_set(kShort, position, p.rotary.sets.first_tokens) == kPlain;
        const longrope_factor_set &set = is_first ? p.rotary.sets.plain_set : p.table[index];
        pair_cos_sin_by_kind<Real>(p.rotary.parity, factor_of(set, pair), position, cos, sin);
        return true;
    }
};

template <class Real>
struct AnglesBetween {
    const longrope_rerotate_params &p;

    __device__ __forceinline__ bool operator()(int64_t sequence, int64_t position, int pair, float *cos,
                                               float *sin) const {
        int to = sequence_set(p.rotary.choice_kind, p.rotary.choices, sequence, p.rotary.sets.original_length);
        int from = sequence_set(p.from_choice_kind, p.from_choices, sequence, p.from.original_length);
        if (to == kBadSet || from == kBadSet) return false;
        const int64_t moved = static_cast<int64_t>(static_cast<uint64_t>(position) + static_cast<uint64_t>(p.shift));
        to = token_set(to, moved, p.rotary.sets.first_tokens);
        from = token_set(from, position, p.from.first_tokens);
        pair_cos_sin_between<Real>(factor_of(set_by_number(p.from, from), pair),
                                   factor_of(set_by_number(p.rotary.sets, to), pair), position, p.shift, cos, sin);
        return true;
    }
};

// What rotate_tokens does with a batch.
template <class T, class Angles>
struct TensorWork {
    using Source = Place;
    using Target = Place;
    static constexpr bool kRotatesAll = true, kStreams = false;

    const longrope_rotary_params &p;
    Angles angles;

    __device__ __forceinline__ int64_t tokens() const { return p.batch * p.length; }
    __device__ __forceinline__ int heads() const { return p.tensor[0].heads + p.tensor[1].heads; }
    __device__ __forceinline__ int pairs() const { return p.pairs; }
    __device__ __forceinline__ int head_dim() const { return p.head_dim; }
    __device__ __forceinline__ int ring_bytes() const { return p.ring_bytes; }
    __device__ __forceinline__ Source source(int64_t token) const { return Place::of(p, token); }
    __device__ __forceinline__ bool is_readable(const Source &) const { return true; }
    __device__ __forceinline__ Target target(const Source &source) const { return source; }
    __device__ __forceinline__ bool is_writable(const Target &) const { return true; }
    __device__ __forceinline__ const T *input(const Source &place, int head) const { return tensor_head<T>(p, place, head).in; }
    __device__ __forceinline__ Head<T> head(const Source &place, const Target &, int head) const {
        return tensor_head<T>(p, place, head);
    }

    __device__ __forceinline__ bool angle(const Target &place, int pair, float *cos, float *sin) const {
        const int64_t position =
            token_position(p.position_kind, p.positions, p.position_offset, place.sequence, p.length, place.token);
        if (!angles(place.sequence, position, pair, cos, sin)) {
            if (p.status && pair == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
            return false;
        }
        if (p.backward) *sin = -*sin;
        return true;
    }
};

template <class T, int N, bool kInterleaved, class Angles>
__device__ __forceinline__ void rotate_tensors(const longrope_rotary_params &p, const Angles &angles) {
    const TensorWork<T, Angles> work{p, angles};
    rotate_tokens<T, N, kInterleaved>(work, static_cast<int64_t>(blockIdx.x) * blockDim.z);
}

}  // namespace longrope
