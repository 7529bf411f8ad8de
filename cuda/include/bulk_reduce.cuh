// Additions to device memory from shared memory that run by themselves (sm_90).
#pragma once

#include <stdint.h>

namespace longrope {

// Begins to add so many bytes of f32, a multiple of 16, in any order. By one thread, which then may wait for it.
__device__ __forceinline__ void begin_bulk_add(float *to, uint32_t from, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Begins to write them, in the place of what is there.
__device__ __forceinline__ void begin_bulk_store(float *to, uint32_t from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all that this thread began has read its shared memory.
__device__ __forceinline__ void wait_for_bulk_reads() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Waits until all of it has been added or written.
__device__ __forceinline__ void wait_for_bulk_adds() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Writes four f32 to shared memory, and adds four to device memory.
__device__ __forceinline__ void store_four(uint32_t to, float x, float y, float z, float w) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}
__device__ __forceinline__ void add_four(float *to, float x, float y, float z, float w) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}

}  // namespace longrope
