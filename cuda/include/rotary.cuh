// Rotation of queries and keys by the angles of their positions, in one launch.
//
//   (x1, x2) -> gain (x1 cos - x2 sin, x2 cos + x1 sin)      RoPE, arXiv 2104.09864, eq. 34
//   angle = position * theta^(-2i/d) / lambda_i              LongRoPE, arXiv 2402.13753, eq. 3
//
// The kernel moves bytes: each element is read and written once, and the angles of a token serve all of its heads.
//
//   block (x, y, z) = chunks of a head, heads at a time, tokens
//
// A block takes a few whole tokens, and kHeads * y heads of them in a step. Data comes through a ring of kStages steps in
// shared memory, so that loads are under way while angles are computed, without a register held for them. A thread fills
// and reads slots of its own, and needs no barrier for them; the only barrier is between writing angles and reading them.
//
//   begin the loads of the first step
//   cosine and sine of each pair of each token         a pair a thread, into shared memory
//   begin the loads of the steps up to kStages - 1
//   barrier
//   for each step: wait for its slots; rotate; store; begin the loads of the step kStages - 1 ahead
//
// A chunk is two 16-byte vectors of N elements, half a rotary dimension apart. With half-split pairs they hold the two
// halves of N pairs; with interleaved ones N/2 whole pairs each. So either pairing reads whole sectors. N = 1 is the form
// for any stride and alignment: a chunk is a pair, and its loads are plain, since it is too small for an asynchronous copy.
//
// Shared memory, in bytes (x * y * z <= 192 threads, z <= 8 tokens: at most 44 KiB):
//   ring     min(steps, kStages) * kHeads * 2 * threads * 16     [stage][head][first, second][thread]; none for N = 1
//   table    z * pairs * 8                                       [token][pair]: cosine, sine
#pragma once

#include "async_copy.cuh"
#include "elements.cuh"
#include "factors.cuh"

namespace longrope {

// Two vectors of one head, as they are in memory, and the pairs they hold.
template <class T, int N, bool kInterleaved>
struct Chunk {
    Vector<T, N> first, second;

    // Where the two vectors begin, in dimensions.
    static __device__ __forceinline__ int first_dim(int chunk) { return kInterleaved && N == 1 ? 2 * chunk : N * chunk; }
    static __device__ __forceinline__ int second_dim(int chunk, int pairs) {
        return kInterleaved && N == 1 ? 2 * chunk + 1 : pairs + N * chunk;
    }

    // The pair that is the i-th of the chunk.
    static __device__ __forceinline__ int pair(int chunk, int i, int pairs) {
        if (!kInterleaved || N == 1) return N * chunk + i;
        return i < N / 2 ? N / 2 * chunk + i : pairs / 2 + N / 2 * chunk + i - N / 2;
    }

    __device__ __forceinline__ void load(const T *head, int64_t dim_stride, int chunk, int pairs) {
        first = load_vector<T, N>(head + first_dim(chunk) * dim_stride);
        second = load_vector<T, N>(head + second_dim(chunk, pairs) * dim_stride);
    }

    __device__ __forceinline__ void store(T *head, int64_t dim_stride, int chunk, int pairs) const {
        store_vector<T, N>(head + first_dim(chunk) * dim_stride, first);
        store_vector<T, N>(head + second_dim(chunk, pairs) * dim_stride, second);
    }

    // The two elements of the i-th pair of the chunk.
    __device__ __forceinline__ T &x1(int i) {
        if constexpr (!kInterleaved || N == 1) return first.element[i];
        return i < N / 2 ? first.element[2 * i] : second.element[2 * i - N];
    }
    __device__ __forceinline__ T &x2(int i) {
        if constexpr (!kInterleaved || N == 1) return second.element[i];
        return i < N / 2 ? first.element[2 * i + 1] : second.element[2 * i + 1 - N];
    }

    __device__ __forceinline__ void rotate(const float (&cos)[N], const float (&sin)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float a = widen(x1(i)), b = widen(x2(i));
            x1(i) = narrow<T>(fmaf(a, cos[i], -(b * sin[i])));
            x2(i) = narrow<T>(fmaf(b, cos[i], a * sin[i]));
        }
    }
};

// One head among those of q and k.
template <class T, bool kVector>
struct Head {
    const T *in;
    T *out;
    int64_t in_dim, out_dim;

    __device__ __forceinline__ Head(const longrope_rotary_params &p, int64_t sequence, int64_t token, int head) {
        const int which = head < p.tensor[0].heads ? 0 : 1;
        const longrope_rotary_tensor &x = p.tensor[which];
        if (which) head -= p.tensor[0].heads;
        in = static_cast<const T *>(x.in) + sequence * x.in_stride[0] + token * x.in_stride[1] + head * x.in_stride[2];
        out = static_cast<T *>(x.out) + sequence * x.out_stride[0] + token * x.out_stride[1] + head * x.out_stride[2];
        // Vectors are for unit strides only.
        in_dim = kVector ? 1 : x.in_stride[3];
        out_dim = kVector ? 1 : x.out_stride[3];
    }
};

// Cosine and sine by exact angles or in parity mode.
template <class Real>
__device__ __forceinline__ void pair_cos_sin_by_kind(const longrope_rotary_params &p, PairFactor factor, int64_t position,
                                                     float *cos, float *sin) {
    if (p.parity) {
        pair_cos_sin_parity(factor, position, cos, sin);
    } else {
        pair_cos_sin<Real>(factor, position, cos, sin);
    }
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
        pair_cos_sin_by_kind<Real>(p, factor_of(set_by_number(p.sets, set), pair), position, cos, sin);
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
        pair_cos_sin_by_kind<Real>(p.rotary, factor_of(set, pair), position, cos, sin);
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

// Heads that a thread takes in a step.
constexpr int kHeads = 2;
// Steps in the ring.
constexpr int kStages = 3;

// A token's sequence and its index there.
struct Place {
    int64_t sequence, token;

    __device__ __forceinline__ Place(const longrope_rotary_params &p, int64_t index) {
        if (p.batch == 1) {
            sequence = 0;
        } else if (((index | p.length) >> 32) == 0) {
            sequence = static_cast<uint32_t>(index) / static_cast<uint32_t>(p.length);
        } else {
            sequence = index / p.length;
        }
        token = index - sequence * p.length;
    }
};

// The slots of a thread in the ring.
template <class T, int N, bool kInterleaved>
struct Ring {
    int4 *slots;

    __device__ __forceinline__ int4 *slot(int stage, int head, int part) const {
        return slots + ((stage * kHeads + head) * 2 + part) * (blockDim.x * blockDim.y * blockDim.z);
    }

    __device__ __forceinline__ void begin(int stage, int head, const T *from, int chunk, int pairs) const {
        using Parts = Chunk<T, N, kInterleaved>;
        async_copy_16(slot(stage, head, 0), from + Parts::first_dim(chunk));
        async_copy_16(slot(stage, head, 1), from + Parts::second_dim(chunk, pairs));
    }

    __device__ __forceinline__ Chunk<T, N, kInterleaved> read(int stage, int head) const {
        Chunk<T, N, kInterleaved> x;
        reinterpret_cast<int4 &>(x.first) = *slot(stage, head, 0);
        reinterpret_cast<int4 &>(x.second) = *slot(stage, head, 1);
        return x;
    }
};

// Writes cosine and sine of the pairs of a token, spread over the threads that share it; cosine NaN where its set is bad.
template <int N, class Angles>
__device__ __forceinline__ void fill_table(const longrope_rotary_params &p, const Angles &angles, float2 *table,
                                           const Place &place) {
    for (int i = threadIdx.y; i < N; i += blockDim.y) {
        const int pair = threadIdx.x * N + i;
        const int64_t position = token_position(p.position_kind, p.positions, p.position_offset, place.sequence, p.length,
                                                place.token);
        float2 entry;
        if (!angles(place.sequence, position, pair, &entry.x, &entry.y)) {
            entry.x = __int_as_float(0x7fc00000);
            if (p.status && pair == 0) atomicOr(p.status, LONGROPE_DEVICE_BAD_CHOICE);
        }
        if (p.backward) entry.y = -entry.y;
        table[pair] = entry;
    }
}

template <class T, int N, bool kInterleaved, class Angles>
__device__ __forceinline__ void rotate_tokens(const longrope_rotary_params &p, const Angles &angles) {
    constexpr bool kVector = N > 1;
    using Pairs = Chunk<T, N, kInterleaved>;
    extern __shared__ int4 shared[];
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int chunk = threadIdx.x;
    const Ring<T, N, kInterleaved> ring{shared + thread};
    const int heads = p.tensor[0].heads + p.tensor[1].heads;
    const int heads_a_step = kHeads * blockDim.y;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
    const bool inside = index < p.batch * p.length;
    const Place place(p, inside ? index : 0);

    const auto begin_loads = [&](int step_head, int stage) {
        if (kVector && inside) {
#pragma unroll
            for (int i = 0; i < kHeads; ++i) {
                const int h = step_head + threadIdx.y + i * blockDim.y;
                if (h >= heads) break;
                ring.begin(stage, i, Head<T, kVector>(p, place.sequence, place.token, h).in, chunk, p.pairs);
            }
        }
        async_copy_commit();
    };
    // The angles come as early as they can: for a single token they are what takes longest.
    begin_loads(0, 0);
    char *const after_ring = reinterpret_cast<char *>(shared) + p.ring_bytes;
    float2 *const table = reinterpret_cast<float2 *>(after_ring) + threadIdx.z * p.pairs;
    if (inside) fill_table<N>(p, angles, table, place);
#pragma unroll
    for (int i = 1; i < kStages - 1; ++i) begin_loads(i * heads_a_step, i);
    __syncthreads();
    if (!inside) return;

    float cos[N], sin[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float2 entry = table[Pairs::pair(chunk, i, p.pairs)];
        cos[i] = entry.x;
        sin[i] = entry.y;
    }
    if (isnan(cos[0])) {  // a bad set index: nothing of this sequence is written
        async_copy_wait<0>();
        return;
    }

    int stage = 0;
    for (int step_head = 0; step_head < heads; step_head += heads_a_step) {
        async_copy_wait<kStages - 2>();
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
            const int h = step_head + threadIdx.y + i * blockDim.y;
            if (h >= heads) break;
            const Head<T, kVector> head(p, place.sequence, place.token, h);
            Pairs x;
            if constexpr (kVector) {
                x = ring.read(stage, i);
            } else {
                x.load(head.in, head.in_dim, chunk, p.pairs);
            }
            x.rotate(cos, sin);
            x.store(head.out, head.out_dim, chunk, p.pairs);
            // What does not turn is copied, unless it is in place already.
            if (head.out == head.in) continue;
            for (int d = 2 * p.pairs + chunk * N; d < p.head_dim; d += blockDim.x * N) {
                store_vector<T, N>(head.out + d * head.out_dim, load_vector<T, N>(head.in + d * head.in_dim));
            }
        }
        // The slots of the step before this one are free again.
        begin_loads(step_head + (kStages - 1) * heads_a_step, stage == 0 ? kStages - 1 : stage - 1);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
}

}  // namespace longrope
