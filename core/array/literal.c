/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/literal.h"

#include "core/base/util.h"

int ckpt_literal_bad(struct ckpt_literal *l, const char *what)
{
    return ckpt_fail(l->err, EUCLEAN, "not a valid .npy header: %s", what);
}

int ckpt_literal_too_long(struct ckpt_literal *l)
{
    return ckpt_fail(l->err, EOPNOTSUPP, "the .npy header has a descr or a name of more than %zu bytes",
                     sizeof((struct ckpt_text *)NULL)->data - 1);
}

void ckpt_text_add(struct ckpt_text *t, const char *p, size_t n)
{
    if (t->len + n < sizeof t->data)
        memcpy(t->data + t->len, p, n);
    t->len += n; /* beyond the end: ckpt_text_ok() says so */
}

bool ckpt_text_ok(struct ckpt_text *t)
{
    if (t->len >= sizeof t->data)
        return false;
    t->data[t->len] = 0;
    return true;
}

void ckpt_text_adds(struct ckpt_text *t, const char *p)
{
    ckpt_text_add(t, p, strlen(p));
}

/* --- the pieces of a literal --- */

/* The next byte, not taken; -1 at the end. */
static int peek(const struct ckpt_literal *l)
{
    return l->p < l->end ? *l->p : -1;
}

int ckpt_literal_look(struct ckpt_literal *l)
{
    while (l->p < l->end && ckpt_is_one_of(*l->p, " \t\n\r\f"))
        l->p++;
    return peek(l);
}

bool ckpt_literal_take(struct ckpt_literal *l, char c)
{
    if (ckpt_literal_look(l) != c)
        return false;
    l->p++;
    return true;
}

bool ckpt_literal_word(struct ckpt_literal *l, const char *word)
{
    size_t n = strlen(word);
    ckpt_literal_look(l);
    bool is_there = (size_t)(l->end - l->p) >= n && !memcmp(l->p, word, n);
    if (!is_there)
        return false;
    l->p += n;
    return true;
}

static int take_number(struct ckpt_literal *l, uint64_t *ret)
{
    uint64_t n = 0;
    int first = ckpt_literal_look(l);
    if (!ckpt_is_digit(first))
        return ckpt_literal_bad(l, "a whole number is missing");
    for (; ckpt_is_digit(peek(l)); l->p++)
        if (ckpt_mul(n, 10, &n) || ckpt_add(n, *l->p - '0', &n))
            return ckpt_literal_bad(l, "a number is too large");
    if (n && first == '0')
        return ckpt_literal_bad(l, "a number begins with 0");
    if (l->long_ints && peek(l) == 'L')
        l->p++;
    *ret = n;
    return 0;
}

/* -1: it is no hexadecimal digit. */
static int hex_value(int c)
{
    if (ckpt_is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool take_hex(struct ckpt_literal *l, unsigned digits, uint32_t *ret)
{
    *ret = 0;
    for (unsigned i = 0; i < digits; i++, l->p++) {
        int value = hex_value(peek(l));
        if (value < 0)
            return false;
        *ret = *ret << 4 | (uint32_t)value;
    }
    return true;
}

/* Behind a backslash. */
static bool take_escape(struct ckpt_literal *l, uint32_t *ret)
{
    static const char names[] = "\\'\"nrt", values[] = "\\'\"\n\r\t";
    int c = peek(l);
    if (c < 0)
        return false;
    l->p++;
    if (ckpt_is_one_of(c, names)) {
        *ret = (uint8_t)values[strchr(names, c) - names];
        return true;
    }
    switch (c) {
    case 'x':
        return take_hex(l, 2, ret);
    case 'u':
        return take_hex(l, 4, ret);
    case 'U':
        return take_hex(l, 8, ret);
    default:
        return false;
    }
}

/* How many bytes follow the first one of a character; 0: it cannot be a first one of several. */
static unsigned bytes_after(uint32_t first)
{
    if (first < 0xc2 || first >= 0xf5)
        return 0;
    if (first < 0xe0)
        return 1;
    return first < 0xf0 ? 2 : 3;
}

/* A character that is written as several bytes. */
static bool take_utf8(struct ckpt_literal *l, uint32_t *ret)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000}; /* what needs so many bytes more */
    uint32_t c = *l->p++;
    unsigned more = bytes_after(c);
    if (!more || l->end - l->p < more)
        return false;
    c &= 0x3fu >> more;
    for (unsigned i = 0; i < more; i++, l->p++) {
        if ((*l->p & 0xc0) != 0x80)
            return false;
        c = c << 6 | (*l->p & 0x3f);
    }
    *ret = c;
    return c >= least[more];
}

static void add_character(struct ckpt_text *t, uint32_t c)
{
    static const uint8_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    unsigned more = (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    char bytes[4];
    bytes[0] = (char)(lead[more] | c >> 6 * more);
    for (unsigned i = 1; i <= more; i++)
        bytes[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    ckpt_text_add(t, bytes, more + 1);
}

/* Of Unicode: surrogates are none. NUL is, but no name has it. */
static bool is_character(uint32_t c)
{
    bool is_surrogate = c >= 0xd800 && c < 0xe000;
    return c && c <= 0x10ffff && !is_surrogate;
}

static bool take_character(struct ckpt_literal *l, uint32_t *ret)
{
    uint32_t c = *l->p;
    if (c >= 0x80 && l->utf8)
        return take_utf8(l, ret);
    l->p++;
    if (c == '\\')
        return take_escape(l, ret);
    *ret = c;
    return c != '\n' && c != '\r';
}

int ckpt_literal_string(struct ckpt_literal *l, struct ckpt_text *ret)
{
    int quote = ckpt_literal_look(l);
    if (quote != '\'' && quote != '"')
        return ckpt_literal_bad(l, "a string is missing");
    l->p++;
    ret->len = 0;
    while (l->p < l->end && *l->p != quote) {
        uint32_t c;
        if (!take_character(l, &c) || !is_character(c))
            return ckpt_literal_bad(l, "a string holds what no name can");
        add_character(ret, c);
    }
    if (l->p == l->end)
        return ckpt_literal_bad(l, "a string does not end");
    l->p++;
    return ckpt_text_ok(ret) ? 0 : ckpt_literal_too_long(l);
}

int ckpt_literal_shape(struct ckpt_literal *l, unsigned *ret_ndim, uint64_t *shape)
{
    unsigned n = 0;
    bool comma = false;
    if (!ckpt_literal_take(l, '('))
        return ckpt_literal_bad(l, "a shape is not a tuple");
    for (; !ckpt_literal_take(l, ')'); n++) {
        if (n && !comma)
            return ckpt_literal_bad(l, "a comma is missing in a shape");
        if (n == CKPT_MAX_DIMS)
            return ckpt_fail(l->err, EOPNOTSUPP, "the array has more than %d dimensions", CKPT_MAX_DIMS);
        int r = take_number(l, &shape[n]);
        if (r < 0)
            return r;
        comma = ckpt_literal_take(l, ',');
    }
    if (n == 1 && !comma)
        return ckpt_literal_bad(l, "a shape is not a tuple");
    *ret_ndim = n;
    return 0;
}
