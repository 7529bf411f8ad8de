/* Rounds of attention and of merging. */
#include <string.h>

#include "torture.h"

static const field ATTENTION_FIELDS[] = {
    FIELD(longrope_attention_desc, struct_size, KIND_SIZE),
    FIELD(longrope_attention_desc, causal, KIND_I32),
    FIELD(longrope_attention_desc, scale, KIND_F32),
    FIELD(longrope_attention_desc, flags, KIND_I32),
    FIELD(longrope_attention_desc, window, KIND_I64),
    FIELD(longrope_attention_desc, query_offset, KIND_I64),
    FIELD(longrope_attention_desc, key_offset, KIND_I64),
    FIELD(longrope_attention_desc, sequence_kind, KIND_I32),
    FIELD(longrope_attention_desc, index_bits, KIND_I32),
    FIELD(longrope_attention_desc, sequences, KIND_I64),
    FIELD(longrope_attention_desc, query_starts, KIND_ADDRESS),
    FIELD(longrope_attention_desc, key_starts, KIND_ADDRESS),
    FIELD(longrope_attention_desc, max_query_length, KIND_I64),
    FIELD(longrope_attention_desc, query_offsets, KIND_ADDRESS),
    FIELD(longrope_attention_desc, status, KIND_ADDRESS),
    FIELD(longrope_attention_desc, query_rotary, KIND_POINTER),
    FIELD(longrope_attention_desc, max_multiprocessors, KIND_I32),
    FIELD(longrope_attention_desc, reserved, KIND_I32),
};

static const field PARTS_FIELDS[] = {
    FIELD(longrope_merge_parts, count, KIND_I64),
    FIELD(longrope_merge_parts, out_stride, KIND_I64),
    FIELD(longrope_merge_parts, lse_stride, KIND_I64),
};

/* `rotary`: of the queries; the descriptor is not told of it yet. */
static void draw_attention(longrope_attention_desc *desc, longrope_attention_tensors *tensors,
                           longrope_cache_rotary_desc *rotary, int32_t dtype, int host) {
    static const int64_t dims[] = {8, 16, 24, 64, 128, 256, 12};
    const longrope_attention_desc plain = LONGROPE_ATTENTION_DESC_INIT;
    const int is_packed = one_in(2);
    const int64_t sequences = 1 + below(3), batch = is_packed ? 1 : sequences;
    const int64_t queries = one_in(16) ? 0 : 1 + below(5), keys = one_in(16) ? 0 : 1 + below(5);
    const int64_t key_heads = 1 + below(2), heads = key_heads * (1 + below(3)), dim = dims[below(host ? 3 : COUNT(dims))];
    *desc = plain;
    desc->causal = (int32_t)below(2);
    desc->scale = one_in(2) ? 0.0f : (float)(below(9) - 4) / 4.0f;
    desc->window = one_in(2) ? 0 : 1 + below(6);
    desc->query_offset = below(2000) - 1000;
    desc->key_offset = below(2000) - 1000;
    if (is_packed) {
        desc->sequence_kind = LONGROPE_SEQUENCES_PACKED;
        desc->index_bits = one_in(2) ? 64 : 32 * (int32_t)below(2);
        desc->sequences = sequences;
        desc->query_starts = slot(QUERY_STARTS);
        desc->key_starts = slot(KEY_STARTS);
        desc->max_query_length = one_in(2) ? 0 : queries;
    }
    desc->query_offsets = one_in(2) ? NULL : slot(POSITIONS);
    desc->status = one_in(3) ? NULL : status_word();
    tensors->q = draw_tensor(0, dtype, batch, queries, heads, dim);
    tensors->k = draw_tensor(1, dtype, batch, keys, key_heads, dim);
    tensors->v = draw_tensor(2, dtype, batch, keys, key_heads, dim);
    tensors->out = draw_tensor(3, one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, queries, heads, dim);
    memset(&tensors->lse, 0, sizeof tensors->lse);
    if (one_in(2)) tensors->lse = draw_tensor(4, LONGROPE_DTYPE_F32, batch, queries, heads, 1);
    *rotary = draw_cache_rotary(dim);
    if (one_in(host ? 12 : 4)) desc->query_rotary = rotary;
    if (one_in(4)) desc->max_multiprocessors = 1 + (int32_t)below(200);
    if (one_in(host ? 12 : 4)) {
        /* The result that is there already, or another. */
        const int is_here = one_in(2) && tensors->out.dtype == LONGROPE_DTYPE_F32 && tensors->lse.data;
        desc->carry_out = is_here ? tensors->out : draw_tensor(7, LONGROPE_DTYPE_F32, batch, queries, heads, dim);
        desc->carry_lse = is_here ? tensors->lse : draw_tensor(8, LONGROPE_DTYPE_F32, batch, queries, heads, 1);
    }
    draw_numbers(sequences, queries < keys ? queries : keys, 16, desc->index_bits == 64);
}

static longrope_tensor *tensor_of(longrope_attention_desc *desc, longrope_attention_tensors *tensors) {
    switch (below(desc->carry_out.data ? 7 : 5)) {
        case 0: return &tensors->q;
        case 1: return &tensors->k;
        case 2: return &tensors->v;
        case 3: return &tensors->out;
        case 4: return &tensors->lse;
        case 5: return &desc->carry_out;
        default: return &desc->carry_lse;
    }
}

static void spoil_attention(longrope_attention_desc *desc, longrope_attention_tensors *tensors,
                            longrope_cache_rotary_desc *rotary, int host) {
    longrope_tensor *const tensor = tensor_of(desc, tensors);
    const longrope_tensor right = *tensor;
    if (desc->query_rotary && one_in(4)) {
        spoil_cache_rotary(rotary);
    } else if (desc->carry_out.data && one_in(8)) {
        memset(one_in(2) ? &desc->carry_out : &desc->carry_lse, 0, sizeof desc->carry_out); /* one without the other */
    } else if (one_in(2)) {
        spoil(desc, ATTENTION_FIELDS, COUNT(ATTENTION_FIELDS), host);
        /* The starts that are there. */
        if (host && desc->sequences > 64) desc->sequences = 64;
    } else if (one_in(12)) {
        tensors->out.data = one_in(2) ? tensors->q.data : tensors->lse.data; /* overlapping */
        if (host && !is_safe(&tensors->out)) tensors->out.data = slot(3);
    } else {
        spoil(tensor, TENSOR_FIELDS, TENSOR_FIELD_COUNT, host);
        if (host && !is_safe(tensor)) *tensor = right;
    }
}

/* The CPU form refuses what means nothing as a launch does; of what means something it takes F32, and a launch all else. */
static void cpu(const longrope_attention_desc *desc, const longrope_attention_tensors *placed,
                const longrope_attention_tensors *tensors, const answer *supported) {
    const longrope_tensor *const outputs[2] = {&tensors->out, &tensors->lse};
    answer found;
    keep_memory();
    before();
    after(F_ATTENTION_CPU, longrope_attention_cpu(desc, placed), &found);
    check_memory(outputs, found.status == LONGROPE_STATUS_OK ? 2 : 0);
    if (supported->status == LONGROPE_STATUS_INVALID_ARGUMENT
            ? found.status != supported->status || strcmp(found.message, supported->message) != 0
        : supported->status == LONGROPE_STATUS_OK ? found.status != LONGROPE_STATUS_UNSUPPORTED
                                                  : found.status == LONGROPE_STATUS_INVALID_ARGUMENT) {
        fail("supported: %d %s\ncpu: %d %s", supported->status, supported->message, found.status, found.message);
    }
}

void round_of_attention(void) {
    const int host = one_in(3);
    longrope_attention_desc given_desc;
    longrope_attention_tensors given_tensors;
    longrope_cache_rotary_desc given_rotary;
    const longrope_attention_desc *desc;
    const longrope_attention_tensors *tensors;
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    draw_attention(&given_desc, &given_tensors, &given_rotary,
                   host && !one_in(12) ? LONGROPE_DTYPE_F32 : 2 + (int32_t)below(2), host);
    while (spoils--) spoil_attention(&given_desc, &given_tensors, &given_rotary, host);
    if (given_desc.query_rotary) given_desc.query_rotary = place(2, &given_rotary, sizeof given_rotary);
    desc = one_in(60) ? NULL : place(0, &given_desc, sizeof given_desc);
    tensors = one_in(60) ? NULL : place(1, &given_tensors, sizeof given_tensors);
    before();
    after(F_ATTENTION_SUPPORTED, longrope_attention_supported(desc, tensors), &supported);
    if (host) {
        cpu(desc, tensors, &given_tensors, &supported);
        return;
    }
    before();
    after(F_ATTENTION_SIZE, longrope_attention_workspace_size(desc, tensors, &bytes), &size);
    compare_size(&supported, &size, bytes);
    given = draw_run(size.status == LONGROPE_STATUS_OK ? bytes : 0);
    before();
    after(F_ATTENTION_RUN,
          longrope_attention_run(given.context, desc, tensors, given.workspace, given.bytes, given.stream), &run);
    compare_run(&supported, &run, &given, bytes, 2);
    /* The limit holds for the attention; a merge of its parts follows it. */
    if (driver->launches > 0 && given_desc.max_multiprocessors > 0 &&
        given_desc.struct_size > offsetof(longrope_attention_desc, max_multiprocessors) &&
        driver->launch[0].blocks > (unsigned)given_desc.max_multiprocessors) {
        fail("%u blocks on %d multiprocessors", driver->launch[0].blocks, given_desc.max_multiprocessors);
    }
}

void round_of_merge(void) {
    const int64_t batch = one_in(12) ? 0 : 1 + below(3), length = 1 + below(5), heads = 1 + below(4), dim = 1 + below(70);
    longrope_merge_parts given_parts;
    longrope_tensor given_out, given_lse;
    const longrope_merge_parts *parts;
    const longrope_tensor *out, *lse;
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    memset(&given_parts, 0, sizeof given_parts);
    given_parts.out = draw_tensor(0, LONGROPE_DTYPE_F32, batch, length, heads, dim);
    given_parts.lse = draw_tensor(1, LONGROPE_DTYPE_F32, batch, length, heads, 1);
    given_parts.count = below(5);
    given_parts.out_stride = one_in(4) ? hostile_integer() : 1024;
    given_parts.lse_stride = one_in(4) ? hostile_integer() : 64;
    given_out = draw_tensor(2, 1 + (int32_t)below(3), batch, length, heads, dim);
    given_lse = draw_tensor(3, LONGROPE_DTYPE_F32, batch, length, heads, 1);
    if (one_in(8)) memset(&given_lse, 0, sizeof given_lse);
    while (spoils--) {
        longrope_tensor *const tensors[4] = {&given_parts.out, &given_parts.lse, &given_out, &given_lse};
        if (one_in(4)) {
            spoil(&given_parts, PARTS_FIELDS, COUNT(PARTS_FIELDS), 0);
        } else {
            spoil(tensors[below(4)], TENSOR_FIELDS, TENSOR_FIELD_COUNT, 0);
        }
    }
    parts = one_in(60) ? NULL : place(0, &given_parts, sizeof given_parts);
    out = one_in(60) ? NULL : place(1, &given_out, sizeof given_out);
    lse = one_in(6) ? NULL : place(2, &given_lse, sizeof given_lse);
    before();
    after(F_MERGE_SUPPORTED, longrope_merge_supported(parts, out, lse), &supported);
    before();
    after(F_MERGE_SIZE, longrope_merge_workspace_size(parts, out, lse, &bytes), &size);
    compare_size(&supported, &size, bytes);
    if (size.status == LONGROPE_STATUS_OK && bytes != 0) fail("a workspace of %zu bytes", bytes);
    given = draw_run(0);
    given.bytes = 0;
    before();
    after(F_MERGE_RUN, longrope_merge_run(given.context, parts, out, lse, given.stream), &run);
    compare_run(&supported, &run, &given, 0, 1);
}
