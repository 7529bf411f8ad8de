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

enum { KEPT_LAUNCHES = 4 };

/* What a thread has done. What is captured is not done before a graph is launched. */
typedef struct recorded {
    long launches;            /* since the program set it to 0; the last KEPT_LAUNCHES are kept */
    long context_changes;     /* calls that set, push, pop, make or retain a CUDA context */
    long clears;              /* words that were cleared */
    unsigned long long cleared; /* the last of them */
    void *cleared_on;         /* its stream */
    long launches_before_clear; /* `launches` as it was then */
    long violations;          /* calls that a capture forbids */
    int primary_is_active;    /* set by the program: somebody uses the primary CUDA context, which is number 0 */
    long primary_uses;        /* how often it was retained, less how often released */
    int is_idle;              /* set by the program: launches are neither checked nor kept */
    recorded_launch launch[KEPT_LAUNCHES]; /* launch number i, from 0, is at i % KEPT_LAUNCHES */
} recorded;

/* A descriptor of the driver's own type; a program has no need to know it. */
struct launch_config;

/* The functions of the driver that programs use themselves. */
typedef struct recording_api {
    recorded *(*mine)(void);                         /* of the calling thread */
    void (*memory)(const void *from, size_t bytes);  /* device memory is host memory here: that of this range alone */
    void *(*context)(int number);                    /* the CUDA context of a number, 0 to 3 */
    void *(*stream)(int number);                     /* the stream of a number, 0 to 15; of context `number % 4` */
    int (*set_current)(void *context);
    int (*get_current)(void **context);
    int (*launch)(const struct launch_config *config, void *kernel, void **arguments, void **extra); /* cuLaunchKernelEx */
    int (*synchronize)(void *stream);
    int (*begin_capture)(void *stream, int mode); /* 2 is relaxed */
    int (*end_capture)(void *stream, void **graph);
    int (*nodes)(const void *graph, void *nodes, size_t *count); /* cuGraphGetNodes */
    int (*destroy_graph)(void *graph);
    int (*instantiate)(void **instance, const void *graph, unsigned long long flags);
    int (*launch_graph)(const void *instance, void *stream);
    int (*destroy_instance)(void *instance);
} recording_api;

/* Opens it, as the library does. Ends the program if it is not there. recording.c */
recording_api open_recording(void);

/* A stream that is broken: all that is asked of it answers CUDA_ERROR_ILLEGAL_ADDRESS. */
#define RECORDING_BROKEN_STREAM ((void *)0xbad)

#endif
