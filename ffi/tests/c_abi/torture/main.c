/* torture SEED CALLS [FIRST]: rounds of all operations until so many calls were made.
 * torture SEED configs SECONDS: rounds of configurations and frequencies for so long.
 * A round is drawn from the seed and its number alone: FIRST begins with that round.
 * It fails if more memory is resident at the end than after the first WARM_UP rounds, beyond what LONGROPE_TORTURE_KIB says
 * in KiB, or else MOST_GROWTH. Tools that keep what was freed need a larger one. */
#define _DEFAULT_SOURCE
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "torture.h"

enum { WARM_UP = 20000, MOST_GROWTH = 1024 };

uint64_t current_round, current_seed;

/* A crash has a round too. */
static void crashed(int number) {
    signal(number, SIG_DFL);
    fail("signal %d", number);
}

static void round_of_all(void) {
    switch (below(30)) {
        case 0: round_of_json(); break;
        case 1: round_of_frequencies(); break;
        case 2: if (one_in(20)) round_of_contexts(); break;
        case 24: round_of_config(); break;
        case 3: case 4: case 5: case 6: round_of_rotary(); break;
        case 7: case 8: round_of_rerotate(); break;
        case 9: case 10: case 11: case 12: round_of_attention(); break;
        case 13: case 14: round_of_merge(); break;
        case 25: case 26: case 27: round_of_backward(); break;
        case 28: case 29: round_of_delta(); break;
        default: round_of_cache(); break;
    }
}

static void round_of_configs(void) {
    if (one_in(4)) {
        round_of_frequencies();
    } else if (one_in(2)) {
        round_of_json();
    } else {
        round_of_config();
    }
}

/* KiB of this process that are resident now, without what was freed and malloc keeps. */
static long resident(void) {
    FILE *const file = fopen("/proc/self/statm", "r");
    long all = 0, pages = 0;
    malloc_trim(0);
    if (!file || fscanf(file, "%ld %ld", &all, &pages) != 2) fail("/proc/self/statm can't be read");
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int argc, char **argv) {
    const int configs = argc == 4 && strcmp(argv[2], "configs") == 0;
    const long until = argc > 2 ? atol(argv[configs ? 3 : 2]) : 0;
    const time_t start = time(NULL);
    const char *const kib = getenv("LONGROPE_TORTURE_KIB");
    const long growth = kib ? atol(kib) : MOST_GROWTH;
    long warm = 0, now, rounds = 0;
    int status, one_sided;
    if (argc < 3 || until <= 0) {
        fprintf(stderr, "torture SEED CALLS [FIRST], or torture SEED configs SECONDS\n");
        return 2;
    }
    current_seed = strtoull(argv[1], NULL, 10);
    current_round = argc == 4 && !configs ? strtoull(argv[3], NULL, 10) : 0;
    for (status = -3; status < 20; ++status) {
        const char *const text = longrope_status_string(status);
        if (!text || !*text) fail("status %d has no text", status);
    }
    if (*longrope_last_error_message()) fail("a message before any failure: %s", longrope_last_error_message());
    signal(SIGSEGV, crashed);
    signal(SIGBUS, crashed);
    signal(SIGFPE, crashed);
    start_memory();
    start_driver();
    start_sets();
    while (configs ? time(NULL) - start < until : calls() < until) {
        draw_start(current_seed, current_round);
        draw_current_context();
        if (configs) {
            round_of_configs();
        } else {
            round_of_all();
        }
        ++current_round;
        if (++rounds == WARM_UP) warm = resident();
    }
    now = resident();
    if (warm && now - warm > growth) {
        fail("%ld KiB are resident; expected at most %ld more than the %ld after %d rounds", now, growth, warm, WARM_UP);
    }
    end_sets();
    end_driver();
    one_sided = print_table();
    printf("%ld calls, ", calls());
    /* Those that configurations are tried with need not fail. */
    if (!configs) printf("%d functions that never succeeded or never failed, ", one_sided);
    printf("%ld rounds, %ld KiB resident (%ld after %d rounds), %s\n", rounds, now, warm, WARM_UP,
           longrope_has_device_code() ? "with device code" : "without device code");
    return one_sided && !configs;
}
