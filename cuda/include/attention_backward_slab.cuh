// The end of the backward pass in one kernel (attention_backward_sm90_fast.cuh): makes gradients of what was added to the slabs, and
// rotates those of queries and keys back where these were rotated.
//
// A thread reads its numbers of 64 rows as threads of that kernel held them, all dimensions of two rows, and writes them as the kernels
// do that have them in registers. Bound by memory.
#pragma once

#include "attention_backward_sm90_roles.cuh"

namespace longrope {

// Threads as a consumer of the other kernel, without the warps before them.
template <class Shape>
struct SlabShape : Shape {
    static constexpr int kFirstConsumer = 0;
    static constexpr int kRows = 64, kThreads = 128;
    static_assert(Shape::kColumns == kRows, "rows of either gradient are 64");
};

// What the kernels have in common: a block takes every `blocks`-th 64 rows of a sequence and head.
template <class T, class Shape>
struct SlabRows {
    using Consumer = GradientConsumer<T, SlabShape<Shape>>;
    static constexpr int kDim = Shape::kDim, kRows = SlabShape<Shape>::kRows;

    AttentionBlock block;
    int64_t first;        // of this block, in 64 rows
    int sequence, set;    // the latter of the sequence's factors
    typename Shape::Staged staged;

    // Whether there is something to do. `shared`: Staged::kBytes for each warp.
    __device__ __forceinline__ bool find(const longrope_attention_backward_params &b, uint32_t blocks, uint32_t heads, char *shared) {
        first = blockIdx.x % blocks;
        const uint32_t index = blockIdx.x / blocks;
        sequence = static_cast<int>(index / heads);
        block.head = static_cast<int>(index % heads);
        block.first_query = 0;
        block.read_sequence(b.attention, sequence);
        staged = {reinterpret_cast<float *>(shared + threadIdx.x / 32 * Shape::Staged::kBytes)};
        if (block.is_bad) return false;
        set = gradient_set(b, block, sequence);
        // The other kernels tell only of sequences with keys.
        const bool is_bad = set == kBadSet;
        if (is_bad && block.query_length > 0 && b.attention.status) atomicOr(b.attention.status, LONGROPE_DEVICE_BAD_CHOICE);
        return !is_bad;
    }

    // Writes a gradient without a rotation.
    static __device__ __forceinline__ void write(const float (&sum)[kDim / 2], const GradientOut &out,
                                                 const longrope_attention_backward_params &b, float factor, int64_t rows) {
        Consumer::store(sum, out.first, out.offset, out.row_stride, out.is_f32, b, factor,
                        static_cast<int>(min(static_cast<int64_t>(kRows), rows)));
    }

    // Writes one of queries or keys. `position`: of the first row.
    __device__ __forceinline__ void write_either(const float (&sum)[kDim / 2], const GradientOut &out,
                                                 const longrope_attention_backward_params &b, float factor, int64_t rows,
                                                 int64_t position) const {
        if (!b.rotates) {
            write(sum, out, b, factor, rows);
        } else {
            const int there = static_cast<int>(min(static_cast<int64_t>(kRows), rows));
            Consumer::store_rotated(sum, out, b, factor, set, position, there, staged);
        }
    }
};

template <class T, class Shape>
__device__ __forceinline__ void write_queries(const longrope_attention_backward_sm90_params &h) {
    extern __shared__ __align__(1024) char shared_bytes[];
    constexpr int kDim = Shape::kDim, kRows = Shape::kColumns;
    const longrope_attention_backward_params &b = h.backward;
    const longrope_attention_params &p = b.attention;
    const uint32_t blocks = static_cast<uint32_t>(p.tiles);
    SlabRows<T, Shape> mine;
    if (!mine.find(b, blocks, static_cast<uint32_t>(p.query_heads), shared_bytes)) return;
    const AttentionBlock &block = mine.block;
    const int slab_tile = first_slab_tile<Shape>(h, block, mine.sequence, block.head);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int64_t tile = mine.first; tile * kRows < block.query_length; tile += blocks) {
        const float4 *const from = reinterpret_cast<const float4 *>(h.slab) + (slab_tile + tile) * (kRows * kDim / 4);
        // In turn the first block to add wrote there. Else there were zeros before.
        const bool is_there = !h.turns || h.turns[slab_tile + tile] > 0;
        float sum[kDim / 2];
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            // Blocks of 8 dimensions: those of a warp of the first consumer there, then those of one of the second.
            constexpr int kFirst = Shape::kQueryDims / 8, kSecond = Shape::kSecondDims / 8;
            const int at = n < kFirst ? warp * kFirst + n : 4 * kFirst + warp * kSecond + n - kFirst;
            const float4 x = is_there ? from[at * 32 + lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            sum[4 * n] = x.x, sum[4 * n + 1] = x.y, sum[4 * n + 2] = x.z, sum[4 * n + 3] = x.w;
        }
        const GradientOut out(b.dq, b.dq_stride, block.batch, block.query_start + tile * kRows, block.head, b.dq_is_f32, b.accumulate);
        mine.write_either(sum, out, b, b.scale * exp2f(-kWeightBias<T>), block.query_length - tile * kRows,
                          block.position + tile * kRows);
    }
}

template <class T, class Shape>
__device__ __forceinline__ void write_keys(const longrope_attention_backward_sm90_params &h) {
    extern __shared__ __align__(1024) char shared_bytes[];
    constexpr int kDim = Shape::kDim, kRows = Shape::kColumns, kHalves = Shape::kRows / kRows;
    const longrope_attention_backward_params &b = h.backward;
    const uint32_t blocks = static_cast<uint32_t>(b.key_blocks) * kHalves;
    SlabRows<T, Shape> mine;
    if (!mine.find(b, blocks, static_cast<uint32_t>(b.key_heads / h.sharing), shared_bytes)) return;
    const AttentionBlock &block = mine.block;
    const int64_t slab_tile = static_cast<int64_t>(first_key_tile<Shape>(h, block, mine.sequence, block.head)) * kHalves;
    const float bias = exp2f(-kWeightBias<T>);
    for (int64_t tile = mine.first; tile * kRows < block.key_length; tile += blocks) {
        const float4 *from = reinterpret_cast<const float4 *>(h.key_slab) + (slab_tile + tile) * (2 * kRows * kDim / 4);
        from += threadIdx.x / 32 * (kRows * kDim / 16) + threadIdx.x % 32;
        const int64_t rows = block.key_length - tile * kRows, row = block.key_start + tile * kRows;
        float sum[kDim / 2];
        const auto take = [&] {
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                const float4 x = from[n * 32];
                sum[4 * n] = x.x, sum[4 * n + 1] = x.y, sum[4 * n + 2] = x.z, sum[4 * n + 3] = x.w;
            }
            from += kRows * kDim / 4;
        };
        take();
        const GradientOut keys(b.dk, b.dk_stride, block.batch, row, block.head, b.dk_is_f32, b.accumulate);
        mine.write_either(sum, keys, b, b.scale * bias, rows, key_position(b.attention, tile * kRows));
        take();
        const GradientOut values(b.dv, b.dv_stride, block.batch, row, block.head, b.dv_is_f32, b.accumulate);
        mine.write(sum, values, b, bias, rows);
    }
}

}  // namespace longrope

// What makes gradients of the slabs.
#define LONGROPE_ATTENTION_BACKWARD_SLABS(name, T, Shape)                                                                  \
    extern "C" __global__ void __launch_bounds__(longrope::SlabShape<Shape>::kThreads)                                     \
        longrope_attention_backward_slab_queries_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) { \
        longrope::write_queries<T, Shape>(p);                                                                              \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(longrope::SlabShape<Shape>::kThreads)                                     \
        longrope_attention_backward_slab_keys_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {  \
        longrope::write_keys<T, Shape>(p);                                                                                 \
    }

// The kernels for a padded head dimension and a type.
#define LONGROPE_ATTENTION_BACKWARD_FAST(name, T, Shape, InTurn)                                                           \
    extern "C" __global__ void __launch_bounds__(Shape::kThreads, 1)                                                       \
        longrope_attention_backward_fast_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::differentiate_on_hopper<T, Shape, longrope::FastSums<T, Shape>>(p);                                      \
    }                                                                                                                      \
    extern "C" __global__ void longrope_attention_backward_items_##name(                                                   \
        const __grid_constant__ longrope_attention_backward_sm90_params p) {                                               \
        longrope::list_items<InTurn>(p);                                                                                   \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(InTurn::kThreads, 1)                                                      \
        longrope_attention_backward_turns_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {      \
        longrope::differentiate_on_hopper<T, InTurn, longrope::FastSums<T, InTurn>>(p);                                    \
    }                                                                                                                      \
    LONGROPE_ATTENTION_BACKWARD_SLABS(name, T, Shape)

// Where consumers have roles.
#define LONGROPE_ATTENTION_BACKWARD_ROLES(name, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(longrope::RolesShape::kThreads, 1)                                        \
        longrope_attention_backward_fast_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::differentiate_on_hopper<T, longrope::RolesShape, longrope::RoleSums<T>>(p);                              \
    }                                                                                                                      \
    LONGROPE_ATTENTION_BACKWARD_SLABS(name, T, longrope::RolesShape)
