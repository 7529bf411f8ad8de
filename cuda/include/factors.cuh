// Which set of factors rotates a token.
#pragma once

#include "params.h"
#include "phase.cuh"

namespace longrope {

// The sets of longrope_factor_sets, by number.
enum SetNumber { kPlain = 0, kShort = 1, kLong = 2, kBadSet = 3 };

// The set of a sequence, before its first tokens are considered.
LONGROPE_HD int sequence_set(int32_t choice_kind, const void *choices, int64_t sequence, int64_t original_length) {
    switch (choice_kind) {
        case LONGROPE_CHOICE_SHORT:
            return kShort;
        case LONGROPE_CHOICE_LONG:
            return kLong;
        case LONGROPE_CHOICE_BY_LENGTH:
            // Exactly the original length stays short.
            return static_cast<const int64_t *>(choices)[sequence] > original_length ? kLong : kShort;
        default: {
            const int32_t index = static_cast<const int32_t *>(choices)[sequence];
            return index == 0 ? kShort : index == 1 ? kLong : kBadSet;
        }
    }
}

// The set of a token: the first tokens of a sequence are plain.
LONGROPE_HD int token_set(int set, int64_t position, int64_t first_tokens) {
    return set != kBadSet && first_tokens > 0 && position < first_tokens ? kPlain : set;
}

// The position of a token. Sums wrap, as the phase does.
LONGROPE_HD int64_t token_position(int32_t kind, const void *positions, int64_t offset, int64_t sequence, int64_t length,
                                   int64_t token) {
    const uint64_t running = static_cast<uint64_t>(offset) + static_cast<uint64_t>(token);
    switch (kind) {
        case LONGROPE_POSITION_OFFSET:
            return static_cast<int64_t>(running);
        case LONGROPE_POSITION_DEVICE_OFFSET:
            return static_cast<int64_t>(running + static_cast<uint64_t>(*static_cast<const int64_t *>(positions)));
        case LONGROPE_POSITION_PER_SEQUENCE:
            return static_cast<int64_t>(running + static_cast<uint64_t>(static_cast<const int64_t *>(positions)[sequence]));
        case LONGROPE_POSITION_PER_TOKEN:
            return static_cast<const int64_t *>(positions)[sequence * length + token];
        default:
            return static_cast<const int32_t *>(positions)[sequence * length + token];
    }
}

// The step of a pair. Threads of a warp ask for different ones: through the parameter block's own path they would be
// served one after the other, so on the device the block is read as the memory it also is.
LONGROPE_HD uint64_t step_of(const longrope_factor_set &set, int pair) {
#ifdef __CUDA_ARCH__
    uint64_t step;
    asm("ld.u64 %0, [%1];" : "=l"(step) : "l"(&set.step[pair]));
    return step;
#else
    return set.step[pair];
#endif
}

// A set by its number.
LONGROPE_HD const longrope_factor_set &set_by_number(const longrope_factor_sets &sets, int set) {
    return set == kPlain ? sets.plain_set : set == kShort ? sets.short_set : sets.long_set;
}

// Cosine and sine of a pair at a position, times the gain, rounded to f32 once (parity: as Hugging Face rounds).
LONGROPE_HD void pair_cos_sin(const longrope_factor_set &set, int pair, int64_t position, bool parity, float *cos_out,
                              float *sin_out) {
    const uint64_t step = step_of(set, pair);
    if (parity) {
        union {
            uint32_t bits;
            float value;
        } frequency;
        frequency.bits = static_cast<uint32_t>(step);
        const CosSin angle = cos_sin_of_radians(static_cast<float>(position) * frequency.value);
        const float gain = static_cast<float>(set.gain);
        *cos_out = static_cast<float>(angle.cos) * gain;
        *sin_out = static_cast<float>(angle.sin) * gain;
    } else {
        const CosSin angle = cos_sin_of_phase(phase_at(position, step));
        *cos_out = static_cast<float>(angle.cos * set.gain);
        *sin_out = static_cast<float>(angle.sin * set.gain);
    }
}

// As above for a re-rotation: out of `from` at `position`, into `to` at `position + shift`. Exact angles only.
LONGROPE_HD void pair_cos_sin_between(const longrope_factor_set &from, const longrope_factor_set &to, int pair,
                                      int64_t position, int64_t shift, float *cos_out, float *sin_out) {
    const int64_t moved = static_cast<int64_t>(static_cast<uint64_t>(position) + static_cast<uint64_t>(shift));
    const uint64_t phase = phase_at(moved, step_of(to, pair)) - phase_at(position, step_of(from, pair));
    const CosSin angle = cos_sin_of_phase(phase);
    const double gain = to.gain / from.gain;
    *cos_out = static_cast<float>(angle.cos * gain);
    *sin_out = static_cast<float>(angle.sin * gain);
}

}  // namespace longrope
