/* The faults that a launcher in C of attention is known to have, one a run: launcher_bugs NAME. They were those of an entry
 * of candle-flash-attn-v3, mended in candle's pull request 3892. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "launch_params.h"
#include "longrope.h"
#include "recording_driver.h"

static void *at(uintptr_t address) { return (void *)address; }

static recording_api driver;
static longrope_context *context;
static longrope_factor_sets *sets;
static longrope_cache_rotary_desc cache_rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;

/* ---- Problems that a run takes ----------------------------------------------------------------------------------- */

static longrope_tensor tensor(uintptr_t data, int32_t dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim) {
    const longrope_tensor made = {at(data), dtype, {batch, length, heads, dim}, {0, 0, 0, 0}};
    return made;
}

/* 2 sequences, 6 query heads over 2 key heads. */
static longrope_attention_tensors attention_tensors(int64_t queries, int64_t keys) {
    longrope_attention_tensors made;
    made.q = tensor(0x100000, LONGROPE_DTYPE_F16, 2, queries, 6, 64);
    made.k = tensor(0x200000, LONGROPE_DTYPE_F16, 2, keys, 2, 64);
    made.v = tensor(0x300000, LONGROPE_DTYPE_F16, 2, keys, 2, 64);
    made.out = tensor(0x400000, LONGROPE_DTYPE_F16, 2, queries, 6, 64);
    made.lse = tensor(0x500000, LONGROPE_DTYPE_F32, 2, queries, 6, 1);
    return made;
}

static longrope_kv_cache kv_cache(void) {
    longrope_kv_cache made = LONGROPE_KV_CACHE_INIT;
    made.k = tensor(0x200000, LONGROPE_DTYPE_F16, 2, 4096, 2, 64);
    made.v = tensor(0x300000, LONGROPE_DTYPE_F16, 2, 4096, 2, 64);
    made.lengths = at(0x1000);
    return made;
}

static longrope_decode_tensors decode_tensors(int64_t queries) {
    longrope_decode_tensors made;
    made.q = tensor(0x100000, LONGROPE_DTYPE_F16, 2, queries, 6, 64);
    made.out = tensor(0x400000, LONGROPE_DTYPE_F16, 2, queries, 6, 64);
    made.lse = tensor(0x500000, LONGROPE_DTYPE_F32, 2, queries, 6, 1);
    return made;
}

enum { RUNS = 10 };

/* The run of a number, with a workspace of the size that is asked for; how many launches it takes. */
static int run(int number, uintptr_t workspace, void *stream) {
    const longrope_kv_cache cache = kv_cache();
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_rerotate_desc rerotate = LONGROPE_REROTATE_DESC_INIT;
    longrope_attention_desc attention = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_backward_desc backward = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
    longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
    longrope_rerotate_cache_desc recache = LONGROPE_REROTATE_CACHE_DESC_INIT;
    const longrope_attention_tensors tensors = attention_tensors(5, 9);
    const longrope_decode_tensors few = decode_tensors(2), many = decode_tensors(40);
    longrope_tensor_io io;
    longrope_append_tensors fresh;
    longrope_merge_parts parts;
    longrope_attention_backward_tensors gradients;
    size_t bytes = 0;
    memset(&io, 0, sizeof io);
    memset(&fresh, 0, sizeof fresh);
    memset(&parts, 0, sizeof parts);
    io.input = tensors.q;
    rotary.sets = rerotate.from = sets;
    rerotate.to = &rotary;
    append.rotary = recache.to = recache.from = &cache_rotary;
    fresh.k = tensor(0x100000, LONGROPE_DTYPE_F16, 2, 2, 2, 64);
    fresh.v = tensor(0x180000, LONGROPE_DTYPE_F16, 2, 2, 2, 64);
    memset(&gradients, 0, sizeof gradients);
    gradients.q = gradients.out = gradients.d_out = tensors.q;
    gradients.k = gradients.v = tensors.k;
    gradients.lse = tensors.lse;
    gradients.dq = tensor(0x600000, LONGROPE_DTYPE_F16, 2, 5, 6, 64);
    gradients.dk = tensor(0x700000, LONGROPE_DTYPE_F16, 2, 9, 2, 64);
    gradients.dv = tensor(0x800000, LONGROPE_DTYPE_F16, 2, 9, 2, 64);
    parts.out = tensor(0x600000, LONGROPE_DTYPE_F32, 2, 5, 6, 64);
    parts.lse = tensor(0x700000, LONGROPE_DTYPE_F32, 2, 5, 6, 1);
    parts.count = 3;
    parts.out_stride = 10000;
    parts.lse_stride = 100;
    driver.mine()->launches = 0;
    switch (number) {
        case 0: CHECK(longrope_rotary_run(context, &rotary, &io, 1, stream) == 0); return 1;
        case 1: CHECK(longrope_rerotate_run(context, &rerotate, &io, 1, stream) == 0); return 1;
        case 2:
            CHECK(longrope_attention_workspace_size(&attention, &tensors, &bytes) == 0);
            CHECK(longrope_attention_run(context, &attention, &tensors, at(workspace), bytes, stream) == 0);
            return 1;
        case 3: CHECK(longrope_merge_run(context, &parts, &tensors.out, &tensors.lse, stream) == 0); return 1;
        case 4: CHECK(longrope_append_run(context, &append, &cache, &fresh, stream) == 0); return 1;
        case 5:
            CHECK(longrope_decode_workspace_size(&decode, &cache, &few, &bytes) == 0 && bytes > 0);
            CHECK(longrope_decode_run(context, &decode, &cache, &few, at(workspace), bytes, stream) == 0);
            return 2;
        case 6:
            CHECK(longrope_prefill_workspace_size(&prefill, &cache, &many, &bytes) == 0 && bytes > 0);
            CHECK(longrope_prefill_run(context, &prefill, &cache, &many, at(workspace), bytes, stream) == 0);
            return 2;
        case 7:
            CHECK(longrope_attention_backward_workspace_size(&backward, &gradients, &bytes) == 0 && bytes > 0);
            CHECK(longrope_attention_backward_run(context, &backward, &gradients, at(workspace), bytes, stream) == 0);
            return 3;
        case 8:
            CHECK(longrope_attention_delta_run(context, &tensors.out, &tensors.q, &tensors.lse, stream) == 0);
            return 1;
        default: CHECK(longrope_rerotate_cache_run(context, &recache, &cache, stream) == 0); return 1;
    }
}

/* ---- The five ---------------------------------------------------------------------------------------------------- */

/* A launch on the legacy default stream, while the caller's data is made on another. */
static void stream(void) {
    recorded *const mine = driver.mine();
    int number, i, s;
    for (number = 0; number < RUNS; ++number) {
        for (s = 0; s < 16; ++s) {
            /* Another CUDA context than the stream's is current, or none. */
            driver.set_current(s == 15 ? NULL : driver.context(s + 1));
            CHECK(run(number, 0x10000000, driver.stream(s)) == mine->launches);
            for (i = 0; i < mine->launches; ++i) {
                CHECK(mine->launch[i].stream == driver.stream(s) && mine->launch[i].context == driver.context(s % 4));
            }
        }
        driver.set_current(driver.context(2));
        run(number, 0x10000000, NULL);
        CHECK(mine->launch[0].stream == NULL && mine->launch[0].context == driver.context(2));
    }
}

/* The validations of what is done with a cache of such lengths: all answer `expected`, and leave no context current. */
static void validate(const int32_t *lengths, longrope_status expected) {
    longrope_kv_cache cache = kv_cache();
    longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
    longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
    longrope_rerotate_cache_desc recache = LONGROPE_REROTATE_CACHE_DESC_INIT;
    const longrope_decode_tensors few = decode_tensors(2);
    longrope_append_tensors fresh;
    void *current = at(1);
    memset(&fresh, 0, sizeof fresh);
    fresh.k = fresh.v = tensor(0x100000, LONGROPE_DTYPE_F16, 2, 2, 2, 64);
    append.rotary = recache.to = recache.from = &cache_rotary;
    cache.lengths = lengths;
    CHECK(longrope_append_validate(context, &append, &cache, &fresh, NULL) == expected);
    CHECK(longrope_decode_validate(context, &decode, &cache, &few, NULL) == expected);
    CHECK(longrope_prefill_validate(context, &prefill, &cache, &few, NULL) == expected);
    CHECK(longrope_rerotate_cache_validate(context, &recache, &cache, NULL) == expected);
    CHECK(driver.get_current(&current) == 0 && current == NULL);
}

/* The default streams of a thread that has no CUDA context: of the primary one, if somebody uses it, as by CUDA's runtime. */
static void no_context(void) {
    recorded *const mine = driver.mine();
    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io io;
    static int32_t lengths[2] = {2, 4096};
    void *current = at(1);
    int number, i;
    memset(&io, 0, sizeof io);
    io.input = attention_tensors(5, 9).q;
    desc.sets = sets;
    driver.memory(lengths, sizeof lengths);
    driver.set_current(NULL);
    CHECK(longrope_rotary_run(context, &desc, &io, 1, NULL) == LONGROPE_STATUS_DRIVER);
    CHECK(strstr(longrope_last_error_message(), "CUDA_ERROR_INVALID_CONTEXT") != NULL);
    validate(lengths, LONGROPE_STATUS_DRIVER);
    mine->primary_is_active = 1;
    for (number = 0; number < RUNS; ++number) {
        CHECK(run(number, 0x10000000, NULL) == mine->launches);
        for (i = 0; i < mine->launches; ++i) {
            CHECK(mine->launch[i].stream == NULL && mine->launch[i].context == driver.context(0));
        }
        CHECK(driver.get_current(&current) == 0 && current == NULL);
    }
    validate(lengths, LONGROPE_STATUS_OK);
    lengths[1] = 4097;
    validate(lengths, LONGROPE_STATUS_INVALID_ARGUMENT);
    CHECK(mine->primary_uses == 0);
}

/* Attention of so many queries over so many keys, in 2 sequences of 6 heads: what the driver was told of the counter. */
static void counted(int64_t queries, int64_t keys, uintptr_t workspace, int number) {
    const longrope_attention_tensors tensors = attention_tensors(queries, keys);
    const longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    recorded *const mine = driver.mine();
    recorded_launch *const launch = &mine->launch[0];
    counter_seen seen;
    size_t bytes = 0;
    mine->launches = mine->clears = 0;
    mine->cleared = 0;
    mine->cleared_on = NULL;
    CHECK(longrope_attention_workspace_size(&desc, &tensors, &bytes) == 0 && bytes >= 128);
    CHECK(longrope_attention_run(context, &desc, &tensors, at(workspace), bytes, driver.stream(number)) == 0);
    seen = see_counter(launch);
    CHECK(seen.counter == at(workspace) && launch->stream == driver.stream(number));
    CHECK(seen.items == 12 * (unsigned)((queries + 191) / 192) * (unsigned)seen.splits);
    if (seen.items > 132) {
        CHECK(launch->blocks == 132 && mine->clears == 1 && mine->cleared == workspace);
        CHECK(mine->cleared_on == launch->stream && mine->launches_before_clear == 0);
    } else {
        CHECK(launch->blocks == seen.items && mine->clears == 0);
    }
    /* Results of parts of the keys are merged by a launch that follows. */
    CHECK(mine->launches == (seen.splits > 1 ? 2 : 1) && (seen.splits > 1) == (keys > 1024));
    if (seen.splits > 1) {
        CHECK(strcmp(mine->launch[1].kernel, "longrope_split_merge_f16") == 0);
        CHECK(mine->launch[1].stream == launch->stream && mine->launch[1].context == launch->context);
    }
}

/* A counter in device memory that a caller had to bring, and to clear. No launch needs one of the caller's. Two runs are told
 * the same, but for what lies in their own workspace: there is nothing else that they share or lack. The driver here has no
 * function that allocates: a call of one would be an INTERNAL error. Where blocks draw their items by a counter, it lies at the
 * start of the workspace, and the launch clears it itself, on its stream and before its kernel. */
static void tile_counter(void) {
    static recorded_launch first[KEPT_LAUNCHES];
    const uintptr_t one = 0x10000000, other = 0x50000000;
    recorded *const mine = driver.mine();
    int number, i, launches, in_workspace = 0;
    size_t word;
    for (number = 0; number < RUNS; ++number) {
        launches = run(number, one, driver.stream(1));
        memcpy(first, mine->launch, sizeof first);
        CHECK(run(number, other, driver.stream(2)) == launches);
        for (i = 0; i < launches; ++i) {
            const recorded_launch *const second = &mine->launch[i];
            CHECK(strcmp(first[i].kernel, second->kernel) == 0 && first[i].blocks == second->blocks);
            CHECK(first[i].bytes == second->bytes && first[i].bytes % 8 == 0);
            for (word = 0; word < second->bytes; word += 8) {
                uint64_t a, b;
                memcpy(&a, first[i].params + word, 8);
                memcpy(&b, second->params + word, 8);
                if (a == b) continue;
                CHECK(a >= one && a < one + 0x10000000 && b - other == a - one);
                ++in_workspace;
            }
        }
    }
    /* Results of parts and their log-sum-exps, of both kernels of decoding and of prefill; a counter and sums, of attention and
     * of prefill; what all three kernels of gradients know as delta, and a counter and sums of two of them. */
    CHECK(in_workspace == 19);
    /* 192 queries of a head are an item, and there are 132 multiprocessors: with up to 11 items a head each block has one, with
     * more they draw the others. */
    for (number = 0; number < 3; ++number) {
        counted(5, 9, one, number);
        counted(11 * 192, 9, other, number);
        counted(11 * 192 + 1, 9, one, number);
        counted(40 * 192, 512, other + 0x100, number);
        counted(5, 1 << 15, one, number);
        counted(14 * 192, 1 << 15, other, number);
    }
    /* What decoding writes there ends where the workspace does. */
    {
        longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
        const longrope_kv_cache cache = kv_cache();
        const longrope_decode_tensors few = decode_tensors(2);
        int splits;
        for (splits = 0; splits < 9; ++splits) {
            size_t bytes = 0;
            parts_seen seen;
            uintptr_t slots;
            decode.splits = splits;
            mine->launches = 0;
            CHECK(longrope_decode_workspace_size(&decode, &cache, &few, &bytes) == 0);
            CHECK(longrope_decode_run(context, &decode, &cache, &few, at(one), bytes, driver.stream(1)) == 0);
            seen = see_parts(&mine->launch[0]);
            CHECK(seen.splits == splits && seen.parts == at(one));
            /* Balanced, a block leaves two parts at most. */
            slots = ((uintptr_t)seen.parts_lse - one) / 4 / (uintptr_t)(seen.slot_rows * seen.head_dim);
            CHECK(slots >= (uintptr_t)seen.blocks * (splits ? 1 : 2));
            CHECK((uintptr_t)seen.parts_lse + 4 * slots * (uintptr_t)seen.slot_rows == one + bytes);
        }
    }
}

/* A log-sum-exp of [batch, length, heads, 128], of which one number in 128 was used. */
static void lse_size(void) {
    enum { BATCH = 2, LENGTH = 5, HEADS = 6, DIM = 8, ROWS = BATCH * LENGTH * HEADS, GUARD = 64 };
    static float values[ROWS * DIM], out[ROWS * DIM];
    uint32_t guarded[GUARD + ROWS + GUARD], word;
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors;
    recorded *const mine = driver.mine();
    int i;
    for (i = 0; i < ROWS * DIM; ++i) values[i] = (float)(i % 13) / 13.0f;
    for (i = 0; i < GUARD + ROWS + GUARD; ++i) guarded[i] = 0x7fc12345; /* a NaN that no sum makes */
    tensors.q = tensor((uintptr_t)values, LONGROPE_DTYPE_F32, BATCH, LENGTH, HEADS, DIM);
    tensors.k = tensors.v = tensor((uintptr_t)values, LONGROPE_DTYPE_F32, BATCH, LENGTH, HEADS / 3, DIM);
    tensors.out = tensor((uintptr_t)out, LONGROPE_DTYPE_F32, BATCH, LENGTH, HEADS, DIM);
    tensors.lse = tensor((uintptr_t)(guarded + GUARD), LONGROPE_DTYPE_F32, BATCH, LENGTH, HEADS, 1);
    CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    for (i = 0; i < GUARD + ROWS + GUARD; ++i) {
        word = guarded[i];
        CHECK((word == 0x7fc12345) == (i < GUARD || i >= GUARD + ROWS));
    }
    /* One that is larger is not taken for one. */
    tensors.lse.shape[3] = 128;
    CHECK(longrope_attention_cpu(&desc, &tensors) == LONGROPE_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(longrope_last_error_message(), "expected [2, 5, 6, 1]") != NULL);
    /* The kernels are told the same: a number a row, the last at 2 * 5 * 6 - 1. */
    if (!context) return;
    for (i = 2; i < 7; ++i) {
        attention_seen seen;
        if (i == 3 || i == 4) continue;
        run(i, 0x10000000, driver.stream(1));
        seen = i == 5 ? see_decode(&mine->launch[0]) : see_attention(&mine->launch[0]);
        /* Prefill in parts has the log-sum-exps of parts in its workspace, and the merge writes the caller's. */
        if (i != 6) CHECK(seen.lse == at(0x500000));
        CHECK(seen.lse_stride[2] == 1 && seen.lse_stride[1] == 6 && seen.lse_stride[0] == 6 * seen.query_length);
        CHECK(seen.query_heads == 6 && (seen.query_length == 5 || seen.query_length == 2 || seen.query_length == 40));
    }
}

/* A window of -1 for "none" that became 0 on its way, and a causal mask with it that became none. */
static void window(void) {
    enum { LENGTH = 6, DIM = 8 };
    const int64_t windows[] = {0, 1, 3, INT64_MAX};
    float q[LENGTH * DIM], k[LENGTH * DIM], v[LENGTH * DIM], out[4][LENGTH * DIM], changed[LENGTH * DIM];
    const longrope_attention_tensors launched = attention_tensors(5, 9);
    const longrope_kv_cache cache = kv_cache();
    const longrope_decode_tensors few = decode_tensors(2), many = decode_tensors(300);
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
    longrope_attention_tensors tensors;
    int i, w;
    memset(&tensors, 0, sizeof tensors);
    for (i = 0; i < LENGTH * DIM; ++i) {
        q[i] = k[i] = (float)(i % 7) / 7.0f;
        v[i] = (float)i;
    }
    tensors.q = tensor((uintptr_t)q, LONGROPE_DTYPE_F32, 1, LENGTH, 1, DIM);
    tensors.k = tensor((uintptr_t)k, LONGROPE_DTYPE_F32, 1, LENGTH, 1, DIM);
    tensors.v = tensor((uintptr_t)v, LONGROPE_DTYPE_F32, 1, LENGTH, 1, DIM);
    tensors.out = tensor(0, LONGROPE_DTYPE_F32, 1, LENGTH, 1, DIM);
    desc.causal = 1;
    for (w = 0; w < 4; ++w) {
        desc.window = windows[w];
        tensors.out.data = out[w];
        CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    }
    CHECK(memcmp(out[0], out[3], sizeof out[0]) == 0); /* none is as wide as can be */
    CHECK(memcmp(out[1], v, sizeof v) == 0);           /* 1 is a token's own key alone */
    CHECK(memcmp(out[0], out[2], 3 * DIM * sizeof(float)) == 0 && out[0][3 * DIM] != out[2][3 * DIM]);
    CHECK(memcmp(out[0], v, DIM * sizeof(float)) == 0); /* the first token sees itself alone */
    /* Causal it is: the last key changes the last row alone, and the first key that row as well. */
    desc.window = 0;
    tensors.out.data = changed;
    v[(LENGTH - 1) * DIM] = 1000.0f;
    CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    CHECK(memcmp(out[0], changed, (LENGTH - 1) * DIM * sizeof(float)) == 0);
    v[0] = 1000.0f;
    memcpy(out[1], changed, sizeof changed);
    CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    CHECK(changed[(LENGTH - 1) * DIM] > out[1][(LENGTH - 1) * DIM] + 1.0f);
    /* And without `causal` there is no mask at all. */
    desc.causal = 0;
    v[(LENGTH - 1) * DIM] = 2000.0f;
    memcpy(out[1], changed, sizeof changed);
    CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    CHECK(fabsf(changed[0] - out[1][0]) > 1.0f);
    if (!context) return;
    for (i = 0; i < 2; ++i) {
        for (w = 0; w < 4; ++w) {
            attention_seen seen;
            size_t bytes = 0;
            desc.causal = i;
            desc.window = decode.window = prefill.window = windows[w];
            driver.mine()->launches = 0;
            CHECK(longrope_attention_workspace_size(&desc, &launched, &bytes) == 0);
            CHECK(longrope_attention_run(context, &desc, &launched, at(0x10000000), bytes, driver.stream(1)) == 0);
            seen = see_attention(&driver.mine()->launch[0]);
            CHECK(seen.causal == i && seen.window == windows[w]);
            driver.mine()->launches = 0;
            CHECK(longrope_decode_workspace_size(&decode, &cache, &few, &bytes) == 0);
            CHECK(longrope_decode_run(context, &decode, &cache, &few, at(0x10000000), bytes, NULL) == 0);
            CHECK(see_decode(&driver.mine()->launch[0]).window == windows[w]);
            driver.mine()->launches = 0;
            CHECK(longrope_prefill_workspace_size(&prefill, &cache, &many, &bytes) == 0);
            CHECK(longrope_prefill_run(context, &prefill, &cache, &many, at(0x10000000), bytes, NULL) == 0);
            seen = see_attention(&driver.mine()->launch[0]);
            CHECK(seen.causal == 1 && seen.window == windows[w]);
        }
    }
}

/* Groups of query heads packed into rows as if all sequences were one, so that the starts were not looked at. */
static void packed_groups(void) {
    enum { QUERIES = 9, KEYS = 12, HEADS = 6, KEY_HEADS = 2, DIM = 8, SEQUENCES = 4 };
    const int32_t query_starts[SEQUENCES + 1] = {0, 3, 3, 8, 9}, key_starts[SEQUENCES + 1] = {0, 4, 5, 11, 12};
    static float q[QUERIES * HEADS * DIM], k[KEYS * KEY_HEADS * DIM], v[KEYS * KEY_HEADS * DIM];
    static float packed[QUERIES * HEADS * DIM], alone[QUERIES * HEADS * DIM], lse[QUERIES * HEADS], lse_alone[QUERIES * HEADS];
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors;
    attention_seen seen;
    int i;
    for (i = 0; i < QUERIES * HEADS * DIM; ++i) q[i] = (float)(i * 7 % 31) / 31.0f - 0.5f;
    for (i = 0; i < KEYS * KEY_HEADS * DIM; ++i) k[i] = (float)(i * 5 % 29) / 29.0f - 0.5f, v[i] = (float)(i * 3 % 23);
    desc.causal = 1;
    desc.key_offset = -1;
    tensors.q = tensor((uintptr_t)q, LONGROPE_DTYPE_F32, 1, QUERIES, HEADS, DIM);
    tensors.k = tensor((uintptr_t)k, LONGROPE_DTYPE_F32, 1, KEYS, KEY_HEADS, DIM);
    tensors.v = tensor((uintptr_t)v, LONGROPE_DTYPE_F32, 1, KEYS, KEY_HEADS, DIM);
    tensors.out = tensor((uintptr_t)packed, LONGROPE_DTYPE_F32, 1, QUERIES, HEADS, DIM);
    tensors.lse = tensor((uintptr_t)lse, LONGROPE_DTYPE_F32, 1, QUERIES, HEADS, 1);
    desc.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    desc.sequences = SEQUENCES;
    desc.query_starts = query_starts;
    desc.key_starts = key_starts;
    CHECK(longrope_attention_cpu(&desc, &tensors) == 0);
    if (context) {
        longrope_attention_tensors launched = tensors;
        launched.q.dtype = launched.k.dtype = launched.v.dtype = launched.out.dtype = LONGROPE_DTYPE_BF16;
        size_t bytes = 0;
        driver.mine()->launches = 0;
        CHECK(longrope_attention_workspace_size(&desc, &launched, &bytes) == 0);
        CHECK(longrope_attention_run(context, &desc, &launched, at(0x10000000), bytes, driver.stream(3)) == 0);
        seen = see_attention(&driver.mine()->launch[0]);
        CHECK(seen.packed && !seen.wide && seen.sequences == SEQUENCES && seen.group == 3 && seen.query_heads == HEADS);
        CHECK(seen.query_starts == (const void *)query_starts && seen.key_starts == (const void *)key_starts);
        CHECK(seen.query_length == QUERIES && seen.key_length == KEYS && seen.max_query_length == QUERIES);
    }
    /* Each sequence in a call of its own. */
    desc.sequence_kind = LONGROPE_SEQUENCES_DENSE;
    desc.sequences = 0;
    desc.query_starts = desc.key_starts = NULL;
    for (i = 0; i < SEQUENCES; ++i) {
        const int first = query_starts[i], key = key_starts[i];
        longrope_attention_tensors one = tensors;
        one.q.data = q + first * HEADS * DIM;
        one.out.data = alone + first * HEADS * DIM;
        one.lse.data = lse_alone + first * HEADS;
        one.k.data = k + key * KEY_HEADS * DIM;
        one.v.data = v + key * KEY_HEADS * DIM;
        one.q.shape[1] = one.out.shape[1] = one.lse.shape[1] = query_starts[i + 1] - first;
        one.k.shape[1] = one.v.shape[1] = key_starts[i + 1] - key;
        CHECK(longrope_attention_cpu(&desc, &one) == 0);
    }
    CHECK(memcmp(packed, alone, sizeof packed) == 0 && memcmp(lse, lse_alone, sizeof lse) == 0);
    for (i = 0; i < QUERIES * HEADS; ++i) CHECK(isfinite(lse[i]));
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*test)(void); int needs_kernels; } tests[] = {
        {"stream", stream, 1}, {"no_context", no_context, 1}, {"tile_counter", tile_counter, 1}, {"lse_size", lse_size, 0}, {"window", window, 0},
        {"packed_groups", packed_groups, 0},
    };
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    double values[16];
    int i;
    for (i = 0; i < 16; ++i) values[i] = 1.0 / (1 + i);
    frequencies.pairs = 16;
    frequencies.short_frequencies = values;
    CHECK(longrope_factor_sets_from_frequencies(&frequencies, &sets) == 0);
    cache_rotary.sets = sets;
    driver = open_recording();
    driver.set_current(driver.context(0));
    if (longrope_has_device_code()) CHECK(longrope_context_create(0, &context) == 0);
    for (i = 0; i < 6; ++i) {
        if (argc != 2 || strcmp(argv[1], tests[i].name) != 0) continue;
        if (context || !tests[i].needs_kernels) tests[i].test();
        printf("%s: %s\n", tests[i].name, context ? "done" : "without kernels");
    }
    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    return 0;
}
