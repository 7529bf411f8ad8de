/* The parameter blocks of attention's backward pass, as params.h has those of all else. */
#ifndef LONGROPE_PARAMS_BACKWARD_H
#define LONGROPE_PARAMS_BACKWARD_H

#include "params.h"

/* The sum of out * d_out over the head dimension, for each row. Shapes are [batch, length, heads, head_dim]. */
typedef struct longrope_attention_delta_params {
    /* Of the kernel's type, and f32 by `out_is_f32`. */
    const void *out;
    const void *d_out;
    /* f32, without the last dimension. */
    float *delta;
    int64_t out_stride[4];
    int64_t d_out_stride[4];
    int64_t delta_stride[3];
    int64_t batch;
    int64_t length;
    int32_t heads;
    int32_t head_dim;
    int32_t out_is_f32;
    /* Lanes that share a row: a power of two up to 32. */
    int32_t lanes;
} longrope_attention_delta_params;

/* Gradients of attention. */
typedef struct longrope_attention_backward_params {
    /* `out` is not used, `lse` is read and always there, and the sign of the scale is in `scale`. Its tiles and sections are
     * those of the kernel for queries. */
    longrope_attention_params attention;
    /* 16 bits as q, of its shape. */
    const void *d_out;
    /* f32 [batch, query length, heads]. */
    const float *delta;
    /* Each 16 bits as q, or f32 by `dq_is_f32` and its like. */
    void *dq;
    void *dk;
    void *dv;
    int64_t d_out_stride[4];
    int64_t delta_stride[3];
    int64_t dq_stride[4];
    int64_t dk_stride[4];
    int64_t dv_stride[4];
    /* Blocks of a sequence and key head; each takes every so many-th tile of keys. */
    int64_t key_blocks;
    /* 1: results are added to what is there, which is f32. */
    int32_t accumulate;
    int32_t dq_is_f32;
    int32_t dk_is_f32;
    int32_t dv_is_f32;
    int32_t key_heads;
    float scale;
    /* 1: queries and keys were rotated by `rotary`, and the gradients of both are those of what they were before: its transpose. */
    int32_t rotates;
    int32_t padding;
    longrope_cache_rotary rotary;
} longrope_attention_backward_params;

/* Gradients of attention on Hopper: of what a block holds, the rows, by what it walks over, the columns. For dK and dV rows are keys
 * and columns queries; for dQ it is the other way round. */
typedef struct longrope_attention_backward_sm90_params {
    /* As those of longrope_attention_sm90_params. Rows by columns are the logits ([0]) and their gradients ([1]): keys and values,
     * queries and d_out; or the other way round. */
    longrope_tensor_map rows[2];
    longrope_tensor_map columns[2];
    longrope_attention_backward_params backward;
    /* How many items were drawn beyond the first of every block: 0 before the launch. Needed where there are more items than
     * blocks. */
    uint32_t *drawn;
    /* f32 [blocks][1, or 2 for dK and dV][rows of a block][padded head dim]; needed where there are more columns than are summed
     * without folding. */
    float *sums;
    /* Blocks of rows, of all heads and sequences. */
    uint32_t items;
    /* Query heads that read a key head, in the kernel that makes all gradients. To it every query head has keys of its own: the group
     * is 1, `backward.key_heads` that of queries. */
    int32_t sharing;
    /* Where the kernel that makes all gradients adds those of queries before the scale: f32 [batch][heads][slab_tiles] tiles of
     * queries, each as its threads hold it; zeros before, or anything where blocks add in turn, since the first writes. A packed
     * sequence begins a tile at its number plus the whole tiles before its first row. Blocks of a sequence and head that read it,
     * each every so many-th tile: `backward.attention.tiles`. */
    float *slab;
    int64_t slab_tiles;
    /* Likewise of keys and values, where query heads share them or they are rotated, or null: f32 [batch][key heads][key_slab_tiles]
     * tiles of keys. */
    float *key_slab;
    int64_t key_slab_tiles;
    /* Where blocks add in turn, so that sums have one order: how many have added to a tile of the slab, and to one of the keys'; 0
     * before the launch. Else the first is null, and the other unused. */
    uint32_t *turns;
    uint32_t *key_turns;
    /* There, all items, in the order in which they are drawn, 160 bytes each, zeros before; and blocks that list those of a sequence. */
    void *list;
    uint32_t list_blocks;
    /* Items of the heads that are worked on at a time, about. */
    int32_t section_items;
} longrope_attention_backward_sm90_params;

#endif
