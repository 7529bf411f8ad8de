// Elements in memory: f32, bf16 and f16, one at a time or as 16-byte vectors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace longrope {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
    return __float2half_rn(x);
}

// What the angles of elements are computed in: the bounds of 16-bit results are wide enough for f32.
template <class T>
struct Angle {
    using Real = float;
};
template <>
struct Angle<float> {
    using Real = double;
};

// `N` consecutive elements, moved in one access where they fill 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T element[N];
};

template <class T, int N>
__device__ __forceinline__ Vector<T, N> load_vector(const T *at) {
    return *reinterpret_cast<const Vector<T, N> *>(at);
}

template <class T, int N>
__device__ __forceinline__ void store_vector(T *at, const Vector<T, N> &x) {
    *reinterpret_cast<Vector<T, N> *>(at) = x;
}

// The same of what will not be read again soon, so that it need not stay in the caches.
template <class T, int N>
__device__ __forceinline__ void store_vector_streaming(T *at, const Vector<T, N> &x) {
    static_assert(sizeof(x) == 16);
    __stcs(reinterpret_cast<int4 *>(at), reinterpret_cast<const int4 &>(x));
}

}  // namespace longrope
