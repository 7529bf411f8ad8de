/* The gradients of the CPU form against finite differences of the CPU form of attention: for each number that goes in, the
 * slope of sum(out * d_out). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "longrope.h"

enum { BATCH = 2, QUERIES = 4, KEYS = 7, HEADS = 4, KEY_HEADS = 2, DIM = 5,
       ROWS = BATCH * QUERIES * HEADS, Q = ROWS * DIM, K = BATCH * KEYS * KEY_HEADS * DIM };

static float q[Q], k[K], v[K], out[Q], lse[ROWS], d_out[Q], dq[Q], dk[K], dv[K];

static longrope_tensor tensor(float *data, int64_t batch, int64_t length, int64_t heads, int64_t dim) {
    const longrope_tensor made = {data, LONGROPE_DTYPE_F32, {batch, length, heads, dim}, {0, 0, 0, 0}};
    return made;
}

/* Between -1 and 1. */
static float number(int i) { return (float)(i * 7919 % 1009) / 504.5f - 1.0f; }

static void attend(const longrope_attention_desc *desc) {
    longrope_attention_tensors tensors;
    tensors.q = tensor(q, BATCH, QUERIES, HEADS, DIM);
    tensors.k = tensor(k, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.v = tensor(v, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.out = tensor(out, BATCH, QUERIES, HEADS, DIM);
    tensors.lse = tensor(lse, BATCH, QUERIES, HEADS, 1);
    CHECK(longrope_attention_cpu(desc, &tensors) == LONGROPE_STATUS_OK);
}

static double loss(const longrope_attention_desc *desc) {
    double sum = 0;
    int i;
    attend(desc);
    for (i = 0; i < Q; ++i) sum += (double)out[i] * d_out[i];
    return sum;
}

/* Steps of 2^-6 are off by 2^-12 times third derivatives of about 1, and by rounding of 2^-24 * 160 terms over 2^-5. */
static void check_slopes(const longrope_attention_desc *desc, float *x, const float *slopes, int count) {
    int i;
    for (i = 0; i < count; ++i) {
        const float before = x[i], step = 1.0f / 64;
        double slope;
        x[i] = before + step;
        slope = loss(desc);
        x[i] = before - step;
        slope = (slope - loss(desc)) / (2.0 * step);
        x[i] = before;
        CHECK(fabs(slope - slopes[i]) <= 2e-3);
    }
}

static void check_case(int causal, int64_t window, int64_t offset, float scale, int with_delta) {
    longrope_attention_desc forward = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_attention_backward_tensors tensors;
    static float delta[ROWS];
    double sum = 0;
    int i;
    memset(&tensors, 0, sizeof tensors);
    forward.causal = desc.causal = causal;
    forward.window = desc.window = window;
    forward.query_offset = desc.query_offset = offset;
    forward.scale = desc.scale = scale;
    attend(&forward);
    tensors.q = tensor(q, BATCH, QUERIES, HEADS, DIM);
    tensors.k = tensor(k, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.v = tensor(v, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.lse = tensor(lse, BATCH, QUERIES, HEADS, 1);
    tensors.d_out = tensor(d_out, BATCH, QUERIES, HEADS, DIM);
    tensors.dq = tensor(dq, BATCH, QUERIES, HEADS, DIM);
    tensors.dk = tensor(dk, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.dv = tensor(dv, BATCH, KEYS, KEY_HEADS, DIM);
    tensors.out = tensor(out, BATCH, QUERIES, HEADS, DIM);
    if (with_delta) {
        tensors.delta = tensor(delta, BATCH, QUERIES, HEADS, 1);
        CHECK(longrope_attention_delta_cpu(&tensors.out, &tensors.d_out, &tensors.delta) == LONGROPE_STATUS_OK);
        memset(&tensors.out, 0, sizeof tensors.out);
    }
    for (i = 0; i < Q; ++i) dq[i] = (float)NAN;
    for (i = 0; i < K; ++i) dk[i] = dv[i] = (float)NAN;
    CHECK(longrope_attention_backward_cpu(&desc, &tensors) == LONGROPE_STATUS_OK);
    check_slopes(&forward, q, dq, Q);
    check_slopes(&forward, k, dk, K);
    check_slopes(&forward, v, dv, K);
    /* Something was differentiated. */
    for (i = 0; i < K; ++i) sum += fabs(dk[i]);
    CHECK(sum > 0.1);
}

int main(void) {
    int i;
    for (i = 0; i < Q; ++i) q[i] = number(i), d_out[i] = number(i + 3 * Q);
    for (i = 0; i < K; ++i) k[i] = number(i + Q), v[i] = number(i + 2 * Q);
    check_case(0, 0, 0, 0.0f, 0);
    check_case(1, 0, KEYS - QUERIES, 0.0f, 1);
    check_case(1, 3, 2, 0.7f, 0);
    check_case(0, 2, 1, -0.5f, 1);
    /* The first queries stand before all keys. */
    check_case(1, 0, -2, 0.0f, 0);
    printf("done\n");
    return 0;
}
