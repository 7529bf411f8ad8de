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
    return api;
}
