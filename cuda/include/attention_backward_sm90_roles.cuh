// The backward pass of attention on Hopper's tensor cores in one kernel, for head dimensions to 256, where sums may have any order.
//
// As the kernel for smaller ones (attention_backward_sm90_fast.cuh) it makes dS of a tile in shared memory and dQ of that, which all blocks
// add to a slab. But dK and dV of 64 keys are all that a consumer's registers hold of 256 dimensions: so both consumers have the same
// 64 keys, and each makes one of the two sums.
//
//   consumer 0   x = K Q^T     P  = 2^(c x - lse / ln 2)    dV += P dO     dQ of the tile = dS^T K, the first half of the dimensions
//   consumer 1   d = V dO^T    dS = P (d - delta)           dK += dS Q     the second half
//
// P goes from a thread of the first to the same of the second, as f32, and dS to both, as an operand. Products of one run while the
// other computes:
//
//   consumer 0   | x(j), dQ(j-1) | P(j), dQ(j-1) to the slab | dV(j), dQ(j-1) to the slab |
//   consumer 1   | d(j) | dS(j) | dK(j), dQ(j) | dQ(j) to the slab |
//
// Of dS there are two places: the first consumer writes P(j) when it has read dS(j-2), so that the second may write dS(j) there; and it
// has waited for dS(j-1), so that it never is two phases behind.
//
// Alive at once are a sum, 128 registers, the next product, 32, the rounded P or dS, 16, and a quarter of dQ, 32: a consumer's half at
// once does not fit. Bytes that products read from shared memory, with what is exchanged and what TMA writes, take as long as the
// products: 344 KiB a tile, 2,690 clocks, beside 2,560.
#pragma once

#include "attention_backward_sm90_fast.cuh"

namespace longrope {

// The sizes of the kernel. Rows are keys, columns queries.
struct RolesShape {
    static constexpr bool kOfKeys = true, kMakesAll = true, kInTurn = false, kBulk = false, kSharesRows = true;
    static constexpr int kDim = 256, kTileDim = 256, kColumns = 64, kFirstStages = 2, kSecondStages = 2;
    static constexpr int kConsumers = 2, kRows = 64, kThreads = 384, kFirstConsumer = 128, kSums = 2;
    static constexpr int kRowBytes = kRows * kDim * 2, kTileBytes = kColumns * kDim * 2;
    static constexpr int kGradientBytes = kRows * kColumns * 2;  // dS of a tile
    static constexpr int kWeightBytes = kRows * kColumns * 4;    // P of a tile, behind both places of dS
    static constexpr int kQueryDims = 128, kSecondDims = 128;    // dimensions of dQ that a consumer makes
    static constexpr int kQuarter = 64;                          // and of them at a time
    static constexpr int kQueryBytes = kColumns * kDim * 4;
    static constexpr int kSharedBytes = 2 * kRowBytes + 4 * kTileBytes + 2 * kGradientBytes + kWeightBytes;
    static constexpr int kFoldTiles = 4096 / kColumns;
    static constexpr int kLoaderRegisters = 24, kConsumerRegisters = 240;
    // Who arrives at the barrier of dS. Nothing is staged.
    static constexpr int kGradientWarps = 4, kStagingWarps = 4;
    using Staged = StagedGradient<kDim, kTurnedRows, 32>;
    // What is declared beside it has 2 KiB, and the system 1, of 228. So tiles begin at a multiple of 1 KiB, and none is there for
    // alignment.
    static_assert(kSharedBytes <= 224 * 1024, "more than a multiprocessor gives");
};

// One of both consumers: this thread's share of its sum, and of its half of dQ.
template <class T>
struct RoleConsumer : FastConsumer<T, RolesShape> {
    using Shape = RolesShape;
    using Base = FastConsumer<T, Shape>;
    using Base::lane, Base::thread;

    // This thread's numbers of P, those of a warp side by side.
    static __device__ __forceinline__ uint32_t weights_at(const GradientShared<Shape> &shared) {
        return shared.gradients(2) + thread() % 128 * 16;
    }

    // Writes P for the other consumer.
    __device__ __forceinline__ void put_weights(const GradientShared<Shape> &shared) const {
        const uint32_t to = weights_at(shared);
#pragma unroll
        for (int n = 0; n < Shape::kColumns / 8; ++n) {
            store_four(to + n * 2048, this->x[n][0], this->x[n][1], this->x[n][2], this->x[n][3]);
        }
    }

    // Reads what the other one wrote.
    __device__ __forceinline__ void take_weights(const GradientShared<Shape> &shared) {
        const uint32_t from = weights_at(shared);
#pragma unroll
        for (int n = 0; n < Shape::kColumns / 8; ++n) {
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(this->x[n][0]), "=f"(this->x[n][1]), "=f"(this->x[n][2]), "=f"(this->x[n][3])
                         : "r"(from + n * 2048)
                         : "memory");
        }
    }

    float of_quarter[Shape::kQuarter / 2];  // of dQ, before the scale: [blocks of 8 dimensions][4]

    // Begins a quarter of dQ: 64 queries by 64 dimensions, a part of the tile, over all keys.
    __device__ __forceinline__ void begin_quarter(uint32_t gradients_tile, uint32_t keys, int quarter) {
        uint32_t a_at = gradients_tile, b_at = keys + quarter * (Shape::kRows * 128);
        // As in begin_sum.
        asm volatile("" : "+r"(a_at), "+r"(b_at));
        const uint64_t a = matrix_descriptor(a_at, 16), b = matrix_descriptor(b_at, 16);
#pragma unroll
        for (int step = 0; step < Shape::kRows / 16; ++step) {
            if (step == 0) {
                wgmma_product_across(of_quarter, a, b, T());
            } else {
                wgmma_add_across(of_quarter, a + step * 128, b + step * 128, T());
            }
        }
        wgmma_commit();
    }

    // Adds a quarter to a tile of the slab. `second`: whether it is the second of this consumer's.
    __device__ __forceinline__ void add_quarter(float *slab, int tile, int second) {
        hold(of_quarter);
        asm volatile("" : "+r"(tile));
        float *const to = slab + static_cast<int64_t>(tile) * (Shape::kQueryBytes / 4) + Base::query_place() / 4 + lane() * 4;
#pragma unroll
        for (int n = 0; n < Shape::kQuarter / 8; ++n) {
            add_four(to + (n + second * (Shape::kQuarter / 8)) * 128, of_quarter[4 * n], of_quarter[4 * n + 1], of_quarter[4 * n + 2],
                     of_quarter[4 * n + 3]);
        }
    }

    using Sum = typename Base::Sum;
    using Place = Folded<Shape::kDim / 2, 128>;
    static __device__ __forceinline__ Place place_of(float *sums, uint32_t consumer) {
        return Place(sums, static_cast<int64_t>(blockIdx.x) * Shape::kSums + consumer, thread() % 128);
    }

    static __device__ __forceinline__ void clear(Sum &sum) {
#pragma unroll
        for (int i = 0; i < Shape::kDim / 2; ++i) sum[i] = 0.0f;
    }

    // Adds a sum to that in device memory, and clears it; the first time, puts it there.
    static __device__ __forceinline__ void fold_one(Sum &sum, float *sums, uint32_t consumer, bool is_first) {
        if (is_first) {
            place_of(sums, consumer).put(sum);
        } else {
            place_of(sums, consumer).add(sum);
        }
        clear(sum);
    }

    // Takes all of it back.
    static __device__ __forceinline__ void unfold_one(Sum &sum, float *sums, uint32_t consumer) {
        fold_one(sum, sums, consumer, false);
        place_of(sums, consumer).take(sum);
    }

    // Adds a sum to a tile of its slab: f32 [dK, dV][warp][blocks of 8 dimensions][lane][4].
    static __device__ __forceinline__ void add_to_keys(const Sum &sum, const longrope_attention_backward_sm90_params &h,
                                                       const GradientItem &item, int which) {
        constexpr int kEach = 64 * Shape::kDim;
        float *const to = h.key_slab + (static_cast<int64_t>(item.key_tile) * 2 + which) * kEach + thread() % 128 / 32 * (kEach / 4) + lane() * 4;
#pragma unroll
        for (int n = 0; n < Shape::kDim / 8; ++n) add_four(to + n * 128, sum[4 * n], sum[4 * n + 1], sum[4 * n + 2], sum[4 * n + 3]);
    }
};

// What the consumers do.
template <class T>
struct RoleSums {
    using Shape = RolesShape;
    using Drawer = ItemFinder;
    using Turn = FastTurn<Shape::kFirstStages>;

    static __device__ __forceinline__ void run(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                               const GradientItem *items, const float *numbers) {
        Turn place(threadIdx.x / 128 - 1);
        if (place.consumer() == 0) {
            make_weights(h, shared, items, numbers, place);
        } else {
            make_gradients(h, shared, items, numbers, place);
        }
    }

    // An address that is found where it is needed, and that the compiler holds over no loop.
    static __device__ __forceinline__ uint32_t anew(uint32_t address) {
        asm volatile("" : "+r"(address));
        return address;
    }

    // Waits for the next item; returns whether there is one.
    static __device__ __forceinline__ bool begin(const GradientShared<Shape> &shared, const GradientItem *items, const Turn &place) {
        barrier_wait(shared.item_full(place.item()), place.item_parity());
        if (items[place.item()].is_last) return false;
        barrier_wait(shared.rows_full(), place.item());
        return true;
    }

    // Writes a sum, or adds it to the slab.
    static __device__ __forceinline__ void finish(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                                  const GradientItem &item, RoleConsumer<T> &mine, typename RoleConsumer<T>::Sum &sum,
                                                  const Turn &place) {
        const longrope_attention_backward_params &b = h.backward;
        const bool is_of_values = place.consumer() == 0;
        if (item.tiles() > Shape::kFoldTiles) mine.unfold_one(sum, h.sums, place.consumer());
        if (h.key_slab) {
            if (item.tiles() > 0) mine.add_to_keys(sum, h, item, is_of_values);
        } else if (is_of_values) {
            mine.store(sum, b.dv, item.out_at[1], b.dv_stride[1], b.dv_is_f32, b, 1.0f, item.rows);
        } else {
            mine.store(sum, b.dk, item.out_at[0], b.dk_stride[1], b.dk_is_f32, b, b.scale, item.rows);
        }
        release(shared.item_empty(place.item()));
    }

    // Hardware barriers by which P goes from the first consumer to the second: there, and taken, also before the first.
    static constexpr int kWeightsThere = 1, kWeightsTaken = 2;
    static __device__ __forceinline__ void meet(int barrier) { asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory"); }
    static __device__ __forceinline__ void announce(int barrier) { asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory"); }

    // The first consumer: P, dV, and the first half of dQ, a tile behind.
    static __device__ __forceinline__ void make_weights(const longrope_attention_backward_sm90_params &h,
                                                        const GradientShared<Shape> &shared, const GradientItem *items,
                                                        const float *numbers, Turn &place) {
        RoleConsumer<T> mine;
        typename RoleConsumer<T>::Sum &sum = mine.of_weights;
        const auto begin_logits = [&] {
            barrier_wait(shared.column_full(0, place.query()), place.query_parity());
            wgmma_fence();
            mine.begin_logits(anew(shared.row_tile(0)), shared.column_tile(0, place.query()));
        };
        // Of the tile before.
        const auto begin_quarter_before = [&](int quarter) {
            if (quarter == 0) barrier_wait(shared.gradients_full(), place.out_before());
            wgmma_fence();
            mine.begin_quarter(shared.gradients(place.out_before()), shared.row_tile(0), quarter);
        };
        for (; begin(shared, items, place); place.next_item()) {
            const GradientItem &item = items[place.item()];
            mine.clear(sum);
            if (item.tiles() <= 0) {
                release(shared.rows_empty());
                finish(h, shared, item, mine, sum, place);
                continue;
            }
            int before = item.start;
            // A tile. The first of an item comes after no other. No product is under way from one to the next: the assembler would move
            // what it gives.
            const auto step = [&](int tile, auto first) {
                constexpr bool kFirst = decltype(first)::value;
                begin_logits();
                const bool masked = tile < item.full_first || tile >= item.full_end;
                wgmma_wait<0>();
                hold(mine.flat(mine.x));
                const float c = copysignf(h.backward.attention.scale_log2, h.backward.scale);
                if (masked) mine.mask(item, tile * Shape::kColumns, c);
                mine.weigh(numbers + place.query() * Shape::kColumns, c);
                mine.make_weights_here();
                release(shared.column_empty(0, place.query()));
                // Before the other goes on: else the end of the phase after it might be taken for its.
                if (!kFirst) begin_quarter_before(0);
                meet(kWeightsTaken);
                mine.put_weights(shared);
                announce(kWeightsThere);
                mine.round_weights();
                barrier_wait(shared.column_full(1, place.out()), place.out_parity());
                hold(sum);
                wgmma_fence();
                mine.begin_of_weights(shared.column_tile(1, place.out()));
                if (!kFirst) {
                    wgmma_wait<1>();
                    mine.add_quarter(h.slab, item.slab_tile + before, 0);
                    begin_quarter_before(1);
                    wgmma_wait<0>();
                    mine.add_quarter(h.slab, item.slab_tile + before, 1);
                }
                wgmma_wait<0>();
                hold(sum);
                release(shared.column_empty(1, place.out()));
                place.next();
                before = tile;
            };
            int left = item.tiles();
            step(before, Choice<true>());
#pragma unroll 1
            for (--left; left > 0; --left) {
                step(item.template after<Shape>(before), Choice<false>());
                if (left % Shape::kFoldTiles == 0) {
                    // The first time is that with the most left.
                    mine.fold_one(sum, h.sums, 0, item.tiles() - left <= Shape::kFoldTiles);
                }
            }
            begin_quarter_before(0);
            wgmma_wait<0>();
            mine.add_quarter(h.slab, item.slab_tile + before, 0);
            begin_quarter_before(1);
            wgmma_wait<0>();
            release(shared.rows_empty());
            mine.add_quarter(h.slab, item.slab_tile + before, 1);
            finish(h, shared, item, mine, sum, place);
        }
        // As often as the other announces it.
        meet(kWeightsTaken);
    }

    // The second: dS, dK, and the second half of dQ.
    static __device__ __forceinline__ void make_gradients(const longrope_attention_backward_sm90_params &h,
                                                          const GradientShared<Shape> &shared, const GradientItem *items,
                                                          const float *numbers, Turn &place) {
        RoleConsumer<T> mine;
        typename RoleConsumer<T>::Sum &sum = mine.of_logits;
        announce(kWeightsTaken);
        const auto begin_d = [&] {
            barrier_wait(shared.column_full(1, place.out()), place.out_parity());
            wgmma_fence();
            mine.begin_d(anew(shared.row_tile(1)), shared.column_tile(1, place.out()));
        };
        for (; begin(shared, items, place); place.next_item()) {
            const GradientItem &item = items[place.item()];
            mine.clear(sum);
            if (item.tiles() <= 0) {
                release(shared.rows_empty());
                finish(h, shared, item, mine, sum, place);
                continue;
            }
            int tile = item.start;
            // A tile, for which d is there. That of the next is made while the first quarter of dQ goes to the slab.
            const auto step = [&](auto last) {
                constexpr bool kLast = decltype(last)::value;
                meet(kWeightsThere);
                mine.take_weights(shared);
                announce(kWeightsTaken);
                mine.differentiate(numbers + (Shape::kFirstStages + place.out()) * Shape::kColumns);
                release(shared.column_empty(1, place.out()));
                mine.round_gradients();
                mine.put_gradients(shared.gradients(place.out()));
                fence_for_tensor_cores();
                release(shared.gradients_full());
                barrier_wait(shared.column_full(0, place.query()), place.query_parity());
                hold(sum);
                wgmma_fence();
                mine.begin_of_logits(shared.column_tile(0, place.query()));
                barrier_wait(shared.gradients_full(), place.out());
                wgmma_fence();
                mine.begin_quarter(shared.gradients(place.out()), shared.row_tile(0), 2);
                wgmma_wait<0>();
                hold(sum);
                release(shared.column_empty(0, place.query()));
                place.next();
                mine.add_quarter(h.slab, item.slab_tile + tile, 0);
                wgmma_fence();
                mine.begin_quarter(shared.gradients(place.out_before()), shared.row_tile(0), 3);
                if (!kLast) {
                    begin_d();
                    wgmma_wait<1>();
                } else {
                    wgmma_wait<0>();
                }
                if (kLast) release(shared.rows_empty());
                mine.add_quarter(h.slab, item.slab_tile + tile, 1);
                wgmma_wait<0>();
                if (!kLast) hold(mine.flat(mine.d));
                tile = item.template after<Shape>(tile);
            };
            begin_d();
            wgmma_wait<0>();
            hold(mine.flat(mine.d));
#pragma unroll 1
            for (int left = item.tiles(); left > 1; --left) {
                step(Choice<false>());
                if (left % Shape::kFoldTiles == 0 && left < item.tiles()) {
                    mine.fold_one(sum, h.sums, 1, item.tiles() - left <= Shape::kFoldTiles);
                }
            }
            step(Choice<true>());
            finish(h, shared, item, mine, sum, place);
        }
    }

    static __device__ __forceinline__ void draw(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                                GradientItem *items, Drawer &drawer) {
        draw_gradient_items<Shape>(h, shared, items, drawer);
    }
};

}  // namespace longrope
