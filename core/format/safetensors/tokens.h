/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON in a range of a file, token by token, and strictly: exactly RFC 8259, well-formed UTF-8, paired surrogates,
 * whole numbers without sign, point or exponent. Nothing is kept but a window, so memory depends neither on the length
 * of the text nor on what it holds. An error is told in *err with the byte where it was seen. One thread.
 */
#ifndef CKPT_FORMAT_SAFETENSORS_TOKENS_H
#define CKPT_FORMAT_SAFETENSORS_TOKENS_H

#include "core/base/buf.h"
#include "core/io/backend.h"

struct tokens {
    struct ckpt_file *file; /* borrowed */
    uint64_t begin, end;    /* of the text in the file */
    uint8_t *window;        /* the caller's, size bytes */
    size_t size;
    uint64_t base; /* of what is in the window, in the file */
    size_t at, len;
    int error; /* of the medium */
    struct ckpt_err *err;
};

/* Go to a byte of the text: what the window holds is not read again. */
void ckpt_tokens_seek(struct tokens *t, uint64_t off);
/* Where the next byte that is no white space lies in the file. */
uint64_t ckpt_tokens_place(struct tokens *t);
/* The first byte of the token that comes, not taken; -1 at the end. */
int ckpt_tokens_peek(struct tokens *t);
/* -EUCLEAN, or what the medium says. */
int ckpt_tokens_fail(struct tokens *t, const char *what);

/* Take what must come: one of {}[]:, */
int ckpt_tokens_take(struct tokens *t, char c) CKPT_MUST_USE;
/* After the beginning of an object or array (*first is true), or behind an element of it: 1, or 0 for its end, which is
 * taken. */
int ckpt_tokens_more(struct tokens *t, char end, bool *first) CKPT_MUST_USE;
/* A string, decoded, to the end of *out (NULL: nowhere). What does not fit there is an error of the buffer's, none of
 * the text's. */
int ckpt_tokens_string(struct tokens *t, struct ckpt_buf *out) CKPT_MUST_USE;
int ckpt_tokens_u64(struct tokens *t, uint64_t *ret) CKPT_MUST_USE;
/* Any value; its text without white space goes to the end of *out (NULL: nowhere). */
int ckpt_tokens_value(struct tokens *t, struct ckpt_buf *out) CKPT_MUST_USE;
/* Nothing but white space may be left. */
int ckpt_tokens_end(struct tokens *t) CKPT_MUST_USE;

#endif
