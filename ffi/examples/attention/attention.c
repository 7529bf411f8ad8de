/* One chunk of a prefill far beyond a model's original context: queries and keys are rotated, then the queries attend to
 * the keys before them. On the CPU in f32, and on a GPU in bf16 if there is one.
 *
 *   scripts/install-library --prefix ~/longrope
 *   cmake -S ffi/examples/attention -B build -DCMAKE_PREFIX_PATH=~/longrope && cmake --build build && build/attention
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

/* The chunk is the last 3 tokens of 100003. The cache holds the last 8 keys: an engine would hold all. */
enum { LENGTH = 100003, QUERIES = 3, KEYS = 8, Q_HEADS = 2, K_HEADS = 1, HEAD_DIM = 8 };
enum { Q_SIZE = QUERIES * Q_HEADS * HEAD_DIM, K_SIZE = KEYS * K_HEADS * HEAD_DIM, ROWS = QUERIES * Q_HEADS };

/* What an attention gives: [QUERIES, Q_HEADS, HEAD_DIM] and [QUERIES, Q_HEADS]. */
typedef struct result {
    float out[Q_SIZE];
    float lse[ROWS];
} result;

/* Ends the program if a call failed. */
static void check(longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return;
    fprintf(stderr, "longrope: %s: %s\n", longrope_status_string(status), longrope_last_error_message());
    exit(EXIT_FAILURE);
}

static longrope_tensor tensor(void *data, int32_t dtype, int64_t tokens, int64_t heads, int64_t head_dim) {
    /* Strides that are all 0 are contiguous. */
    longrope_tensor t = {NULL, 0, {1, 0, 0, 0}, {0, 0, 0, 0}};
    t.data = data;
    t.dtype = dtype;
    t.shape[1] = tokens;
    t.shape[2] = heads;
    t.shape[3] = head_dim;
    return t;
}

/* A rotation of tokens that end where the sequence does. */
static longrope_rotary_desc rotation(const longrope_factor_sets *sets, int64_t tokens) {
    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    desc.sets = sets;
    desc.position_offset = LENGTH - tokens;
    desc.choice_length = LENGTH; /* longer than 4096, so the long factors */
    return desc;
}

static longrope_tensor_io in_place(longrope_tensor t) {
    longrope_tensor_io io;
    memset(&io, 0, sizeof io);
    io.input = t;
    return io;
}

/* The mask goes by positions in the sequence, whichever part of the keys there is. */
static longrope_attention_desc chunk(void) {
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    desc.causal = 1;
    desc.query_offset = LENGTH - QUERIES;
    desc.key_offset = LENGTH - KEYS;
    return desc;
}

static void on_cpu(const longrope_factor_sets *sets, const float *q, const float *k, const float *v, result *r) {
    float q_copy[Q_SIZE], k_copy[K_SIZE], v_copy[K_SIZE];
    const longrope_rotary_desc rotate_q = rotation(sets, QUERIES), rotate_k = rotation(sets, KEYS);
    const longrope_attention_desc desc = chunk();
    longrope_attention_tensors tensors;
    longrope_tensor_io io;
    memcpy(q_copy, q, sizeof q_copy);
    memcpy(k_copy, k, sizeof k_copy);
    memcpy(v_copy, v, sizeof v_copy);
    tensors.q = tensor(q_copy, LONGROPE_DTYPE_F32, QUERIES, Q_HEADS, HEAD_DIM);
    tensors.k = tensor(k_copy, LONGROPE_DTYPE_F32, KEYS, K_HEADS, HEAD_DIM);
    tensors.v = tensor(v_copy, LONGROPE_DTYPE_F32, KEYS, K_HEADS, HEAD_DIM);
    tensors.out = tensor(r->out, LONGROPE_DTYPE_F32, QUERIES, Q_HEADS, HEAD_DIM);
    tensors.lse = tensor(r->lse, LONGROPE_DTYPE_F32, QUERIES, Q_HEADS, 1);
    io = in_place(tensors.q);
    check(longrope_rotary_cpu(&rotate_q, &io, 1));
    io = in_place(tensors.k);
    check(longrope_rotary_cpu(&rotate_k, &io, 1));
    check(longrope_attention_cpu(&desc, &tensors));
}

/* Device memory with the values of an array as bf16, which is the upper half of an f32; those here lose nothing. */
static void *bf16_on_device(gpu *g, const float *x, int count) {
    uint16_t halves[64];
    uint32_t bits;
    uint64_t address = 0;
    int i;
    for (i = 0; i < count; ++i) {
        memcpy(&bits, &x[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
    }
    if (g->allocate(&address, sizeof halves) || g->to_device(address, halves, (size_t)count * 2, g->stream) ||
        g->stream_synchronize(g->stream)) {
        return NULL;
    }
    return (void *)(uintptr_t)address;
}

static void *on_device(gpu *g, size_t bytes) {
    uint64_t address = 0;
    return g->allocate(&address, bytes) ? NULL : (void *)(uintptr_t)address;
}

/* The same on a GPU: three launches on one stream, then one wait. 0 if its memory can't be had. */
static int on_gpu(const longrope_context *context, gpu *g, const longrope_factor_sets *sets, const float *q,
                  const float *k, const float *v, result *r) {
    const longrope_rotary_desc rotate_q = rotation(sets, QUERIES), rotate_k = rotation(sets, KEYS);
    const longrope_attention_desc desc = chunk();
    longrope_attention_tensors tensors;
    longrope_tensor_io io;
    void *memory[6] = {NULL};
    size_t workspace = 0;
    int i, is_right;
    memory[0] = bf16_on_device(g, q, Q_SIZE);
    memory[1] = bf16_on_device(g, k, K_SIZE);
    memory[2] = bf16_on_device(g, v, K_SIZE);
    memory[3] = on_device(g, sizeof r->out);
    memory[4] = on_device(g, sizeof r->lse);
    is_right = memory[0] && memory[1] && memory[2] && memory[3] && memory[4];
    if (is_right) {
        tensors.q = tensor(memory[0], LONGROPE_DTYPE_BF16, QUERIES, Q_HEADS, HEAD_DIM);
        tensors.k = tensor(memory[1], LONGROPE_DTYPE_BF16, KEYS, K_HEADS, HEAD_DIM);
        tensors.v = tensor(memory[2], LONGROPE_DTYPE_BF16, KEYS, K_HEADS, HEAD_DIM);
        tensors.out = tensor(memory[3], LONGROPE_DTYPE_F32, QUERIES, Q_HEADS, HEAD_DIM);
        tensors.lse = tensor(memory[4], LONGROPE_DTYPE_F32, QUERIES, Q_HEADS, 1);
        check(longrope_attention_workspace_size(&desc, &tensors, &workspace));
        if (workspace > 0) is_right = (memory[5] = on_device(g, workspace)) != NULL;
    }
    if (is_right) {
        io = in_place(tensors.q);
        check(longrope_rotary_run(context, &rotate_q, &io, 1, g->stream));
        io = in_place(tensors.k);
        check(longrope_rotary_run(context, &rotate_k, &io, 1, g->stream));
        check(longrope_attention_run(context, &desc, &tensors, memory[5], workspace, g->stream));
        is_right = g->to_host(r->out, (uintptr_t)memory[3], sizeof r->out, g->stream) == 0 &&
                   g->to_host(r->lse, (uintptr_t)memory[4], sizeof r->lse, g->stream) == 0 &&
                   g->stream_synchronize(g->stream) == 0;
    }
    for (i = 0; i < 6; ++i) {
        if (memory[i]) g->release((uintptr_t)memory[i]);
    }
    return is_right;
}

static void print(const result *r) {
    int row, i;
    for (row = 0; row < ROWS; ++row) {
        printf("out[%d][%d]:", row / Q_HEADS, row % Q_HEADS);
        for (i = 0; i < HEAD_DIM; ++i) printf(" %.9g", (double)r->out[row * HEAD_DIM + i]);
        printf(" lse: %.9g\n", (double)r->lse[row]);
    }
}

static double difference(const result *a, const result *b) {
    double worst = 0;
    int i;
    for (i = 0; i < Q_SIZE; ++i) worst = fmax(worst, fabs((double)a->out[i] - (double)b->out[i]));
    for (i = 0; i < ROWS; ++i) worst = fmax(worst, fabs((double)a->lse[i] - (double)b->lse[i]));
    return worst;
}

int main(void) {
    longrope_factor_sets *sets = NULL;
    longrope_context *context = NULL;
    longrope_status status;
    float q[Q_SIZE], k[K_SIZE], v[K_SIZE];
    result cpu, other;
    gpu g;
    int i, has_gpu;

    for (i = 0; i < Q_SIZE; ++i) q[i] = (float)(i % 7 - 3) / 2;
    for (i = 0; i < K_SIZE; ++i) k[i] = (float)(i % 5 - 2) / 2;
    for (i = 0; i < K_SIZE; ++i) v[i] = (float)(i % 9 - 4) / 4;

    /* The angles: once for a model. */
    check(longrope_factor_sets_from_json(config, strlen(config), 0, LONGROPE_ANGLES_EXACT, &sets));
    on_cpu(sets, q, k, v, &cpu);
    print(&cpu);

    /* With the engine's CUDA context current, so that the kernels are loaded into it at once. */
    has_gpu = gpu_open(&g);
    status = longrope_context_create(0, &context);
    if (status != LONGROPE_STATUS_OK) {
        printf("gpu: %s (status %d)\n", longrope_last_error_message(), (int)status);
    } else if (has_gpu) {
        printf("gpu: largest difference from the CPU %.3g\n",
               on_gpu(context, &g, sets, q, k, v, &other) ? difference(&cpu, &other) : INFINITY);
    } else {
        printf("gpu: kernels loaded, but no CUDA context to run them in\n");
    }

    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    return EXIT_SUCCESS;
}
