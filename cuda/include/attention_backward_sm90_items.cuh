// What the blocks of Hopper's kernels of attention's backward pass work on, one item after the other: some rows, whose gradients
// they sum, and the columns that give them. For dK and dV rows are keys and columns queries, of all query heads of the key head;
// for dQ it is the other way round. As in the forward pass (attention_sm90_items.cuh), blocks draw items.
//
// Of the rows' mask the kernels know: row r of an item sees, or is seen by, the columns from see_first + r to before see_end + r.
#pragma once

#include "attention_backward.cuh"
#include "attention_sm90_items.cuh"

namespace longrope {

// The sizes of a kernel.
template <bool kOfKeys_, int kDim_, int kConsumers_, int kColumns_, int kStages_>
struct GradientShape {
    static constexpr bool kOfKeys = kOfKeys_;        // whether it makes dK and dV, or dQ
    static constexpr int kDim = kDim_;               // padded head dimension
    static constexpr int kConsumers = kConsumers_;   // warpgroups that compute
    static constexpr int kColumns = kColumns_;       // columns a tile
    static constexpr int kFirstStages = kStages_;    // tiles of columns in shared memory, of what makes the logits
    static constexpr int kSecondStages = kStages_;   // and of what makes dP
    static constexpr bool kMakesAll = false;         // whether it adds to dQ too
    static constexpr bool kInTurn = false;           // and whether blocks do so in one order
    static constexpr bool kSharesRows = false;       // whether all consumers have the same rows
    // Arrivals at the barriers of dS in shared memory, and of what is staged there; see GradientShared.
    static constexpr int kGradientWarps = 4 * kConsumers_, kStagingWarps = 4 * kConsumers_;
    static constexpr int kRows = 64 * kConsumers;    // rows a block
    static constexpr int kThreads = 128 * (kConsumers + 1);
    static constexpr int kFirstConsumer = 128;       // thread
    static constexpr int kSums = kOfKeys ? 2 : 1;    // gradients
    static constexpr int kRowBytes = kRows * kDim * 2, kTileBytes = kColumns * kDim * 2;
    // 1 KiB for the alignment of tiles.
    static constexpr int kSharedBytes = 1024 + 2 * kRowBytes + 2 * kStages_ * kTileBytes;
    // Behind them, where gradients are rotated: for each warp that computes.
    using Staged = StagedGradient<kDim, kTurnedRows, 32>;
    static constexpr int kRotatingBytes = kSharedBytes + 4 * kConsumers * Staged::kBytes;
    // About 4,096 columns: the products cut off less than 4e-5 of the sum in as many.
    static constexpr int kFoldTiles = 4096 / kColumns;
    // Registers a thread, of 64 Ki for a block.
    static constexpr int kLoaderRegisters = kConsumers == 3 ? 32 : 24;
    static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
    static_assert(kFoldTiles > 1, "the first tile is never followed by a fold");
    // What is declared beside it has 3 KiB.
    static_assert(kRotatingBytes <= 224 * 1024, "more than a multiprocessor gives");
    static_assert(kColumns % 16 == 0, "columns are the summed dimension of products");
};

// An item, as far as that is within 32 bits: the host sees to it that sequences are shorter than 2^30.
struct alignas(16) GradientItem {
    int64_t out_at[2];           // elements to the first row of each gradient
    int64_t lse_at, delta_at;    // elements to those of the item's first query, or of query 0 of the sequence and first head
    int64_t position;            // of the first row; found, as the set, where gradients are rotated
    int set;                     // of factors, by its number
    int batch;                   // of all tensors
    int row_head, column_head;   // of the latter, the first
    int first_row, first_column; // rows of the tensors: of the first row, and of column 0 of the sequence
    int rows, columns;           // rows there are, and columns of the sequence
    int see_first, see_end;      // the columns of row 0
    int first, end;              // tiles of columns with one of some row
    int full_first, full_end;    // tiles of columns that all are of all rows
    int start;                   // the tile that is the first
    int slab_tile;               // tile of column 0, where dQ is added to
    int key_tile;                // of the rows, where dK and dV are added to
    int others;                  // blocks of keys of the sequence that may add to dQ before: all behind the rows, or all before them
    int member;                  // of the query head among those that share keys
    bool is_last;                // no item, but the end of them
    bool is_down;                // where blocks add in turn: from the last tile down, in the order of their keys

    __device__ __forceinline__ int tiles() const { return end - first; }

    // The tile after another; after the last that there is again the first one. From the last on downwards, or upwards from any, unless
    // the item says otherwise. And the tile before.
    template <class Shape>
    __device__ __forceinline__ int after(int tile) const {
        return Shape::kMakesAll && !(Shape::kInTurn && is_down) ? above(tile) : below(tile);
    }
    template <class Shape>
    __device__ __forceinline__ int before(int tile) const {
        static_assert(!Shape::kInTurn, "where blocks add in turn, some go down");
        return Shape::kMakesAll ? below(tile) : above(tile);
    }
    __device__ __forceinline__ int above(int tile) const { return tile + 1 == end ? first : tile + 1; }
    __device__ __forceinline__ int below(int tile) const { return (tile == first ? end : tile) - 1; }
    // The tile that comes, where blocks add in turn, when `tile` would upwards.
    __device__ __forceinline__ int in_turn(int tile) const { return is_down ? first + end - 1 - tile : tile; }

    // The tiles, by what else is known. `row`: the first in its sequence.
    template <class Shape>
    __device__ __forceinline__ void find_tiles(int64_t row) {
        const auto within = [&](int column) { return min(max(column, 0), columns); };
        const int top_end = within(see_end), bottom_first = within(see_first + rows - 1);
        const int top_first = within(see_first), bottom_end = within(see_end + rows - 1);
        first = top_first / Shape::kColumns;
        end = bottom_end > top_first ? (bottom_end + Shape::kColumns - 1) / Shape::kColumns : first;
        full_first = (bottom_first + Shape::kColumns - 1) / Shape::kColumns;
        full_end = top_end / Shape::kColumns;
        // Queries that do not exist have no weights anyway.
        if (Shape::kOfKeys && top_end == columns) full_end = end;
        start = end - 1;
        if (Shape::kMakesAll) {
            // Keys that do not exist are hidden too: they add to dQ.
            if (rows < Shape::kRows) full_end = full_first;
            start = first;
        }
        if (Shape::kMakesAll && !Shape::kInTurn) {
            // Blocks that run side by side begin one after the other, as under a causal mask: they read the same tiles within a short
            // time, but do not add to the same one.
            const int64_t own = row / Shape::kColumns;
            start = own > first && own < end ? static_cast<int>(own) : first;
        }
    }
};

static_assert(sizeof(GradientItem) <= 160, "the host has room for as much in a list");

// One thing after the other, from what lies in memory: the registers of the thread that draws are few.
__device__ __forceinline__ void one_by_one() { asm volatile("" ::: "memory"); }

// Elements to a row of a head.
__device__ __forceinline__ int64_t element_at(const int64_t *stride, int batch, int row, int head) {
    int64_t at = batch * stride[0];
    at += row * stride[1];
    return at + head * stride[2];
}

// Writes what an item has of a block, beside `first_row` and `rows`.
template <class Shape>
__device__ __forceinline__ void fill_item(const longrope_attention_backward_sm90_params &h, const AttentionBlock &block,
                                          GradientItem &item, int64_t first, int64_t see_first, int64_t see_end) {
    const longrope_attention_backward_params &b = h.backward;
    // Beyond this, a row sees everything or nothing.
    constexpr int64_t kFar = 1 << 30;
    item.see_first = static_cast<int>(clamp(see_first, -kFar, kFar));
    item.see_end = static_cast<int>(clamp(see_end, -kFar, kFar));
    item.columns = static_cast<int>(Shape::kOfKeys ? block.query_length : block.key_length);
    item.template find_tiles<Shape>(first);
    one_by_one();
    item.batch = static_cast<int>(block.batch);
    // The kernel that makes all gradients takes query heads one by one.
    item.row_head = Shape::kMakesAll ? block.head / h.sharing : block.head;
    item.column_head = Shape::kOfKeys ? block.head * b.attention.group : block.head / b.attention.group;
    item.first_column = static_cast<int>(Shape::kOfKeys ? block.query_start : block.key_start);
    one_by_one();
    item.out_at[0] = element_at(Shape::kOfKeys ? b.dk_stride : b.dq_stride, item.batch, item.first_row, item.row_head);
    one_by_one();
    if (Shape::kOfKeys) item.out_at[1] = element_at(b.dv_stride, item.batch, item.first_row, item.row_head);
    one_by_one();
    const int query = Shape::kOfKeys ? item.first_column : item.first_row;
    const int head = Shape::kOfKeys ? item.column_head : item.row_head;
    item.lse_at = element_at(b.attention.lse_stride, item.batch, query, head);
    one_by_one();
    item.delta_at = element_at(b.delta_stride, item.batch, query, head);
}

// The tile of a slab of dQ in which the queries of a sequence and head begin.
template <class Shape>
__device__ __forceinline__ int first_slab_tile(const longrope_attention_backward_sm90_params &h, const AttentionBlock &block,
                                               int sequence, int head) {
    const longrope_attention_params &p = h.backward.attention;
    int64_t tile = (block.batch * p.query_heads + head) * h.slab_tiles;
    if (p.sequence_kind == LONGROPE_SEQUENCES_PACKED) tile += block.query_start / Shape::kColumns + sequence;
    return static_cast<int>(tile);
}

// The same of keys and values.
template <class Shape>
__device__ __forceinline__ int first_key_tile(const longrope_attention_backward_sm90_params &h, const AttentionBlock &block, int sequence,
                                              int key_head) {
    int64_t tile = (block.batch * (h.backward.key_heads / h.sharing) + key_head) * h.key_slab_tiles;
    if (h.backward.attention.sequence_kind == LONGROPE_SEQUENCES_PACKED) tile += block.key_start / Shape::kRows + sequence;
    return static_cast<int>(tile);
}

// Finds the items of a number: for dQ a tile of queries, in the order of AttentionBlock; for dK and dV every `key_blocks`-th tile of
// keys of a sequence, as in the portable kernel, those with the first keys, which under a causal mask the most queries see, first.
// Lies in shared memory, for want of registers.
struct ItemFinder {
    AttentionBlock block;
    int set;          // of the sequence's factors, by its number
    int64_t key;      // the first of the next tile of keys of the number
    uint32_t number;  // to be taken next
    int sequence;     // of the number that was taken, where dQ is added to a slab
    bool is_taken;    // whether the number before may have more items

    // The block of keys of a number, of which its head and sequence are left. Under a causal mask the most queries see the first keys,
    // and their items take longest: so the first half of the blocks of all heads comes first, then the next quarter of all, and so
    // on. Were each head worked on as a whole, the last one's longest items would begin when there is little else left to do.
    static __device__ __forceinline__ uint32_t key_block(const longrope_attention_backward_sm90_params &h, uint32_t &number) {
        constexpr int kParts = 4;
        const uint32_t blocks = static_cast<uint32_t>(h.backward.key_blocks), heads = h.items / blocks;
        uint32_t first = 0, size = blocks;
        if (h.backward.attention.causal) {
#pragma unroll 1
            for (int part = 1; part < kParts; ++part) {
                const uint32_t half = (blocks - first + 1) / 2;
                size = half;
                if (number < half * heads) break;
                number -= half * heads;
                first += half;
                size = blocks - first;
            }
        }
        const uint32_t block = first + number % size;
        number /= size;
        return block;
    }

    // Takes a number; returns whether there may be something to do for it.
    template <class Shape>
    __device__ __forceinline__ bool take(const longrope_attention_backward_sm90_params &h, uint32_t taken) {
        const longrope_attention_params &p = h.backward.attention;
        if (Shape::kOfKeys) {
            const uint32_t heads = static_cast<uint32_t>(h.backward.key_heads);
            key = static_cast<int64_t>(key_block(h, taken)) * Shape::kRows;
            place_keys<Shape>(p, taken / heads, static_cast<int>(taken % heads));
            taken /= heads;
        } else {
            taken = static_cast<uint32_t>(block.place_at(p, Shape::kRows, taken));
            if (block.head >= p.query_heads) return false;  // the last section may be short
        }
        return find_set<Shape>(h, taken);
    }

    // Places the block among the keys of a sequence and head.
    template <class Shape>
    __device__ __forceinline__ void place_keys(const longrope_attention_params &p, uint32_t of, int head) {
        block.head = head;
        block.first_query = 0;
        if (Shape::kMakesAll) sequence = static_cast<int>(of);
        block.read_sequence(p, of);
    }

    // Finds the set of a sequence; returns whether there may be something to do.
    template <class Shape>
    __device__ __forceinline__ bool find_set(const longrope_attention_backward_sm90_params &h, uint32_t of) {
        const longrope_attention_params &p = h.backward.attention;
        uint32_t bad = block.is_bad ? LONGROPE_DEVICE_BAD_SEQUENCE : 0;
        if (!bad && rows_left<Shape>() > 0) {
            set = gradient_set(h.backward, block, of);
            if (set == kBadSet) bad = LONGROPE_DEVICE_BAD_CHOICE;
        }
        if (bad && p.status) atomicOr(p.status, bad);
        return !bad;
    }

    // Rows of the number that no item has had.
    template <class Shape>
    __device__ __forceinline__ int64_t rows_left() const {
        return Shape::kOfKeys ? block.key_length - key : block.query_length - block.first_query;
    }

    // Writes the next item of the number that was taken, if there is one.
    template <class Shape>
    __device__ __forceinline__ bool next(const longrope_attention_backward_sm90_params &h, GradientItem &item) {
        const longrope_attention_backward_params &b = h.backward;
        const int64_t first = Shape::kOfKeys ? key : block.first_query;
        const int64_t rows = rows_left<Shape>();
        if (rows <= 0) return false;
        item.rows = static_cast<int>(min(static_cast<int64_t>(Shape::kRows), rows));
        item.first_row = static_cast<int>((Shape::kOfKeys ? block.key_start : block.query_start) + first);
        one_by_one();
        item.position = Shape::kOfKeys ? key_position(b.attention, first) : block.position;
        item.set = set;
        one_by_one();
        if (Shape::kOfKeys) {
            // Query c sees key r if limits.first <= r - c < limits.end.
            fill_item<Shape>(h, block, item, first, first - block.limits.end + 1, first - block.limits.first + 1);
            if (Shape::kMakesAll) {
                one_by_one();
                item.slab_tile = first_slab_tile<Shape>(h, block, sequence, item.column_head);
                one_by_one();
                item.others = static_cast<int>((rows - 1) / Shape::kRows);
                item.member = block.head % h.sharing;
                item.key_tile = first_key_tile<Shape>(h, block, sequence, item.row_head) + static_cast<int>(first / Shape::kRows);
            }
            key += b.key_blocks * Shape::kRows;
        } else {
            fill_item<Shape>(h, block, item, first, block.limits.first, block.limits.end);
            block.first_query = block.query_length;  // no more than one
        }
        return true;
    }
};

// What the thread does that draws items.
template <class Shape, class Shared>
__device__ __forceinline__ void draw_gradient_items(const longrope_attention_backward_sm90_params &h, const Shared &shared,
                                                    GradientItem *items, ItemFinder &finder) {
    PackedTurn<kItemSlots> turn;
    finder.number = blockIdx.x;
    finder.is_taken = false;
    for (bool is_last = false; !is_last; turn.next()) {
        barrier_wait(shared.item_empty(turn.slot()), turn.parity() ^ 1);
        GradientItem &item = items[turn.slot()];
        while (!(finder.is_taken && finder.next<Shape>(h, item))) {
            const uint32_t taken = finder.number;
            is_last = taken >= h.items;
            if (is_last) break;
            // Drawing takes a while; the answer is first needed for the number after this.
            finder.number = h.items > gridDim.x ? gridDim.x + atomicAdd(h.drawn, 1) : h.items;
            finder.is_taken = finder.take<Shape>(h, taken);
        }
        item.is_last = is_last;
        barrier_arrive(shared.item_full(turn.slot()));
    }
}

}  // namespace longrope
