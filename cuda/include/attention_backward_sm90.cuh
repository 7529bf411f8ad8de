// The backward pass of attention on Hopper's tensor cores: two kernels, one for dK and dV and one for dQ, each of which makes the
// weights P and the gradients dS of the logits for itself (attention_backward.cuh says what they are).
//
// Both are one form. A block holds rows, 64 for each consumer, and walks over tiles of columns. For dK and dV, rows are keys of a key
// head, and columns the queries of all its query heads, one head after the other; for dQ rows are queries of a head, columns keys.
// With A, A' the rows of what makes the logits and of what makes dP (K and V; or Q and dO), and B, B' those of a tile of columns (Q and
// dO; or K and V), for each tile:
//
//   x = A B^T        P = 2^(c x - lse / ln 2)
//   d = A' B'^T      dS = P (d - delta)
//   dK or dQ += dS B        dV += P B'
//
// P and dS are rounded in registers, from where the products take them, and B and B' are read once along their rows, once along their
// columns: nothing is written to shared memory but by the copy engine. Products run by themselves, in this order:
//
//   products   | x of this tile | dK += of the tile before | d of this tile | dV += P B' of this tile | x of the next tile ...
//   consumer   |                  P of this tile             ->             | dS of this tile, under way the while
//
// A block stays and draws items (attention_sm90_items.cuh). One warp has tiles copied into rings, another brings the numbers of
// queries where these are columns. Every sum is one block's own, in one order: the same inputs give the same bits.
//
// Sums do not drift. These tensor cores cut off as they accumulate, so every kFoldTiles tiles a consumer adds its sums to those of its
// own in device memory, where they are rounded, and starts from zero.
//
// Shared memory, in bytes, D the padded head dimension: A and A', 64 kConsumers D 2 each; B and B', kStages kColumns D 2 each. Tiles
// are parts of 64 dimensions, each of rows of 128 bytes (wgmma.cuh). Behind them, where gradients are rotated, 8 (D + 8) 4 for each
// warp that computes.
#pragma once

#include "attention_backward_sm90_consumer.cuh"
#include "attention_backward_sm90_load.cuh"

namespace longrope {

// Where things lie in shared memory, and the barriers of what is filled and emptied in turn. `which`: 0 of logits, 1 of dP.
//
//   barrier         arrivals of a phase                              who waits
//   column_full     its loader (with its bytes), the numbers' warp   consumers
//   column_empty    warps of consumers, when they have read the      its loader, the numbers' warp
//                   numbers, and the last product has ended
//   rows_full       loaders (with their bytes), for every item       consumers
//   rows_empty      warps of consumers, when all x and d of an item  loaders
//                   are there
//   item_full       the thread that draws                            all
//   item_empty      warps of consumers, loaders, numbers' warp       the thread that draws
//   cleared         its loader (with its bytes)                      its loader
//
// Who waits for a phase has waited for all before it, so that none is taken for another of its parity.
template <class Shape>
struct GradientShared {
    uint32_t tiles, barriers;

    static constexpr int kStages = Shape::kStages;
    static constexpr int kBarriers = 4 * kStages + 2 * kItemSlots + 4;

    __device__ __forceinline__ GradientShared(const char *dynamic, const uint64_t *barrier_words) {
        tiles = (shared_address(dynamic) + 1023) / 1024 * 1024;
        barriers = shared_address(barrier_words);
    }

    __device__ __forceinline__ uint32_t row_tile(int which) const { return tiles + which * Shape::kRowBytes; }
    __device__ __forceinline__ uint32_t column_tile(int which, int slot) const {
        return tiles + 2 * Shape::kRowBytes + (which * kStages + slot) * Shape::kTileBytes;
    }

    // Where a warp that computes stages gradients; there only where they are rotated.
    __device__ __forceinline__ typename Shape::Staged staged(int warp) const {
        const uint32_t at = tiles + Shape::kSharedBytes - 1024 + warp * Shape::Staged::kBytes;
        return {static_cast<float *>(__cvta_shared_to_generic(at))};
    }

    __device__ __forceinline__ uint32_t barrier(int number) const { return barriers + 8 * number; }
    __device__ __forceinline__ uint32_t column_full(int which, int slot) const { return barrier(which * kStages + slot); }
    __device__ __forceinline__ uint32_t column_empty(int which, int slot) const { return barrier((2 + which) * kStages + slot); }
    __device__ __forceinline__ uint32_t item_full(int slot) const { return barrier(4 * kStages + slot); }
    __device__ __forceinline__ uint32_t item_empty(int slot) const { return barrier(4 * kStages + kItemSlots + slot); }
    __device__ __forceinline__ uint32_t rows_full() const { return barrier(kBarriers - 4); }
    __device__ __forceinline__ uint32_t rows_empty() const { return barrier(kBarriers - 3); }
    __device__ __forceinline__ uint32_t cleared(int which) const { return barrier(kBarriers - 2 + which); }

    // By one thread.
    __device__ __forceinline__ void set_up() const {
        for (int which = 0; which < 2; ++which) {
            for (int slot = 0; slot < kStages; ++slot) {
                barrier_init(column_full(which, slot), Shape::kOfKeys ? 2 : 1);
                barrier_init(column_empty(which, slot), 4 * Shape::kConsumers);
            }
        }
        for (int slot = 0; slot < kItemSlots; ++slot) {
            barrier_init(item_full(slot), 1);
            barrier_init(item_empty(slot), 4 * Shape::kConsumers + (Shape::kOfKeys ? 3 : 2));
        }
        barrier_init(rows_full(), 2);
        barrier_init(rows_empty(), 4 * Shape::kConsumers);
        barrier_init(cleared(0), 1);
        barrier_init(cleared(1), 1);
        barrier_init_done();
    }
};

template <bool kValue>
struct Choice {
    static constexpr bool value = kValue;
};

// What a consumer does: `group` counts them.
template <class T, class Shape>
__device__ __forceinline__ void sum_gradients(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                              const GradientItem *items, const float *numbers, int group) {
    constexpr bool kOfKeys = Shape::kOfKeys;
    constexpr int kStages = Shape::kStages;
    const longrope_attention_backward_params &b = h.backward;
    // By every warp.
    const auto release = [](uint32_t barrier) {
        __syncwarp();
        if (thread_again() % 32 == 0) barrier_arrive(barrier);
    };
    PackedTurn<kItemSlots> turn;
    Turn<kStages> column;
    GradientConsumer<T, Shape> mine;
    const auto my_rows = [&](int which) { return shared.row_tile(which) + (thread_again() / 128 - 1) * 64 * 128; };
    const auto column_number = [&](int which) { return numbers + (which * kStages + column.slot()) * Shape::kColumns; };
    // Of the tile before.
    const auto slot_before = [&] { return column.slot() == 0 ? kStages - 1 : column.slot() - 1; };

    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        const GradientItem &item = items[turn.slot()];
        if (item.is_last) break;
        mine.reset();
        if (!kOfKeys && item.tiles() > 0) mine.read_rows(b, item);
        barrier_wait(shared.rows_full(), turn.slot());
        if (item.tiles() > 0) {

            // A tile. The first of an item comes after no other, so that no gradients are to be added yet.
            const auto step = [&](int tile, auto first, auto masked) {
                constexpr bool kFirst = decltype(first)::value;
                barrier_wait(shared.column_full(0, column.slot()), column.parity());
                mine.hold_sum();
                wgmma_fence();
                mine.begin_logits(my_rows(0), shared.column_tile(0, column.slot()));
                if (!kFirst) {
                    wgmma_fence();
                    mine.begin_of_logits(shared.column_tile(0, slot_before()));
                }
                barrier_wait(shared.column_full(1, column.slot()), column.parity());
                wgmma_fence();
                mine.begin_d(my_rows(1), shared.column_tile(1, column.slot()));
                wgmma_wait<kFirst ? 1 : 2>();
                hold(mine.flat(mine.x));
                mine.weigh(column_number(0), copysignf(b.attention.scale_log2, b.scale));
                if (decltype(masked)::value) mine.mask(item, tile * Shape::kColumns);
                // Long over; but the assembler, which would have weights made only after the products, does not look beyond the branch.
                barrier_wait(shared.column_full(1, column.slot()), column.parity());
                if (!kFirst) {
                    wgmma_wait<1>();
                    mine.hold_sum();
                    release(shared.column_empty(0, slot_before()));
                }
                if (kOfKeys) {
                    mine.round_weights();
                    mine.hold_weighted_sum();
                    wgmma_fence();
                    mine.begin_of_weights(shared.column_tile(1, column.slot()));
                }
                wgmma_wait<kOfKeys ? 1 : 0>();
                hold(mine.flat(mine.d));
                if (!kOfKeys) release(shared.column_empty(1, column.slot()));
                mine.differentiate(column_number(1));
                mine.round_gradients();
                if (kOfKeys) {
                    wgmma_wait<0>();
                    mine.hold_weighted_sum();
                    release(shared.column_empty(1, column.slot()));
                }
                column.next();
            };
            const int members = kOfKeys ? b.attention.group : 1;
            int left = Shape::kFoldTiles;  // until the sums are folded
            // Tiles that are not whole for some row, those that are for all, and such as the first again: the loop over most of them
            // has no code for masks.
#pragma unroll 1
            for (int member = 0; member < members; ++member) {
                int tile = item.end - 1;
                if (member == 0) {
                    step(tile--, Choice<true>(), Choice<true>());
                    --left;
                }
#pragma unroll 1
                while (tile >= item.first) {
                    const int until = max(tile - left + 1, item.first);
                    left -= tile - until + 1;
#pragma unroll 1
                    for (const int end = max(until, item.full_end); tile >= end; --tile) step(tile, Choice<false>(), Choice<true>());
#pragma unroll 1
                    for (const int end = max(until, item.full_first); tile >= end; --tile) step(tile, Choice<false>(), Choice<false>());
#pragma unroll 1
                    for (; tile >= until; --tile) step(tile, Choice<false>(), Choice<true>());
                    if (left > 0) continue;
                    // Tiles so far, counted anew.
                    mine.fold(h.sums, member * item.tiles() + item.end - 1 - tile == Shape::kFoldTiles);
                    left = Shape::kFoldTiles;
                }
            }
            release(shared.rows_empty());
            mine.hold_sum();
            wgmma_fence();
            mine.begin_of_logits(shared.column_tile(0, slot_before()));
            wgmma_wait<0>();
            mine.hold_sum();
            mine.hold_weighted_sum();
            release(shared.column_empty(0, slot_before()));
            if (members * item.tiles() >= Shape::kFoldTiles) {
                mine.unfold(h.sums);
            } else {
                mine.unscale();
            }
        } else {
            release(shared.rows_empty());
        }
        mine.store_all(b, item, shared.staged(thread_again() / 32 - 4));
        release(shared.item_empty(turn.slot()));
    }
}

template <class T, class Shape>
__device__ __forceinline__ void differentiate_on_hopper(const longrope_attention_backward_sm90_params &h) {
    extern __shared__ __align__(1024) char shared_bytes[];
    __shared__ GradientItem items[kItemSlots];
    __shared__ ItemFinder finder;
    __shared__ int cleared[2];  // parities of the barriers for tiles that are cleared in part
    __shared__ __align__(8) uint64_t barriers[GradientShared<Shape>::kBarriers];
    __shared__ __align__(8) float numbers[Shape::kOfKeys ? 2 * Shape::kStages * Shape::kColumns : 2];
    const GradientShared<Shape> shared(shared_bytes, barriers);
    const int thread = threadIdx.x;
    if (thread == 0) {
        shared.set_up();
        cleared[0] = cleared[1] = 0;
    }
    __syncthreads();
    if (thread < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kLoaderRegisters));
        if (thread < 32) {
            load_gradient_items<Shape, 0>(h, shared, items, cleared[0]);
        } else if (thread == 32) {
            draw_gradient_items<Shape>(h, shared, items, finder);
        } else if (thread >= 96) {
            load_gradient_items<Shape, 1>(h, shared, items, cleared[1]);
        } else if (Shape::kOfKeys && thread >= 64) {
            load_column_numbers<T, Shape>(h, shared, items, numbers);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kConsumerRegisters));
        sum_gradients<T, Shape>(h, shared, items, numbers, thread / 128 - 1);
    }
}

}  // namespace longrope

// The kernels for a padded head dimension and a type.
#define LONGROPE_ATTENTION_BACKWARD_SM90(name, T, QueryShape, KeyShape)                                                    \
    extern "C" __global__ void __launch_bounds__(QueryShape::kThreads, 1)                                                  \
        longrope_attention_backward_queries_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {    \
        longrope::differentiate_on_hopper<T, QueryShape>(p);                                                               \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(KeyShape::kThreads, 1)                                                    \
        longrope_attention_backward_keys_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::differentiate_on_hopper<T, KeyShape>(p);                                                                 \
    }
