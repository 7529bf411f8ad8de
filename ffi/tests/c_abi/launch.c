/* Launches on a driver that prints what it is told. Each call of the library is announced with its answer. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "longrope.h"

static void *at(uintptr_t address) { return (void *)address; }

static void announce(const char *what, longrope_status status) {
    printf("%s: %d%s%s\n", what, (int)status, status ? " " : "", status ? longrope_last_error_message() : "");
}

int main(void) {
    static const double plain[2] = {1.0, 0.5}, short_[2] = {0.5, 0.25}, long_[2] = {0.25, 0.125};
    longrope_frequencies frequencies = LONGROPE_FREQUENCIES_INIT;
    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    longrope_rerotate_desc rerotate = LONGROPE_REROTATE_DESC_INIT;
    longrope_factor_sets *sets = NULL, *from = NULL;
    longrope_context *context = NULL;
    longrope_tensor_io io[2];
    longrope_tensor q = {at(0x10000), LONGROPE_DTYPE_BF16, {2, 5, 3, 6}, {90, 18, 6, 1}};
    longrope_tensor q_out = {at(0x20000), LONGROPE_DTYPE_BF16, {2, 5, 3, 6}, {90, 6, 30, 1}};
    longrope_tensor k = {at(0x30000), LONGROPE_DTYPE_BF16, {2, 5, 1, 6}, {0, 0, 0, 0}};

    frequencies.pairs = 2;
    frequencies.plain = plain;
    frequencies.short_frequencies = short_;
    frequencies.long_frequencies = long_;
    frequencies.short_gain = 1.25;
    frequencies.long_gain = 1.5;
    frequencies.original_length = 4096;
    frequencies.first_tokens = 4;
    announce("sets", longrope_factor_sets_from_frequencies(&frequencies, &sets));
    frequencies.long_gain = 3;
    frequencies.first_tokens = 0;
    announce("from", longrope_factor_sets_from_frequencies(&frequencies, &from));

    announce("no such device", longrope_context_create(1, &context));
    announce("create", longrope_context_create(0, &context));
    if (!context) return 0;

    memset(io, 0, sizeof io);
    io[0].input = q;
    io[0].output = q_out;
    io[1].input = k;
    desc.sets = sets;
    desc.pairing = LONGROPE_PAIRING_INTERLEAVED;
    desc.backward = 1;
    desc.position_kind = LONGROPE_POSITIONS_PER_TOKEN_I32;
    desc.positions = at(0x1000);
    desc.choice_kind = LONGROPE_CHOICES_BY_INDEX;
    desc.choices = at(0x2000);
    desc.status = (uint32_t *)at(0x3000);
    announce("run", longrope_rotary_run(context, &desc, io, 2, at(0x77)));

    desc.backward = 0;
    desc.position_kind = LONGROPE_POSITIONS_OFFSET;
    desc.positions = NULL;
    desc.position_offset = -3;
    desc.choice_kind = LONGROPE_CHOICES_LENGTH;
    desc.choices = NULL;
    desc.choice_length = 4096;
    desc.status = NULL;
    announce("run", longrope_rotary_run(context, &desc, io + 1, 1, NULL));
    desc.choice_length = 4097;
    announce("run", longrope_rotary_run(context, &desc, io + 1, 1, NULL));

    rerotate.to = &desc;
    rerotate.from = from;
    rerotate.shift = -1000;
    rerotate.from_choice_kind = LONGROPE_CHOICES_BY_LENGTH;
    rerotate.from_choices = at(0x4000);
    announce("rerotate", longrope_rerotate_run(context, &rerotate, io + 1, 1, at(0x78)));

    announce("failing", longrope_rotary_run(context, &desc, io + 1, 1, at(0xbad)));
    io[1].input.shape[1] = 0;
    announce("empty", longrope_rotary_run(context, &desc, io + 1, 1, at(0xbad)));

    longrope_factor_sets_destroy(sets);
    longrope_factor_sets_destroy(from);
    longrope_context_destroy(context);
    return 0;
}
