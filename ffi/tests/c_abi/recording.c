/* Finding the functions of recording_driver.c. */
#define _DEFAULT_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recording_driver.h"

static void *found(void *library, const char *name) {
    void *const at = dlsym(library, name);
    if (!at) {
        fprintf(stderr, "libcuda.so.1 has no %s\n", name);
        exit(1);
    }
    return at;
}

recording_api open_recording(void) {
    void *const library = dlopen("libcuda.so.1", RTLD_NOW);
    recording_api api;
    void *at;
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    /* ISO C has no cast from an object's address to a function's. */
    at = found(library, "recording"), memcpy(&api.mine, &at, sizeof at);
    at = found(library, "recording_memory"), memcpy(&api.memory, &at, sizeof at);
    at = found(library, "recording_context"), memcpy(&api.context, &at, sizeof at);
    at = found(library, "recording_stream"), memcpy(&api.stream, &at, sizeof at);
    at = found(library, "cuCtxSetCurrent"), memcpy(&api.set_current, &at, sizeof at);
    at = found(library, "cuCtxGetCurrent"), memcpy(&api.get_current, &at, sizeof at);
    at = found(library, "cuLaunchKernelEx"), memcpy(&api.launch, &at, sizeof at);
    at = found(library, "cuStreamSynchronize"), memcpy(&api.synchronize, &at, sizeof at);
    at = found(library, "cuStreamBeginCapture_v2"), memcpy(&api.begin_capture, &at, sizeof at);
    at = found(library, "cuStreamEndCapture"), memcpy(&api.end_capture, &at, sizeof at);
    at = found(library, "cuGraphGetNodes"), memcpy(&api.nodes, &at, sizeof at);
    at = found(library, "cuGraphDestroy"), memcpy(&api.destroy_graph, &at, sizeof at);
    at = found(library, "cuGraphInstantiateWithFlags"), memcpy(&api.instantiate, &at, sizeof at);
    at = found(library, "cuGraphLaunch"), memcpy(&api.launch_graph, &at, sizeof at);
    at = found(library, "cuGraphExecDestroy"), memcpy(&api.destroy_instance, &at, sizeof at);
    return api;
}
