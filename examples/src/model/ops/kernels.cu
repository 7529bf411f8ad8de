// What a Llama needs beside matrix products, rotary embedding and attention: each in one pass over memory, in f32, rounded
// once. NVRTC compiles this text when a model first runs on a GPU, so it includes nothing.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Bf16 {
    static __device__ float widen(u16 x) { return __uint_as_float(u32(x) << 16); }
    static __device__ u16 narrow(float x) {
        u16 y;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};

struct F16 {
    static __device__ float widen(u16 x) {
        float y;
        asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
        return y;
    }
    static __device__ u16 narrow(float x) {
        u16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
        return y;
    }
};

// Elements of an access: 8, in 16 bytes, where widths and addresses allow, else 1.
template <int kLanes>
struct Lanes;

template <>
struct alignas(16) Lanes<8> {
    u16 at[8];
};

template <>
struct Lanes<1> {
    u16 at[1];
};

template <int kLanes>
__device__ Lanes<kLanes> load(const u16* from) {
    return *reinterpret_cast<const Lanes<kLanes>*>(from);
}

template <int kLanes>
__device__ void store(u16* to, Lanes<kLanes> lanes) {
    *reinterpret_cast<Lanes<kLanes>*>(to) = lanes;
}

__device__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// silu(gate) * up. packed [rows, 2 * inner] is [gate, up]; out [rows, inner]. A block a row.
template <typename T, int kLanes>
__device__ void gated_silu(const u16* packed, u16* out, u32 inner) {
    const u16* gate = packed + u64(blockIdx.x) * 2 * inner;
    const u16* up = gate + inner;
    out += u64(blockIdx.x) * inner;
    for (u32 i = threadIdx.x * kLanes; i < inner; i += blockDim.x * kLanes) {
        const Lanes<kLanes> g = load<kLanes>(gate + i), u = load<kLanes>(up + i);
        Lanes<kLanes> y;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float x = T::widen(g.at[lane]);
            y.at[lane] = T::narrow(x / (1.0f + expf(-x)) * T::widen(u.at[lane]));
        }
        store<kLanes>(out + i, y);
    }
}

// sum = x + y and normed = sum / sqrt(mean(sum^2) + epsilon) * weight, all [rows, width], weight [width]. The norm is that of
// the rounded sum. A warp a row, and as many warps a block as there are.
template <typename T, int kLanes>
__device__ void add_norm(const u16* x, const u16* y, const u16* weight, u16* sum, u16* normed, u64 rows, u32 width,
                         float epsilon) {
    const u64 row = u64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;  // the whole warp
    const u32 first = threadIdx.x % 32 * kLanes;
    x += row * width, y += row * width, sum += row * width, normed += row * width;
    float squares = 0.0f;
    for (u32 i = first; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> a = load<kLanes>(x + i), b = load<kLanes>(y + i);
        Lanes<kLanes> s;
        for (int lane = 0; lane < kLanes; ++lane) {
            s.at[lane] = T::narrow(T::widen(a.at[lane]) + T::widen(b.at[lane]));
            const float rounded = T::widen(s.at[lane]);
            squares += rounded * rounded;
        }
        store<kLanes>(sum + i, s);
    }
    const float scale = rsqrtf(warp_sum(squares) / float(width) + epsilon);
    // Each thread reads what it wrote itself, from the cache.
    for (u32 i = first; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> s = load<kLanes>(sum + i), w = load<kLanes>(weight + i);
        Lanes<kLanes> n;
        for (int lane = 0; lane < kLanes; ++lane) {
            n.at[lane] = T::narrow(T::widen(s.at[lane]) * scale * T::widen(w.at[lane]));
        }
        store<kLanes>(normed + i, n);
    }
}

// silu(gate) * up, all [rows, inner]. A block a row.
template <typename T, int kLanes>
__device__ void silu_product(const u16* gate, const u16* up, u16* out, u32 inner) {
    gate += u64(blockIdx.x) * inner, up += u64(blockIdx.x) * inner, out += u64(blockIdx.x) * inner;
    for (u32 i = threadIdx.x * kLanes; i < inner; i += blockDim.x * kLanes) {
        const Lanes<kLanes> g = load<kLanes>(gate + i), u = load<kLanes>(up + i);
        Lanes<kLanes> y;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float x = T::widen(g.at[lane]);
            y.at[lane] = T::narrow(x / (1.0f + expf(-x)) * T::widen(u.at[lane]));
        }
        store<kLanes>(out + i, y);
    }
}

// Its gradients by gate and by up, from that of the product.
template <typename T, int kLanes>
__device__ void silu_product_gradient(const u16* gate, const u16* up, const u16* d_out, u16* d_gate, u16* d_up, u32 inner) {
    const u64 row = u64(blockIdx.x) * inner;
    gate += row, up += row, d_out += row, d_gate += row, d_up += row;
    for (u32 i = threadIdx.x * kLanes; i < inner; i += blockDim.x * kLanes) {
        const Lanes<kLanes> g = load<kLanes>(gate + i), u = load<kLanes>(up + i), d = load<kLanes>(d_out + i);
        Lanes<kLanes> by_gate, by_up;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float x = T::widen(g.at[lane]), gradient = T::widen(d.at[lane]), sigmoid = 1.0f / (1.0f + expf(-x));
            by_gate.at[lane] = T::narrow(gradient * T::widen(u.at[lane]) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
            by_up.at[lane] = T::narrow(gradient * x * sigmoid);
        }
        store<kLanes>(d_gate + i, by_gate);
        store<kLanes>(d_up + i, by_up);
    }
}

// 1 / sqrt(mean(x^2) + epsilon) of a row, by a warp.
template <typename T, int kLanes>
__device__ float row_scale(const u16* x, u32 width, float epsilon) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x % 32 * kLanes; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> a = load<kLanes>(x + i);
        for (int lane = 0; lane < kLanes; ++lane) squares += T::widen(a.at[lane]) * T::widen(a.at[lane]);
    }
    return rsqrtf(warp_sum(squares) / float(width) + epsilon);
}

// x / sqrt(mean(x^2) + epsilon) * weight: x [rows, width], weight [width]. A warp a row.
template <typename T, int kLanes>
__device__ void rms_norm(const u16* x, const u16* weight, u16* out, u64 rows, u32 width, float epsilon) {
    const u64 row = u64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;  // the whole warp
    x += row * width, out += row * width;
    const float scale = row_scale<T, kLanes>(x, width, epsilon);
    for (u32 i = threadIdx.x % 32 * kLanes; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> a = load<kLanes>(x + i), w = load<kLanes>(weight + i);
        Lanes<kLanes> y;
        for (int lane = 0; lane < kLanes; ++lane) y.at[lane] = T::narrow(T::widen(a.at[lane]) * scale * T::widen(w.at[lane]));
        store<kLanes>(out + i, y);
    }
}

// Its gradient by x: with n = x * scale and g = d_out * weight, (g - n * mean(g n)) * scale.
template <typename T, int kLanes>
__device__ void rms_norm_gradient(const u16* x, const u16* weight, const u16* d_out, u16* d_x, u64 rows, u32 width, float epsilon) {
    const u64 row = u64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;  // the whole warp
    x += row * width, d_out += row * width, d_x += row * width;
    const float scale = row_scale<T, kLanes>(x, width, epsilon);
    const u32 first = threadIdx.x % 32 * kLanes;
    float along = 0.0f;
    for (u32 i = first; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> a = load<kLanes>(x + i), w = load<kLanes>(weight + i), d = load<kLanes>(d_out + i);
        for (int lane = 0; lane < kLanes; ++lane) along += T::widen(d.at[lane]) * T::widen(w.at[lane]) * T::widen(a.at[lane]);
    }
    const float mean = warp_sum(along) * scale / float(width);
    for (u32 i = first; i < width; i += 32 * kLanes) {
        const Lanes<kLanes> a = load<kLanes>(x + i), w = load<kLanes>(weight + i), d = load<kLanes>(d_out + i);
        Lanes<kLanes> y;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float g = T::widen(d.at[lane]) * T::widen(w.at[lane]);
            y.at[lane] = T::narrow((g - T::widen(a.at[lane]) * scale * mean) * scale);
        }
        store<kLanes>(d_x + i, y);
    }
}

// Its gradient by the weight, of 64 rows a block: parts [blocks, width] in f32, to be summed.
template <typename T, int kLanes>
__device__ void rms_norm_weight_gradient(const u16* x, const u16* d_out, float* parts, u64 rows, u32 width, float epsilon) {
    __shared__ float scales[64];
    const u64 first = u64(blockIdx.x) * 64;
    const u32 count = u32(rows - first < 64 ? rows - first : 64);
    x += first * width, d_out += first * width, parts += u64(blockIdx.x) * width;
    for (u32 row = threadIdx.x / 32; row < count; row += blockDim.x / 32) {
        const float scale = row_scale<T, kLanes>(x + u64(row) * width, width, epsilon);
        if (threadIdx.x % 32 == 0) scales[row] = scale;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 row = 0; row < count; ++row) {
            sum += T::widen(d_out[u64(row) * width + i]) * T::widen(x[u64(row) * width + i]) * scales[row];
        }
        parts[i] = sum;
    }
}

// The sum of exp(x - largest), and the largest x: what a log-sum-exp is of, mergeable.
struct Exponentials {
    float largest, sum;

    __device__ void merge(float other_largest, float other_sum) {
        const float larger = fmaxf(largest, other_largest);
        // Nothing on one side: its largest is minus infinity, of which the other side's difference would be NaN.
        if (other_sum != 0.0f) {
            const float before = sum != 0.0f ? sum * expf(largest - larger) : 0.0f;
            sum = before + other_sum * expf(other_largest - larger);
            largest = larger;
        }
    }
};

// The exponentials of a row of logits, by a block of 256 threads; of its first thread alone.
template <typename T, int kLanes>
__device__ Exponentials row_exponentials(const u16* logits, u32 width) {
    __shared__ Exponentials of_warp[8];
    Exponentials all = {__int_as_float(0xff800000), 0.0f};
    for (u32 i = threadIdx.x * kLanes; i < width; i += blockDim.x * kLanes) {
        const Lanes<kLanes> l = load<kLanes>(logits + i);
        float x[kLanes], largest = T::widen(l.at[0]);
        for (int lane = 0; lane < kLanes; ++lane) {
            x[lane] = T::widen(l.at[lane]);
            largest = fmaxf(largest, x[lane]);
        }
        float sum = 0.0f;
        for (int lane = 0; lane < kLanes; ++lane) sum += expf(x[lane] - largest);
        // Minus infinity weighs nothing, but differs from itself by NaN.
        all.merge(largest, largest == __int_as_float(0xff800000) ? 0.0f : sum);
    }
    for (int step = 16; step > 0; step /= 2) {
        const float largest = __shfl_xor_sync(~0u, all.largest, step), sum = __shfl_xor_sync(~0u, all.sum, step);
        all.merge(largest, sum);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = all;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 warp = 1; warp < blockDim.x / 32; ++warp) all.merge(of_warp[warp].largest, of_warp[warp].sum);
    }
    return all;
}

// losses[row] = log(sum(exp(logits[row]))) - logits[row][targets[row]]. logits [rows, width]. A block of 256 threads a row.
template <typename T, int kLanes>
__device__ void cross_entropy(const u16* logits, const u32* targets, double* losses, u32 width) {
    logits += u64(blockIdx.x) * width;
    const Exponentials all = row_exponentials<T, kLanes>(logits, width);
    if (threadIdx.x == 0) {
        const u32 target = targets[blockIdx.x];
        const double whole = double(all.largest) + log(double(all.sum));
        losses[blockIdx.x] = target < width ? whole - double(T::widen(logits[target])) : nan("");
    }
}

// Its gradient by the logits, times counted[row]: the softmax, less one at the target.
template <typename T, int kLanes>
__device__ void cross_entropy_gradient(const u16* logits, const u32* targets, const float* counted, u16* d_logits, u32 width) {
    __shared__ float of_all[2];
    logits += u64(blockIdx.x) * width, d_logits += u64(blockIdx.x) * width;
    const Exponentials all = row_exponentials<T, kLanes>(logits, width);
    const float factor = counted[blockIdx.x];
    if (threadIdx.x == 0) of_all[0] = all.largest, of_all[1] = factor / all.sum;
    __syncthreads();
    const float largest = of_all[0], scale = of_all[1];
    const u32 target = targets[blockIdx.x];
    // From the cache.
    for (u32 i = threadIdx.x * kLanes; i < width; i += blockDim.x * kLanes) {
        const Lanes<kLanes> l = load<kLanes>(logits + i);
        Lanes<kLanes> y;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float weight = expf(T::widen(l.at[lane]) - largest) * scale;
            y.at[lane] = T::narrow(i + lane == target ? weight - factor : weight);
        }
        store<kLanes>(d_logits + i, y);
    }
}

#define INSTANCES(TYPE, LANES, SUFFIX)                                                                                 \
    extern "C" __global__ void gated_silu_##SUFFIX(const u16* packed, u16* out, u32 inner) {                           \
        gated_silu<TYPE, LANES>(packed, out, inner);                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void add_norm_##SUFFIX(const u16* x, const u16* y, const u16* weight, u16* sum, u16* normed, \
                                                 u64 rows, u32 width, float epsilon) {                                 \
        add_norm<TYPE, LANES>(x, y, weight, sum, normed, rows, width, epsilon);                                        \
    }                                                                                                                  \
    extern "C" __global__ void cross_entropy_##SUFFIX(const u16* logits, const u32* targets, double* losses,           \
                                                      u32 width) {                                                     \
        cross_entropy<TYPE, LANES>(logits, targets, losses, width);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void cross_entropy_gradient_##SUFFIX(const u16* logits, const u32* targets,                  \
                                                               const float* counted, u16* d_logits, u32 width) {       \
        cross_entropy_gradient<TYPE, LANES>(logits, targets, counted, d_logits, width);                                \
    }                                                                                                                  \
    extern "C" __global__ void silu_product_##SUFFIX(const u16* gate, const u16* up, u16* out, u32 inner) {            \
        silu_product<TYPE, LANES>(gate, up, out, inner);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void silu_product_gradient_##SUFFIX(const u16* gate, const u16* up, const u16* d_out,        \
                                                              u16* d_gate, u16* d_up, u32 inner) {                     \
        silu_product_gradient<TYPE, LANES>(gate, up, d_out, d_gate, d_up, inner);                                      \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_##SUFFIX(const u16* x, const u16* weight, u16* out, u64 rows, u32 width,       \
                                                 float epsilon) {                                                      \
        rms_norm<TYPE, LANES>(x, weight, out, rows, width, epsilon);                                                   \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_gradient_##SUFFIX(const u16* x, const u16* weight, const u16* d_out, u16* d_x, \
                                                          u64 rows, u32 width, float epsilon) {                        \
        rms_norm_gradient<TYPE, LANES>(x, weight, d_out, d_x, rows, width, epsilon);                                   \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_weight_gradient_##SUFFIX(const u16* x, const u16* d_out, float* parts,         \
                                                                 u64 rows, u32 width, float epsilon) {                 \
        rms_norm_weight_gradient<TYPE, LANES>(x, d_out, parts, rows, width, epsilon);                                  \
    }

INSTANCES(Bf16, 8, bf16_8)
INSTANCES(Bf16, 1, bf16_1)
INSTANCES(F16, 8, f16_8)
INSTANCES(F16, 1, f16_1)
