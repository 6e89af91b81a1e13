/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/pytorch/text.h"

#include "core/array/dtype.h"
#include "core/base/util.h"
#include "core/format/pytorch/dates.h"

#include <math.h>
#include <string.h>

/* --- JSON --- */

#define MAX_BYTES   ((size_t)65536) /* of a key */
#define MAX_LEVELS  8               /* of tuples in a set */
#define MAX_MEMBERS 8               /* of a member of a member of a name */

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
        bool tuple = ckpt_torch_kind(g, v) == TORCH_TUPLE;
        bool nested = ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SET) || ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_SIZE);
        if (nested ||
            (tuple ? level == MAX_LEVELS || !add_array(g, v, level + 1, buf) : !ckpt_torch_add_json(g, v, buf)))
            return false;
    }
    ckpt_buf_addc(buf, ']');
    return true;
}

static void add_name(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    ckpt_torch_add_class(g, v, &text);
    if (ckpt_buf_error(&text))
        buf->error = ckpt_buf_error(&text);
    else
        ckpt_buf_add_json_string(buf, (char *)text.data, text.len);
    ckpt_buf_clear(&text);
}

static void add_json_string(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    const char *text = ckpt_torch_str(g, v, &len);
    ckpt_buf_add_json_string(buf, text, len);
}

/* A quoted string gets more at its end. */
static void reopen(struct ckpt_buf *buf)
{
    if (!ckpt_buf_error(buf))
        buf->len--;
}

/* "cuda:0" */
static void add_device(const struct torch_graph *g, torch_value args, struct ckpt_buf *buf)
{
    add_json_string(g, ckpt_torch_item(g, args, 0), buf);
    if (ckpt_torch_count(g, args) < 2)
        return;
    reopen(buf);
    ckpt_buf_addc(buf, ':');
    ckpt_torch_int_text(g, ckpt_torch_item(g, args, 1), buf);
    ckpt_buf_addc(buf, '"');
}

static void add_quoted_buf(const struct ckpt_buf *text, struct ckpt_buf *buf)
{
    ckpt_buf_add_json_string(buf, text->len ? (char *)text->data : "", text->len);
}

/* The parts of a path, of which the first may be its root. */
static bool add_path(const struct torch_graph *g, torch_value args, char separator, struct ckpt_buf *buf)
{
    struct ckpt_buf text = {.max = buf->max};
    size_t len;
    for (uint32_t i = 0; i < ckpt_torch_count(g, args); i++) {
        const char *part = ckpt_torch_str(g, ckpt_torch_item(g, args, i), &len);
        bool separated = !text.len || text.data[text.len - 1] == '/' || text.data[text.len - 1] == (uint8_t)separator;
        if (!separated)
            ckpt_buf_addc(&text, separator);
        ckpt_buf_add(&text, part, len);
    }
    if (!text.len)
        ckpt_buf_addc(&text, '.');
    int error = ckpt_buf_error(&text);
    if (error)
        buf->error = error;
    else
        add_quoted_buf(&text, buf);
    ckpt_buf_clear(&text);
    return true;
}

static bool add_date(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    struct ckpt_buf data = {.max = 64}, text = CKPT_BUF_INIT;
    torch_value args = ckpt_torch_args(g, v);
    if (ckpt_torch_count(g, args) && ckpt_torch_is_bytes(g, ckpt_torch_item(g, args, 0)))
        ckpt_torch_add_bytes(g, ckpt_torch_item(g, args, 0), &data);
    bool is_date = !ckpt_buf_error(&data) && ckpt_torch_add_date(g, v, &data, &text);
    if (is_date)
        add_quoted_buf(&text, buf);
    ckpt_buf_clear(&data);
    ckpt_buf_clear(&text);
    return is_date;
}

/* "range(0, 3)", "slice(0, None, 2)" */
static bool add_range(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    torch_value args = ckpt_torch_args(g, v), step = ckpt_torch_item(g, args, 2);
    bool is_range = ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_RANGE);
    int64_t n;
    for (uint32_t i = 0; i < 3; i++)
        if (ckpt_torch_kind(g, ckpt_torch_item(g, args, i)) == TORCH_INT &&
            ckpt_torch_int_width(g, ckpt_torch_item(g, args, i)) > 64)
            return false;
    bool plain = is_range && ckpt_torch_kind(g, step) == TORCH_INT && ckpt_torch_int(g, step, &n) && n == 1;
    ckpt_buf_adds(buf, is_range ? "\"range(" : "\"slice(");
    for (uint32_t i = 0; i < (plain ? 2 : 3); i++) {
        if (i)
            ckpt_buf_adds(buf, ", ");
        (void)ckpt_torch_add_str(g, ckpt_torch_item(g, args, i), buf);
    }
    ckpt_buf_adds(buf, ")\"");
    return true;
}

static bool add_called(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    torch_value args = ckpt_torch_args(g, v);
    enum torch_meaning meaning = ckpt_torch_global_of(g, v)->meaning;
    switch (meaning) {
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
    case TORCH_IS_GETATTR:
        add_name(g, v, buf);
        return true;
    case TORCH_IS_PATH:
    case TORCH_IS_WINDOWS_PATH:
        return add_path(g, args, meaning == TORCH_IS_PATH ? '/' : '\\', buf);
    case TORCH_IS_DATETIME:
    case TORCH_IS_DATE:
    case TORCH_IS_TIME:
    case TORCH_IS_TIMEDELTA:
    case TORCH_IS_TIMEZONE:
        return add_date(g, v, buf);
    case TORCH_IS_RANGE:
    case TORCH_IS_SLICE:
        return add_range(g, v, buf);
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
        if (ckpt_torch_int_width(g, v) > TORCH_MAX_INT)
            buf->error = -EFBIG;
        else
            ckpt_torch_int_text(g, v, buf);
        return true;
    case TORCH_FLOAT:
        ckpt_add_json_double(buf, ckpt_torch_float(g, v));
        return true;
    case TORCH_STR:
        add_json_string(g, v, buf);
        return true;
    case TORCH_GLOBAL:
        add_name(g, v, buf);
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
        (void)ckpt_torch_add_str(g, v, buf);
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

/* b'a\xff' */
static void add_bytes_repr(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    struct ckpt_buf bytes = {.max = MAX_BYTES};
    ckpt_torch_add_bytes(g, v, &bytes);
    ckpt_buf_adds(buf, "b'");
    for (size_t i = 0; i < bytes.len; i++) {
        uint8_t c = bytes.data[i];
        if (c < 0x20 || c >= 0x7f)
            ckpt_buf_addf(buf, "\\x%02x", c);
        else
            ckpt_buf_addf(buf, "%s%c", c == '\'' || c == '\\' ? "\\" : "", c);
    }
    ckpt_buf_addc(buf, '\'');
    if (ckpt_buf_error(&bytes))
        buf->error = ckpt_buf_error(&bytes);
    ckpt_buf_clear(&bytes);
}

static void add_float(double d, struct ckpt_buf *buf)
{
    if (isfinite(d))
        ckpt_add_json_double(buf, d);
    else
        ckpt_buf_adds(buf, isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
}

/* A path, a device: what its JSON says, without quotes. False: there is none, and nothing is appended. */
static bool add_called_str(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    struct ckpt_buf json = {.max = 2 * MAX_BYTES};
    bool has = add_called(g, v, &json);
    if (ckpt_buf_error(&json))
        buf->error = ckpt_buf_error(&json);
    else if (has) {
        bool quoted = json.len >= 2 && *json.data == '"';
        ckpt_buf_add(buf, json.data + quoted, json.len - 2 * quoted);
    }
    ckpt_buf_clear(&json);
    return has;
}

bool ckpt_torch_add_str(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    const char *text;
    switch (ckpt_torch_kind(g, v)) {
    case TORCH_NONE:
        ckpt_buf_adds(buf, "None");
        return true;
    case TORCH_STR:
        text = ckpt_torch_str(g, v, &len);
        ckpt_buf_add(buf, text, len);
        return true;
    case TORCH_BOOL:
        ckpt_buf_adds(buf, ckpt_torch_truth(g, v) ? "True" : "False");
        return true;
    case TORCH_INT:
        if (ckpt_torch_int_width(g, v) > TORCH_MAX_INT)
            buf->error = -EFBIG;
        else
            ckpt_torch_int_text(g, v, buf);
        return true;
    case TORCH_FLOAT:
        add_float(ckpt_torch_float(g, v), buf);
        return true;
    case TORCH_BYTES:
        add_bytes_repr(g, v, buf);
        return true;
    case TORCH_TUPLE:
        add_tuple(g, v, buf);
        return true;
    case TORCH_GLOBAL:
        ckpt_torch_add_class(g, v, buf);
        return true;
    case TORCH_CALL:
        if (ckpt_torch_is_bytes(g, v)) {
            add_bytes_repr(g, v, buf);
            return true;
        }
        if (add_called_str(g, v, buf))
            return true;
        ckpt_torch_add_class(g, ckpt_torch_class(g, v), buf);
        return false;
    case TORCH_OBJECT:
        ckpt_torch_add_class(g, ckpt_torch_class(g, v), buf);
        return false;
    default:
        ckpt_buf_adds(buf, ckpt_torch_kind(g, v) == TORCH_STORAGE ? "storage" : "tensor");
        return false;
    }
}

/* --- names --- */

static void add_class(const struct torch_graph *g, torch_value class, unsigned level, struct ckpt_buf *buf)
{
    size_t len;
    if (ckpt_torch_kind(g, class) == TORCH_GLOBAL)
        ckpt_torch_add_name(g, class, buf);
    else if (!ckpt_torch_is(g, class, TORCH_CALL, TORCH_IS_GETATTR) || level == MAX_MEMBERS)
        ckpt_buf_adds(buf, "?");
    else {
        add_class(g, ckpt_torch_item(g, ckpt_torch_args(g, class), 0), level + 1, buf);
        const char *name = ckpt_torch_str(g, ckpt_torch_item(g, ckpt_torch_args(g, class), 1), &len);
        ckpt_buf_addc(buf, '.');
        ckpt_buf_add(buf, name, CKPT_MIN(len, (size_t)1024));
    }
}

void ckpt_torch_add_class(const struct torch_graph *g, torch_value class, struct ckpt_buf *buf)
{
    add_class(g, class, 0, buf);
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

/* What a bytearray is made of. */
static torch_value inner_bytes(const struct torch_graph *g, torch_value v)
{
    bool wraps = ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTEARRAY) && ckpt_torch_count(g, ckpt_torch_args(g, v)) == 1;
    return wraps ? ckpt_torch_item(g, ckpt_torch_args(g, v), 0) : v;
}

bool ckpt_torch_is_bytes(const struct torch_graph *g, torch_value v)
{
    size_t len;
    v = inner_bytes(g, v);
    if (ckpt_torch_kind(g, v) == TORCH_BYTES)
        return ckpt_torch_bytes(g, v, &len);
    return ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTEARRAY) || ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_ENCODE) ||
           ckpt_torch_is(g, v, TORCH_CALL, TORCH_IS_BYTES);
}

void ckpt_torch_add_bytes(const struct torch_graph *g, torch_value v, struct ckpt_buf *buf)
{
    size_t len;
    v = inner_bytes(g, v);
    if (ckpt_torch_kind(g, v) == TORCH_BYTES) {
        const uint8_t *bytes = ckpt_torch_bytes(g, v, &len);
        if (bytes)
            ckpt_buf_add(buf, bytes, len);
    } else if (ckpt_torch_count(g, ckpt_torch_args(g, v)))
        add_latin1(g, ckpt_torch_item(g, ckpt_torch_args(g, v), 0), buf);
}

void ckpt_torch_add_character(struct ckpt_buf *buf, uint32_t c)
{
    if (c < 0x80)
        ckpt_buf_addc(buf, (char)c);
    else if (c < 0x800) {
        ckpt_buf_addc(buf, (char)(0xc0 | c >> 6));
        ckpt_buf_addc(buf, (char)(0x80 | (c & 0x3f)));
    } else if (c < 0x10000) {
        ckpt_buf_addc(buf, (char)(0xe0 | c >> 12));
        ckpt_buf_addc(buf, (char)(0x80 | (c >> 6 & 0x3f)));
        ckpt_buf_addc(buf, (char)(0x80 | (c & 0x3f)));
    } else {
        ckpt_buf_addc(buf, (char)(0xf0 | (c >> 18 & 7)));
        ckpt_buf_addc(buf, (char)(0x80 | (c >> 12 & 0x3f)));
        ckpt_buf_addc(buf, (char)(0x80 | (c >> 6 & 0x3f)));
        ckpt_buf_addc(buf, (char)(0x80 | (c & 0x3f)));
    }
}
