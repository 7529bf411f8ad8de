// The transpose of the rotation, for gradients: out of those of rotated queries or keys, those of what they were before it.
//
// The two dimensions of a pair may be held by different threads, and by such registers as are known only when the kernel runs. So
// rows go through shared memory, as f32, where threads take them by pairs. A thread takes a pair of kTurnedRows rows that follow
// one another: at the first its angle comes from the exact phase (phase.cuh), and is turned on by a token from row to row, four
// operations where an angle from its phase takes forty. Each turn adds at most 4e-7 to the error, which stays below 3e-6: half an
// ulp of an f16 is 2.4e-4. Where a row is a first token, which takes another set, all angles come from their phases.
//
// What has only the place and not the threads of host or device, so that it is tested without a GPU too.
#pragma once

#include "factors.cuh"

namespace longrope {

// Rows of which a thread has a pair at a time.
constexpr int kTurnedRows = 8;

// Rows of a gradient in shared memory, f32 [kRows][kPitch], and what so many threads do with them together. Between the steps, which
// are put, transpose and store, the threads have to meet.
template <int kDim_, int kRows_, int kThreads_>
struct StagedGradient {
    static constexpr int kDim = kDim_, kRows = kRows_, kThreads = kThreads_;
    // So that the eight rows of what a warp writes of an accumulator (mma.cuh) lie in different banks.
    static constexpr int kPitch = kDim + 8;
    static constexpr int kBytes = kRows * kPitch * 4;
    static_assert(kRows % kTurnedRows == 0 && kDim % 32 == 0);

    // Two neighbouring dimensions.
    struct alignas(8) Two {
        float x, y;
    };

    float *rows;

    LONGROPE_HD Two &two(int row, int dim) const { return *reinterpret_cast<Two *>(rows + row * kPitch + dim); }
    LONGROPE_HD void put(int row, int dim, float x, float y) const { two(row, dim) = {x, y}; }

    // What thread `thread` does to apply the transpose; the first row stands at `position`.
    LONGROPE_HD void transpose(const longrope_cache_rotary &rotary, int set, int64_t position, int thread) const {
        const int pairs = rotary.pairs, to_next = rotary.interleaved ? 2 : 1, to_other = rotary.interleaved ? 1 : pairs;
#pragma unroll 1
        for (int unit = thread; unit < pairs * (kRows / kTurnedRows); unit += kThreads) {
            const int run = kRows == kTurnedRows ? 0 : unit / pairs, pair = unit - run * pairs;
            transpose_run(rows + run * kTurnedRows * kPitch + pair * to_next, to_other, rotary.sets, set,
                          static_cast<int64_t>(static_cast<uint64_t>(position) + static_cast<uint64_t>(run * kTurnedRows)), pair);
        }
    }

    // What thread `thread` does to write the rows that exist, `there` of them, from row `first_row` of the gradient on.
    template <class T, bool kVector, class Out>
    LONGROPE_HD void store(const Out &out, int64_t first_row, int64_t there, int head_dim, int thread) const {
        // Threads that share a row, each with two of its dimensions at a time; 96 dimensions leave some idle.
        constexpr int kTwos = kDim == 96 ? 64 : kDim / 2, kColumns = kTwos < kThreads ? kTwos : kThreads;
        constexpr int kRowsAtOnce = kThreads / kColumns;
        // What is added to is read in several rows first, since it takes long to come.
        constexpr int kAhead = 4;
        static_assert(kTwos % kColumns == 0 && kRows % (kAhead * kRowsAtOnce) == 0);
        const int end = static_cast<int>(there < kRows ? there : kRows);
#pragma unroll 1
        for (int dim = thread % kColumns * 2; dim < head_dim; dim += 2 * kColumns) {
#pragma unroll 1
            for (int row = thread / kColumns; row < end; row += kAhead * kRowsAtOnce) {
                const int64_t at = out.element(first_row + row, dim), step = kRowsAtOnce * out.row_stride;
                Two now[kAhead];
#pragma unroll
                for (int i = 0; i < kAhead; ++i) {
                    now[i] = two(row + i * kRowsAtOnce, dim);
                    if (row + i * kRowsAtOnce < end) out.template add_before<kVector>(at + i * step, now[i].x, now[i].y);
                }
#pragma unroll
                for (int i = 0; i < kAhead; ++i) {
                    if (row + i * kRowsAtOnce < end) out.template write<T, kVector>(at + i * step, now[i].x, now[i].y);
                }
            }
        }
    }

private:
    // A pair of some rows: `x` is its first dimension in the first row, `to_other` behind which lies the second.
    static LONGROPE_HD void transpose_run(float *x, int to_other, const longrope_factor_sets &sets, int set, int64_t position,
                                          int pair) {
        if (position < sets.first_tokens) {
#pragma unroll 1
            for (int row = 0; row < kTurnedRows; ++row, ++position, x += kPitch) {
                const int now = token_set(set, position, sets.first_tokens);
                CosSin<float> angle;
                pair_cos_sin<float>(factor_of(set_by_number(sets, now), pair), position, &angle.cos, &angle.sin);
                transpose_pair(x[0], x[to_other], angle);
            }
            return;
        }
        const PairFactor factor = factor_of(set_by_number(sets, set), pair);
        const CosSin<float> token = cos_sin_of_phase<float>(factor.step);
        CosSin<float> angle;
        pair_cos_sin<float>(factor, position, &angle.cos, &angle.sin);
#pragma unroll
        for (int row = 0; row < kTurnedRows; ++row) {
            transpose_pair(x[row * kPitch], x[row * kPitch + to_other], angle);
            angle = {fmaf(angle.cos, token.cos, -(angle.sin * token.sin)), fmaf(angle.sin, token.cos, angle.cos * token.sin)};
        }
    }

    // Gain times the rotation is (x c - y s, y c + x s).
    static LONGROPE_HD void transpose_pair(float &x, float &y, CosSin<float> angle) {
        const float a = x, b = y;
        x = fmaf(a, angle.cos, b * angle.sin);
        y = fmaf(b, angle.cos, -(a * angle.sin));
    }
};

}  // namespace longrope
