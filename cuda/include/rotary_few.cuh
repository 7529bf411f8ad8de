// Rotation of few tokens, as in decoding, where time is the length of one chain of dependent steps.
//
// The angles are not shared: each thread computes those of its own two pairs, so that there is no table, no barrier and no
// loop, and heads spread over multiprocessors. That is too much arithmetic for many tokens, where rotary.cuh is faster.
//
//   block (x, y) = pairs of a head / 2, heads; at most 128 threads, and `token_blocks` blocks a token
//
//   begin to read the factors of both pairs from each of the three sets; q or k; position and choice of set
//   choose; cosine and sine; rotate; store
//
// Steps are read before it is known which set is wanted: the choice may itself have to come from memory. The arithmetic is
// that of rotary.cuh, so a token has the same bits whichever of the two rotates it. Exact angles only.
#pragma once

#include "divide.cuh"
#include "rotary_tensors.cuh"

namespace longrope {

template <class T, bool kInterleaved>
__device__ __forceinline__ void rotate_few(const longrope_rotary_params &p) {
    constexpr int N = 2;
    using Pairs = Chunk<T, N, kInterleaved>;
    using Real = typename Angle<T>::Real;
    const int chunk = threadIdx.x;
    PairFactor plain[N], short_one[N], long_one[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int pair = Pairs::pair(chunk, i, p.pairs);
        plain[i] = factor_of(p.sets.plain_set, pair);
        short_one[i] = factor_of(p.sets.short_set, pair);
        long_one[i] = factor_of(p.sets.long_set, pair);
    }

    const uint32_t index = divide(blockIdx.x, p.token_blocks_reciprocal);
    const int h = (blockIdx.x - index * p.token_blocks) * blockDim.y + threadIdx.y;
    if (h >= p.tensor[0].heads + p.tensor[1].heads) return;
    const uint32_t sequence = divide(index, p.length_reciprocal);
    const int64_t token = index - sequence * static_cast<uint32_t>(p.length);
    const Head<T> head = tensor_head<T>(p, Place{sequence, token}, h);
    Pairs x;
    x.load(head.in, 1, chunk, p.pairs);

    const int64_t position = token_position(p.position_kind, p.positions, p.position_offset, sequence, p.length, token);
    const int of_sequence = sequence_set(p.choice_kind, p.choices, sequence, p.sets.original_length);
    if (of_sequence == kBadSet) {
        if (p.status && chunk == 0 && h == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
        return;
    }
    const int set = token_set(of_sequence, position, p.sets.first_tokens);
    float cos[N], sin[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const PairFactor factor = set == kPlain ? plain[i] : set == kShort ? short_one[i] : long_one[i];
        pair_cos_sin<Real>(factor, position, &cos[i], &sin[i]);
        if (p.backward) sin[i] = -sin[i];
    }
    x.rotate(cos, sin);
    x.store(head.out, 1, chunk, p.pairs);
    if (head.out == head.in) return;
    for (int d = 2 * p.pairs + chunk * N; d < p.head_dim; d += blockDim.x * N) {
        store_vector<T, N>(head.out + d, load_vector<T, N>(head.in + d));
    }
}

}  // namespace longrope
