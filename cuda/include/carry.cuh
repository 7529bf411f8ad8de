// How a row of attention is merged with an earlier result over other keys: the rule of merge.cuh, for two parts.
#pragma once

#include "params.h"

namespace longrope {

struct CarriedRow {
    float own, earlier;  // weights of this result's output and of the earlier one's; of one that saw no key 0
    float lse;           // of both

    // `lse`: this result's. Row `query` of the tensor.
    __device__ __forceinline__ CarriedRow(const longrope_attention_params &p, int64_t batch, int64_t query, int head, float own_lse) {
        const float earlier_lse = p.carry_lse[batch * p.carry_lse_stride[0] + query * p.carry_lse_stride[1] + head * p.carry_lse_stride[2]];
        const float largest = fmaxf(own_lse, earlier_lse);
        own = own_lse == -INFINITY ? 0.0f : expf(own_lse - largest);
        earlier = earlier_lse == -INFINITY ? 0.0f : expf(earlier_lse - largest);
        const float sum = own + earlier;
        lse = sum == 0.0f ? -INFINITY : largest + logf(sum);
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        own *= inverse;
        earlier *= inverse;
    }

    // Where the earlier output's row begins.
    static __device__ __forceinline__ const float *out(const longrope_attention_params &p, int64_t batch, int64_t query, int head) {
        return p.carry + batch * p.carry_stride[0] + query * p.carry_stride[1] + head * p.carry_stride[2];
    }
};

}  // namespace longrope
