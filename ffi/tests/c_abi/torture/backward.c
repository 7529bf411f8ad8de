/* Rounds of the gradients of attention, and of what they subtract. */
#include <string.h>

#include "torture.h"

static const field BACKWARD_FIELDS[] = {
    FIELD(longrope_attention_backward_desc, struct_size, KIND_SIZE),
    FIELD(longrope_attention_backward_desc, causal, KIND_I32),
    FIELD(longrope_attention_backward_desc, scale, KIND_F32),
    FIELD(longrope_attention_backward_desc, flags, KIND_I32),
    FIELD(longrope_attention_backward_desc, window, KIND_I64),
    FIELD(longrope_attention_backward_desc, query_offset, KIND_I64),
    FIELD(longrope_attention_backward_desc, key_offset, KIND_I64),
    FIELD(longrope_attention_backward_desc, sequence_kind, KIND_I32),
    FIELD(longrope_attention_backward_desc, index_bits, KIND_I32),
    FIELD(longrope_attention_backward_desc, sequences, KIND_I64),
    FIELD(longrope_attention_backward_desc, query_starts, KIND_ADDRESS),
    FIELD(longrope_attention_backward_desc, key_starts, KIND_ADDRESS),
    FIELD(longrope_attention_backward_desc, max_query_length, KIND_I64),
    FIELD(longrope_attention_backward_desc, query_offsets, KIND_ADDRESS),
    FIELD(longrope_attention_backward_desc, status, KIND_ADDRESS),
    FIELD(longrope_attention_backward_desc, accumulate, KIND_I32),
    FIELD(longrope_attention_backward_desc, reserved, KIND_I32),
    FIELD(longrope_attention_backward_desc, rotary, KIND_POINTER),
};

static const int64_t DIMS[] = {8, 16, 24, 64, 128, 256, 12};

/* The tensors lie in the first ten slots: where starts, positions and choices are not. */
static void draw_backward(longrope_attention_backward_desc *desc, longrope_attention_backward_tensors *tensors,
                          longrope_cache_rotary_desc *rotary, int32_t dtype, int host) {
    const longrope_attention_backward_desc plain = LONGROPE_ATTENTION_BACKWARD_DESC_INIT;
    const int is_packed = one_in(2), accumulate = one_in(3);
    const int64_t sequences = 1 + below(3), batch = is_packed ? 1 : sequences;
    const int64_t queries = one_in(16) ? 0 : 1 + below(5), keys = one_in(16) ? 0 : 1 + below(5);
    const int64_t key_heads = 1 + below(2), heads = key_heads * (1 + below(3)), dim = DIMS[below(host ? 3 : COUNT(DIMS))];
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
    desc->accumulate = accumulate;
    *rotary = draw_cache_rotary(dim);
    if (one_in(3)) desc->rotary = rotary;
    memset(tensors, 0, sizeof *tensors);
    tensors->q = draw_tensor(0, dtype, batch, queries, heads, dim);
    tensors->k = draw_tensor(1, dtype, batch, keys, key_heads, dim);
    tensors->v = draw_tensor(2, dtype, batch, keys, key_heads, dim);
    tensors->lse = draw_tensor(4, LONGROPE_DTYPE_F32, batch, queries, heads, 1);
    tensors->d_out = draw_tensor(6, dtype, batch, queries, heads, dim);
    if (one_in(2)) tensors->delta = draw_tensor(5, LONGROPE_DTYPE_F32, batch, queries, heads, 1);
    if (!tensors->delta.data || one_in(2)) {
        tensors->out = draw_tensor(3, one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, queries, heads, dim);
    }
    tensors->dq = draw_tensor(7, accumulate || one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, queries, heads, dim);
    tensors->dk = draw_tensor(8, accumulate || one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, keys, key_heads, dim);
    tensors->dv = draw_tensor(9, accumulate || one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, keys, key_heads, dim);
    draw_numbers(sequences, queries < keys ? queries : keys, 16, desc->index_bits == 64);
}

static longrope_tensor *tensor_of(longrope_attention_backward_tensors *tensors) {
    longrope_tensor *const all[] = {&tensors->q, &tensors->k, &tensors->v, &tensors->out, &tensors->lse,
                                    &tensors->delta, &tensors->d_out, &tensors->dq, &tensors->dk, &tensors->dv};
    return all[below(COUNT(all))];
}

static void spoil_backward(longrope_attention_backward_desc *desc, longrope_attention_backward_tensors *tensors,
                           longrope_cache_rotary_desc *rotary, int host) {
    longrope_tensor *const tensor = tensor_of(tensors);
    const longrope_tensor right = *tensor;
    if (desc->rotary && !host && one_in(4)) {
        spoil_cache_rotary(rotary); /* the CPU form reads the choices */
    } else if (one_in(2)) {
        spoil(desc, BACKWARD_FIELDS, COUNT(BACKWARD_FIELDS), host);
        /* The starts that are there. */
        if (host && desc->sequences > 64) desc->sequences = 64;
    } else if (one_in(8)) {
        memset(tensor, 0, sizeof *tensor); /* left out */
    } else {
        spoil(tensor, TENSOR_FIELDS, TENSOR_FIELD_COUNT, host);
        if (host && !is_safe(tensor)) *tensor = right;
    }
}

/* The sections of heads and sequences that are worked on together are no more than these. */
static int most_parts(const longrope_tensor *keys) {
    const int64_t most = 1000000, batch = keys->shape[0], heads = keys->shape[2];
    if (batch <= 0 || heads <= 0) return 1;
    return (int)(batch < most / heads ? batch * heads : most);
}

/* The CPU form refuses what means nothing as a launch does; of what means something it takes F32, and a launch all else. */
static void agree(const answer *supported, const answer *found) {
    if (supported->status == LONGROPE_STATUS_INVALID_ARGUMENT
            ? found->status != supported->status || strcmp(found->message, supported->message) != 0
        : supported->status == LONGROPE_STATUS_OK ? found->status != LONGROPE_STATUS_UNSUPPORTED
                                                  : found->status == LONGROPE_STATUS_INVALID_ARGUMENT) {
        fail("supported: %d %s\ncpu: %d %s", supported->status, supported->message, found->status, found->message);
    }
}

void round_of_backward(void) {
    const int host = one_in(3);
    longrope_attention_backward_desc given_desc;
    longrope_attention_backward_tensors given_tensors;
    longrope_cache_rotary_desc given_rotary;
    const longrope_attention_backward_desc *desc;
    const longrope_attention_backward_tensors *tensors;
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    draw_backward(&given_desc, &given_tensors, &given_rotary,
                  host && !one_in(12) ? LONGROPE_DTYPE_F32 : 2 + (int32_t)below(2), host);
    while (spoils--) spoil_backward(&given_desc, &given_tensors, &given_rotary, host);
    if (given_desc.rotary) given_desc.rotary = place(2, &given_rotary, sizeof given_rotary);
    desc = one_in(60) ? NULL : place(0, &given_desc, sizeof given_desc);
    tensors = one_in(60) ? NULL : place(1, &given_tensors, sizeof given_tensors);
    before();
    after(F_BACKWARD_SUPPORTED, longrope_attention_backward_supported(desc, tensors), &supported);
    if (host) {
        const longrope_tensor *const outputs[3] = {&given_tensors.dq, &given_tensors.dk, &given_tensors.dv};
        keep_memory();
        before();
        after(F_BACKWARD_CPU, longrope_attention_backward_cpu(desc, tensors), &run);
        check_memory(outputs, run.status == LONGROPE_STATUS_OK ? 3 : 0);
        agree(&supported, &run);
        return;
    }
    before();
    after(F_BACKWARD_SIZE, longrope_attention_backward_workspace_size(desc, tensors, &bytes), &size);
    compare_size(&supported, &size, bytes);
    given = draw_run(size.status == LONGROPE_STATUS_OK ? bytes : 0);
    before();
    after(F_BACKWARD_RUN,
          longrope_attention_backward_run(given.context, desc, tensors, given.workspace, given.bytes, given.stream), &run);
    /* Of delta, and for some heads of some sequences at a time four. */
    compare_run(&supported, &run, &given, bytes, 1 + 4 * most_parts(&given_tensors.k));
}

void round_of_delta(void) {
    const int host = one_in(3);
    const int64_t batch = one_in(12) ? 0 : 1 + below(3), length = 1 + below(5), heads = 1 + below(4);
    const int64_t dim = one_in(20) ? 0 : one_in(2) ? 1 + below(20) : DIMS[below(host ? 3 : COUNT(DIMS))];
    const int32_t dtype = host && !one_in(12) ? LONGROPE_DTYPE_F32 : 2 + (int32_t)below(2);
    longrope_tensor tensors[3];
    const longrope_tensor *placed[3];
    int spoils = one_in(2) ? 0 : 1 + (int)below(2), i;
    answer supported, run;
    run_arguments given;
    tensors[0] = draw_tensor(0, one_in(3) ? LONGROPE_DTYPE_F32 : dtype, batch, length, heads, dim);
    tensors[1] = draw_tensor(1, dtype, batch, length, heads, dim);
    tensors[2] = draw_tensor(2, LONGROPE_DTYPE_F32, batch, length, heads, 1);
    while (spoils--) {
        longrope_tensor *const tensor = &tensors[below(3)];
        const longrope_tensor right = *tensor;
        spoil(tensor, TENSOR_FIELDS, TENSOR_FIELD_COUNT, host);
        if (host && !is_safe(tensor)) *tensor = right;
    }
    for (i = 0; i < 3; ++i) placed[i] = one_in(60) ? NULL : place(i, &tensors[i], sizeof tensors[i]);
    before();
    after(F_DELTA_SUPPORTED, longrope_attention_delta_supported(placed[0], placed[1], placed[2]), &supported);
    if (host) {
        const longrope_tensor *const output = &tensors[2];
        keep_memory();
        before();
        after(F_DELTA_CPU, longrope_attention_delta_cpu(placed[0], placed[1], placed[2]), &run);
        check_memory(&output, run.status == LONGROPE_STATUS_OK ? 1 : 0);
        agree(&supported, &run);
        return;
    }
    given = draw_run(0);
    given.bytes = 0;
    before();
    after(F_DELTA_RUN, longrope_attention_delta_run(given.context, placed[0], placed[1], placed[2], given.stream), &run);
    compare_run(&supported, &run, &given, 0, 1);
}
