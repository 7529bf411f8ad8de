/* Tensors, and the memory that they lie in: that of the device, and of the host for the CPU forms. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "torture.h"

unsigned char *memory;
static unsigned char *kept;

const field TENSOR_FIELDS[TENSOR_FIELD_COUNT] = {
    FIELD(longrope_tensor, data, KIND_ADDRESS),
    FIELD(longrope_tensor, dtype, KIND_I32),
    FIELD(longrope_tensor, shape[0], KIND_I64),
    FIELD(longrope_tensor, shape[1], KIND_I64),
    FIELD(longrope_tensor, shape[2], KIND_I64),
    FIELD(longrope_tensor, shape[3], KIND_I64),
    FIELD(longrope_tensor, stride[0], KIND_I64),
    FIELD(longrope_tensor, stride[1], KIND_I64),
    FIELD(longrope_tensor, stride[2], KIND_I64),
    FIELD(longrope_tensor, stride[3], KIND_I64),
};

void start_memory(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = SLOTS * SLOT_BYTES;
    unsigned char *at = mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    float *values;
    size_t i;
    if (at == MAP_FAILED || mprotect(at + page, bytes, PROT_READ | PROT_WRITE) != 0) fail("mmap");
    memory = at + page;
    kept = malloc(bytes);
    if (!kept) fail("malloc");
    values = (float *)(void *)memory;
    for (i = 0; i < bytes / sizeof *values; ++i) values[i] = (float)(i % 997) / 997.0f - 0.5f;
}

void *slot(int number) { return memory + (size_t)number * SLOT_BYTES; }

/* The last word of the pages' slot, which no table reaches. */
uint32_t *status_word(void) { return (uint32_t *)(void *)(memory + SLOTS * SLOT_BYTES) - 4; }

/* A number, of 64 bits or of 32. */
static void put(int number, int64_t index, int is_wide, int64_t value) {
    if (is_wide) {
        ((int64_t *)slot(number))[index] = value;
    } else {
        ((int32_t *)slot(number))[index] = (int32_t)value;
    }
}

void draw_numbers(int64_t sequences, int64_t total, int64_t capacity, int is_wide) {
    const int64_t most = SLOT_BYTES / 8 - 1;
    int64_t i, query = 0, key = 0;
    for (i = 0; i < 64; ++i) ((int64_t *)slot(POSITIONS))[i] = one_in(6) ? hostile_integer() : below(1 << 20);
    /* Indices of sets as well as lengths. */
    for (i = 0; i < 64; ++i) ((int32_t *)slot(CHOICES))[i] = (int32_t)(one_in(20) ? hostile_integer() : below(2));
    for (i = 0; i <= sequences && i <= most; ++i) {
        put(QUERY_STARTS, i, is_wide, one_in(60) ? hostile_integer() : query);
        put(KEY_STARTS, i, is_wide, one_in(60) ? hostile_integer() : key);
        query += i + 1 == sequences ? total - query : below(total - query + 1);
        key += below(total - key + 1);
        put(LENGTHS, i, is_wide, one_in(60) ? hostile_integer() : one_in(8) ? 0 : total + below(capacity - total + 1));
    }
    for (i = 0; i < SLOT_BYTES / 4 - 4; ++i) ((int32_t *)slot(PAGES))[i] = (int32_t)(one_in(2000) ? hostile_integer() : i % 8);
    *status_word() = 0;
}

longrope_tensor draw_tensor(int number, int32_t dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim) {
    longrope_tensor tensor;
    const int64_t padded = one_in(4) ? dim + 8 : dim;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = slot(number);
    tensor.dtype = dtype;
    tensor.shape[0] = batch;
    tensor.shape[1] = length;
    tensor.shape[2] = heads;
    tensor.shape[3] = dim;
    tensor.stride[3] = 1;
    switch (below(3)) {
        case 0: tensor.stride[3] = 0; break; /* contiguous */
        case 1:
            tensor.stride[2] = padded;
            tensor.stride[1] = heads * padded;
            tensor.stride[0] = length * heads * padded;
            break;
        default:
            tensor.stride[1] = padded;
            tensor.stride[2] = length * padded;
            tensor.stride[0] = length * heads * padded;
            break;
    }
    return tensor;
}

int is_safe(const longrope_tensor *tensor) {
    const unsigned char *const first = memory, *const end = memory + SLOTS * SLOT_BYTES;
    const uintptr_t at = (uintptr_t)tensor->data;
    const int is_contiguous = !(tensor->stride[0] | tensor->stride[1] | tensor->stride[2] | tensor->stride[3]);
    /* Sums are of small numbers, once the shape is known to be small. */
    int64_t stride[4], elements = 1;
    double low = 0, high = 0;
    int i, is_empty = 0;
    for (i = 3; i >= 0; --i) {
        if (tensor->shape[i] < 0 || tensor->dtype < 1 || tensor->dtype > 3) return 1;
        if (tensor->shape[i] == 0) is_empty = 1;
    }
    if (is_empty) return 1;
    for (i = 3; i >= 0; --i) {
        if (tensor->shape[i] > 1 << 14) return 0;
        stride[i] = is_contiguous ? elements : tensor->stride[i];
        elements *= tensor->shape[i];
        if (elements > 1 << 14) return 0;
        if (stride[i] < 0) {
            low += (double)(tensor->shape[i] - 1) * (double)stride[i];
        } else {
            high += (double)(tensor->shape[i] - 1) * (double)stride[i];
        }
    }
    if (at < (uintptr_t)first || at >= (uintptr_t)end) return tensor->data == NULL;
    return (double)(at - (uintptr_t)first) + 4 * low >= 0 && (double)((uintptr_t)end - at) >= 4 * (high + 1);
}

void keep_memory(void) { memcpy(kept, memory, SLOTS * SLOT_BYTES); }

/* Takes back what was written to the elements of a tensor. */
static void restore(const longrope_tensor *tensor) {
    const int is_contiguous = !(tensor->stride[0] | tensor->stride[1] | tensor->stride[2] | tensor->stride[3]);
    int64_t stride[4], step = 1, b, s, h, d;
    int i;
    for (i = 3; i >= 0; --i) {
        if (tensor->shape[i] == 0) return; /* the others may be anything */
    }
    for (i = 3; i >= 0; --i) {
        stride[i] = is_contiguous ? step : tensor->stride[i];
        step *= tensor->shape[i];
    }
    for (b = 0; b < tensor->shape[0]; ++b) {
        for (s = 0; s < tensor->shape[1]; ++s) {
            for (h = 0; h < tensor->shape[2]; ++h) {
                for (d = 0; d < tensor->shape[3]; ++d) {
                    const int64_t at = ((unsigned char *)tensor->data - memory) +
                                       4 * (b * stride[0] + s * stride[1] + h * stride[2] + d * stride[3]);
                    memcpy(memory + at, kept + at, 4);
                }
            }
        }
    }
}

void check_memory(const longrope_tensor *const *outputs, int count) {
    const size_t word = (size_t)((unsigned char *)status_word() - memory);
    size_t i;
    int which;
    for (which = 0; which < count; ++which) {
        if (outputs[which]->data) restore(outputs[which]);
    }
    memcpy(memory + word, kept + word, 4);
    if (memcmp(memory, kept, SLOTS * SLOT_BYTES) == 0) return;
    for (i = 0; memory[i] == kept[i]; ++i) {}
    fail("byte %zu was written (slot %zu), which is of no output", i, i / SLOT_BYTES);
}
