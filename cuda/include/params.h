/* The parameter blocks of the kernels: the one definition, with params_backward.h. Rust reads them through bindgen
 * (src/device/params/, made by scripts/generate-params), so they are plain C without pointers to anything but device memory.
 *
 * All lengths, strides and offsets are in elements and 64 bits wide.
 */
#ifndef LONGROPE_PARAMS_H
#define LONGROPE_PARAMS_H

#include <stdint.h>

/* Pairs of a head dimension of 256. */
#define LONGROPE_MAX_PAIRS 128

/* One set of factors. */
typedef struct longrope_factor_set {
    /* Exact: the step of each pair in 2^-64 turns a token. Parity: the bits of the f32 inverse frequency, zero-extended. */
    uint64_t step[LONGROPE_MAX_PAIRS];
    /* Multiplies cosine and sine (the attention factor). */
    double gain;
} longrope_factor_set;

/* The sets that a kernel chooses from, by position and by sequence. */
typedef struct longrope_factor_sets {
    /* A sequence longer than this takes the long set (L0). */
    int64_t original_length;
    /* Positions below this take the plain set (n_hat); 0: none does. */
    int64_t first_tokens;
    longrope_factor_set plain_set;
    longrope_factor_set short_set;
    longrope_factor_set long_set;
} longrope_factor_sets;

/* How a token's position is found. */
enum longrope_position_kind {
    /* `position_offset` plus the token's index in its sequence. */
    LONGROPE_POSITION_OFFSET = 0,
    /* As before, plus the int64 at `positions`. */
    LONGROPE_POSITION_DEVICE_OFFSET = 1,
    /* As before, plus the int64 at `positions[sequence]`. */
    LONGROPE_POSITION_PER_SEQUENCE = 2,
    /* The int64 at `positions[sequence * length + token]`. */
    LONGROPE_POSITION_PER_TOKEN = 3,
    /* The int32 at `positions[sequence * length + token]`. */
    LONGROPE_POSITION_PER_TOKEN_32 = 4
};

/* How a sequence's set is chosen. */
enum longrope_choice_kind {
    LONGROPE_CHOICE_SHORT = 0,
    LONGROPE_CHOICE_LONG = 1,
    /* Long if the int64 at `choices[sequence]`, the sequence's whole length, exceeds L0. */
    LONGROPE_CHOICE_BY_LENGTH = 2,
    /* The int32 at `choices[sequence]`: 0 short, 1 long. Anything else is a bad entry. */
    LONGROPE_CHOICE_BY_INDEX = 3
};

/* Bits of the caller's status word. */
enum longrope_device_status {
    /* A set index was neither 0 nor 1, or not one of the table's. The tokens of that sequence were not written. */
    LONGROPE_DEVICE_BAD_CHOICE = 1,
    /* The starts of a packed sequence do not rise, lie beyond the tensor, or span more than `max_query_length`; or its
     * position is beyond 2^62. Its rows were not written. */
    LONGROPE_DEVICE_BAD_SEQUENCE = 2,
    /* The length of a cached sequence is below its new tokens, but not 0, or beyond what the cache holds for it. */
    LONGROPE_DEVICE_BAD_LENGTH = 4,
    /* The id of a page that was needed is none of the cache's. */
    LONGROPE_DEVICE_BAD_PAGE = 8
};

/* A tensor to rotate: [batch, length, heads, head_dim]. */
typedef struct longrope_rotary_tensor {
    const void *in;
    void *out;
    /* Strides of batch, length, heads and head dimension. */
    int64_t in_stride[4];
    int64_t out_stride[4];
    /* 0: there is no such tensor. */
    int32_t heads;
    int32_t padding;
} longrope_rotary_tensor;

/* Rotation of queries and keys. */
typedef struct longrope_rotary_params {
    longrope_rotary_tensor tensor[2];
    int64_t batch;
    int64_t length;
    /* Device memory, by `position_kind`. */
    const void *positions;
    int64_t position_offset;
    /* Device memory, by `choice_kind`. */
    const void *choices;
    /* A word of device memory that bits of longrope_device_status are set in, or null. */
    uint32_t *status;
    int32_t head_dim;
    int32_t pairs;
    int32_t position_kind;
    int32_t choice_kind;
    /* 1: angles are f32 products (parity with Hugging Face); 0: exact. */
    int32_t parity;
    /* 1: the transpose. */
    int32_t backward;
    /* Bytes of the ring before the table of angles in shared memory. */
    int32_t ring_bytes;
    /* For few tokens: blocks of a token, and the reciprocals (divide.cuh) of that and of `length`. */
    uint32_t token_blocks;
    uint32_t token_blocks_reciprocal;
    uint32_t length_reciprocal;
    longrope_factor_sets sets;
} longrope_rotary_params;

/* Re-rotation: what was rotated by `from` at a position is rotated by `rotary.sets` at that position plus `shift`. */
typedef struct longrope_rerotate_params {
    longrope_rotary_params rotary;
    longrope_factor_sets from;
    int64_t shift;
    /* As `rotary.choice_kind` and `rotary.choices`, for the sets that were used. */
    const void *from_choices;
    int32_t from_choice_kind;
    int32_t padding;
} longrope_rerotate_params;

/* Rotation by sets in device memory: `rotary.choices` is an int32 index into them for each sequence. Of the sets by value the
 * plain one is used, for first tokens. */
typedef struct longrope_rotary_table_params {
    longrope_rotary_params rotary;
    const longrope_factor_set *table;
    /* Sets in the table. An index outside of 0 to this, exclusive, is a bad entry. */
    int64_t count;
} longrope_rotary_table_params;

/* How a batch is laid out. */
enum longrope_sequence_kind {
    /* Sequences are the batch dimension, and all as long as the tensors. */
    LONGROPE_SEQUENCES_DENSE = 0,
    /* Tensors have a batch of 1; sequence i is tokens `starts[i]` to `starts[i + 1]`. */
    LONGROPE_SEQUENCES_PACKED = 1
};

/* Attention forward. Tensors are [batch, length, heads, head_dim] of 16-bit elements; strides in this order. */
typedef struct longrope_attention_params {
    const void *q;
    const void *k;
    const void *v;
    /* 16 bits as q, or f32 by `out_is_f32`. */
    void *out;
    /* f32 [batch, query length, heads], natural logarithm; or null. */
    float *lse;
    int64_t q_stride[4];
    int64_t k_stride[4];
    int64_t v_stride[4];
    int64_t out_stride[4];
    int64_t lse_stride[3];
    /* Of the tensors: with packed sequences, of all of them together. */
    int64_t query_length;
    int64_t key_length;
    /* Packed: int32 or int64 [sequences + 1] in device memory, by `starts_are_wide`. */
    const void *query_starts;
    const void *key_starts;
    /* Packed: a sequence with more queries is bad. */
    int64_t max_query_length;
    /* Global position of the first query: this, plus `query_offsets[sequence]` if there are any. */
    int64_t query_offset;
    const int64_t *query_offsets;
    /* Global position of the first key. */
    int64_t key_offset;
    /* How far a query sees, its own position included; 0: no limit. */
    int64_t window;
    /* A word of device memory that bits of longrope_device_status are set in, or null. */
    uint32_t *status;
    /* Blocks of queries of a sequence, at most. */
    int64_t tiles;
    int32_t sequences;
    int32_t query_heads;
    /* Query heads a key head. */
    int32_t group;
    int32_t head_dim;
    /* Heads whose blocks come before those of other heads, so that their keys and values stay in the cache; how many such
     * sections there are. */
    int32_t section_heads;
    int32_t sections;
    int32_t sequence_kind;
    int32_t starts_are_wide;
    int32_t causal;
    int32_t out_is_f32;
    /* |scale| / ln 2, above 0; and 1 if the scale is below 0. */
    float scale_log2;
    int32_t negate;
    /* An earlier result over other keys that this one is merged with, f32, log-sum-exps natural; or null. */
    const float *carry;
    const float *carry_lse;
    int64_t carry_stride[4];
    int64_t carry_lse_stride[3];
} longrope_attention_params;

/* The union of partial results over disjoint keys. Shapes are [batch, length, heads, head_dim], without the last for lse. */
typedef struct longrope_merge_params {
    /* f32; part i is `part_stride` elements after part i - 1, and so for the lse. */
    const float *parts;
    const float *parts_lse;
    int64_t part_stride;
    int64_t part_lse_stride;
    int64_t part_count;
    int64_t in_stride[4];
    int64_t in_lse_stride[3];
    /* Of the kernel's type. */
    void *out;
    /* f32, or null. */
    float *lse;
    int64_t out_stride[4];
    int64_t lse_stride[3];
    int64_t batch;
    int64_t length;
    int32_t heads;
    int32_t head_dim;
} longrope_merge_params;

/* Keys and values of sequences that grow: token t of a sequence lies in row t % page_size of page t / page_size of its row of
 * the page table. Without a table each sequence is one page, its number the page's. */
typedef struct longrope_cache {
    void *k;
    void *v;
    /* Strides of page, row of a page, key head and head dimension; the last is 1. */
    int64_t k_stride[4];
    int64_t v_stride[4];
    /* int32 ids, a row for each sequence; or null. */
    const int32_t *page_table;
    int64_t table_stride;
    /* Pages in k and v. */
    int64_t pages;
    /* Rows of a page; with a table at most 256. */
    int64_t page_size;
    /* Tokens that a sequence has room for. */
    int64_t capacity;
    /* int32 or int64 [sequences] in device memory, by `lengths_are_wide`: the tokens of each, the new ones included. A length of
     * 0 is a sequence that takes no part. */
    const void *lengths;
    int32_t lengths_are_wide;
    int32_t sequences;
    int32_t key_heads;
    int32_t padding;
} longrope_cache;

/* The new tokens of each sequence: the last ones of its length. */
typedef struct longrope_new_tokens {
    /* Null: tensors are [sequences, most, ...]. Else int32 or int64 [sequences + 1] in device memory: tensors are
     * [1, total, ...], and the new tokens of sequence i are `starts[i]` to `starts[i + 1]`. */
    const void *starts;
    int64_t total;
    /* New tokens of a sequence, at most. */
    int64_t most;
    int32_t starts_are_wide;
    int32_t padding;
} longrope_new_tokens;

/* Rows of queries by their new tokens, and what attention makes of them. */
typedef struct longrope_decode_params {
    longrope_cache cache;
    longrope_new_tokens tokens;
    const void *q;
    /* 16 bits as q, or f32 by `out_is_f32`. */
    void *out;
    /* f32 [batch, length, heads], natural logarithm; or null. */
    float *lse;
    int64_t q_stride[4];
    int64_t out_stride[4];
    int64_t lse_stride[3];
    /* How far a query sees, its own position included; 0: no limit. */
    int64_t window;
    /* A word of device memory that bits of longrope_device_status are set in, or null. */
    uint32_t *status;
    /* Partial results: f32 [slot][row][head_dim], and their log-sum-exps [slot][row]. */
    float *parts;
    float *parts_lse;
    /* Rows of a slot. */
    int64_t slot_rows;
    /* Blocks of the attending grid; parts of each item, or 0 where blocks share the work evenly. */
    int32_t blocks;
    int32_t splits;
    int32_t query_heads;
    /* Query heads a key head. */
    int32_t group;
    int32_t head_dim;
    int32_t out_is_f32;
    /* |scale| / ln 2, above 0; and 1 if the scale is below 0. */
    float scale_log2;
    int32_t negate;
    /* Items that the merging grid looks at: all of them, or those at the borders of blocks, by `merges_borders`. */
    int32_t merges;
    int32_t merges_borders;
    /* 1: only queries, and the keys and values of new tokens, may be written by the kernel before this one. */
    int32_t settled;
} longrope_decode_params;

/* How keys of a cache are rotated: each sequence by one set, and its tokens stand where they are in it. */
typedef struct longrope_cache_rotary {
    /* Device memory, for LONGROPE_CHOICE_BY_INDEX. */
    const void *choices;
    /* LONGROPE_CHOICE_BY_LENGTH goes by the sequence's length in the cache. */
    int32_t choice_kind;
    int32_t pairs;
    /* 1: pairs are neighbours; 0: half of the rotated dimensions apart. */
    int32_t interleaved;
    /* 1: angles are f32 products (parity with Hugging Face); 0: exact. */
    int32_t parity;
    longrope_factor_sets sets;
} longrope_cache_rotary;

/* Decoding over keys that lie in the cache as they were before rotation. */
typedef struct longrope_decode_rotating_params {
    longrope_decode_params decode;
    longrope_cache_rotary rotary;
} longrope_decode_rotating_params;

/* Attention of new tokens over a cache, by blocks of queries. Of `attention`, keys and what belongs to them are not used. */
typedef struct longrope_cached_attention_params {
    longrope_attention_params attention;
    longrope_cache cache;
    longrope_new_tokens tokens;
    /* Parts of the keys that a block's queries see. The results of part i are those of batch i * batches on. */
    int32_t splits;
    int32_t batches;
} longrope_cached_attention_params;

/* The same over keys that lie in the cache as they were before rotation. */
typedef struct longrope_cached_attention_rotating_params {
    longrope_cached_attention_params cached;
    longrope_cache_rotary rotary;
} longrope_cached_attention_rotating_params;

/* The union of those parts. Rows of no sequence, or of a bad one, are not written. Without `cache.lengths` sequences are the batch
 * dimension. */
typedef struct longrope_split_merge_params {
    longrope_merge_params merge;
    longrope_cache cache;
    longrope_new_tokens tokens;
} longrope_split_merge_params;

/* New tokens: queries are rotated, keys and values go into the cache. Tensors are [batch, length, heads, head_dim], by
 * longrope_new_tokens. */
typedef struct longrope_append_params {
    longrope_cache cache;
    longrope_new_tokens tokens;
    const void *q;
    void *q_out;
    const void *k;
    const void *v;
    int64_t q_stride[4];
    int64_t q_out_stride[4];
    int64_t k_stride[4];
    int64_t v_stride[4];
    /* A word of device memory that bits of longrope_device_status are set in, or null. */
    uint32_t *status;
    /* 0: there are no queries. */
    int32_t query_heads;
    int32_t head_dim;
    /* 1: keys are cached as they come; 0: rotated. */
    int32_t keys_unrotated;
    /* Bytes of the ring before the table of angles in shared memory. */
    int32_t ring_bytes;
    /* Last, since it is large: a short launch waits for every line of this block that it reads. */
    longrope_cache_rotary rotary;
} longrope_append_params;

/* Re-rotation of the keys of a cache: out of the set of `from`, into that of `to`. */
typedef struct longrope_cache_rerotate_params {
    longrope_cache cache;
    longrope_cache_rotary from;
    longrope_cache_rotary to;
    uint32_t *status;
    int32_t head_dim;
    int32_t ring_bytes;
    /* 1: the sets of both are the same, so that a sequence which keeps its own keeps its keys. */
    int32_t same_sets;
    int32_t padding;
} longrope_cache_rerotate_params;

#ifdef __cplusplus
#define LONGROPE_ALIGN(bytes) alignas(bytes)
#else
#define LONGROPE_ALIGN(bytes) _Alignas(bytes)
#endif

/* Of a tensor, as the driver encodes it (CUtensorMap). */
typedef struct longrope_tensor_map {
    LONGROPE_ALIGN(64) uint64_t words[16];
} longrope_tensor_map;

/* Attention on Hopper. */
typedef struct longrope_attention_sm90_params {
    /* [batch, heads, length, head dim], in boxes of 64 dimensions by the rows of a tile; keys and values in pages by `page_rows`. */
    longrope_tensor_map q;
    longrope_tensor_map k;
    longrope_tensor_map v;
    longrope_attention_params attention;
    /* How many items were drawn beyond the first of every block: 0 before the launch. Needed where there are more items than
     * blocks. */
    uint32_t *drawn;
    /* f32 [blocks][rows of a block][padded head dim]; needed where there are more keys than are summed without folding. */
    float *sums;
    /* Blocks of queries, of all heads and sequences, times `splits`. */
    uint32_t items;
    /* Parts of the keys that the queries of an item see. The results of part i are those of batch i * batches on. */
    int32_t splits;
    int32_t batches;
    /* 1: keys and values, and which tokens the queries are, are those of `cache` and `tokens`. */
    int32_t is_cached;
    /* Of a cache with a page table: rows of a box, which divide both a page and a tile. */
    int32_t page_rows;
    /* 1: queries are rotated, by `rotary`, when they were loaded. */
    int32_t rotates;
    longrope_cache cache;
    longrope_new_tokens tokens;
    longrope_cache_rotary rotary;
} longrope_attention_sm90_params;

#endif
