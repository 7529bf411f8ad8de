// The union of partial results of attention whose keys were divided among blocks: that of merge.cuh, of the rows of good sequences.
#pragma once

#include "cache.cuh"
#include "merge.cuh"

namespace longrope {

template <class T>
__device__ __forceinline__ void split_merge(const longrope_split_merge_params &p) {
    const MergePlace place = MergePlace::of_warp(p.merge);
    if (!place.exists) return;
    if (p.cache.lengths) {
        const int64_t sequence = p.tokens.starts ? sequence_of_row(p.tokens, p.cache.sequences, place.query) : place.batch;
        if (sequence < 0 || CachedSequence(p.cache, p.tokens, sequence).bad) return;
    }
    const int lane = threadIdx.x % 32;
    const float *const lse = p.merge.parts_lse + place.batch * p.merge.in_lse_stride[0] +
                             place.query * p.merge.in_lse_stride[1] + place.head * p.merge.in_lse_stride[2];
    bool is_bad = false;
    for (int64_t part = lane; part < p.merge.part_count; part += 32) {
        is_bad |= __float_as_uint(lse[part * p.merge.part_lse_stride]) == kBadPart;
    }
    if (__any_sync(0xffffffff, is_bad)) return;
    merge_row<T, 4>(p.merge, place.batch, place.query, place.head, lane);
}

}  // namespace longrope
