// Decoding one sequence on Hopper: each item has a cluster of blocks. They send what they have summed to each other's shared memory, and
// each joins and writes its share of the output. So there are no partial results in device memory, and no kernel that merges them; and
// where a block begins it knows by one division.
//
// What does not depend on the kernel before is done before that has ended: the work is found, and queries and keys are aimed at, by the
// length as it is then. If it is another one afterwards, which is rare, it is done anew.
//
// Shared memory is that of decode_segment.cuh, and behind it (Inbox), with D the padded head dimension:
//   parts    kRows * D * 4 and some                   [block][of this block's share of the output, four dimensions]
//   sums     16 * kRows * 8                           [block][row]: largest logit, sum of weights
#pragma once

#include "cluster.cuh"
#include "decode_segment.cuh"
#include "mbarrier.cuh"

namespace longrope {

// Bytes of shared memory behind those of decode_segment.cuh.
constexpr int kInboxBytes = 10 * 1024;

// This block's tiles of the sequence: clusters are those of the first item, of the second, and so on, and the blocks of a cluster have
// equally many, or one more. Tiles are fewer than 2^32, as keys are.
struct ClusterPlace {
    uint32_t item, part, parts;

    __device__ __forceinline__ ClusterPlace() : part(cluster_rank()), parts(cluster_blocks()) { item = blockIdx.x / parts; }

    __device__ __forceinline__ DecodeSegment segment(const longrope_decode_params &p, const CachedSequence &sequence) const {
        const SequenceWork work(p, sequence);
        const uint32_t tiles = static_cast<uint32_t>(work.tiles), each = tiles / parts, more = tiles - each * parts;
        const uint32_t row_tiles = most_row_tiles(p), head = item / row_tiles;
        return {DecodeItem(p, sequence, head, item - head * row_tiles), work.first_tile + part * each + min(part, more),
                each + (part < more), -1};
    }
};

// What the blocks of a cluster send to one of them, each of the others and itself.
template <class Shape>
struct Inbox {
    static constexpr int kBlocks = 16;  // at most
    float4 parts[Shape::kRows * Shape::kDim / 4 + kBlocks];
    float2 sums[kBlocks][Shape::kRows];
};

// How the output of an item is shared among the blocks of its cluster, whose number is a power of two: by four dimensions, of which a
// block has `each` or fewer.
struct ClusterShares {
    int rows, quarters, blocks, rank;  // `quarters`: of a row
    int count, each;
    float reciprocal;  // of `each`

    __device__ __forceinline__ ClusterShares(const longrope_decode_params &p, const DecodeSegment &segment)
        : rows(segment.item.rows), quarters(p.head_dim / 4), blocks(cluster_blocks()), rank(cluster_rank()), count(rows * quarters),
          each((count + blocks - 1) / blocks), reciprocal(1.0f / each) {}

    // This block's.
    __device__ __forceinline__ int first() const { return rank * each; }
    __device__ __forceinline__ int mine() const { return clamp(count - first(), 0, each); }
    // Whose one of them is: they are few, so that a rounded product is as good as a division.
    __device__ __forceinline__ int owner(int i) const { return static_cast<int>((i + 0.5f) * reciprocal); }
    // Bytes that come to it.
    __device__ __forceinline__ int bytes() const {
        return blocks * (rows * static_cast<int>(sizeof(float2)) + mine() * static_cast<int>(sizeof(float4)));
    }
};

// Sends what this block has summed to all of the cluster, which have begun; `all` and `outputs`: what its warps have put there.
template <class T, class Shape>
__device__ __forceinline__ void send_sums(const ClusterShares &shares, const float *outputs, const WarpSums<Shape> &all,
                                          Inbox<Shape> &inbox, uint32_t barrier, bool is_bad) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < shares.rows; row += Shape::kWarps) {
        const WarpWeights<Shape> weights(all, row);
        for (int quarter = lane; quarter < shares.quarters; quarter += 32) {
            const RowSums sums = weights.join(outputs, row, 4 * quarter);
            const int i = row * shares.quarters + quarter, peer = shares.owner(i);
            send_to_block(in_block(shared_address(&inbox.parts[shares.rank * shares.each + i - peer * shares.each]), peer),
                          make_float4(sums.x[0], sums.x[1], sums.x[2], sums.x[3]), in_block(barrier, peer));
        }
        if (lane < shares.blocks) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < Shape::kWarps; ++w) sum = fmaf(weights.weight[w], weights.sum[w], sum);
            send_to_block(in_block(shared_address(&inbox.sums[shares.rank][row]), lane),
                          make_float2(weights.largest, is_bad ? __uint_as_float(kBadPart) : sum), in_block(barrier, lane));
        }
    }
}

// Joins what has come to this block by `barrier`, and writes it: for four dimensions there are as many lanes as blocks, and each takes
// what one has sent.
template <class T, class Shape>
__device__ __forceinline__ void join_blocks(const longrope_decode_params &p, const DecodeSegment &segment, const ClusterShares &shares,
                                            const Inbox<Shape> &inbox, uint32_t barrier) {
    const int blocks = shares.blocks, peer = threadIdx.x & (blocks - 1), end = shares.mine();
    const int shift = __ffs(blocks) - 1, at_once = Shape::kThreads >> shift;
    const float of_quarters = 1.0f / shares.quarters;
    bool refused = false;
    for (int base = 0; base < end && !refused; base += at_once) {
        const int at = base + (threadIdx.x >> shift), i = shares.first() + min(at, end - 1);
        const int row = static_cast<int>((i + 0.5f) * of_quarters), dim = (i - row * shares.quarters) * 4;
        // What does not depend on what comes goes before it.
        const int64_t to = segment.item.offset(p, p.out_stride, row) + dim;
        asm volatile("" ::"l"(to));
        if (base == 0) barrier_wait_for_cluster(barrier, 0);
        const float2 sums = inbox.sums[peer][row];
        refused = __any_sync(0xffffffff, __float_as_uint(sums.y) == kBadPart);
        RowSums total;
        total.largest = sums.x;
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.largest = fmaxf(total.largest, __shfl_xor_sync(0xffffffff, total.largest, distance));
        }
        total.add(inbox.parts[peer * shares.each + i - shares.first()], sums.y, total.weight_of(sums.x));
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.sum += __shfl_xor_sync(0xffffffff, total.sum, distance);
#pragma unroll
            for (int j = 0; j < 4; ++j) total.x[j] += __shfl_xor_sync(0xffffffff, total.x[j], distance);
        }
        // Nothing is written of an item with a bad entry.
        if (at < end && peer == 0 && !refused) write_row<T>(p, segment, row, dim, to, total);
    }
    if (end <= 0) barrier_wait_for_cluster(barrier, 0);
}

// Has the second-level cache fetch the queries of an item, which may yet change.
__device__ __forceinline__ void fetch_queries_early(const longrope_decode_params &p, const DecodeItem &item) {
    const int sectors = p.head_dim / 16;  // of a row
    for (int i = threadIdx.x; i < item.rows * sectors; i += blockDim.x) {
        const int row = i / sectors;
        fetch_early(static_cast<const uint16_t *>(p.q) + item.offset(p, p.q_stride, row) + (i - row * sectors) * 16);
    }
}

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode_in_clusters(const longrope_decode_params &p, const typename Rotation::Params &rotary) {
    extern __shared__ __align__(128) char shared_bytes[];
    const ClusterPlace place;
    DecodeWarp<T, Shape> warp;
    DecodeLoads<T, Shape> loads;
    // What the length was before the kernel before this one ended is a guess that is mostly right, or settled. Starts of packed tokens
    // are not guessed.
    bool guesses = !p.settled && !p.tokens.starts;
    if (p.settled) drop_cached();
    if (!p.settled && !guesses) wait_for_dependency();
    // Alike in all lanes, though it may be written now.
    int64_t number = __shfl_sync(0xffffffff, read_anew(p.cache.lengths, p.cache.lengths_are_wide), 0);
    DecodeSegment segment;
    for (;;) {
        segment = place.segment(p, CachedSequence(p.cache, p.tokens, 0, number));
        const bool has_rows = segment.item.rows > 0;
        typename DecodeWarp<T, Shape>::Place queries;
        if (has_rows) {
            loads = loads_of<T, Shape>(p, segment, 0, shared_bytes);
            queries = {p, segment.item, loads.lane};
        }
        int64_t now = number;
        if (guesses) {
            fetch_queries_early(p, segment.item);
            wait_for_dependency();
            now = read_anew(p.cache.lengths, p.cache.lengths_are_wide);
        }
        if (has_rows) {
            if (!p.settled) warp.ask(p, queries);
            fill_ring(loads, p.settled, segment.item.sequence.first_position());
        }
        if (!guesses || now == number) break;
        async_copy_wait<0>();
        guesses = false;
        number = now;
    }
    if (segment.item.rows <= 0) {  // as all blocks of the cluster
        if (p.settled) pass_on();
        const uint32_t bad = CachedSequence(p.cache, p.tokens, 0, number).bad;
        if (bad && blockIdx.x == 0 && threadIdx.x == 0 && p.status) atomicOr(p.status, bad);
        return;
    }
    __shared__ uint64_t inbox_barrier;
    __shared__ WarpSums<Shape> all;
    Inbox<Shape> &inbox = *reinterpret_cast<Inbox<Shape> *>(shared_bytes + Shape::kSharedBytes);
    static_assert(sizeof(Inbox<Shape>) <= kInboxBytes);
    const ClusterShares shares(p, segment);
    const uint32_t barrier = shared_address(&inbox_barrier);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_done();
        barrier_expect(barrier, shares.bytes());
    }
    cluster_arrive_relaxed();
    Rotation rotation(rotary, segment.item.sequence.length, 0, loads.lane);
    const uint32_t bad = sum_keys<T, Shape, Rotation>(p, rotary, rotation, segment, loads, warp, p.settled, p.settled);
    // A launch that begins while keys are summed finds the other multiprocessors free alone, and lies in pairs on them.
    if (!p.settled) let_dependents_begin();
    if (bad && p.status) atomicOr(p.status, bad);
    const bool is_bad = __syncthreads_or(bad != 0);  // all warps are done with their rings
    float *const outputs = reinterpret_cast<float *>(shared_bytes);
    put_sums<T, Shape>(warp, outputs, all);
    __syncthreads();
    cluster_wait();  // all blocks have begun
    send_sums<T, Shape>(shares, outputs, all, inbox, barrier, is_bad);
    // What others are sent they wait for themselves; so this block may end when all has come that is sent to it.
    join_blocks<T, Shape>(p, segment, shares, inbox, barrier);
}

}  // namespace longrope

// The kernels of a padded head dimension: element type x rows of queries, which are few. Clusters are of a power of two of blocks, 16 at most.
#define LONGROPE_DECODE_SM90(dim, name, T, rows)                                                                              \
    extern "C" __global__ void __launch_bounds__(longrope::DecodeShape<dim, rows>::kThreads, 2)                               \
        longrope_decode_sm90_d##dim##_##name##_r##rows(const __grid_constant__ longrope_decode_params p) {                    \
        longrope::decode_in_clusters<T, longrope::DecodeShape<dim, rows>, longrope::KeysAsTheyAre>(p, {});                    \
    }

// The same over keys that lie in the cache as they were before rotation.
#define LONGROPE_DECODE_ROTATING_SM90(dim, name, T, rows)                                                                     \
    extern "C" __global__ void __launch_bounds__(longrope::DecodeShape<dim, rows>::kThreads, 2)                               \
        longrope_decode_rotating_sm90_d##dim##_##name##_r##rows(const __grid_constant__ longrope_decode_rotating_params p) {  \
        using Shape = longrope::DecodeShape<dim, rows>;                                                                       \
        using Rotation = longrope::KeyRotation<T, dim, Shape::kThreads, Shape::kRotationStep>;                                \
        longrope::decode_in_clusters<T, Shape, Rotation>(p.decode, p.rotary);                                                 \
    }
