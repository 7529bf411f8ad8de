// Rows of the output of decoding.
#pragma once

#include "decode_schedule.cuh"
#include "elements.cuh"

namespace longrope {

// Writes four elements of the output, from the `at`-th on.
template <class T>
__device__ __forceinline__ void store_output(const longrope_decode_params &p, int64_t at, const float (&x)[4]) {
    if (p.out_is_f32) {
        *reinterpret_cast<float4 *>(static_cast<float *>(p.out) + at) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
        Vector<T, 4> packed;
#pragma unroll
        for (int i = 0; i < 4; ++i) packed.element[i] = narrow<T>(x[i]);
        store_vector<T, 4>(static_cast<T *>(p.out) + at, packed);
    }
}

__device__ __forceinline__ void store_lse(const longrope_decode_params &p, const DecodeItem &item, int row, float lse) {
    if (p.lse) p.lse[item.offset(p, p.lse_stride, row)] = lse;
}

}  // namespace longrope
