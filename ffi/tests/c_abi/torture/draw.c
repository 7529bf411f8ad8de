/* Random values from a seed, plausible and hostile, and objects that end where memory ends. */
#define _DEFAULT_SOURCE
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture.h"

static uint64_t state;

/* SplitMix64. */
uint64_t draw(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void draw_start(uint64_t seed, uint64_t round) {
    state = seed;
    state = draw() ^ round * 0xd1342543de82ef95u;
    draw();
}

int64_t below(int64_t count) { return count > 0 ? (int64_t)(draw() % (uint64_t)count) : 0; }

int one_in(int64_t count) { return below(count) == 0; }

int64_t hostile_integer(void) {
    static const int64_t values[] = {
        0, 1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 32, 33, 64, 99, 255, 256, 257, 1024, 1025, 4096, 65535,
        -1, -2, -7, -8, -16, -4096,
        INT32_MAX, INT32_MIN, (int64_t)INT32_MAX + 1, (int64_t)UINT32_MAX, (int64_t)UINT32_MAX + 1,
        1 << 20, (1 << 20) + 1, (int64_t)1 << 36, (int64_t)1 << 48, ((int64_t)1 << 48) + 1, (int64_t)1 << 58,
        (int64_t)1 << 62, -((int64_t)1 << 62), ((int64_t)1 << 62) + 1, -((int64_t)1 << 62) - 1,
        INT64_MAX, INT64_MIN, INT64_MAX - 1, INT64_MIN + 1, INT64_MAX / 2, INT64_MIN / 2, INT64_MAX / 16,
    };
    return one_in(8) ? (int64_t)draw() : values[below(COUNT(values))];
}

double hostile_number(void) {
    static const double values[] = {
        0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-45, 1e-40, -1e-40, 1e-300, 5e-324, 1e38, 3.5e38, -3.5e38, 1e300,
        DBL_MAX, -DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN, FLT_EPSILON,
    };
    double bits;
    const uint64_t random = draw();
    switch (below(6)) {
        case 0: return (double)NAN;
        case 1: return one_in(2) ? (double)INFINITY : -(double)INFINITY;
        case 2: memcpy(&bits, &random, sizeof bits); return bits;
        default: return values[below(COUNT(values))];
    }
}

static void spoil_address(unsigned char *at, int host) {
    uint64_t address;
    memcpy(&address, at, sizeof address);
    if (host && address == 0) return;
    switch (below(host ? 4 : 7)) {
        case 0: address = 0; break;
        case 1: address += 1; break;
        case 2: address += 2; break;
        case 3: address += host ? 3 : 4; break;
        case 4: address += 8; break;
        default: address = (uint64_t)hostile_integer(); break;
    }
    memcpy(at, &address, sizeof address);
}

static void spoil_size(unsigned char *at) {
    uint32_t size;
    memcpy(&size, at, sizeof size);
    switch (below(7)) {
        case 0: size = 0; break;
        case 1: size = (uint32_t)below(size); break;
        case 2: size -= 1; break;
        case 3: size += 8; break; /* a later version, of which no more is read than is known */
        case 4: size = 8 * (uint32_t)below(size / 8 + 1); break; /* an earlier version, or none */
        default: size = UINT32_MAX - 7 * (uint32_t)below(2); break;
    }
    memcpy(at, &size, sizeof size);
}

void spoil(void *object, const field *fields, int count, int host) {
    const field *const chosen = &fields[below(count)];
    unsigned char *const at = (unsigned char *)object + chosen->offset;
    const int64_t integer = hostile_integer();
    const int32_t narrow = (int32_t)(one_in(2) ? integer : below(8) - 1);
    const double number = hostile_number();
    const float single = fabs(number) <= FLT_MAX || isnan(number) ? (float)number : (float)INFINITY;
    switch (chosen->kind) {
        case KIND_SIZE: spoil_size(at); break;
        case KIND_I32: memcpy(at, &narrow, 4); break;
        case KIND_I64: memcpy(at, &integer, 8); break;
        case KIND_F32: memcpy(at, &single, 4); break;
        case KIND_F64: memcpy(at, &number, 8); break;
        case KIND_POINTER: memset(at, 0, sizeof(void *)); break;
        case KIND_ADDRESS: spoil_address(at, host); break;
    }
}

const void *place(int slot, const void *object, size_t bytes) {
    static unsigned char *ends[12];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = 16 * page;
    unsigned char *at;
    if (slot >= COUNT(ends) || bytes > room - 8) fail("slot %d can't hold %zu bytes", slot, bytes);
    if (!ends[slot]) {
        at = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED || mprotect(at + room, page, PROT_NONE) != 0) fail("mmap");
        ends[slot] = at + room;
    }
    at = ends[slot] - bytes - (one_in(8) ? 1 + below(7) : 0);
    memcpy(at, object, bytes);
    return at;
}
