/* Factor sets: those that are there all the time, and rounds that make them from frequencies and from texts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "torture.h"

static longrope_factor_sets *standing[10];
/* Their pairs. The last are more than a kernel has room for. */
static const int64_t PAIRS[COUNT(standing)] = {8, 4, 8, 32, 64, 3, 8, 4, 128, 200};

void start_sets(void) {
    static double values[3][200];
    int i, pair;
    for (i = 0; i < 3; ++i) {
        for (pair = 0; pair < 200; ++pair) values[i][pair] = pow(1e4, -pair / 64.0) / (1 << i);
    }
    for (i = 0; i < COUNT(standing); ++i) {
        longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
        /* Of each kind of angles; with a long set, and with first tokens. */
        frequencies.angles = i == 6 ? LONGROPE_ANGLES_PARITY : i == 7 ? LONGROPE_ANGLES_EXACT_OF_F32 : LONGROPE_ANGLES_EXACT;
        frequencies.pairs = PAIRS[i];
        frequencies.short_frequencies = values[1];
        if (i % 2 == 0) {
            frequencies.long_frequencies = values[2];
            frequencies.original_length = 4096;
            frequencies.long_gain = 1.25;
            frequencies.plain = values[0];
            frequencies.first_tokens = 4;
        }
        if (longrope_factor_sets_from_frequencies(&frequencies, &standing[i]) != LONGROPE_STATUS_OK) {
            fail("standing sets %d: %s", i, longrope_last_error_message());
        }
    }
}

void end_sets(void) {
    int i;
    for (i = 0; i < COUNT(standing); ++i) longrope_factor_sets_destroy(standing[i]);
    longrope_factor_sets_destroy(NULL);
}

const longrope_factor_sets *draw_sets(int64_t dim) {
    int i = (int)below(COUNT(standing)), tries;
    /* Mostly ones that fit. */
    for (tries = 0; tries < 20 && 2 * PAIRS[i] > dim && !one_in(40); ++tries) i = (int)below(COUNT(standing));
    return standing[i];
}

/* What was made is used once, and freed; beside an error there is nothing. */
static void use(longrope_status status, longrope_factor_sets *sets, int64_t pairs) {
    const longrope_rotary_desc plain = LONGROPE_ROTARY_DESC_INIT;
    longrope_rotary_desc desc = plain;
    longrope_tensor_io io;
    const longrope_tensor *out = &io.input;
    answer found;
    if ((status == LONGROPE_STATUS_OK) != (sets != NULL)) fail("status %d and sets %p", (int)status, (void *)sets);
    if (!sets) return;
    if (longrope_factor_sets_pairs(sets) < 1 || (pairs && longrope_factor_sets_pairs(sets) != pairs)) {
        fail("%lld pairs", (long long)longrope_factor_sets_pairs(sets));
    }
    pairs = longrope_factor_sets_pairs(sets);
    if (one_in(4) && pairs <= 128) {
        memset(&io, 0, sizeof io);
        io.input = draw_tensor(0, LONGROPE_DTYPE_F32, 1, 2, 2, 2 * pairs);
        desc.sets = sets;
        desc.position_offset = one_in(2) ? below(1 << 20) : hostile_integer();
        desc.choice_length = below(1 << 20);
        keep_memory();
        before();
        after(F_ROTARY_CPU, longrope_rotary_cpu(&desc, &io, 1), &found);
        check_memory(&out, 1);
        if (found.status != LONGROPE_STATUS_OK) fail("sets that were made do not rotate: %s", found.message);
    }
    longrope_factor_sets_destroy(sets);
}

/* ---- From frequencies -------------------------------------------------------------------------------------------- */

static const field FREQUENCIES_FIELDS[] = {
    FIELD(longrope_frequencies, struct_size, KIND_SIZE),
    FIELD(longrope_frequencies, angles, KIND_I32),
    FIELD(longrope_frequencies, short_frequencies, KIND_ADDRESS),
    FIELD(longrope_frequencies, long_frequencies, KIND_ADDRESS),
    FIELD(longrope_frequencies, plain, KIND_ADDRESS),
    FIELD(longrope_frequencies, short_gain, KIND_F64),
    FIELD(longrope_frequencies, long_gain, KIND_F64),
    FIELD(longrope_frequencies, original_length, KIND_I64),
    FIELD(longrope_frequencies, first_tokens, KIND_I64),
};

/* The array, but where it would now be read beyond its end: not misaligned, and further on. */
static const void *within(const void *spoiled, const void *array, size_t size) {
    return (uintptr_t)spoiled % size == 0 && (uintptr_t)spoiled > (uintptr_t)array ? array : spoiled;
}

void round_of_frequencies(void) {
    const longrope_frequencies plain = LONGROPE_FREQUENCIES_INIT;
    const int is_narrow = one_in(2);
    longrope_frequencies given = plain;
    const longrope_frequencies *at;
    longrope_factor_sets *sets = NULL, **to = one_in(60) ? NULL : &sets;
    double wide[3][64];
    float narrow[3][64];
    const void *arrays[3];
    int spoils = one_in(2) ? 0 : 1 + (int)below(3), i, pair;
    longrope_status status;
    given.angles = (int32_t)below(3);
    given.pairs = 1 + below(64);
    for (i = 0; i < 3; ++i) {
        for (pair = 0; pair < 64; ++pair) {
            wide[i][pair] = one_in(2000) ? hostile_number() : (double)below(1 << 30) / (1 << 30);
            narrow[i][pair] = fabs(wide[i][pair]) < 1e38 ? (float)wide[i][pair] : INFINITY;
        }
        /* They end where memory does. */
        arrays[i] = is_narrow ? place(5 + i, &narrow[i][64 - given.pairs], (size_t)given.pairs * 4)
                              : place(5 + i, &wide[i][64 - given.pairs], (size_t)given.pairs * 8);
    }
    given.short_frequencies = arrays[0];
    if (one_in(2)) {
        given.long_frequencies = arrays[1];
        given.original_length = 1 + below(1 << 20);
        given.long_gain = one_in(2) ? 0 : (double)(1 + below(9)) / 4;
    }
    if (one_in(2)) {
        given.plain = arrays[2];
        given.first_tokens = below(100);
    }
    given.short_gain = one_in(2) ? 0 : (double)(1 + below(9)) / 4;
    while (spoils--) {
        spoil(&given, FREQUENCIES_FIELDS, COUNT(FREQUENCIES_FIELDS), 1);
        /* Counts that are certain to be refused: there are no more in the arrays. */
        if (one_in(9)) given.pairs = one_in(2) ? -below(INT64_MAX) : (1 << 19) + 1 + below(INT64_MAX >> 20);
    }
    given.short_frequencies = within(given.short_frequencies, arrays[0], is_narrow ? 4 : 8);
    given.long_frequencies = within(given.long_frequencies, arrays[1], is_narrow ? 4 : 8);
    given.plain = within(given.plain, arrays[2], is_narrow ? 4 : 8);
    at = one_in(60) ? NULL : place(0, &given, sizeof given);
    before();
    if (is_narrow) {
        status = longrope_factor_sets_from_frequencies_f32((const longrope_frequencies_f32 *)(const void *)at, to);
    } else {
        status = longrope_factor_sets_from_frequencies(at, to);
    }
    after(is_narrow ? F_FREQUENCIES_F32 : F_FREQUENCIES, status, NULL);
    use(status, sets, given.pairs);
}

/* ---- From texts -------------------------------------------------------------------------------------------------- */

void round_of_json(void) {
    size_t bytes;
    const char *const at = draw_text(&bytes);
    const int64_t length = one_in(4) ? hostile_integer() : below(100000);
    const int32_t angles = one_in(16) ? (int32_t)hostile_integer() : (int32_t)below(3);
    longrope_factor_sets *sets = NULL, **to = one_in(100) ? NULL : &sets;
    longrope_status status;
    before();
    status = longrope_factor_sets_from_json(at, bytes, length, angles, to);
    after(F_JSON, status, NULL);
    use(status, sets, 0);
}

/* ---- From configurations ----------------------------------------------------------------------------------------- */

void make_sets_of(const longrope_config *config, int64_t pairs) {
    const int64_t length = one_in(4) ? hostile_integer() : below(100000);
    const int32_t angles = one_in(16) ? (int32_t)hostile_integer() : (int32_t)below(3);
    longrope_factor_sets *sets = NULL, **to = one_in(100) ? NULL : &sets;
    longrope_status status;
    before();
    status = longrope_factor_sets_from_config(config, length, angles, to);
    after(F_SETS_CONFIG, status, NULL);
    if (sets && !config) fail("sets of no configuration");
    use(status, sets, pairs);
}

/* ---- Contexts ---------------------------------------------------------------------------------------------------- */

void round_of_contexts(void) {
    const int32_t device = one_in(2) ? 0 : (int32_t)hostile_integer();
    longrope_context *made = NULL, **to = one_in(8) ? NULL : &made;
    answer found;
    before();
    after(F_CONTEXT_CREATE, longrope_context_create(device, to), &found);
    if ((found.status == LONGROPE_STATUS_OK) != (made != NULL)) fail("status %d and a context", (int)found.status);
    if (made && device != 0) fail("a context of device %d", (int)device);
    longrope_context_destroy(made);
}
