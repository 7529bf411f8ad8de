// What the blocks of Hopper's attention kernel work on, one item after the other: some queries of a head, and the keys they see.
//
// A block stays for the whole launch. Its first item has its own number; the others it draws, the next number for the next
// block that has time for it, so that all end at about the same time however long the items are. One thread of a block does so,
// ahead of those that load and compute.
#pragma once

#include "attention_block.cuh"
#include "mbarrier.cuh"

namespace longrope {

// An item, as far as that is within 32 bits: the host sees to it that sequences are shorter than 2^30.
struct HopperItem {
    int64_t out_at, lse_at;     // elements to the first row of the output, and of the log-sum-exps
    int batch, head, key_head;  // in the tensors
    int first_query, first_key;  // rows of the tensors: of the first query, and of key 0 of the sequence
    int rows, keys;             // queries there are, and keys of the sequence
    int see_first, see_end;     // the keys that the first query sees; the next sees one further each
    int first, end;             // tiles of keys with one that some query sees
    int full_first, full_end;   // tiles of keys that all queries see
    bool is_last;               // no item, but the end of them

    __device__ __forceinline__ int tiles() const { return end - first; }
};

// A number of slots in shared memory that are filled and emptied in turn, and the parity of the present round.
template <int kSlots>
struct Turn {
    int slot = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (kSlots == 1) {
            parity ^= 1;
        } else if (++slot == kSlots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// Items that are known ahead.
constexpr int kItemSlots = 2;

// Writes the item of a block of queries; returns whether there is anything to do for it.
template <class Shape>
__device__ __forceinline__ bool describe_item(const longrope_attention_params &p, const AttentionBlock &block, HopperItem &item) {
    if (block.head >= p.query_heads) return false;  // the last section may be short
    if (block.is_bad) {
        if (p.status) atomicOr(p.status, LONGROPE_DEVICE_BAD_SEQUENCE);
        return false;
    }
    if (block.first_query >= block.query_length) return false;
    // Beyond this, a row sees everything or nothing.
    constexpr int64_t kFar = 1 << 30;
    // One thing after the other, from what lies in memory: the registers of this thread are few.
    const auto step = [] { asm volatile("" ::: "memory"); };
    const int rows = static_cast<int>(min(static_cast<int64_t>(Shape::kRows), block.query_length - block.first_query));
    item.rows = rows;
    const int see_first = static_cast<int>(clamp(block.limits.first, -kFar, kFar));
    const int see_end = static_cast<int>(clamp(block.limits.end, -kFar, kFar));
    const int keys = static_cast<int>(block.key_length);
    item.see_first = see_first;
    item.see_end = see_end;
    item.keys = keys;
    const auto within = [&](int key) { return min(max(key, 0), keys); };
    const int top_end = within(see_end), bottom_first = within(see_first + rows - 1);
    const int top_first = within(see_first), bottom_end = within(see_end + rows - 1);
    item.first = top_first / Shape::kKeys;
    item.end = bottom_end > top_first ? (bottom_end + Shape::kKeys - 1) / Shape::kKeys : top_first / Shape::kKeys;
    item.full_first = (bottom_first + Shape::kKeys - 1) / Shape::kKeys;
    item.full_end = top_end / Shape::kKeys;
    step();
    item.batch = static_cast<int>(block.batch);
    item.head = block.head;
    item.key_head = block.head / p.group;
    item.first_query = static_cast<int>(block.query_start + block.first_query);
    item.first_key = static_cast<int>(block.key_start);
    step();
    item.out_at = block.batch * p.out_stride[0] + block.head * p.out_stride[2];
    step();
    item.out_at += (block.query_start + block.first_query) * p.out_stride[1];
    step();
    item.lse_at = block.batch * p.lse_stride[0] + block.head * p.lse_stride[2];
    step();
    item.lse_at += (block.query_start + block.first_query) * p.lse_stride[1];
    return true;
}

// What the thread does that draws items. `block` is its own place in shared memory.
template <class Shape, class Shared>
__device__ __forceinline__ void draw_items(const longrope_attention_sm90_params &h, const Shared &shared, HopperItem *items,
                                           AttentionBlock &block) {
    Turn<kItemSlots> turn;
    uint32_t number = blockIdx.x;
    for (bool is_last = false; !is_last; turn.next()) {
        barrier_wait(shared.item_empty(turn.slot), turn.parity ^ 1);
        HopperItem &item = items[turn.slot];
        for (bool found = false; !found && !is_last;) {
            is_last = number >= h.items;
            if (is_last) break;
            block.place_at(h.attention, Shape::kRows, number);
            // Drawing takes a while; the answer is first needed for the item after this.
            number = h.items > gridDim.x ? gridDim.x + atomicAdd(h.drawn, 1) : h.items;
            found = describe_item<Shape>(h.attention, block, item);
        }
        item.is_last = is_last;
        barrier_arrive(shared.item_full(turn.slot));
    }
}

}  // namespace longrope
