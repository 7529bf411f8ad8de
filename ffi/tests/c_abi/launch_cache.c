/* Appending, decoding, prefill and re-rotation of a cache on a driver that prints what it is told. Each call of the
 * library is announced with its answer. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longrope.h"

static void *at(uintptr_t address) { return (void *)address; }

static void announce(const char *what, longrope_status status) {
    printf("%s: %d%s%s\n", what, (int)status, status ? " " : "", status ? longrope_last_error_message() : "");
}

int main(void) {
    double plain[16], short_[16], long_[16];
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL, *others = NULL;
    longrope_context *context = NULL;
    longrope_kv_cache cache = LONGROPE_KV_CACHE_INIT, paged = LONGROPE_KV_CACHE_INIT;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT, from = LONGROPE_CACHE_ROTARY_DESC_INIT;
    longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
    longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    const longrope_prefill_desc plain_prefill = LONGROPE_PREFILL_DESC_INIT;
    longrope_prefill_desc prefill = plain_prefill;
    longrope_rerotate_cache_desc rerotate = LONGROPE_REROTATE_CACHE_DESC_INIT;
    longrope_append_tensors fresh;
    longrope_decode_tensors tensors;
    longrope_tensor rows = {at(0x20000), LONGROPE_DTYPE_BF16, {2, 64, 2, 64}, {0, 0, 0, 0}};
    longrope_tensor pages = {at(0x30000), LONGROPE_DTYPE_BF16, {12, 16, 2, 64}, {2048, 64, 1024, 1}};
    longrope_tensor q = {at(0x10000), LONGROPE_DTYPE_BF16, {2, 3, 6, 64}, {1920, 640, 64, 1}};
    longrope_tensor k = {at(0x10300), LONGROPE_DTYPE_BF16, {2, 3, 2, 64}, {1920, 640, 64, 1}};
    longrope_tensor v = {at(0x10400), LONGROPE_DTYPE_BF16, {2, 3, 2, 64}, {1920, 640, 64, 1}};
    longrope_tensor q_out = {at(0x40000), LONGROPE_DTYPE_BF16, {2, 3, 6, 64}, {0, 0, 0, 0}};
    longrope_tensor out = {at(0x50000), LONGROPE_DTYPE_F32, {2, 3, 6, 64}, {1152, 64, 192, 1}};
    longrope_tensor lse = {at(0x60000), LONGROPE_DTYPE_F32, {2, 3, 6, 1}, {18, 1, 3, 1}};
    size_t bytes = 0;
    int i;

    for (i = 0; i < 16; ++i) {
        plain[i] = 1.0 / (1 << i);
        short_[i] = plain[i] / 2;
        long_[i] = plain[i] / 4;
    }
    frequencies.pairs = 16;
    frequencies.plain = plain;
    frequencies.short_frequencies = short_;
    frequencies.long_frequencies = long_;
    frequencies.short_gain = 1.25;
    frequencies.original_length = 4096;
    announce("sets", longrope_factor_sets_from_frequencies(&frequencies, &sets));
    frequencies.short_gain = 1.5;
    announce("others", longrope_factor_sets_from_frequencies(&frequencies, &others));
    announce("create", longrope_context_create(0, &context));
    if (!context) return 0;

    cache.k = cache.v = rows;
    cache.v.data = at(0x28000);
    cache.lengths = at(0x1000);
    paged.page_kind = LONGROPE_PAGES_TABLE;
    paged.length_bits = 64;
    paged.k = paged.v = pages;
    paged.v.data = at(0x38000);
    memset(paged.v.stride, 0, sizeof paged.v.stride);
    paged.lengths = at(0x2000);
    paged.page_table = (const int32_t *)at(0x3000);
    paged.sequences = 2;
    paged.table_width = 5;
    rotary.sets = sets;
    rotary.choice_kind = LONGROPE_CHOICES_BY_LENGTH;

    memset(&fresh, 0, sizeof fresh);
    fresh.q.input = q;
    fresh.q.output = q_out;
    fresh.k = k;
    fresh.v = v;
    append.rotary = &rotary;
    append.status = (uint32_t *)at(0x4000);
    announce("append", longrope_append_run(context, &append, &cache, &fresh, at(0x77)));
    memset(&fresh.q, 0, sizeof fresh.q);
    fresh.k.shape[0] = fresh.v.shape[0] = 1;
    append.cached_keys = LONGROPE_CACHED_KEYS_UNROTATED;
    append.tokens.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    append.tokens.index_bits = 64;
    append.tokens.starts = at(0x5000);
    append.tokens.most = 2;
    append.status = NULL;
    rotary.pairing = LONGROPE_PAIRING_INTERLEAVED;
    rotary.choice_kind = LONGROPE_CHOICES_BY_INDEX;
    rotary.choices = at(0x6000);
    announce("append packed", longrope_append_run(context, &append, &paged, &fresh, NULL));

    tensors.q = q;
    tensors.out = out;
    tensors.lse = lse;
    announce("size", longrope_decode_workspace_size(&decode, &cache, &tensors, &bytes));
    printf("%lu bytes\n", (unsigned long)bytes);
    announce("decode", longrope_decode_run(context, &decode, &cache, &tensors, at(0x100000), bytes, at(0x77)));
    decode.rotary = &rotary;
    decode.scale = -0.25f;
    decode.window = 40;
    decode.splits = 3;
    decode.status = (uint32_t *)at(0x4000);
    decode.tokens = append.tokens;
    decode.tokens.index_bits = 32;
    tensors.q.shape[0] = tensors.out.shape[0] = 1;
    tensors.out.dtype = LONGROPE_DTYPE_BF16;
    memset(&tensors.lse, 0, sizeof tensors.lse);
    paged.table_stride = 8;
    announce("size", longrope_decode_workspace_size(&decode, &paged, &tensors, &bytes));
    printf("%lu bytes\n", (unsigned long)bytes);
    announce("decode rotating", longrope_decode_run(context, &decode, &paged, &tensors, at(0x100000), bytes, NULL));
    announce("small", longrope_decode_run(context, &decode, &paged, &tensors, at(0x100000), bytes - 1, NULL));
    announce("misaligned", longrope_decode_run(context, &decode, &paged, &tensors, at(0x100008), bytes, NULL));

    from.sets = others;
    from.pairing = LONGROPE_PAIRING_INTERLEAVED;
    from.choice_kind = LONGROPE_CHOICES_LENGTH;
    from.choice_length = 4097;
    rerotate.to = &rotary;
    rerotate.from = &from;
    rerotate.status = (uint32_t *)at(0x4000);
    announce("rerotate", longrope_rerotate_cache_run(context, &rerotate, &paged, at(0x78)));

    announce("failing", longrope_append_run(context, &append, &paged, &fresh, at(0xbad)));
    announce("failing", longrope_decode_run(context, &decode, &paged, &tensors, at(0x100000), bytes, at(0xbad)));
    announce("failing", longrope_rerotate_cache_run(context, &rerotate, &paged, at(0xbad)));
    fresh.k.shape[1] = fresh.v.shape[1] = tensors.q.shape[1] = tensors.out.shape[1] = 0;
    paged.table_width = 0;
    announce("empty", longrope_append_run(context, &append, &paged, &fresh, at(0xbad)));
    announce("empty", longrope_decode_run(context, &decode, &paged, &tensors, NULL, 0, at(0xbad)));
    announce("empty", longrope_rerotate_cache_run(context, &rerotate, &paged, at(0xbad)));

    /* Longer than decoding takes, over keys that are few: nothing is divided. */
    prefill.rotary = decode.rotary;
    prefill.scale = decode.scale;
    prefill.window = decode.window;
    prefill.status = decode.status;
    prefill.tokens = decode.tokens;
    prefill.tokens.most = 130;
    paged.table_width = 5;
    tensors.q.shape[1] = tensors.out.shape[1] = 200;
    memset(tensors.out.stride, 0, sizeof tensors.out.stride);
    announce("size", longrope_prefill_workspace_size(&prefill, &paged, &tensors, &bytes));
    printf("%lu bytes\n", (unsigned long)bytes);
    announce("prefill rotating", longrope_prefill_run(context, &prefill, &paged, &tensors, NULL, 0, NULL));
    /* Few queries, over keys that are many: a merge follows. */
    prefill = plain_prefill;
    cache.k.shape[1] = cache.v.shape[1] = 1100;
    tensors.q = q;
    tensors.out = out;
    tensors.lse = lse;
    announce("size", longrope_prefill_workspace_size(&prefill, &cache, &tensors, &bytes));
    printf("%lu bytes\n", (unsigned long)bytes);
    announce("prefill", longrope_prefill_run(context, &prefill, &cache, &tensors, at(0x100000), bytes, at(0x77)));
    announce("small", longrope_prefill_run(context, &prefill, &cache, &tensors, at(0x100000), bytes - 1, NULL));
    announce("misaligned", longrope_prefill_run(context, &prefill, &cache, &tensors, at(0x100008), bytes, NULL));
    announce("failing", longrope_prefill_run(context, &prefill, &cache, &tensors, at(0x100000), bytes, at(0xbad)));
    tensors.q.shape[1] = tensors.out.shape[1] = tensors.lse.shape[1] = 0;
    announce("empty", longrope_prefill_run(context, &prefill, &cache, &tensors, NULL, 0, at(0xbad)));

    longrope_factor_sets_destroy(sets);
    longrope_factor_sets_destroy(others);
    longrope_context_destroy(context);
    return 0;
}
