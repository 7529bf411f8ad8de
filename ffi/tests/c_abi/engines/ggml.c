/* The habits of ggml: tensors with sizes and strides in bytes, fastest dimension first; three functions for an operation
 * (is it supported, how much scratch, run); scratch from the engine's pool; the whole graph captured on a stream, then
 * replayed. Its rotary embedding divides by `freq_factors` and has positions in int32; its attention has permuted views.
 *
 * Run on the CPU form, the operations give what ggml's definitions say. Run on the driver that records, they can be
 * captured: they launch on the stream of the capture and call nothing else. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "../recording_driver.h"
#include "longrope.h"

/* ---- What the engine has ----------------------------------------------------------------------------------------- */

typedef struct engine_tensor {
    int32_t type; /* a longrope_dtype: the engine's types map to it */
    int64_t ne[4]; /* sizes, fastest first */
    size_t nb[4];  /* strides in bytes */
    void *data;
} engine_tensor;

/* Scratch that lasts as long as the graph. */
typedef struct engine_pool {
    char *base;
    size_t used, size;
} engine_pool;

static void *pool_take(engine_pool *pool, size_t bytes) {
    char *const taken = pool->base + pool->used;
    pool->used += (bytes + 255) / 256 * 256;
    CHECK(pool->used <= pool->size);
    return taken;
}

enum { NORMAL = 0, NEOX = 2 }; /* pairs side by side; pairs half a head apart */

typedef struct engine_rope {
    int n_dims, mode;
    float freq_base, freq_scale, attn_factor;
    const float *freq_factors; /* in host memory, n_dims / 2 of them; NULL: all 1 */
    const int32_t *positions;  /* where the data is */
} engine_rope;

/* ---- The engine's operations, by longrope ------------------------------------------------------------------------ */

static size_t type_size(int32_t type) { return type == LONGROPE_DTYPE_F32 ? 4 : 2; }

/* A view as longrope has it: `order` names the engine's dimension of batch, tokens, heads, head dimension. 0 if a stride is
 * not of whole elements. */
static int view(const engine_tensor *t, const int order[4], longrope_tensor *out) {
    int i;
    out->data = t->data;
    out->dtype = t->type;
    for (i = 0; i < 4; ++i) {
        if (t->nb[order[i]] % type_size(t->type) != 0) return 0;
        out->shape[i] = t->ne[order[i]];
        out->stride[i] = (int64_t)(t->nb[order[i]] / type_size(t->type));
    }
    return 1;
}

static const int of_rope[4] = {3, 2, 1, 0};      /* [head dimension, heads, tokens, batch] */
static const int of_attention[4] = {3, 1, 2, 0}; /* [head dimension, tokens, heads, batch] */

/* The sets are made once for a model, when its graph is built. */
static longrope_factor_sets *rope_sets(const engine_rope *rope) {
    double frequencies[256];
    longrope_frequencies given = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL;
    int i;
    for (i = 0; i < rope->n_dims / 2; ++i) {
        frequencies[i] = pow(rope->freq_base, -2.0 * i / rope->n_dims) * rope->freq_scale;
        if (rope->freq_factors) frequencies[i] /= rope->freq_factors[i];
    }
    given.pairs = rope->n_dims / 2;
    given.short_frequencies = frequencies;
    given.short_gain = rope->attn_factor;
    CHECK(longrope_factor_sets_from_frequencies(&given, &sets) == LONGROPE_STATUS_OK);
    return sets;
}

typedef struct rope_call {
    longrope_rotary_desc desc;
    longrope_tensor_io io;
} rope_call;

static int rope_build(const engine_rope *rope, const longrope_factor_sets *sets, const engine_tensor *in,
                      const engine_tensor *out, rope_call *call) {
    const longrope_rotary_desc fresh = LONGROPE_ROTARY_DESC_INIT;
    call->desc = fresh;
    call->desc.sets = sets;
    call->desc.pairing = rope->mode == NEOX ? LONGROPE_PAIRING_HALF_SPLIT : LONGROPE_PAIRING_INTERLEAVED;
    call->desc.position_kind = LONGROPE_POSITIONS_PER_TOKEN_I32;
    call->desc.positions = rope->positions;
    call->desc.choice_kind = LONGROPE_CHOICES_SHORT;
    return view(in, of_rope, &call->io.input) && view(out, of_rope, &call->io.output);
}

static int engine_rope_supported(const rope_call *call) {
    return longrope_rotary_supported(&call->desc, &call->io, 1) == LONGROPE_STATUS_OK;
}

typedef struct attention_call {
    longrope_attention_desc desc;
    longrope_attention_tensors tensors;
} attention_call;

static int attention_build(const engine_tensor *q, const engine_tensor *k, const engine_tensor *v, const engine_tensor *dst,
                           float scale, int64_t past, attention_call *call) {
    const longrope_attention_desc fresh = LONGROPE_ATTENTION_DESC_INIT;
    call->desc = fresh;
    call->desc.causal = 1;
    call->desc.scale = scale;
    call->desc.query_offset = past;
    memset(&call->tensors, 0, sizeof call->tensors);
    return view(q, of_attention, &call->tensors.q) && view(k, of_attention, &call->tensors.k) &&
           view(v, of_attention, &call->tensors.v) && view(dst, of_rope, &call->tensors.out);
}

static int engine_attention_supported(const attention_call *call) {
    return longrope_attention_supported(&call->desc, &call->tensors) == LONGROPE_STATUS_OK;
}

static size_t engine_attention_alloc_size(const attention_call *call) {
    size_t bytes = 0;
    CHECK(longrope_attention_workspace_size(&call->desc, &call->tensors, &bytes) == LONGROPE_STATUS_OK);
    return bytes;
}

/* ---- A layer's graph: rope of q and k, attention with permuted views --------------------------------------------- */

enum { DIM = 64, ROT = 48, HEADS = 6, KV_HEADS = 2, TOKENS = 7, PAST = 5, KEYS = TOKENS + PAST };

static engine_tensor contiguous(int32_t type, void *data, int64_t a, int64_t b, int64_t c) {
    engine_tensor t;
    const int64_t ne[4] = {a, b, c, 1};
    int i;
    t.type = type;
    t.data = data;
    memcpy(t.ne, ne, sizeof ne);
    t.nb[0] = type_size(type);
    for (i = 1; i < 4; ++i) t.nb[i] = t.nb[i - 1] * (size_t)ne[i - 1];
    return t;
}

static engine_tensor permuted(engine_tensor t) { /* 0, 2, 1, 3 */
    const int64_t n = t.ne[1];
    const size_t s = t.nb[1];
    t.ne[1] = t.ne[2], t.nb[1] = t.nb[2];
    t.ne[2] = n, t.nb[2] = s;
    return t;
}

static float number(int i) { return (float)(i * 37 % 101 - 50) / 50; }

/* ggml's definition of the rotary embedding, by one loop. */
static void rope_by_definition(const engine_rope *rope, float *x, int heads, int tokens) {
    int t, h, i;
    for (t = 0; t < tokens; ++t) {
        for (h = 0; h < heads; ++h) {
            float *const row = x + (t * heads + h) * DIM;
            for (i = 0; i < rope->n_dims / 2; ++i) {
                const double divisor = rope->freq_factors ? rope->freq_factors[i] : 1;
                const double angle =
                    rope->positions[t] * pow(rope->freq_base, -2.0 * i / rope->n_dims) * rope->freq_scale / divisor;
                const int a = rope->mode == NEOX ? i : 2 * i, b = rope->mode == NEOX ? i + rope->n_dims / 2 : 2 * i + 1;
                const double x1 = row[a], x2 = row[b], gain = rope->attn_factor;
                row[a] = (float)(gain * (x1 * cos(angle) - x2 * sin(angle)));
                row[b] = (float)(gain * (x1 * sin(angle) + x2 * cos(angle)));
            }
        }
    }
}

static void attention_by_definition(const float *q, const float *k, const float *v, float *out, float scale) {
    int t, h, j, d;
    for (t = 0; t < TOKENS; ++t) {
        for (h = 0; h < HEADS; ++h) {
            const int g = h / (HEADS / KV_HEADS), seen = PAST + t + 1;
            double weights[KEYS], sum = 0;
            for (j = 0; j < seen; ++j) {
                double dot = 0;
                for (d = 0; d < DIM; ++d) dot += (double)q[(t * HEADS + h) * DIM + d] * k[(j * KV_HEADS + g) * DIM + d];
                sum += weights[j] = exp(scale * dot);
            }
            for (d = 0; d < DIM; ++d) {
                double mean = 0;
                for (j = 0; j < seen; ++j) mean += weights[j] / sum * v[(j * KV_HEADS + g) * DIM + d];
                out[(t * HEADS + h) * DIM + d] = (float)mean;
            }
        }
    }
}

static float worst(const float *a, const float *b, int count) {
    float found = 0;
    int i;
    for (i = 0; i < count; ++i) found = fmaxf(found, fabsf(a[i] - b[i]));
    return found;
}

static void on_cpu(int mode) {
    static float q[TOKENS * HEADS * DIM], rotated[TOKENS * HEADS * DIM], k[KEYS * KV_HEADS * DIM], v[KEYS * KV_HEADS * DIM];
    static float out[TOKENS * HEADS * DIM], exact[TOKENS * HEADS * DIM];
    float factors[ROT / 2];
    int32_t positions[TOKENS];
    engine_rope rope = {ROT, 0, 50000.0f, 0.5f, 1.1f, NULL, NULL};
    const float scale = 0.09f;
    longrope_factor_sets *sets;
    engine_tensor in, to, keys, values, dst;
    rope_call call;
    attention_call attention;
    int i;
    rope.mode = mode;
    rope.freq_factors = factors;
    rope.positions = positions;
    for (i = 0; i < ROT / 2; ++i) factors[i] = 1 + (float)i / 4;
    for (i = 0; i < TOKENS; ++i) positions[i] = PAST + i;
    for (i = 0; i < TOKENS * HEADS * DIM; ++i) q[i] = exact[i] = number(i);
    for (i = 0; i < KEYS * KV_HEADS * DIM; ++i) k[i] = number(i + 7), v[i] = number(3 * i + 1);

    sets = rope_sets(&rope);
    in = contiguous(LONGROPE_DTYPE_F32, q, DIM, HEADS, TOKENS);
    to = contiguous(LONGROPE_DTYPE_F32, rotated, DIM, HEADS, TOKENS);
    CHECK(rope_build(&rope, sets, &in, &to, &call) && engine_rope_supported(&call));
    CHECK(longrope_rotary_cpu(&call.desc, &call.io, 1) == LONGROPE_STATUS_OK);
    rope_by_definition(&rope, exact, HEADS, TOKENS);
    CHECK(worst(rotated, exact, TOKENS * HEADS * DIM) < 2e-6f);

    in = permuted(to);
    keys = permuted(contiguous(LONGROPE_DTYPE_F32, k, DIM, KV_HEADS, KEYS));
    values = permuted(contiguous(LONGROPE_DTYPE_F32, v, DIM, KV_HEADS, KEYS));
    dst = contiguous(LONGROPE_DTYPE_F32, out, DIM, HEADS, TOKENS);
    CHECK(attention_build(&in, &keys, &values, &dst, scale, PAST, &attention));
    CHECK(longrope_attention_cpu(&attention.desc, &attention.tensors) == LONGROPE_STATUS_OK);
    attention_by_definition(rotated, k, v, exact, scale);
    CHECK(worst(out, exact, TOKENS * HEADS * DIM) < 1e-5f);

    /* A view of bytes that are no elements is for the engine to refuse. */
    in.nb[1] += 1;
    CHECK(!attention_build(&in, &keys, &values, &dst, scale, PAST, &attention));
    longrope_factor_sets_destroy(sets);
}

/* ---- The same graph on a driver ---------------------------------------------------------------------------------- */

enum { RELAXED = 2, PROMPT = 16384 };

/* What is launched for a batch of tokens. */
typedef struct layer {
    rope_call of_q, of_k;
    attention_call attention;
    void *workspace;
    size_t bytes;
} layer;

static layer build_layer(const engine_rope *rope, const longrope_factor_sets *sets, engine_pool *pool, int64_t tokens,
                         int64_t past) {
    char *const memory = (char *)(uintptr_t)0x10000000;
    const engine_tensor q = contiguous(LONGROPE_DTYPE_F16, memory, DIM, HEADS, tokens);
    const engine_tensor k = contiguous(LONGROPE_DTYPE_F16, memory + 0x10000000, DIM, KV_HEADS, tokens + past);
    const engine_tensor v = contiguous(LONGROPE_DTYPE_F16, memory + 0x20000000, DIM, KV_HEADS, tokens + past);
    const engine_tensor dst = contiguous(LONGROPE_DTYPE_F16, memory + 0x30000000, DIM, HEADS, tokens);
    const engine_tensor q_view = permuted(q), k_view = permuted(k), v_view = permuted(v);
    layer made;
    CHECK(rope_build(rope, sets, &q, &q, &made.of_q) && engine_rope_supported(&made.of_q));
    CHECK(rope_build(rope, sets, &k, &k, &made.of_k) && engine_rope_supported(&made.of_k));
    CHECK(attention_build(&q_view, &k_view, &v_view, &dst, 0.125f, past, &made.attention));
    CHECK(engine_attention_supported(&made.attention));
    /* Before the capture: what the pool gives is in the graph for good. */
    made.bytes = engine_attention_alloc_size(&made.attention);
    made.workspace = pool_take(pool, made.bytes);
    return made;
}

static void launch_layer(const longrope_context *context, const layer *of, void *stream) {
    CHECK(longrope_rotary_run(context, &of->of_q.desc, &of->of_q.io, 1, stream) == LONGROPE_STATUS_OK);
    CHECK(longrope_rotary_run(context, &of->of_k.desc, &of->of_k.io, 1, stream) == LONGROPE_STATUS_OK);
    CHECK(longrope_attention_run(context, &of->attention.desc, &of->attention.tensors, of->workspace, of->bytes, stream) ==
          LONGROPE_STATUS_OK);
}

/* Captures a layer, and replays it twice. One kernel an operation, and nothing beside but that attention clears words of its
 * workspace `clears` times. The driver has no function that allocates: a call of one would have been an error. */
static void capture_layer(const recording_api *driver, const longrope_context *context, const layer *of, void *stream,
                          long clears) {
    recorded *const mine = driver->mine();
    void *graph = NULL, *instance = NULL;
    size_t nodes = 0;
    int replay, i;
    mine->launches = mine->clears = mine->violations = 0;
    CHECK(driver->begin_capture(stream, RELAXED) == 0);
    launch_layer(context, of, stream);
    CHECK(driver->end_capture(stream, &graph) == 0);
    /* Nothing went elsewhere, or waited. */
    CHECK(mine->launches == 0 && mine->clears == 0 && mine->violations == 0);
    CHECK(driver->nodes(graph, NULL, &nodes) == 0 && nodes == (size_t)(3 + clears));
    CHECK(driver->instantiate(&instance, graph, 0) == 0 && driver->destroy_graph(graph) == 0);
    for (replay = 0; replay < 2; ++replay) {
        mine->launches = mine->clears = 0;
        CHECK(driver->launch_graph(instance, stream) == 0);
        CHECK(mine->launches == 3 && mine->clears == clears);
        CHECK(strncmp(mine->launch[0].kernel, "longrope_rotary_", 16) == 0);
        CHECK(strncmp(mine->launch[1].kernel, "longrope_rotary_", 16) == 0);
        CHECK(strncmp(mine->launch[2].kernel, "longrope_attention_", 19) == 0);
        for (i = 0; i < 3; ++i) CHECK(mine->launch[i].context == driver->context(1));
        /* Between the rotation and attention, in what the pool gave. */
        CHECK(clears == 0 || (mine->launches_before_clear == 2 && mine->cleared >= (uintptr_t)of->workspace &&
                              mine->cleared < (uintptr_t)of->workspace + of->bytes));
    }
    CHECK(driver->destroy_instance(instance) == 0);
}

/* That driver tells: what waits for the stream ends the capture. */
static void wait_in_capture(const recording_api *driver, void *stream) {
    void *graph = NULL;
    driver->mine()->violations = 0;
    CHECK(driver->begin_capture(stream, RELAXED) == 0);
    CHECK(driver->synchronize(stream) == 900 && driver->mine()->violations == 1);
    CHECK(driver->end_capture(stream, &graph) == 901 && graph == NULL);
    CHECK(driver->synchronize(stream) == 0 && driver->mine()->violations == 1);
}

static void on_driver(void) {
    const recording_api driver = open_recording();
    const engine_rope rope = {ROT, NEOX, 50000.0f, 1.0f, 1.0f, NULL, (const int32_t *)(uintptr_t)0x5000};
    engine_pool pool = {(char *)(uintptr_t)0x70000000, 0, (size_t)1 << 26};
    longrope_context *context = NULL;
    longrope_factor_sets *sets;
    longrope_status status;
    layer chunk, prompt;
    void *stream;

    driver.set_current(NULL);
    status = longrope_context_create(0, &context);
    if (status == LONGROPE_STATUS_NO_DEVICE_CODE) {
        printf("without kernels\n");
        return;
    }
    CHECK(status == LONGROPE_STATUS_OK);
    driver.set_current(driver.context(1));
    stream = driver.stream(5); /* of that context */
    sets = rope_sets(&rope);
    wait_in_capture(&driver, stream);
    chunk = build_layer(&rope, sets, &pool, TOKENS, PAST);
    capture_layer(&driver, context, &chunk, stream, 0);
    /* A shape has changed, so the graph is captured anew; with so many blocks they take their work by a counter. */
    prompt = build_layer(&rope, sets, &pool, PROMPT, 0);
    capture_layer(&driver, context, &prompt, stream, 1);
    printf("two graphs\n");
    longrope_factor_sets_destroy(sets);
    longrope_context_destroy(context);
}

int main(void) {
    on_cpu(NORMAL);
    on_cpu(NEOX);
    printf("as defined\n");
    on_driver();
    return 0;
}
