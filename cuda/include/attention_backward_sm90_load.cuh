// How Hopper's kernels of attention's backward pass load: two warps that have tiles copied, and for dK and dV a third that brings
// what the columns have, a number each. All are ahead of the consumers as far as the rings reach.
#pragma once

#include "attention_backward_sm90_items.cuh"
#include "tensor_map.cuh"

namespace longrope {

// Begins to load a tile of kRows rows: 64 dimensions after the other, zeros beyond those that there are. Its bytes are expected at the
// barrier before.
template <int kDim, int kRows>
__device__ __forceinline__ void load_boxes(uint32_t to, const longrope_tensor_map &map, const BoxPlace &place, uint32_t barrier) {
#pragma unroll
    for (int part = 0; part < (kDim + 63) / 64; ++part) load_box(to + part * kRows * 128, map, part * 64, place, barrier);
}

// Clears the rows of a tile of kRows from `first` on, by a warp.
template <int kDim, int kRows>
__device__ __forceinline__ void clear_boxes(uint32_t tile, int first, int lane) {
    for (int part = 0; part < (kDim + 63) / 64; ++part) {
        for (int at = first * 128 + lane * 16; at < kRows * 128; at += 512) {
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + part * kRows * 128 + at), "r"(0) : "memory");
        }
    }
}

// Where the copies of a tile of rows are waited for that must be cleared from row `first` on: does so, and arrives at `full`.
// `parity`: of the barrier `cleared`.
template <int kDim, int kRows>
__device__ __forceinline__ void clear_when_loaded(uint32_t tile, int first, uint32_t cleared, int &parity, uint32_t full) {
    barrier_wait(cleared, parity);
    clear_boxes<kDim, kRows>(tile, first, thread_again() % 32);
    fence_for_tensor_cores();
    __syncwarp();
    if (thread_again() % 32 == 0) {
        parity ^= 1;
        barrier_arrive(full);
    }
}

// What a warp does that loads tiles: of rows and columns, what makes the logits (kWhich 0) or what makes dP (1). `cleared`: parity of
// the barrier for tiles that are cleared in part.
template <class Shape, int kWhich, class Shared>
__device__ __forceinline__ void load_gradient_items(const longrope_attention_backward_sm90_params &h, const Shared &shared,
                                                    const GradientItem *items, int &cleared) {
    const auto lane = [] { return thread_again() % 32; };
    PackedTurn<kItemSlots> turn;
    PackedTurn<kWhich == 0 ? Shape::kFirstStages : Shape::kSecondStages> column;
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        // Read from shared memory whenever it is needed: the registers of this warp are few.
        const GradientItem &item = items[turn.slot()];
        if (item.is_last) return;
        // Behind the end of a sequence lies the next. A weight of zero must not meet what may be no number.
        const auto is_packed = [&] { return h.backward.attention.sequence_kind == LONGROPE_SEQUENCES_PACKED; };
        const auto load_column = [&](int tile, int member) {
            barrier_wait(shared.column_empty(kWhich, column.slot()), column.parity() ^ 1);
            const int there = item.columns - tile * Shape::kColumns;
            const bool is_whole = there >= Shape::kColumns || !is_packed();
            const uint32_t full = is_whole ? shared.column_full(kWhich, column.slot()) : shared.cleared(kWhich);
            if (lane() == 0) {
                barrier_expect(full, Shape::kTileBytes);
                load_boxes<Shape::kDim, Shape::kColumns>(
                    shared.column_tile(kWhich, column.slot()), h.columns[kWhich],
                    BoxPlace{item.first_column + tile * Shape::kColumns, item.column_head + member, item.batch}, full);
            }
            if (!is_whole) {
                clear_when_loaded<Shape::kDim, Shape::kColumns>(shared.column_tile(kWhich, column.slot()), there,
                                                                shared.cleared(kWhich), cleared,
                                                                shared.column_full(kWhich, column.slot()));
            }
            __syncwarp();
            column.next();
        };
        // Also where there are none to load, so that the parity of both barriers is that of items.
        const auto load_rows = [&] {
            static_assert(kItemSlots == 2, "slots of items take turns as parities do");
            barrier_wait(shared.rows_empty(), turn.slot() ^ 1);
            // Where an item has no tiles, consumers may be done with it as soon as one lane has gone on.
            __syncwarp();
            // Where they are columns too.
            const bool is_whole = !Shape::kMakesAll || item.rows == Shape::kRows || item.tiles() <= 0 || !is_packed();
            const uint32_t full = is_whole ? shared.rows_full() : shared.cleared(kWhich);
            if (lane() == 0) {
                barrier_expect(full, item.tiles() > 0 ? Shape::kRowBytes : 0);
                if (item.tiles() > 0) {
                    load_boxes<Shape::kDim, Shape::kRows>(shared.row_tile(kWhich), h.rows[kWhich],
                                                          BoxPlace{item.first_row, item.row_head, item.batch}, full);
                }
            }
            if (!is_whole) {
                clear_when_loaded<Shape::kDim, Shape::kRows>(shared.row_tile(kWhich), item.rows, shared.cleared(kWhich), cleared,
                                                             shared.rows_full());
            }
            __syncwarp();
        };
        // After the first columns, for which there may be room sooner.
        if (item.tiles() > 0) load_column(item.start, 0);
        load_rows();
        const int members = Shape::kOfKeys ? h.backward.attention.group : 1;
        if (item.tiles() > 0) {
            int tile = item.start;
#pragma unroll 1
            for (int member = 0; member < members;) {
                tile = item.template after<Shape>(tile);
                if (tile == item.start && ++member == members) break;
                load_column(tile, member);
            }
        }
        __syncwarp();
        if (lane() == 0) barrier_arrive(shared.item_empty(turn.slot()));
    }
}

// What the warp does that brings the log-sum-exps and deltas of columns, as exponents and such that rows that see nothing add
// nothing. `numbers`: [kFirstStages][kColumns] exponents, then [kSecondStages][kColumns] deltas.
template <class T, class Shape, class Shared>
__device__ __forceinline__ void load_column_numbers(const longrope_attention_backward_sm90_params &h, const Shared &shared,
                                                    const GradientItem *items, float *numbers) {
    const auto lane = [] { return thread_again() % 32; };
    constexpr int kEach = (Shape::kColumns + 31) / 32;
    const longrope_attention_backward_params &b = h.backward;
    PackedTurn<kItemSlots> turn;
    PackedTurn<Shape::kFirstStages> first;
    PackedTurn<Shape::kSecondStages> second;
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        const GradientItem &item = items[turn.slot()];
        if (item.is_last) return;
        int tile = item.start;
#pragma unroll 1
        for (int member = item.tiles() > 0 ? 0 : b.attention.group; member < b.attention.group;) {
            // Read while the place that they go to is still in use.
            float exponent[kEach], delta[kEach];
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const int query = tile * Shape::kColumns + 32 * i + lane();
                exponent[i] = INFINITY, delta[i] = 0.0f;
                if (query < item.columns) {
                    const float lse =
                        b.attention.lse[item.lse_at + query * b.attention.lse_stride[1] + member * b.attention.lse_stride[2]];
                    exponent[i] = exponent_of<T>(lse);
                    delta[i] = b.delta[item.delta_at + query * b.delta_stride[1] + member * b.delta_stride[2]];
                    if (lse == -INFINITY) delta[i] = 0.0f;
                }
            }
            const auto write = [&](int which, int slot, int parity, const float(&x)[kEach]) {
                barrier_wait(shared.column_empty(which, slot), parity ^ 1);
#pragma unroll
                for (int i = 0; i < kEach; ++i) {
                    const int at = 32 * i + lane();
                    if (at < Shape::kColumns) numbers[(which * Shape::kFirstStages + slot) * Shape::kColumns + at] = x[i];
                }
                __syncwarp();
                if (lane() == 0) barrier_arrive(shared.column_full(which, slot));
            };
            write(0, first.slot(), first.parity(), exponent);
            if constexpr (Shape::kFirstStages == Shape::kSecondStages) {
                // One number of a place is enough.
                write(1, first.slot(), first.parity(), delta);
            } else {
                write(1, second.slot(), second.parity(), delta);
                second.next();
            }
            first.next();
            tile = item.template after<Shape>(tile);
            if (tile == item.start) ++member;
        }
        turn.find_again();
        __syncwarp();
        if (lane() == 0) barrier_arrive(shared.item_empty(turn.slot()));
    }
}

}  // namespace longrope
