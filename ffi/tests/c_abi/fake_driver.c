/* A libcuda.so.1 that has no GPU: it answers what longrope asks a driver, and prints what it is told to do.
 *
 * VERSION, MAJOR and MINOR say what it claims to be, CURRENT whether a CUDA context is current.
 * SILENT_AFTER_VERSION makes one that lacks all other functions. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "params.h"

int cuDriverGetVersion(int *version) {
    *version = VERSION;
    return 0;
}

#ifndef SILENT_AFTER_VERSION

int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }

int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : 101;
}

/* 75 and 76 are the numbers of the compute capability. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : 0;
    return device == 0 ? 0 : 101;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : 1;
}

int cuLibraryLoadData(void **library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    static int loaded;
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    *library = &loaded;
    printf("driver: cuLibraryLoadData %s\n", image ? "an image" : "nothing");
    return 0;
}

int cuLibraryUnload(void *library) {
    printf("driver: cuLibraryUnload %s\n", library ? "a library" : "nothing");
    return 0;
}

/* A kernel is its name. */
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    static char names[256][96];
    static int count;
    if (!library || count == 256 || strlen(name) >= sizeof names[0]) return 500;
    *kernel = strcpy(names[count++], name);
    return 0;
}

int cuCtxGetCurrent(void **context) {
    static int current;
    *context = CURRENT ? &current : NULL;
    return 0;
}

/* Loads a kernel's code into the current context. */
int cuKernelGetFunction(void **function, void *kernel) {
    static int count;
    *function = kernel;
    if (!CURRENT) return 201;
    if (count++ == 0) printf("driver: cuKernelGetFunction\n");
    return 0;
}

static void print_stride(const char *name, const int64_t *stride) {
    printf("driver:   %s %lld %lld %lld %lld\n", name, (long long)stride[0], (long long)stride[1], (long long)stride[2],
           (long long)stride[3]);
}

static void print_sets(const char *name, const longrope_factor_sets *sets) {
    printf("driver:   %s steps %016llx %016llx %016llx gains %g %g %g original %lld first %lld\n", name,
           (unsigned long long)sets->plain_set.step[0], (unsigned long long)sets->short_set.step[0],
           (unsigned long long)sets->long_set.step[0], sets->plain_set.gain, sets->short_set.gain, sets->long_set.gain,
           (long long)sets->original_length, (long long)sets->first_tokens);
}

int cuLaunchKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    const int is_rerotation = strncmp(kernel, "longrope_rerotate_", 18) == 0;
    const longrope_rerotate_params *rerotate = arguments[0];
    const longrope_rotary_params *p = is_rerotation ? &rerotate->rotary : arguments[0];
    int t;
    (void)x, (void)y, (void)z, (void)threads, (void)ty, (void)tz, (void)shared, (void)extra;
    if (stream == (void *)0xbad) return 700;
    printf("driver: cuLaunchKernel %.17s on stream %p\n", (const char *)kernel, stream);
    for (t = 0; t < 2; ++t) {
        if (p->tensor[t].heads == 0) continue;
        printf("driver:   tensor %d: %p to %p, %d heads\n", t, p->tensor[t].in, p->tensor[t].out,
               (int)p->tensor[t].heads);
        print_stride("from", p->tensor[t].in_stride);
        print_stride("to", p->tensor[t].out_stride);
    }
    printf("driver:   batch %lld length %lld head_dim %d pairs %d backward %d parity %d\n", (long long)p->batch,
           (long long)p->length, (int)p->head_dim, (int)p->pairs, (int)p->backward, (int)p->parity);
    printf("driver:   positions %d %p %lld choices %d %p status %p\n", (int)p->position_kind, p->positions,
           (long long)p->position_offset, (int)p->choice_kind, p->choices, (void *)p->status);
    print_sets("sets", &p->sets);
    if (is_rerotation) {
        print_sets("from", &rerotate->from);
        printf("driver:   shift %lld from choices %d %p\n", (long long)rerotate->shift, (int)rerotate->from_choice_kind,
               rerotate->from_choices);
    }
    return 0;
}

#endif
