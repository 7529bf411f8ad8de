/* longrope: rotary embedding with LongRoPE interpolation and attention on CUDA GPUs, for engines in C and C++.
 *
 * The contract of every function
 * ------------------------------
 * Ownership   Nothing here owns memory of yours. What a `_create` or `_from_` function returns is yours to destroy,
 *             once, with the function of that name; destroying NULL does nothing. A descriptor, and what it points to
 *             in host memory, is read during the call and not kept: factor sets may be destroyed as soon as a `_run`
 *             has returned, even if a captured graph replays it later. Memory on the device must stay valid until the
 *             kernel has ended; of decoding, lengths, queries and what LONGROPE_DECODE_SETTLED lets it read early from when
 *             the launch before it on the stream may begin.
 * Threads     A context and factor sets never change after they were made: share them between threads without a lock.
 *             Every function may be called from any thread. The message of the last error is per thread. A child after
 *             fork can use configurations, factor sets, messages and the CPU forms; a context made before it answers
 *             LONGROPE_STATUS_DRIVER there, as CUDA does not outlive a fork.
 * Streams     `stream` is a CUstream or cudaStream_t as `void *`. NULL is the legacy default stream, not that of the
 *             thread. A launch runs in the CUDA context of its stream, which need not be the primary one, nor current; for
 *             NULL in the current one, or, where the thread has none, in the primary one of the context's device if that is
 *             in use, as CUDA's runtime has it; a `_validate` on NULL copies in the same. What is current stays so.
 * Launches    A `_run` is asynchronous. It launches at most one kernel (attention, also over a cache: and may clear a
 *             counter in its workspace before, and merge parts after; its gradients: up to five for each group of heads that
 *             its workspace has room for); it allocates nothing
 *             on the device, synchronises nothing, copies nothing, and keeps no state. The same inputs give the same
 *             bits.
 * Workspace   Scratch memory on the device is yours: as many bytes as `_workspace_size` says for the same arguments,
 *             at an address that is a multiple of 16 (NULL will do if it says 0). What is in it before and after a
 *             launch does not matter. Launches that may run at the same time need one each.
 * Capture     A `_run` can be captured in a CUDA graph. The graph keeps the descriptor and the addresses; positions,
 *             lengths and set indices in device memory are read at each replay. Make the longrope context while the
 *             CUDA context is current, or run once before capturing: the driver can't load code during a capture.
 * Alignment   Addresses are aligned to their elements. Caches and attention over them need more, which they say; of the
 *             rest, the kernels are fastest where the head dimension has stride 1 and all else is a multiple of 16
 *             bytes.
 * Strides     64-bit, in elements (not bytes), any sign and order. Outputs must not overlap themselves.
 * Errors      Every function that can fail returns a longrope_status. What the host can see is checked before anything
 *             is launched or written, and longrope_last_error_message() names the argument, the value and what was
 *             expected. Indices, starts, lengths and page ids that lie on the device are checked by the kernel: a bad
 *             one leaves its sequence unwritten and sets a bit in the status word of the descriptor, if there is one.
 *             A `_validate` finds the same and names the first bad entry: it copies them to the host and waits for the
 *             stream, so it is for debugging and not to be captured. An error of a kernel that ran before, such as a
 *             bad address, may surface as LONGROPE_STATUS_DRIVER in a later call, as it does everywhere in CUDA.
 * No surprise Nothing here exits, throws, prints, or aborts but for want of host memory. A fault of the library itself
 *             is LONGROPE_STATUS_INTERNAL.
 *
 * The driver is loaded when a context is made. Nothing links CUDA, so a program that links this library starts on any
 * machine.
 *
 * Structs that begin with `struct_size` may grow at their end. Set it to the size that you compiled with (or start
 * from the _INIT macro, as in `longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;`). Zero in any other field is
 * its default. A longer struct than the library knows is read as far as it is known. Fields that the chosen kind does
 * not read must be zero.
 */
#ifndef LONGROPE_H
#define LONGROPE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(LONGROPE_STATIC)
#define LONGROPE_API __declspec(dllimport)
#else
#define LONGROPE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version ----------------------------------------------------------------------------------------------------- */

/* The version of this header. What is promised: a program that was compiled with this header runs with every later
 * library of the same soname, liblongrope.so.MAJOR, or before 1.0.0 liblongrope.so.0.MINOR. Within it functions, fields
 * at the end of structs that begin with `struct_size`, constants and statuses are added, and none is changed or taken
 * away. The record of the interface that this is held against is ffi/abi/ of the sources. */
#define LONGROPE_VERSION_MAJOR 0
#define LONGROPE_VERSION_MINOR 1
#define LONGROPE_VERSION_PATCH 0
/* As one number that can be compared: 1.2.3 is 1002003. */
#define LONGROPE_VERSION (LONGROPE_VERSION_MAJOR * 1000000 + LONGROPE_VERSION_MINOR * 1000 + LONGROPE_VERSION_PATCH)

/* The version of the library, as LONGROPE_VERSION. */
LONGROPE_API uint32_t longrope_version(void);

/* 1 if the library was built with its kernels, else 0. Without them longrope_context_create answers
 * LONGROPE_STATUS_NO_DEVICE_CODE, and the CPU form works. */
LONGROPE_API int32_t longrope_has_device_code(void);

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

/* What a function answers. Numbers are never reused. */
typedef enum longrope_status {
    LONGROPE_STATUS_OK = 0,
    /* An argument is out of range, NULL, or does not fit the others. */
    LONGROPE_STATUS_INVALID_ARGUMENT = 1,
    /* The text of a configuration can't be used; the message has the path of the field. */
    LONGROPE_STATUS_INVALID_CONFIG = 2,
    /* Valid, but not offered: a type or a head dimension that there is no kernel for, more than 2^31 blocks. */
    LONGROPE_STATUS_UNSUPPORTED = 3,
    /* The library was built without a CUDA compiler. */
    LONGROPE_STATUS_NO_DEVICE_CODE = 4,
    /* There is no NVIDIA driver. */
    LONGROPE_STATUS_NO_DRIVER = 5,
    /* The driver is older than the kernels need. */
    LONGROPE_STATUS_OLD_DRIVER = 6,
    /* There is no GPU of this number. */
    LONGROPE_STATUS_NO_DEVICE = 7,
    /* The GPU is older than the kernels need. */
    LONGROPE_STATUS_OLD_DEVICE = 8,
    /* A call of the driver failed; the message names the call and the error. */
    LONGROPE_STATUS_DRIVER = 9,
    /* A fault of the library. Please report it, with the message. */
    LONGROPE_STATUS_INTERNAL = 10
} longrope_status;

/* A status in a few words. Never NULL; the string is static. Any number may be given. */
LONGROPE_API const char *longrope_status_string(int32_t status);

/* What was wrong with the last call of this thread that failed, in one sentence; empty if none has. Never NULL. It is
 * valid until the next call of this thread that fails. */
LONGROPE_API const char *longrope_last_error_message(void);

/* ---- Context ----------------------------------------------------------------------------------------------------- */

/* The kernels, loaded for a GPU. It belongs to no CUDA context. */
typedef struct longrope_context longrope_context;

/* Starts the driver and loads the kernels for device `device` (its number by cuDeviceGet). All slow work is done here.
 * On an error `*context` is NULL. */
LONGROPE_API longrope_status longrope_context_create(int32_t device, longrope_context **context);

/* Unloads the kernels. None may be running, and no graph that captured one may be replayed after this. */
LONGROPE_API void longrope_context_destroy(longrope_context *context);

/* ---- Configurations: which factors ------------------------------------------------------------------------------- */

/* The rotary embedding of a model, by any of the methods that Hugging Face knows, or by LongRoPE. Needs no GPU. It
 * never changes after it was made. */
typedef struct longrope_config longrope_config;

/* From the text of a Hugging Face config.json (`json_bytes` bytes of UTF-8; no final zero is needed), in either
 * generation of its spelling. On an error `*config` is NULL. */
LONGROPE_API longrope_status longrope_config_from_json(const char *json, size_t json_bytes, longrope_config **config);

/* What a configuration of LongRoPE is made of (arXiv 2402.13753). */
typedef struct longrope_factors {
    uint32_t struct_size;
    int32_t head_dim;            /* dimensions of a head. 0: 2 * pairs, so that all turn */
    int64_t pairs;               /* half the rotary dimension: how many factors an array has */
    const double *short_factors; /* of sequences up to the original length, above 0. NULL: all 1 */
    const double *long_factors;  /* of longer ones, above 0 */
    double theta;                /* the base: pair i turns by theta^(-i / pairs) / factor[i]. 0: 10000 */
    int64_t original_length;     /* the length that the model was trained on, in tokens; from 2 */
    int64_t max_length;          /* the length that it is extended to; from original_length */
    double attention_factor;     /* what cosine and sine are multiplied by. 0: sqrt(1 + ln(max_length / original_length)
                                  * / ln(original_length)) */
    int64_t first_tokens;        /* how many first positions keep the model's own frequencies (n_hat) */
} longrope_factors;

#define LONGROPE_FACTORS_INIT \
    { sizeof(longrope_factors), 0, 0, NULL, NULL, 0.0, 0, 0, 0.0, 0 }

/* From factors, of which the arrays are copied. On an error `*config` is NULL. */
LONGROPE_API longrope_status longrope_config_from_factors(const longrope_factors *factors,
                                                          longrope_config **config);

/* Frees a configuration. No call may be using it. */
LONGROPE_API void longrope_config_destroy(longrope_config *config);

/* What a configuration says. Set `struct_size` before the call. */
typedef struct longrope_config_info {
    uint32_t struct_size;
    int32_t head_dim;        /* dimensions of a head */
    int64_t pairs;           /* pairs of them that turn: how many frequencies and factors there are */
    double theta;            /* the base that the model was trained with */
    int64_t original_length; /* in tokens */
    int64_t max_length;      /* in tokens */
    double attention_factor; /* what cosine and sine are multiplied by */
    int64_t first_tokens;    /* n_hat */
} longrope_config_info;

#define LONGROPE_CONFIG_INFO_INIT \
    { sizeof(longrope_config_info), 0, 0, 0.0, 0, 0, 0.0, 0 }

LONGROPE_API longrope_status longrope_config_info_get(const longrope_config *config, longrope_config_info *info);

/* The frequencies of a sequence of `length` tokens (0: max_length), in radians a token; and what those of the model
 * were divided by to get them. `count` is the number of pairs. */
LONGROPE_API longrope_status longrope_config_frequencies(const longrope_config *config, int64_t length,
                                                         double *frequencies, int64_t count);
LONGROPE_API longrope_status longrope_config_factors(const longrope_config *config, int64_t length, double *factors,
                                                     int64_t count);

/* How the rotary block of a config.json is spelt. */
typedef enum longrope_json_spelling {
    LONGROPE_JSON_ROPE_SCALING = 0,   /* rope_scaling: transformers 4, vLLM, the converter of llama.cpp */
    LONGROPE_JSON_ROPE_PARAMETERS = 1 /* rope_parameters: transformers 5 */
} longrope_json_spelling;

/* Writes the fields to merge into a model's config.json as one JSON object, with a final zero. `*json_bytes` becomes
 * its length without that zero, also if `capacity` is too small, which is an error that writes nothing else; NULL with
 * a capacity of 0 asks for the length alone. longrope_config_from_json reads the text back to the same configuration,
 * except that the NTK-aware method becomes the larger theta that it stands for. n_hat above 0 is written as `n_hat`,
 * which transformers ignores. `spelling` is a longrope_json_spelling. */
LONGROPE_API longrope_status longrope_config_to_json(const longrope_config *config, int32_t spelling, char *json,
                                                     size_t capacity, size_t *json_bytes);

/* ---- Factor sets: which angle ------------------------------------------------------------------------------------ */

/* The frequency of each pair of dimensions, in three sets: plain for the first tokens, short for sequences of up to the
 * original length (exactly that length is short), long for longer ones; with a gain that multiplies cosine and sine. */
typedef struct longrope_factor_sets longrope_factor_sets;

/* Where an angle comes from. */
typedef enum longrope_angles {
    /* The exact phase of the frequency at every position. */
    LONGROPE_ANGLES_EXACT = 0,
    /* Parity with Hugging Face: the position in f32 times the frequency in f32, rounded. Off by up to 0.12 rad below
     * position 2^21; to compare with, not to compute. Re-rotation does not take it. */
    LONGROPE_ANGLES_PARITY = 1,
    /* The exact phase of the frequency rounded to f32, which is what Hugging Face's models hold. */
    LONGROPE_ANGLES_EXACT_OF_F32 = 2
} longrope_angles;

/* From the text of a Hugging Face config.json (`json_bytes` bytes of UTF-8; no final zero is needed), in either
 * generation of its spelling. `length` is the longest sequence in tokens; only dynamic NTK depends on it, and 0 is the
 * configuration's max_position_embeddings. `angles` is a longrope_angles. On an error `*sets` is NULL. */
LONGROPE_API longrope_status longrope_factor_sets_from_json(const char *json, size_t json_bytes, int64_t length,
                                                            int32_t angles, longrope_factor_sets **sets);

/* From a configuration, which may be destroyed after the call: the same bits as from its text, with `length`, `angles` and
 * `sets` as above. */
LONGROPE_API longrope_status longrope_factor_sets_from_config(const longrope_config *config, int64_t length,
                                                              int32_t angles, longrope_factor_sets **sets);

/* Frequencies in radians a token, `pairs` in each array: those of the model divided by its factors. */
typedef struct longrope_frequencies {
    uint32_t struct_size;
    int32_t angles;                 /* a longrope_angles; all but EXACT round the frequencies to f32 */
    int64_t pairs;                  /* half the rotary dimension */
    const double *short_frequencies;
    const double *long_frequencies; /* NULL: as short, at every length */
    const double *plain;            /* of the first tokens, with a gain of 1; NULL only if first_tokens is 0 */
    double short_gain;              /* the attention factor; 0: 1 */
    double long_gain;               /* 0: as short_gain */
    int64_t original_length;        /* longer sequences are long; from 1, or 0 if long_frequencies is NULL */
    int64_t first_tokens;           /* how many first positions are plain (n_hat) */
} longrope_frequencies;

/* The same from f32, as a model's `inv_freq` is. */
typedef struct longrope_frequencies_f32 {
    uint32_t struct_size;
    int32_t angles;                /* a longrope_angles; EXACT and EXACT_OF_F32 are the same here */
    int64_t pairs;
    const float *short_frequencies;
    const float *long_frequencies;
    const float *plain;
    double short_gain;
    double long_gain;
    int64_t original_length;
    int64_t first_tokens;
} longrope_frequencies_f32;

#define LONGROPE_FREQUENCIES_INIT \
    { sizeof(longrope_frequencies), 0, 0, NULL, NULL, NULL, 0.0, 0.0, 0, 0 }
#define LONGROPE_FREQUENCIES_F32_INIT \
    { sizeof(longrope_frequencies_f32), 0, 0, NULL, NULL, NULL, 0.0, 0.0, 0, 0 }

/* From frequencies. The arrays are copied. On an error `*sets` is NULL. */
LONGROPE_API longrope_status longrope_factor_sets_from_frequencies(const longrope_frequencies *frequencies,
                                                                   longrope_factor_sets **sets);
LONGROPE_API longrope_status longrope_factor_sets_from_frequencies_f32(const longrope_frequencies_f32 *frequencies,
                                                                       longrope_factor_sets **sets);

/* Frees factor sets. No call may be using them. */
LONGROPE_API void longrope_factor_sets_destroy(longrope_factor_sets *sets);

/* How many pairs of dimensions turn: half the rotary dimension. 0 for NULL. */
LONGROPE_API int64_t longrope_factor_sets_pairs(const longrope_factor_sets *sets);

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

/* The type of an element. */
typedef enum longrope_dtype {
    LONGROPE_DTYPE_F32 = 1,
    LONGROPE_DTYPE_F16 = 2,
    LONGROPE_DTYPE_BF16 = 3
} longrope_dtype;

/* A tensor: batch, length (tokens), heads, head dimension. It may be empty. */
typedef struct longrope_tensor {
    void *data;        /* the element at index 0 of every dimension, in device memory (host memory for the CPU form) */
    int32_t dtype;     /* a longrope_dtype */
    int64_t shape[4];  /* batch, length, heads, head dimension, whatever the order in memory */
    int64_t stride[4]; /* in elements, for the same dimensions; all 0: contiguous in this order */
} longrope_tensor;

/* What is read and what is written. They have the same shape and type, and are either the same memory with the same
 * strides or do not overlap. An output that is all zero means in place. Inputs that are not also outputs are never
 * written. */
typedef struct longrope_tensor_io {
    longrope_tensor input;
    longrope_tensor output;
} longrope_tensor_io;

/* ---- Rotary embedding -------------------------------------------------------------------------------------------- */

/* Which two dimensions of a head form pair i. */
typedef enum longrope_pairing {
    LONGROPE_PAIRING_HALF_SPLIT = 0, /* i and i + pairs (GPT-NeoX, Hugging Face's rotate_half) */
    LONGROPE_PAIRING_INTERLEAVED = 1 /* 2 i and 2 i + 1 (GPT-J, the original Llama, GGUF files of Llama) */
} longrope_pairing;

/* Where the tokens stand. Negative positions are legal. */
typedef enum longrope_positions {
    LONGROPE_POSITIONS_OFFSET = 0,              /* token s stands at position_offset + s */
    LONGROPE_POSITIONS_OFFSET_AT = 1,           /* at *positions + s, one int64_t: for graphs whose length grows */
    LONGROPE_POSITIONS_OFFSET_PER_SEQUENCE = 2, /* of sequence b at positions[b] + s: int64_t [batch] */
    LONGROPE_POSITIONS_PER_TOKEN = 3,           /* at positions[b][s]: int64_t [batch, length] */
    LONGROPE_POSITIONS_PER_TOKEN_I32 = 4        /* the same in int32_t, as llama.cpp has them */
} longrope_positions;

/* Which factor set a sequence uses: the same for its queries and all of its keys. */
typedef enum longrope_choices {
    LONGROPE_CHOICES_LENGTH = 0,    /* all: by choice_length, the whole length of the sequence in tokens. 0 is short. */
    LONGROPE_CHOICES_SHORT = 1,     /* all short */
    LONGROPE_CHOICES_LONG = 2,      /* all long */
    LONGROPE_CHOICES_BY_LENGTH = 3, /* each by its whole length: choices is int64_t [batch] */
    LONGROPE_CHOICES_BY_INDEX = 4   /* each by number, 0 short, 1 long: choices is int32_t [batch] */
} longrope_choices;

/* Bits of the status word. */
#define LONGROPE_BAD_CHOICE 1u /* an index other than 0 and 1; its sequence was not written */

/* A rotation: pair (x1, x2) becomes gain * (x1 cos - x2 sin, x2 cos + x1 sin) of the angle at its token's position.
 * The first 2 * pairs dimensions of a head turn, the others are copied. `positions`, `choices` and `status` are device
 * addresses (host addresses for the CPU form). */
typedef struct longrope_rotary_desc {
    uint32_t struct_size;
    int32_t pairing;                  /* a longrope_pairing */
    int32_t backward;                 /* 0: rotate. 1: the transpose, which takes gradients back */
    int32_t position_kind;            /* a longrope_positions */
    int32_t choice_kind;              /* a longrope_choices */
    uint32_t flags;                   /* none is defined yet */
    const longrope_factor_sets *sets; /* required */
    int64_t position_offset;          /* for LONGROPE_POSITIONS_OFFSET */
    const void *positions;            /* for the other kinds */
    int64_t choice_length;            /* for LONGROPE_CHOICES_LENGTH */
    const void *choices;              /* for BY_LENGTH and BY_INDEX */
    uint32_t *status;                 /* a word in which bits are set, never cleared; NULL: none */
} longrope_rotary_desc;

#define LONGROPE_ROTARY_DESC_INIT \
    { sizeof(longrope_rotary_desc), 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, NULL }

/* Whether longrope_rotary_run takes these arguments, or why not. Pure: asks no GPU, reads nothing on the device. */
LONGROPE_API longrope_status longrope_rotary_supported(const longrope_rotary_desc *desc,
                                                       const longrope_tensor_io *tensors, size_t count);

/* How much scratch memory a run needs: none, `*bytes` is 0. Here so that every operation is asked in the same way.
 * Pure. */
LONGROPE_API longrope_status longrope_rotary_workspace_size(const longrope_rotary_desc *desc,
                                                            const longrope_tensor_io *tensors, size_t count,
                                                            size_t *bytes);

/* Launches the rotation of one tensor, or of two with the same batch, length, head dimension and type (queries and
 * keys), which may be parts of one packed buffer. Tensors without elements are legal and launch nothing. */
LONGROPE_API longrope_status longrope_rotary_run(const longrope_context *context, const longrope_rotary_desc *desc,
                                                 const longrope_tensor_io *tensors, size_t count, void *stream);

/* The same on the CPU, now: what an engine's tests can compare with, no GPU needed. All addresses are of host memory,
 * the type is F32; what longrope_rotary_run takes and refuses, this does. With exact angles the result is within
 * 2.4e-7 * gain * hypot(x1, x2) of the exact value. It runs on threads of the library, one a core or as many as the
 * environment's RAYON_NUM_THREADS says, and gives the same bits for any number. */
LONGROPE_API longrope_status longrope_rotary_cpu(const longrope_rotary_desc *desc, const longrope_tensor_io *tensors,
                                                 size_t count);

/* ---- Re-rotation ------------------------------------------------------------------------------------------------- */

/* A change of what was rotated already, as keys in a cache are: out of one factor set, into another, and by a shift of
 * position; the gain becomes the ratio of the two. For one attention this is what rotating the original keys anew
 * gives, up to the rounding of the stored keys. For a whole model it approximates a new prefill: hidden states of
 * upper layers were formed under the old factors. */
typedef struct longrope_rerotate_desc {
    uint32_t struct_size;
    int32_t from_choice_kind;         /* a longrope_choices: which set each sequence was rotated by */
    const longrope_rotary_desc *to;   /* required: into which sets, and the positions as they were; not backward */
    const longrope_factor_sets *from; /* required: out of which sets; as many pairs as to->sets */
    int64_t shift;                    /* how far every position moves */
    int64_t from_choice_length;       /* as choice_length of longrope_rotary_desc */
    const void *from_choices;         /* as choices of longrope_rotary_desc */
} longrope_rerotate_desc;

#define LONGROPE_REROTATE_DESC_INIT \
    { sizeof(longrope_rerotate_desc), 0, NULL, NULL, 0, 0, NULL }

/* As the functions of the same name above. Angles must be exact. There is no CPU form. */
LONGROPE_API longrope_status longrope_rerotate_supported(const longrope_rerotate_desc *desc,
                                                         const longrope_tensor_io *tensors, size_t count);
LONGROPE_API longrope_status longrope_rerotate_workspace_size(const longrope_rerotate_desc *desc,
                                                              const longrope_tensor_io *tensors, size_t count,
                                                              size_t *bytes);
LONGROPE_API longrope_status longrope_rerotate_run(const longrope_context *context, const longrope_rerotate_desc *desc,
                                                   const longrope_tensor_io *tensors, size_t count, void *stream);

/* ---- Attention --------------------------------------------------------------------------------------------------- */

/* How the tensors hold the sequences of a batch. */
typedef enum longrope_sequences {
    LONGROPE_SEQUENCES_DENSE = 0, /* as their batch dimension, all as long as the tensors */
    LONGROPE_SEQUENCES_PACKED = 1 /* one after the other along the length of tensors with a batch of 1 */
} longrope_sequences;

/* A bit of the status word. A packed sequence whose starts do not rise, lie beyond the tensor or span more queries
 * than max_query_length, or more new tokens than `most`; or one whose queries stand beyond 2^62. It was not written. */
#define LONGROPE_BAD_SEQUENCE 2u

/* Scaled dot-product attention with grouped heads: out = softmax(scale * q k^T + mask) v.
 *
 * Query i of a sequence stands at the global position query_offset + i, key j at key_offset + j. The masks compare
 * these positions, so a chunk of a prefill and a step of decoding are the same call with other offsets. A row that
 * sees no key gives zeros, and a log-sum-exp of minus infinity.
 *
 * Packed: sequence i has the queries query_starts[i] to before query_starts[i + 1], and its keys likewise (cu_seqlens
 * elsewhere). It may be empty. The starts, `query_offsets` and `status` are device addresses (host addresses for the
 * CPU form), read when the kernel runs. */
typedef struct longrope_attention_desc {
    uint32_t struct_size;
    int32_t causal;               /* 1: a query sees keys at its own position and before. 0: all */
    float scale;                  /* what the logits are multiplied by. 0: 1 / sqrt(head dimension), so 0 itself can't
                                   * be asked for */
    uint32_t flags;               /* none is defined yet */
    int64_t window;               /* a query sees keys less than this many positions back (so 1 is its own alone) and,
                                   * without `causal`, ahead. 0: all */
    int64_t query_offset;         /* from -2^62, with all queries below 2^62; key_offset likewise */
    int64_t key_offset;
    int32_t sequence_kind;        /* a longrope_sequences; DENSE wants zero in all fields that are marked packed */
    int32_t index_bits;           /* packed: the starts are int32_t (32, or 0) or int64_t (64) */
    int64_t sequences;            /* packed: how many there are */
    const void *query_starts;     /* packed: [sequences + 1] */
    const void *key_starts;       /* packed: the same for keys and values */
    int64_t max_query_length;     /* packed: no sequence has more queries. The nearer to the longest, the fewer blocks
                                   * are launched in vain. 0: the length of q */
    const int64_t *query_offsets; /* [sequences], or [batch] if dense: added to query_offset. NULL: nothing is */
    uint32_t *status;             /* a word in which bits are set, never cleared; NULL: none */
    const struct longrope_cache_rotary_desc *query_rotary; /* rotates queries that come as they were before rotation,
                                   * as they are loaded: by exact angles, an even number of pairs, at their global
                                   * positions. BY_LENGTH goes by the position of a sequence's last query, plus 1. NULL:
                                   * they are rotated. On compute capability 9.0 alone; not in the CPU form */
    int32_t max_multiprocessors;  /* no more are used, so that some are left to work that goes on beside. 0: all. On
                                   * compute capability 9.0 alone; the CPU form has none and does not look at it */
    int32_t reserved;             /* 0 */
    longrope_tensor carry_out;    /* the output of an earlier result over other keys, F32 in the shape of q, which this
                                   * one is merged with, as by longrope_merge_run. It may be tensors.out, and carry_lse
                                   * tensors.lse, with the same strides. All zero: none. Not in the CPU form */
    longrope_tensor carry_lse;    /* its log-sum-exp, F32 [batch, query length, query heads, 1] */
} longrope_attention_desc;

#define LONGROPE_ATTENTION_DESC_INIT \
    { sizeof(longrope_attention_desc), 0, 0.0f, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, \
      {NULL, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}, {NULL, 0, {0, 0, 0, 0}, {0, 0, 0, 0}} }

/* What an attention reads and writes. Query head h reads key head h / (query heads / key heads). The outputs overlap
 * neither each other nor the inputs. */
typedef struct longrope_attention_tensors {
    longrope_tensor q;   /* [batch, query length, query heads, head dimension], F16 or BF16 (F32 for the CPU form) */
    longrope_tensor k;   /* [batch, key length, key heads, head dimension], of the same type */
    longrope_tensor v;   /* the same as k */
    longrope_tensor out; /* as q; or F32, as a partial result that is to be merged with others */
    longrope_tensor lse; /* [batch, query length, query heads, 1], F32: the natural logarithm of each row's sum of
                          * exponentials. All zero: none */
} longrope_attention_tensors;

/* Whether longrope_attention_run takes these arguments, or why not: LONGROPE_STATUS_INVALID_ARGUMENT if they mean
 * nothing, LONGROPE_STATUS_UNSUPPORTED if there is no kernel for what they mean, as for F32, for a head dimension
 * above 256 or not a multiple of 8, and for 2^31 blocks of queries. Pure: asks no GPU, reads nothing on the device. */
LONGROPE_API longrope_status longrope_attention_supported(const longrope_attention_desc *desc,
                                                          const longrope_attention_tensors *tensors);

/* How much scratch memory a run needs, whatever the GPU: a function of shapes, types, strides, the alignment of
 * addresses, the sign of the scale, `sequences` and whether queries are rotated alone, at most some 110 MB. Pure. */
LONGROPE_API longrope_status longrope_attention_workspace_size(const longrope_attention_desc *desc,
                                                               const longrope_attention_tensors *tensors,
                                                               size_t *bytes);

/* Launches the attention. Tensors without queries are legal and launch nothing. Logits and sums are F32; the weights
 * are rounded to the type of q before they meet the values. A NaN, or logits beyond F32, make the rows that see them
 * NaN; a value that is not finite may also reach rows of the same 192 queries that do not see it. */
LONGROPE_API longrope_status longrope_attention_run(const longrope_context *context,
                                                    const longrope_attention_desc *desc,
                                                    const longrope_attention_tensors *tensors, void *workspace,
                                                    size_t workspace_bytes, void *stream);

/* The same on the CPU, now, in F32. All addresses are of host memory; any head dimension will do. It copies the
 * sequence that it works on. Threads as for longrope_rotary_cpu. */
LONGROPE_API longrope_status longrope_attention_cpu(const longrope_attention_desc *desc,
                                                    const longrope_attention_tensors *tensors);

/* ---- Gradients of attention -------------------------------------------------------------------------------------- */

/* delta = the sum of out * d_out over the head dimension: a number for each query of each head, which the gradients of
 * an attention need. longrope_attention_backward_run makes it for itself where it is not given. A caller makes it once
 * where only a part of the keys is at hand at a time, as in a ring of devices: `out` is then that of all keys, and one
 * delta serves all parts. A gradient of the log-sum-exp itself is subtracted from it.
 *
 * `d_out` is F16 or BF16 (F32 for the CPU form), [batch, query length, query heads, head dimension]; `out` is the same,
 * or F32; `delta` is F32 [batch, query length, query heads, 1], and overlaps no other memory in use. Statuses are as
 * for longrope_attention_supported. No scratch memory is needed. */
LONGROPE_API longrope_status longrope_attention_delta_supported(const longrope_tensor *out,
                                                                const longrope_tensor *d_out,
                                                                const longrope_tensor *delta);
LONGROPE_API longrope_status longrope_attention_delta_run(const longrope_context *context, const longrope_tensor *out,
                                                          const longrope_tensor *d_out, const longrope_tensor *delta,
                                                          void *stream);

/* The same on the CPU, now, in F32, in host memory. Threads as for longrope_rotary_cpu. */
LONGROPE_API longrope_status longrope_attention_delta_cpu(const longrope_tensor *out, const longrope_tensor *d_out,
                                                          const longrope_tensor *delta);

/* The gradients of an attention by its queries, keys and values, given that of its output:
 *
 *     P  = exp(scale * q k^T - lse)        dv = P^T d_out
 *     dS = P * (d_out v^T - delta)         dq = scale * dS k        dk = scale * dS^T q
 *
 * Mask, positions and sequences are those of longrope_attention_desc, and are to be those of the forward pass. Where
 * the forward pass was over parts of the keys, `lse`, `out` and `delta` are those of all keys (the merged ones): then
 * each part gives its own dk and dv, and dq is the sum of what the parts give.
 *
 * A row whose log-sum-exp is minus infinity saw no key, and adds nothing. All rows of a sequence are written; those of
 * a bad sequence, and of none, are not. Every sum has one order: the same inputs give the same bits.
 *
 * Where queries and keys were rotated, `rotary` says how, and dq and dk are the gradients of what they were before: each
 * row times gain R^T of its global position, which is what gradients that lie there are added to. An angle is within 3e-6
 * of the exact one. Values are rotated by nothing. */
typedef struct longrope_attention_backward_desc {
    uint32_t struct_size;
    int32_t causal;               /* this and what follows: as in longrope_attention_desc */
    float scale;
    uint32_t flags;               /* LONGROPE_ATTENTION_BACKWARD_FAST, or 0 */
    int64_t window;
    int64_t query_offset;
    int64_t key_offset;
    int32_t sequence_kind;
    int32_t index_bits;
    int64_t sequences;
    const void *query_starts;
    const void *key_starts;
    int64_t max_query_length;
    const int64_t *query_offsets;
    uint32_t *status;             /* a word in which LONGROPE_BAD_SEQUENCE and LONGROPE_BAD_CHOICE are set, never
                                   * cleared; NULL: none */
    int32_t accumulate;           /* 1: gradients are added to what lies there, and are F32. 0: they are written */
    int32_t reserved;             /* 0 */
    const struct longrope_cache_rotary_desc *rotary; /* how queries and keys were rotated: each sequence by one set,
                                   * any number of pairs, by exact angles (those of parity mode in the CPU form alone).
                                   * BY_LENGTH goes by the position of a sequence's last query, plus 1. A number that is
                                   * none of a set sets LONGROPE_BAD_CHOICE, and no gradient of that sequence is written.
                                   * NULL: they were not */
} longrope_attention_backward_desc;

/* In `flags`: sums may have any order, where a kernel makes use of it: those of compute capability 9.0, for BF16. It is faster
 * by a tenth, and at a head dimension of 256 twice as fast. The bits of gradients may then differ from run to run, within
 * the same bounds. */
#define LONGROPE_ATTENTION_BACKWARD_FAST 1u

#define LONGROPE_ATTENTION_BACKWARD_DESC_INIT \
    { sizeof(longrope_attention_backward_desc), 0, 0.0f, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, NULL, NULL, 0, 0, \
      NULL }

/* What is read and written. Query head h belongs to key head h / (query heads / key heads), whose gradients are the
 * sums over its query heads. The outputs, dq, dk and dv, overlap neither each other nor the inputs. */
typedef struct longrope_attention_backward_tensors {
    longrope_tensor q;     /* [batch, query length, query heads, head dimension], F16 or BF16 (F32 for the CPU form) */
    longrope_tensor k;     /* [batch, key length, key heads, head dimension], of the same type */
    longrope_tensor v;     /* the same as k */
    longrope_tensor out;   /* the output of the forward pass, as q or F32. All zero: none, which wants delta; it is not
                            * read if there is one */
    longrope_tensor lse;   /* its log-sum-exp, F32 [batch, query length, query heads, 1]; required */
    longrope_tensor delta; /* of longrope_attention_delta_run, in the shape of lse. All zero: it is made in the
                            * workspace */
    longrope_tensor d_out; /* the gradient of the output, of shape and type of q */
    longrope_tensor dq;    /* the gradient of q, of its shape, and of its type or F32 */
    longrope_tensor dk;    /* of k, likewise */
    longrope_tensor dv;    /* of v, likewise */
} longrope_attention_backward_tensors;

/* Whether longrope_attention_backward_run takes these arguments, or why not. Statuses are as for
 * longrope_attention_supported; 2^31 blocks of keys are too many as well. Pure. */
LONGROPE_API longrope_status longrope_attention_backward_supported(const longrope_attention_backward_desc *desc,
                                                                   const longrope_attention_backward_tensors *tensors);

/* How much scratch memory a run needs, whatever the GPU: 4 bytes for each query of each head where there is no delta, and at
 * most some 20 MB for the kernels of compute capability 9.0, where they take the tensors; for BF16 and head dimensions up to
 * 128 an F32 of each element of dq too, and of dk and dv where query heads share them or `rotary` is there, of as many heads
 * as fit in 1 GiB, or of one key head. Where that is more than 2 GiB, other kernels are taken that need none of it. Pure. */
LONGROPE_API longrope_status
longrope_attention_backward_workspace_size(const longrope_attention_backward_desc *desc,
                                           const longrope_attention_backward_tensors *tensors, size_t *bytes);

/* Launches delta where it is not given, then what makes dq, dk and dv: some kernels. Tensors without queries leave zeros in
 * dk and dv. Logits and sums are F32; P and dS are rounded to the type of q before they meet d_out, k and q. A NaN, or
 * logits beyond F32, make the gradients that depend on them NaN; a value that is not finite may also reach gradients of
 * the same 128 queries and 64 keys that do not depend on it. */
LONGROPE_API longrope_status longrope_attention_backward_run(const longrope_context *context,
                                                             const longrope_attention_backward_desc *desc,
                                                             const longrope_attention_backward_tensors *tensors,
                                                             void *workspace, size_t workspace_bytes, void *stream);

/* The same on the CPU, now, in F32. All addresses are of host memory; any head dimension will do. It copies the
 * sequence that it works on. Threads as for longrope_rotary_cpu. */
LONGROPE_API longrope_status longrope_attention_backward_cpu(const longrope_attention_backward_desc *desc,
                                                             const longrope_attention_backward_tensors *tensors);

/* ---- Merge ------------------------------------------------------------------------------------------------------- */

/* Partial results of one attention over disjoint keys, all with the layouts of the first. */
typedef struct longrope_merge_parts {
    longrope_tensor out; /* of part 0: [batch, length, heads, head dimension], F32 */
    longrope_tensor lse; /* of part 0: [batch, length, heads, 1], F32 */
    int64_t count;       /* how many parts there are. 0 is legal: then the addresses may be NULL */
    int64_t out_stride;  /* from the output of a part to that of the next, in elements */
    int64_t lse_stride;  /* the same for the log-sum-exp */
} longrope_merge_parts;

/* Merges partial results: lse = ln(sum of exp(lse_p)), out = sum of exp(lse_p - lse) out_p, in the order of the
 * parts. A part whose log-sum-exp is minus infinity saw no key in that row, and its output there is not read. Where
 * no part saw one, the result is zeros and minus infinity.
 *
 * `out` has the shape of the parts' and any type; `lse` is F32 [batch, length, heads, 1], or NULL. They may be those
 * of one part, with the same strides, or overlap no other memory in use. There is no CPU form. Statuses are as for
 * longrope_attention_supported. No scratch memory is needed. */
LONGROPE_API longrope_status longrope_merge_supported(const longrope_merge_parts *parts, const longrope_tensor *out,
                                                      const longrope_tensor *lse);
LONGROPE_API longrope_status longrope_merge_workspace_size(const longrope_merge_parts *parts,
                                                           const longrope_tensor *out, const longrope_tensor *lse,
                                                           size_t *bytes);
LONGROPE_API longrope_status longrope_merge_run(const longrope_context *context, const longrope_merge_parts *parts,
                                                const longrope_tensor *out, const longrope_tensor *lse, void *stream);

/* ---- Key/value cache --------------------------------------------------------------------------------------------- */

/* Where the tokens of a cached sequence lie. */
typedef enum longrope_pages {
    LONGROPE_PAGES_NONE = 0, /* token t of sequence i in row t of index i of k and v: each sequence is contiguous */
    LONGROPE_PAGES_TABLE = 1 /* token t of sequence i in row t % page size of page page_table[i][t / page size] */
} longrope_pages;

/* Bits of the status word. BAD_LENGTH: the length of a sequence is below 0, below its new tokens but not 0, or beyond
 * what the cache holds of it; nothing of that sequence was read or written. BAD_PAGE: an id that was needed is none of
 * the cache's pages. */
#define LONGROPE_BAD_LENGTH 4u
#define LONGROPE_BAD_PAGE 8u

/* Keys and values of sequences that grow. The new tokens of an operation are the last ones of a sequence's length. A
 * sequence of length 0 takes no part. `lengths` and `page_table` are device addresses, read when the kernel runs; page
 * ids beyond a sequence's length are not looked at. */
typedef struct longrope_kv_cache {
    uint32_t struct_size;
    int32_t page_kind;         /* a longrope_pages; NONE wants zero in all fields that are marked table */
    int32_t length_bits;       /* the lengths are int32_t (32, or 0) or int64_t (64) */
    uint32_t flags;            /* none is defined yet */
    longrope_tensor k;         /* [sequences, capacity, key heads, head dimension], F16 or BF16; table: [pages, page
                                * size, key heads, head dimension], the page size a multiple of 16 up to 256. The head
                                * dimension has stride 1, all else is a multiple of 16 bytes */
    longrope_tensor v;         /* the same as k, with strides of its own */
    const void *lengths;       /* [sequences]: the tokens of each, the new ones included */
    const int32_t *page_table; /* table: [sequences, table_width] (a block table elsewhere) */
    int64_t sequences;         /* table: how many there are */
    int64_t table_width;       /* table: pages of a sequence, at most */
    int64_t table_stride;      /* table: from the ids of a sequence to those of the next, in elements. 0: table_width */
} longrope_kv_cache;

#define LONGROPE_KV_CACHE_INIT \
    { sizeof(longrope_kv_cache), 0, 0, 0, {NULL, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}, \
      {NULL, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}, NULL, NULL, 0, 0, 0 }

/* Which tokens are new. All zero: as many of each sequence. */
typedef struct longrope_new_tokens {
    int32_t sequence_kind; /* a longrope_sequences. DENSE: tensors are [sequences, tokens, heads, head dimension], and
                            * the other fields zero. PACKED: [1, total, heads, head dimension], with those of sequence
                            * i from starts[i] to before starts[i + 1] */
    int32_t index_bits;    /* packed: the starts are int32_t (32, or 0) or int64_t (64) */
    const void *starts;    /* packed: [sequences + 1], a device address */
    int64_t most;          /* packed: no sequence has more new tokens. 0: the total */
} longrope_new_tokens;

/* By which factors the tokens of a cache are rotated: token t of a sequence stands at position t. */
typedef struct longrope_cache_rotary_desc {
    uint32_t struct_size;
    int32_t pairing;                  /* a longrope_pairing */
    int32_t choice_kind;              /* a longrope_choices; BY_LENGTH goes by the lengths of the cache, and so wants
                                       * choices to be NULL */
    uint32_t flags;                   /* none is defined yet */
    const longrope_factor_sets *sets; /* required */
    int64_t choice_length;            /* for LONGROPE_CHOICES_LENGTH */
    const void *choices;              /* for BY_INDEX: int32_t [sequences], a device address */
} longrope_cache_rotary_desc;

#define LONGROPE_CACHE_ROTARY_DESC_INIT \
    { sizeof(longrope_cache_rotary_desc), 0, 0, 0, NULL, 0, NULL }

/* ---- Append ------------------------------------------------------------------------------------------------------ */

/* How keys lie in a cache. */
typedef enum longrope_cached_keys {
    LONGROPE_CACHED_KEYS_ROTATED = 0,  /* rotated by their positions */
    LONGROPE_CACHED_KEYS_UNROTATED = 1 /* as they came: decoding and prefill rotate them while they read them, so that a
                                        * sequence can change its factor set at any time */
} longrope_cached_keys;

/* New tokens into a cache, in one launch: their queries are rotated; their keys, rotated or as they are, and their
 * values go to where they belong. Of a sequence of length L with n new tokens, new token i stands at position
 * L - n + i. */
typedef struct longrope_append_desc {
    uint32_t struct_size;
    int32_t cached_keys;                      /* a longrope_cached_keys */
    longrope_new_tokens tokens;               /* which tokens are new */
    const longrope_cache_rotary_desc *rotary; /* required: the rotation of queries and keys */
    uint32_t *status;                         /* a word in which bits are set, never cleared; NULL: none. Of a token on
                                               * a bad page nothing is written */
} longrope_append_desc;

#define LONGROPE_APPEND_DESC_INIT \
    { sizeof(longrope_append_desc), 0, {0, 0, NULL, 0}, NULL, NULL }

/* The new tokens, which may be parts of one packed buffer. */
typedef struct longrope_append_tensors {
    longrope_tensor_io q; /* [batch, length, query heads, head dimension], as longrope_new_tokens says, and where they
                           * go; all zero: none */
    longrope_tensor k;    /* [batch, length, key heads, head dimension], of the type of the cache */
    longrope_tensor v;    /* the same as k */
} longrope_append_tensors;

/* As the functions of the same name above: whether a run takes these arguments; its scratch memory, which is none; the
 * launch. No page may be written to for two sequences. There is no CPU form. */
LONGROPE_API longrope_status longrope_append_supported(const longrope_append_desc *desc,
                                                       const longrope_kv_cache *cache,
                                                       const longrope_append_tensors *tensors);
LONGROPE_API longrope_status longrope_append_workspace_size(const longrope_append_desc *desc,
                                                            const longrope_kv_cache *cache,
                                                            const longrope_append_tensors *tensors, size_t *bytes);
LONGROPE_API longrope_status longrope_append_run(const longrope_context *context, const longrope_append_desc *desc,
                                                 const longrope_kv_cache *cache,
                                                 const longrope_append_tensors *tensors, void *stream);

/* Checks what lies on the device: lengths, starts, the ids of the pages that would be written to, numbers of sets.
 * Waits for the stream. */
LONGROPE_API longrope_status longrope_append_validate(const longrope_context *context,
                                                      const longrope_append_desc *desc, const longrope_kv_cache *cache,
                                                      const longrope_append_tensors *tensors, void *stream);

/* ---- Decoding ---------------------------------------------------------------------------------------------------- */

/* Attention of the last tokens of sequences, at most 16 of each, over all of their tokens, with grouped heads:
 * out = softmax(scale * q k^T + mask) v, with keys and values from a cache that holds the new tokens already.
 *
 * Made for the steps of decoding, and for drafts that are to be verified: it runs at the speed of memory. Where a
 * sequence has more than 16 new tokens, use longrope_prefill_run.
 *
 * Of a sequence of length L with n new tokens, query i stands at position L - n + i and sees the keys up to its own
 * position. A sequence of length 0 gets zeros, and a log-sum-exp of minus infinity. What lies in the cache beyond a
 * sequence's length never reaches an output. */
typedef struct longrope_decode_desc {
    uint32_t struct_size;
    int32_t splits;                           /* 0: the blocks of the grid get equal work. 1 to 1024: each sequence in
                                               * so many equal parts, so that its bits do not depend on the batch
                                               * around it */
    float scale;                              /* what the logits are multiplied by. 0: 1 / sqrt(head dimension), so 0
                                               * itself can't be asked for */
    uint32_t flags;                           /* LONGROPE_DECODE_SETTLED, or 0 */
    int64_t window;                           /* a query sees keys less than this many positions back (so 1 is its own
                                               * alone). 0: all */
    longrope_new_tokens tokens;               /* which tokens the queries are */
    const longrope_cache_rotary_desc *rotary; /* rotates keys that lie unrotated in the cache while they are read: by
                                               * exact angles, a multiple of 8 pairs. NULL: they are rotated already.
                                               * Queries are in both cases */
    uint32_t *status;                         /* a word in which bits are set, never cleared; NULL: none */
} longrope_decode_desc;

#define LONGROPE_DECODE_DESC_INIT \
    { sizeof(longrope_decode_desc), 0, 0.0f, 0, 0, {0, 0, NULL, 0}, NULL, NULL }

/* In `flags`: a promise of what the launch or copy just before on the stream writes. Of all that decoding reads, it is at
 * most the queries, and the keys and values of the new tokens of this call, as a longrope_append_run of the same tokens
 * does; so of a sequence of length L with n new tokens nothing below position L - n, in pages that are shared with others
 * neither. Earlier keys and values, lengths, starts, the page table and numbers of sets are then read while it still runs.
 * If that launch itself lets others begin before it has waited for the one before it, the promise is of that one too,
 * and so on. A broken promise is undefined behaviour. Without the flag, nothing that is read before the launch has ended is made use
 * of unless it is the same afterwards. */
#define LONGROPE_DECODE_SETTLED 1u

/* What decoding and prefill read and write beside the cache. Query head h reads key head
 * h / (query heads / key heads). The outputs overlap neither each other nor the inputs. */
typedef struct longrope_decode_tensors {
    longrope_tensor q;   /* [batch, length, query heads, head dimension], as longrope_new_tokens says, of the type of
                          * the cache. The head dimension has stride 1, all else is a multiple of 16 bytes, as for
                          * out */
    longrope_tensor out; /* as q; or F32, as a partial result that is to be merged with others */
    longrope_tensor lse; /* [batch, length, query heads, 1], F32: the natural logarithm of each row's sum of
                          * exponentials. All zero: none */
} longrope_decode_tensors;

/* Whether longrope_decode_run takes these arguments, or why not. Statuses are as for longrope_attention_supported. */
LONGROPE_API longrope_status longrope_decode_supported(const longrope_decode_desc *desc,
                                                       const longrope_kv_cache *cache,
                                                       const longrope_decode_tensors *tensors);

/* How much scratch memory a run needs: a function of shapes, types, `sequences`, `most` and `splits` alone. Pure. */
LONGROPE_API longrope_status longrope_decode_workspace_size(const longrope_decode_desc *desc,
                                                            const longrope_kv_cache *cache,
                                                            const longrope_decode_tensors *tensors, size_t *bytes);

/* Launches the attention, and the merge of its parts. Tensors without queries are legal and launch nothing. */
LONGROPE_API longrope_status longrope_decode_run(const longrope_context *context, const longrope_decode_desc *desc,
                                                 const longrope_kv_cache *cache,
                                                 const longrope_decode_tensors *tensors, void *workspace,
                                                 size_t workspace_bytes, void *stream);

/* Checks what lies on the device: lengths, starts, the ids of the pages that would be read, numbers of sets. Waits for
 * the stream. */
LONGROPE_API longrope_status longrope_decode_validate(const longrope_context *context,
                                                      const longrope_decode_desc *desc, const longrope_kv_cache *cache,
                                                      const longrope_decode_tensors *tensors, void *stream);

/* ---- Prefill over a cache ---------------------------------------------------------------------------------------- */

/* The attention of longrope_decode_desc for any number of new tokens: a prompt, or a chunk of it (chunked prefill). The
 * cache holds the new tokens already.
 *
 * Made for more than 16 new tokens of a sequence: it works on blocks of 128 queries of a head (64, where the head
 * dimension is above 128). It takes fewer as well, and sequences of few and of many in one call; where all have at most
 * 16, use longrope_decode_run. Where there are few queries, the keys are divided among blocks as well, by the shapes
 * alone. */
typedef struct longrope_prefill_desc {
    uint32_t struct_size;
    float scale;                              /* as that of longrope_decode_desc, and so are the others */
    int64_t window;
    longrope_new_tokens tokens;
    const longrope_cache_rotary_desc *rotary; /* needs no memory: each block rotates the keys that it reads */
    uint32_t *status;                         /* of a sequence with a bad page, rows that do not see it
                                               * may be written */
} longrope_prefill_desc;

#define LONGROPE_PREFILL_DESC_INIT \
    { sizeof(longrope_prefill_desc), 0.0f, 0, {0, 0, NULL, 0}, NULL, NULL }

/* Whether longrope_prefill_run takes these arguments, or why not. Statuses are as for longrope_attention_supported. */
LONGROPE_API longrope_status longrope_prefill_supported(const longrope_prefill_desc *desc,
                                                        const longrope_kv_cache *cache,
                                                        const longrope_decode_tensors *tensors);

/* How much scratch memory a run needs, whatever the GPU: a function of shapes, types, `sequences`, `table_width` and
 * `most` alone. It is for partial results, where the keys are divided, and for kernels of compute capability 9.0. Pure. */
LONGROPE_API longrope_status longrope_prefill_workspace_size(const longrope_prefill_desc *desc,
                                                             const longrope_kv_cache *cache,
                                                             const longrope_decode_tensors *tensors, size_t *bytes);

/* Launches the attention and, where the keys are divided, the merge of its parts. Tensors without queries are legal and
 * launch nothing. */
LONGROPE_API longrope_status longrope_prefill_run(const longrope_context *context, const longrope_prefill_desc *desc,
                                                  const longrope_kv_cache *cache,
                                                  const longrope_decode_tensors *tensors, void *workspace,
                                                  size_t workspace_bytes, void *stream);

/* Checks what lies on the device, as longrope_decode_validate does. Waits for the stream. */
LONGROPE_API longrope_status longrope_prefill_validate(const longrope_context *context,
                                                       const longrope_prefill_desc *desc,
                                                       const longrope_kv_cache *cache,
                                                       const longrope_decode_tensors *tensors, void *stream);

/* ---- Re-rotation of a cache -------------------------------------------------------------------------------------- */

/* A change of the keys of a cache, where they lie: out of one factor set and into another. A sequence whose two sets
 * are the same keeps its keys, bit for bit. What longrope_rerotate_desc says of one attention and of a whole model
 * holds here too. */
typedef struct longrope_rerotate_cache_desc {
    uint32_t struct_size;
    uint32_t flags;                         /* none is defined yet */
    const longrope_cache_rotary_desc *to;   /* required: how the keys are to be rotated */
    const longrope_cache_rotary_desc *from; /* required: how they were; as many pairs and the same pairing */
    uint32_t *status;                       /* a word in which bits are set, never cleared; NULL: none. Of a sequence
                                             * with a bad page, the keys on its other pages are rotated */
} longrope_rerotate_cache_desc;

#define LONGROPE_REROTATE_CACHE_DESC_INIT \
    { sizeof(longrope_rerotate_cache_desc), 0, NULL, NULL, NULL }

/* As the functions of the same name above; values are not touched, no scratch memory is needed. Angles must be exact.
 * No page may belong to two sequences, since it would be rotated twice. There is no CPU form. */
LONGROPE_API longrope_status longrope_rerotate_cache_supported(const longrope_rerotate_cache_desc *desc,
                                                               const longrope_kv_cache *cache);
LONGROPE_API longrope_status longrope_rerotate_cache_workspace_size(const longrope_rerotate_cache_desc *desc,
                                                                    const longrope_kv_cache *cache, size_t *bytes);
LONGROPE_API longrope_status longrope_rerotate_cache_run(const longrope_context *context,
                                                         const longrope_rerotate_cache_desc *desc,
                                                         const longrope_kv_cache *cache, void *stream);

/* Checks what lies on the device: lengths, the ids of all pages of all sequences, numbers of sets. Waits for the
 * stream. */
LONGROPE_API longrope_status longrope_rerotate_cache_validate(const longrope_context *context,
                                                              const longrope_rerotate_cache_desc *desc,
                                                              const longrope_kv_cache *cache, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* LONGROPE_H */
