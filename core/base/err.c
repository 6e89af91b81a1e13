/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int ckpt_fail(struct ckpt_err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return -code;
}

int ckpt_no_memory(struct ckpt_err *err)
{
    return ckpt_fail(err, ENOMEM, "out of memory");
}

int ckpt_fail_in(struct ckpt_err *err, int code, const char *fmt, ...)
{
    if (!err)
        return -code;
    char what[CKPT_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (err->code != code || !err->text[0]) /* the lower layer gave no reason of its own */
        snprintf(err->text, sizeof err->text, "%s", strerror(code));
    err->code = code;
    char rest[CKPT_ERR_TEXT];
    memcpy(rest, err->text, sizeof rest);
    size_t n = strlen(what);
    if (n + 2 < sizeof err->text) {
        memcpy(err->text, what, n);
        snprintf(err->text + n, sizeof err->text - n, ": %.*s", (int)(sizeof err->text - n - 3), rest);
    }
    return -code;
}
