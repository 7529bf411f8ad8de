/* The habits of XLA's foreign functions: a handler gets a stream, buffers with their shapes, attributes, and a place for each
 * result; it answers with a status and a message, and keeps nothing between calls. Handlers of several devices run on
 * threads of a pool. Scratch is one more result, whose size is known when the program is compiled: on a machine that may
 * have no GPU. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "../recording_driver.h"
#include "longrope.h"

/* ---- What the engine has ----------------------------------------------------------------------------------------- */

typedef struct buffer {
    void *data;
    int32_t dtype; /* a longrope_dtype */
    int64_t dims[4];
} buffer;

typedef struct call_frame {
    void *stream;
    const longrope_context *context; /* made when the program was instantiated on its device */
    buffer arguments[3], results[3];
    int64_t window; /* an attribute */
    char error[512];
} call_frame;

/* ---- The handler ------------------------------------------------------------------------------------------------- */

static longrope_tensor tensor(const buffer *b) {
    longrope_tensor t;
    memset(&t, 0, sizeof t);
    t.data = b->data;
    t.dtype = b->dtype;
    memcpy(t.shape, b->dims, sizeof t.shape);
    return t;
}

static void build(const call_frame *frame, longrope_attention_desc *desc, longrope_attention_tensors *tensors) {
    const longrope_attention_desc fresh = LONGROPE_ATTENTION_DESC_INIT;
    *desc = fresh;
    desc->causal = 1;
    desc->window = frame->window;
    tensors->q = tensor(&frame->arguments[0]);
    tensors->k = tensor(&frame->arguments[1]);
    tensors->v = tensor(&frame->arguments[2]);
    tensors->out = tensor(&frame->results[0]);
    tensors->lse = tensor(&frame->results[1]);
}

/* 0, or the engine's code with a message. */
static int failed(call_frame *frame, longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return 0;
    snprintf(frame->error, sizeof frame->error, "%s: %s", longrope_status_string(status), longrope_last_error_message());
    return status == LONGROPE_STATUS_INVALID_ARGUMENT ? 3 : status == LONGROPE_STATUS_UNSUPPORTED ? 12 : 13;
}

static int handler(call_frame *frame) {
    longrope_attention_desc desc;
    longrope_attention_tensors tensors;
    build(frame, &desc, &tensors);
    return failed(frame, longrope_attention_run(frame->context, &desc, &tensors, frame->results[2].data,
                                                (size_t)frame->results[2].dims[0], frame->stream));
}

/* When the program is compiled: how large the third result is. No data has an address yet that means anything. */
static int scratch_size(call_frame *frame, size_t *bytes) {
    longrope_attention_desc desc;
    longrope_attention_tensors tensors;
    build(frame, &desc, &tensors);
    return failed(frame, longrope_attention_workspace_size(&desc, &tensors, bytes));
}

/* ---- The engine -------------------------------------------------------------------------------------------------- */

static call_frame frame_of(int number) {
    const int64_t q[4] = {1, 64 + number, 4, 64}, k[4] = {1, 64 + number, 2, 64}, lse[4] = {1, 64 + number, 4, 1};
    /* Each call has memory of its own. */
    char *const base = (char *)((uintptr_t)(number + 1) << 28);
    call_frame f;
    size_t bytes = 0;
    int i;
    memset(&f, 0, sizeof f);
    for (i = 0; i < 3; ++i) {
        f.arguments[i].data = base + i * 0x100000;
        f.arguments[i].dtype = LONGROPE_DTYPE_BF16;
        memcpy(f.arguments[i].dims, i == 0 ? q : k, sizeof q);
        f.results[i].data = base + (3 + i) * 0x100000;
    }
    f.results[0].dtype = LONGROPE_DTYPE_BF16;
    memcpy(f.results[0].dims, q, sizeof q);
    f.results[1].dtype = LONGROPE_DTYPE_F32;
    memcpy(f.results[1].dims, lse, sizeof lse);
    CHECK(scratch_size(&f, &bytes) == 0);
    f.results[2].dims[0] = (int64_t)bytes;
    return f;
}

static recording_api driver;
static longrope_context *context;

/* A thread of the pool: calls of its own, among them wrong ones. */
static void *pool_thread(void *argument) {
    const int thread = (int)(intptr_t)argument;
    recorded *const mine = driver.mine();
    int i;
    for (i = 0; i < 500; ++i) {
        call_frame f = frame_of(thread * 8 + i % 8);
        const int is_wrong = i % 5 == 4;
        f.context = context;
        f.stream = driver.stream((thread + i) % 16);
        f.window = i % 3;
        if (is_wrong) f.arguments[1].dims[3] = 32 + thread;
        /* What is current to the thread is the engine's business. */
        driver.set_current(i % 2 ? NULL : driver.context(i));
        mine->launches = 0;
        if (is_wrong) {
            char expected[80];
            CHECK(handler(&f) == 3 && mine->launches == 0);
            snprintf(expected, sizeof expected, "invalid argument: tensors.k.shape[3]: %d ", 32 + thread);
            CHECK(strncmp(f.error, expected, strlen(expected)) == 0);
        } else {
            CHECK(handler(&f) == 0 && f.error[0] == 0);
            CHECK(mine->launches == 1 && mine->launch[0].stream == f.stream);
            CHECK(mine->launch[0].context == driver.context((thread + i) % 16));
        }
        {
            void *current = NULL;
            driver.get_current(&current);
            CHECK(current == (i % 2 ? NULL : driver.context(i)));
        }
    }
    return NULL;
}

int main(void) {
    pthread_t threads[8];
    longrope_status status;
    call_frame f;
    intptr_t i;
    /* Compiled where there is no GPU: sizes and refusals need no context. */
    f = frame_of(0);
    f.arguments[0].dims[3] = 300;
    {
        size_t bytes;
        CHECK(scratch_size(&f, &bytes) != 0 && f.error[0] != 0);
    }
    driver = open_recording();
    status = longrope_context_create(0, &context);
    if (status == LONGROPE_STATUS_NO_DEVICE_CODE) {
        printf("without kernels\n");
        return 0;
    }
    CHECK(status == LONGROPE_STATUS_OK);
    for (i = 0; i < 8; ++i) CHECK(pthread_create(&threads[i], NULL, pool_thread, (void *)i) == 0);
    for (i = 0; i < 8; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    longrope_context_destroy(context);
    printf("4000 calls\n");
    return 0;
}
