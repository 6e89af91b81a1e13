/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/buf.h"

#include "core/base/util.h"

#include <errno.h>
#include <stdio.h>

void ckpt_buf_clear(struct ckpt_buf *buf)
{
    free(buf->data);
    buf->data = NULL;
    buf->len = buf->cap = 0;
    buf->error = 0;
}

int ckpt_buf_reserve(struct ckpt_buf *buf, size_t extra)
{
    size_t max = buf->max ? buf->max : CKPT_BUF_MAX;
    if (buf->error)
        return buf->error;
    if (extra > max || buf->len > max - extra)
        return buf->error = -EFBIG;
    size_t need = buf->len + extra + 1; /* room for a NUL */
    if (need <= buf->cap)
        return 0;
    size_t cap = CKPT_MAX(need, CKPT_MIN(buf->cap * 2, max + 1));
    cap = CKPT_MAX(cap, (size_t)64);
    uint8_t *data = realloc(buf->data, cap);
    if (!data)
        return buf->error = -ENOMEM;
    buf->data = data;
    buf->cap = cap;
    return 0;
}

void ckpt_buf_add(struct ckpt_buf *buf, const void *data, size_t len)
{
    if (!len || ckpt_buf_reserve(buf, len) < 0)
        return;
    memcpy(buf->data + buf->len, data, len);
    buf->len += len;
}

void ckpt_buf_adds(struct ckpt_buf *buf, const char *text)
{
    ckpt_buf_add(buf, text, strlen(text));
}

void ckpt_buf_addc(struct ckpt_buf *buf, char c)
{
    ckpt_buf_add(buf, &c, 1);
}

void ckpt_buf_vaddf(struct ckpt_buf *buf, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    char small[256];
    int n = vsnprintf(small, sizeof small, fmt, ap);
    if (n < 0)
        buf->error = -EINVAL;
    else if ((size_t)n < sizeof small)
        ckpt_buf_add(buf, small, (size_t)n);
    else if (ckpt_buf_reserve(buf, (size_t)n) == 0) {
        vsnprintf((char *)buf->data + buf->len, (size_t)n + 1, fmt, again);
        buf->len += (size_t)n;
    }
    va_end(again);
}

void ckpt_buf_addf(struct ckpt_buf *buf, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    ckpt_buf_vaddf(buf, fmt, ap);
    va_end(ap);
}

int ckpt_buf_error(const struct ckpt_buf *buf)
{
    return buf->error;
}

void *ckpt_buf_steal(struct ckpt_buf *buf, size_t *ret_len)
{
    if (ckpt_buf_reserve(buf, 0) < 0) {
        ckpt_buf_clear(buf);
        return NULL;
    }
    buf->data[buf->len] = 0;
    if (ret_len)
        *ret_len = buf->len;
    void *data = buf->data;
    buf->data = NULL;
    buf->len = buf->cap = 0;
    return data;
}

size_t ckpt_utf8_length(const uint8_t *p, size_t left)
{
    if (p[0] < 0x80)
        return 1;
    size_t n = p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (!n || p[0] >= 0xf5 || left < n)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f)) /* overlong, surrogates, beyond U+10FFFF */
        return 0;
    return n;
}

bool ckpt_utf8(const void *text, size_t len)
{
    const uint8_t *p = text;
    for (size_t n; len; p += n, len -= n)
        if (!(n = ckpt_utf8_length(p, len)))
            return false;
    return true;
}

void ckpt_buf_add_json_string(struct ckpt_buf *buf, const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    ckpt_buf_addc(buf, '"');
    for (size_t i = 0; i < len;) {
        size_t n = ckpt_utf8_length(p + i, len - i);
        if (n > 1)
            ckpt_buf_add(buf, p + i, n);
        else if (n == 0) {
            ckpt_buf_adds(buf, "\\ufffd");
            n = 1;
        } else if (p[i] == '"' || p[i] == '\\') {
            ckpt_buf_addc(buf, '\\');
            ckpt_buf_addc(buf, (char)p[i]);
        } else if (p[i] == '\n')
            ckpt_buf_adds(buf, "\\n");
        else if (p[i] == '\t')
            ckpt_buf_adds(buf, "\\t");
        else if (p[i] == '\r')
            ckpt_buf_adds(buf, "\\r");
        else if (p[i] < 0x20)
            ckpt_buf_addf(buf, "\\u%04x", p[i]);
        else
            ckpt_buf_addc(buf, (char)p[i]);
        i += n;
    }
    ckpt_buf_addc(buf, '"');
}

void ckpt_buf_add_base64url(struct ckpt_buf *buf, const void *data, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < len ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < len ? p[i + 2] : 0);
        ckpt_buf_addc(buf, digits[v >> 18]);
        ckpt_buf_addc(buf, digits[v >> 12 & 63]);
        ckpt_buf_addc(buf, i + 1 < len ? digits[v >> 6 & 63] : '=');
        ckpt_buf_addc(buf, i + 2 < len ? digits[v & 63] : '=');
    }
}
