/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/text.h"

#include "core/array/dtype.h"

#include <math.h>
#include <string.h>

/* --- JSON --- */

#define MAX_LEVELS 8 /* of tuples in a set */

/* A list may have been changed after a set was made of it, so nothing is known of what is in it. */
static bool add_array(const struct torch_graph *g, torch_value items, unsigned level, struct ckpt_buf *buf)
{
    struct torch_walk w;
    torch_value v;
    bool first = true;
    ckpt_buf_addc(buf, '[');
    ckpt_torch_walk_init(&w, g, items);
    while (!ckpt_buf_error(buf) && ckpt_torch_walk_next(&w, &v)) {
        if (!first)
            ckpt_buf_adds(buf, ", ");
        first = false;
        bool tuple = ckpt_torch_kind(g, v) == TORCH_TUPLE, call = ckpt_torch_kind(g, v) == TORCH_CALL;
        if (call || (tuple ? level == MAX_LEVELS || !add_array(g, v, level + 1, buf) : !ckpt_torch_add_json(g, v, buf)))
            return false;
    }
    ckpt_buf_addc(buf, ']');
    return true;
}

static void add_json_string(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    const char *text = ckpt_torch_str(g, v, &len);
    ckpt_buf_add_json_string(buf, text, len);
}

/* "cuda:0" */
static void add_device(const struct torch_graph *g, torch_value args, struct ckpt_buf *buf)
{
    add_json_string(g, ckpt_torch_item(g, args, 0), buf);
    if (ckpt_torch_count(g, args) < 2 || ckpt_buf_error(buf))
        return;
    buf->len--;
    ckpt_buf_addc(buf, ':');
    ckpt_torch_int_text(g, ckpt_torch_item(g, args, 1), buf);
    ckpt_buf_addc(buf, '"');
}

static bool add_called(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    torch_value args = ckpt_torch_args(g, v);
    switch (ckpt_torch_global_of(g, v)->meaning) {
    case TORCH_IS_SIZE:
        return add_array(g, ckpt_torch_item(g, args, 0), 0, buf);
    case TORCH_IS_SET:
        return add_array(g, ckpt_torch_count(g, args) ? ckpt_torch_item(g, args, 0) : args, 0, buf);
    case TORCH_IS_DEVICE:
        add_device(g, args, buf);
        return true;
    case TORCH_IS_LAYOUT:
        add_json_string(g, ckpt_torch_item(g, args, 0), buf);
        return true;
    default:
        return false;
    }
}

bool ckpt_torch_add_json(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_NONE:
        ckpt_buf_adds(buf, "null");
        return true;
    case TORCH_BOOL:
        ckpt_buf_adds(buf, ckpt_torch_truth(g, v) ? "true" : "false");
        return true;
    case TORCH_INT:
        ckpt_torch_int_text(g, v, buf);
        return true;
    case TORCH_FLOAT:
        ckpt_add_json_double(buf, ckpt_torch_float(g, v));
        return true;
    case TORCH_STR:
        add_json_string(g, v, buf);
        return true;
    case TORCH_GLOBAL:
        if (!ckpt_torch_is(g, v, TORCH_GLOBAL, TORCH_IS_DTYPE))
            return false;
        ckpt_buf_addf(buf, "\"torch.%s\"", ckpt_torch_global_of(g, v)->name);
        return true;
    case TORCH_CALL:
        return add_called(g, v, buf);
    default:
        return false;
    }
}

/* --- str() --- */

/* repr() of a string. */
static void add_quoted(struct ckpt_buf *buf, const char *text, size_t len)
{
    char quote = memchr(text, '\'', len) && !memchr(text, '"', len) ? '"' : '\'';
    ckpt_buf_addc(buf, quote);
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)text[i], next = i + 1 < len ? (uint8_t)text[i + 1] : 0;
        if (c == '\n' || c == '\r' || c == '\t')
            ckpt_buf_addf(buf, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c < 0x20 || c == 0x7f)
            ckpt_buf_addf(buf, "\\x%02x", c);
        else if (c == 0xc2 && (next <= 0xa0 || next == 0xad)) { /* controls, and spaces that are not seen */
            ckpt_buf_addf(buf, "\\x%02x", next);
            i++;
        } else {
            if (c == (uint8_t)quote || c == '\\')
                ckpt_buf_addc(buf, '\\');
            ckpt_buf_addc(buf, (char)c);
        }
    }
    ckpt_buf_addc(buf, quote);
}

static void add_repr(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    if (ckpt_torch_kind(g, v) == TORCH_STR) {
        const char *text = ckpt_torch_str(g, v, &len);
        add_quoted(buf, text, len);
    } else
        ckpt_torch_add_str(g, v, buf);
}

/* (1, 'a') and (1,); the pickle machine bounds how deep they are. */
static void add_tuple(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    uint32_t count = ckpt_torch_count(g, v);
    ckpt_buf_addc(buf, '(');
    for (uint32_t i = 0; i < count; i++) {
        if (i)
            ckpt_buf_adds(buf, ", ");
        add_repr(g, ckpt_torch_item(g, v, i), buf);
    }
    ckpt_buf_adds(buf, count == 1 ? ",)" : ")");
}

void ckpt_torch_add_str(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    const char *text;
    double d;
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_STR:
        text = ckpt_torch_str(g, v, &len);
        ckpt_buf_add(buf, text, len);
        return;
    case TORCH_BOOL:
        ckpt_buf_adds(buf, ckpt_torch_truth(g, v) ? "True" : "False");
        return;
    case TORCH_INT:
        ckpt_torch_int_text(g, v, buf);
        return;
    case TORCH_FLOAT:
        d = ckpt_torch_float(g, v);
        if (isfinite(d))
            ckpt_add_json_double(buf, d);
        else
            ckpt_buf_adds(buf, isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
        return;
    case TORCH_TUPLE:
        add_tuple(g, v, buf);
        return;
    default:
        ckpt_buf_adds(buf, "None");
    }
}

/* --- bytes --- */

static void add_latin1(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    const uint8_t *p = (const uint8_t *)ckpt_torch_str(g, v, &len);
    if (ckpt_buf_reserve(buf, len) < 0)
        return;
    for (size_t i = 0; i < len; i++) {
        ckpt_buf_addc(buf, (char)(p[i] < 0x80 ? p[i] : p[i] << 6 | (p[i + 1] & 0x3f)));
        i += p[i] >= 0x80;
    }
}

bool ckpt_torch_add_bytes(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    if (ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTEARRAY) && ckpt_torch_count(g, ckpt_torch_args(g, v)) == 1)
        v = ckpt_torch_item(g, ckpt_torch_args(g, v), 0);
    if (!ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTEARRAY) && !ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_ENCODE) &&
        !ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTES))
        return false;
    if (ckpt_torch_count(g, ckpt_torch_args(g, v)))
        add_latin1(g, ckpt_torch_item(g, ckpt_torch_args(g, v), 0), buf);
    return true;
}
