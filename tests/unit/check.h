/* SPDX-License-Identifier: Apache-2.0 */
/* The unit tests' one macro: a failed CHECK prints where and what, and ends the program with status 1. */
#ifndef CKPT_TESTS_CHECK_H
#define CKPT_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #cond);                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_STR(got, want)                                                                                           \
    do {                                                                                                               \
        const char *got_ = (got), *want_ = (want);                                                                     \
        if (strcmp(got_, want_) != 0) {                                                                                \
            fprintf(stderr, "%s:%d: got \"%s\", want \"%s\"\n", __FILE__, __LINE__, got_, want_);                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
