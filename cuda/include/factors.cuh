// Which set of factors rotates a token.
#pragma once

#include "params.h"
#include "phase.cuh"

namespace longrope {

// The sets of longrope_factor_sets, by number.
enum SetNumber { kPlain = 0, kShort = 1, kLong = 2, kBadSet = 3 };

// The set of a sequence, before its first tokens are considered.
LONGROPE_HD int sequence_set(int32_t choice_kind, const void *choices, int64_t sequence, int64_t original_length) {
    if (choice_kind == LONGROPE_CHOICE_SHORT) return kShort;
    if (choice_kind == LONGROPE_CHOICE_LONG) return kLong;
    if (choice_kind == LONGROPE_CHOICE_BY_LENGTH) {
        // Exactly the original length stays short.
        return static_cast<const int64_t *>(choices)[sequence] > original_length ? kLong : kShort;
    }
    const int32_t index = static_cast<const int32_t *>(choices)[sequence];
    return index == 0 ? kShort : index == 1 ? kLong : kBadSet;
}

// The set of a token: the first tokens of a sequence are plain.
LONGROPE_HD int token_set(int set, int64_t position, int64_t first_tokens) {
    return set != kBadSet && first_tokens > 0 && position < first_tokens ? kPlain : set;
}

// The index of a sequence into a table of `count` sets, or -1 where it is a bad one.
LONGROPE_HD int64_t table_index(const void *choices, int64_t sequence, int64_t count) {
    const int32_t index = static_cast<const int32_t *>(choices)[sequence];
    return index >= 0 && index < count ? index : -1;
}

// The position of a token. Sums wrap, as the phase does.
LONGROPE_HD int64_t token_position(int32_t kind, const void *positions, int64_t offset, int64_t sequence, int64_t length,
                                   int64_t token) {
    // Comparisons, and no switch: a table of jumps is one more line of constant memory that a short launch waits for.
    const uint64_t running = static_cast<uint64_t>(offset) + static_cast<uint64_t>(token);
    if (kind == LONGROPE_POSITION_OFFSET) return static_cast<int64_t>(running);
    if (kind == LONGROPE_POSITION_PER_TOKEN_32) {
        return static_cast<const int32_t *>(positions)[sequence * length + token];
    }
    const bool per_token = kind == LONGROPE_POSITION_PER_TOKEN;
    const int64_t index = per_token ? sequence * length + token : kind == LONGROPE_POSITION_PER_SEQUENCE ? sequence : 0;
    const uint64_t found = static_cast<uint64_t>(static_cast<const int64_t *>(positions)[index]);
    return static_cast<int64_t>(per_token ? found : running + found);
}

// The step of a pair, and the gain of its set.
struct PairFactor {
    uint64_t step;
    double gain;
};

// The factor of a pair. Threads of a warp ask for different ones: through the parameter block's own path they would be
// served one after the other, so on the device the block is read as the memory it also is. The gain goes the same way, as
// it then arrives with the step.
LONGROPE_HD PairFactor factor_of(const longrope_factor_set &set, int pair) {
    PairFactor factor;
#ifdef __CUDA_ARCH__
    asm("ld.u64 %0, [%1];" : "=l"(factor.step) : "l"(&set.step[pair]));
    asm("ld.f64 %0, [%1];" : "=d"(factor.gain) : "l"(&set.gain));
#else
    factor.step = set.step[pair];
    factor.gain = set.gain;
#endif
    return factor;
}

// A set by its number.
LONGROPE_HD const longrope_factor_set &set_by_number(const longrope_factor_sets &sets, int set) {
    return set == kPlain ? sets.plain_set : set == kShort ? sets.short_set : sets.long_set;
}

// Cosine and sine of a pair at a position, times the gain; in f64 rounded to f32 once.
template <class Real>
LONGROPE_HD void pair_cos_sin(PairFactor factor, int64_t position, float *cos_out, float *sin_out) {
    const CosSin<Real> angle = cos_sin_of_phase<Real>(phase_at(position, factor.step));
    const Real gain = static_cast<Real>(factor.gain);
    *cos_out = static_cast<float>(angle.cos * gain);
    *sin_out = static_cast<float>(angle.sin * gain);
}

// As above in parity mode: of the f32 product, and rounded as Hugging Face rounds.
LONGROPE_HD void pair_cos_sin_parity(PairFactor factor, int64_t position, float *cos_out, float *sin_out) {
    union {
        uint32_t bits;
        float value;
    } frequency;
    frequency.bits = static_cast<uint32_t>(factor.step);
    const CosSin<double> angle = cos_sin_of_radians(static_cast<float>(position) * frequency.value);
    const float gain = static_cast<float>(factor.gain);
    *cos_out = static_cast<float>(angle.cos) * gain;
    *sin_out = static_cast<float>(angle.sin) * gain;
}

// Cosine and sine by exact angles or in parity mode.
template <class Real>
LONGROPE_HD void pair_cos_sin_by_kind(bool parity, PairFactor factor, int64_t position, float *cos,
                                      float *sin) {
    if (parity) {
        pair_cos_sin_parity(factor, position, cos, sin);
    } else {
        pair_cos_sin<Real>(factor, position, cos, sin);
    }
}

// As above for a re-rotation: out of `from` at `position`, into `to` at `position + shift`. Exact angles only.
template <class Real>
LONGROPE_HD void pair_cos_sin_between(PairFactor from, PairFactor to, int64_t position, int64_t shift, float *cos_out,
                                      float *sin_out) {
    const int64_t moved = static_cast<int64_t>(static_cast<uint64_t>(position) + static_cast<uint64_t>(shift));
    const uint64_t phase = phase_at(moved, to.step) - phase_at(position, from.step);
    const CosSin<Real> angle = cos_sin_of_phase<Real>(phase);
    const Real gain = static_cast<Real>(to.gain) / static_cast<Real>(from.gain);
    *cos_out = static_cast<float>(angle.cos * gain);
    *sin_out = static_cast<float>(angle.sin * gain);
}

}  // namespace longrope
