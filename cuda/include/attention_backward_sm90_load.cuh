// How Hopper's kernels of attention's backward pass load: two warps that have tiles copied, and for dK and dV a third that brings
// what the columns have, a number each. All are ahead of the consumers as far as the rings reach.
#pragma once

#include "attention_backward_sm90_items.cuh"
#include "tensor_map.cuh"

namespace longrope {

// Begins to load a tile of kRows rows: 64 dimensions after the other. Its bytes are expected at the barrier before.
template <int kDim, int kRows>
__device__ __forceinline__ void load_boxes(uint32_t to, const longrope_tensor_map &map, const BoxPlace &place, uint32_t barrier) {
#pragma unroll
    for (int part = 0; part < kDim / 64; ++part) load_box(to + part * kRows * 128, map, part * 64, place, barrier);
}

// Clears the columns of a tile from `first` on, by a warp.
template <class Shape>
__device__ __forceinline__ void clear_columns(uint32_t tile, int first, int lane) {
    for (int part = 0; part < Shape::kDim / 64; ++part) {
        for (int at = first * 128 + lane * 16; at < Shape::kColumns * 128; at += 512) {
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + part * Shape::kColumns * 128 + at), "r"(0) : "memory");
        }
    }
}

// What a warp does that loads tiles: of rows and columns, what makes the logits (kWhich 0) or what makes dP (1). `cleared`: parity of
// the barrier for tiles that are cleared in part.
template <class Shape, int kWhich, class Shared>
__device__ __forceinline__ void load_gradient_items(const longrope_attention_backward_sm90_params &h, const Shared &shared,
                                                    const GradientItem *items, int &cleared) {
    const auto lane = [] { return thread_again() % 32; };
    PackedTurn<kItemSlots> turn;
    PackedTurn<Shape::kStages> column;
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        // Read from shared memory whenever it is needed: the registers of this warp are few.
        const GradientItem &item = items[turn.slot()];
        if (item.is_last) return;
        const auto load_column = [&](int tile, int member) {
            barrier_wait(shared.column_empty(kWhich, column.slot()), column.parity() ^ 1);
            // Behind the end of a sequence lies the next. A weight of zero must not meet what may be no number.
            const int there = item.columns - tile * Shape::kColumns;
            const bool is_whole = there >= Shape::kColumns || h.backward.attention.sequence_kind != LONGROPE_SEQUENCES_PACKED;
            const uint32_t full = is_whole ? shared.column_full(kWhich, column.slot()) : shared.cleared(kWhich);
            if (lane() == 0) {
                barrier_expect(full, Shape::kTileBytes);
                load_boxes<Shape::kDim, Shape::kColumns>(
                    shared.column_tile(kWhich, column.slot()), h.columns[kWhich],
                    BoxPlace{item.first_column + tile * Shape::kColumns, item.column_head + member, item.batch}, full);
            }
            if (!is_whole) {
                barrier_wait(shared.cleared(kWhich), cleared);
                clear_columns<Shape>(shared.column_tile(kWhich, column.slot()), there, lane());
                fence_for_tensor_cores();
                __syncwarp();
                if (lane() == 0) {
                    cleared ^= 1;
                    barrier_arrive(shared.column_full(kWhich, column.slot()));
                }
            }
            __syncwarp();
            column.next();
        };
        // Also where there are none to load, so that the parity of both barriers is that of items.
        const auto load_rows = [&] {
            static_assert(kItemSlots == 2, "slots of items take turns as parities do");
            barrier_wait(shared.rows_empty(), turn.slot() ^ 1);
            if (lane() != 0) return;
            barrier_expect(shared.rows_full(), item.tiles() > 0 ? Shape::kRowBytes : 0);
            if (item.tiles() <= 0) return;
            load_boxes<Shape::kDim, Shape::kRows>(shared.row_tile(kWhich), h.rows[kWhich],
                                                  BoxPlace{item.first_row, item.row_head, item.batch}, shared.rows_full());
        };
        // After the first columns, for which there may be room sooner.
        if (item.tiles() > 0) load_column(item.end - 1, 0);
        load_rows();
        const int members = Shape::kOfKeys ? h.backward.attention.group : 1;
#pragma unroll 1
        for (int member = 0; member < members; ++member) {
#pragma unroll 1
            for (int tile = item.end - (member == 0 ? 2 : 1); tile >= item.first; --tile) load_column(tile, member);
        }
        __syncwarp();
        if (lane() == 0) barrier_arrive(shared.item_empty(turn.slot()));
    }
}

// What the warp does that brings the log-sum-exps and deltas of columns, as exponents and such that rows that see nothing add
// nothing. `numbers`: [2][kStages][kColumns].
template <class T, class Shape, class Shared>
__device__ __forceinline__ void load_column_numbers(const longrope_attention_backward_sm90_params &h, const Shared &shared,
                                                    const GradientItem *items, float *numbers) {
    const auto lane = [] { return thread_again() % 32; };
    constexpr int kEach = (Shape::kColumns + 31) / 32;
    const longrope_attention_backward_params &b = h.backward;
    PackedTurn<kItemSlots> turn;
    PackedTurn<Shape::kStages> column;
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        const GradientItem &item = items[turn.slot()];
        if (item.is_last) return;
#pragma unroll 1
        for (int member = 0; member < b.attention.group; ++member) {
#pragma unroll 1
            for (int tile = item.end - 1; tile >= item.first; --tile) {
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
                const auto write = [&](int which, const float(&x)[kEach]) {
                    barrier_wait(shared.column_empty(which, column.slot()), column.parity() ^ 1);
#pragma unroll
                    for (int i = 0; i < kEach; ++i) {
                        const int at = 32 * i + lane();
                        if (at < Shape::kColumns) numbers[(which * Shape::kStages + column.slot()) * Shape::kColumns + at] = x[i];
                    }
                    __syncwarp();
                    if (lane() == 0) barrier_arrive(shared.column_full(which, column.slot()));
                };
                write(0, exponent);
                write(1, delta);
                column.next();
            }
        }
        __syncwarp();
        if (lane() == 0) barrier_arrive(shared.item_empty(turn.slot()));
    }
}

}  // namespace longrope
