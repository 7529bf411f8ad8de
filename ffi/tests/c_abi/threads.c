/* Threads that share a context and factor sets, each with a stream and a workspace of its own: threads COUNT ROUNDS [all].
 * What a thread is told is of its own calls: messages, launches, results. With `all` they call the CPU form as well and make
 * contexts of their own; without, helgrind has nothing to say (it takes the atomics of Rust's library for races). */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "launch_params.h"
#include "longrope.h"
#include "recording_driver.h"

enum { MOST = 16, ELEMENTS = 4 * 64 };

static recording_api driver;
static longrope_context *shared_context;
static longrope_factor_sets *sets;
static int rounds, with_all;
static float expected[MOST][ELEMENTS];
static pthread_barrier_t barrier;

static void *at(uintptr_t address) { return (void *)address; }

static longrope_tensor tensor(uintptr_t data, int32_t dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim) {
    const longrope_tensor made = {at(data), dtype, {batch, length, heads, dim}, {0, 0, 0, 0}};
    return made;
}

/* Each thread has positions of its own, and so results. */
static void rotate(int number, float *out) {
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io io;
    int i;
    for (i = 0; i < ELEMENTS; ++i) out[i] = (float)(i % 31) / 31.0f;
    memset(&io, 0, sizeof io);
    rotary.sets = sets;
    rotary.position_offset = 1000 * number;
    io.input = tensor((uintptr_t)out, LONGROPE_DTYPE_F32, 1, 4, 2, 32);
    CHECK(longrope_rotary_cpu(&rotary, &io, 1) == LONGROPE_STATUS_OK);
}

/* A decoding in parts, and the merge of them. */
static void decode(int number, const longrope_context *context) {
    recorded *const mine = driver.mine();
    const uintptr_t workspace = 0x10000000u * (uintptr_t)(number + 1);
    longrope_kv_cache cache = LONGROPE_KV_CACHE_INIT;
    longrope_decode_desc desc = LONGROPE_DECODE_DESC_INIT;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    longrope_decode_tensors tensors;
    size_t bytes = 0;
    int i;
    memset(&tensors, 0, sizeof tensors);
    cache.k = cache.v = tensor(0x200000, LONGROPE_DTYPE_F16, 2, 4096, 2, 64);
    cache.lengths = at(0x1000);
    rotary.sets = sets;
    desc.rotary = number % 2 ? &rotary : NULL;
    desc.window = 100 + number;
    tensors.q = tensor(0x100000, LONGROPE_DTYPE_F16, 2, 1, 6, 64);
    tensors.out = tensor(0x400000, LONGROPE_DTYPE_F16, 2, 1, 6, 64);
    mine->launches = 0;
    CHECK(longrope_decode_workspace_size(&desc, &cache, &tensors, &bytes) == LONGROPE_STATUS_OK && bytes < 0x10000000);
    CHECK(longrope_decode_run(context, &desc, &cache, &tensors, at(workspace), bytes, driver.stream(number)) == 0);
    CHECK(mine->launches == 2);
    for (i = 0; i < 2; ++i) {
        const parts_seen seen = see_parts(&mine->launch[i]);
        CHECK(mine->launch[i].stream == driver.stream(number));
        CHECK(seen.parts == at(workspace) && (uintptr_t)seen.parts_lse < workspace + bytes);
        CHECK(see_decode(&mine->launch[i]).window == 100 + number);
    }
}

/* A failure, of which the message has this thread's number. */
static void misuse(int number, char *text, size_t room) {
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors;
    memset(&tensors, 0, sizeof tensors);
    tensors.q = tensors.k = tensors.v = tensors.out = tensor(0x1000, LONGROPE_DTYPE_F16, 1, 1, 1, 8);
    desc.window = -1000 - number;
    CHECK(longrope_attention_supported(&desc, &tensors) == LONGROPE_STATUS_INVALID_ARGUMENT);
    snprintf(text, room, "desc.window: %d is not valid; expected 0 or more", -1000 - number);
}

static void *work(void *given) {
    const int number = *(const int *)given;
    longrope_context *own = NULL;
    char text[100];
    float out[ELEMENTS];
    void *now = NULL;
    int round;
    CHECK(*longrope_last_error_message() == '\0'); /* no other thread's */
    driver.set_current(driver.context(number));
    pthread_barrier_wait(&barrier);
    if (shared_context && with_all) CHECK(longrope_context_create(0, &own) == LONGROPE_STATUS_OK);
    for (round = 0; round < rounds; ++round) {
        misuse(number, text, sizeof text);
        if (shared_context) decode(number, own && round % 8 == 0 ? own : shared_context);
        if (with_all && round % 16 == 0) {
            rotate(number, out);
            CHECK(memcmp(out, expected[number], sizeof out) == 0);
        }
        CHECK(strcmp(longrope_last_error_message(), text) == 0);
        driver.get_current(&now);
        CHECK(now == driver.context(number) && driver.mine()->context_changes == 1);
    }
    longrope_context_destroy(own);
    return NULL;
}

int main(int argc, char **argv) {
    const int count = argc > 1 ? atoi(argv[1]) : 0;
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    static int numbers[MOST];
    pthread_t threads[MOST];
    double values[16];
    int i;
    rounds = argc > 2 ? atoi(argv[2]) : 0;
    with_all = argc > 3;
    if (count < 1 || count > MOST || rounds < 1) {
        fprintf(stderr, "threads COUNT ROUNDS [cpu], at most %d threads\n", MOST);
        return 2;
    }
    for (i = 0; i < 16; ++i) values[i] = 1.0 / (1 + i);
    frequencies.pairs = 16;
    frequencies.short_frequencies = values;
    CHECK(longrope_factor_sets_from_frequencies(&frequencies, &sets) == LONGROPE_STATUS_OK);
    driver = open_recording();
    driver.set_current(driver.context(0));
    if (longrope_has_device_code()) CHECK(longrope_context_create(0, &shared_context) == LONGROPE_STATUS_OK);
    pthread_barrier_init(&barrier, NULL, (unsigned)count);
    for (i = 0; i < count; ++i) {
        numbers[i] = i;
        if (with_all) rotate(i, expected[i]);
        /* Finds the driver's functions. */
        if (shared_context) decode(i, shared_context);
    }
    for (i = 0; i < count; ++i) CHECK(pthread_create(&threads[i], NULL, work, &numbers[i]) == 0);
    for (i = 0; i < count; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&barrier);
    longrope_context_destroy(shared_context);
    longrope_factor_sets_destroy(sets);
    printf("%d threads: %s\n", count, shared_context ? "done" : "without kernels");
    return 0;
}
