/* Rotates queries and keys far beyond a model's original context: on the CPU, and on a GPU if there is one.
 *
 *   scripts/install-library --prefix ~/longrope
 *   cmake -S ffi/examples/rotary -B build -DCMAKE_PREFIX_PATH=~/longrope && cmake --build build && build/rotary
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "longrope.h"

#include "../gpu.h"

/* What a model's config.json says, shortened. */
static const char config[] =
    "{\"head_dim\": 8, \"max_position_embeddings\": 131072, \"original_max_position_embeddings\": 4096, "
    "\"rope_theta\": 10000.0, \"rope_scaling\": {\"rope_type\": \"longrope\", "
    "\"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 2, 8, 32]}}";

enum { TOKENS = 3, Q_HEADS = 2, K_HEADS = 1, HEAD_DIM = 8 };
enum { Q_SIZE = TOKENS * Q_HEADS * HEAD_DIM, K_SIZE = TOKENS * K_HEADS * HEAD_DIM };

/* Ends the program if a call failed. */
static void check(longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return;
    fprintf(stderr, "longrope: %s: %s\n", longrope_status_string(status), longrope_last_error_message());
    exit(EXIT_FAILURE);
}

static void print(const char *name, const float *x, int heads) {
    int row, i;
    for (row = 0; row < TOKENS * heads; ++row) {
        printf("%s[%d][%d]:", name, row / heads, row % heads);
        for (i = 0; i < HEAD_DIM; ++i) printf(" %.9g", (double)x[row * HEAD_DIM + i]);
        printf("\n");
    }
}

/* Queries and keys at these addresses, rotated in place. Strides that are all 0 are contiguous. */
static void in_place(longrope_tensor_io tensors[2], void *q, void *k) {
    longrope_tensor queries = {NULL, LONGROPE_DTYPE_F32, {1, TOKENS, Q_HEADS, HEAD_DIM}, {0, 0, 0, 0}};
    longrope_tensor keys = {NULL, LONGROPE_DTYPE_F32, {1, TOKENS, K_HEADS, HEAD_DIM}, {0, 0, 0, 0}};
    memset(tensors, 0, 2 * sizeof *tensors);
    tensors[0].input = queries;
    tensors[0].input.data = q;
    tensors[1].input = keys;
    tensors[1].input.data = k;
}

/* Runs the same rotation on a GPU and returns the largest difference from what the CPU gave. */
static double on_gpu(const longrope_context *context, const longrope_rotary_desc *desc, gpu *g, const float *q,
                     const float *k, const float *q_expected, const float *k_expected) {
    longrope_tensor_io tensors[2];
    float q_out[Q_SIZE], k_out[K_SIZE];
    uint64_t q_device = 0, k_device = 0;
    double worst = 0;
    int i, failed;
    if (g->allocate(&q_device, sizeof q_out) || g->allocate(&k_device, sizeof k_out) ||
        g->to_device(q_device, q, sizeof q_out, g->stream) || g->to_device(k_device, k, sizeof k_out, g->stream)) {
        return INFINITY;
    }
    in_place(tensors, (void *)(uintptr_t)q_device, (void *)(uintptr_t)k_device);
    check(longrope_rotary_run(context, desc, tensors, 2, g->stream));
    failed = g->to_host(q_out, q_device, sizeof q_out, g->stream) ||
             g->to_host(k_out, k_device, sizeof k_out, g->stream) || g->stream_synchronize(g->stream);
    for (i = 0; i < Q_SIZE; ++i) worst = fmax(worst, fabs((double)q_out[i] - (double)q_expected[i]));
    for (i = 0; i < K_SIZE; ++i) worst = fmax(worst, fabs((double)k_out[i] - (double)k_expected[i]));
    g->release(q_device);
    g->release(k_device);
    return failed ? INFINITY : worst;
}

int main(void) {
    longrope_factor_sets *sets = NULL;
    longrope_context *context = NULL;
    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io tensors[2];
    longrope_status status;
    float q[Q_SIZE], k[K_SIZE], q_out[Q_SIZE], k_out[K_SIZE];
    gpu g;
    int i, has_gpu;

    for (i = 0; i < Q_SIZE; ++i) q[i] = (float)(i % 7 - 3) / 4;
    for (i = 0; i < K_SIZE; ++i) k[i] = (float)(i % 5 - 2) / 2;

    /* The angles: once for a model. */
    check(longrope_factor_sets_from_json(config, strlen(config), 0, LONGROPE_ANGLES_EXACT, &sets));

    /* Three tokens at position 100000, at the end of a sequence of 100003: longer than 4096, so the long factors. */
    desc.sets = sets;
    desc.position_offset = 100000;
    desc.choice_length = 100003;

    memcpy(q_out, q, sizeof q);
    memcpy(k_out, k, sizeof k);
    in_place(tensors, q_out, k_out);
    check(longrope_rotary_cpu(&desc, tensors, 2));
    print("q", q_out, Q_HEADS);
    print("k", k_out, K_HEADS);

    /* With the engine's CUDA context current, so that the kernels are loaded into it at once. */
    has_gpu = gpu_open(&g);
    status = longrope_context_create(0, &context);
    if (status != LONGROPE_STATUS_OK) {
        printf("gpu: %s (status %d)\n", longrope_last_error_message(), (int)status);
    } else if (has_gpu) {
        printf("gpu: largest difference from the CPU %.3g\n", on_gpu(context, &desc, &g, q, k, q_out, k_out));
    } else {
        printf("gpu: kernels loaded, but no CUDA context to run them in\n");
    }

    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    return EXIT_SUCCESS;
}
