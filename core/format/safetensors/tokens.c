/* SPDX-License-Identifier: Apache-2.0 */
#include "core/format/safetensors/tokens.h"

#include "core/base/util.h"

#define MAX_NESTING 125 /* of a member of a tensor: with what is around it 127, where the library stops */

int ckpt_tokens_fail(struct tokens *t, const char *what)
{
    if (t->error)
        return ckpt_fail(t->err, -t->error, "%s",
                         t->error == -EBADMSG ? "the file ends too early" : strerror(-t->error));
    return ckpt_fail(t->err, EUCLEAN, "not valid JSON at byte %llu: %s", (unsigned long long)(t->base + t->at), what);
}

void ckpt_tokens_seek(struct tokens *t, uint64_t off)
{
    t->error = 0;
    if (off >= t->base && off - t->base <= t->len)
        t->at = (size_t)(off - t->base);
    else {
        t->base = off;
        t->at = t->len = 0;
    }
}

/* The next byte, not taken; -1 at the end or after an error. */
static int peek(struct tokens *t)
{
    if (t->at < t->len)
        return t->window[t->at];
    size_t want = (size_t)CKPT_MIN((uint64_t)t->size, t->end - (t->base + t->len));
    if (!want || t->error)
        return -1;
    t->base += t->len;
    t->at = t->len = 0;
    ssize_t n = ckpt_file_read(t->file, t->window, want, t->base);
    if (n != (ssize_t)want) {
        t->error = n < 0 ? (int)n : -EBADMSG;
        return -1;
    }
    t->len = want;
    return t->window[0];
}

static int next(struct tokens *t)
{
    int c = peek(t);
    t->at += c >= 0;
    return c;
}

int ckpt_tokens_peek(struct tokens *t)
{
    int c;
    while ((c = peek(t)) == ' ' || c == '\n' || c == '\t' || c == '\r')
        t->at++;
    return c;
}

uint64_t ckpt_tokens_place(struct tokens *t)
{
    ckpt_tokens_peek(t);
    return t->base + t->at;
}

int ckpt_tokens_take(struct tokens *t, char c)
{
    char what[] = "'x' is missing";
    if (ckpt_tokens_peek(t) == c) {
        t->at++;
        return 0;
    }
    what[1] = c;
    return ckpt_tokens_fail(t, what);
}

int ckpt_tokens_more(struct tokens *t, char end, bool *first)
{
    bool begins = *first;
    *first = false;
    if (ckpt_tokens_peek(t) == end) {
        t->at++;
        return 0;
    }
    int r = begins ? 0 : ckpt_tokens_take(t, ',');
    return r < 0 ? r : 1;
}

/* --- strings --- */

static void add_byte(struct ckpt_buf *out, int c)
{
    if (out)
        ckpt_buf_addc(out, (char)c);
}

/* What follows the first byte of a sequence (Unicode, table 3-7). */
static int take_utf8(struct tokens *t, int lead, struct ckpt_buf *out)
{
    int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1, low = 0x80, high = 0xbf;
    if (lead < 0xc2 || lead > 0xf4)
        return ckpt_tokens_fail(t, "not UTF-8");
    if (lead == 0xe0)
        low = 0xa0; /* no overlong forms */
    else if (lead == 0xed)
        high = 0x9f; /* no surrogates */
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f; /* nothing beyond U+10FFFF */
    add_byte(out, lead);
    for (; more; more--, low = 0x80, high = 0xbf) {
        int c = next(t);
        if (c < low || c > high)
            return ckpt_tokens_fail(t, "not UTF-8");
        add_byte(out, c);
    }
    return 0;
}

static void add_utf8(struct ckpt_buf *out, uint32_t c)
{
    if (c < 0x80) {
        add_byte(out, (int)c);
        return;
    }
    static const uint8_t leads[] = {0, 0xc0, 0xe0, 0xf0};
    int more = 1 + (c >= 0x800) + (c >= 0x10000);
    add_byte(out, (int)(leads[more] | c >> 6 * more));
    while (more-- > 0)
        add_byte(out, (int)(0x80 | (c >> 6 * more & 0x3f)));
}

/* -1: it is no hexadecimal digit, or the end. */
static int hex_value(int c)
{
    if (c < 0)
        return -1;
    if (ckpt_is_digit(c))
        return c - '0';
    int lower = c | 32;
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

static int take_hex(struct tokens *t, uint32_t *ret)
{
    *ret = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_value(next(t));
        if (digit < 0)
            return ckpt_tokens_fail(t, "an escape is not four hex digits");
        *ret = *ret << 4 | (uint32_t)digit;
    }
    return 0;
}

static bool is_high_surrogate(uint32_t c)
{
    return c >= 0xd800 && c < 0xdc00;
}

static bool is_low_surrogate(uint32_t c)
{
    return c >= 0xdc00 && c < 0xe000;
}

/* The second half of a pair whose first one is *c; *c becomes the character. */
static int take_low_surrogate(struct tokens *t, uint32_t *c)
{
    uint32_t low;
    if (next(t) != '\\' || next(t) != 'u')
        return ckpt_tokens_fail(t, "an unpaired surrogate");
    int r = take_hex(t, &low);
    if (r < 0)
        return r;
    if (!is_low_surrogate(low))
        return ckpt_tokens_fail(t, "an unpaired surrogate");
    *c = 0x10000 + ((*c & 0x3ff) << 10) + (low & 0x3ff);
    return 0;
}

static int take_escape(struct tokens *t, struct ckpt_buf *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int c = next(t);
    const char *p = c > 0 ? strchr(from, c) : NULL;
    uint32_t character;
    if (p) {
        add_byte(out, to[p - from]);
        return 0;
    }
    if (c != 'u')
        return ckpt_tokens_fail(t, "an unknown escape");
    int r = take_hex(t, &character);
    if (r == 0 && is_low_surrogate(character))
        return ckpt_tokens_fail(t, "an unpaired surrogate");
    if (r == 0 && is_high_surrogate(character))
        r = take_low_surrogate(t, &character);
    if (r == 0 && out)
        add_utf8(out, character);
    return r;
}

static bool is_plain(uint8_t c)
{
    bool is_printable = c >= 0x20 && c < 0x80;
    return is_printable && c != '"' && c != '\\';
}

/* The bytes of the window that stand for themselves. */
static void take_plain(struct tokens *t, struct ckpt_buf *out)
{
    const uint8_t *p = t->window + t->at, *q = p, *end = t->window + t->len;
    while (q < end && is_plain(*q))
        q++;
    if (out)
        ckpt_buf_add(out, p, (size_t)(q - p));
    t->at += (size_t)(q - p);
}

int ckpt_tokens_string(struct tokens *t, struct ckpt_buf *out)
{
    int r = ckpt_tokens_take(t, '"');
    while (r == 0) {
        take_plain(t, out);
        int c = next(t);
        if (c == '"')
            return 0;
        if (c < 0)
            r = ckpt_tokens_fail(t, "a string does not end");
        else if (c == '\\')
            r = take_escape(t, out);
        else if (c < 0x20)
            r = ckpt_tokens_fail(t, "a control character in a string");
        else if (c >= 0x80)
            r = take_utf8(t, c, out);
        else
            add_byte(out, c); /* at the edge of the window */
    }
    return r;
}

/* --- numbers, words --- */

int ckpt_tokens_u64(struct tokens *t, uint64_t *ret)
{
    uint64_t v = 0;
    int c = ckpt_tokens_peek(t), digits = 0; /* white space goes first */
    for (c = peek(t); ckpt_is_digit(c); c = peek(t)) {
        if (digits && !v)
            return ckpt_tokens_fail(t, "a number begins with 0");
        if (ckpt_mul(v, 10, &v) || ckpt_add(v, (uint64_t)(c - '0'), &v))
            return ckpt_tokens_fail(t, "a number is 2^64 or more");
        t->at++;
        digits++;
    }
    bool goes_on = c == '.' || (c | 32) == 'e';
    if (!digits || goes_on)
        return ckpt_tokens_fail(t, "not a whole number");
    *ret = v;
    return 0;
}

static int take_digits(struct tokens *t, struct ckpt_buf *out)
{
    if (!ckpt_is_digit(peek(t)))
        return ckpt_tokens_fail(t, "not a number");
    while (ckpt_is_digit(peek(t)))
        add_byte(out, next(t));
    return 0;
}

static int take_number(struct tokens *t, struct ckpt_buf *out)
{
    if (peek(t) == '-')
        add_byte(out, next(t));
    int r = 0;
    if (peek(t) == '0')
        add_byte(out, next(t)); /* a second digit would be the next token, which cannot be one */
    else
        r = take_digits(t, out);
    if (r == 0 && peek(t) == '.') {
        add_byte(out, next(t));
        r = take_digits(t, out);
    }
    if (r == 0 && (peek(t) | 32) == 'e') {
        add_byte(out, next(t));
        if (peek(t) == '+' || peek(t) == '-')
            add_byte(out, next(t));
        r = take_digits(t, out);
    }
    return r;
}

static int take_word(struct tokens *t, const char *word, struct ckpt_buf *out)
{
    for (const char *p = word; *p; p++)
        if (next(t) != *p)
            return ckpt_tokens_fail(t, "not a value");
    if (out)
        ckpt_buf_adds(out, word);
    return 0;
}

/* --- values --- */

static int take_literal(struct tokens *t, struct ckpt_buf *out)
{
    struct ckpt_buf string = {.max = out ? out->max : 0};
    switch (ckpt_tokens_peek(t)) {
    case '"': {
        int r = ckpt_tokens_string(t, out ? &string : NULL);
        if (r == 0 && out) {
            ckpt_buf_add_json_string(out, string.data ? (char *)string.data : "", string.len);
            if (ckpt_buf_error(&string))
                out->error = ckpt_buf_error(&string);
        }
        ckpt_buf_clear(&string);
        return r;
    }
    case 't':
        return take_word(t, "true", out);
    case 'f':
        return take_word(t, "false", out);
    case 'n':
        return take_word(t, "null", out);
    default:
        return take_number(t, out);
    }
}

static int take_key(struct tokens *t, struct ckpt_buf *out)
{
    if (ckpt_tokens_peek(t) != '"')
        return ckpt_tokens_fail(t, "a member's name is missing");
    int r = take_literal(t, out);
    if (r == 0)
        r = ckpt_tokens_take(t, ':');
    if (r == 0)
        add_byte(out, ':');
    return r;
}

int ckpt_tokens_value(struct tokens *t, struct ckpt_buf *out)
{
    char ends[MAX_NESTING];
    unsigned depth = 0;
    bool first = false;
    do {
        int c = ckpt_tokens_peek(t), r = 0;
        if (c == '{' || c == '[') {
            if (depth == MAX_NESTING)
                return ckpt_tokens_fail(t, "nested too deeply");
            add_byte(out, next(t));
            ends[depth++] = c == '{' ? '}' : ']';
            first = true;
        } else
            r = take_literal(t, out);
        while (r == 0 && depth) {
            bool begins = first;
            r = ckpt_tokens_more(t, ends[depth - 1], &first);
            if (r == 0)
                add_byte(out, ends[--depth]);
            else if (r == 1 && !begins)
                add_byte(out, ',');
            if (r == 1) {
                r = ends[depth - 1] == '}' ? take_key(t, out) : 0;
                break;
            }
        }
        if (r < 0)
            return r;
    } while (depth);
    return 0;
}

int ckpt_tokens_end(struct tokens *t)
{
    return ckpt_tokens_peek(t) < 0 && !t->error ? 0 : ckpt_tokens_fail(t, "something follows its end");
}
