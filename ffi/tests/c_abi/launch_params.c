/* Reading the parameters of a recorded launch. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "launch_params.h"
#include "params_backward.h"

static int is_of(const recorded_launch *launch, const char *kernel) {
    return strncmp(launch->kernel, kernel, strlen(kernel)) == 0;
}

static void copy(const recorded_launch *launch, const char *kernel, size_t from, void *to, size_t bytes) {
    if (!is_of(launch, kernel) || launch->bytes < from + bytes) abort();
    memcpy(to, launch->params + from, bytes);
}

static attention_seen seen_of(longrope_attention_params p) {
    attention_seen seen;
    seen.causal = p.causal;
    seen.packed = p.sequence_kind == LONGROPE_SEQUENCES_PACKED;
    seen.wide = p.starts_are_wide;
    seen.sequences = p.sequences;
    seen.query_heads = p.query_heads;
    seen.group = p.group;
    seen.head_dim = p.head_dim;
    seen.window = p.window;
    seen.query_length = p.query_length;
    seen.key_length = p.key_length;
    seen.max_query_length = p.max_query_length;
    seen.query_starts = p.query_starts;
    seen.key_starts = p.key_starts;
    seen.lse = p.lse;
    memcpy(seen.lse_stride, p.lse_stride, sizeof seen.lse_stride);
    return seen;
}

attention_seen see_attention(const recorded_launch *launch) {
    longrope_attention_params p;
    /* Hopper's block begins with maps of the tensors. */
    const int is_hopper = is_of(launch, "longrope_attention_sm90_");
    copy(launch, "longrope_attention_", is_hopper ? offsetof(longrope_attention_sm90_params, attention) : 0, &p, sizeof p);
    return seen_of(p);
}

backward_seen see_backward(const recorded_launch *launch) {
    longrope_attention_backward_params p;
    backward_seen seen;
    const int is_hopper = strstr(launch->kernel, "_sm90_") != NULL;
    copy(launch, "longrope_attention_backward_", is_hopper ? offsetof(longrope_attention_backward_sm90_params, backward) : 0, &p,
         sizeof p);
    seen.attention = seen_of(p.attention);
    seen.query_offset = p.attention.query_offset;
    seen.key_offset = p.attention.key_offset;
    seen.query_offsets = p.attention.query_offsets;
    seen.status = p.attention.status;
    seen.d_out = p.d_out;
    seen.delta = p.delta;
    seen.dq = p.dq;
    seen.dk = p.dk;
    seen.dv = p.dv;
    memcpy(seen.delta_stride, p.delta_stride, sizeof seen.delta_stride);
    memcpy(seen.dq_stride, p.dq_stride, sizeof seen.dq_stride);
    memcpy(seen.dk_stride, p.dk_stride, sizeof seen.dk_stride);
    memcpy(seen.dv_stride, p.dv_stride, sizeof seen.dv_stride);
    seen.accumulate = p.accumulate;
    seen.dq_is_f32 = p.dq_is_f32;
    seen.dk_is_f32 = p.dk_is_f32;
    seen.dv_is_f32 = p.dv_is_f32;
    seen.key_heads = p.key_heads;
    seen.scale = p.scale;
    seen.rotates = p.rotates;
    seen.pairs = p.rotary.pairs;
    seen.interleaved = p.rotary.interleaved;
    seen.by_index = p.rotary.choice_kind == LONGROPE_CHOICE_BY_INDEX;
    seen.choices = p.rotary.choices;
    return seen;
}

delta_seen see_delta(const recorded_launch *launch) {
    longrope_attention_delta_params p;
    delta_seen seen;
    copy(launch, "longrope_attention_delta_", 0, &p, sizeof p);
    seen.out = p.out;
    seen.d_out = p.d_out;
    seen.delta = p.delta;
    seen.batch = p.batch;
    seen.length = p.length;
    memcpy(seen.delta_stride, p.delta_stride, sizeof seen.delta_stride);
    seen.heads = p.heads;
    seen.head_dim = p.head_dim;
    seen.out_is_f32 = p.out_is_f32;
    return seen;
}

counter_seen see_counter(const recorded_launch *launch) {
    longrope_attention_sm90_params p;
    counter_seen seen;
    copy(launch, "longrope_attention_sm90_", 0, &p, sizeof p);
    seen.counter = p.drawn;
    seen.items = p.items;
    seen.splits = p.splits;
    return seen;
}

options_seen see_options(const recorded_launch *launch) {
    longrope_attention_sm90_params p;
    options_seen seen;
    copy(launch, "longrope_attention_sm90_", 0, &p, sizeof p);
    memset(&seen, 0, sizeof seen);
    seen.carry = p.attention.carry;
    seen.carry_lse = p.attention.carry_lse;
    memcpy(seen.carry_stride, p.attention.carry_stride, sizeof seen.carry_stride);
    memcpy(seen.carry_lse_stride, p.attention.carry_lse_stride, sizeof seen.carry_lse_stride);
    seen.rotates = p.rotates;
    if (!p.rotates) return seen;
    seen.pairs = p.rotary.pairs;
    seen.interleaved = p.rotary.interleaved;
    seen.choice_kind = p.rotary.choice_kind;
    seen.choices = p.rotary.choices;
    seen.last_step = p.rotary.sets.long_set.step[p.rotary.pairs - 1];
    return seen;
}

attention_seen see_decode(const recorded_launch *launch) {
    longrope_decode_params p;
    attention_seen seen;
    copy(launch, "longrope_decode_", 0, &p, sizeof p);
    memset(&seen, 0, sizeof seen);
    seen.causal = 1; /* there is no other decoding */
    seen.packed = p.tokens.starts != NULL;
    seen.wide = p.tokens.starts_are_wide;
    seen.sequences = p.cache.sequences;
    seen.query_heads = p.query_heads;
    seen.group = p.group;
    seen.head_dim = p.head_dim;
    seen.window = p.window;
    seen.query_length = p.tokens.total;
    seen.max_query_length = p.tokens.most;
    seen.query_starts = p.tokens.starts;
    seen.lse = p.lse;
    memcpy(seen.lse_stride, p.lse_stride, sizeof seen.lse_stride);
    return seen;
}

parts_seen see_parts(const recorded_launch *launch) {
    longrope_decode_params p;
    parts_seen seen;
    copy(launch, "longrope_decode_", 0, &p, sizeof p);
    seen.parts = p.parts;
    seen.parts_lse = p.parts_lse;
    seen.slot_rows = p.slot_rows;
    seen.blocks = p.blocks;
    seen.splits = p.splits;
    seen.head_dim = p.head_dim;
    return seen;
}
