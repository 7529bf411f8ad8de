// Decoding one sequence on Hopper: a cluster of blocks takes an item, or one of few parts of it. Its blocks send what they have summed
// to each other's shared memory, and each joins and writes its share of the output. So an item that one cluster has is done by one
// kernel, without partial results in device memory and without a kernel that merges them; and where a block begins it knows by one
// division.
//
// Shared memory is that of decode_segment.cuh, and behind it (Inbox), with D the padded head dimension:
//   parts    kRows * D * 4 and some                   [block][of this block's share of the output, four dimensions]
//   sums     16 * kRows * 8                           [block][row]: largest logit, sum of weights
#pragma once

#include "cluster.cuh"
#include "decode_segment.cuh"
#include "dependent_launch.cuh"

namespace longrope {

// Bytes of shared memory behind those of decode_segment.cuh.
constexpr int kInboxBytes = 10 * 1024;

// Where this block stands: clusters are those of the first item, of the second, and so on; the blocks of a cluster and the clusters
// of an item have equally many tiles, or one more.
struct ClusterPlace {
    uint32_t cluster;      // which is its slot, where an item has several
    uint32_t item;
    uint32_t part, parts;  // of the item

    __device__ __forceinline__ explicit ClusterPlace(const longrope_decode_params &p) {
        const uint32_t blocks = cluster_blocks();
        cluster = blockIdx.x / blocks;
        item = cluster / static_cast<uint32_t>(p.splits);
        part = (cluster - item * p.splits) * blocks + cluster_rank();
        parts = blocks * p.splits;
    }

    // This block's tiles of a sequence. Tiles are fewer than 2^32, as keys are.
    __device__ __forceinline__ DecodeSegment segment(const longrope_decode_params &p, const CachedSequence &sequence) const {
        const SequenceWork work(p, sequence);
        const uint32_t tiles = static_cast<uint32_t>(work.tiles), each = tiles / parts, more = tiles - each * parts;
        const uint32_t row_tiles = most_row_tiles(p), head = item / row_tiles;
        return {DecodeItem(p, sequence, head, item - head * row_tiles), work.first_tile + part * each + min(part, more),
                each + (part < more), p.splits == 1 ? -1 : static_cast<int64_t>(cluster)};
    }
};

// What the blocks of a cluster send to one of them, each of the others and itself.
template <class Shape>
struct Inbox {
    static constexpr int kBlocks = 16;  // at most
    float4 parts[Shape::kRows * Shape::kDim / 4 + kBlocks];
    float2 sums[kBlocks][Shape::kRows];
};

// Joins the blocks of the cluster, and writes what comes of it. To be called by all of them, after they have arrived once.
template <class T, class Shape>
__device__ __forceinline__ void finish_in_cluster(const longrope_decode_params &p, const DecodeSegment &segment,
                                                  const DecodeWarp<T, Shape> &warp, char *shared, uint32_t bad) {
    __shared__ WarpSums<Shape> all;
    static_assert(sizeof(Inbox<Shape>) <= kInboxBytes);
    Inbox<Shape> &inbox = *reinterpret_cast<Inbox<Shape> *>(shared + Shape::kSharedBytes);
    const int thread = threadIdx.x, quarters = p.head_dim / 4, rows = segment.item.rows;
    const int blocks = static_cast<int>(cluster_blocks()), rank = static_cast<int>(cluster_rank());
    // Of the output, by four dimensions, a block has `each`.
    const int count = rows * quarters, each = (count + blocks - 1) / blocks;
    float *const outputs = reinterpret_cast<float *>(shared);
    if (bad && p.status) atomicOr(p.status, bad);
    const bool is_bad = __syncthreads_or(bad != 0);  // all warps are done with their rings
    put_sums<T, Shape>(warp, outputs, all);
    __syncthreads();
    cluster_wait();  // all blocks have begun
    for (int i = thread; i < rows * blocks; i += Shape::kThreads) {
        const int row = i / blocks, peer = i % blocks;
        const RowSums sums = sum_warps<Shape>(all, row);
        const float2 sent = make_float2(sums.largest, is_bad ? __uint_as_float(kBadPart) : sums.sum);
        store_in_block(in_block(shared_address(&inbox.sums[rank][row]), peer), sent);
    }
    for (int i = thread; i < count; i += Shape::kThreads) {
        const RowSums sums = join_warps<Shape>(outputs, all, i / quarters, i % quarters * 4);
        const int peer = i / each;
        store_in_block(in_block(shared_address(&inbox.parts[rank * each + i - peer * each]), peer),
                       make_float4(sums.x[0], sums.x[1], sums.x[2], sums.x[3]));
    }
    cluster_arrive();
    cluster_wait();

    // For four dimensions there are as many lanes as blocks; each reads what one has sent.
    const int peer = thread % blocks, end = min(each, count - rank * each);
    bool refused = false;
    for (int base = 0; base < end && !refused; base += Shape::kThreads / blocks) {
        const int at = base + thread / blocks, i = rank * each + at, row = min(i / quarters, rows - 1);
        const float2 sums = inbox.sums[peer][row];
        refused = __any_sync(0xffffffff, __float_as_uint(sums.y) == kBadPart);
        RowSums total;
        total.largest = sums.x;
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.largest = fmaxf(total.largest, __shfl_xor_sync(0xffffffff, total.largest, distance));
        }
        total.add(inbox.parts[peer * each + min(at, each - 1)], sums.y, sums.x);
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.sum += __shfl_xor_sync(0xffffffff, total.sum, distance);
#pragma unroll
            for (int j = 0; j < 4; ++j) total.x[j] += __shfl_xor_sync(0xffffffff, total.x[j], distance);
        }
        if (at < end && peer == 0 && !refused) write_row<T>(p, segment, row, (i - row * quarters) * 4, total);
    }
    if (refused && rank == 0) mark_bad(p, segment);
}

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode_in_clusters(const longrope_decode_params &p, const typename Rotation::Params &rotary) {
    extern __shared__ __align__(128) char shared_bytes[];
    const ClusterPlace place(p);
    fetch_early(p.cache.lengths);
    wait_for_dependency();
    // Not before: a merge reads lengths before it waits for this kernel.
    let_dependents_begin();
    const CachedSequence sequence(p.cache, p.tokens, 0);
    if (sequence.bad && blockIdx.x == 0 && threadIdx.x == 0 && p.status) atomicOr(p.status, sequence.bad);
    const DecodeSegment segment = place.segment(p, sequence);
    if (segment.item.rows <= 0) return;  // as all blocks of the cluster
    cluster_arrive_relaxed();
    DecodeWarp<T, Shape> warp;
    const uint32_t bad = attend_keys<T, Shape, Rotation>(p, rotary, segment, 0, shared_bytes, warp);
    finish_in_cluster<T, Shape>(p, segment, warp, shared_bytes, bad);
}

}  // namespace longrope

// The kernels of a padded head dimension: element type x rows of queries, which are few. Clusters are of 1, 2, 4, 8 or 16 blocks.
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
