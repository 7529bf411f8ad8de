/* Validation of a cache on a driver whose device memory is that of the host. Each call of the library is announced with
 * its answer. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longrope.h"

static void *at(uintptr_t address) { return (void *)address; }

static void announce(const char *what, longrope_status status) {
    printf("%s: %d%s%s\n", what, (int)status, status ? " " : "", status ? longrope_last_error_message() : "");
}

static longrope_context *context = NULL;
static longrope_kv_cache cache = LONGROPE_KV_CACHE_INIT;
static longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
static longrope_append_tensors fresh;
static longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
static longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
static longrope_decode_tensors tensors;
static longrope_rerotate_cache_desc rerotate = LONGROPE_REROTATE_CACHE_DESC_INIT;

static void validate(const char *what, void *stream) {
    printf("%s\n", what);
    announce("  append", longrope_append_validate(context, &append, &cache, &fresh, stream));
    announce("  decode", longrope_decode_validate(context, &decode, &cache, &tensors, stream));
    announce("  prefill", longrope_prefill_validate(context, &prefill, &cache, &tensors, stream));
    announce("  rerotate", longrope_rerotate_cache_validate(context, &rerotate, &cache, stream));
}

int main(void) {
    static const double values[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    int64_t lengths[3] = {20, 0, 40};
    int32_t choices[3] = {1, 7, 0}, starts[4] = {0, 1, 1, 3};
    /* Sequence 1 takes no part; of sequence 0 the last page is not needed. */
    int32_t table[3][3] = {{0, 1, -1}, {-1, -1, -1}, {2, 3, 4}};
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    longrope_tensor pages = {at(0x30000), LONGROPE_DTYPE_F16, {5, 16, 2, 64}, {0, 0, 0, 0}};
    longrope_tensor k = {at(0x10000), LONGROPE_DTYPE_F16, {1, 3, 2, 64}, {0, 0, 0, 0}};

    frequencies.pairs = 8;
    frequencies.short_frequencies = values;
    announce("sets", longrope_factor_sets_from_frequencies(&frequencies, &sets));
    announce("create", longrope_context_create(0, &context));
    if (!context) return 0;

    cache.page_kind = LONGROPE_PAGES_TABLE;
    cache.length_bits = 64;
    cache.k = cache.v = pages;
    cache.lengths = lengths;
    cache.page_table = &table[0][0];
    cache.sequences = 3;
    cache.table_width = 3;
    rotary.sets = sets;
    rotary.choice_kind = LONGROPE_CHOICES_BY_INDEX;
    rotary.choices = choices;
    memset(&fresh, 0, sizeof fresh);
    memset(&tensors, 0, sizeof tensors);
    fresh.k = fresh.v = tensors.q = tensors.out = k;
    append.rotary = decode.rotary = prefill.rotary = rerotate.to = rerotate.from = &rotary;
    append.tokens.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    append.tokens.starts = starts;
    append.tokens.most = 2;
    decode.tokens = prefill.tokens = append.tokens;

    validate("right", at(0x77));
    lengths[2] = 49;
    validate("a length beyond the cache", NULL);
    lengths[2] = 1;
    validate("a length below its new tokens", NULL);
    lengths[2] = 40;
    choices[2] = 2;
    validate("a set that is none", NULL);
    choices[2] = 0;
    table[2][0] = 5;
    validate("a page that is none", NULL);
    decode.window = prefill.window = 10;
    validate("the same, out of sight", NULL);
    table[2][0] = 2;
    starts[1] = 4;
    validate("starts beyond the tensors", NULL);
    starts[1] = 3;
    validate("too many new tokens", NULL);
    starts[1] = 1;
    validate("a driver that fails", at(0xbad));

    longrope_factor_sets_destroy(sets);
    longrope_context_destroy(context);
    return 0;
}
