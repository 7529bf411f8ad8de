/* Configurations: made from texts and from factors, asked, and written. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "torture.h"

enum { GUARD = 8 };

/* The same as without the spoiling, unless it is certain to be refused. */
static const double *within(const double *spoiled, const double *array) {
    return (uintptr_t)spoiled % sizeof *array == 0 && spoiled != NULL ? array : spoiled;
}

static const field FACTORS_FIELDS[] = {
    FIELD(longrope_factors, struct_size, KIND_SIZE),       FIELD(longrope_factors, head_dim, KIND_I32),
    FIELD(longrope_factors, pairs, KIND_I64),              FIELD(longrope_factors, short_factors, KIND_POINTER),
    FIELD(longrope_factors, long_factors, KIND_POINTER),   FIELD(longrope_factors, theta, KIND_F64),
    FIELD(longrope_factors, original_length, KIND_I64),    FIELD(longrope_factors, max_length, KIND_I64),
    FIELD(longrope_factors, attention_factor, KIND_F64),   FIELD(longrope_factors, first_tokens, KIND_I64),
};

static longrope_status from_factors(longrope_config **to) {
    static double factors[2][64];
    const longrope_factors plain = LONGROPE_FACTORS_INIT;
    longrope_factors given = plain;
    longrope_status status;
    int spoils = one_in(2) ? 0 : 1 + (int)below(3), i, pair;
    given.pairs = 1 + below(64);
    for (i = 0; i < 2; ++i) {
        for (pair = 0; pair < 64; ++pair) factors[i][pair] = one_in(2000) ? hostile_number() : 1 + (double)below(1000) / 100;
    }
    given.head_dim = one_in(2) ? 0 : (int32_t)(2 * given.pairs + below(9));
    given.short_factors = one_in(2) ? NULL : factors[0];
    given.long_factors = factors[1];
    given.theta = one_in(2) ? 0 : 2 + (double)below(1000000);
    given.original_length = 2 + below(100000);
    given.max_length = given.original_length * (1 + below(100));
    given.attention_factor = one_in(2) ? 0 : (double)(1 + below(9)) / 4;
    given.first_tokens = one_in(2) ? 0 : below(300);
    while (spoils--) {
        spoil(&given, FACTORS_FIELDS, COUNT(FACTORS_FIELDS), 1);
        /* More than the arrays have: certain to be refused, or no more at all. */
        if (given.pairs > 64 && given.pairs <= 8192) given.pairs = 8193;
    }
    given.short_factors = within(given.short_factors, factors[0]);
    given.long_factors = within(given.long_factors, factors[1]);
    before();
    status = longrope_config_from_factors(one_in(60) ? NULL : place(0, &given, sizeof given), to);
    after(F_CONFIG_FACTORS, status, NULL);
    return status;
}

static longrope_status from_text(longrope_config **to) {
    size_t bytes;
    const char *const text = draw_text(&bytes);
    longrope_status status;
    before();
    status = longrope_config_from_json(text, bytes, to);
    after(F_CONFIG_JSON, status, NULL);
    return status;
}

/* Of a configuration that is there; how many pairs it has. */
static int64_t ask_info(const longrope_config *config) {
    struct {
        longrope_config_info info;
        unsigned char more[64];
    } given;
    const longrope_config_info plain = LONGROPE_CONFIG_INFO_INIT;
    longrope_status status;
    unsigned i;
    memset(&given, 0x5a, sizeof given);
    given.info = plain;
    if (one_in(4)) given.info.struct_size = (uint32_t)below((int64_t)sizeof given + 1);
    before();
    status = longrope_config_info_get(config, one_in(60) ? NULL : &given.info);
    after(F_CONFIG_INFO, status, NULL);
    for (i = 0; i < sizeof given.more; ++i) {
        if (given.more[i] != 0x5a) fail("an info was written beyond its end");
    }
    given.info = plain;
    status = longrope_config_info_get(config, &given.info);
    if (status != LONGROPE_STATUS_OK) fail("an info of size %d: %d", (int)plain.struct_size, (int)status);
    if (given.info.pairs < 1 || given.info.head_dim < 2 * given.info.pairs || given.info.max_length < 1) {
        fail("%lld pairs of %d", (long long)given.info.pairs, given.info.head_dim);
    }
    return given.info.pairs;
}

static void ask_numbers(const longrope_config *config, int64_t pairs) {
    const int64_t length = one_in(3) ? hostile_integer() : below(1000000);
    const int64_t count = one_in(3) ? hostile_integer() : pairs;
    const int is_factors = one_in(2);
    double *const numbers = malloc((size_t)(pairs + GUARD) * sizeof *numbers);
    double *const to = one_in(30) ? NULL : numbers;
    longrope_status status;
    int64_t i;
    if (!numbers) fail("no memory");
    for (i = 0; i < pairs + GUARD; ++i) numbers[i] = -7;
    before();
    if (is_factors) {
        status = longrope_config_factors(config, length, to, count);
    } else {
        status = longrope_config_frequencies(config, length, to, count);
    }
    after(is_factors ? F_CONFIG_GET_FACTORS : F_CONFIG_FREQUENCIES, status, NULL);
    for (i = 0; i < pairs + GUARD; ++i) {
        const int is_written = status == LONGROPE_STATUS_OK && i < pairs;
        if (is_written ? !(numbers[i] >= 0) : numbers[i] != -7) fail("number %lld is %g", (long long)i, numbers[i]);
    }
    free(numbers);
}

/* Writes it, and reads what was written. */
static void write_text(const longrope_config *config, int64_t pairs) {
    const int32_t spelling = one_in(8) ? (int32_t)hostile_integer() : (int32_t)below(2);
    longrope_config *again = NULL;
    longrope_config_info info = LONGROPE_CONFIG_INFO_INIT;
    longrope_status status;
    size_t needed = 0, bytes = 12345, room, i;
    char *text;
    if (longrope_config_to_json(config, LONGROPE_JSON_ROPE_PARAMETERS, NULL, 0, &needed) != LONGROPE_STATUS_OK) {
        fail("no length: %s", longrope_last_error_message());
    }
    room = one_in(3) ? (size_t)below((int64_t)needed + 1) : needed + 600;
    text = malloc(room + GUARD);
    if (!text) fail("no memory");
    memset(text, 0x5a, room + GUARD);
    before();
    status = longrope_config_to_json(config, spelling, one_in(30) ? NULL : text, room, one_in(30) ? NULL : &bytes);
    after(F_CONFIG_TO_JSON, status, NULL);
    if (status == LONGROPE_STATUS_OK && text[0] != 0x5a) {
        if (bytes >= room || text[bytes] != 0 || strlen(text) != bytes) fail("%lu bytes", (unsigned long)bytes);
        if (longrope_config_from_json(text, bytes, &again) != LONGROPE_STATUS_OK) {
            fail("what was written can't be read: %s: %s", longrope_last_error_message(), text);
        }
        if (longrope_config_info_get(again, &info) != LONGROPE_STATUS_OK || info.pairs != pairs) {
            fail("%lld pairs became %lld", (long long)pairs, (long long)info.pairs);
        }
        longrope_config_destroy(again);
    } else {
        for (i = 0; i < room; ++i) {
            if (text[i] != 0x5a) fail("status %d, and byte %lu was written", (int)status, (unsigned long)i);
        }
    }
    for (i = room; i < room + GUARD; ++i) {
        if (text[i] != 0x5a) fail("a text was written beyond its end");
    }
    free(text);
}

void round_of_config(void) {
    longrope_config *config = NULL, **const to = one_in(60) ? NULL : &config;
    const longrope_status status = one_in(3) ? from_factors(to) : from_text(to);
    int64_t pairs;
    if ((status == LONGROPE_STATUS_OK) != (config != NULL)) fail("status %d and a configuration", (int)status);
    if (config) {
        pairs = ask_info(config);
        ask_numbers(config, pairs);
        write_text(config, pairs);
        make_sets_of(config, pairs);
    } else if (one_in(4)) {
        double number;
        before();
        after(F_CONFIG_FREQUENCIES, longrope_config_frequencies(NULL, 0, &number, 1), NULL);
        make_sets_of(NULL, 0);
    }
    longrope_config_destroy(config);
}
