// By which set the tokens of a cached sequence are rotated, and where a token lies.
#pragma once

#include "cache.cuh"
#include "factors.cuh"

namespace longrope {

// The set of a sequence, before its first tokens are considered.
__device__ __forceinline__ int cached_set(const longrope_cache_rotary &rotary, int64_t length, int64_t sequence) {
    if (rotary.choice_kind == LONGROPE_CHOICE_BY_LENGTH) return length > rotary.sets.original_length ? kLong : kShort;
    return sequence_set(rotary.choice_kind, rotary.choices, sequence, rotary.sets.original_length);
}

// The step and the gain of a pair, of a sequence's set or, for a first token, of the plain one.
__device__ __forceinline__ PairFactor cached_factor(const longrope_cache_rotary &rotary, int set, int64_t position, int pair) {
    return factor_of(set_by_number(rotary.sets, token_set(set, position, rotary.sets.first_tokens)), pair);
}

// A token's place in a cache.
struct CachedRow {
    int64_t page;  // -1: its page is a bad one
    int64_t row;   // of the page

    static __device__ __forceinline__ CachedRow of(const longrope_cache &cache, int64_t sequence, int64_t position) {
        if (!cache.page_table) return {sequence, position};
        // Tokens of a table are counted in 32 bits.
        const uint32_t at = static_cast<uint32_t>(position), size = static_cast<uint32_t>(cache.page_size);
        const int64_t page = cache.page_table[sequence * cache.table_stride + at / size];
        return {page >= 0 && page < cache.pages ? page : -1, at % size};
    }

    // From the first element of keys or values to a head.
    __device__ __forceinline__ int64_t offset(const int64_t (&stride)[4], int head) const {
        return page * stride[0] + row * stride[1] + head * stride[2];
    }
};

}  // namespace longrope
