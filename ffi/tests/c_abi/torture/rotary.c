/* Rounds of rotation and re-rotation. */
#include <string.h>

#include "torture.h"

static const field ROTARY_FIELDS[] = {
    FIELD(longrope_rotary_desc, struct_size, KIND_SIZE),
    FIELD(longrope_rotary_desc, pairing, KIND_I32),
    FIELD(longrope_rotary_desc, backward, KIND_I32),
    FIELD(longrope_rotary_desc, position_kind, KIND_I32),
    FIELD(longrope_rotary_desc, choice_kind, KIND_I32),
    FIELD(longrope_rotary_desc, flags, KIND_I32),
    FIELD(longrope_rotary_desc, sets, KIND_POINTER),
    FIELD(longrope_rotary_desc, position_offset, KIND_I64),
    FIELD(longrope_rotary_desc, positions, KIND_ADDRESS),
    FIELD(longrope_rotary_desc, choice_length, KIND_I64),
    FIELD(longrope_rotary_desc, choices, KIND_ADDRESS),
    FIELD(longrope_rotary_desc, status, KIND_ADDRESS),
};

static const field REROTATE_FIELDS[] = {
    FIELD(longrope_rerotate_desc, struct_size, KIND_SIZE),
    FIELD(longrope_rerotate_desc, from_choice_kind, KIND_I32),
    FIELD(longrope_rerotate_desc, to, KIND_POINTER),
    FIELD(longrope_rerotate_desc, from, KIND_POINTER),
    FIELD(longrope_rerotate_desc, shift, KIND_I64),
    FIELD(longrope_rerotate_desc, from_choice_length, KIND_I64),
    FIELD(longrope_rerotate_desc, from_choices, KIND_ADDRESS),
};

/* One tensor or two, and how many there are said to be. */
typedef struct problem {
    longrope_rotary_desc desc;
    longrope_tensor_io io[2];
    size_t count;
} problem;

/* The choice of a set, as it should be. */
static void draw_choice(int32_t *kind, int64_t *length, const void **choices) {
    *kind = (int32_t)below(5);
    *length = *kind == LONGROPE_CHOICES_LENGTH ? below(10000) : 0;
    *choices = *kind >= LONGROPE_CHOICES_BY_LENGTH ? slot(CHOICES) : NULL;
}

static problem draw_problem(int32_t dtype) {
    static const int64_t dims[] = {8, 16, 24, 64, 6, 17};
    const longrope_rotary_desc plain = LONGROPE_ROTARY_DESC_INIT;
    const int64_t batch = one_in(12) ? 0 : 1 + below(3), length = one_in(12) ? 0 : 1 + below(4);
    const int64_t dim = dims[below(COUNT(dims))];
    problem p;
    int t;
    memset(&p, 0, sizeof p);
    p.desc = plain;
    p.desc.pairing = (int32_t)below(2);
    p.desc.backward = (int32_t)below(2);
    p.desc.position_kind = (int32_t)below(5);
    if (p.desc.position_kind == LONGROPE_POSITIONS_OFFSET) {
        p.desc.position_offset = one_in(4) ? hostile_integer() : below(1 << 20);
    } else {
        p.desc.positions = slot(POSITIONS);
    }
    draw_choice(&p.desc.choice_kind, &p.desc.choice_length, &p.desc.choices);
    p.desc.sets = draw_sets(dim);
    p.desc.status = one_in(3) ? NULL : status_word();
    p.count = 1 + (size_t)below(2);
    for (t = 0; t < 2; ++t) {
        const int64_t heads = one_in(20) ? 0 : 1 + below(4);
        p.io[t].input = draw_tensor(2 * t, dtype, batch, length, heads, dim);
        if (one_in(2)) p.io[t].output = draw_tensor(2 * t + 1, dtype, batch, length, heads, dim);
    }
    draw_numbers(3, length, length + 8, 1);
    return p;
}

/* Spoils the tensors of a problem, or how many they are. */
static void spoil_tensors(problem *p, int host) {
    static const size_t counts[] = {0, 3, SIZE_MAX};
    const int t = (int)below(2);
    longrope_tensor *const tensor = one_in(2) ? &p->io[t].input : &p->io[t].output;
    const longrope_tensor right = *tensor;
    if (one_in(10)) {
        p->count = counts[below(3)];
        return;
    }
    if (one_in(10)) {
        p->io[1].output.data = p->io[0].input.data; /* overlapping */
    }
    spoil(tensor, TENSOR_FIELDS, TENSOR_FIELD_COUNT, host);
    if (host && !is_safe(tensor)) *tensor = right;
}

static const longrope_tensor_io *place_tensors(const problem *p) {
    if (one_in(60)) return NULL;
    return place(1, p->io, p->count == 1 ? sizeof p->io[0] : sizeof p->io);
}

static const longrope_rotary_desc *place_desc(const problem *p) {
    if (one_in(60)) return NULL;
    return place(0, &p->desc, sizeof p->desc);
}

/* The CPU form takes and refuses what a launch does, but for the type. */
static void cpu(const longrope_rotary_desc *desc, const problem *p, const longrope_tensor_io *io, const answer *supported) {
    const longrope_tensor *outputs[2];
    answer found;
    int t, zero;
    keep_memory();
    before();
    after(F_ROTARY_CPU, longrope_rotary_cpu(desc, io, p->count), &found);
    for (t = 0; t < 2; ++t) {
        const longrope_tensor none = {NULL, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}, *const out = &p->io[t].output;
        zero = out->data == NULL && out->dtype == 0 && !memcmp(out->shape, none.shape, sizeof none.shape) &&
               !memcmp(out->stride, none.stride, sizeof none.stride);
        outputs[t] = zero ? &p->io[t].input : out;
    }
    check_memory(outputs, found.status == LONGROPE_STATUS_OK ? (int)p->count : 0);
    if (found.status == LONGROPE_STATUS_UNSUPPORTED && strstr(found.message, "the CPU form takes F32")) return;
    if (found.status != supported->status || strcmp(found.message, supported->message) != 0) {
        fail("supported: %d %s\ncpu: %d %s", supported->status, supported->message, found.status, found.message);
    }
}

void round_of_rotary(void) {
    const int host = one_in(3);
    problem p = draw_problem(host && !one_in(12) ? LONGROPE_DTYPE_F32 : 1 + (int32_t)below(3));
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    const longrope_rotary_desc *desc;
    const longrope_tensor_io *io;
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    while (spoils--) {
        if (one_in(2)) {
            spoil(&p.desc, ROTARY_FIELDS, COUNT(ROTARY_FIELDS), host);
        } else {
            spoil_tensors(&p, host);
        }
    }
    desc = place_desc(&p);
    io = place_tensors(&p);
    before();
    after(F_ROTARY_SUPPORTED, longrope_rotary_supported(desc, io, p.count), &supported);
    if (host) {
        cpu(desc, &p, io, &supported);
        return;
    }
    before();
    after(F_ROTARY_SIZE, longrope_rotary_workspace_size(desc, io, p.count, &bytes), &size);
    compare_size(&supported, &size, bytes);
    if (size.status == LONGROPE_STATUS_OK && bytes != 0) fail("a workspace of %zu bytes", bytes);
    given = draw_run(0);
    given.bytes = 0;
    before();
    after(F_ROTARY_RUN, longrope_rotary_run(given.context, desc, io, p.count, given.stream), &run);
    compare_run(&supported, &run, &given, 0, 1);
}

void round_of_rerotate(void) {
    const longrope_rerotate_desc plain = LONGROPE_REROTATE_DESC_INIT;
    longrope_rerotate_desc given_desc = plain;
    const longrope_rerotate_desc *desc;
    problem p = draw_problem(1 + (int32_t)below(3));
    const longrope_tensor_io *io;
    int spoils = one_in(2) ? 0 : 1 + (int)below(3);
    size_t bytes = 12345;
    answer supported, size, run;
    run_arguments given;
    p.desc.backward = 0;
    given_desc.from = one_in(2) ? p.desc.sets : draw_sets(p.io[0].input.shape[3]);
    given_desc.shift = one_in(3) ? hostile_integer() : below(1000) - 500;
    draw_choice(&given_desc.from_choice_kind, &given_desc.from_choice_length, &given_desc.from_choices);
    given_desc.to = &p.desc;
    while (spoils--) {
        switch (below(3)) {
            case 0: spoil(&p.desc, ROTARY_FIELDS, COUNT(ROTARY_FIELDS), 0); break;
            case 1: spoil(&given_desc, REROTATE_FIELDS, COUNT(REROTATE_FIELDS), 0); break;
            default: spoil_tensors(&p, 0); break;
        }
    }
    if (given_desc.to) given_desc.to = place(0, &p.desc, sizeof p.desc);
    desc = one_in(60) ? NULL : place(2, &given_desc, sizeof given_desc);
    io = place_tensors(&p);
    before();
    after(F_REROTATE_SUPPORTED, longrope_rerotate_supported(desc, io, p.count), &supported);
    before();
    after(F_REROTATE_SIZE, longrope_rerotate_workspace_size(desc, io, p.count, &bytes), &size);
    compare_size(&supported, &size, bytes);
    if (size.status == LONGROPE_STATUS_OK && bytes != 0) fail("a workspace of %zu bytes", bytes);
    given = draw_run(0);
    given.bytes = 0;
    before();
    after(F_REROTATE_RUN, longrope_rerotate_run(given.context, desc, io, p.count, given.stream), &run);
    compare_run(&supported, &run, &given, 0, 1);
}
