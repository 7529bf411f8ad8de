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
// Shared memory, in bytes, D the padded head dimension: A and A', 64 kConsumers D 2 each; B and B', kFirstStages kColumns D 2 each. Tiles
// are parts of 64 dimensions, each of rows of 128 bytes (wgmma.cuh). Behind them, where gradients are rotated, 8 (D + 8) 4 for each warp that computes.
#pragma once

#include "attention_backward_sm90_block.cuh"
#include "attention_backward_sm90_consumer.cuh"

namespace longrope {

// What a consumer does.
template <class T, class Shape>
__device__ __forceinline__ void sum_gradients(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                              const GradientItem *items, const float *numbers) {
    constexpr bool kOfKeys = Shape::kOfKeys;
    constexpr int kStages = Shape::kFirstStages;
    const longrope_attention_backward_params &b = h.backward;
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
        if (b.rotates) {
            mine.store_all_rotated(b, item, shared.staged(thread_again() / 32 - 4));
        } else {
            mine.store_all(b, item);
        }
        release(shared.item_empty(turn.slot()));
    }
}

template <class T, class Shape>
struct GradientSums {
    using Drawer = ItemFinder;
    static __device__ __forceinline__ void run(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                               const GradientItem *items, const float *numbers) {
        sum_gradients<T, Shape>(h, shared, items, numbers);
    }
    static __device__ __forceinline__ void draw(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                                GradientItem *items, Drawer &drawer) {
        draw_gradient_items<Shape>(h, shared, items, drawer);
    }
};

}  // namespace longrope

// The kernels for a padded head dimension and a type.
#define LONGROPE_ATTENTION_BACKWARD_SM90(name, T, QueryShape, KeyShape)                                                    \
    extern "C" __global__ void __launch_bounds__(QueryShape::kThreads, 1)                                                  \
        longrope_attention_backward_queries_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {    \
        longrope::differentiate_on_hopper<T, QueryShape, longrope::GradientSums<T, QueryShape>>(p);                        \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(KeyShape::kThreads, 1)                                                    \
        longrope_attention_backward_keys_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::differentiate_on_hopper<T, KeyShape, longrope::GradientSums<T, KeyShape>>(p);                            \
    }
