// A block of Hopper's kernels of attention's backward pass: its shared memory, its barriers, and what its warps do.
#pragma once

#include "attention_backward_sm90_load.cuh"

namespace longrope {

// Where things lie in shared memory, and the barriers of what is filled and emptied in turn. `which`: 0 of logits, 1 of dP.
//
//   barrier         arrivals of a phase                              who waits
//   column_full     its loader (with its bytes), the numbers' warp   consumers
//   column_empty    warps of consumers, when they have read the      its loader, the numbers' warp
//                   numbers, and the last product has ended
//   rows_full       loaders (with their bytes), for every item       consumers
//   rows_empty      warps of consumers, when all x and d of an item  loaders
//                   are there
//   item_full       the thread that draws                            all
//   item_empty      warps of consumers, loaders, numbers' warp       the thread that draws
//   cleared         its loader (with its bytes)                      its loader
//   gradients_full  warps of consumers, when theirs of the logits    consumers
//                   are in shared memory, where dQ is made too
//   staging_full    warps of consumers, when their dQ is there      the thread that adds
//   staging_empty   the thread that adds                            consumers
//   keys_turn       the thread that adds, for every item, when it   consumers
//                   is their turn to add dK and dV
//   keys_added      warps of consumers, when they have              the thread that adds
//
// Who waits for a phase has waited for all before it, so that none is taken for another of its parity.
template <class Shape>
struct GradientShared {
    uint32_t tiles, barriers;

    static constexpr int kStages = Shape::kFirstStages + Shape::kSecondStages;  // of both rings
    static constexpr int kBarriers = 2 * kStages + 2 * kItemSlots + 9;

    __device__ __forceinline__ GradientShared(const char *dynamic, const uint64_t *barrier_words) {
        tiles = (shared_address(dynamic) + 1023) / 1024 * 1024;
        barriers = shared_address(barrier_words);
    }

    __device__ __forceinline__ uint32_t row_tile(int which) const { return tiles + which * Shape::kRowBytes; }
    __device__ __forceinline__ uint32_t column_tile(int which, int slot) const {
        return tiles + 2 * Shape::kRowBytes + (which * Shape::kFirstStages + slot) * Shape::kTileBytes;
    }
    // Where a warp that computes stages gradients; there only where they are rotated.
    __device__ __forceinline__ typename Shape::Staged staged(int warp) const {
        const uint32_t at = tiles + Shape::kSharedBytes - 1024 + warp * Shape::Staged::kBytes;
        return {static_cast<float *>(__cvta_shared_to_generic(at))};
    }
    // What follows the tiles; see the kernel that makes all gradients.
    __device__ __forceinline__ uint32_t gradients(int slot) const {
        return tiles + 2 * Shape::kRowBytes + kStages * Shape::kTileBytes + slot * (Shape::kRows * Shape::kColumns * 2);
    }

    __device__ __forceinline__ uint32_t barrier(int number) const { return barriers + 8 * number; }
    __device__ __forceinline__ uint32_t column_full(int which, int slot) const { return barrier(which * Shape::kFirstStages + slot); }
    __device__ __forceinline__ uint32_t column_empty(int which, int slot) const {
        return barrier(kStages + which * Shape::kFirstStages + slot);
    }
    __device__ __forceinline__ uint32_t item_full(int slot) const { return barrier(2 * kStages + slot); }
    __device__ __forceinline__ uint32_t item_empty(int slot) const { return barrier(2 * kStages + kItemSlots + slot); }
    __device__ __forceinline__ uint32_t rows_full() const { return barrier(kBarriers - 9); }
    __device__ __forceinline__ uint32_t rows_empty() const { return barrier(kBarriers - 8); }
    __device__ __forceinline__ uint32_t cleared(int which) const { return barrier(kBarriers - 7 + which); }
    __device__ __forceinline__ uint32_t gradients_full() const { return barrier(kBarriers - 5); }
    __device__ __forceinline__ uint32_t staging_full() const { return barrier(kBarriers - 4); }
    __device__ __forceinline__ uint32_t staging_empty() const { return barrier(kBarriers - 3); }
    __device__ __forceinline__ uint32_t keys_turn() const { return barrier(kBarriers - 2); }
    __device__ __forceinline__ uint32_t keys_added() const { return barrier(kBarriers - 1); }

    // By one thread.
    __device__ __forceinline__ void set_up() const {
        for (int which = 0; which < 2; ++which) {
            for (int slot = 0; slot < (which == 0 ? Shape::kFirstStages : Shape::kSecondStages); ++slot) {
                barrier_init(column_full(which, slot), Shape::kOfKeys ? 2 : 1);
                barrier_init(column_empty(which, slot), 4 * Shape::kConsumers);
            }
        }
        for (int slot = 0; slot < kItemSlots; ++slot) {
            barrier_init(item_full(slot), 1);
            barrier_init(item_empty(slot), 4 * Shape::kConsumers + (Shape::kOfKeys ? 3 : 2));
        }
        barrier_init(rows_full(), 2);
        barrier_init(rows_empty(), 4 * Shape::kConsumers);
        barrier_init(cleared(0), 1);
        barrier_init(cleared(1), 1);
        barrier_init(gradients_full(), Shape::kGradientWarps);
        barrier_init(staging_full(), Shape::kStagingWarps);
        barrier_init(staging_empty(), 1);
        barrier_init(keys_turn(), 1);
        barrier_init(keys_added(), 4 * Shape::kConsumers);
        barrier_init_done();
    }
};

// A choice that is known when code is compiled.
template <bool kValue>
struct Choice {
    static constexpr bool value = kValue;
};

// Arrives at a barrier for a warp, when all of it are here.
__device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (thread_again() % 32 == 0) barrier_arrive(barrier);
}

// What a block does. `Consumer::run`: what its consumers do; `draw`: the thread that draws.
template <class T, class Shape, class Consumer>
__device__ __forceinline__ void differentiate_on_hopper(const longrope_attention_backward_sm90_params &h) {
    extern __shared__ __align__(1024) char shared_bytes[];
    __shared__ GradientItem items[kItemSlots];
    __shared__ typename Consumer::Drawer drawer;
    __shared__ int cleared[2];  // parities of the barriers for tiles that are cleared in part
    __shared__ __align__(8) uint64_t barriers[GradientShared<Shape>::kBarriers];
    __shared__ __align__(8) float numbers[Shape::kOfKeys ? (Shape::kFirstStages + Shape::kSecondStages) * Shape::kColumns : 2];
    const GradientShared<Shape> shared(shared_bytes, barriers);
    const int thread = threadIdx.x;
    if (thread == 0) {
        shared.set_up();
        cleared[0] = cleared[1] = 0;
    }
    __syncthreads();
    if (thread < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kLoaderRegisters));
        if (thread < 32) {
            load_gradient_items<Shape, 0>(h, shared, items, cleared[0]);
        } else if (thread == 32) {
            Consumer::draw(h, shared, items, drawer);
        } else if (thread >= 96) {
            load_gradient_items<Shape, 1>(h, shared, items, cleared[1]);
        } else if (Shape::kOfKeys && thread >= 64) {
            load_column_numbers<T, Shape>(h, shared, items, numbers);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kConsumerRegisters));
        Consumer::run(h, shared, items, numbers);
    }
}

}  // namespace longrope
