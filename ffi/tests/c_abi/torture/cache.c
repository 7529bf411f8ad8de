/* Rounds of the operations on a cache: append, decoding, prefill and re-rotation. */
#include <string.h>

#include "torture.h"

static const field CACHE_FIELDS[] = {
    FIELD(longrope_kv_cache, struct_size, KIND_SIZE),
    FIELD(longrope_kv_cache, page_kind, KIND_I32),
    FIELD(longrope_kv_cache, length_bits, KIND_I32),
    FIELD(longrope_kv_cache, flags, KIND_I32),
    FIELD(longrope_kv_cache, lengths, KIND_ADDRESS),
    FIELD(longrope_kv_cache, page_table, KIND_ADDRESS),
    FIELD(longrope_kv_cache, sequences, KIND_I64),
    FIELD(longrope_kv_cache, table_width, KIND_I64),
    FIELD(longrope_kv_cache, table_stride, KIND_I64),
};

static const field ROTARY_FIELDS[] = {
    FIELD(longrope_cache_rotary_desc, struct_size, KIND_SIZE),
    FIELD(longrope_cache_rotary_desc, pairing, KIND_I32),
    FIELD(longrope_cache_rotary_desc, choice_kind, KIND_I32),
    FIELD(longrope_cache_rotary_desc, flags, KIND_I32),
    FIELD(longrope_cache_rotary_desc, sets, KIND_POINTER),
    FIELD(longrope_cache_rotary_desc, choice_length, KIND_I64),
    FIELD(longrope_cache_rotary_desc, choices, KIND_ADDRESS),
};

static const field APPEND_FIELDS[] = {
    FIELD(longrope_append_desc, struct_size, KIND_SIZE),
    FIELD(longrope_append_desc, cached_keys, KIND_I32),
    FIELD(longrope_append_desc, tokens.sequence_kind, KIND_I32),
    FIELD(longrope_append_desc, tokens.index_bits, KIND_I32),
    FIELD(longrope_append_desc, tokens.starts, KIND_ADDRESS),
    FIELD(longrope_append_desc, tokens.most, KIND_I64),
    FIELD(longrope_append_desc, rotary, KIND_POINTER),
    FIELD(longrope_append_desc, status, KIND_ADDRESS),
};

static const field DECODE_FIELDS[] = {
    FIELD(longrope_decode_desc, struct_size, KIND_SIZE),
    FIELD(longrope_decode_desc, splits, KIND_I32),
    FIELD(longrope_decode_desc, scale, KIND_F32),
    FIELD(longrope_decode_desc, flags, KIND_I32),
    FIELD(longrope_decode_desc, window, KIND_I64),
    FIELD(longrope_decode_desc, tokens.sequence_kind, KIND_I32),
    FIELD(longrope_decode_desc, tokens.index_bits, KIND_I32),
    FIELD(longrope_decode_desc, tokens.starts, KIND_ADDRESS),
    FIELD(longrope_decode_desc, tokens.most, KIND_I64),
    FIELD(longrope_decode_desc, rotary, KIND_POINTER),
    FIELD(longrope_decode_desc, status, KIND_ADDRESS),
};

static const field PREFILL_FIELDS[] = {
    FIELD(longrope_prefill_desc, struct_size, KIND_SIZE),
    FIELD(longrope_prefill_desc, scale, KIND_F32),
    FIELD(longrope_prefill_desc, window, KIND_I64),
    FIELD(longrope_prefill_desc, tokens.sequence_kind, KIND_I32),
    FIELD(longrope_prefill_desc, tokens.index_bits, KIND_I32),
    FIELD(longrope_prefill_desc, tokens.starts, KIND_ADDRESS),
    FIELD(longrope_prefill_desc, tokens.most, KIND_I64),
    FIELD(longrope_prefill_desc, rotary, KIND_POINTER),
    FIELD(longrope_prefill_desc, status, KIND_ADDRESS),
};

static const field RECACHE_FIELDS[] = {
    FIELD(longrope_rerotate_cache_desc, struct_size, KIND_SIZE),
    FIELD(longrope_rerotate_cache_desc, flags, KIND_I32),
    FIELD(longrope_rerotate_cache_desc, to, KIND_POINTER),
    FIELD(longrope_rerotate_cache_desc, from, KIND_POINTER),
    FIELD(longrope_rerotate_cache_desc, status, KIND_ADDRESS),
};

typedef enum operation { APPEND, DECODE, PREFILL, RECACHE } operation;

/* All that the operations take. */
typedef struct problem {
    operation operation;
    longrope_kv_cache cache;
    longrope_cache_rotary_desc rotary, from;
    longrope_append_desc append;
    longrope_decode_desc decode;
    longrope_prefill_desc prefill;
    longrope_rerotate_cache_desc recache;
    longrope_append_tensors fresh;
    longrope_decode_tensors tensors;
} problem;

/* Where they were placed, NULL included. */
typedef struct placed {
    operation operation;
    const void *desc, *tensors;
    const longrope_kv_cache *cache;
} placed;

longrope_cache_rotary_desc draw_cache_rotary(int64_t dim) {
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    rotary.pairing = (int32_t)below(2);
    rotary.choice_kind = (int32_t)below(5);
    if (rotary.choice_kind == LONGROPE_CHOICES_LENGTH) rotary.choice_length = below(10000);
    if (rotary.choice_kind == LONGROPE_CHOICES_BY_INDEX) rotary.choices = slot(CHOICES);
    rotary.sets = draw_sets(dim);
    return rotary;
}

void spoil_cache_rotary(longrope_cache_rotary_desc *rotary) { spoil(rotary, ROTARY_FIELDS, COUNT(ROTARY_FIELDS), 0); }

static void draw_cache(longrope_kv_cache *cache, int32_t dtype, int64_t sequences, int64_t heads, int64_t dim) {
    const longrope_kv_cache plain = LONGROPE_KV_CACHE_INIT;
    int64_t batch = sequences, length = one_in(3) ? 1100 : 40;
    *cache = plain;
    if (one_in(2)) {
        cache->page_kind = LONGROPE_PAGES_TABLE;
        cache->page_table = slot(PAGES);
        cache->sequences = sequences;
        cache->table_width = 1 + below(90);
        cache->table_stride = one_in(2) ? 0 : cache->table_width + below(9);
        batch = 8;
        length = 16 * (1 + below(2));
    }
    cache->length_bits = one_in(2) ? 64 : 32 * (int32_t)below(2);
    cache->k = draw_tensor(5, dtype, batch, length, heads, dim);
    cache->v = draw_tensor(6, dtype, batch, length, heads, dim);
    cache->lengths = slot(LENGTHS);
}

static problem draw_problem(void) {
    static const int64_t dims[] = {16, 64, 128, 256, 8, 24};
    const longrope_append_desc append = LONGROPE_APPEND_DESC_INIT;
    const longrope_decode_desc decode = LONGROPE_DECODE_DESC_INIT;
    const longrope_prefill_desc prefill = LONGROPE_PREFILL_DESC_INIT;
    const longrope_rerotate_cache_desc recache = LONGROPE_REROTATE_CACHE_DESC_INIT;
    const int64_t sequences = one_in(16) ? 0 : 1 + below(4), total = one_in(16) ? 0 : 1 + below(16);
    const int64_t key_heads = 1 + below(3), heads = key_heads * (1 + below(4)), dim = dims[below(COUNT(dims))];
    const int32_t dtype = one_in(20) ? LONGROPE_DTYPE_F32 : 2 + (int32_t)below(2);
    const int is_packed = one_in(2);
    const int64_t batch = is_packed ? 1 : sequences;
    problem p;
    memset(&p, 0, sizeof p);
    p.operation = (operation)below(4);
    p.append = append;
    p.decode = decode;
    p.prefill = prefill;
    p.recache = recache;
    draw_cache(&p.cache, dtype, sequences, key_heads, dim);
    p.rotary = draw_cache_rotary(dim);
    p.from = draw_cache_rotary(dim);
    if (one_in(2)) p.from.sets = p.rotary.sets;
    p.from.pairing = p.rotary.pairing;
    if (is_packed) {
        p.append.tokens.sequence_kind = LONGROPE_SEQUENCES_PACKED;
        p.append.tokens.index_bits = p.cache.length_bits;
        p.append.tokens.starts = slot(QUERY_STARTS);
        p.append.tokens.most = one_in(2) ? 0 : 1 + below(16);
    }
    p.append.cached_keys = (int32_t)below(2);
    p.append.rotary = &p.rotary;
    p.append.status = one_in(3) ? NULL : status_word();
    p.decode.splits = one_in(2) ? 0 : 1 + (int32_t)below(1024);
    p.decode.scale = one_in(2) ? 0.0f : (float)(below(9) - 4) / 4.0f;
    p.decode.window = one_in(2) ? 0 : 1 + below(60);
    p.decode.tokens = p.append.tokens;
    p.decode.rotary = one_in(2) ? NULL : &p.rotary;
    p.decode.status = p.append.status;
    p.prefill.scale = p.decode.scale;
    p.prefill.window = p.decode.window;
    p.prefill.tokens = p.append.tokens;
    p.prefill.rotary = p.decode.rotary;
    p.prefill.status = p.append.status;
    p.recache.to = &p.rotary;
    p.recache.from = &p.from;
    p.recache.status = p.append.status;
    if (one_in(3)) p.fresh.q.input = draw_tensor(0, dtype, batch, total, heads, dim);
    if (one_in(3) && p.fresh.q.input.data) p.fresh.q.output = draw_tensor(1, dtype, batch, total, heads, dim);
    p.fresh.k = draw_tensor(2, dtype, batch, total, key_heads, dim);
    p.fresh.v = draw_tensor(3, dtype, batch, total, key_heads, dim);
    p.tensors.q = draw_tensor(0, dtype, batch, total, heads, dim);
    p.tensors.out = draw_tensor(1, one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, total, heads, dim);
    if (one_in(2)) p.tensors.lse = draw_tensor(4, LONGROPE_DTYPE_F32, batch, total, heads, 1);
    draw_numbers(sequences, total, total + 24, p.cache.length_bits == 64);
    return p;
}

static void spoil_desc(problem *p) {
    switch (p->operation) {
        case APPEND: spoil(&p->append, APPEND_FIELDS, COUNT(APPEND_FIELDS), 0); break;
        case DECODE: spoil(&p->decode, DECODE_FIELDS, COUNT(DECODE_FIELDS), 0); break;
        case PREFILL: spoil(&p->prefill, PREFILL_FIELDS, COUNT(PREFILL_FIELDS), 0); break;
        case RECACHE: spoil(&p->recache, RECACHE_FIELDS, COUNT(RECACHE_FIELDS), 0); break;
    }
}

static void spoil_problem(problem *p) {
    longrope_tensor *const all[] = {
        &p->cache.k, &p->cache.v, &p->fresh.q.input, &p->fresh.q.output, &p->fresh.k, &p->fresh.v,
        &p->tensors.q, &p->tensors.out, &p->tensors.lse,
    };
    const int first = one_in(3) ? 0 : p->operation == APPEND ? 2 : p->operation == RECACHE ? 0 : 6;
    const int count = first == 0 ? 2 : first == 2 ? 4 : 3;
    switch (below(5)) {
        case 0: spoil_desc(p); break;
        case 1: spoil(&p->cache, CACHE_FIELDS, COUNT(CACHE_FIELDS), 0); break;
        case 2: spoil_cache_rotary(one_in(2) ? &p->rotary : &p->from); break;
        case 3: p->tensors.out.data = one_in(2) ? p->tensors.q.data : p->cache.k.data; break; /* overlapping */
        default: spoil(all[first + below(count)], TENSOR_FIELDS, TENSOR_FIELD_COUNT, 0); break;
    }
}

static placed place_problem(problem *p) {
    const longrope_cache_rotary_desc *const rotary = place(0, &p->rotary, sizeof p->rotary);
    placed at;
    at.operation = p->operation;
    at.cache = one_in(60) ? NULL : place(1, &p->cache, sizeof p->cache);
    at.tensors = NULL;
    switch (p->operation) {
        case APPEND:
            if (p->append.rotary) p->append.rotary = rotary;
            at.desc = place(2, &p->append, sizeof p->append);
            at.tensors = place(3, &p->fresh, sizeof p->fresh);
            break;
        case DECODE:
            if (p->decode.rotary) p->decode.rotary = rotary;
            at.desc = place(2, &p->decode, sizeof p->decode);
            at.tensors = place(3, &p->tensors, sizeof p->tensors);
            break;
        case PREFILL:
            if (p->prefill.rotary) p->prefill.rotary = rotary;
            at.desc = place(2, &p->prefill, sizeof p->prefill);
            at.tensors = place(3, &p->tensors, sizeof p->tensors);
            break;
        default:
            if (p->recache.to) p->recache.to = rotary;
            if (p->recache.from) p->recache.from = place(4, &p->from, sizeof p->from);
            at.desc = place(2, &p->recache, sizeof p->recache);
            break;
    }
    if (one_in(60)) at.desc = NULL;
    if (one_in(60)) at.tensors = NULL;
    return at;
}

/* ---- The functions, by operation --------------------------------------------------------------------------------- */

static longrope_status ask_supported(const placed *at) {
    switch (at->operation) {
        case APPEND: return longrope_append_supported(at->desc, at->cache, at->tensors);
        case DECODE: return longrope_decode_supported(at->desc, at->cache, at->tensors);
        case PREFILL: return longrope_prefill_supported(at->desc, at->cache, at->tensors);
        default: return longrope_rerotate_cache_supported(at->desc, at->cache);
    }
}

static longrope_status ask_size(const placed *at, size_t *bytes) {
    switch (at->operation) {
        case APPEND: return longrope_append_workspace_size(at->desc, at->cache, at->tensors, bytes);
        case DECODE: return longrope_decode_workspace_size(at->desc, at->cache, at->tensors, bytes);
        case PREFILL: return longrope_prefill_workspace_size(at->desc, at->cache, at->tensors, bytes);
        default: return longrope_rerotate_cache_workspace_size(at->desc, at->cache, bytes);
    }
}

static longrope_status ask_run(const placed *at, const run_arguments *given) {
    const longrope_context *const context = given->context;
    void *const stream = given->stream, *const work = given->workspace;
    switch (at->operation) {
        case APPEND: return longrope_append_run(context, at->desc, at->cache, at->tensors, stream);
        case DECODE: return longrope_decode_run(context, at->desc, at->cache, at->tensors, work, given->bytes, stream);
        case PREFILL: return longrope_prefill_run(context, at->desc, at->cache, at->tensors, work, given->bytes, stream);
        default: return longrope_rerotate_cache_run(context, at->desc, at->cache, stream);
    }
}

static longrope_status ask_validate(const placed *at, const run_arguments *given) {
    const longrope_context *const context = given->context;
    switch (at->operation) {
        case APPEND: return longrope_append_validate(context, at->desc, at->cache, at->tensors, given->stream);
        case DECODE: return longrope_decode_validate(context, at->desc, at->cache, at->tensors, given->stream);
        case PREFILL: return longrope_prefill_validate(context, at->desc, at->cache, at->tensors, given->stream);
        default: return longrope_rerotate_cache_validate(context, at->desc, at->cache, given->stream);
    }
}

void round_of_cache(void) {
    problem p = draw_problem();
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    placed at;
    function first;
    int has_workspace;
    while (spoils--) spoil_problem(&p);
    at = place_problem(&p);
    first = (function)(F_APPEND_SUPPORTED + 4 * (int)at.operation);
    has_workspace = at.operation == DECODE || at.operation == PREFILL;
    before();
    after(first, ask_supported(&at), &supported);
    before();
    after(first + 1, ask_size(&at, &bytes), &size);
    compare_size(&supported, &size, bytes);
    if (size.status == LONGROPE_STATUS_OK && bytes != 0 && !has_workspace) fail("a workspace of %zu bytes", bytes);
    given = draw_run(size.status == LONGROPE_STATUS_OK ? bytes : 0);
    if (!has_workspace) given.bytes = 0;
    before();
    after(first + 2, ask_run(&at, &given), &run);
    compare_run(&supported, &run, &given, bytes, has_workspace ? 2 : 1);
    /* A validation copies its numbers to the host, and so wants as much host memory as they take. */
    if (p.cache.sequences > 1 << 20 || p.cache.k.shape[0] > 1 << 20) return;
    before();
    after(first + 3, ask_validate(&at, &given), &run);
    compare_validate(&supported, &run, &given);
}
