/* Texts of configurations, whole and broken. */
#include <string.h>

#include "torture.h"

static const char *const CONFIGS[] = {
    "{\"head_dim\": 8, \"max_position_embeddings\": 64, \"original_max_position_embeddings\": 16, \"rope_theta\": 500000.0, "
    "\"rope_scaling\": {\"rope_type\": \"longrope\", \"short_factor\": [1, 1.1, 1.3, 2], \"long_factor\": [1, 2, 4, 8.5]}}",
    "{\"hidden_size\": 64, \"num_attention_heads\": 4, \"max_position_embeddings\": 32768, \"rope_parameters\": {\"rope_type\": "
    "\"yarn\", \"factor\": 8.0, \"rope_theta\": 10000, \"beta_fast\": 32, \"beta_slow\": 1, \"truncate\": false, "
    "\"mscale\": 1.0, \"mscale_all_dim\": 0.5, \"original_max_position_embeddings\": 4096}}",
    "{\"head_dim\": 128, \"max_position_embeddings\": 131072, \"rope_theta\": 5e5, \"rope_scaling\": {\"type\": \"llama3\", "
    "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}}",
    "{\"head_dim\": 8, \"max_position_embeddings\": 16, \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}}",
    "{\"head_dim\": 16, \"max_position_embeddings\": 100, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 4}}",
    "{\"head_dim\": 64, \"max_position_embeddings\": 2048, \"partial_rotary_factor\": 0.5, \"rope_scaling\": null}",
    "{\"head_dim\": 8, \"max_position_embeddings\": 8192, \"rope_parameters\": {\"full_attention\": {\"rope_type\": "
    "\"default\", \"rope_theta\": 1e6}, \"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 1e6}}}",
    "{\"head_dim\": 8, \"max_position_embeddings\": 64, \"rope_parameters\": {\"rope_type\": \"longrope\", \"n_hat\": 4, "
    "\"attention_factor\": 1.5, \"factor\": 4.0, \"original_max_position_embeddings\": 16, \"rope_theta\": 1e4, "
    "\"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 2, 4, 8]}}",
};

static const char *const PIECES[] = {
    "0", "-1", "1", "2", "1e999", "-1e999", "1e-999", "1e308", "5e-324", "NaN", "Infinity", "null", "true", "false", "\"\"",
    "\"x\"", "[]", "{}", "[[]]", "[1, \"a\"]", "18446744073709551615", "18446744073709551616", "-9223372036854775808",
    "9223372036854775807", "4294967296", "2147483648", "1048576", "1048577", "0.1", "3.5", "1000000007", "\"yarn\"",
    "\"longrope\"", "\"su\"", "\"mrope\"", "\"default\"", "\"\\u0000\"", "\"\\ud800\"", "\xff\xfe", "{\"rope_type\": 1}",
    "1e5", "128", "7", "-0.0", "0e0", "00", "+1", ".5", "1.", ",", ":", "}", "]", "{", "[", "\"",
};

enum { TEXT = 1 << 15 };

/* Replaces a part of a text by another. */
static size_t replace(char *text, size_t bytes, size_t at, size_t old, const char *with, size_t length) {
    if (at + old > bytes || bytes - old + length > TEXT) return bytes;
    memmove(text + at + length, text + at + old, bytes - at - old);
    memcpy(text + at, with, length);
    return bytes - old + length;
}

/* Where the next value begins, and how long it is: what stands between a colon, a comma or a bracket and the next. */
static size_t value_at(const char *text, size_t bytes, size_t *length) {
    size_t at = (size_t)below((int64_t)bytes + 1), end;
    while (at < bytes && !strchr(":,[", text[at])) ++at;
    at = at < bytes ? at + 1 : 0;
    for (end = at; end < bytes && !strchr(",]}", text[end]); ++end) {}
    *length = end - at;
    return at;
}

static size_t mutate(char *text, size_t bytes) {
    const char *const piece = PIECES[below(COUNT(PIECES))];
    size_t at, length = 0, i;
    char nested[512];
    switch (below(12)) {
        case 0: return (size_t)below((int64_t)bytes + 1); /* cut off */
        case 1: if (bytes) text[below((int64_t)bytes)] = (char)draw(); return bytes;
        case 2: return replace(text, bytes, (size_t)below((int64_t)bytes + 1), 0, piece, strlen(piece));
        case 3: return bytes ? replace(text, bytes, (size_t)below((int64_t)bytes), 1, "", 0) : 0;
        case 4: /* deep */
            memset(nested, one_in(2) ? '[' : '{', sizeof nested);
            at = value_at(text, bytes, &length);
            return replace(text, bytes, at, 0, nested, 1 + (size_t)below(sizeof nested));
        case 5: /* long */
            at = value_at(text, bytes, &length);
            for (i = (size_t)below(2000); i; --i) bytes = replace(text, bytes, at, 0, one_in(9) ? "2," : "1,", 2);
            return bytes;
        default: /* another value */
            at = value_at(text, bytes, &length);
            return replace(text, bytes, at, length, piece, strlen(piece));
    }
}

const char *draw_text(size_t *bytes) {
    static char text[TEXT];
    const char *const config = CONFIGS[below(COUNT(CONFIGS))], *at;
    int mutations = one_in(4) ? 0 : 1 + (int)below(4);
    *bytes = strlen(config);
    memcpy(text, config, *bytes);
    while (mutations--) *bytes = mutate(text, *bytes);
    /* No final zero, and nothing that can be read after it. */
    at = one_in(100) ? NULL : place(0, text, *bytes);
    if (one_in(200) && at) *bytes = SIZE_MAX - (size_t)below(10);
    return at;
}
