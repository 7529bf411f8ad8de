/* Extends a model that is extended already: reads its config.json, multiplies the factors of long sequences, and writes the
 * configuration that comes out of it. Then rotates a key by it on the CPU, as an oracle for an engine's own kernels.
 *
 *   scripts/install-library --prefix ~/longrope
 *   cmake -S ffi/examples/config -B build -DCMAKE_PREFIX_PATH=~/longrope && cmake --build build
 *   build/config [MODEL/config.json]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "longrope.h"

/* Four times as long, by factors of twice the size: a real second search finds one for each pair. */
enum { EXTENSION = 4 };
static const double second = 2.0;

/* What a model's config.json says, shortened. */
static const char shortened[] =
    "{\"head_dim\": 8, \"max_position_embeddings\": 131072, \"original_max_position_embeddings\": 4096, "
    "\"rope_theta\": 10000.0, \"rope_scaling\": {\"rope_type\": \"longrope\", "
    "\"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 2, 8, 32]}}";

/* Ends the program if a call failed. */
static void check(longrope_status status) {
    if (status == LONGROPE_STATUS_OK) return;
    fprintf(stderr, "longrope: %s: %s\n", longrope_status_string(status), longrope_last_error_message());
    exit(EXIT_FAILURE);
}

static void *allocate(size_t bytes) {
    void *memory = calloc(bytes, 1);
    if (memory) return memory;
    fprintf(stderr, "no memory for %lu bytes\n", (unsigned long)bytes);
    exit(EXIT_FAILURE);
}

/* The text of a file. */
static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t length = 0, size = 0, more;
    if (!file) {
        perror(path);
        exit(EXIT_FAILURE);
    }
    do {
        size += 65536;
        text = realloc(text, size + 1);
        if (!text) exit(EXIT_FAILURE);
        more = fread(text + length, 1, size - length, file);
        length += more;
    } while (more > 0);
    fclose(file);
    text[length] = 0;
    return text;
}

static void print(const char *name, const double *values, int64_t count) {
    int64_t i;
    printf("%s:", name);
    for (i = 0; i < count; ++i) printf(" %.17g", values[i]);
    printf("\n");
}

/* The factors of sequences of a length. */
static double *factors_at(const longrope_config *config, int64_t length, int64_t pairs) {
    double *factors = allocate((size_t)pairs * sizeof *factors);
    check(longrope_config_factors(config, length, factors, pairs));
    return factors;
}

/* Rotates a key of ones at a position beyond what the model was extended to before. */
static void rotate(const longrope_config *config, const longrope_config_info *info, int64_t position) {
    longrope_factor_sets *sets = NULL;
    longrope_rotary_desc desc = LONGROPE_ROTARY_DESC_INIT;
    longrope_tensor_io io;
    float *key = allocate((size_t)info->head_dim * sizeof *key);
    int i;
    for (i = 0; i < info->head_dim; ++i) key[i] = 1;
    check(longrope_factor_sets_from_config(config, 0, LONGROPE_ANGLES_EXACT, &sets));
    desc.sets = sets;
    desc.position_offset = position;
    desc.choice_length = position + 1;
    memset(&io, 0, sizeof io);
    io.input.data = key;
    io.input.dtype = LONGROPE_DTYPE_F32;
    io.input.shape[0] = io.input.shape[1] = io.input.shape[2] = 1;
    io.input.shape[3] = info->head_dim;
    check(longrope_rotary_cpu(&desc, &io, 1));
    printf("key of ones at %ld:", (long)position);
    for (i = 0; i < info->head_dim; ++i) printf(" %.9g", (double)key[i]);
    printf("\n");
    longrope_factor_sets_destroy(sets);
    free(key);
}

int main(int argc, char **argv) {
    char *json = argc > 1 ? read_file(argv[1]) : NULL;
    const char *text = json ? json : shortened;
    longrope_config *before = NULL, *after = NULL;
    longrope_config_info info = LONGROPE_CONFIG_INFO_INIT;
    longrope_factors given = LONGROPE_FACTORS_INIT;
    double *shorter, *longer;
    char *written;
    size_t bytes = 0;
    int64_t i;

    check(longrope_config_from_json(text, strlen(text), &before));
    check(longrope_config_info_get(before, &info));
    printf("%ld pairs of a head of %d, base %.17g, %ld tokens extended to %ld, attention factor %.17g\n", (long)info.pairs,
           (int)info.head_dim, info.theta, (long)info.original_length, (long)info.max_length, info.attention_factor);
    shorter = factors_at(before, info.original_length, info.pairs);
    longer = factors_at(before, info.max_length, info.pairs);
    print("factors, short", shorter, info.pairs);
    print("factors, long", longer, info.pairs);

    for (i = 0; i < info.pairs; ++i) longer[i] *= second;
    given.head_dim = info.head_dim;
    given.pairs = info.pairs;
    given.short_factors = shorter;
    given.long_factors = longer;
    given.theta = info.theta;
    given.original_length = info.original_length;
    given.max_length = EXTENSION * info.max_length;
    given.first_tokens = info.first_tokens;
    check(longrope_config_from_factors(&given, &after));
    check(longrope_config_to_json(after, LONGROPE_JSON_ROPE_SCALING, NULL, 0, &bytes));
    written = allocate(bytes + 1);
    check(longrope_config_to_json(after, LONGROPE_JSON_ROPE_SCALING, written, bytes + 1, &bytes));
    rotate(after, &info, 2 * (int64_t)info.max_length);
    printf("%s", written);

    longrope_config_destroy(before);
    longrope_config_destroy(after);
    free(written);
    free(shorter);
    free(longer);
    free(json);
    return EXIT_SUCCESS;
}
