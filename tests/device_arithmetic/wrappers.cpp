// The arithmetic of the device code as the host's compiler sees it, under plain names.

#include "divide.cuh"
#include "factors.cuh"
#include "gradient_rotation.cuh"
#include "mask.cuh"
#include "phase.cuh"

using namespace longrope;

// A set in which only the asked-for pair has this step.
static longrope_factor_set set_with(int pair, uint64_t step, double gain) {
    longrope_factor_set set;
    for (int i = 0; i < LONGROPE_MAX_PAIRS; ++i) set.step[i] = 0xdeadbeefdeadbeefull;
    set.step[pair] = step;
    set.gain = gain;
    return set;
}

// f32 rows of a gradient, added to or written over.
struct HostGradient {
    float *first;
    int64_t row_stride;
    bool accumulate;

    int64_t element(int64_t row, int dim) const { return row * row_stride + dim; }
    template <bool kVector>
    void add_before(int64_t at, float &x, float &y) const {
        if (accumulate) x += first[at], y += first[at + 1];
    }
    template <class T, bool kVector>
    void write(int64_t at, float x, float y) const {
        first[at] = x, first[at + 1] = y;
    }
};

// Stages rows, rotates and writes them, by one thread after the other.
template <int kDim, int kRows, int kThreads>
static void write_rotated(const longrope_cache_rotary &rotary, int set, int64_t position, const float *from, int head_dim, int there,
                          const HostGradient &out, int64_t first_row) {
    using Staged = StagedGradient<kDim, kRows, kThreads>;
    alignas(16) static thread_local float memory[Staged::kBytes / 4];
    const Staged staged{memory};
    for (int row = 0; row < kRows; ++row) {
        for (int dim = 0; dim < head_dim; dim += 2) staged.put(row, dim, from[row * head_dim + dim], from[row * head_dim + dim + 1]);
    }
    for (int thread = 0; thread < kThreads; ++thread) staged.transpose(rotary, set, position, thread);
    for (int thread = 0; thread < kThreads; ++thread) staged.template store<float, true>(out, first_row, there, head_dim, thread);
}

extern "C" {

// Rows of gradients, `from` [rows][head_dim] and `out` from row `first_row` on, of which so many exist. `form`: a padded head dimension,
// and a number of rows and of threads. `steps`: of the plain, the short and the long set, `pairs` each.
void host_write_rotated(int form, const uint64_t *steps, const double *gains, int pairs, int interleaved, int64_t first_tokens, int set,
                       int64_t position, const float *from, int head_dim, int there, float *out, int64_t first_row, int accumulate) {
    longrope_cache_rotary rotary = {};
    rotary.pairs = pairs;
    rotary.interleaved = interleaved;
    rotary.sets.first_tokens = first_tokens;
    longrope_factor_set *const sets[] = {&rotary.sets.plain_set, &rotary.sets.short_set, &rotary.sets.long_set};
    for (int i = 0; i < 3; ++i) {
        for (int pair = 0; pair < pairs; ++pair) sets[i]->step[pair] = steps[i * pairs + pair];
        sets[i]->gain = gains[i];
    }
    const HostGradient to = {out, head_dim, accumulate != 0};
    switch (form) {
        case 0:
            return write_rotated<128, 8, 32>(rotary, set, position, from, head_dim, there, to, first_row);
        case 1:
            return write_rotated<64, 64, 128>(rotary, set, position, from, head_dim, there, to, first_row);
        case 2:
            return write_rotated<96, 64, 128>(rotary, set, position, from, head_dim, there, to, first_row);
        default:
            return write_rotated<256, 32, 128>(rotary, set, position, from, head_dim, there, to, first_row);
    }
}

uint64_t host_phase_at(int64_t position, uint64_t step) { return phase_at(position, step); }

void host_cos_sin_of_phase(uint64_t phase, double *out) {
    const CosSin<double> angle = cos_sin_of_phase<double>(phase);
    out[0] = angle.cos;
    out[1] = angle.sin;
}

void host_cos_sin_of_phase_32(uint64_t phase, float *out) {
    const CosSin<float> angle = cos_sin_of_phase<float>(phase);
    out[0] = angle.cos;
    out[1] = angle.sin;
}

void host_cos_sin_of_radians(float angle, double *out) {
    const CosSin<double> result = cos_sin_of_radians(angle);
    out[0] = result.cos;
    out[1] = result.sin;
}

// How the angle is computed.
enum Arithmetic { kDouble, kFloat, kParity };

void host_pair_cos_sin(int pair, uint64_t step, double gain, int64_t position, int arithmetic, float *out) {
    const PairFactor factor = factor_of(set_with(pair, step, gain), pair);
    switch (arithmetic) {
        case kDouble:
            return pair_cos_sin<double>(factor, position, &out[0], &out[1]);
        case kFloat:
            return pair_cos_sin<float>(factor, position, &out[0], &out[1]);
        default:
            return pair_cos_sin_parity(factor, position, &out[0], &out[1]);
    }
}

void host_pair_cos_sin_between(int pair, uint64_t from_step, double from_gain, uint64_t to_step, double to_gain,
                               int64_t position, int64_t shift, int arithmetic, float *out) {
    const PairFactor from = factor_of(set_with(pair, from_step, from_gain), pair);
    const PairFactor to = factor_of(set_with(pair, to_step, to_gain), pair);
    if (arithmetic == kDouble) {
        pair_cos_sin_between<double>(from, to, position, shift, &out[0], &out[1]);
    } else {
        pair_cos_sin_between<float>(from, to, position, shift, &out[0], &out[1]);
    }
}

int64_t host_table_index(const void *choices, int64_t sequence, int64_t count) {
    return table_index(choices, sequence, count);
}

uint32_t host_divide(uint32_t n, uint32_t reciprocal) { return divide(n, reciprocal); }

int64_t host_token_position(int32_t kind, const void *positions, int64_t offset, int64_t sequence, int64_t length,
                            int64_t token) {
    return token_position(kind, positions, offset, sequence, length, token);
}

// The number of the set that rotates a token: 0 plain, 1 short, 2 long, 3 none.
int host_set_of_token(int32_t choice_kind, const void *choices, int64_t sequence, int64_t original_length,
                      int64_t position, int64_t first_tokens) {
    const int set = token_set(sequence_set(choice_kind, choices, sequence, original_length), position, first_tokens);
    if (set == kBadSet) return set;
    longrope_factor_sets sets = {};
    sets.plain_set.gain = 0;
    sets.short_set.gain = 1;
    sets.long_set.gain = 2;
    return static_cast<int>(set_by_number(sets, set).gain);
}

// The keys that query `r` of a run sees, of which the first stands at `position`.
void host_visible(int64_t position, int causal, int64_t window, int64_t key_offset, int64_t r, int64_t keys, int64_t *out) {
    const KeyRange range = mask_limits(position, causal != 0, window, key_offset).visible(r, keys);
    out[0] = range.first;
    out[1] = range.end;
}

// The queries of a run of so many that see one of `count` keys from `key` on.
void host_seeing(int64_t position, int causal, int64_t window, int64_t key_offset, int64_t key, int64_t count, int64_t queries,
                 int64_t *out) {
    const QueryRange range = mask_limits(position, causal != 0, window, key_offset).seeing(key, count, queries);
    out[0] = range.first;
    out[1] = range.end;
}

// The band of a tile from query `query` of a run and from key `key` on: by rows of queries, or of keys.
void host_band(int64_t position, int causal, int64_t window, int64_t key_offset, int64_t query, int64_t key, int by_keys, int *out) {
    const MaskBand band = by_keys
                              ? MaskBand::of_keys(mask_limits(position, causal != 0, window, key_offset), key - query)
                              : MaskBand::of_queries(mask_limits(position + query, causal != 0, window, key_offset), key);
    out[0] = band.low;
    out[1] = band.high;
    out[2] = band.from_row(16).shows_all(32, 64);
    out[3] = band.from_row(16).shows_none(32, 64);
}

}
