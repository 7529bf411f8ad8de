// The union of the partial results of decoding (decode_schedule.cuh says in which slots they lie).
//
//   lse = ln sum_p exp(lse_p)        out = sum_p exp(lse_p - lse) out_p
//
// A block takes a row of an item; its warps take parts in turn and join their sums, in an order that depends on nothing but the
// number of parts. An item with a bad part is not written.
#pragma once

#include "decode_output.cuh"
#include "dependent_launch.cuh"

namespace longrope {

constexpr int kDecodeMergeThreads = 256;

// The parts of an item: part 0 in slot `first`, part i from 1 on in slot `next + (i - 1) * step`.
struct DecodeParts {
    int64_t first, next, step;
    int count;

    __device__ __forceinline__ int64_t slot(int part) const { return part == 0 ? first : next + (part - 1) * step; }
};

// The item of this block and its parts; false if there is nothing to merge here.
__device__ __forceinline__ bool find_item(const longrope_decode_params &p, uint32_t index, DecodeItem &item, DecodeParts &parts) {
    const uint32_t row_tiles = most_row_tiles(p), in_sequence = row_tiles * p.cache.key_heads;
    if (p.splits > 0) {
        const uint32_t head = index / row_tiles;
        const CachedSequence sequence(p.cache, p.tokens, head / p.cache.key_heads);
        item = DecodeItem(p, sequence, head % p.cache.key_heads, index % row_tiles);
        const int64_t first = static_cast<int64_t>(index) * p.splits;
        parts = {first, first + 1, 1, p.splits};
        return item.rows > 0;
    }
    // Items by their number, or the item that the border between blocks `index` and `index + 1` cuts.
    const int64_t wanted = p.merges_borders ? -1 : static_cast<int64_t>(index / in_sequence);
    const WorkPlace place = find_work<kDecodeMergeThreads>(p, static_cast<int64_t>(index) + 1, wanted);
    if (place.sequence >= p.cache.sequences || place.total == 0) return false;
    const CachedSequence sequence(p.cache, p.tokens, place.sequence);
    const SequenceWork work(p, sequence);
    int64_t number;  // of the item in its sequence
    if (p.merges_borders) {
        if (index + 1 >= place.blocks) return false;
        number = quotient(place.first_tile(index + 1) - place.before, work.tiles);
    } else {
        const uint32_t here = index % in_sequence, head = here / row_tiles, row_tile = here - head * row_tiles;
        if (row_tile >= work.row_tiles) return false;
        number = head * work.row_tiles + row_tile;
    }
    const int64_t first = place.before + number * work.tiles;
    const int64_t first_block = place.block_of(first), last_block = place.block_of(first + work.tiles - 1);
    // Whole in one block, or the matter of an earlier border.
    if (first_block == last_block || (p.merges_borders && first_block != index)) return false;
    const int64_t head = quotient(number, work.row_tiles);
    item = DecodeItem(p, sequence, head, number - head * work.row_tiles);
    parts = {2 * first_block + 1, 2 * (first_block + 1), 2, static_cast<int>(last_block - first_block + 1)};
    return true;
}

// The parts that a warp adds up, of one row: the first few are read before their weights are known.
struct PartLoads {
    static constexpr int kAtOnce = 6;
    float lse[kAtOnce];
    float4 x[kAtOnce];

    __device__ __forceinline__ void read(const longrope_decode_params &p, const DecodeParts &parts, int row, int dim, int first,
                                         int step) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const int part = first + i * step;
            lse[i] = -INFINITY;
            x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (part >= parts.count) continue;
            const int64_t at = parts.slot(part) * p.slot_rows + row;
            lse[i] = p.parts_lse[at];
            if (dim < p.head_dim) x[i] = *reinterpret_cast<const float4 *>(p.parts + at * p.head_dim + dim);
        }
    }

    __device__ __forceinline__ void add_to(float4 &all, float &sum, float largest) const {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const float weight = lse[i] == -INFINITY ? 0.0f : expf(lse[i] - largest);
            sum += weight;
            all.x = fmaf(weight, x[i].x, all.x);
            all.y = fmaf(weight, x[i].y, all.y);
            all.z = fmaf(weight, x[i].z, all.z);
            all.w = fmaf(weight, x[i].w, all.w);
        }
    }
};

template <class T>
__device__ __forceinline__ void decode_merge(const longrope_decode_params &p) {
    constexpr int kWarps = kDecodeMergeThreads / 32;
    __shared__ float4 sums[kWarps][32];
    __shared__ float weights[kWarps];
    const int lane = threadIdx.x % 32, number = threadIdx.x / 32;
    const int row = static_cast<int>(blockIdx.x % static_cast<uint32_t>(p.slot_rows));
    DecodeItem item;
    DecodeParts parts;
    let_dependents_begin();
    // Lengths are those that the kernel before has waited for; the first-level cache may have those of earlier launches.
    drop_cached();
    const bool found = find_item(p, blockIdx.x / static_cast<uint32_t>(p.slot_rows), item, parts);
    wait_for_dependency();
    if (!found || row >= item.rows) return;

    PartLoads loads;
    loads.read(p, parts, row, 4 * lane, number, kWarps);
    float largest = -INFINITY;
    bool is_bad = false, is_nan = false;
    for (int part = lane; part < parts.count; part += 32) {
        const float lse = p.parts_lse[parts.slot(part) * p.slot_rows + row];
        is_bad |= __float_as_uint(lse) == kBadPart;
        is_nan |= isnan(lse);
        largest = fmaxf(largest, lse);
    }
    if (__any_sync(0xffffffff, is_bad)) return;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    if (__any_sync(0xffffffff, is_nan)) largest = __int_as_float(0x7fffffff);

    for (int first = 0; first < p.head_dim; first += 128) {
        const int dim = first + 4 * lane;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float sum = 0.0f;
        for (int part = number; part < parts.count; part += kWarps * PartLoads::kAtOnce) {
            if (first > 0 || part > number) loads.read(p, parts, row, dim, part, kWarps);
            loads.add_to(x, sum, largest);
        }
        sums[number][lane] = x;
        if (lane == 0) weights[number] = sum;
        __syncthreads();
        if (number == 0) {
            float all[4] = {}, total = 0.0f;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) {
                total += weights[w];
                all[0] += sums[w][lane].x;
                all[1] += sums[w][lane].y;
                all[2] += sums[w][lane].z;
                all[3] += sums[w][lane].w;
            }
            const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
            for (int i = 0; i < 4; ++i) all[i] *= inverse;
            if (dim < p.head_dim) store_output<T>(p, item.offset(p, p.out_stride, row) + dim, all);
            if (dim == 0) store_lse(p, item, row, total == 0.0f ? -INFINITY : largest + logf(total));
        }
        __syncthreads();
    }
}

}  // namespace longrope
