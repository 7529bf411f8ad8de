// The end of the backward pass in one kernel (attention_backward_sm90_fast.cuh): makes dQ of what was added to the slab.
//
// A thread reads its numbers of a tile as threads of that kernel held them, all dimensions of two rows, and writes them as the kernels
// do that have dQ in registers. Bound by memory.
#pragma once

#include "attention_backward_sm90_fast.cuh"

namespace longrope {

// Threads as the consumers of the other kernel, without the warps before them.
template <class Shape>
struct SlabShape : Shape {
    static constexpr int kFirstConsumer = 0;
    static constexpr int kThreads = 2 * Shape::kColumns;
};

template <class T, class Shape>
__device__ __forceinline__ void write_queries(const longrope_attention_backward_sm90_params &h) {
    constexpr int kDim = Shape::kDim;
    const longrope_attention_backward_params &b = h.backward;
    const longrope_attention_params &p = b.attention;
    const uint32_t blocks = static_cast<uint32_t>(p.tiles), heads = static_cast<uint32_t>(p.query_heads);
    const int64_t first = blockIdx.x % blocks;
    const uint32_t index = blockIdx.x / blocks;
    const int sequence = static_cast<int>(index / heads);
    AttentionBlock block;
    block.head = static_cast<int>(index % heads);
    block.first_query = 0;
    block.read_sequence(p, sequence);
    if (block.is_bad) return;
    const int slab_tile = first_slab_tile<Shape>(h, block, sequence, block.head);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int64_t tile = first; tile * Shape::kColumns < block.query_length; tile += blocks) {
        const float4 *const from = reinterpret_cast<const float4 *>(h.slab) + (slab_tile + tile) * (Shape::kColumns * kDim / 4);
        float sum[kDim / 2];
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            // Blocks of 8 dimensions, of which a warp there had half of all.
            constexpr int kEach = Shape::kQueryDims / 8;
            const float4 x = from[((n / kEach * 4 + warp) * kEach + n % kEach) * 32 + lane];
            sum[4 * n] = x.x, sum[4 * n + 1] = x.y, sum[4 * n + 2] = x.z, sum[4 * n + 3] = x.w;
        }
        const int64_t rows = min(static_cast<int64_t>(Shape::kColumns), block.query_length - tile * Shape::kColumns);
        const int64_t row = block.query_start + tile * Shape::kColumns;
        const int64_t at = element_at(b.dq_stride, static_cast<int>(block.batch), static_cast<int>(row), block.head);
        GradientConsumer<T, SlabShape<Shape>>::store(sum, b.dq, at, b.dq_stride[1], b.dq_is_f32, b,
                                                     b.scale * exp2f(-kWeightBias<T>), static_cast<int>(rows));
    }
}

}  // namespace longrope

// The kernels for a padded head dimension and a type.
#define LONGROPE_ATTENTION_BACKWARD_FAST(name, T, Shape)                                                                   \
    extern "C" __global__ void __launch_bounds__(Shape::kThreads, 1)                                                       \
        longrope_attention_backward_fast_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::differentiate_on_hopper<T, Shape, longrope::FastSums<T, Shape>>(p);                                      \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(longrope::SlabShape<Shape>::kThreads)                                     \
        longrope_attention_backward_slab_##name(const __grid_constant__ longrope_attention_backward_sm90_params p) {       \
        longrope::write_queries<T, Shape>(p);                                                                              \
    }
