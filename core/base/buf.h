/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A growable byte buffer with a maximum. Errors stick: append freely, then ask ckpt_buf_error() once.
 * Caller locks.
 */
#ifndef CKPT_BASE_BUF_H
#define CKPT_BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ckpt_buf {
    uint8_t *data;
    size_t len, cap;
    size_t max; /* never grows beyond; 0 = CKPT_BUF_MAX */
    int error;  /* 0, -ENOMEM or -EFBIG */
};

#define CKPT_BUF_MAX ((size_t)1 << 30)
#define CKPT_BUF_INIT                                                                                                  \
    {                                                                                                                  \
        NULL, 0, 0, 0, 0                                                                                               \
    }

void ckpt_buf_clear(struct ckpt_buf *buf); /* frees; the buffer can be used again */
/* Clears a buffer at the end of its scope. */
#define CKPT_AUTOBUF __attribute__((cleanup(ckpt_buf_clear)))
int ckpt_buf_reserve(struct ckpt_buf *buf, size_t extra);
void ckpt_buf_add(struct ckpt_buf *buf, const void *data, size_t len);
void ckpt_buf_adds(struct ckpt_buf *buf, const char *text);
void ckpt_buf_addc(struct ckpt_buf *buf, char c);
void ckpt_buf_addf(struct ckpt_buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ckpt_buf_vaddf(struct ckpt_buf *buf, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
int ckpt_buf_error(const struct ckpt_buf *buf);
/* Hand the bytes out (NUL-terminated beyond len); the buffer is empty afterwards. NULL if an error stuck. */
void *ckpt_buf_steal(struct ckpt_buf *buf, size_t *ret_len);

/* The bytes of the well-formed UTF-8 sequence at p (Unicode, table 3-7), of which `left` > 0 are there; 0: there is
 * none. */
size_t ckpt_utf8_length(const uint8_t *p, size_t left);
bool ckpt_utf8(const void *text, size_t len); /* all of it is UTF-8 */
/* A JSON string literal, quotes included, of bytes that should be UTF-8 (bad sequences become U+FFFD). */
void ckpt_buf_add_json_string(struct ckpt_buf *buf, const char *text, size_t len);
/* RFC 4648, section 5, with its padding. */
void ckpt_buf_add_base64url(struct ckpt_buf *buf, const void *data, size_t len);

#endif
