// Which keys a query sees, by global positions. For the device and the host alike.
#pragma once

#include <stdint.h>

#include "phase.cuh"

namespace longrope {

// Sums and differences that stop at the ends of 64 bits.
LONGROPE_HD int64_t saturating_add(int64_t a, int64_t b) {
    const int64_t sum = static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    if (((a ^ sum) & (b ^ sum)) >= 0) return sum;
    return a < 0 ? INT64_MIN : INT64_MAX;
}

LONGROPE_HD int64_t saturating_sub(int64_t a, int64_t b) {
    const int64_t difference = static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
    if (((a ^ b) & (a ^ difference)) >= 0) return difference;
    return a < 0 ? INT64_MIN : INT64_MAX;
}

LONGROPE_HD int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Keys `first` to `end`, the latter not included, by their index in the sequence.
struct KeyRange {
    int64_t first, end;
};

// The mask of a run of queries, seen from the first of them: query r of the run sees the keys from `first + r` to before
// `end + r`, as far as they exist. Both are within 2^62 of 0, so that r can be added.
struct MaskLimits {
    int64_t first, end;

    LONGROPE_HD KeyRange visible(int64_t r, int64_t keys) const {
        KeyRange range;
        range.first = clamp(first + r, 0, keys);
        range.end = clamp(end + r, range.first, keys);
        return range;
    }
};

// The mask of queries from global `position` on, over keys from `key_offset` on. With a window (above 0) a query sees the keys
// less than `window` positions away; if causal, none after itself.
LONGROPE_HD MaskLimits mask_limits(int64_t position, bool causal, int64_t window, int64_t key_offset) {
    const int64_t far = static_cast<int64_t>(1) << 62;
    const int64_t here = saturating_sub(position, key_offset);
    MaskLimits limits;
    limits.first = window > 0 ? saturating_add(saturating_sub(here, window), 1) : -far;
    limits.end = causal ? saturating_add(here, 1) : window > 0 ? saturating_add(here, window) : far;
    limits.first = clamp(limits.first, -far, far);
    limits.end = clamp(limits.end, -far, far);
    return limits;
}

}  // namespace longrope
