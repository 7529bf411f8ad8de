// Attention forward by blocks of queries, on Hopper's tensor cores.
//
//   out = softmax(scale q k^T + mask) v        query head h reads key head h / group
//
// A block is one warpgroup that draws items and loads, and kConsumers that compute, each on 64 queries of the item, which it rotates
// if they are not rotated yet. All walk over the same tiles of keys, from the last to the first, with the online softmax of
// softmax.cuh.
//
//   loader      K0 | Q | K1 | V0 | K2 | V1 | ...        tiles by the copy engine, into rings
//   consumer    S = Q K0 | softmax of S             | S = Q K1                       | softmax of S | ...
//                                                   | O += P V0, under way the while  ->            | O scaled, ...
//
// A consumer begins the logits of the next tile and the output of this one together, and turns logits into weights while the
// output is still being summed. The next tile may be the first of the next item: then the output of the item before is stored
// while others compute. So that consumers do not all wait for the tensor cores and then all leave them idle, they take turns: one
// begins its products when the logits of the one before are there.
//
// Sums do not drift. These tensor cores cut off as they accumulate, which over a million keys makes outputs one percent too
// small; so every kFoldTiles tiles a consumer adds O to a sum of its own in device memory, where it is rounded, and starts
// from zero.
//
// Shared memory, in bytes, D the padded head dimension (64, 128 or 256), R = 64 kConsumers:
//   Q     kQueryStages * R * D * 2           tiles are columns of 64, each of rows of 128 bytes (wgmma.cuh)
//   K, V  kStages * kKeys * D * 2 each
#pragma once

#include "attention_sm90_consumer.cuh"
#include "attention_sm90_rotate.cuh"
#include "attention_sm90_load.cuh"
#include "tile.cuh"

#include <type_traits>

namespace longrope {

// The sizes of a kernel.
template <int kDim_, int kConsumers_, int kKeys_, int kStages_, int kQueryStages_, bool kOverlapsItems_>
struct HopperShape {
    static constexpr int kDim = kDim_;                  // padded head dimension
    static constexpr int kConsumers = kConsumers_;      // warpgroups that compute
    static constexpr int kKeys = kKeys_;                // keys a tile
    static constexpr int kStages = kStages_;            // tiles of K, and of V, in shared memory
    static constexpr int kQueryStages = kQueryStages_;  // items whose queries are in shared memory
    // Whether an item begins while the last of the item before is summed, and consumers take turns.
    static constexpr bool kOverlapsItems = kOverlapsItems_;
    static constexpr int kRows = 64 * kConsumers;       // queries a block
    static constexpr int kThreads = 128 * (kConsumers + 1);
    static constexpr int kTileBytes = kKeys * kDim * 2, kQueryBytes = kRows * kDim * 2;
    // 1 KiB for the alignment of tiles.
    static constexpr int kSharedBytes = 1024 + kQueryStages * kQueryBytes + 2 * kStages * kTileBytes;
    // 4,096 keys: the products cut off less than 4e-5 of the sum in as many.
    static constexpr int kFoldTiles = 4096 / kKeys;
    // Registers a thread, of 64 Ki for a block.
    static constexpr int kLoaderRegisters = kConsumers == 3 ? 32 : 40;
    static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232;
    static_assert(kSharedBytes <= 226 * 1024, "more than a multiprocessor gives, beside what is static");
};

// Where things lie in shared memory, and the barriers of what is filled and emptied in turn.
template <class Shape>
struct HopperShared {
    uint32_t tiles, barriers;

    static constexpr int kStages = Shape::kStages, kQueries = Shape::kQueryStages;
    static constexpr int kBarriers = 4 * kStages + 2 * kQueries + 2 * kItemSlots + 1;

    __device__ __forceinline__ HopperShared(const char *dynamic, const uint64_t *barrier_words) {
        tiles = (shared_address(dynamic) + 1023) / 1024 * 1024;
        barriers = shared_address(barrier_words);
    }

    __device__ __forceinline__ uint32_t query_tile(int slot) const { return tiles + slot * Shape::kQueryBytes; }
    __device__ __forceinline__ uint32_t key_tile(int slot) const { return query_tile(kQueries) + slot * Shape::kTileBytes; }
    __device__ __forceinline__ uint32_t value_tile(int slot) const { return key_tile(kStages + slot); }

    __device__ __forceinline__ uint32_t barrier(int number) const { return barriers + 8 * number; }
    __device__ __forceinline__ uint32_t keys_full(int slot) const { return barrier(slot); }
    __device__ __forceinline__ uint32_t values_full(int slot) const { return barrier(kStages + slot); }
    __device__ __forceinline__ uint32_t keys_empty(int slot) const { return barrier(2 * kStages + slot); }
    __device__ __forceinline__ uint32_t values_empty(int slot) const { return barrier(3 * kStages + slot); }
    __device__ __forceinline__ uint32_t queries_full(int slot) const { return barrier(4 * kStages + slot); }
    __device__ __forceinline__ uint32_t queries_empty(int slot) const { return barrier(4 * kStages + kQueries + slot); }
    __device__ __forceinline__ uint32_t item_full(int slot) const { return barrier(4 * kStages + 2 * kQueries + slot); }
    __device__ __forceinline__ uint32_t item_empty(int slot) const { return barrier(4 * kStages + 2 * kQueries + kItemSlots + slot); }
    // Of a tile that the loader is to clear in part before it is full.
    __device__ __forceinline__ uint32_t cleared() const { return barrier(kBarriers - 1); }

    // By one thread.
    __device__ __forceinline__ void set_up() const {
        for (int slot = 0; slot < kStages; ++slot) {
            barrier_init(keys_full(slot), 1);
            barrier_init(values_full(slot), 1);
            barrier_init(keys_empty(slot), Shape::kConsumers);
            barrier_init(values_empty(slot), Shape::kConsumers);
        }
        for (int slot = 0; slot < kQueries; ++slot) {
            barrier_init(queries_full(slot), 1);
            barrier_init(queries_empty(slot), Shape::kConsumers);
        }
        for (int slot = 0; slot < kItemSlots; ++slot) {
            barrier_init(item_full(slot), 1);
            barrier_init(item_empty(slot), 4 * Shape::kConsumers + 1);  // every warp that computes, and the loader
        }
        barrier_init(cleared(), 1);
        barrier_init_done();
    }
};

// The turns of consumers, by hardware barriers from number 1 on.
template <class Shape>
struct Turns {
    int group;

    static __device__ __forceinline__ void arrive(int group) {
        asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory");
    }

    // The first consumer's first turn comes of itself.
    __device__ __forceinline__ explicit Turns(int group_) : group(group_) {
        if (Shape::kOverlapsItems && group == Shape::kConsumers - 1) arrive(0);
    }

    __device__ __forceinline__ void begin() const {
        if (Shape::kOverlapsItems) asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
    }

    __device__ __forceinline__ void end() const {
        if (Shape::kOverlapsItems) arrive(group + 1 == Shape::kConsumers ? 0 : group + 1);
    }
};

template <bool kValue>
struct Flag {
    static constexpr bool value = kValue;
};

// What a consumer does: `group` counts them.
template <class T, class Shape>
__device__ __forceinline__ void consume_items(const longrope_attention_sm90_params &h, const HopperShared<Shape> &shared,
                                              const HopperItem *items, float *references, int group) {
    const longrope_attention_params &p = h.attention;
    const auto speaks = [] { return thread_again() % 128 == 0; };
    const Turns<Shape> turns(group);
    Turn<kItemSlots> turn;
    Turn<Shape::kQueryStages> query;
    const auto my_queries = [&] { return (thread_again() / 128 - 1) * 64 * 128; };
    using StageTurn = std::conditional_t<(Shape::kDim > 128), PackedTurn<Shape::kStages>, Turn<Shape::kStages>>;
    StageTurn key, value;
    Consumer<T, Shape> mine;
    mine.clear_output();
    int pending = 0;  // tiles of the item before, of which the last is still to be added to the output

    const auto wait_for_values = [&] { barrier_wait(shared.values_full(value.slot()), value.parity()); };
    const auto begin_output = [&] { mine.begin_output(shared.value_tile(value.slot())); };
    const auto end_output = [&] {
        wgmma_wait<0>();
        hold(mine.output);
        if (speaks()) barrier_arrive(shared.values_empty(value.slot()));
        value.next();
    };
    // Stores an item, whose rows ended so.
    const auto finish = [&](const HopperItem &item, int slot, const RowState(&row)[2], int tiles) {
        if (tiles > 1 + Shape::kFoldTiles) mine.unfold(FoldedSums<Shape>(h.sums, references), row);
        mine.store(h, item, row);
        __syncwarp();
        if (thread_again() % 32 == 0) barrier_arrive(shared.item_empty(slot));
        mine.clear_output();
    };

    // The last values of an item, by themselves.
    const auto finish_pending = [&](int slot) {
        wait_for_values();
        turns.begin();
        hold(mine.output);
        wgmma_fence();
        begin_output();
        turns.end();
        end_output();
        finish(items[slot], slot, mine.row, pending);
    };

    for (;; turn.next()) {
        barrier_wait(shared.item_full(turn.slot()), turn.parity());
        const HopperItem &item = items[turn.slot()];
        // Of the item before; found anew each time.
        const auto before = [&] {
            int slot = turn.slot() ^ 1;
            asm volatile("" : "+r"(slot));
            return slot;
        };
        const int tiles = item.is_last ? 0 : item.tiles();
        if (tiles <= 0) {
            if (pending) finish_pending(before());
            pending = 0;
            if (item.is_last) break;
            mine.reset_rows();
            finish(item, turn.slot(), mine.row, 0);
            continue;
        }

        if (h.rotates) {
            barrier_wait(shared.queries_full(query.slot()), query.parity());
            rotate_queries<T, Shape>(h.rotary, item, shared.query_tile(query.slot()) + my_queries(), my_queries() / 128);
            mine.clear_logits();
        }

        // The first tile; and the last values of the item before, if they are pending.
        const auto start = [&](auto with_pending) {
            constexpr bool kPending = decltype(with_pending)::value;
            float factor[2];
            barrier_wait(shared.queries_full(query.slot()), query.parity());
            barrier_wait(shared.keys_full(key.slot()), key.parity());
            if (kPending) wait_for_values();
            turns.begin();
            hold(mine.flat_logits());
            hold(mine.output);
            wgmma_fence();
            mine.begin_logits(shared.query_tile(query.slot()) + my_queries(), shared.key_tile(key.slot()));
            if (kPending) begin_output();
            wgmma_wait<kPending>();
            hold(mine.flat_logits());
            turns.end();
            if (speaks()) barrier_arrive(shared.keys_empty(key.slot()));
            if (speaks() && tiles == 1) barrier_arrive(shared.queries_empty(query.slot()));
            key.next();
            mine.mask(item, (item.end - 1) * Shape::kKeys);
            const RowState ended[2] = {mine.row[0], mine.row[1]};
            mine.reset_rows();
            mine.weigh(factor, p.scale_log2);
            if (kPending) {
                end_output();
                finish(items[before()], before(), ended, pending);
            }
            mine.round_weights();
        };
        if (Shape::kOverlapsItems && pending) {
            start(Flag<true>());
        } else {
            start(Flag<false>());
        }

        const auto step = [&](int tile, auto masked) {
            float factor[2];
            barrier_wait(shared.keys_full(key.slot()), key.parity());
            turns.begin();
            hold(mine.flat_logits());
            hold(mine.output);
            wgmma_fence();
            mine.begin_logits(shared.query_tile(query.slot()) + my_queries(), shared.key_tile(key.slot()));
            wait_for_values();
            // Once more, since the way here had a branch.
            wgmma_fence();
            begin_output();
            wgmma_wait<1>();
            hold(mine.flat_logits());
            turns.end();
            if (speaks()) barrier_arrive(shared.keys_empty(key.slot()));
            if (speaks() && tile == item.first) barrier_arrive(shared.queries_empty(query.slot()));
            key.next();
            if (decltype(masked)::value) mine.mask(item, tile * Shape::kKeys);
            mine.weigh(factor, p.scale_log2);
            end_output();
            mine.round_weights();
            mine.scale_output(factor);
        };
        // Tiles that some query does not see whole, those that all do, and such as the first again: the loop over most of them
        // has no code for masks.
        for (int tile = item.end - 2; tile >= item.first;) {
            const int until = max(tile - Shape::kFoldTiles + 1, item.first);
#pragma unroll 1
            for (const int end = max(until, item.full_end); tile >= end; --tile) step(tile, Flag<true>());
#pragma unroll 1
            for (const int end = max(until, item.full_first); tile >= end; --tile) step(tile, Flag<false>());
#pragma unroll 1
            for (; tile >= until; --tile) step(tile, Flag<true>());
            if (tile >= item.first) {
                mine.fold(FoldedSums<Shape>(h.sums, references), mine.row, tile == item.end - 2 - Shape::kFoldTiles);
            }
        }
        query.next();
        pending = tiles;
        if (!Shape::kOverlapsItems) {
            finish_pending(turn.slot());
            pending = 0;
        }
    }
}

template <class T, class Shape>
__device__ __forceinline__ void attend_on_hopper(const longrope_attention_sm90_params &h) {
    extern __shared__ __align__(1024) char shared_bytes[];
    __shared__ HopperItem items[kItemSlots];
    __shared__ AttentionBlock block;
    __shared__ __align__(8) uint64_t barriers[HopperShared<Shape>::kBarriers];
    __shared__ float references[Shape::kRows];
    const HopperShared<Shape> shared(shared_bytes, barriers);
    const int thread = threadIdx.x;
    if (thread == 0) shared.set_up();
    __syncthreads();
    if (thread < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kLoaderRegisters));
        if (thread < 32) {
            load_items<Shape>(h, shared, items, thread);
        } else if (thread == 32) {
            draw_items<Shape>(h, shared, items, block);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kConsumerRegisters));
        consume_items<T>(h, shared, items, references, thread / 128 - 1);
    }
}

}  // namespace longrope

#define LONGROPE_ATTENTION_SM90(name, T, Shape)                                                    \
    extern "C" __global__ void __launch_bounds__(Shape::kThreads, 1)                               \
        longrope_attention_sm90_##name(const __grid_constant__ longrope_attention_sm90_params p) { \
        longrope::attend_on_hopper<T, Shape>(p);                                                   \
    }
