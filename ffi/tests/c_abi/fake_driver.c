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

/* 75 and 76 are the numbers of the compute capability, 16 that of how many multiprocessors there are. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : attribute == 16 ? 4 : 0;
    return device == 0 ? 0 : 101;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : 1;
}

/* The images that are loaded, by several threads at a time. */
static _Atomic int images;

int cuLibraryLoadData(void **library, const void *image, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    *library = &images;
    if (images++ == 0) printf("driver: cuLibraryLoadData %s\n", image ? "an image" : "nothing");
    return 0;
}

int cuLibraryUnload(void *library) {
    if (library != &images) return 500;
    if (--images == 0) printf("driver: cuLibraryUnload the last image\n");
    return 0;
}

/* A kernel is its name; beside it, the bytes of shared memory that it may have. */
typedef struct kernel {
    char name[96];
    unsigned shared;
} kernel;

int cuLibraryGetKernel(void **found, void *library, const char *name) {
    static kernel kernels[256];
    static int count;
    if (!library || count == 256 || strlen(name) >= sizeof kernels[0].name) return 500;
    strcpy(kernels[count].name, name);
    kernels[count].shared = 48 << 10;
    *found = &kernels[count++];
    return 0;
}

/* 8 is the number of the most bytes of dynamic shared memory. */
int cuKernelSetAttribute(int attribute, int value, void *given, int device) {
    if (attribute != 8 || device != 0) return 1;
    ((kernel *)given)->shared = (unsigned)value;
    return 0;
}

/* 5 is the number of the version of the PTX that a kernel is of: one that can't wait for another. */
int cuKernelGetAttribute(int *value, int attribute, void *given, int device) {
    if (attribute != 5 || !given || device != 0) return 1;
    *value = 80;
    return 0;
}

int cuCtxGetCurrent(void **context) {
    static int current;
    *context = CURRENT ? &current : NULL;
    return 0;
}

/* Nobody uses the primary context. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = 0;
    return device == 0 ? 0 : 101;
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

static void print_rotary(const char *name, const void *block) {
    const int is_rerotation = strncmp(name, "longrope_rerotate_", 18) == 0;
    const longrope_rerotate_params *rerotate = block;
    const longrope_rotary_params *p = is_rerotation ? &rerotate->rotary : block;
    int t;
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
        printf("driver:   shift %lld from choices %d %p\n", (long long)rerotate->shift,
               (int)rerotate->from_choice_kind, rerotate->from_choices);
    }
}

static void print_rows(const char *name, const void *at, const int64_t *stride) {
    printf("driver:   %s %p by %lld %lld %lld\n", name, at, (long long)stride[0], (long long)stride[1],
           (long long)stride[2]);
}

static void print_attention(const longrope_attention_params *p) {
    printf("driver:   q %p k %p v %p out %p\n", p->q, p->k, p->v, p->out);
    print_stride("q", p->q_stride);
    print_stride("k", p->k_stride);
    print_stride("v", p->v_stride);
    print_stride("out", p->out_stride);
    print_rows("lse", (const void *)p->lse, p->lse_stride);
    printf("driver:   %d sequences of kind %d, %lld queries, %lld keys, starts %p %p wide %d\n", (int)p->sequences,
           (int)p->sequence_kind, (long long)p->query_length, (long long)p->key_length, p->query_starts,
           p->key_starts, (int)p->starts_are_wide);
    printf("driver:   %d heads, groups of %d, head_dim %d, out_is_f32 %d\n", (int)p->query_heads, (int)p->group,
           (int)p->head_dim, (int)p->out_is_f32);
    printf("driver:   causal %d window %lld from %lld (%p) and %lld status %p\n", (int)p->causal,
           (long long)p->window, (long long)p->query_offset, (const void *)p->query_offsets,
           (long long)p->key_offset, (void *)p->status);
    printf("driver:   scale %.6g negated %d\n", p->scale_log2 / 1.4426950408889634, (int)p->negate);
    if (!p->carry) return;
    printf("driver:   carry %p\n", (const void *)p->carry);
    print_stride("carry", p->carry_stride);
    print_rows("its lse", (const void *)p->carry_lse, p->carry_lse_stride);
}

static void print_cache(const longrope_cache *c) {
    printf("driver:   cache k %p v %p, %lld pages of %lld, %d heads\n", c->k, c->v, (long long)c->pages,
           (long long)c->page_size, (int)c->key_heads);
    print_stride("k", c->k_stride);
    print_stride("v", c->v_stride);
    printf("driver:   table %p by %lld, %d sequences of up to %lld, lengths %p wide %d\n", (const void *)c->page_table,
           (long long)c->table_stride, (int)c->sequences, (long long)c->capacity, c->lengths,
           (int)c->lengths_are_wide);
}

static void print_tokens(const longrope_new_tokens *t) {
    printf("driver:   tokens: at most %lld of %lld, starts %p wide %d\n", (long long)t->most, (long long)t->total,
           t->starts, (int)t->starts_are_wide);
}

static void print_cache_rotary(const char *name, const longrope_cache_rotary *r) {
    printf("driver:   %s: choices %d %p pairs %d interleaved %d parity %d\n", name, (int)r->choice_kind, r->choices,
           (int)r->pairs, (int)r->interleaved, (int)r->parity);
    print_sets(name, &r->sets);
}

/* A tensor map is the address that it was made for. */
static void print_hopper_attention(const char *name, unsigned blocks, const longrope_attention_sm90_params *p) {
    printf("driver:   kernel %s, %u blocks for %u items, drawn %p sums %p\n", name, blocks, (unsigned)p->items,
           (void *)p->drawn, (void *)p->sums);
    printf("driver:   maps of %#llx %#llx %#llx\n", (unsigned long long)p->q.words[0],
           (unsigned long long)p->k.words[0], (unsigned long long)p->v.words[0]);
    print_attention(&p->attention);
    if (p->splits > 1) printf("driver:   %d parts of %d batches\n", (int)p->splits, (int)p->batches);
    if (p->is_cached) {
        print_cache(&p->cache);
        print_tokens(&p->tokens);
    }
    if (p->rotates) print_cache_rotary("queries", &p->rotary);
}

static void print_merge(const longrope_merge_params *p) {
    printf("driver:   %lld parts %p by %lld, lse %p by %lld\n", (long long)p->part_count, (const void *)p->parts,
           (long long)p->part_stride, (const void *)p->parts_lse, (long long)p->part_lse_stride);
    print_stride("parts", p->in_stride);
    print_rows("their lse", (const void *)p->parts_lse, p->in_lse_stride);
    printf("driver:   out %p\n", p->out);
    print_stride("out", p->out_stride);
    print_rows("lse", (const void *)p->lse, p->lse_stride);
    printf("driver:   batch %lld length %lld heads %d head_dim %d\n", (long long)p->batch, (long long)p->length,
           (int)p->heads, (int)p->head_dim);
}

static void print_decode(const char *name, unsigned blocks, const longrope_decode_params *p) {
    printf("driver:   kernel %s, %u blocks\n", name, blocks);
    if (strncmp(name, "longrope_decode_merge_", 22) == 0) return;
    print_cache(&p->cache);
    print_tokens(&p->tokens);
    if (strncmp(name, "longrope_decode_rotating_", 25) == 0) {
        print_cache_rotary("rotary", &((const longrope_decode_rotating_params *)p)->rotary);
    }
    printf("driver:   q %p out %p f32 %d\n", p->q, p->out, (int)p->out_is_f32);
    print_stride("q", p->q_stride);
    print_stride("out", p->out_stride);
    print_rows("lse", (const void *)p->lse, p->lse_stride);
    printf("driver:   window %lld splits %d parts %p scale %.6g negated %d status %p\n", (long long)p->window,
           (int)p->splits, (void *)p->parts, p->scale_log2 / 1.4426950408889634, (int)p->negate, (void *)p->status);
    printf("driver:   %d heads, groups of %d, head_dim %d\n", (int)p->query_heads, (int)p->group, (int)p->head_dim);
}

static void print_cached_attention(const char *name, unsigned blocks, const longrope_cached_attention_params *p) {
    const longrope_attention_params *const a = &p->attention;
    printf("driver:   kernel %s, %u blocks\n", name, blocks);
    print_cache(&p->cache);
    print_tokens(&p->tokens);
    if (strncmp(name, "longrope_attention_cached_rotating_", 35) == 0) {
        print_cache_rotary("rotary", &((const longrope_cached_attention_rotating_params *)p)->rotary);
    }
    printf("driver:   q %p out %p f32 %d\n", a->q, a->out, (int)a->out_is_f32);
    print_stride("q", a->q_stride);
    print_stride("out", a->out_stride);
    print_rows("lse", (const void *)a->lse, a->lse_stride);
    printf("driver:   window %lld splits %d of %d batches, scale %.6g negated %d status %p\n", (long long)a->window,
           (int)p->splits, (int)p->batches, a->scale_log2 / 1.4426950408889634, (int)a->negate, (void *)a->status);
    printf("driver:   %d heads, groups of %d, head_dim %d\n", (int)a->query_heads, (int)a->group, (int)a->head_dim);
}

static void print_split_merge(const char *name, unsigned blocks, const longrope_split_merge_params *p) {
    printf("driver:   kernel %s, %u blocks\n", name, blocks);
    print_cache(&p->cache);
    print_tokens(&p->tokens);
    print_merge(&p->merge);
}

static void print_append(const char *name, const longrope_append_params *p) {
    printf("driver:   kernel %s\n", name);
    print_cache(&p->cache);
    print_tokens(&p->tokens);
    print_cache_rotary("rotary", &p->rotary);
    printf("driver:   q %p to %p, k %p v %p\n", p->q, p->q_out, p->k, p->v);
    print_stride("q", p->q_stride);
    print_stride("q to", p->q_out_stride);
    print_stride("k", p->k_stride);
    print_stride("v", p->v_stride);
    printf("driver:   %d query heads, head_dim %d, unrotated %d status %p\n", (int)p->query_heads, (int)p->head_dim,
           (int)p->keys_unrotated, (void *)p->status);
}

static void print_cache_rerotate(const char *name, const longrope_cache_rerotate_params *p) {
    printf("driver:   kernel %s\n", name);
    print_cache(&p->cache);
    print_cache_rotary("from", &p->from);
    print_cache_rotary("to", &p->to);
    printf("driver:   same sets %d head_dim %d status %p\n", (int)p->same_sets, (int)p->head_dim, (void *)p->status);
}

/* Device memory is host memory here. */
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    if (stream == (void *)0xbad) return 700;
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return 0;
}

int cuMemsetD32Async(unsigned long long address, unsigned value, size_t count, void *stream) {
    if (stream == (void *)0xbad) return 700;
    printf("driver: cuMemsetD32Async %#llx to %u, %lu times, on stream %p\n", address, value, (unsigned long)count,
           stream);
    return 0;
}

int cuTensorMapEncodeTiled(longrope_tensor_map *map, int dtype, uint32_t rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    (void)steps, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    if (rank != 4 || (uintptr_t)map % 64 != 0) return 1;
    memset(map, 0, sizeof *map);
    map->words[0] = (uintptr_t)address;
    printf("driver: cuTensorMapEncodeTiled %p type %d, %llu %llu %llu %llu by %llu %llu %llu, boxes of %u %u %u %u\n",
           address, dtype, (unsigned long long)sizes[0], (unsigned long long)sizes[1], (unsigned long long)sizes[2],
           (unsigned long long)sizes[3], (unsigned long long)strides[0], (unsigned long long)strides[1],
           (unsigned long long)strides[2], box[0], box[1], box[2], box[3]);
    return 0;
}

int cuStreamSynchronize(void *stream) { return stream == (void *)0xbad ? 700 : 0; }

int cuLaunchKernel(void *given, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    const kernel *const k = given;
    (void)y, (void)z, (void)threads, (void)ty, (void)tz, (void)extra;
    if (shared > k->shared) return 1;
    if (stream == (void *)0xbad) return 700;
    printf("driver: cuLaunchKernel %.17s on stream %p\n", k->name, stream);
    if (strncmp(k->name, "longrope_attention_cached_", 26) == 0) {
        print_cached_attention(k->name, x, arguments[0]);
    } else if (strncmp(k->name, "longrope_split_merge_", 21) == 0) {
        print_split_merge(k->name, x, arguments[0]);
    } else if (strncmp(k->name, "longrope_attention_sm90_", 24) == 0) {
        print_hopper_attention(k->name, x, arguments[0]);
    } else if (strncmp(k->name, "longrope_attention_", 19) == 0) {
        print_attention(arguments[0]);
    } else if (strncmp(k->name, "longrope_merge_", 15) == 0) {
        print_merge(arguments[0]);
    } else if (strncmp(k->name, "longrope_decode_", 16) == 0) {
        print_decode(k->name, x, arguments[0]);
    } else if (strncmp(k->name, "longrope_append_", 16) == 0) {
        print_append(k->name, arguments[0]);
    } else if (strncmp(k->name, "longrope_cache_rerotate_", 24) == 0) {
        print_cache_rerotate(k->name, arguments[0]);
    } else {
        print_rotary(k->name, arguments[0]);
    }
    return 0;
}

#endif
