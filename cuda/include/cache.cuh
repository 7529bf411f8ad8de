// Where the tokens of cached sequences lie, and which of them are new. What the device finds here is checked: nothing is read or
// written by a bad entry.
#pragma once

#include "mask.cuh"
#include "params.h"

namespace longrope {

// A whole number that the caller keeps as int32 or int64.
__device__ __forceinline__ int64_t number_at(const void *numbers, bool wide, int64_t i) {
    return wide ? static_cast<const int64_t *>(numbers)[i] : static_cast<const int32_t *>(numbers)[i];
}

// A sequence of a cache and its new tokens, which are its last.
struct CachedSequence {
    int64_t length;      // with the new tokens; 0 if it takes no part
    int64_t fresh;       // new tokens; 0 if it is bad
    int64_t batch, row;  // of the first new token in tensors of new tokens
    uint32_t bad;        // bits of longrope_device_status

    CachedSequence() = default;

    __device__ __forceinline__ CachedSequence(const longrope_cache &cache, const longrope_new_tokens &tokens, int64_t sequence)
        : CachedSequence(cache, tokens, sequence, number_at(cache.lengths, cache.lengths_are_wide, sequence)) {}

    // The same where the number that is its length has been read.
    __device__ __forceinline__ CachedSequence(const longrope_cache &cache, const longrope_new_tokens &tokens, int64_t sequence,
                                              int64_t number)
        : length(number) {
        batch = sequence;
        row = 0;
        fresh = tokens.most;
        bad = 0;
        if (tokens.starts) {
            row = number_at(tokens.starts, tokens.starts_are_wide, sequence);
            const int64_t end = number_at(tokens.starts, tokens.starts_are_wide, sequence + 1);
            batch = 0;
            fresh = end - row;
            if (row < 0 || end < row || end > tokens.total || fresh > tokens.most) bad = LONGROPE_DEVICE_BAD_SEQUENCE;
        }
        if (length < 0 || length > cache.capacity || (length != 0 && length < fresh)) bad |= LONGROPE_DEVICE_BAD_LENGTH;
        if (bad) fresh = length = 0;
    }

    // The position of its first new token.
    __device__ __forceinline__ int64_t first_position() const { return length - fresh; }
};

// Tells of bad sequences, of which there may be no row to find them by.
__device__ __forceinline__ void report_bad_sequences(const longrope_cache &cache, const longrope_new_tokens &tokens,
                                                     uint32_t *status) {
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    for (int64_t i = thread; i < cache.sequences; i += blockDim.x * blockDim.y * blockDim.z) {
        const uint32_t bad = CachedSequence(cache, tokens, i).bad;
        if (bad) atomicOr(status, bad);
    }
}

// The log-sum-exp that marks a partial result of a sequence with a bad entry: a NaN that no arithmetic makes.
constexpr uint32_t kBadPart = 0x7fc0badau;

// The sequence that a row of packed new tokens belongs to, or -1. Found by halving, as starts rise in any batch that is not bad.
__device__ __forceinline__ int64_t sequence_of_row(const longrope_new_tokens &tokens, int64_t sequences, int64_t row) {
    const auto start = [&](int64_t sequence) { return number_at(tokens.starts, tokens.starts_are_wide, sequence); };
    int64_t first = 0, end = sequences;  // the sequence is among these
    if (row < start(0) || row >= start(end)) return -1;
    while (end - first > 1) {
        const int64_t middle = (first + end) / 2;
        if (start(middle) <= row) {
            first = middle;
        } else {
            end = middle;
        }
    }
    return start(first) <= row && row < start(first + 1) ? first : -1;
}

}  // namespace longrope
