/* The little of the CUDA driver that the examples need, loaded at run time: an engine has its own. No part of
 * longrope.
 *
 * With the CUDA toolkit one would include <cuda.h> or <cuda_runtime.h> instead; longrope takes a CUstream and a
 * cudaStream_t alike. */
#ifndef LONGROPE_EXAMPLE_GPU_H
#define LONGROPE_EXAMPLE_GPU_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct gpu {
    void *driver;
    void *stream;
    int (*init)(unsigned);
    int (*device_get)(int *, int);
    int (*context_retain)(void **, int);
    int (*context_set)(void *);
    int (*stream_create)(void **, unsigned);
    int (*stream_synchronize)(void *);
    int (*allocate)(uint64_t *, size_t);
    int (*release)(uint64_t);
    int (*to_device)(uint64_t, const void *, size_t, void *);
    int (*to_host)(void *, uint64_t, size_t, void *);
} gpu;

/* Finds a function of the driver. C has no cast from an object's address to a function's. */
static inline int gpu_find(gpu *g, const char *name, void *function) {
    void *address = dlsym(g->driver, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

/* Makes the primary context of GPU 0 current, with a stream of its own. 0 if there is no GPU. */
static inline int gpu_open(gpu *g) {
    int device = 0;
    void *context = NULL;
    memset(g, 0, sizeof *g);
    g->driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!g->driver) return 0;
    if (!gpu_find(g, "cuInit", &g->init) || !gpu_find(g, "cuDeviceGet", &g->device_get) ||
        !gpu_find(g, "cuDevicePrimaryCtxRetain", &g->context_retain) ||
        !gpu_find(g, "cuCtxSetCurrent", &g->context_set) ||
        !gpu_find(g, "cuStreamCreate", &g->stream_create) ||
        !gpu_find(g, "cuStreamSynchronize", &g->stream_synchronize) || !gpu_find(g, "cuMemAlloc_v2", &g->allocate) ||
        !gpu_find(g, "cuMemFree_v2", &g->release) || !gpu_find(g, "cuMemcpyHtoDAsync_v2", &g->to_device) ||
        !gpu_find(g, "cuMemcpyDtoHAsync_v2", &g->to_host)) {
        return 0;
    }
    return g->init(0) == 0 && g->device_get(&device, 0) == 0 && g->context_retain(&context, device) == 0 &&
           g->context_set(context) == 0 && g->stream_create(&g->stream, 1 /* non-blocking */) == 0;
}

#endif
