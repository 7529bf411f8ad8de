// What the blocks of Hopper's attention kernel work on, one item after the other: some queries of a head, and the keys they see.
//
// A block stays for the whole launch. Its first item has its own number; the others it draws, the next number for the next
// block that has time for it, so that all end at about the same time however long the items are. One thread of a block does so,
// ahead of those that load and compute.
#pragma once

#include "attention_block.cuh"
#include "cache_rotation.cuh"
#include "mbarrier.cuh"

namespace longrope {

// A thread's number, found anew: what is rarely needed is to hold no register over the loops.
__device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// An item, as far as that is within 32 bits: the host sees to it that sequences are shorter than 2^30.
struct HopperItem {
    int64_t out_at, lse_at;      // elements to the first row of the output, and of the log-sum-exps
    int64_t position;            // of the first query; found where queries are rotated
    int64_t sequence;            // its row of the page table; found where keys are cached
    int batch, head;             // of the queries, in their tensor
    int key_batch, key_head;     // of keys and values
    int first_query, first_key;  // rows of the tensors: of the first query, and of key 0 of the sequence
    int rows, keys;              // queries there are, and keys of the sequence
    int see_first, see_end;      // the keys that the first query sees; the next sees one further each
    int first, end;              // tiles of keys with one that some query sees, as far as they are of this part
    int full_first, full_end;    // tiles of keys that all queries see
    int part;                    // of the keys
    int before;                  // items that the block had before this
    int set;                     // of factors, by its number
    bool is_bad;                 // a page that it needs does not exist: nothing is written but that
    bool is_last;                // no item, but the end of them

    __device__ __forceinline__ int tiles() const { return end - first; }
};

// A number of slots in shared memory that are filled and emptied in turn, and the parity of the present round.
template <int kSlots>
class Turn {
    int slot_ = 0, parity_ = 0;

public:
    __device__ __forceinline__ int slot() const { return slot_; }
    __device__ __forceinline__ int parity() const { return parity_; }

    __device__ __forceinline__ void next() {
        if (kSlots == 1) {
            parity_ ^= 1;
        } else if (++slot_ == kSlots) {
            slot_ = 0;
            parity_ ^= 1;
        }
    }
};

// The same in one register, for those that have few.
template <int kSlots>
class PackedTurn {
    int state = 0;  // the slot, and kSlots above it in odd rounds

public:
    __device__ __forceinline__ int slot() const { return state >= kSlots ? state - kSlots : state; }
    __device__ __forceinline__ int parity() const { return state >= kSlots; }
    __device__ __forceinline__ void next() { state = state + 1 == 2 * kSlots ? 0 : state + 1; }
    // What follows from it is found anew after this place, and holds no register before.
    __device__ __forceinline__ void find_again() { asm volatile("" : "+r"(state)); }
};

// Items that are known ahead.
constexpr int kItemSlots = 2;

// Finds what a block of queries is of: of tensors, or of a cache. Returns bits of longrope_device_status.
template <class Shape>
__device__ __forceinline__ uint32_t place_block(const longrope_attention_sm90_params &h, AttentionBlock &block, HopperItem &item,
                                                uint32_t number) {
    const longrope_attention_params &p = h.attention;
    if (!h.is_cached) {
        const int64_t sequence = block.place_at(p, Shape::kRows, number);
        item.key_batch = static_cast<int>(block.batch);
        item.sequence = sequence;
        return block.is_bad ? LONGROPE_DEVICE_BAD_SEQUENCE : 0;
    }
    const int64_t sequence = block.place(p, Shape::kRows, number);
    item.key_batch = static_cast<int>(sequence);
    item.sequence = sequence;
    const CachedSequence one(h.cache, h.tokens, sequence);
    block.batch = one.batch;
    block.query_start = one.row;
    block.query_length = one.fresh;
    block.key_start = 0;
    block.key_length = one.length;
    block.position = one.first_position() + block.first_query;
    block.limits = mask_limits(block.position, true, p.window, 0);
    return one.bad;
}

// Marks the rows of a part as those of a bad item (cache.cuh); where keys are not divided, nothing is written.
__device__ __forceinline__ void mark_bad_rows(const longrope_attention_sm90_params &h, const HopperItem &item) {
    const longrope_attention_params &p = h.attention;
    if (h.splits == 1) return;
    for (int row = 0; row < item.rows; ++row) p.lse[item.lse_at + row * p.lse_stride[1]] = __uint_as_float(kBadPart);
}

// Writes the item of a block of queries; returns whether there is anything to do for it.
template <class Shape>
__device__ __forceinline__ bool describe_item(const longrope_attention_sm90_params &h, AttentionBlock &block, HopperItem &item,
                                              uint32_t number) {
    const longrope_attention_params &p = h.attention;
    int part = 0;
    if (h.splits > 1) {
        part = static_cast<int>(number % h.splits);
        number /= h.splits;
    }
    uint32_t bad = place_block<Shape>(h, block, item, number);
    if (block.head >= p.query_heads) return false;  // the last section may be short
    // Beyond what is there, and where a sequence is bad that has no rows.
    if (block.first_query >= block.query_length || (bad && p.sequence_kind == LONGROPE_SEQUENCES_PACKED)) {
        if (bad && p.status) atomicOr(p.status, bad);
        return false;
    }
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
    int first = top_first / Shape::kKeys, end = first;
    if (bottom_end > top_first) end = (bottom_end + Shape::kKeys - 1) / Shape::kKeys;
    if (h.splits > 1) {
        const int tiles = end - first;
        end = first + static_cast<int>(static_cast<int64_t>(tiles) * (part + 1) / h.splits);
        first += static_cast<int>(static_cast<int64_t>(tiles) * part / h.splits);
    }
    item.first = first;
    item.end = end;
    item.full_first = (bottom_first + Shape::kKeys - 1) / Shape::kKeys;
    item.full_end = top_end / Shape::kKeys;
    item.part = part;
    item.is_bad = false;
    step();
    item.batch = static_cast<int>(block.batch);
    item.head = block.head;
    item.key_head = block.head / p.group;
    item.first_query = static_cast<int>(block.query_start + block.first_query);
    item.first_key = static_cast<int>(block.key_start);
    step();
    const int64_t batch = block.batch + static_cast<int64_t>(part) * h.batches;
    item.out_at = batch * p.out_stride[0] + block.head * p.out_stride[2];
    step();
    item.out_at += (block.query_start + block.first_query) * p.out_stride[1];
    step();
    item.lse_at = batch * p.lse_stride[0] + block.head * p.lse_stride[2];
    step();
    item.lse_at += (block.query_start + block.first_query) * p.lse_stride[1];
    if (h.rotates && !bad) {
        step();
        item.position = block.position;
        // A sequence is as long as its last query says.
        const int64_t length = block.position - block.first_query + block.query_length;
        item.set = cached_set(h.rotary, length, item.sequence);
        if (item.set == kBadSet) bad = LONGROPE_DEVICE_BAD_CHOICE;
    }
    if (bad) {
        if (p.status) atomicOr(p.status, bad);
        mark_bad_rows(h, item);
        return false;
    }
    return true;
}

// What the thread does that draws items. `block` is its own place in shared memory.
template <class Shape, class Shared>
__device__ __forceinline__ void draw_items(const longrope_attention_sm90_params &h, const Shared &shared, HopperItem *items,
                                           AttentionBlock &block) {
    // Not in a register, of which this thread has few.
    __shared__ volatile uint32_t number;
    PackedTurn<kItemSlots> turn;
    number = blockIdx.x;
    for (bool is_last = false; !is_last; turn.next()) {
        barrier_wait(shared.item_empty(turn.slot()), turn.parity() ^ 1);
        HopperItem &item = items[turn.slot()];
        const bool is_first = number == blockIdx.x;
        for (bool found = false; !found && !is_last;) {
            is_last = number >= h.items;
            if (is_last) break;
            const uint32_t present = number;
            // Drawing takes a while; the answer is first needed for the item after this.
            number = h.items > gridDim.x ? gridDim.x + atomicAdd(h.drawn, 1) : h.items;
            found = describe_item<Shape>(h, block, item, present);
        }
        item.is_last = is_last;
        item.before = is_first ? 0 : items[turn.slot() ^ 1].before + 1;
        barrier_arrive(shared.item_full(turn.slot()));
    }
}

}  // namespace longrope
