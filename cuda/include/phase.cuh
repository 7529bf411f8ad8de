// The exact phase and its cosine and sine, for the device and the host alike.
//
// A phase is a 64-bit fraction of a turn. The phase of a pair at position n is n * step mod 2^64: one integer product that
// wraps as angles do, so no position is too large and none needs range reduction. What remains is the cosine and sine of
// a known fraction of a turn.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define LONGROPE_HD __host__ __device__ __forceinline__
#else
#define LONGROPE_HD inline
#endif

namespace longrope {

struct CosSin {
    double cos;
    double sin;
};

// The phase of `position` tokens, in units of 2^-64 turns.
LONGROPE_HD uint64_t phase_at(int64_t position, uint64_t step) { return static_cast<uint64_t>(position) * step; }

// Cosine and sine of x radians, |x| <= pi/4, to 4e-13. Taylor: the first terms left out are x^15/15! and x^14/14!.
LONGROPE_HD CosSin cos_sin_reduced(double x) {
    const double y = x * x;
    double s = 1.0 / 6227020800.0;
    s = fma(s, y, -1.0 / 39916800.0);
    s = fma(s, y, 1.0 / 362880.0);
    s = fma(s, y, -1.0 / 5040.0);
    s = fma(s, y, 1.0 / 120.0);
    s = fma(s, y, -1.0 / 6.0);
    double c = 1.0 / 479001600.0;
    c = fma(c, y, -1.0 / 3628800.0);
    c = fma(c, y, 1.0 / 40320.0);
    c = fma(c, y, -1.0 / 720.0);
    c = fma(c, y, 1.0 / 24.0);
    c = fma(c, y, -0.5);
    CosSin result;
    result.cos = fma(c, y, 1.0);
    result.sin = fma(s * y, x, x);
    return result;
}

// Cosine and sine of an angle of `quarter` quarter turns plus what `reduced` is of.
LONGROPE_HD CosSin turn_by_quarters(CosSin reduced, uint32_t quarter) {
    const bool swap = quarter & 1;
    CosSin result;
    result.cos = swap ? reduced.sin : reduced.cos;
    result.sin = swap ? reduced.cos : reduced.sin;
    if ((quarter + 1) & 2) result.cos = -result.cos;
    if (quarter & 2) result.sin = -result.sin;
    return result;
}

// Cosine and sine of a phase.
LONGROPE_HD CosSin cos_sin_of_phase(uint64_t phase) {
    // The nearest quarter turn, and the rest: from -1/8 to below 1/8 turn.
    const uint64_t quarter = (phase + (1ull << 61)) >> 62;
    const int64_t rest = static_cast<int64_t>(phase - (quarter << 62));
    const double radians_per_unit = 3.4061215800865545e-19;  // 2 pi / 2^64
    return turn_by_quarters(cos_sin_reduced(static_cast<double>(rest) * radians_per_unit), static_cast<uint32_t>(quarter));
}

// Cosine and sine of an f32 angle: to 4e-13 below 2^40, far beyond any product of position and frequency in use, and to
// 2e-11 below 2^50, where the nearest quarter turn is sometimes missed by one.
LONGROPE_HD CosSin cos_sin_of_radians(float angle) {
    // pi/2 in three parts. Each step is a single rounding of an exact difference.
    const double quarters = rint(static_cast<double>(angle) * 0.6366197723675814);
    double rest = fma(-quarters, 1.5707963267948966, static_cast<double>(angle));
    rest = fma(-quarters, 6.123233995736766e-17, rest);
    rest = fma(-quarters, -1.4973849048591698e-33, rest);
    return turn_by_quarters(cos_sin_reduced(rest), static_cast<uint32_t>(static_cast<int64_t>(quarters)));
}

}  // namespace longrope
