/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: every fallible function returns 0 (or a count) or a negative errno. Where a person needs the
 * reason, the last parameter is a `struct ckpt_err *` (NULL is allowed): one sentence that says what is
 * wrong and with which file. Meanings of the codes are fixed by docs/reference.md, "Errors".
 */
#ifndef CKPT_BASE_ERR_H
#define CKPT_BASE_ERR_H

#include <errno.h>

#define CKPT_ERR_TEXT 384

struct ckpt_err {
    int code; /* positive errno, 0 = none */
    char text[CKPT_ERR_TEXT];
};

/* Fill *err (which may be NULL) and return -code, so that a failure is one statement. */
int ckpt_fail(struct ckpt_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ckpt_fail with ENOMEM and its usual text. */
int ckpt_no_memory(struct ckpt_err *err);

/* Put "what: " before the text that a lower layer left; returns -err->code (or `code` when err is NULL). */
int ckpt_fail_in(struct ckpt_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#define CKPT_MUST_USE __attribute__((warn_unused_result))

#endif
