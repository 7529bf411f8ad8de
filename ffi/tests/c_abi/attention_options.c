/* What Hopper's kernel is told of an attention's options, by a driver that keeps the parameters of launches. */
#define _DEFAULT_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "launch_params.h"
#include "longrope.h"
#include "recording_driver.h"

enum { PAIRS = 24, WORKSPACE = 0x10000000 };

static recording_api driver;
static longrope_context *context;

static void *at(uintptr_t address) { return (void *)address; }

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
    made.out = tensor(0x400000, LONGROPE_DTYPE_F32, 2, queries, 6, 64);
    made.lse = tensor(0x500000, LONGROPE_DTYPE_F32, 2, queries, 6, 1);
    return made;
}

/* Runs it; the first launch. */
static const recorded_launch *run(const longrope_attention_desc *desc, const longrope_attention_tensors *tensors,
                                  size_t *bytes) {
    recorded *const mine = driver.mine();
    mine->launches = mine->clears = 0;
    CHECK(longrope_attention_workspace_size(desc, tensors, bytes) == LONGROPE_STATUS_OK);
    CHECK(longrope_attention_run(context, desc, tensors, at(WORKSPACE), *bytes, driver.stream(1)) == LONGROPE_STATUS_OK);
    CHECK(mine->launches >= 1);
    return &mine->launch[0];
}

/* The blocks of a launch are at most so many, and draw what is left of their items. */
static void limit(void) {
    const int32_t limits[] = {1, 7, 12, 13, 131, 132, 1000};
    size_t i, plain = 0, bytes = 0;
    for (i = 0; i < sizeof limits / sizeof *limits; ++i) {
        longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
        const longrope_attention_tensors few = attention_tensors(5, 9), many = attention_tensors(4000, 9);
        const unsigned most = limits[i] < 132 ? (unsigned)limits[i] : 132;
        const recorded_launch *launch;
        run(&desc, &many, &plain);
        desc.max_multiprocessors = limits[i];
        launch = run(&desc, &many, &bytes);
        CHECK(see_counter(launch).items == 12 * 21 && launch->blocks == most);
        CHECK(driver.mine()->clears == 1 && bytes == plain);
        launch = run(&desc, &few, &bytes);
        CHECK(see_counter(launch).items == 12 && launch->blocks == (most < 12 ? most : 12));
        CHECK(driver.mine()->clears == (most < 12 ? 1 : 0));
    }
}

/* A struct of the first version: what lies behind it is not looked at, and what was asked for without it is launched. */
static void first_version(void) {
    static recorded_launch whole;
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    const longrope_attention_tensors tensors = attention_tensors(50, 90);
    const recorded_launch *launch;
    size_t bytes;
    desc.causal = 1;
    desc.window = 17;
    whole = *run(&desc, &tensors, &bytes);
    desc.struct_size = offsetof(longrope_attention_desc, query_rotary);
    memset((char *)&desc + desc.struct_size, 0xa5, sizeof desc - desc.struct_size);
    launch = run(&desc, &tensors, &bytes);
    CHECK(strcmp(launch->kernel, whole.kernel) == 0 && launch->blocks == whole.blocks);
    CHECK(launch->bytes == whole.bytes && memcmp(launch->params, whole.params, whole.bytes) == 0);
}

/* An earlier result: one of its own, that which is written, and one that parts of the keys are merged with. */
static void carry(void) {
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors = attention_tensors(5, 9);
    const int64_t out_stride[4] = {2048, 64, 320, 1}, lse_stride[4] = {64, 1, 5, 1};
    options_seen seen;
    size_t bytes;
    CHECK(see_options(run(&desc, &tensors, &bytes)).carry == NULL);
    desc.carry_out = tensor(0x600000, LONGROPE_DTYPE_F32, 2, 5, 6, 64);
    desc.carry_lse = tensor(0x700000, LONGROPE_DTYPE_F32, 2, 5, 6, 1);
    memcpy(desc.carry_out.stride, out_stride, sizeof out_stride);
    memcpy(desc.carry_lse.stride, lse_stride, sizeof lse_stride);
    seen = see_options(run(&desc, &tensors, &bytes));
    CHECK(driver.mine()->launches == 1 && seen.carry == at(0x600000) && seen.carry_lse == at(0x700000));
    CHECK(memcmp(seen.carry_stride, out_stride, sizeof out_stride) == 0);
    CHECK(memcmp(seen.carry_lse_stride, lse_stride, sizeof seen.carry_lse_stride) == 0);
    desc.carry_out = tensors.out;
    desc.carry_lse = tensors.lse;
    seen = see_options(run(&desc, &tensors, &bytes));
    CHECK(seen.carry == at(0x400000) && seen.carry_stride[1] == 384 && seen.carry_lse_stride[1] == 6);
    tensors = attention_tensors(5, 1 << 15);
    desc.carry_out = tensors.out;
    desc.carry_lse = tensors.lse;
    seen = see_options(run(&desc, &tensors, &bytes));
    CHECK(see_counter(&driver.mine()->launch[0]).splits > 1 && driver.mine()->launches == 2);
    CHECK(seen.carry == at(0x400000) && seen.carry_lse == at(0x500000));
}

/* The rotation of queries, which needs no more memory. */
static void rotation(const longrope_factor_sets *sets) {
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    const longrope_attention_tensors tensors = attention_tensors(300, 5000);
    options_seen seen;
    size_t plain, bytes;
    CHECK(see_options(run(&desc, &tensors, &plain)).rotates == 0);
    rotary.sets = sets;
    rotary.pairing = LONGROPE_PAIRING_INTERLEAVED;
    rotary.choice_kind = LONGROPE_CHOICES_BY_INDEX;
    rotary.choices = at(0x3000);
    desc.query_rotary = &rotary;
    seen = see_options(run(&desc, &tensors, &bytes));
    CHECK(seen.rotates == 1 && seen.pairs == PAIRS && seen.interleaved == 1 && seen.choices == at(0x3000));
    CHECK(seen.last_step == 0x28be60db9391054au);
    CHECK(bytes == plain);
    rotary.choice_kind = LONGROPE_CHOICES_SHORT;
    rotary.choices = NULL;
    rotary.pairing = LONGROPE_PAIRING_HALF_SPLIT;
    {
        const int by_index = seen.choice_kind;
        seen = see_options(run(&desc, &tensors, &bytes));
        CHECK(seen.choice_kind != by_index && seen.choices == NULL && seen.interleaved == 0);
    }
    /* The descriptor is not kept: its rotation may be gone once the call has returned. */
    memset(&rotary, 0xff, sizeof rotary);
}

int main(void) {
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL;
    double values[PAIRS];
    int i;
    /* A radian a token: 2^64 / 2 pi of a step. */
    for (i = 0; i < PAIRS; ++i) values[i] = 1.0;
    frequencies.pairs = PAIRS;
    frequencies.short_frequencies = values;
    CHECK(longrope_factor_sets_from_frequencies(&frequencies, &sets) == LONGROPE_STATUS_OK);
    driver = open_recording();
    driver.set_current(driver.context(0));
    if (!longrope_has_device_code()) {
        printf("without kernels\n");
    } else {
        CHECK(longrope_context_create(0, &context) == LONGROPE_STATUS_OK);
        limit();
        first_version();
        carry();
        rotation(sets);
        longrope_context_destroy(context);
        printf("done\n");
    }
    longrope_factor_sets_destroy(sets);
    return 0;
}
