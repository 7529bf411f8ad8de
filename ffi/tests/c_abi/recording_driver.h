/* What a program is told by recording_driver.c. The functions are found in it by dlsym. */
#ifndef RECORDING_DRIVER_H
#define RECORDING_DRIVER_H

#include <stddef.h>

/* A launch. */
typedef struct recorded_launch {
    char kernel[96];
    void *stream;
    void *context; /* the CUDA context that it runs in */
    unsigned blocks, threads, shared;
    size_t bytes; /* of the parameter block */
    unsigned char params[8192];
} recorded_launch;

/* What a thread has done. */
typedef struct recorded {
    long launches;            /* since the program set it to 0; the last two are kept */
    long context_changes;     /* calls that set, push, pop, make or retain a CUDA context */
    int is_idle;              /* set by the program: launches are neither checked nor kept */
    recorded_launch launch[2]; /* launch number i, from 0, is at i % 2 */
} recorded;

/* That of the calling thread. */
typedef recorded *recording_fn(void);
/* Device memory is host memory here: that of this range and no other. */
typedef void recording_memory_fn(const void *from, size_t bytes);
/* The CUDA context of a number, 0 to 3. */
typedef void *recording_context_fn(int number);
/* The stream of a number, 0 to 15; it belongs to CUDA context `number % 4`. */
typedef void *recording_stream_fn(int number);

/* A stream that is broken: all that is asked of it answers CUDA_ERROR_ILLEGAL_ADDRESS. */
#define RECORDING_BROKEN_STREAM ((void *)0xbad)

#endif
