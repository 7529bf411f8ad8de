/* Calls in a child after fork, on a driver that knows which process started it. The parent has used all that the library
 * keeps: its threads, a context, factor sets, the last message. fork [alone]: without a thread that is busy at the time, which
 * an allocator has to be made for, as that of AddressSanitizer is not. */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "longrope.h"

enum { HEADS = 4, LENGTH = 64, DIM = 64, ELEMENTS = HEADS * LENGTH * DIM };

static longrope_factor_sets *sets;
static longrope_context *context;
static float input[ELEMENTS], rotated[ELEMENTS], attended[ELEMENTS], expected_rotated[ELEMENTS], expected_attended[ELEMENTS];

/* Ends this process with what it printed. */
static void stop(void) {
    fflush(stdout);
    _exit(1);
}

static void expect(longrope_status found, longrope_status status, const char *start) {
    const char *const message = longrope_last_error_message();
    if (found != status || (status && strncmp(message, start, strlen(start)) != 0)) {
        printf("status %d, not %d: %s\n", (int)found, (int)status, message);
        stop();
    }
}

static longrope_tensor tensor(void *data, int32_t dtype) {
    const longrope_tensor made = {data, dtype, {1, LENGTH, HEADS, DIM}, {0, 0, 0, 0}};
    return made;
}

/* The CPU forms, which run on threads that a child does not have. */
static void compute(void) {
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_attention_desc attention = LONGROPE_ATTENTION_DESC_INIT;
    longrope_tensor_io io;
    longrope_attention_tensors tensors;
    rotary.sets = sets;
    rotary.position_offset = 100000;
    io.input = tensor(input, LONGROPE_DTYPE_F32);
    io.output = tensor(rotated, LONGROPE_DTYPE_F32);
    expect(longrope_rotary_cpu(&rotary, &io, 1), LONGROPE_STATUS_OK, "");
    memset(&tensors, 0, sizeof tensors);
    tensors.q = tensors.k = tensors.v = tensor(rotated, LONGROPE_DTYPE_F32);
    tensors.out = tensor(attended, LONGROPE_DTYPE_F32);
    attention.causal = 1;
    expect(longrope_attention_cpu(&attention, &tensors), LONGROPE_STATUS_OK, "");
}

/* What fails, and says why. */
static void misuse(void) {
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io io;
    longrope_factor_sets *none = NULL;
    memset(&io, 0, sizeof io);
    io.input = tensor(input, LONGROPE_DTYPE_F32);
    expect(longrope_rotary_cpu(&rotary, &io, 1), LONGROPE_STATUS_INVALID_ARGUMENT, "sets: NULL is not valid");
    expect(longrope_factor_sets_from_json("{}", 2, 0, 0, &none), LONGROPE_STATUS_INVALID_CONFIG, "max_position_embeddings");
    rotary.sets = sets;
    expect(longrope_rotary_run(NULL, &rotary, &io, 1, NULL), LONGROPE_STATUS_INVALID_ARGUMENT, "context: NULL");
}

static longrope_status launch(void) {
    longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io io;
    memset(&io, 0, sizeof io);
    rotary.sets = sets;
    io.input = tensor(input, LONGROPE_DTYPE_F32);
    return longrope_rotary_run(context, &rotary, &io, 1, NULL);
}

static void child(void) {
    longrope_context *made = NULL;
    /* The parent's last failure was this thread's. */
    if (strncmp(longrope_last_error_message(), "context: NULL", 13) != 0) {
        printf("the message is lost: %s\n", longrope_last_error_message());
        stop();
    }
    misuse();
    compute();
    if (memcmp(rotated, expected_rotated, sizeof rotated) != 0 || memcmp(attended, expected_attended, sizeof attended) != 0) {
        printf("the child's results are others\n");
        stop();
    }
    if (longrope_has_device_code()) {
        expect(launch(), LONGROPE_STATUS_DRIVER, "cuCtxGetCurrent: CUDA_ERROR_NOT_INITIALIZED (3)");
        expect(longrope_context_create(0, &made), LONGROPE_STATUS_DRIVER, "cuInit: CUDA_ERROR_NOT_INITIALIZED (3)");
        longrope_context_destroy(context);
    }
    longrope_factor_sets_destroy(sets);
}

/* Runs the child, and a child of that; of no generation, one that has nothing to compare its results with. */
static void fork_and_wait(int generations) {
    int status = 0;
    const pid_t pid = fork();
    if (pid == 0) {
        /* A child that waits for ever is ended. */
        alarm(60);
        if (generations == 0) {
            compute();
            misuse();
            _exit(0);
        }
        if (generations > 1) {
            compute();
            fork_and_wait(generations - 1);
        }
        child();
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        perror("fork");
        exit(1);
    }
    if (WIFSIGNALED(status)) printf("a child ended by signal %d\n", WTERMSIG(status));
    if (status != 0) stop();
}

/* Another thread of the parent that is in a CPU form at any time. */
static void *keep_computing(void *stopped) {
    static float own[ELEMENTS], out[ELEMENTS];
    longrope_attention_desc attention = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors;
    memset(&tensors, 0, sizeof tensors);
    tensors.q = tensors.k = tensors.v = tensor(own, LONGROPE_DTYPE_F32);
    tensors.out = tensor(out, LONGROPE_DTYPE_F32);
    while (!*(volatile int *)stopped) expect(longrope_attention_cpu(&attention, &tensors), LONGROPE_STATUS_OK, "");
    return NULL;
}

int main(int argc, char **argv) {
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    double values[DIM / 2];
    volatile int stopped = 0;
    pthread_t other;
    int i;
    for (i = 0; i < DIM / 2; ++i) values[i] = 1.0 / (1 + i);
    for (i = 0; i < ELEMENTS; ++i) input[i] = (float)(i % 97) / 97.0f - 0.5f;
    frequencies.pairs = DIM / 2;
    frequencies.short_frequencies = values;
    expect(longrope_factor_sets_from_frequencies(&frequencies, &sets), LONGROPE_STATUS_OK, "");
    /* Before the library's threads were started, after it, and in a child of a child. */
    fork_and_wait(0);
    if (longrope_has_device_code()) expect(longrope_context_create(0, &context), LONGROPE_STATUS_OK, "");
    compute();
    memcpy(expected_rotated, rotated, sizeof rotated);
    memcpy(expected_attended, attended, sizeof attended);
    misuse();
    fork_and_wait(1);
    fork_and_wait(2);
    if (argc < 2 || strcmp(argv[1], "alone") != 0) {
        if (pthread_create(&other, NULL, keep_computing, (void *)&stopped) != 0) return 1;
        for (i = 0; i < 20; ++i) fork_and_wait(1);
        stopped = 1;
        pthread_join(other, NULL);
    }
    compute();
    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    printf("done\n");
    return 0;
}
