/* What recording_driver.c and recording_capture.c tell each other: both make the driver. */
#ifndef RECORDING_CAPTURE_H
#define RECORDING_CAPTURE_H

#include "recording_driver.h"

enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       ILLEGAL_STATE = 401, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
       CAPTURE_IMPLICIT = 906 };

/* What a graph is made of: a launch, or the clearing of words. */
typedef struct graph_node {
    int is_clear;
    unsigned long long cleared;
    recorded_launch launch;
} graph_node;

/* ---- recording_driver.c ------------------------------------------------------------------------------------------ */

/* What the calling thread has done. */
recorded *recording(void);
/* The stream of a number, 0 to 15. */
void *recording_stream(int number);
/* The CUDA context of a stream, or an error. */
int recording_context_of(void *stream, void **context);
/* Words are cleared on a stream now. */
void recording_clear(unsigned long long address, void *stream);

/* ---- recording_capture.c ----------------------------------------------------------------------------------------- */

/* Where work on a stream goes: `*node` is the next one of the graph that the stream captures, or NULL if it runs now. */
int recording_next_node(void *stream, graph_node **node);
/* The node is right, and stays in the graph. */
void recording_keep_node(void *stream);
/* Whether the host may wait for a stream: an error if it captures, which ends its capture. */
int recording_may_wait(void *stream);

#endif
