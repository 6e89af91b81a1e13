/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/npy.h"

#include "core/base/util.h"

#include <inttypes.h>
#include <stdio.h>

#define NPY_ALIGN 64
/* NumPy leaves room for the first dimension to grow to the digits of 2^64, so that a file can be appended to in place
 * (GROWTH_AXIS_MAX_DIGITS in numpy/lib/_format_impl.py). */
#define NPY_GROWTH_DIGITS 21

/* From UTF-8 in place; false, and nothing changed, if a character is not of Latin-1. */
static bool to_latin1(struct ckpt_buf *text)
{
    size_t to = 0;
    for (size_t i = 0; i < text->len; i++)
        if (text->data[i] > 0xc3)
            return false;
    for (size_t i = 0; i < text->len; i++) {
        uint8_t c = text->data[i];
        if (c >= 0xc2 && i + 1 < text->len)
            c = (uint8_t)(c << 6 | (text->data[++i] & 0x3f));
        text->data[to++] = c;
    }
    text->len = to;
    return true;
}

/* Of the header behind its prefix, newline included. NumPy pads with 1 to 64 spaces, never none; the newline counts
 * before them. */
static size_t padded_length(size_t prefix, size_t text)
{
    size_t len = text + 1;
    return len + NPY_ALIGN - (prefix + len) % NPY_ALIGN;
}

void ckpt_npy_add_header(struct ckpt_buf *buf, const char *descr, unsigned ndim, const uint64_t *shape)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    const char *quote = descr[0] == '[' ? "" : "'"; /* the descr of a structure is a list */

    ckpt_buf_addf(&text, "{'descr': %s%s%s, 'fortran_order': False, 'shape': (", quote, descr, quote);
    for (unsigned i = 0; i < ndim; i++)
        ckpt_buf_addf(&text, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
    ckpt_buf_adds(&text, ndim == 1 ? ",), }" : "), }");
    if (ndim) {
        int spare = NPY_GROWTH_DIGITS - snprintf(NULL, 0, "%" PRIu64, shape[0]);
        ckpt_buf_addf(&text, "%*s", spare, "");
    }

    uint8_t version = to_latin1(&text) ? 1 : 3;
    size_t prefix = version == 1 ? 10 : 12, len = padded_length(prefix, text.len);
    if (version == 1 && len > UINT16_MAX) { /* version 1.0 has two bytes for it */
        version = 2;
        prefix = 12;
        len = padded_length(prefix, text.len);
    }
    size_t pad = len - 1 - text.len;
    uint8_t head[12] = "\x93NUMPY";
    head[6] = version;
    for (int i = 0; i < 4; i++)
        head[8 + i] = (uint8_t)(len >> 8 * i); /* version 1.0 takes two of them */
    if (text.error && !buf->error)
        buf->error = text.error;
    ckpt_buf_add(buf, head, prefix);
    ckpt_buf_add(buf, text.data, text.len);
    ckpt_buf_addf(buf, "%*s\n", (int)pad, "");
    ckpt_buf_clear(&text);
}
