// How blocks of the backward pass in one kernel (attention_backward_sm90_fast.cuh) add in one order, so that sums have the same bits
// on every run: to a tile of the slab in that of their keys, to keys and values in that of the query heads that share them.
//
// A tile has a counter of those that have added. A block waits until all before it have, adds, and counts itself. Under a mask not all
// blocks before one add to a tile, but those that do follow one another, and how many do not is known without asking.
//
// No block waits for what has not begun: items are drawn in an order in which each comes after those that it waits for. Another kernel
// lists them before. And few wait for long: blocks of one head start at the same tile and go the same way, each some tiles behind the
// one before it.
//
// One thread of a block does this for dQ, so that consumers go on. It draws the items too: the one after another when the first tile of
// that is on its way.
#pragma once

#include "attention_backward_sm90_block.cuh"
#include "bulk_reduce.cuh"

namespace longrope {

// How many have added to what is at `turn`: all they did comes before what follows.
__device__ __forceinline__ uint32_t turns_of(const uint32_t *turn) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
    return now;
}

// Waits until it is so many.
__device__ __forceinline__ void wait_for_turn(const uint32_t *turn, uint32_t count) {
    while (turns_of(turn) != count) {
    }
}

// Counts one more that has added. What the copy engine has added comes before, when it has said that it has ended: then it was done in
// the second-level cache, where all of them add. The fence that would order other memory too waits for all that the multiprocessor has
// under way, and takes up to a fifth of the rate. What threads have added does not come before without it.
__device__ __forceinline__ void pass_turn(uint32_t *turn) {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(turn) : "memory");
}

// Orders what the copy engine does in device memory and what threads do.
__device__ __forceinline__ void fence_for_copy_engine() { asm volatile("fence.proxy.async;" ::: "memory"); }

// How many blocks add to a tile before the item's: all behind it that see the tile.
template <class Shape>
__device__ __forceinline__ uint32_t turn_of(const GradientItem &item, int tile) {
    // Of block b behind it the queries begin at see_first + b kRows.
    const int end = min((tile + 1) * Shape::kColumns, item.columns);
    return static_cast<uint32_t>(min(max((end - item.see_first - 1) / Shape::kRows, 0), item.later));
}

// Writes the list of all items, beginning with zeros: a block takes some of those of a sequence. In sections of heads, as many as keep
// all multiprocessors at work: of these the last blocks of keys of all come first, so that each comes after those that it waits for.
template <class Shape>
__device__ __forceinline__ void list_items(const longrope_attention_backward_sm90_params &h) {
    const longrope_attention_params &p = h.backward.attention;
    const int64_t heads = h.backward.key_heads;
    const uint32_t parts = h.list_blocks, sequence = blockIdx.x / parts;
    ItemFinder finder;
    finder.key = 0;
    finder.place_keys<Shape>(p, sequence, 0);
    if (!finder.find_set<Shape>(h, sequence)) return;
    const int64_t blocks = (finder.block.key_length + Shape::kRows - 1) / Shape::kRows;
    if (blocks == 0) return;
    const bool is_packed = p.sequence_kind == LONGROPE_SEQUENCES_PACKED;
    // Heads of all sequences, where these are of equal length; the first of this one, and its items' place.
    const int64_t all = is_packed ? heads : p.sequences * heads, own = is_packed ? 0 : sequence * heads;
    const int64_t place = is_packed ? (finder.block.key_start / Shape::kRows + sequence) * heads : 0;
    const int64_t section = min((h.section_items + blocks - 1) / blocks, all);
    GradientItem *const list = static_cast<GradientItem *>(h.list);
    for (int64_t i = blockIdx.x % parts * blockDim.x + threadIdx.x; i < blocks * heads; i += parts * blockDim.x) {
        const int64_t number = i / heads, head = i % heads, first = (own + head) / section * section;
        finder.block.head = static_cast<int>(head);
        finder.key = number * Shape::kRows;
        const int64_t at = first * blocks + (blocks - 1 - number) * min(section, all - first) + (own + head - first);
        finder.next<Shape>(h, list[place + at]);
    }
}

// The thread that adds. Where it is lies in shared memory, for want of registers.
struct Adder {
    static constexpr int kAhead = 2;  // tiles whose turn is waited for together
    static constexpr int kDrawn = 3;  // tiles of an item that are left when the next one is drawn

    PackedTurn<kItemSlots> drawn, turn;  // of items
    int tile;                            // of the item's, to be added next
    int ready;                           // the tiles before this are known to be the item's turn
    int parity, key_parity;              // of what is staged, and of the items with tiles
    bool has_tiles;                      // whether there are more of the item
    bool is_over;                        // whether the end of the items was drawn

    template <class Shared>
    __device__ __forceinline__ void draw(const longrope_attention_backward_sm90_params &h, const Shared &shared, GradientItem *items) {
        if (is_over) return;
        barrier_wait(shared.item_empty(drawn.slot()), drawn.parity() ^ 1);
        const uint32_t number = atomicAdd(h.drawn, 1);
        is_over = number >= h.items;
        GradientItem &item = items[drawn.slot()];
        if (!is_over) {
            const int4 *const from = reinterpret_cast<const int4 *>(static_cast<const GradientItem *>(h.list) + number);
#pragma unroll 2
            for (int i = 0; i < static_cast<int>(sizeof(GradientItem) / 16); ++i) reinterpret_cast<int4 *>(&item)[i] = from[i];
        }
        item.is_last = is_over;
        barrier_arrive(shared.item_full(drawn.slot()));
        drawn.next();
    }

    // Waits for the turn of the next tile, and for those of some after it, since it takes as long to know of many: who has added to a
    // tile has done so to those before it.
    template <class Shape>
    __device__ __forceinline__ void wait_for_tile(const longrope_attention_backward_sm90_params &h, const GradientItem &item) {
        if (tile < ready) return;
        ready = min(item.end, tile + kAhead);
        wait_for_turn(h.turns + (item.slab_tile + ready - 1), turn_of<Shape>(item, ready - 1));
    }

    // Adds the next tile of an item. Returns whether it is time to draw the next one: not much sooner than it can begin, since others may
    // wait for it.
    template <class Shape, class Shared>
    __device__ __forceinline__ bool add(const longrope_attention_backward_sm90_params &h, const Shared &shared, const GradientItem &item) {
        constexpr int kTileBytes = Shape::kQueryBytes;
        wait_for_tile<Shape>(h, item);
        fence_for_copy_engine();
        barrier_wait(shared.staging_full(), parity);
        parity ^= 1;
        begin_bulk_add(h.slab + static_cast<int64_t>(item.slab_tile + tile) * (kTileBytes / 4), shared.gradients(2), kTileBytes);
        wait_for_bulk_reads();
        barrier_arrive(shared.staging_empty());
        const bool draws = tile == max(item.first, item.end - kDrawn);
        wait_for_bulk_adds();
        pass_turn(h.turns + (item.slab_tile + tile));
        one_by_one();
        if (++tile == item.end) {
            has_tiles = false;
            if (h.key_slab) wait_for_turn(h.key_turns + item.key_tile, item.member);
            barrier_arrive(shared.keys_turn());
            if (h.key_slab) {
                barrier_wait(shared.keys_added(), key_parity);
                key_parity ^= 1;
                __threadfence();
                pass_turn(h.key_turns + item.key_tile);
            }
            turn.next();
        }
        return draws;
    }

    // Begins with the next item. Returns whether there is one.
    template <class Shared>
    __device__ __forceinline__ bool begin(const Shared &shared, const GradientItem &item) {
        if (item.is_last) return false;
        tile = item.start;
        ready = item.first;
        has_tiles = item.tiles() > 0;
        if (!has_tiles) {
            // Consumers do not wait for it, but count it.
            barrier_arrive(shared.keys_turn());
            turn.next();
        }
        return true;
    }

    template <class Shape, class Shared>
    __device__ __forceinline__ void run(const longrope_attention_backward_sm90_params &h, const Shared &shared, GradientItem *items) {
        drawn = turn = PackedTurn<kItemSlots>();
        parity = key_parity = 0;
        has_tiles = is_over = false;
#pragma unroll 1
        for (;;) {
            draw(h, shared, items);
            one_by_one();
            bool draws = false;
#pragma unroll 1
            while (!draws) {
                if (!has_tiles) {
                    if (!begin(shared, items[turn.slot()])) return;
                    if (!has_tiles) break;
                }
                draws = add<Shape>(h, shared, items[turn.slot()]);
                one_by_one();
            }
        }
    }
};

}  // namespace longrope
