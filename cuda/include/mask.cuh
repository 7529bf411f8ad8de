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

// Queries `first` to `end`, the latter not included, likewise.
struct QueryRange {
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

    // The queries of the run, of so many, that see one of `count` keys from `key` on: they follow one another, since later
    // queries begin and end with later keys.
    LONGROPE_HD QueryRange seeing(int64_t key, int64_t count, int64_t queries) const {
        QueryRange range;
        range.first = clamp(key - end + 1, 0, queries);
        range.end = clamp(key + count - first, range.first, queries);
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

// The mask of a tile: of row r, the columns from low + r to before high + r are seen. Far away, a tile sees all or nothing.
struct MaskBand {
    static constexpr int kFar = 1 << 20;
    int low, high;

    static LONGROPE_HD int limit(int64_t x) { return static_cast<int>(clamp(x, -kFar, kFar)); }

    // Rows are queries, from that of the limits on; columns keys, from `first_key` on.
    static LONGROPE_HD MaskBand of_queries(const MaskLimits &limits, int64_t first_key) {
        return {limit(limits.first - first_key), limit(limits.end - first_key)};
    }

    // Rows are keys, `distance` after the columns, which are queries: the limits are of query 0. Query c sees key r if
    // limits.first <= distance + r - c < limits.end.
    static LONGROPE_HD MaskBand of_keys(const MaskLimits &limits, int64_t distance) {
        return {limit(distance - limits.end + 1), limit(distance - limits.first + 1)};
    }

    // Seen from a later row.
    LONGROPE_HD MaskBand from_row(int row) const { return {low + row, high + row}; }

    // Of so many rows and columns, whether all are seen, or none.
    LONGROPE_HD bool shows_all(int rows, int columns) const { return low + rows - 1 <= 0 && high >= columns; }
    LONGROPE_HD bool shows_none(int rows, int columns) const { return low >= columns || high + rows - 1 <= 0; }
};

}  // namespace longrope
