// The exact phase and its cosine and sine, for the device and the host alike.
//
// A phase is a 64-bit fraction of a turn. The phase of a pair at position n is n * step mod 2^64: one integer product that
// wraps as angles do, so no position is too large and none needs range reduction. What remains is the cosine and sine of
// a known fraction of a turn, in f64 where the result is wanted to the last bit of an f32, in f32 for 16-bit elements.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define LONGROPE_HD __host__ __device__ __forceinline__
#else
#define LONGROPE_HD inline
#endif

namespace longrope {

template <class Real>
struct CosSin {
    Real cos;
    Real sin;
};

// The phase of `position` tokens, in units of 2^-64 turns.
LONGROPE_HD uint64_t phase_at(int64_t position, uint64_t step) { return static_cast<uint64_t>(position) * step; }

// Cosine and sine of x radians, |x| <= pi/4, to 4e-13. Taylor: the first terms left out are x^15/15! and x^14/14!.
LONGROPE_HD CosSin<double> cos_sin_reduced(double x) {
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
    CosSin<double> result;
    result.cos = fma(c, y, 1.0);
    result.sin = fma(s * y, x, x);
    return result;
}

// The same in f32, to 1.2e-7, most of which is rounding. Taylor: the first terms left out are x^11/11! and x^10/10!, 2e-9
// and 2.5e-8.
LONGROPE_HD CosSin<float> cos_sin_reduced(float x) {
    const float y = x * x;
    float s = 1.0f / 362880.0f;
    s = fmaf(s, y, -1.0f / 5040.0f);
    s = fmaf(s, y, 1.0f / 120.0f);
    s = fmaf(s, y, -1.0f / 6.0f);
    float c = 1.0f / 40320.0f;
    c = fmaf(c, y, -1.0f / 720.0f);
    c = fmaf(c, y, 1.0f / 24.0f);
    c = fmaf(c, y, -0.5f);
    CosSin<float> result;
    result.cos = fmaf(c, y, 1.0f);
    result.sin = fmaf(s * y, x, x);
    return result;
}

// Cosine and sine of an angle of `quarter` quarter turns plus what `reduced` is of.
template <class Real>
LONGROPE_HD CosSin<Real> turn_by_quarters(CosSin<Real> reduced, uint32_t quarter) {
    const bool swap = quarter & 1;
    CosSin<Real> result;
    result.cos = swap ? reduced.sin : reduced.cos;
    result.sin = swap ? reduced.cos : reduced.sin;
    if ((quarter + 1) & 2) result.cos = -result.cos;
    if (quarter & 2) result.sin = -result.sin;
    return result;
}

// Cosine and sine of a phase: in f64 to 4e-13, in f32 to 2.5e-7.
template <class Real>
LONGROPE_HD CosSin<Real> cos_sin_of_phase(uint64_t phase);

template <>
LONGROPE_HD CosSin<double> cos_sin_of_phase<double>(uint64_t phase) {
    // The nearest quarter turn, and the rest: from -1/8 to below 1/8 turn.
    const uint64_t quarter = (phase + (1ull << 61)) >> 62;
    const int64_t rest = static_cast<int64_t>(phase - (quarter << 62));
    const double radians_per_unit = 3.4061215800865545e-19;  // 2 pi / 2^64
    return turn_by_quarters(cos_sin_reduced(static_cast<double>(rest) * radians_per_unit), static_cast<uint32_t>(quarter));
}

template <>
LONGROPE_HD CosSin<float> cos_sin_of_phase<float>(uint64_t phase) {
    // As above, of the upper 32 bits: what is cut off is below 1.5e-9 rad. f32 holds the rest to 2^-24 of itself.
    const uint32_t upper = static_cast<uint32_t>(phase >> 32);
    const uint32_t quarter = (upper + (1u << 29)) >> 30;
    const int32_t rest = static_cast<int32_t>(upper - (quarter << 30));
    const float radians_per_unit = 1.4629180792671596e-09f;  // 2 pi / 2^32
    return turn_by_quarters(cos_sin_reduced(static_cast<float>(rest) * radians_per_unit), quarter);
}

// Cosine and sine of an f32 angle: to 4e-13 below 2^40, far beyond any product of position and frequency in use, and to
// 2e-11 below 2^50, where the nearest quarter turn is sometimes missed by one.
LONGROPE_HD CosSin<double> cos_sin_of_radians(float angle) {
    // pi/2 in three parts. Each step is a single rounding of an exact difference.
    const double quarters = rint(static_cast<double>(angle) * 0.6366197723675814);
    double rest = fma(-quarters, 1.5707963267948966, static_cast<double>(angle));
    rest = fma(-quarters, 6.123233995736766e-17, rest);
    rest = fma(-quarters, -1.4973849048591698e-33, rest);
    return turn_by_quarters(cos_sin_reduced(rest), static_cast<uint32_t>(static_cast<int64_t>(quarters)));
}

}  // namespace longrope
