/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pieces of a Python literal, as NumPy writes and reads them in the header of an .npy file. Nothing is evaluated;
 * numbers and lengths are bounded. Functions that return int leave a negative errno, and the reason in the literal's
 * err. Caller locks.
 */
#ifndef CKPT_ARRAY_LITERAL_H
#define CKPT_ARRAY_LITERAL_H

#include "core/array/npy.h"

#include <string.h>

struct ckpt_literal {
    const uint8_t *p, *end;
    bool utf8;      /* version 3.0; else Latin-1 */
    bool long_ints; /* 3L, as Python 2 wrote them */
    struct ckpt_err *err;
};

/* A string of the literal, in UTF-8; or a text that is being made. */
struct ckpt_text {
    size_t len;
    char data[sizeof(((struct ckpt_npy *)NULL)->descr)]; /* NUL-terminated */
};

/* Errors: what is no literal, and what is one but too long. */
int ckpt_literal_bad(struct ckpt_literal *l, const char *what);
int ckpt_literal_too_long(struct ckpt_literal *l);

/* strchr() would also find the NUL at the end. c may be -1. */
static inline bool ckpt_is_one_of(int c, const char *set)
{
    return c > 0 && strchr(set, c);
}
/* The next character that is not white space, not taken; -1 at the end. */
int ckpt_literal_look(struct ckpt_literal *l);
/* Taken if it is the next one. */
bool ckpt_literal_take(struct ckpt_literal *l, char c);
bool ckpt_literal_word(struct ckpt_literal *l, const char *word);
int ckpt_literal_string(struct ckpt_literal *l, struct ckpt_text *ret);
/* A tuple of whole numbers, at most CKPT_MAX_DIMS. */
int ckpt_literal_shape(struct ckpt_literal *l, unsigned *ret_ndim, uint64_t *shape);

/* What does not fit is counted, and ckpt_text_ok() is false. It ends the text with a NUL. */
void ckpt_text_add(struct ckpt_text *t, const char *p, size_t n);
void ckpt_text_adds(struct ckpt_text *t, const char *p);
bool ckpt_text_ok(struct ckpt_text *t);

#endif
