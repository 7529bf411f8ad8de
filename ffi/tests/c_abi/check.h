/* Ending a test program where something does not hold. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "longrope.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: %s (%s)\n", __LINE__, #condition, longrope_last_error_message()); \
            exit(1); \
        } \
    } while (0)

#endif
