/* A libcuda.so.1 that has no GPU, prints nothing, and remembers what each thread launched and which CUDA context is current
 * to it. As the driver of NVIDIA it refuses what it can't run, copies from its own memory alone, and answers
 * CUDA_ERROR_NOT_INITIALIZED in a process that was forked after cuInit. Graphs are in recording_capture.c. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "params_backward.h"
#include "recording_capture.h"

static _Thread_local recorded mine;
static _Thread_local void *current[16];
static _Thread_local int depth;
static char contexts[4], streams[16];
static atomic_int owner;
static const unsigned char *_Atomic memory;
static atomic_size_t memory_bytes;

recorded *recording(void) { return &mine; }
void *recording_context(int number) { return &contexts[number % 4]; }
void *recording_stream(int number) { return &streams[number % 16]; }

void recording_memory(const void *from, size_t bytes) {
    memory = from;
    memory_bytes = bytes;
}

/* Whether this process called cuInit itself. */
static int is_started(void) { return owner == (int)getpid(); }

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

int cuInit(unsigned flags) {
    int none = 0;
    if (flags != 0) return INVALID_VALUE;
    atomic_compare_exchange_strong(&owner, &none, (int)getpid());
    return is_started() ? 0 : NOT_INITIALIZED;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return is_started() ? 0 : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : INVALID_DEVICE;
}

/* 75 and 76 are the numbers of the compute capability, 16 that of how many multiprocessors there are. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 16 ? 132 : 0;
    return device == 0 ? 0 : INVALID_DEVICE;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
          : error == NOT_INITIALIZED ? "CUDA_ERROR_NOT_INITIALIZED"
          : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
          : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : NULL;
    return *name ? 0 : INVALID_VALUE;
}

/* ---- CUDA contexts, a stack for each thread ---------------------------------------------------------------------- */

int cuCtxGetCurrent(void **context) {
    *context = depth ? current[depth - 1] : NULL;
    return is_started() ? 0 : NOT_INITIALIZED;
}

int cuCtxSetCurrent(void *context) {
    ++mine.context_changes;
    depth = depth ? depth : 1;
    current[depth - 1] = context;
    return 0;
}

int cuCtxPushCurrent_v2(void *context) {
    ++mine.context_changes;
    if (depth == 16) return INVALID_CONTEXT;
    current[depth++] = context;
    return 0;
}

int cuCtxPopCurrent_v2(void **context) {
    ++mine.context_changes;
    if (depth == 0) return INVALID_CONTEXT;
    *context = current[--depth];
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    ++mine.context_changes;
    ++mine.primary_uses;
    *context = &contexts[0];
    return device == 0 ? 0 : INVALID_DEVICE;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = mine.primary_is_active;
    return device == 0 ? 0 : INVALID_DEVICE;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    ++mine.context_changes;
    --mine.primary_uses;
    return device == 0 ? 0 : INVALID_DEVICE;
}

/* ---- Images and kernels ------------------------------------------------------------------------------------------ */

typedef struct kernel {
    char name[96];
    unsigned shared; /* bytes of dynamic shared memory that it may have */
} kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kernel kernels[512];
static int kernel_count;

int cuLibraryLoadData(void **library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    *library = kernels;
    return !image ? INVALID_VALUE : is_started() ? 0 : NOT_INITIALIZED;
}

int cuLibraryUnload(void *library) { return library == kernels ? 0 : INVALID_HANDLE; }

int cuLibraryGetKernel(void **found, void *library, const char *name) {
    int i, answer = 0;
    if (library != kernels || strlen(name) >= sizeof kernels[0].name) return NOT_FOUND;
    pthread_mutex_lock(&lock);
    for (i = 0; i < kernel_count && strcmp(kernels[i].name, name) != 0; ++i) {}
    if (i == 512) {
        answer = NOT_FOUND;
    } else if (i == kernel_count) {
        strcpy(kernels[i].name, name);
        kernels[i].shared = 48 << 10;
        ++kernel_count;
    }
    *found = &kernels[i];
    pthread_mutex_unlock(&lock);
    return answer;
}

/* 8 is the number of the most bytes of dynamic shared memory. */
int cuKernelSetAttribute(int attribute, int value, void *given, int device) {
    if (attribute != 8 || device != 0) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    ((kernel *)given)->shared = (unsigned)value;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* 5 is the number of the version of the PTX that a kernel is of: one that can wait for another. */
int cuKernelGetAttribute(int *value, int attribute, void *given, int device) {
    if (attribute != 5 || !given || device != 0) return INVALID_VALUE;
    *value = 90;
    return 0;
}

int cuKernelGetFunction(void **function, void *given) {
    *function = given;
    return depth && current[depth - 1] ? 0 : INVALID_CONTEXT;
}

/* ---- Work on streams --------------------------------------------------------------------------------------------- */

int recording_context_of(void *stream, void **context) {
    if (!is_started()) return NOT_INITIALIZED;
    if (stream == RECORDING_BROKEN_STREAM) return ILLEGAL_ADDRESS;
    if (!stream) {
        cuCtxGetCurrent(context);
        return *context ? 0 : INVALID_CONTEXT;
    }
    if ((char *)stream < streams || (char *)stream >= streams + 16) return INVALID_HANDLE;
    *context = &contexts[((char *)stream - streams) % 4];
    return 0;
}

/* Bytes of the block that a kernel takes. */
static size_t block_bytes(const char *name) {
    static const struct { const char *start; size_t bytes; } blocks[] = {
        {"longrope_attention_cached_rotating_", sizeof(longrope_cached_attention_rotating_params)},
        {"longrope_attention_cached_", sizeof(longrope_cached_attention_params)},
        {"longrope_split_merge_", sizeof(longrope_split_merge_params)},
        {"longrope_attention_sm90_", sizeof(longrope_attention_sm90_params)},
        {"longrope_attention_backward_queries_sm90_", sizeof(longrope_attention_backward_sm90_params)},
        {"longrope_attention_backward_keys_sm90_", sizeof(longrope_attention_backward_sm90_params)},
        {"longrope_attention_backward_", sizeof(longrope_attention_backward_params)},
        {"longrope_attention_delta_", sizeof(longrope_attention_delta_params)},
        {"longrope_attention_", sizeof(longrope_attention_params)},
        {"longrope_merge_", sizeof(longrope_merge_params)},
        {"longrope_decode_rotating_", sizeof(longrope_decode_rotating_params)},
        {"longrope_decode_", sizeof(longrope_decode_params)},
        {"longrope_append_", sizeof(longrope_append_params)},
        {"longrope_cache_rerotate_", sizeof(longrope_cache_rerotate_params)},
        {"longrope_rerotate_", sizeof(longrope_rerotate_params)},
        {"longrope_rotary_", sizeof(longrope_rotary_params)},
    };
    size_t i;
    for (i = 0; i < sizeof blocks / sizeof blocks[0]; ++i) {
        if (strncmp(name, blocks[i].start, strlen(blocks[i].start)) == 0) return blocks[i].bytes;
    }
    return 0;
}

int cuLaunchKernel(void *given, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    const kernel *const k = given;
    recorded_launch *launch = &mine.launch[mine.launches % KEPT_LAUNCHES];
    graph_node *node = NULL;
    void *context;
    unsigned most;
    int error;
    if (mine.is_idle) return 0;
    error = recording_context_of(stream, &context);
    if (!error) error = recording_next_node(stream, &node);
    if (error) return error;
    if (node) launch = &node->launch;
    if (k < kernels || k >= kernels + 512 || extra || !arguments || !arguments[0]) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    most = k->shared;
    pthread_mutex_unlock(&lock);
    if (x == 0 || x > INT32_MAX || y != 1 || z != 1 || shared > most) return INVALID_VALUE;
    if (tx == 0 || ty == 0 || tz == 0 || (uint64_t)tx * ty * tz > 1024) return INVALID_VALUE;
    launch->bytes = block_bytes(k->name);
    if (launch->bytes == 0 || launch->bytes > sizeof launch->params) return INVALID_VALUE;
    memcpy(launch->kernel, k->name, sizeof launch->kernel);
    memcpy(launch->params, arguments[0], launch->bytes);
    launch->stream = stream;
    launch->context = context;
    launch->blocks = x;
    launch->threads = tx * ty * tz;
    launch->shared = shared;
    if (node) {
        node->is_clear = 0;
        recording_keep_node(stream);
    } else {
        ++mine.launches;
    }
    return 0;
}

struct launch_attribute {
    int id;
    char padding[4];
    union {
        int flag;
        unsigned blocks[3];
        char whole[64];
    } value;
};

struct launch_config {
    unsigned x, y, z, tx, ty, tz, shared;
    void *stream;
    const struct launch_attribute *attributes;
    unsigned attribute_count;
};

int cuLaunchKernelEx(const struct launch_config *config, void *given, void **arguments, void **extra) {
    const struct launch_attribute *attribute = config->attributes;
    unsigned i;
    if (config->attribute_count > 0 && !attribute) return INVALID_VALUE;
    for (i = 0; i < config->attribute_count; ++i, ++attribute) {
        /* 4 is the number of the shape of clusters, of which a grid is a multiple; 6 that of a launch that may begin early. */
        const unsigned *const blocks = attribute->value.blocks;
        const int is_cluster = attribute->id == 4 && blocks[0] > 0 && config->x % blocks[0] == 0 && blocks[1] == 1 && blocks[2] == 1;
        if (!is_cluster && !(attribute->id == 6 && attribute->value.flag == 1)) return INVALID_VALUE;
    }
    return cuLaunchKernel(given, config->x, config->y, config->z, config->tx, config->ty, config->tz, config->shared,
                          config->stream, arguments, extra);
}

void recording_clear(unsigned long long address, void *stream) {
    ++mine.clears;
    mine.cleared = address;
    mine.cleared_on = stream;
    mine.launches_before_clear = mine.launches;
}

int cuMemsetD32Async(unsigned long long address, unsigned value, size_t count, void *stream) {
    graph_node *node = NULL;
    void *context;
    int error;
    if (mine.is_idle) return 0;
    error = recording_context_of(stream, &context);
    if (!error) error = recording_next_node(stream, &node);
    if (error) return error;
    if (address == 0 || address % 4 != 0 || value != 0 || count == 0) return INVALID_VALUE;
    if (node) {
        node->is_clear = 1;
        node->cleared = address;
        recording_keep_node(stream);
    } else {
        recording_clear(address, stream);
    }
    return 0;
}

/* The driver's own limits: strides of multiples of 16 bytes below 2^40, sizes to 2^32, boxes of up to 256 places. */
int cuTensorMapEncodeTiled(longrope_tensor_map *map, int dtype, uint32_t rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    uint32_t i;
    (void)dtype, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    if ((uintptr_t)map % 64 != 0 || rank != 4 || (uintptr_t)address % 16 != 0) return INVALID_VALUE;
    for (i = 0; i < rank; ++i) {
        if (sizes[i] == 0 || sizes[i] > (1ull << 32) || box[i] == 0 || box[i] > 256 || steps[i] != 1) return INVALID_VALUE;
        if (i < rank - 1 && (strides[i] % 16 != 0 || strides[i] >= 1ull << 40)) return INVALID_VALUE;
    }
    memset(map, 0, sizeof *map);
    map->words[0] = (uintptr_t)address;
    return 0;
}

/* To memory that is not page-locked, as any of the callers may be: it waits. */
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    void *context;
    int error = recording_context_of(stream, &context);
    const uintptr_t first = (uintptr_t)memory;
    if (!error) error = recording_may_wait(stream);
    if (error) return error;
    if (from < first || from - first > memory_bytes || bytes > memory_bytes - (from - first)) return INVALID_VALUE;
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return 0;
}

int cuStreamSynchronize(void *stream) {
    void *context;
    const int error = recording_context_of(stream, &context);
    return error ? error : recording_may_wait(stream);
}
