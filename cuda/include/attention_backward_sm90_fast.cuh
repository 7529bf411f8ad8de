// The backward pass of attention on Hopper's tensor cores in one kernel, where sums may have any order: five products a tile.
//
// As the kernel for dK and dV (attention_backward_sm90.cuh), a block holds 128 keys of a key head, 64 for each of two consumers, and
// walks over tiles of queries. What is new is that both write dS to shared memory too, and make dQ of the tile from it:
//
//   x = K Q^T        P  = 2^(c x - lse / ln 2)      dV += P dO
//   d = V dO^T       dS = P (d - delta)             dK += dS Q          dQ of the tile = dS^T K
//
// dQ is divided between the consumers by head dimensions: of 128, each has 32 registers of it. Of 96 the first has 64 dimensions, since
// a product begins with a part of a tile, and the second makes as many, half of which are zeros and go nowhere. All blocks of a head add theirs to f32
// in device memory, the slab, in no given order; another kernel makes dQ of that (attention_backward_slab.cuh). The slab has the
// numbers as threads hold them, those of a warp side by side, so that nothing is sorted on the way there.
//
// Query heads that share a key head are apart: what blocks read and add to at a time is then that of few heads, and stays in the
// second-level cache. So their dK and dV are added to such a slab too, once an item. It also serves rotated keys, since a rotation
// takes more registers than are left here.
//
// Products run by themselves, in this order, j the tile:
//
//   products   | x(j) | dK += (j-1) | dQ(j-1) |         | d(j) | dV += (j) | x(j+1) ...
//   consumer          |   P of j              | dQ(j-1) |      |  dS of j  |
//
// While dQ goes to the slab nothing of its own is under way for a consumer, but something of the other is. A consumer writes dS(j) and
// goes on; it looks for the other's when it begins dQ(j), a product later. By then the other has read dS(j-2): there are two places.
//
// Alive at once are the sums, 128 registers at a head dimension of 128, one more product, 32, P as f32, 32, and the rounded P and dS, 16
// each: 224 of 240. What else a consumer knows is found anew where it is needed.
//
// Keys that do not exist are hidden and cleared as queries are: they would add to dQ.
//
// Shared memory, D the padded head dimension: K and V, 128 D 2 bytes each; rings of tiles of Q and of dO; two of dS, 128 rows of 64
// queries; with kBulk 64 D 4 for dQ on its way. Q is used for longest, so that its ring has a place more.
#pragma once

#include "attention_backward_sm90_consumer.cuh"
#include "attention_backward_sm90_turns.cuh"

#include <type_traits>

namespace longrope {

// The sizes of the kernel. Rows are keys, columns queries.
template <int kDim_, int kColumns_, int kFirstStages_, int kSecondStages_, bool kBulk_, bool kInTurn_>
struct FastShape {
    static constexpr bool kOfKeys = true, kMakesAll = true;
    static constexpr int kDim = kDim_;                            // padded head dimension
    static constexpr int kColumns = kColumns_;                    // queries a tile
    static constexpr int kFirstStages = kFirstStages_;            // tiles of Q in shared memory
    static constexpr int kSecondStages = kSecondStages_;          // and of dO
    static constexpr bool kInTurn = kInTurn_;                     // whether blocks add to dQ in one order
    static constexpr bool kBulk = kBulk_;                         // and by the copy engine, or by threads
    static constexpr int kConsumers = 2, kRows = 128, kThreads = 384, kFirstConsumer = 128, kSums = 2;
    static constexpr bool kSharesRows = false;
    static constexpr int kGradientWarps = 8, kStagingWarps = 8;
    static constexpr int kTileDim = kDim == 64 ? 64 : 128;        // dimensions of a row of a tile, some of which may be zeros
    static constexpr int kRowBytes = kRows * kTileDim * 2, kTileBytes = kColumns * kTileDim * 2;
    static constexpr int kGradientBytes = kRows * kColumns * 2;   // dS of a tile
    static constexpr int kQueryDims = kTileDim / 2;               // dimensions of dQ that a consumer makes
    static constexpr int kSecondDims = kDim - kQueryDims;         // and of them those that there are, of the second
    static constexpr int kQueryBytes = kColumns * kDim * 4;       // dQ of a tile
    // 1 KiB for the alignment of tiles.
    static constexpr int kSharedBytes = 1024 + 2 * kRowBytes + (kFirstStages + kSecondStages) * kTileBytes + 2 * kGradientBytes +
                                        (kBulk ? kQueryBytes : 0);
    // 4,096 queries: see GradientShape.
    static constexpr int kFoldTiles = 4096 / kColumns;
    static constexpr int kLoaderRegisters = 24, kConsumerRegisters = 240;
    // Used by the kernels that read the slabs.
    using Staged = StagedGradient<kDim, kTurnedRows, 32>;
    static_assert((kDim == 128 || kDim == 96 || kDim == 64) && kColumns == 64, "consumers make dQ of 64 queries, by parts of a tile");
    // What is declared beside it has 3 KiB.
    static_assert(kSharedBytes <= 224 * 1024, "more than a multiprocessor gives");
};

// 64 keys of a consumer: this thread's share of them, and of its part of dQ.
template <class T, class Shape>
struct FastConsumer : GradientConsumer<T, Shape> {
    using Base = GradientConsumer<T, Shape>;
    using Base::gradients, Base::lane, Base::row, Base::thread;
    static constexpr int kColumns = Shape::kColumns;

    float of_queries[Shape::kQueryDims / 2];  // dQ of a tile, before the scale: [blocks of 8 dimensions][4]

    // Hides the logits outside of the mask, and those of keys that do not exist: their weights become 0, whatever the sign of c.
    __device__ __forceinline__ void mask(const GradientItem &item, int first_column, float c) {
        const float hidden = c < 0.0f ? INFINITY : -INFINITY;
        const int column = first_column + lane() % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int mine = row() + 8 * half;
            // Of the columns that this lane holds.
            const int low = item.see_first + mine - column;
            const int high = mine < item.rows ? min(item.see_end + mine, item.columns) - column : 0;
#pragma unroll
            for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (8 * n + i < low || 8 * n + i >= high) this->x[n][2 * half + i] = hidden;
                }
            }
        }
    }

    // Has the weights made before what follows. The assembler would make them as late as they are needed, when the product that is
    // under way the while has ended; but not after a branch that depends on them. It is never taken: weights have no sign.
    __device__ __forceinline__ void make_weights_here() const {
        uint32_t all = 0;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) all |= __float_as_uint(this->x[n][i]);
        }
        if (all == 0x80000000u) asm volatile("nanosleep.u32 0;" ::: "memory");
    }

    // Writes the rounded gradients of the logits to shared memory: 128 rows of keys.
    __device__ __forceinline__ void put_gradients(uint32_t tile) const {
        const int key = this->first_row() + lane() % 16, chunk = lane() / 16 ^ lane() % 8;
        const uint32_t at = tile + key * 128 + chunk * 16;
#pragma unroll
        for (int n = 0; n < kColumns / 8; n += 2) {
            // Of chunks n and n + 1, n even: swizzled, these are n ^ chunk.
            store_matrices(at ^ n * 16, gradients[n], gradients[n + 1]);
        }
    }

    // Begins its part of dQ: 64 queries by half of the dimensions, over all keys.
    __device__ __forceinline__ void begin_of_queries(uint32_t gradients_tile, uint32_t keys, uint32_t consumer) {
        // The second half is the next part of the tile, or the second half of its rows.
        uint32_t a_at = gradients_tile, b_at = keys + consumer * (Shape::kTileDim == 128 ? Shape::kRows * 128 : 64);
        // As in begin_sum.
        asm volatile("" : "+r"(a_at), "+r"(b_at));
        const uint64_t a = matrix_descriptor(a_at, 16), b = matrix_descriptor(b_at, 16);
#pragma unroll
        for (int step = 0; step < Shape::kRows / 16; ++step) {
            // 16 keys are 16 rows of 128 bytes.
            if (step == 0) {
                wgmma_product_across(of_queries, a, b, T());
            } else {
                wgmma_add_across(of_queries, a + step * 128, b + step * 128, T());
            }
        }
        wgmma_commit();
    }

    // Adds its sums of dK and of dV to a tile of their slab: f32 [consumer][dK, dV][warp][blocks of 8 dimensions][lane][4].
    __device__ __forceinline__ void add_keys(const longrope_attention_backward_sm90_params &h, const GradientItem &item) const {
        constexpr int kEach = 64 * Shape::kDim;
        float *to = h.key_slab + (static_cast<int64_t>(item.key_tile) * 2 + thread() / 128) * (2 * kEach);
        to += thread() % 128 / 32 * (kEach / 4) + lane() * 4;
        const auto add = [&](const float *sum) {
#pragma unroll
            for (int n = 0; n < Shape::kDim / 8; ++n) add_four(to + n * 128, sum[4 * n], sum[4 * n + 1], sum[4 * n + 2], sum[4 * n + 3]);
        };
        add(this->of_logits);
        to += kEach;
        add(this->of_weights);
    }

    // Bytes of this warp's dQ of a tile, and where they begin: the first consumer's warps, then the second's.
    static __device__ __forceinline__ int query_bytes() {
        return 16 * 4 * (Shape::kSecondDims == Shape::kQueryDims || thread() < 128 ? Shape::kQueryDims : Shape::kSecondDims);
    }
    static __device__ __forceinline__ int query_place() {
        const int warp = thread() / 32;
        if constexpr (Shape::kSecondDims == Shape::kQueryDims) return warp * (16 * 4 * Shape::kQueryDims);
        return 16 * 4 * (warp < 4 ? warp * Shape::kQueryDims : 4 * Shape::kQueryDims + (warp - 4) * Shape::kSecondDims);
    }
    // Whether the second consumer has it, of its blocks of dimensions.
    static __device__ __forceinline__ bool is_there(int n) { return 8 * n < Shape::kSecondDims || thread() < 128; }

    // Writes dQ to where a thread adds it from.
    __device__ __forceinline__ void stage_queries(const GradientShared<Shape> &shared) {
        // As in begin_sum.
        uint32_t to = shared.gradients(2);
        asm volatile("" : "+r"(to));
        put_queries(to + query_place());
        fence_for_tensor_cores();
        release(shared.staging_full());
    }

    __device__ __forceinline__ void put_queries(uint32_t to) {
#pragma unroll
        for (int n = 0; n < Shape::kQueryDims / 8; ++n) {
            if (!is_there(n)) break;
            store_four(to + n * 512 + lane() * 16, of_queries[4 * n], of_queries[4 * n + 1], of_queries[4 * n + 2],
                       of_queries[4 * n + 3]);
        }
    }

    // Adds dQ to a tile of the slab. `staging`: shared memory of all warps.
    __device__ __forceinline__ void add_queries(float *slab, int tile, uint32_t staging) {
        // As in begin_sum.
        asm volatile("" : "+r"(tile));
        float *const to = slab + static_cast<int64_t>(tile) * (Shape::kQueryBytes / 4) + query_place() / 4;
        if constexpr (Shape::kBulk) {
            const uint32_t from = staging + query_place();
            // The tile before is long there; but the copy engine may still read it.
            if (lane() == 0) wait_for_bulk_reads();
            __syncwarp();
            put_queries(from);
            fence_for_tensor_cores();
            __syncwarp();
            if (lane() == 0) begin_bulk_add(to, from, query_bytes());
        } else {
#pragma unroll
            for (int n = 0; n < Shape::kQueryDims / 8; ++n) {
                if (!is_there(n)) break;
                add_four(to + n * 128 + lane() * 4, of_queries[4 * n], of_queries[4 * n + 1], of_queries[4 * n + 2],
                         of_queries[4 * n + 3]);
            }
        }
    }
};

// The places of a tile in the rings, and of an item, in one register: it has few.
template <int kFirstStages>
class FastTurn {
    static_assert(kFirstStages == 2 || kFirstStages == 3, "others need another period");
    static_assert(kItemSlots == 2, "slots and parities of items are a bit each");
    static constexpr unsigned kPeriod = kFirstStages == 3 ? 12 : 4;
    unsigned state;  // tiles, up to the period of all that follows; from bit 4 on items; in the last bit which consumer this is

    __device__ __forceinline__ unsigned tiles() const { return state % 16; }

public:
    // The same for all of a warp, which the assembler sees of a shuffle alone: addresses that follow are then found by the warp, not by
    // threads, and products begin one after the other without waiting for them.
    __device__ __forceinline__ explicit FastTurn(unsigned consumer) : state(__shfl_sync(0xffffffff, consumer << 31, 0)) {}

    __device__ __forceinline__ uint32_t consumer() const { return state >> 31; }

    // Of Q.
    __device__ __forceinline__ int query() const { return tiles() % kFirstStages; }
    __device__ __forceinline__ int query_parity() const { return tiles() / kFirstStages % 2; }
    __device__ __forceinline__ int query_before() const {
        return kFirstStages == 2 ? out_before() : query() == 0 ? kFirstStages - 1 : query() - 1;
    }
    // Of dO, and of dS; the latter's is the parity of its barrier too.
    __device__ __forceinline__ int out() const { return state % 2; }
    __device__ __forceinline__ int out_parity() const { return state / 2 % 2; }
    __device__ __forceinline__ int out_before() const { return out() ^ 1; }
    __device__ __forceinline__ void next() { state += tiles() + 1 == kPeriod ? 1 - kPeriod : 1; }

    __device__ __forceinline__ int item() const { return state / 16 % 2; }
    __device__ __forceinline__ int item_parity() const { return state / 32 % 2; }
    __device__ __forceinline__ void next_item() { state += 16; }

    // What follows from it is found anew after this place, and holds no register before.
    __device__ __forceinline__ void find_again() { asm volatile("" : "+r"(state)); }
};

// What a consumer does.
template <class T, class Shape>
struct FastSums {
    using Drawer = std::conditional_t<Shape::kInTurn, Adder, ItemFinder>;

    static __device__ __forceinline__ void run(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                               const GradientItem *items, const float *numbers) {
        static_assert(Shape::kSecondStages == 2, "dO and dS take turns together");
        const longrope_attention_backward_params &b = h.backward;
        FastTurn<Shape::kFirstStages> place(threadIdx.x / 128 - 1);
        FastConsumer<T, Shape> mine;
        const auto my_rows = [&](int which) { return shared.row_tile(which) + place.consumer() * 64 * 128; };
        const auto begin_queries_before = [&] {
            barrier_wait(shared.gradients_full(), place.out_before());
            wgmma_fence();
            mine.begin_of_queries(shared.gradients(place.out_before()), shared.row_tile(0), place.consumer());
        };
        // Of the tile before another.
        const auto add_queries = [&](const GradientItem &item, int tile) {
            hold(mine.of_queries);
            if constexpr (Shape::kInTurn) {
                // The tile before that one has left, unless its turn was long in coming.
                barrier_wait(shared.staging_empty(), place.out_before() ^ 1);
                mine.stage_queries(shared);
            } else {
                mine.add_queries(h.slab, item.slab_tile + item.template before<Shape>(tile), shared.gradients(2));
            }
        };

        for (;; place.next_item()) {
            barrier_wait(shared.item_full(place.item()), place.item_parity());
            const GradientItem &item = items[place.item()];
            if (item.is_last) break;
            mine.reset();
            barrier_wait(shared.rows_full(), place.item());
            if (item.tiles() > 0) {
                // A tile. The first of an item comes after no other.
                const auto step = [&](int tile, auto first) {
                    constexpr bool kFirst = decltype(first)::value;
                    barrier_wait(shared.column_full(0, place.query()), place.query_parity());
                    mine.hold_sum();
                    wgmma_fence();
                    mine.begin_logits(my_rows(0), shared.column_tile(0, place.query()));
                    if (!kFirst) {
                        wgmma_fence();
                        mine.begin_of_logits(shared.column_tile(0, place.query_before()));
                    }
                    // Here, since what is in shared memory takes a while to be read.
                    const bool masked = tile < item.full_first || tile >= item.full_end;
                    wgmma_wait<kFirst ? 0 : 1>();
                    hold(mine.flat(mine.x));
                    if (!kFirst) begin_queries_before();
                    const float c = copysignf(b.attention.scale_log2, b.scale);
                    if (masked) mine.mask(item, tile * Shape::kColumns, c);
                    mine.weigh(numbers + place.query() * Shape::kColumns, c);
                    mine.make_weights_here();
                    if (!kFirst) {
                        wgmma_wait<0>();
                        mine.hold_sum();
                        release(shared.column_empty(0, place.query_before()));
                        add_queries(item, tile);
                    }
                    // Long over but for the first tile; and the assembler adds dQ no later than this branch.
                    barrier_wait(shared.column_full(1, place.out()), place.out_parity());
                    wgmma_fence();
                    mine.begin_d(my_rows(1), shared.column_tile(1, place.out()));
                    mine.round_weights();
                    mine.hold_weighted_sum();
                    wgmma_fence();
                    mine.begin_of_weights(shared.column_tile(1, place.out()));
                    wgmma_wait<1>();
                    hold(mine.flat(mine.d));
                    place.find_again();
                    mine.differentiate(numbers + (Shape::kFirstStages + place.out()) * Shape::kColumns);
                    mine.round_gradients();
                    mine.put_gradients(shared.gradients(place.out()));
                    fence_for_tensor_cores();
                    release(shared.gradients_full());
                    // Before the next tile, or the assembler has no use of the registers of the weights until that has begun.
                    wgmma_wait<0>();
                    mine.hold_weighted_sum();
                    release(shared.column_empty(1, place.out()));
                    place.next();
                };
                int tile = item.start;
                step(tile, Choice<true>());
#pragma unroll 1
                for (int left = item.tiles() - 1; left > 0; --left) {
                    tile = item.template after<Shape>(tile);
                    step(tile, Choice<false>());
                    if (left % Shape::kFoldTiles == 0) {
                        // The first time is that with the most left.
                        mine.fold(h.sums, item.tiles() - left <= Shape::kFoldTiles);
                    }
                }
                tile = item.template after<Shape>(tile);
                mine.hold_sum();
                wgmma_fence();
                mine.begin_of_logits(shared.column_tile(0, place.query_before()));
                begin_queries_before();
                wgmma_wait<0>();
                mine.hold_sum();
                release(shared.column_empty(0, place.query_before()));
                release(shared.rows_empty());
                add_queries(item, tile);
                if (item.tiles() > Shape::kFoldTiles) mine.unfold(h.sums);
                if (h.key_slab) {
                    if (Shape::kInTurn) barrier_wait(shared.keys_turn(), place.item());
                    mine.add_keys(h, item);
                    if (Shape::kInTurn) release(shared.keys_added());
                }
            } else {
                release(shared.rows_empty());
            }
            if (!h.key_slab) mine.store_all(b, item);
            release(shared.item_empty(place.item()));
        }
        if (Shape::kBulk && !Shape::kInTurn && thread_again() % 32 == 0) wait_for_bulk_adds();
    }

    static __device__ __forceinline__ void draw(const longrope_attention_backward_sm90_params &h, const GradientShared<Shape> &shared,
                                                GradientItem *items, Drawer &drawer) {
        if constexpr (Shape::kInTurn) {
            drawer.template run<Shape>(h, shared, items);
        } else {
            draw_gradient_items<Shape>(h, shared, items, drawer);
        }
    }
};

}  // namespace longrope
