/* What every answer must be: a status of the header that is no fault of the library, a message if and only if it is not
 * OK, the CUDA context as it was; and the same from every function that is asked about the same arguments. */
#define _DEFAULT_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "torture.h"

extern uint64_t current_round, current_seed;

static const char *const NAMES[FUNCTIONS] = {
    "context_create", "factor_sets_from_json", "factor_sets_from_config", "factor_sets_from_frequencies",
    "factor_sets_from_frequencies_f32",
    "config_from_json", "config_from_factors", "config_info_get", "config_frequencies", "config_factors", "config_to_json",
    "rotary_supported", "rotary_workspace_size", "rotary_run", "rotary_cpu",
    "rerotate_supported", "rerotate_workspace_size", "rerotate_run",
    "attention_supported", "attention_workspace_size", "attention_run", "attention_cpu",
    "attention_delta_supported", "attention_delta_run", "attention_delta_cpu",
    "attention_backward_supported", "attention_backward_workspace_size", "attention_backward_run",
    "attention_backward_cpu",
    "merge_supported", "merge_workspace_size", "merge_run",
    "append_supported", "append_workspace_size", "append_run", "append_validate",
    "decode_supported", "decode_workspace_size", "decode_run", "decode_validate",
    "prefill_supported", "prefill_workspace_size", "prefill_run", "prefill_validate",
    "rerotate_cache_supported", "rerotate_cache_workspace_size", "rerotate_cache_run", "rerotate_cache_validate",
};

static struct {
    long by_status[LONGROPE_STATUS_INTERNAL + 1];
    double slowest;
} counted[FUNCTIONS];

recorded *driver;
longrope_context *context;

static recording_api api;
static void *is_current;
static long changes;
static double started;
static char known[600];

void fail(const char *format, ...) {
    va_list arguments;
    fflush(stdout);
    fprintf(stderr, "seed %llu round %llu: ", (unsigned long long)current_seed, (unsigned long long)current_round);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

/* ---- The driver -------------------------------------------------------------------------------------------------- */

void start_driver(void) {
    longrope_status status;
    api = open_recording();
    driver = api.mine();
    api.memory(memory, SLOTS * SLOT_BYTES);
    is_current = api.context(0);
    api.set_current(is_current);
    changes = driver->context_changes;
    before();
    status = longrope_context_create(0, &context);
    after(F_CONTEXT_CREATE, status, NULL);
    if ((status == LONGROPE_STATUS_OK) != (longrope_has_device_code() == 1)) fail("a context: status %d", status);
}

void end_driver(void) {
    longrope_context_destroy(context);
    context = NULL;
}

/* What is current to this thread is what the program made so, and nothing was pushed or retained meanwhile. */
static void check_current(const char *who) {
    void *now = NULL;
    api.get_current(&now);
    if (now != is_current || driver->context_changes != changes) fail("%s: another CUDA context is current", who);
}

void draw_current_context(void) {
    check_current("the end of a round");
    is_current = one_in(4) ? NULL : api.context((int)below(4));
    api.set_current(is_current);
    changes = driver->context_changes;
}

/* ---- One call ---------------------------------------------------------------------------------------------------- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void before(void) {
    longrope_tensor none;
    memset(&none, 0, sizeof none);
    if (longrope_merge_supported(NULL, &none, NULL) != LONGROPE_STATUS_INVALID_ARGUMENT) fail("NULL was taken");
    snprintf(known, sizeof known, "%s", longrope_last_error_message());
    driver->launches = 0;
    check_current("a call");
    started = seconds();
}

void after(function which, longrope_status status, answer *kept) {
    const double took = seconds() - started;
    const char *const message = longrope_last_error_message();
    if (took > counted[which].slowest) counted[which].slowest = took;
    if (!message) fail("%s: no message", NAMES[which]);
    if ((int)status < 0 || status > LONGROPE_STATUS_INTERNAL) fail("%s: %d is no status", NAMES[which], (int)status);
    if (status == LONGROPE_STATUS_INTERNAL) fail("%s: INTERNAL: %s", NAMES[which], message);
    if (status == LONGROPE_STATUS_OK && strcmp(message, known) != 0) fail("%s: OK, and %s", NAMES[which], message);
    if (status != LONGROPE_STATUS_OK) {
        if (!*message) fail("%s: status %d without a message", NAMES[which], (int)status);
        if (strcmp(message, known) == 0 && strncmp(message, "parts: NULL", 11) != 0) {
            fail("%s: status %d left the message of another call: %s", NAMES[which], (int)status, message);
        }
        /* It names the value and what was expected. */
        if (status == LONGROPE_STATUS_INVALID_ARGUMENT && !strstr(message, " is not valid; expected ")) {
            fail("%s: an argument is wrong, and %s", NAMES[which], message);
        }
        if (status == LONGROPE_STATUS_UNSUPPORTED && !strstr(message, " is not supported; ")) {
            fail("%s: not supported, and %s", NAMES[which], message);
        }
        if (driver->launches != 0) fail("%s: status %d after a launch: %s", NAMES[which], (int)status, message);
    }
    check_current(NAMES[which]);
    ++counted[which].by_status[status];
    if (kept) {
        kept->status = status;
        snprintf(kept->message, sizeof kept->message, "%s", status == LONGROPE_STATUS_OK ? "" : message);
    }
}

/* ---- The functions of one operation ------------------------------------------------------------------------------ */

static int same(const answer *a, const answer *b) { return a->status == b->status && strcmp(a->message, b->message) == 0; }

void compare_size(const answer *supported, const answer *size, size_t bytes) {
    if (!same(supported, size)) {
        fail("supported: %d %s\nsize: %d %s", supported->status, supported->message, size->status, size->message);
    }
    if (size->status != LONGROPE_STATUS_OK && bytes != 12345) fail("a size of %zu was written beside an error", bytes);
}

run_arguments draw_run(size_t needed) {
    run_arguments given;
    given.context = one_in(40) ? NULL : context;
    given.bytes = needed + (one_in(4) ? (size_t)below(100) : 0);
    given.workspace = given.bytes ? (void *)(uintptr_t)0x7f0000000000u : NULL;
    if (one_in(12)) given.bytes = needed ? (size_t)below((int64_t)(needed < INT64_MAX ? needed : INT64_MAX)) : 0;
    if (one_in(24)) given.workspace = (void *)(uintptr_t)(0x7f0000000000u + (uint64_t)below(17));
    if (one_in(24)) given.workspace = NULL;
    given.stream = one_in(6) ? NULL : api.stream((int)below(16));
    if (one_in(24)) given.stream = one_in(2) ? RECORDING_BROKEN_STREAM : (void *)(uintptr_t)hostile_integer();
    return given;
}

/* The context comes before the descriptor. */
static int lacks_context(const answer *found, const run_arguments *given) {
    if (given->context) return 0;
    if (found->status != LONGROPE_STATUS_INVALID_ARGUMENT || strncmp(found->message, "context: NULL", 13) != 0) {
        fail("without a context: %d %s", found->status, found->message);
    }
    return 1;
}

static int is_stream(const void *stream) {
    int i;
    for (i = 0; i < 16; ++i) {
        if (stream == api.stream(i)) return 1;
    }
    return !stream && is_current != NULL;
}

/* Of 2^31 blocks and more, `_supported` counts those of the kernel that every GPU has. A run on Hopper may have one that takes
 * more queries a block, and so another number in its message, or none. */
static int counts_other_blocks(const answer *supported, const answer *run) {
    const char *const blocks = strstr(supported->message, "expected fewer than 2^31 blocks of ");
    const size_t alike = blocks ? (size_t)(blocks - supported->message) : 0;
    if (supported->status != LONGROPE_STATUS_UNSUPPORTED || !blocks) return 0;
    if (run->status == LONGROPE_STATUS_OK) return 1;
    return run->status == supported->status && strncmp(run->message, supported->message, alike) == 0;
}

void compare_run(const answer *supported, const answer *run, const run_arguments *given, size_t needed, int most_launches) {
    const int is_bad = given->bytes < needed || (needed && !given->workspace) ||
                       (given->bytes && (uintptr_t)given->workspace % 16);
    long i;
    if (lacks_context(run, given)) return;
    if (counts_other_blocks(supported, run)) return;
    if (supported->status != LONGROPE_STATUS_OK) {
        if (!same(supported, run)) {
            fail("supported: %d %s\nrun: %d %s", supported->status, supported->message, run->status, run->message);
        }
    } else if (is_bad) {
        if (run->status != LONGROPE_STATUS_INVALID_ARGUMENT || strncmp(run->message, "workspace", 9) != 0) {
            fail("%zu bytes at %p for %zu: %d %s", given->bytes, given->workspace, needed, run->status, run->message);
        }
    } else if (run->status == LONGROPE_STATUS_OK) {
        if (driver->launches > most_launches) fail("%ld launches", driver->launches);
        if (driver->launches > 0 && !is_stream(given->stream)) fail("a launch on a stream that is none");
        for (i = 0; i < driver->launches; ++i) {
            if (driver->launch[i % KEPT_LAUNCHES].stream != given->stream) fail("a launch on another stream");
        }
    } else if (run->status != LONGROPE_STATUS_DRIVER || is_stream(given->stream)) {
        fail("what is supported does not run: %d %s", run->status, run->message);
    }
}

void compare_validate(const answer *supported, const answer *found, const run_arguments *given) {
    if (lacks_context(found, given)) return;
    if (supported->status != LONGROPE_STATUS_OK) {
        if (!same(supported, found)) {
            fail("supported: %d %s\nvalidate: %d %s", supported->status, supported->message, found->status, found->message);
        }
    } else if (found->status != LONGROPE_STATUS_OK && found->status != LONGROPE_STATUS_INVALID_ARGUMENT &&
               found->status != LONGROPE_STATUS_DRIVER) {
        fail("validate: %d %s", found->status, found->message);
    }
}

/* ---- The table --------------------------------------------------------------------------------------------------- */

long calls(void) {
    long all = 0;
    int i, status;
    for (i = 0; i < FUNCTIONS; ++i) {
        for (status = 0; status <= LONGROPE_STATUS_INTERNAL; ++status) all += counted[i].by_status[status];
    }
    return all;
}

int print_table(void) {
    int i, status, one_sided = 0;
    printf("%-35s %9s %7s  %s\n", "function", "calls", "ok", "slowest, and how often by status");
    for (i = 0; i < FUNCTIONS; ++i) {
        const long ok = counted[i].by_status[0];
        const char *const name = NAMES[i];
        const size_t length = strlen(name);
        const int needs_kernels = i == F_CONTEXT_CREATE || strcmp(name + length - 4, "_run") == 0 ||
                                  (length > 9 && strcmp(name + length - 9, "_validate") == 0);
        long all = 0;
        for (status = 0; status <= LONGROPE_STATUS_INTERNAL; ++status) all += counted[i].by_status[status];
        if (all == 0) continue;
        printf("%-35s %9ld %6.1f%%  %.3f ms", name, all, 100.0 * (double)ok / (double)all, 1e3 * counted[i].slowest);
        for (status = 0; status <= LONGROPE_STATUS_INTERNAL; ++status) {
            if (counted[i].by_status[status]) printf("  %d: %ld", status, counted[i].by_status[status]);
        }
        printf("\n");
        if (ok == all || (ok == 0 && (longrope_has_device_code() || !needs_kernels))) ++one_sided;
    }
    return one_sided;
}
