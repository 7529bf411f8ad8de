/* What a kernel was told, of the parameters that tests look at. The header of the kernels' parameters has names of the
 * library's, so that one file alone includes it. */
#ifndef LAUNCH_PARAMS_H
#define LAUNCH_PARAMS_H

#include <stdint.h>

#include "recording_driver.h"

typedef struct attention_seen {
    int causal, packed, wide, sequences, query_heads, group, head_dim;
    int64_t window, query_length, key_length, max_query_length;
    const void *query_starts, *key_starts;
    const void *lse;
    int64_t lse_stride[3];
} attention_seen;

/* What the kernels of gradients are told. */
typedef struct backward_seen {
    attention_seen attention;
    int64_t query_offset, key_offset;
    const void *query_offsets, *status, *d_out, *delta, *dq, *dk, *dv;
    int64_t delta_stride[3], dq_stride[4], dk_stride[4], dv_stride[4];
    int accumulate, dq_is_f32, dk_is_f32, dv_is_f32, key_heads;
    float scale;
    /* Whether gradients are rotated; of the rotation, how many pairs, which, and by which sets. */
    int rotates, pairs, interleaved, by_index;
    const void *choices;
} backward_seen;

typedef struct delta_seen {
    const void *out, *d_out, *delta;
    int64_t batch, length, delta_stride[3];
    int heads, head_dim, out_is_f32;
} delta_seen;

typedef struct parts_seen {
    const void *parts, *parts_lse;
    int64_t slot_rows;
    int blocks, splits, head_dim;
} parts_seen;

/* How the blocks of Hopper's attention share out their items. */
typedef struct counter_seen {
    const void *counter;
    unsigned items;
    int splits; /* parts of the keys */
} counter_seen;

/* What an attention is told beside: an earlier result, and how queries are rotated. */
typedef struct options_seen {
    const void *carry, *carry_lse;
    int64_t carry_stride[4], carry_lse_stride[3];
    int rotates, pairs, interleaved, choice_kind;
    const void *choices;
    uint64_t last_step; /* of the long set's last pair */
} options_seen;

/* Of the attention kernels, those over a cache included. */
attention_seen see_attention(const recorded_launch *launch);
/* Of those of Hopper. */
counter_seen see_counter(const recorded_launch *launch);
options_seen see_options(const recorded_launch *launch);
/* Of the gradients' kernels. */
backward_seen see_backward(const recorded_launch *launch);
delta_seen see_delta(const recorded_launch *launch);
/* Of decoding. */
attention_seen see_decode(const recorded_launch *launch);
parts_seen see_parts(const recorded_launch *launch);

#endif
