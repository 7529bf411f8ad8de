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

    template <bool kStreams = false>
    __device__ __forceinline__ void store(T *head, int64_t dim_stride, int chunk, int pairs) const {
        T *const to[2] = {head + first_dim(chunk) * dim_stride, head + second_dim(chunk, pairs) * dim_stride};
        if constexpr (kStreams && N > 1) {
            store_vector_streaming<T, N>(to[0], first);
            store_vector_streaming<T, N>(to[1], second);
        } else {
            store_vector<T, N>(to[0], first);
            store_vector<T, N>(to[1], second);
        }
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

// A head of a token, from where to where.
template <class T>
struct Head {
    const T *in;
    T *out;
    int64_t in_dim, out_dim;
    bool rotates;  // else it is copied
};

// Heads that a thread takes in a step.
constexpr int kHeads = 2;
// Steps in the ring.
constexpr int kStages = 3;

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

// Writes cosine and sine of the pairs of a token, spread over the threads that share it; cosine NaN where nothing is to be
// written of it.
template <int N, class Work>
__device__ __forceinline__ void fill_table(const Work &work, float2 *table, const typename Work::Target &target) {
    for (int i = threadIdx.y; i < N; i += blockDim.y) {
        const int pair = threadIdx.x * N + i;
        float2 entry;
        if (!work.angle(target, pair, &entry.x, &entry.y)) entry.x = __int_as_float(0x7fc00000);
        table[pair] = entry;
    }
}

// Rotates the tokens of this block, of which the first is `first`. What they are, and where they come from and go to, the work
// says:
//
//   kRotatesAll                            no head is copied as it is
//   kStreams                               what is written, rotated queries too, need not stay in the caches
//   tokens(), heads(), pairs(), head_dim(), ring_bytes()
//   Source source(token)                   what is needed to begin its loads
//   bool is_readable(source)               false: nothing of this token is read or written
//   Target target(source)                  what else there is to know of it
//   const T *input(source, head)
//   bool angle(target, pair, cos, sin)     false: nothing of this token is written
//   bool is_writable(target)               the same, of what is known only after the angles
//   Head<T> head(source, target, head)
template <class T, int N, bool kInterleaved, class Work>
__device__ __forceinline__ void rotate_tokens(const Work &work, int64_t first) {
    constexpr bool kVector = N > 1;
    using Pairs = Chunk<T, N, kInterleaved>;
    extern __shared__ int4 shared[];
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int chunk = threadIdx.x, pairs = work.pairs();
    const Ring<T, N, kInterleaved> ring{shared + thread};
    const int heads = work.heads();
    const int heads_a_step = kHeads * blockDim.y;
    const int64_t index = first + threadIdx.z;
    const typename Work::Source source = work.source(index < work.tokens() ? index : 0);
    const bool inside = index < work.tokens() && work.is_readable(source);

    const auto begin_loads = [&](int step_head, int stage) {
        if (kVector && inside) {
#pragma unroll
            for (int i = 0; i < kHeads; ++i) {
                const int h = step_head + threadIdx.y + i * blockDim.y;
                if (h >= heads) break;
                ring.begin(stage, i, work.input(source, h), chunk, pairs);
            }
        }
        async_copy_commit();
    };
    // The angles come as early as they can: for a single token they are what takes longest.
    begin_loads(0, 0);
    char *const after_ring = reinterpret_cast<char *>(shared) + work.ring_bytes();
    float2 *const table = reinterpret_cast<float2 *>(after_ring) + threadIdx.z * pairs;
    const typename Work::Target target = work.target(source);
    if (inside) fill_table<N>(work, table, target);
#pragma unroll
    for (int i = 1; i < kStages - 1; ++i) begin_loads(i * heads_a_step, i);
    __syncthreads();
    if (!inside) return;

    float cos[N], sin[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float2 entry = table[Pairs::pair(chunk, i, pairs)];
        cos[i] = entry.x;
        sin[i] = entry.y;
    }
    if (isnan(cos[0]) || !work.is_writable(target)) {
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
            const Head<T> head = work.head(source, target, h);
            // Vectors are for unit strides only.
            const int64_t in_dim = kVector ? 1 : head.in_dim, out_dim = kVector ? 1 : head.out_dim;
            Pairs x;
            if constexpr (kVector) {
                x = ring.read(stage, i);
            } else {
                x.load(head.in, in_dim, chunk, pairs);
            }
            if (Work::kRotatesAll || head.rotates) x.rotate(cos, sin);
            x.template store<Work::kStreams>(head.out, out_dim, chunk, pairs);
            // What does not turn is copied, unless it is in place already.
            if (head.out == head.in) continue;
            for (int d = 2 * pairs + chunk * N; d < work.head_dim(); d += blockDim.x * N) {
                store_vector<T, N>(head.out + d * out_dim, load_vector<T, N>(head.in + d * in_dim));
            }
        }
        // The slots of the step before this one are free again.
        begin_loads(step_head + (kStages - 1) * heads_a_step, stage == 0 ? kStages - 1 : stage - 1);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
}

}  // namespace longrope
