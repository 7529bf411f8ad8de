/* The torture of the boundary: what its files share.
 *
 * Every function of the header is called with arguments drawn from a seed, plausible ones mixed with hostile ones, and
 * every answer is held against what the header promises. Addresses that a C function may read are always valid, NULL or
 * misaligned; those on the device may be anything. */
#ifndef TORTURE_H
#define TORTURE_H

#include <stddef.h>
#include <stdint.h>

#include "../recording_driver.h"
#include "longrope.h"

/* ---- draw.c: random values --------------------------------------------------------------------------------------- */

/* Starts the draws of one round: the same for the same two numbers. */
void draw_start(uint64_t seed, uint64_t round);
uint64_t draw(void);
/* From 0 to before `count`; 0 if that is none. */
int64_t below(int64_t count);
/* True once in `count`. */
int one_in(int64_t count);
int64_t hostile_integer(void);
double hostile_number(void);

/* What a field of a struct is, and so what it may be spoiled with. */
typedef enum kind {
    KIND_SIZE,    /* struct_size: no larger than what is there, or larger than any version */
    KIND_I32,
    KIND_I64,
    KIND_F32,
    KIND_F64,
    KIND_POINTER, /* to host memory: NULL at most */
    KIND_ADDRESS  /* of device memory: anything; of host memory: NULL or misaligned */
} kind;

typedef struct field {
    size_t offset;
    kind kind;
} field;

#define FIELD(type, name, kind) {offsetof(type, name), kind}
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* Gives one field of a struct a hostile value. `host`: its addresses are of host memory. */
void spoil(void *object, const field *fields, int count, int host);
/* A copy of an object that ends at a page which can't be read, once in a while misaligned. 12 slots. */
const void *place(int slot, const void *object, size_t bytes);

/* ---- check.c: what every answer must be -------------------------------------------------------------------------- */

typedef enum function {
    F_CONTEXT_CREATE, F_JSON, F_SETS_CONFIG, F_FREQUENCIES, F_FREQUENCIES_F32,
    F_CONFIG_JSON, F_CONFIG_FACTORS, F_CONFIG_INFO, F_CONFIG_FREQUENCIES, F_CONFIG_GET_FACTORS, F_CONFIG_TO_JSON,
    F_ROTARY_SUPPORTED, F_ROTARY_SIZE, F_ROTARY_RUN, F_ROTARY_CPU,
    F_REROTATE_SUPPORTED, F_REROTATE_SIZE, F_REROTATE_RUN,
    F_ATTENTION_SUPPORTED, F_ATTENTION_SIZE, F_ATTENTION_RUN, F_ATTENTION_CPU,
    F_DELTA_SUPPORTED, F_DELTA_RUN, F_DELTA_CPU,
    F_BACKWARD_SUPPORTED, F_BACKWARD_SIZE, F_BACKWARD_RUN, F_BACKWARD_CPU,
    F_MERGE_SUPPORTED, F_MERGE_SIZE, F_MERGE_RUN,
    F_APPEND_SUPPORTED, F_APPEND_SIZE, F_APPEND_RUN, F_APPEND_VALIDATE,
    F_DECODE_SUPPORTED, F_DECODE_SIZE, F_DECODE_RUN, F_DECODE_VALIDATE,
    F_PREFILL_SUPPORTED, F_PREFILL_SIZE, F_PREFILL_RUN, F_PREFILL_VALIDATE,
    F_CACHE_SUPPORTED, F_CACHE_SIZE, F_CACHE_RUN, F_CACHE_VALIDATE,
    FUNCTIONS
} function;

/* An answer: the status, and the message if it is not OK. */
typedef struct answer {
    longrope_status status;
    char message[600];
} answer;

/* Around every call: `before` leaves a message that is known and notes what is current, `after` checks and counts. */
void before(void);
void after(function which, longrope_status status, answer *kept);
/* Ends the program with the round's number and a sentence. */
void fail(const char *format, ...);
/* Prints the table of functions; the number of those that never succeeded or never failed. */
int print_table(void);
long calls(void);

/* The driver, and the longrope context: NULL where the library was built without kernels. */
extern recorded *driver;
extern longrope_context *context;
void start_driver(void);
/* Makes one of the CUDA contexts current, or none. */
void draw_current_context(void);
void end_driver(void);

/* The arguments of a run beside its descriptor. */
typedef struct run_arguments {
    const longrope_context *context;
    void *workspace;
    size_t bytes;
    void *stream;
} run_arguments;

/* `needed`: what `_workspace_size` said. */
run_arguments draw_run(size_t needed);
/* Holds the answers of one operation's functions against each other. */
void compare_size(const answer *supported, const answer *size, size_t bytes);
void compare_run(const answer *supported, const answer *run, const run_arguments *given, size_t needed, int most_launches);
void compare_validate(const answer *supported, const answer *found, const run_arguments *given);

/* ---- memory.c: tensors and what lies beside them ------------------------------------------------------------------- */

/* Parts of the memory that is the device's, and the host's for the CPU forms. */
enum { SLOTS = 16, SLOT_BYTES = 1 << 14, LAST_TENSOR = 9 };
enum { POSITIONS = 10, CHOICES, QUERY_STARTS, KEY_STARTS, LENGTHS, PAGES };

extern unsigned char *memory;
void start_memory(void);
/* Refills the numbers: positions, choices, starts, lengths and pages; `total`: the end of starts. */
void draw_numbers(int64_t sequences, int64_t total, int64_t capacity, int is_wide);
void *slot(int number);
uint32_t *status_word(void);

extern const field TENSOR_FIELDS[];
enum { TENSOR_FIELD_COUNT = 10 };
/* A tensor in a slot, contiguous, transposed or padded. */
longrope_tensor draw_tensor(int number, int32_t dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim);
/* Whether a call may read or write all of a tensor: it lies in the memory, or is certain to be refused. */
int is_safe(const longrope_tensor *tensor);
/* Before and after a CPU form: the memory may change in elements of the outputs alone, and in the status word. */
void keep_memory(void);
void check_memory(const longrope_tensor *const *outputs, int count);

/* ---- one file each: a round of an operation ------------------------------------------------------------------------ */

/* sets.c. Factor sets that are there all the time. */
void start_sets(void);
void end_sets(void);
const longrope_factor_sets *draw_sets(int64_t dim);
void round_of_frequencies(void);
void round_of_json(void);
/* Sets of a configuration with so many pairs, or of NULL. */
void make_sets_of(const longrope_config *config, int64_t pairs);
void round_of_contexts(void);
/* texts.c. The text of a configuration, whole or broken, or NULL; it may be said to be longer than any memory. */
const char *draw_text(size_t *bytes);
/* config.c */
void round_of_config(void);
/* rotary.c, attention.c, backward.c, cache.c */
void round_of_rotary(void);
void round_of_rerotate(void);
void round_of_attention(void);
void round_of_merge(void);
void round_of_delta(void);
void round_of_backward(void);
void round_of_cache(void);
/* cache.c. The rotation of cached sequences, which attention takes for its queries. */
longrope_cache_rotary_desc draw_cache_rotary(int64_t dim);
void spoil_cache_rotary(longrope_cache_rotary_desc *rotary);

#endif
