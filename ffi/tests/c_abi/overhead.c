/* What a call costs on the host beyond the driver's own launch: a table of medians, in nanoseconds.
 * overhead REPEATS CALLS [MOST]: of RUNS through all functions the median, each the median of so many repeats, each the mean
 * of so many calls. So one disturbance of the machine is not seen. It fails if a call costs more than MOST beyond its launches,
 * however many they are. The driver here does nothing. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "longrope.h"
#include "recording_driver.h"

static void *at(uintptr_t address) { return (void *)address; }

static void expect(longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return;
    printf("status %d: %s\n", (int)status, longrope_last_error_message());
    exit(1);
}

static longrope_tensor tensor(uintptr_t data, int32_t dtype, int64_t batch, int64_t length, int64_t heads) {
    const longrope_tensor made = {at(data), dtype, {batch, length, heads, 128}, {0, 0, 0, 0}};
    return made;
}

/* A step of a model of 32 query heads and 8 key heads: 8 sequences over a paged cache of 16384 tokens each. */
static recording_api driver;
static longrope_context *context;
static void *stream;
static longrope_rotary_desc rotary = LONGROPE_ROTARY_DESC_INIT;
static longrope_tensor_io io[2];
static longrope_attention_desc attention = LONGROPE_ATTENTION_DESC_INIT;
static longrope_attention_tensors attended;
static longrope_attention_backward_desc backward = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
static longrope_attention_backward_tensors gradients;
static longrope_merge_parts parts;
static longrope_kv_cache cache = LONGROPE_KV_CACHE_INIT;
static longrope_cache_rotary_desc cache_rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
static longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
static longrope_append_tensors fresh;
static longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT, decode_rotating = LONGROPE_DECODE_DESC_INIT;
static longrope_decode_tensors decoded;
static longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
static longrope_decode_tensors prefilled;
static size_t attention_bytes, backward_bytes, decode_bytes, prefill_bytes;

static void make(const longrope_factor_sets *sets) {
    const int32_t type = LONGROPE_DTYPE_BF16;
    rotary.sets = cache_rotary.sets = sets;
    cache_rotary.choice_kind = LONGROPE_CHOICES_BY_LENGTH;
    io[0].input = tensor(0x100000, type, 8, 1, 32);
    io[1].input = tensor(0x200000, type, 8, 1, 8);
    attention.causal = 1;
    attended.q = tensor(0x100000, type, 1, 4096, 32);
    attended.k = tensor(0x2000000, type, 1, 4096, 8);
    attended.v = tensor(0x3000000, type, 1, 4096, 8);
    attended.out = tensor(0x4000000, type, 1, 4096, 32);
    backward.causal = 1;
    gradients.q = gradients.out = gradients.d_out = attended.q;
    gradients.k = attended.k;
    gradients.v = attended.v;
    gradients.lse = tensor(0x5000000, LONGROPE_DTYPE_F32, 1, 4096, 32);
    gradients.lse.shape[3] = 1;
    gradients.dq = tensor(0x6000000, type, 1, 4096, 32);
    gradients.dk = tensor(0x7000000, type, 1, 4096, 8);
    gradients.dv = tensor(0x8000000, type, 1, 4096, 8);
    parts.out = tensor(0x100000, LONGROPE_DTYPE_F32, 8, 1, 32);
    parts.lse = tensor(0x200000, LONGROPE_DTYPE_F32, 8, 1, 32);
    parts.lse.shape[3] = 1;
    parts.count = 4;
    parts.out_stride = 8 * 32 * 128;
    parts.lse_stride = 8 * 32;
    cache.page_kind = LONGROPE_PAGES_TABLE;
    cache.k = tensor(0x10000000, type, 8192, 16, 8);
    cache.v = tensor(0x30000000, type, 8192, 16, 8);
    cache.lengths = at(0x1000);
    cache.page_table = at(0x2000);
    cache.sequences = 8;
    cache.table_width = 1024;
    append.rotary = decode_rotating.rotary = &cache_rotary;
    fresh.q.input = io[0].input;
    fresh.k = fresh.v = io[1].input;
    decoded.q = io[0].input;
    decoded.out = tensor(0x400000, type, 8, 1, 32);
    prefilled.q = tensor(0x100000, type, 8, 64, 32);
    prefilled.out = tensor(0x4000000, type, 8, 64, 32);
    expect(longrope_attention_workspace_size(&attention, &attended, &attention_bytes));
    expect(longrope_attention_backward_workspace_size(&backward, &gradients, &backward_bytes));
    expect(longrope_decode_workspace_size(&decode, &cache, &decoded, &decode_bytes));
    expect(longrope_prefill_workspace_size(&prefill, &cache, &prefilled, &prefill_bytes));
}

static longrope_status run_rotary(void) { return longrope_rotary_run(context, &rotary, io, 2, stream); }
static longrope_status run_attention(void) {
    return longrope_attention_run(context, &attention, &attended, at(0x50000000), attention_bytes, stream);
}
static longrope_status run_backward(void) {
    return longrope_attention_backward_run(context, &backward, &gradients, at(0x50000000), backward_bytes, stream);
}
static longrope_status run_delta(void) {
    return longrope_attention_delta_run(context, &gradients.out, &gradients.d_out, &gradients.lse, stream);
}
static longrope_status run_merge(void) { return longrope_merge_run(context, &parts, &decoded.out, NULL, stream); }
static longrope_status run_append(void) { return longrope_append_run(context, &append, &cache, &fresh, stream); }
static longrope_status run_decode(void) {
    return longrope_decode_run(context, &decode, &cache, &decoded, at(0x50000000), decode_bytes, stream);
}
static longrope_status run_rotating(void) {
    return longrope_decode_run(context, &decode_rotating, &cache, &decoded, at(0x50000000), decode_bytes, stream);
}
static longrope_status run_prefill(void) {
    return longrope_prefill_run(context, &prefill, &cache, &prefilled, at(0x50000000), prefill_bytes, stream);
}

/* cuLaunchKernelEx as a program would call it itself; the driver is idle and looks at nothing. */
static longrope_status run_bare(void) {
    static const uint64_t config[8];
    static uint64_t block;
    void *arguments[1] = {&block};
    return (longrope_status)driver.launch((const struct launch_config *)config, NULL, arguments, NULL);
}

static double nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double median(double *times, int count) {
    qsort(times, (size_t)count, sizeof *times, ascending);
    return times[count / 2];
}

static double measure(longrope_status (*run)(void), int repeats, int calls) {
    static double times[1001];
    int repeat, call;
    for (repeat = 0; repeat < repeats; ++repeat) {
        const double start = nanoseconds();
        for (call = 0; call < calls; ++call) expect(run());
        times[repeat] = (nanoseconds() - start) / calls;
    }
    return median(times, repeats);
}

enum { RUNS = 5 };

typedef struct function {
    const char *name;
    longrope_status (*run)(void);
    long launches;
    double times[RUNS], beyond[RUNS];
} function;

int main(int argc, char **argv) {
    static function functions[] = {
        {"rotary_run", run_rotary, 0, {0}, {0}},
        {"attention_run", run_attention, 0, {0}, {0}},
        {"attention_backward_run", run_backward, 0, {0}, {0}},
        {"attention_delta_run", run_delta, 0, {0}, {0}},
        {"merge_run", run_merge, 0, {0}, {0}},
        {"append_run", run_append, 0, {0}, {0}},
        {"decode_run", run_decode, 0, {0}, {0}},
        {"decode_run (rotating)", run_rotating, 0, {0}, {0}},
        {"prefill_run", run_prefill, 0, {0}, {0}},
    };
    function *const end = functions + sizeof functions / sizeof *functions, *f;
    const int repeats = argc > 1 ? atoi(argv[1]) : 0, calls = argc > 2 ? atoi(argv[2]) : 0;
    const double most = argc > 3 ? atof(argv[3]) : HUGE_VAL;
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL;
    double values[64], bare[RUNS];
    int i, too_slow = 0;
    if (repeats < 1 || repeats > 1001 || calls < 1 || argc > 4) {
        fprintf(stderr, "overhead REPEATS CALLS [MOST], at most 1001 repeats\n");
        return 2;
    }
    if (!longrope_has_device_code()) {
        printf("without kernels\n");
        return 0;
    }
    for (i = 0; i < 64; ++i) values[i] = 1.0 / (double)(1 + i);
    frequencies.pairs = 64;
    frequencies.short_frequencies = frequencies.long_frequencies = values;
    frequencies.original_length = 4096;
    expect(longrope_factor_sets_from_frequencies(&frequencies, &sets));
    driver = open_recording();
    driver.set_current(driver.context(0));
    expect(longrope_context_create(0, &context));
    stream = driver.stream(4);
    make(sets);
    for (f = functions; f < end; ++f) {
        driver.mine()->launches = 0;
        expect(f->run());
        f->launches = driver.mine()->launches;
    }
    driver.mine()->is_idle = 1;
    for (i = 0; i < RUNS; ++i) {
        bare[i] = measure(run_bare, repeats, calls);
        for (f = functions; f < end; ++f) {
            f->times[i] = measure(f->run, repeats, calls);
            f->beyond[i] = f->times[i] - (double)f->launches * bare[i];
        }
    }
    printf("%-24s %10s %10s %15s\n", "function", "launches", "ns a call", "ns beyond them");
    for (f = functions; f < end; ++f) {
        const double beyond = median(f->beyond, RUNS);
        printf("%-24s %10ld %10.1f %15.1f\n", f->name, f->launches, median(f->times, RUNS), beyond);
        if (beyond > most) too_slow = 1;
    }
    printf("%-24s %10d %10.1f\n", "cuLaunchKernelEx", 1, median(bare, RUNS));
    if (too_slow) fprintf(stderr, "a call costs more than %g ns beyond the driver's own launches\n", most);
    longrope_context_destroy(context);
    longrope_factor_sets_destroy(sets);
    return too_slow;
}
