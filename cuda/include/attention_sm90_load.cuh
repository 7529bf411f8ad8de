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

// Clears rows of a tile, from `first` to before `end`, by a warp.
template <class Shape>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, int end, int lane) {
    for (int column = 0; column < Shape::kDim / 64; ++column) {
        for (int at = first * 128 + lane * 16; at < end * 128; at += 512) {
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + column * Shape::kKeys * 128 + at), "r"(0) : "memory");
        }
    }
}

// A tile whose keys lie in pages: each lane has the run of keys of its number, `page_rows` of them, which one page holds.
template <class Shape>
struct PagedTile {
    static constexpr int kNotNeeded = -1, kBad = -2;

    int page;  // that holds this lane's run, or one of these

    // Looks up the page of this lane's run. Those that no query sees, for the window, are not looked at.
    static __device__ __forceinline__ PagedTile find(const longrope_attention_sm90_params &h, const HopperItem &item, int tile,
                                                     int lane) {
        const int key = tile * Shape::kKeys + lane * h.page_rows;
        if (lane >= Shape::kKeys / h.page_rows || tile < 0 || key >= item.keys || key + h.page_rows <= item.see_first) {
            return {kNotNeeded};
        }
        const uint32_t at = static_cast<uint32_t>(key) / static_cast<uint32_t>(h.cache.page_size);
        const int page = h.cache.page_table[item.sequence * h.cache.table_stride + at];
        return {page >= 0 && page < h.cache.pages ? page : kBad};
    }

    // Begins to load the tile; returns which runs are loaded, a bit each.
    __device__ __forceinline__ uint32_t begin(uint32_t to, const longrope_tensor_map &map, const longrope_attention_sm90_params &h,
                                              const HopperItem &item, int tile, uint32_t barrier, int lane) const {
        const uint32_t loaded = __ballot_sync(0xffffffff, page >= 0);
        if (lane == 0) barrier_expect(barrier, __popc(loaded) * h.page_rows * Shape::kDim * 2);
        __syncwarp();
        if (page >= 0) {
            const uint32_t key = tile * Shape::kKeys + lane * h.page_rows;
            const BoxPlace place{static_cast<int>(key % static_cast<uint32_t>(h.cache.page_size)), item.key_head, page};
#pragma unroll
            for (int column = 0; column < Shape::kDim / 64; ++column) {
                load_box(to + column * Shape::kKeys * 128 + lane * h.page_rows * 128, map, column * 64, place, barrier);
            }
        }
        __syncwarp();
        return loaded;
    }
};

// Waits until half of the blocks are about to begin as many items as this one, where items are so long that the keys which blocks read at
// the same time would no longer be in the second-level cache, were they read at different times. In vain after a while: a block may not
// have begun yet.
template <class Shape>
__device__ __forceinline__ void keep_pace(const longrope_attention_sm90_params &h, const HopperItem &item) {
    constexpr int kLongKeys = 1 << 19;
    constexpr uint32_t kPatience = 300000;  // clocks
    if (item.tiles() * Shape::kKeys < kLongKeys || item.before == 0 || h.items <= gridDim.x) return;
    // A block draws its item after next when it ends one.
    const uint32_t expected = min((item.before + 2) * gridDim.x - gridDim.x / 2, h.items);
    const uint32_t begin = clock();
    uint32_t drawn;
    do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(drawn) : "l"(h.drawn) : "memory");
    } while (drawn < expected && static_cast<uint32_t>(clock()) - begin < kPatience);
}

// What the warp that loads does.
template <class Shape, class Shared>
__device__ __forceinline__ void load_items(const longrope_attention_sm90_params &h, const Shared &shared, HopperItem *items, int lane) {
    const bool leads = lane == 0;
    const bool is_paged = h.is_cached && h.cache.page_table;
    PackedTurn<kItemSlots> turn;
    PackedTurn<Shape::kQueryStages> query;
    PackedTurn<Shape::kStages> key, value;
    int cleared = 0;  // parity of the barrier for tiles that are cleared in part
    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        HopperItem &item = items[turn.slot()];
        if (item.is_last) return;
        // Read from shared memory whenever it is needed: the registers of this warp are few.
        const auto place = [&](int tile) { return BoxPlace{item.first_key + tile * Shape::kKeys, item.key_head, item.key_batch}; };
        // The pages of the tile whose values come next, of that whose keys do, and of the one after it.
        PagedTile<Shape> of_values{}, of_keys{}, ahead{};
        if (is_paged) ahead = PagedTile<Shape>::find(h, item, item.end - 1, lane);
        const auto load_keys = [&](int tile) {
            const uint32_t full = shared.keys_full(key.slot());
            if (is_paged) {
                of_values = of_keys, of_keys = ahead;
                if (tile > item.first) ahead = PagedTile<Shape>::find(h, item, tile - 1, lane);
                // Known to the consumers by the barriers that they wait for next.
                if (__any_sync(0xffffffff, of_keys.page == PagedTile<Shape>::kBad) && leads) item.is_bad = true;
            }
            barrier_wait(shared.keys_empty(key.slot()), key.parity() ^ 1);
            if (is_paged) {
                of_keys.begin(shared.key_tile(key.slot()), h.k, h, item, tile, full, lane);
            } else if (leads) {
                load_tile<Shape, Shape::kKeys>(shared.key_tile(key.slot()), h.k, place(tile), full);
            }
            key.next();
        };
        const auto load_values = [&](int tile, const PagedTile<Shape> &pages) {
            barrier_wait(shared.values_empty(value.slot()), value.parity() ^ 1);
            // Behind the end of a sequence lies the next, or what was there before; and a run that was not loaded is what another
            // tile left. A weight of zero must not meet a value of that: it may be no number.
            const int there = item.keys - tile * Shape::kKeys;
            const bool ends_elsewhere = h.is_cached || h.attention.sequence_kind == LONGROPE_SEQUENCES_PACKED;
            const bool is_whole = (there >= Shape::kKeys || !ends_elsewhere) &&
                                  (!is_paged || tile * Shape::kKeys >= item.see_first);
            const uint32_t to = shared.value_tile(value.slot());
            const uint32_t full = is_whole && !item.is_bad ? shared.values_full(value.slot()) : shared.cleared();
            uint32_t loaded = 0xffffffff;
            if (is_paged) {
                loaded = pages.begin(to, h.v, h, item, tile, full, lane);
            } else if (leads) {
                load_tile<Shape, Shape::kKeys>(to, h.v, place(tile), full);
            }
            if (full == shared.cleared()) {
                barrier_wait(shared.cleared(), cleared);
                cleared ^= 1;
                if (is_paged) {
                    for (int run = 0; run < Shape::kKeys / h.page_rows; ++run) {
                        if (!(loaded >> run & 1)) clear_rows<Shape>(to, run * h.page_rows, (run + 1) * h.page_rows, lane);
                    }
                }
                clear_rows<Shape>(to, max(there, 0), Shape::kKeys, lane);
                fence_for_tensor_cores();
                __syncwarp();
                if (leads) barrier_arrive(shared.values_full(value.slot()));
            }
            value.next();
        };
        if (item.tiles() > 0) {
            // Keys of 64 dimensions stay in the cache twice as long.
            if constexpr (Shape::kDim > 64) keep_pace<Shape>(h, item);
            load_keys(item.end - 1);
            barrier_wait(shared.queries_empty(query.slot()), query.parity() ^ 1);
            if (leads) {
                const BoxPlace queries{item.first_query, item.head, item.batch};
                load_tile<Shape, Shape::kRows>(shared.query_tile(query.slot()), h.q, queries, shared.queries_full(query.slot()));
            }
            query.next();
            for (int tile = item.end - 2; tile >= item.first; --tile) {
                load_keys(tile);
                load_values(tile + 1, of_values);
            }
            load_values(item.first, of_keys);
        }
        __syncwarp();
        if (leads) barrier_arrive(shared.item_empty(turn.slot()));
    }
}

}  // namespace longrope
