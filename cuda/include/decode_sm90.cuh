// Decoding one sequence on Hopper: a cluster of blocks takes an item, or one of few parts of it, and joins what its blocks have
// summed through their shared memory. So an item that one cluster has is done by one kernel, without partial results in device
// memory and without a kernel that merges them; and where a block begins it knows by one division.
//
// While the kernel before this one still runs, the second-level cache is asked for the block's first keys and values.
//
// Shared memory is that of decode_segment.cuh, and behind the outputs of the warps
//   joined   kRows * D * 4                            [row][dim], of the block
#pragma once

#include "cluster.cuh"
#include "decode_segment.cuh"
#include "dependent_launch.cuh"
#include "prefetch.cuh"

namespace longrope {

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

// Asks for the first keys and values of this block, as the sequence is for now. A thread asks for the keys, or the values, that one
// page has, where they lie together: the copy engine takes as long for few bytes as for many.
template <class T, class Shape>
__device__ __forceinline__ void prefetch_first(const longrope_decode_params &p, const ClusterPlace &place) {
    constexpr int64_t kKeys = 128 * 1024 / (Shape::kDim * 4);  // 128 KiB
    const longrope_cache &cache = p.cache;
    const bool is_key = threadIdx.x % 2 == 0;
    const int64_t(&stride)[4] = is_key ? cache.k_stride : cache.v_stride;
    CachedSequence now;
    now.length = clamp(number_for_now(cache.lengths, cache.lengths_are_wide, 0), 0, cache.capacity);
    now.fresh = min(now.length, static_cast<int64_t>(p.tokens.most));
    if (stride[1] != p.head_dim || now.length == 0) return;
    const DecodeSegment segment = place.segment(p, now);
    const int64_t size = cache.page_table ? cache.page_size : cache.capacity;
    const int64_t first = segment.first_tile * Shape::kTileKeys;
    const int64_t end = min(first + min(segment.tiles * Shape::kTileKeys, kKeys), now.length);
    for (int64_t index = quotient(first, size) + threadIdx.x / 2; index * size < end; index += Shape::kThreads / 2) {
        const int64_t page = cache.page_table ? __ldcg(cache.page_table + index) : 0;
        if (page < 0 || page >= cache.pages) continue;
        const int64_t from = max(index * size, first), to = min((index + 1) * size, end);
        const T *const rows = static_cast<const T *>(is_key ? cache.k : cache.v);
        prefetch_to_second_level(
            rows + page * stride[0] + (from - index * size) * stride[1] + segment.item.head * stride[2],
            static_cast<uint32_t>(to - from) * p.head_dim * sizeof(T));
    }
}

// What a block has for the others of its cluster to read.
template <class Shape>
struct BlockSums {
    float largest[Shape::kRows], sums[Shape::kRows];
    float bad;  // above 0: a bad entry was found
};

// Joins the blocks of the cluster, and writes what comes of it. To be called by all of them.
template <class T, class Shape>
__device__ __forceinline__ void finish_in_cluster(const longrope_decode_params &p, const DecodeSegment &segment,
                                                  const DecodeWarp<T, Shape> &warp, char *shared, uint32_t bad) {
    __shared__ WarpSums<Shape> all;
    __shared__ BlockSums<Shape> mine;
    const int thread = threadIdx.x, rows = segment.item.rows, quarters = p.head_dim / 4;
    float *const outputs = reinterpret_cast<float *>(shared);
    float *const joined = outputs + Shape::kWarps * Shape::kRows * Shape::kOutputStride;
    static_assert((Shape::kWarps * Shape::kOutputStride + Shape::kDim) * Shape::kRows * 4 <= Shape::kSharedBytes);
    if (bad && p.status) atomicOr(p.status, bad);
    const bool is_bad = __syncthreads_or(bad != 0);  // all warps are done with their rings
    if (thread == 0) mine.bad = is_bad ? 1.0f : 0.0f;
    put_sums<T, Shape>(warp, outputs, all);
    __syncthreads();
    for (int i = thread; i < rows * quarters; i += Shape::kThreads) {
        const int row = i / quarters, dim = i % quarters * 4;
        const RowSums sums = join_warps<Shape>(outputs, all, row, dim);
        *reinterpret_cast<float4 *>(joined + 4 * i) = make_float4(sums.x[0], sums.x[1], sums.x[2], sums.x[3]);
        if (dim == 0) {
            mine.largest[row] = sums.largest;
            mine.sums[row] = sums.sum;
        }
    }
    cluster_sync();

    // Each block has an equal part of the output. For four dimensions there are as many lanes as blocks; each reads of one.
    const int blocks = static_cast<int>(cluster_blocks()), each = (rows * quarters + blocks - 1) / blocks;
    const int first = static_cast<int>(cluster_rank()) * each, end = min(first + each, rows * quarters);
    const int peer = thread % blocks, at_once = Shape::kThreads / blocks;
    const uint32_t peer_joined = in_block(shared_address(joined), peer);
    const uint32_t peer_sums = in_block(shared_address(&mine), peer);
    const bool refused = __any_sync(0xffffffff, load_from_cluster(peer_sums + offsetof(BlockSums<Shape>, bad)) > 0.0f);
    for (int base = first; base < end; base += at_once) {
        const int i = base + thread / blocks;
        const bool is_there = i < end && !refused;
        const int row = is_there ? i / quarters : 0;
        float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float largest = -INFINITY, sum = 0.0f;
        if (is_there) {
            part = load_from_cluster_4(peer_joined + 16 * i);
            largest = load_from_cluster(peer_sums + 4 * row);
            sum = load_from_cluster(peer_sums + offsetof(BlockSums<Shape>, sums) + 4 * row);
        }
        RowSums total;
        total.largest = largest;
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.largest = fmaxf(total.largest, __shfl_xor_sync(0xffffffff, total.largest, distance));
        }
        total.add(part, sum, largest);
        for (int distance = blocks / 2; distance > 0; distance /= 2) {
            total.sum += __shfl_xor_sync(0xffffffff, total.sum, distance);
#pragma unroll
            for (int j = 0; j < 4; ++j) total.x[j] += __shfl_xor_sync(0xffffffff, total.x[j], distance);
        }
        if (is_there && peer == 0) write_row<T>(p, segment, row, (i - row * quarters) * 4, total);
    }
    if (refused && cluster_rank() == 0) mark_bad(p, segment);
    cluster_sync();  // others still read this block's memory
}

template <class T, class Shape, class Rotation>
__device__ __forceinline__ void decode_in_clusters(const longrope_decode_params &p, const typename Rotation::Params &rotary) {
    extern __shared__ __align__(128) char shared_bytes[];
    const ClusterPlace place(p);
    prefetch_first<T, Shape>(p, place);
    wait_for_dependency();
    // Not before: a merge reads lengths before it waits for this kernel.
    let_dependents_begin();
    const CachedSequence sequence(p.cache, p.tokens, 0);
    if (sequence.bad && blockIdx.x == 0 && threadIdx.x == 0 && p.status) atomicOr(p.status, sequence.bad);
    const DecodeSegment segment = place.segment(p, sequence);
    if (segment.item.rows <= 0) return;  // as all blocks of the cluster
    DecodeWarp<T, Shape> warp;
    const uint32_t bad = attend_keys<T, Shape, Rotation>(p, rotary, segment, 0, shared_bytes, warp);
    finish_in_cluster<T, Shape>(p, segment, warp, shared_bytes, bad);
}

}  // namespace longrope

// The kernels of a padded head dimension: element type x rows of queries. Clusters are of 1, 2, 4, 8 or 16 blocks.
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
