/* Attention and merge on a driver that prints what it is told. Each call of the library is announced with its answer. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longrope.h"

static void *at(uintptr_t address) { return (void *)address; }

static void announce(const char *what, longrope_status status) {
    printf("%s: %d%s%s\n", what, (int)status, status ? " " : "", status ? longrope_last_error_message() : "");
}

int main(void) {
    longrope_attention_desc desc = LONGROPE_ATTENTION_DESC_INIT, packed = LONGROPE_ATTENTION_DESC_INIT;
    longrope_attention_tensors tensors;
    longrope_merge_parts parts;
    longrope_attention_desc options = LONGROPE_ATTENTION_DESC_INIT;
    longrope_cache_rotary_desc rotary = LONGROPE_CACHE_ROTARY_DESC_INIT;
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_factor_sets *sets = NULL;
    const double ones[2] = {1.0, 1.0};
    longrope_context *context = NULL;
    size_t bytes = 0;
    longrope_tensor q = {at(0x10000), LONGROPE_DTYPE_BF16, {2, 5, 6, 64}, {0, 0, 0, 0}};
    longrope_tensor k = {at(0x20000), LONGROPE_DTYPE_BF16, {2, 9, 2, 64}, {2560, 128, 64, 1}};
    longrope_tensor v = {at(0x30000), LONGROPE_DTYPE_BF16, {2, 9, 2, 64}, {1152, 64, 576, 1}};
    longrope_tensor out = {at(0x40000), LONGROPE_DTYPE_F32, {2, 5, 6, 64}, {1920, 64, 320, 1}};
    longrope_tensor lse = {at(0x50000), LONGROPE_DTYPE_F32, {2, 5, 6, 1}, {30, 1, 5, 1}};
    longrope_tensor merged = {at(0x60000), LONGROPE_DTYPE_F16, {2, 5, 6, 64}, {0, 0, 0, 0}};
    longrope_tensor merged_lse = {at(0x70000), LONGROPE_DTYPE_F32, {2, 5, 6, 1}, {0, 0, 0, 0}};

    frequencies.pairs = 2;
    frequencies.short_frequencies = ones;
    announce("sets", longrope_factor_sets_from_frequencies(&frequencies, &sets));
    announce("create", longrope_context_create(0, &context));
    if (!context) {
        longrope_factor_sets_destroy(sets);
        return 0;
    }

    tensors.q = q;
    tensors.k = k;
    tensors.v = v;
    tensors.out = out;
    tensors.lse = lse;
    desc.causal = 1;
    desc.scale = -0.25f;
    desc.window = 4;
    desc.query_offset = 1000;
    desc.key_offset = -7;
    desc.query_offsets = at(0x1000);
    desc.status = at(0x2000);
    announce("dense", longrope_attention_run(context, &desc, &tensors, NULL, 0, at(0x77)));

    /* Merged with an earlier result by every kernel; rotated, and with a limit of its blocks, by one alone. */
    options.carry_out = tensors.out;
    options.carry_lse = tensors.lse;
    announce("size", longrope_attention_workspace_size(&options, &tensors, &bytes));
    announce("carry", longrope_attention_run(context, &options, &tensors, at(0x100), bytes, at(0x77)));
    options.max_multiprocessors = 2;
    announce("limit", longrope_attention_run(context, &options, &tensors, at(0x100), bytes, at(0x77)));
    options.max_multiprocessors = 0;
    rotary.sets = sets;
    rotary.choice_kind = LONGROPE_CHOICES_LONG;
    options.query_rotary = &rotary;
    announce("size", longrope_attention_workspace_size(&options, &tensors, &bytes));
    announce("rotary", longrope_attention_run(context, &options, &tensors, at(0x100), bytes, at(0x77)));

    packed.sequence_kind = LONGROPE_SEQUENCES_PACKED;
    packed.index_bits = 64;
    packed.sequences = 3;
    packed.query_starts = at(0x3000);
    packed.key_starts = at(0x4000);
    tensors.q.shape[0] = tensors.k.shape[0] = tensors.v.shape[0] = tensors.out.shape[0] = 1;
    memset(&tensors.lse, 0, sizeof tensors.lse);
    announce("size", longrope_attention_workspace_size(&packed, &tensors, &bytes));
    printf("bytes: %lu\n", (unsigned long)bytes);
    announce("packed", longrope_attention_run(context, &packed, &tensors, at(0x100), bytes, NULL));
    announce("small", longrope_attention_run(context, &packed, &tensors, at(0x100), bytes - 1, NULL));
    announce("none", longrope_attention_run(context, &packed, &tensors, NULL, bytes, NULL));
    announce("misaligned", longrope_attention_run(context, &packed, &tensors, at(0x108), bytes, NULL));

    parts.out = out;
    parts.lse = lse;
    parts.count = 3;
    parts.out_stride = 100000;
    parts.lse_stride = -1000;
    announce("merge", longrope_merge_run(context, &parts, &merged, &merged_lse, at(0x78)));
    parts.count = 0;
    parts.out.data = parts.lse.data = NULL;
    announce("merge", longrope_merge_run(context, &parts, &merged, NULL, NULL));

    announce("failing", longrope_attention_run(context, &packed, &tensors, at(0x100), bytes, at(0xbad)));
    announce("failing", longrope_merge_run(context, &parts, &merged, NULL, at(0xbad)));
    tensors.q.shape[1] = tensors.out.shape[1] = 0;
    announce("empty", longrope_attention_run(context, &packed, &tensors, NULL, 0, at(0xbad)));

    longrope_factor_sets_destroy(sets);
    longrope_context_destroy(context);
    return 0;
}
