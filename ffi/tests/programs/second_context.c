/* A CUDA context that is not the primary one of its GPU: launches on its streams run in it, whichever context is current, and
 * the current one stays current. Two such contexts, each with memory and a stream of its own; every call is made with the other
 * one current, then with none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../examples/gpu.h"
#include "longrope.h"

enum { PAIRS = 4, TOKENS = 64, HEAD_DIM = 2 * PAIRS, SIZE = TOKENS * HEAD_DIM, CONTEXTS = 2 };

#define EXPECT(condition)                                              \
    do {                                                               \
        if (!(condition)) {                                            \
            printf("line %d: %s is false\n", __LINE__, #condition);    \
            exit(1);                                                   \
        }                                                              \
    } while (0)

static void check(longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return;
    printf("status %d: %s\n", (int)status, longrope_last_error_message());
    exit(1);
}

static void numbers(float *x, int seed) {
    int i;
    for (i = 0; i < SIZE; ++i) x[i] = (float)((i * 7 + seed * 3) % 17 - 8) / 8;
}

static longrope_tensor_io in_place(void *data) {
    longrope_tensor_io io;
    memset(&io, 0, sizeof io);
    io.input.data = data;
    io.input.dtype = LONGROPE_DTYPE_F32;
    io.input.shape[0] = 1;
    io.input.shape[1] = TOKENS;
    io.input.shape[2] = 1;
    io.input.shape[3] = HEAD_DIM;
    return io;
}

int main(void) {
    static float expected[CONTEXTS][SIZE], found[SIZE];
    const double frequencies[PAIRS] = {1.0, 0.1, 0.01, 0.001};
    longrope_frequencies given = LONGROPE_FREQUENCIES_INIT;
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_factor_sets *sets = NULL;
    longrope_context *context = NULL;
    void *contexts[CONTEXTS], *streams[CONTEXTS], *current = NULL;
    uint64_t memory[CONTEXTS];
    int (*create)(void **, unsigned, int), (*destroy)(void *), (*get_current)(void **);
    longrope_tensor_io io;
    gpu g;
    int i, round;

    if (!gpu_open(&g)) {
        printf("no GPU\n");
        return 1;
    }
    EXPECT(gpu_find(&g, "cuCtxCreate_v2", &create) && gpu_find(&g, "cuCtxDestroy_v2", &destroy) &&
           gpu_find(&g, "cuCtxGetCurrent", &get_current));
    given.pairs = PAIRS;
    given.short_frequencies = given.long_frequencies = frequencies;
    given.original_length = 4096;
    check(longrope_factor_sets_from_frequencies(&given, &sets));
    rotary.sets = sets;
    rotary.position_offset = 100000;

    for (i = 0; i < CONTEXTS; ++i) {
        EXPECT(create(&contexts[i], 0, 0) == 0);
        EXPECT(g.stream_create(&streams[i], 1) == 0 && g.allocate(&memory[i], sizeof found) == 0);
    }
    /* Made while the second one is current: it belongs to neither. */
    check(longrope_context_create(0, &context));
    EXPECT(get_current(&current) == 0 && current == contexts[1]);
    /* Each was put on a stack, of which NULL takes the uppermost. */
    do {
        EXPECT(g.context_set(NULL) == 0 && get_current(&current) == 0);
    } while (current);

    for (round = 0; round < 4; ++round) {
        for (i = 0; i < CONTEXTS; ++i) {
            numbers(expected[i], 4 * i + round);
            EXPECT(g.context_set(contexts[i]) == 0);
            EXPECT(g.to_device(memory[i], expected[i], sizeof expected[i], streams[i]) == 0);
            io = in_place(expected[i]);
            check(longrope_rotary_cpu(&rotary, &io, 1));
        }
        for (i = 0; i < CONTEXTS; ++i) {
            void *const other = round % 2 == 0 ? contexts[1 - i] : NULL;
            EXPECT(g.context_set(other) == 0);
            io = in_place((void *)(uintptr_t)memory[i]);
            check(longrope_rotary_run(context, &rotary, &io, 1, streams[i]));
            EXPECT(get_current(&current) == 0 && current == other);
        }
        for (i = 0; i < CONTEXTS; ++i) {
            int j;
            EXPECT(g.context_set(contexts[i]) == 0);
            EXPECT(g.to_host(found, memory[i], sizeof found, streams[i]) == 0 && g.stream_synchronize(streams[i]) == 0);
            for (j = 0; j < SIZE; ++j) {
                /* Twice the bound of the kernel, since the CPU form has it too. */
                const float difference = found[j] - expected[i][j];
                EXPECT(difference < 1e-6f && difference > -1e-6f);
            }
        }
    }
    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    for (i = 0; i < CONTEXTS; ++i) EXPECT(destroy(contexts[i]) == 0);
    printf("each in its own\n");
    return 0;
}
