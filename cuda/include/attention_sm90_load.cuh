// How Hopper's attention kernel loads: one warp, ahead of the consumers as far as the rings reach.
#pragma once

#include "attention_sm90_items.cuh"
#include "tensor_map.cuh"

namespace longrope {

// Begins to load a tile of rows: columns of 64 dimensions, one after the other.
template <class Shape, int kRows>
__device__ __forceinline__ void load_tile(uint32_t to, const longrope_tensor_map &map, const BoxPlace &place, uint32_t barrier) {
    barrier_expect(barrier, kRows * Shape::kDim * 2);
#pragma unroll
    for (int column = 0; column < Shape::kDim / 64; ++column) load_box(to + column * kRows * 128, map, column * 64, place, barrier);
}

// Clears the rows of a tile from `first` on, by a warp.
template <class Shape>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, int lane) {
    for (int column = 0; column < Shape::kDim / 64; ++column) {
        for (int at = first * 128 + lane * 16; at < Shape::kKeys * 128; at += 512) {
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + column * Shape::kKeys * 128 + at), "r"(0) : "memory");
        }
    }
    fence_for_tensor_cores();
    __syncwarp();
}

// What the warp that loads does.
template <class Shape, class Shared>
__device__ __forceinline__ void load_items(const longrope_attention_sm90_params &h, const Shared &shared, const HopperItem *items,
                                           int lane) {
    const bool leads = lane == 0;
    Turn<kItemSlots> turn;
    Turn<Shape::kQueryStages> query;
    Turn<Shape::kStages> key, value;
    int cleared = 0;  // parity of the barrier for tiles that are cleared behind their end
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot), turn.parity);
        const HopperItem &item = items[turn.slot];
        if (item.is_last) return;
        // Read from shared memory whenever it is needed: the registers of this warp are few.
        const auto place = [&](int tile) { return BoxPlace{item.first_key + tile * Shape::kKeys, item.key_head, item.batch}; };
        const auto load_keys = [&](int tile) {
            barrier_wait(shared.keys_empty(key.slot), key.parity ^ 1);
            if (leads) load_tile<Shape, Shape::kKeys>(shared.key_tile(key.slot), h.k, place(tile), shared.keys_full(key.slot));
            key.next();
        };
        const auto load_values = [&](int tile) {
            barrier_wait(shared.values_empty(value.slot), value.parity ^ 1);
            // Behind the end of a packed sequence lies the next. A weight of zero must not meet a value of that: it may be no
            // number.
            const int there = item.keys - tile * Shape::kKeys;
            const bool is_whole = there >= Shape::kKeys || h.attention.sequence_kind != LONGROPE_SEQUENCES_PACKED;
            const uint32_t full = is_whole ? shared.values_full(value.slot) : shared.cleared();
            if (leads) load_tile<Shape, Shape::kKeys>(shared.value_tile(value.slot), h.v, place(tile), full);
            if (!is_whole) {
                barrier_wait(shared.cleared(), cleared);
                cleared ^= 1;
                clear_rows<Shape>(shared.value_tile(value.slot), there, lane);
                if (leads) barrier_arrive(shared.values_full(value.slot));
            }
            value.next();
        };
        if (item.tiles() > 0) {
            load_keys(item.end - 1);
            barrier_wait(shared.queries_empty(query.slot), query.parity ^ 1);
            if (leads) {
                const BoxPlace queries{item.first_query, item.head, item.batch};
                load_tile<Shape, Shape::kRows>(shared.query_tile(query.slot), h.q, queries, shared.queries_full(query.slot));
            }
            query.next();
            for (int tile = item.end - 2; tile >= item.first; --tile) {
                load_keys(tile);
                load_values(tile + 1);
            }
            load_values(item.first);
        }
        __syncwarp();
        if (leads) barrier_arrive(shared.item_empty(turn.slot));
    }
}

}  // namespace longrope
