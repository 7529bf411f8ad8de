// How blocks of the backward pass in one kernel (attention_backward_sm90_fast.cuh) add in one order, so that sums have the same bits
// on every run: to a tile of the slab in that of their keys, to keys and values in that of the query heads that share them.
//
// A tile has a counter of those that have added. A block waits until all before it have, adds, and counts itself. Under a mask not all
// blocks before one add to a tile, but those that do follow one another, and how many do not is known without asking.
//
// The order is that from the last keys to the first, tiles going up. Under a causal mask the items of the first keys are longest, so
// that a few blocks would still be at work on the last head when there is nothing left for others. So that one goes the other way: from
// the first keys to the last, tiles going down from the last, which all blocks see. So do some of the last heads, side by side, where
// one has too few items for all blocks.
//
// No block waits for what has not begun: items are drawn in the order of the list, which another kernel writes before, and each comes
// there after those that it waits for: for dQ items of its own head, whose order in the list is that of its turns, for dK and dV items of
// heads before it that share its keys. A block is done with an item before it begins the next it drew. So of all that are not done, the
// first in the list is at work or drawn next, and waits for none, however many blocks there are.
//
// And few wait for long: blocks of one head start at the same tile and go the same way, each some tiles behind the one before it.
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

// Counts one more that has added. What the copy engine has added or written comes before, when it has said that it has ended: then it
// was done in the second-level cache, where all of them add. The fence that would order other memory too waits for all that the
// multiprocessor has under way, and takes up to a fifth of the rate. What threads have added does not come before without it.
__device__ __forceinline__ void pass_turn(uint32_t *turn) {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(turn) : "memory");
}

// Orders what the copy engine does in device memory and what threads do.
__device__ __forceinline__ void fence_for_copy_engine() { asm volatile("fence.proxy.async;" ::: "memory"); }

// How many blocks add to a tile before the item's: all behind it that see the tile. Or all before it: what it sees these do too.
template <class Shape>
__device__ __forceinline__ uint32_t turn_of(const GradientItem &item, int tile) {
    if (item.is_down) return static_cast<uint32_t>(item.others);
    // Of block b behind it the queries begin at see_first + b kRows.
    const int end = min((tile + 1) * Shape::kColumns, item.columns);
    return static_cast<uint32_t>(min(max((end - item.see_first - 1) / Shape::kRows, 0), item.others));
}

// Items that go down, at most, if they are of more than one head: one for each multiprocessor of an H100. Not by those that there are, of
// which bits would depend.
constexpr int64_t kItemsDown = 132;

// Writes the list of all items, beginning with zeros: a block takes some of those of a sequence. In sections of heads, as many as keep
// all multiprocessors at work: of these the last blocks of keys of all come first, so that each comes after those that it waits for. In
// the last heads of a causal mask the first blocks do.
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
    // Heads from this on go down. Not with a window: items are of about one length then, and not all blocks before one see its tiles.
    const bool goes_down = p.causal && p.window == 0 && (!is_packed || sequence + 1 == static_cast<uint32_t>(p.sequences));
    const int64_t up = goes_down ? all - clamp(kItemsDown / blocks, int64_t{1}, all) : all;
    GradientItem *const list = static_cast<GradientItem *>(h.list);
    for (int64_t i = blockIdx.x % parts * blockDim.x + threadIdx.x; i < blocks * heads; i += parts * blockDim.x) {
        const int64_t number = i / heads, head = i % heads;
        const bool is_down = own + head >= up;
        // Of its section.
        const int64_t first = is_down ? up : (own + head) / section * section;
        const int64_t size = is_down ? all - up : min(section, up - first);
        finder.block.head = static_cast<int>(head);
        finder.key = number * Shape::kRows;
        const int64_t at = first * blocks + (is_down ? number : blocks - 1 - number) * size + (own + head - first);
        GradientItem &item = list[place + at];
        finder.next<Shape>(h, item);
        item.is_down = is_down;
        if (is_down) {
            item.start = item.end - 1;
            item.others = static_cast<int>(number);
        }
    }
}

// The thread that adds. Where it is lies in shared memory, for want of registers.
struct Adder {
    static constexpr int kAhead = 2;  // tiles whose turn is waited for together
    static constexpr int kDrawn = 3;  // tiles of an item that are left when the next one is drawn

    PackedTurn<kItemSlots> drawn, turn;  // of items
    int tile;                            // of the item's, to be added next, as if they went up
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
        const int last = item.in_turn(ready - 1);
        wait_for_turn(h.turns + (item.slab_tile + last), turn_of<Shape>(item, last));
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
        const int at = item.slab_tile + item.in_turn(tile);
        float *const to = h.slab + static_cast<int64_t>(at) * (kTileBytes / 4);
        // The first writes: there are no zeros before.
        if (turn_of<Shape>(item, item.in_turn(tile)) == 0) {
            begin_bulk_store(to, shared.gradients(2), kTileBytes);
        } else {
            begin_bulk_add(to, shared.gradients(2), kTileBytes);
        }
        wait_for_bulk_reads();
        barrier_arrive(shared.staging_empty());
        const bool draws = tile == max(item.first, item.end - kDrawn);
        wait_for_bulk_adds();
        pass_turn(h.turns + at);
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
        tile = ready = item.first;
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
