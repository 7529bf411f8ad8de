/* The part of recording_driver.c that captures: what is launched on a stream that captures does not run, but becomes a node
 * of a graph, and is recorded as a launch of the thread that replays it. As the driver of NVIDIA it refuses what would wait
 * for such a stream, and work on the legacy stream meanwhile; either makes the capture invalid, and is counted. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "recording_capture.h"

enum { STREAMS = 16, MOST_NODES = 16 };

/* Of a stream, and the same when it is instantiated. */
typedef struct graph {
    int count;
    graph_node nodes[MOST_NODES];
} graph;

/* A stream is used by one thread at a time. */
static graph *captured[STREAMS];
static int is_invalid[STREAMS];
static atomic_int capturing; /* how many streams do */

/* -1 for the legacy stream. */
static int number_of(const void *stream) { return stream ? (int)((const char *)stream - (char *)recording_stream(0)) : -1; }

static int refuse(int number, int error) {
    ++recording()->violations;
    if (number >= 0) is_invalid[number] = 1;
    return error;
}

int recording_next_node(void *stream, graph_node **node) {
    const int number = number_of(stream);
    *node = NULL;
    if (number < 0) return capturing ? refuse(number, CAPTURE_IMPLICIT) : 0;
    if (!captured[number]) return 0;
    if (is_invalid[number]) return CAPTURE_INVALIDATED;
    if (captured[number]->count == MOST_NODES) return refuse(number, CAPTURE_UNSUPPORTED);
    *node = &captured[number]->nodes[captured[number]->count];
    return 0;
}

void recording_keep_node(void *stream) { ++captured[number_of(stream)]->count; }

int recording_may_wait(void *stream) {
    const int number = number_of(stream);
    if (number < 0) return capturing ? refuse(number, CAPTURE_IMPLICIT) : 0;
    return captured[number] ? refuse(number, CAPTURE_UNSUPPORTED) : 0;
}

/* ---- The driver's functions -------------------------------------------------------------------------------------- */

/* The modes differ in calls that this driver lacks: those that allocate, and questions about events. */
int cuStreamBeginCapture_v2(void *stream, int mode) {
    const int number = number_of(stream);
    void *context;
    const int error = recording_context_of(stream, &context);
    if (error) return error;
    if (number < 0) return CAPTURE_UNSUPPORTED;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    if (captured[number]) return ILLEGAL_STATE;
    captured[number] = calloc(1, sizeof *captured[number]);
    if (!captured[number]) abort();
    is_invalid[number] = 0;
    ++capturing;
    return 0;
}

int cuStreamEndCapture(void *stream, void **made) {
    const int number = number_of(stream);
    void *context;
    const int error = recording_context_of(stream, &context);
    *made = NULL;
    if (error) return error;
    if (number < 0 || !captured[number]) return ILLEGAL_STATE;
    if (is_invalid[number]) {
        free(captured[number]);
    } else {
        *made = captured[number];
    }
    captured[number] = NULL;
    --capturing;
    return *made ? 0 : CAPTURE_INVALIDATED;
}

/* The number of nodes alone: there are no handles of them. */
int cuGraphGetNodes(const void *of, void *nodes, size_t *count) {
    if (!of || nodes || !count) return INVALID_VALUE;
    *count = (size_t)((const graph *)of)->count;
    return 0;
}

int cuGraphDestroy(void *of) {
    free(of);
    return of ? 0 : INVALID_VALUE;
}

/* It lives on when the graph is destroyed. */
int cuGraphInstantiateWithFlags(void **made, const void *of, unsigned long long flags) {
    if (!of || flags != 0) return INVALID_VALUE;
    *made = malloc(sizeof(graph));
    if (!*made) abort();
    memcpy(*made, of, sizeof(graph));
    return 0;
}

int cuGraphExecDestroy(void *instance) { return cuGraphDestroy(instance); }

int cuGraphLaunch(const void *instance, void *stream) {
    const graph *const from = instance;
    recorded *const mine = recording();
    void *context;
    int error = recording_context_of(stream, &context), i;
    /* A graph within a graph is not offered. */
    if (!error) error = recording_may_wait(stream);
    if (error) return error;
    if (!from) return INVALID_VALUE;
    for (i = 0; i < from->count; ++i) {
        if (from->nodes[i].is_clear) {
            recording_clear(from->nodes[i].cleared, stream);
        } else {
            recorded_launch *const launch = &mine->launch[mine->launches % KEPT_LAUNCHES];
            *launch = from->nodes[i].launch;
            launch->stream = stream;
            ++mine->launches;
        }
    }
    return 0;
}
