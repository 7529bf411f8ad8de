/* What the kernels of attention's gradients are told, by a driver that keeps the parameters of launches. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "launch_params.h"
#include "longrope.h"
#include "recording_driver.h"

/* Counters of Hopper's kernels are 128 bytes behind delta. */
enum { WORKSPACE = 0x10000000, COUNTERS = 128 };

static recording_api driver;
static longrope_context *context;

static void *at(uintptr_t address) { return (void *)address; }

static longrope_tensor tensor(uintptr_t data, int32_t dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim) {
    const longrope_tensor made = {at(data), dtype, {batch, length, heads, dim}, {0, 0, 0, 0}};
    return made;
}

/* 2 sequences of 300 queries and 500 keys, 6 query heads over 2 key heads of 128. In F16, which two kernels differentiate. */
static longrope_attention_backward_tensors right(void) {
    longrope_attention_backward_tensors made;
    memset(&made, 0, sizeof made);
    made.q = tensor(0x100000, LONGROPE_DTYPE_F16, 2, 300, 6, 128);
    made.k = tensor(0x200000, LONGROPE_DTYPE_F16, 2, 500, 2, 128);
    made.v = tensor(0x300000, LONGROPE_DTYPE_F16, 2, 500, 2, 128);
    made.out = tensor(0x400000, LONGROPE_DTYPE_F16, 2, 300, 6, 128);
    made.lse = tensor(0x500000, LONGROPE_DTYPE_F32, 2, 300, 6, 1);
    made.d_out = tensor(0x600000, LONGROPE_DTYPE_F16, 2, 300, 6, 128);
    made.dq = tensor(0x700000, LONGROPE_DTYPE_F32, 2, 300, 6, 128);
    made.dk = tensor(0x800000, LONGROPE_DTYPE_F16, 2, 500, 2, 128);
    made.dv = tensor(0x900000, LONGROPE_DTYPE_F32, 2, 500, 2, 128);
    return made;
}

static int is_of(const recorded_launch *launch, const char *kernel) {
    return strncmp(launch->kernel, kernel, strlen(kernel)) == 0;
}

/* Runs it on stream 5, with a workspace of the size that is asked for; how many launches it took. */
static long run(const longrope_attention_backward_desc *desc, const longrope_attention_backward_tensors *tensors,
                size_t expected_bytes) {
    recorded *const mine = driver.mine();
    size_t bytes = 12345;
    int i;
    mine->launches = mine->clears = 0;
    CHECK(longrope_attention_backward_supported(desc, tensors) == LONGROPE_STATUS_OK);
    CHECK(longrope_attention_backward_workspace_size(desc, tensors, &bytes) == LONGROPE_STATUS_OK);
    CHECK(bytes == expected_bytes);
    CHECK(longrope_attention_backward_run(context, desc, tensors, bytes ? at(WORKSPACE) : NULL, bytes, driver.stream(5)) ==
          LONGROPE_STATUS_OK);
    CHECK(mine->launches <= KEPT_LAUNCHES && mine->clears == 0);
    for (i = 0; i < mine->launches; ++i) {
        CHECK(mine->launch[i].stream == driver.stream(5) && mine->launch[i].context == driver.context(1));
    }
    return mine->launches;
}

/* delta in the workspace, then dq, then dk and dv. */
static void without_delta(void) {
    const recorded_launch *const launch = driver.mine()->launch;
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    const longrope_attention_backward_tensors tensors = right();
    delta_seen delta;
    int i;
    desc.causal = 1;
    desc.window = 77;
    desc.scale = -0.25f;
    desc.query_offset = 200;
    desc.key_offset = -3;
    desc.query_offsets = at(0x1000);
    desc.status = at(0x2000);
    CHECK(run(&desc, &tensors, 4 * 2 * 300 * 6 + COUNTERS) == 3);
    CHECK(strcmp(launch[0].kernel, "longrope_attention_delta_f16_vector") == 0);
    delta = see_delta(&launch[0]);
    CHECK(delta.out == at(0x400000) && delta.d_out == at(0x600000) && delta.delta == at(WORKSPACE));
    CHECK(delta.batch == 2 && delta.length == 300 && delta.heads == 6 && delta.head_dim == 128 && !delta.out_is_f32);
    CHECK(is_of(&launch[1], "longrope_attention_backward_queries_sm90_d128_f16"));
    CHECK(is_of(&launch[2], "longrope_attention_backward_keys_sm90_d128_f16"));
    for (i = 1; i < 3; ++i) {
        const backward_seen seen = see_backward(&launch[i]);
        CHECK(seen.attention.causal == 1 && seen.attention.window == 77 && seen.attention.sequences == 2);
        CHECK(seen.attention.query_heads == 6 && seen.attention.group == 3 && seen.attention.head_dim == 128);
        CHECK(seen.attention.query_length == 300 && seen.attention.key_length == 500 && !seen.attention.packed);
        CHECK(seen.attention.lse == at(0x500000) && seen.attention.lse_stride[0] == 1800);
        CHECK(seen.attention.lse_stride[1] == 6 && seen.attention.lse_stride[2] == 1);
        CHECK(seen.query_offset == 200 && seen.key_offset == -3 && seen.query_offsets == at(0x1000));
        CHECK(seen.status == at(0x2000) && seen.scale == -0.25f && seen.accumulate == 0 && seen.key_heads == 2);
        CHECK(seen.d_out == at(0x600000) && seen.delta == delta.delta);
        CHECK(memcmp(seen.delta_stride, delta.delta_stride, sizeof seen.delta_stride) == 0);
        CHECK(seen.dq == at(0x700000) && seen.dk == at(0x800000) && seen.dv == at(0x900000));
        CHECK(seen.dq_is_f32 == 1 && seen.dk_is_f32 == 0 && seen.dv_is_f32 == 1);
        CHECK(seen.dq_stride[1] == 768 && seen.dk_stride[1] == 256 && seen.dv_stride[3] == 1);
    }
}

/* The caller's delta: no memory for it, one launch fewer; gradients are added to. */
static void with_delta(void) {
    const recorded_launch *const launch = driver.mine()->launch;
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_attention_backward_tensors tensors = right();
    const int64_t stride[4] = {1800, 1, 300, 1};
    backward_seen seen;
    desc.accumulate = 1;
    tensors.dk.dtype = LONGROPE_DTYPE_F32;
    tensors.delta = tensor(0xa00000, LONGROPE_DTYPE_F32, 2, 300, 6, 1);
    memcpy(tensors.delta.stride, stride, sizeof stride);
    memset(&tensors.out, 0, sizeof tensors.out);
    CHECK(run(&desc, &tensors, COUNTERS) == 2);
    CHECK(is_of(&launch[0], "longrope_attention_backward_queries_") && is_of(&launch[1], "longrope_attention_backward_keys_"));
    seen = see_backward(&launch[1]);
    CHECK(seen.accumulate == 1 && seen.delta == at(0xa00000) && memcmp(seen.delta_stride, stride, 3 * sizeof *stride) == 0);
    CHECK(fabsf(seen.scale * sqrtf(128.0f) - 1.0f) < 1e-6f && seen.dk_is_f32 == 1 && seen.status == NULL);
    /* It is made by a call of its own. */
    tensors.out = tensor(0x400000, LONGROPE_DTYPE_F32, 2, 300, 6, 128);
    driver.mine()->launches = 0;
    CHECK(longrope_attention_delta_run(context, &tensors.out, &tensors.d_out, &tensors.delta, driver.stream(5)) ==
          LONGROPE_STATUS_OK);
    CHECK(driver.mine()->launches == 1 && launch[0].stream == driver.stream(5));
    CHECK(see_delta(&launch[0]).delta == at(0xa00000) && see_delta(&launch[0]).out_is_f32 == 1);
    CHECK(memcmp(see_delta(&launch[0]).delta_stride, stride, 3 * sizeof *stride) == 0);
}

/* Sequences one after the other, in tensors that are not at multiples of 16 bytes. */
static void packed(void) {
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_attention_backward_tensors tensors = right();
    longrope_tensor *const all[] = {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse, &tensors.d_out,
                                    &tensors.dq, &tensors.dk, &tensors.dv};
    const int64_t stride[4] = {0, 6 * 129, 129, 1};
    backward_seen seen;
    size_t i;
    for (i = 0; i < sizeof all / sizeof *all; ++i) all[i]->shape[0] = 1;
    memcpy(tensors.q.stride, stride, sizeof stride);
    desc.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    desc.index_bits = 64;
    desc.sequences = 5;
    desc.query_starts = at(0x3000);
    desc.key_starts = at(0x4000);
    desc.max_query_length = 123;
    CHECK(run(&desc, &tensors, 4 * 300 * 6) == 3);
    CHECK(strstr(driver.mine()->launch[1].kernel, "_strided") && strstr(driver.mine()->launch[2].kernel, "_strided"));
    seen = see_backward(&driver.mine()->launch[2]);
    CHECK(seen.attention.packed && seen.attention.wide && seen.attention.sequences == 5);
    CHECK(seen.attention.query_starts == at(0x3000) && seen.attention.key_starts == at(0x4000));
    CHECK(seen.attention.max_query_length == 123);
}

/* Queries and keys that were rotated: by seven pairs of neighbours, each sequence by its number. Not so by a caller of the first
 * version, whose struct ends before. */
static void rotated(void) {
    const double frequencies[7] = {1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625};
    const recorded_launch *const launch = driver.mine()->launch;
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    longrope_frequencies given = LONGROPE_FREQUENCIES_INIT;
    longrope_attention_backward_tensors tensors = right();
    longrope_factor_sets *sets = NULL;
    int i, portable;
    given.pairs = 7;
    given.short_frequencies = frequencies;
    CHECK(longrope_factor_sets_from_frequencies(&given, &sets) == LONGROPE_STATUS_OK);
    rotary.pairing = LONGROPE_PAIRING_INTERLEAVED;
    rotary.choice_kind = LONGROPE_CHOICES_BY_INDEX;
    rotary.sets = sets;
    rotary.choices = at(0xb000);
    desc.rotary = &rotary;
    for (portable = 0; portable < 2; ++portable) {
        const int64_t stride[4] = {300 * 6 * 129, 6 * 129, 129, 1};
        if (portable) memcpy(tensors.q.stride, stride, sizeof stride);
        CHECK(run(&desc, &tensors, 4 * 2 * 300 * 6 + (portable ? 0 : COUNTERS)) == 3);
        for (i = 1; i < 3; ++i) {
            const backward_seen seen = see_backward(&launch[i]);
            CHECK(seen.rotates == 1 && seen.pairs == 7 && seen.interleaved == 1);
            CHECK(seen.by_index && seen.choices == at(0xb000));
        }
    }
    desc.struct_size = offsetof(longrope_attention_backward_desc, rotary);
    CHECK(run(&desc, &tensors, 4 * 2 * 300 * 6) == 3);
    for (i = 1; i < 3; ++i) CHECK(see_backward(&launch[i]).rotates == 0);
    longrope_factor_sets_destroy(sets);
}

/* In BF16 one kernel makes all gradients, between those that list what it works on and that write its sums. */
static void in_one_kernel(void) {
    static const char *const kernels[] = {"items", "turns", "slab_keys", "slab_queries"};
    recorded *const mine = driver.mine();
    longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_attention_backward_tensors tensors = right();
    longrope_tensor *const all[] = {&tensors.q, &tensors.k, &tensors.v, &tensors.d_out, &tensors.dk};
    int i, fast;
    for (i = 0; i < 5; ++i) all[i]->dtype = LONGROPE_DTYPE_BF16;
    memset(&tensors.out, 0, sizeof tensors.out);
    tensors.delta = tensor(0xa00000, LONGROPE_DTYPE_F32, 2, 300, 6, 1);
    for (fast = 0; fast < 2; ++fast) {
        size_t bytes = 0;
        desc.flags = fast ? LONGROPE_ATTENTION_BACKWARD_FAST : 0;
        CHECK(longrope_attention_backward_workspace_size(&desc, &tensors, &bytes) == LONGROPE_STATUS_OK);
        /* At least an F32 of each element of dq, dk and dv. */
        CHECK(bytes > (size_t)4 * 2 * 128 * (300 * 6 + 500 * 2 * 2));
        mine->launches = mine->clears = 0;
        CHECK(longrope_attention_backward_run(context, &desc, &tensors, at(WORKSPACE), bytes, driver.stream(5)) ==
              LONGROPE_STATUS_OK);
        CHECK(mine->launches == 4 - fast && mine->clears == 1 && mine->cleared == WORKSPACE && mine->launches_before_clear == 0);
        for (i = fast; i < 4; ++i) {
            char name[100];
            snprintf(name, sizeof name, "longrope_attention_backward_%s_sm90_d128_bf16", fast && i == 1 ? "fast" : kernels[i]);
            CHECK(strcmp(mine->launch[i - fast].kernel, name) == 0);
        }
    }
}

/* What there is nothing of takes no launch, and no delta without queries. */
static void empty(void) {
    const recorded_launch *const launch = driver.mine()->launch;
    const longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    longrope_attention_backward_tensors no_queries = right(), no_keys = right(), none;
    no_queries.q.shape[1] = no_queries.out.shape[1] = no_queries.lse.shape[1] = no_queries.d_out.shape[1] = 0;
    no_queries.dq.shape[1] = 0;
    none = no_queries;
    none.k.shape[1] = none.v.shape[1] = none.dk.shape[1] = none.dv.shape[1] = 0;
    no_keys.k.shape[1] = no_keys.v.shape[1] = no_keys.dk.shape[1] = no_keys.dv.shape[1] = 0;
    CHECK(run(&desc, &no_queries, COUNTERS) == 1 && is_of(&launch[0], "longrope_attention_backward_keys_"));
    CHECK(run(&desc, &no_keys, 4 * 2 * 300 * 6 + COUNTERS) == 2 && is_of(&launch[1], "longrope_attention_backward_queries_"));
    CHECK(run(&desc, &none, 0) == 0);
    /* Of no bytes, no address is looked at. */
    CHECK(longrope_attention_backward_run(context, &desc, &none, at(WORKSPACE + 1), 0, NULL) == LONGROPE_STATUS_OK);
    CHECK(driver.mine()->launches == 0);
}

/* What is wrong with the workspace or the stream launches nothing. */
static void refused(void) {
    const longrope_attention_backward_desc desc = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    const longrope_attention_backward_tensors tensors = right();
    const size_t bytes = 4 * 2 * 300 * 6 + COUNTERS;
    driver.mine()->launches = 0;
#define ASK(address, size, stream, status, start) \
    CHECK(longrope_attention_backward_run(context, &desc, &tensors, address, size, stream) == status); \
    CHECK(strncmp(longrope_last_error_message(), start, strlen(start)) == 0)
    ASK(NULL, 0, driver.stream(5), LONGROPE_STATUS_INVALID_ARGUMENT,
        "workspace_bytes: 0 is not valid; expected at least the 14528 that workspace_size says");
    ASK(at(WORKSPACE), bytes - 1, driver.stream(5), LONGROPE_STATUS_INVALID_ARGUMENT, "workspace_bytes: 14527 ");
    ASK(NULL, bytes, driver.stream(5), LONGROPE_STATUS_INVALID_ARGUMENT, "workspace: a null address ");
    ASK(at(WORKSPACE + 8), bytes, driver.stream(5), LONGROPE_STATUS_INVALID_ARGUMENT, "workspace: address 0x10000008 ");
    ASK(at(WORKSPACE), bytes, RECORDING_BROKEN_STREAM, LONGROPE_STATUS_DRIVER, "cuLaunchKernel: ");
    CHECK(driver.mine()->launches == 0);
}

int main(void) {
    driver = open_recording();
    driver.set_current(driver.context(0));
    if (!longrope_has_device_code()) {
        printf("without kernels\n");
        return 0;
    }
    CHECK(longrope_context_create(0, &context) == LONGROPE_STATUS_OK);
    without_delta();
    with_delta();
    rotated();
    packed();
    in_one_kernel();
    empty();
    refused();
    longrope_context_destroy(context);
    printf("done\n");
    return 0;
}
