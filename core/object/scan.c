/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/object/record.h"

#define MAX_NESTING 64

int ckpt_scan_fail(struct ckpt_scan *s, const char *what)
{
    return ckpt_fail(s->err, EUCLEAN, "the manifest has a malformed line: %s", what);
}

/* The next byte, not taken; -1 at the end. */
static int peek_byte(const struct ckpt_scan *s)
{
    return s->p < s->end ? (uint8_t)*s->p : -1;
}

static bool is_space(int c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The first byte behind white space, not taken; -1 at the end. */
static int peek_token(struct ckpt_scan *s)
{
    while (is_space(peek_byte(s)))
        s->p++;
    return peek_byte(s);
}

bool ckpt_scan_take(struct ckpt_scan *s, char c)
{
    if (peek_token(s) != c)
        return false;
    s->p++;
    return true;
}

int ckpt_scan_member(struct ckpt_scan *s, bool *first, struct ckpt_buf *key)
{
    if (ckpt_scan_take(s, '}'))
        return 0;
    if (!*first && !ckpt_scan_take(s, ','))
        return ckpt_scan_fail(s, "a comma is missing");
    *first = false;
    int r = ckpt_scan_string(s, key);
    if (r < 0)
        return r;
    return ckpt_scan_take(s, ':') ? 1 : ckpt_scan_fail(s, "a colon is missing");
}

/* --- strings --- */

/* -1: not a digit. */
static int hex_digit(int c)
{
    if (ckpt_is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool take_hex4(struct ckpt_scan *s, uint32_t *ret)
{
    *ret = 0;
    for (unsigned i = 0; i < 4; i++, s->p++) {
        int d = hex_digit(peek_byte(s));
        if (d < 0)
            return false;
        *ret = *ret << 4 | (uint32_t)d;
    }
    return true;
}

static void add_character(struct ckpt_buf *buf, uint32_t c)
{
    static const uint8_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    char bytes[4];
    unsigned more = (c >= 0x80) + (c >= 0x800) + (c >= 0x10000); /* bytes behind the first */
    bytes[0] = (char)(lead[more] | c >> 6 * more);
    for (unsigned i = 1; i <= more; i++)
        bytes[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    ckpt_buf_add(buf, bytes, more + 1);
}

static bool is_high_surrogate(uint32_t c)
{
    return c >= 0xd800 && c < 0xdc00;
}

static bool is_low_surrogate(uint32_t c)
{
    return c >= 0xdc00 && c < 0xe000;
}

/* Of \uXXXX, with its second half where it has one: behind the first four digits. */
static int take_unicode(struct ckpt_scan *s, uint32_t c, struct ckpt_buf *ret)
{
    uint32_t low = 0;
    bool another = s->end - s->p > 1 && s->p[0] == '\\' && s->p[1] == 'u';
    if (is_high_surrogate(c) && another) {
        s->p += 2;
        if (!take_hex4(s, &low) || !is_low_surrogate(low))
            return ckpt_scan_fail(s, "a string has half of a surrogate pair");
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
    }
    if (!c || is_high_surrogate(c) || is_low_surrogate(c))
        return ckpt_scan_fail(s, "a string has a character that none can have");
    add_character(ret, c);
    return 0;
}

/* Behind a backslash. Without ret, halves of surrogate pairs may stand alone, as Python writes them. */
static int take_escape(struct ckpt_scan *s, struct ckpt_buf *ret)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = s->p < s->end ? *s->p++ : 0;
    const char *name = c ? strchr(names, c) : NULL;
    uint32_t code;
    if (name) {
        if (ret)
            ckpt_buf_addc(ret, values[name - names]);
        return 0;
    }
    if (c != 'u' || !take_hex4(s, &code))
        return ckpt_scan_fail(s, "a string has an unknown escape");
    return ret ? take_unicode(s, code, ret) : 0;
}

/* Bytes of the character that comes; 0: a string cannot have it. */
static size_t character_length(const struct ckpt_scan *s)
{
    uint8_t c = (uint8_t)*s->p;
    if (c < 0x20)
        return 0;
    if (c < 0x80)
        return 1;
    return ckpt_utf8_length((const uint8_t *)s->p, (size_t)(s->end - s->p));
}

/* The string that comes next, decoded into ret, or only stepped over. */
static int take_string(struct ckpt_scan *s, struct ckpt_buf *ret)
{
    if (!ckpt_scan_take(s, '"'))
        return ckpt_scan_fail(s, "a string is missing");
    for (const char *run = s->p;; run = s->p) {
        while (s->p < s->end && *s->p != '"' && *s->p != '\\') {
            size_t n = character_length(s);
            if (!n)
                return ckpt_scan_fail(s, "a string is not UTF-8, or has a control character");
            s->p += n;
        }
        if (s->p == s->end)
            return ckpt_scan_fail(s, "a string does not end");
        if (ret)
            ckpt_buf_add(ret, run, (size_t)(s->p - run));
        if (*s->p++ == '"')
            return 0;
        int r = take_escape(s, ret);
        if (r < 0)
            return r;
    }
}

int ckpt_scan_string(struct ckpt_scan *s, struct ckpt_buf *ret)
{
    ret->len = 0;
    int r = take_string(s, ret);
    if (r < 0)
        return r;
    ckpt_buf_addc(ret, 0);
    if (ckpt_buf_error(ret))
        return ckpt_no_memory(s->err);
    ret->len--;
    return 0;
}

/* --- numbers --- */

int ckpt_scan_u64(struct ckpt_scan *s, uint64_t max, uint64_t *ret)
{
    uint64_t n = 0;
    int first = peek_token(s);
    const char *begin = s->p;
    for (; ckpt_is_digit(peek_byte(s)); s->p++)
        if (ckpt_mul(n, 10, &n) || ckpt_add(n, (uint64_t)(*s->p - '0'), &n))
            return ckpt_scan_fail(s, "a number is too large");
    bool leading_zero = first == '0' && s->p - begin > 1;
    if (s->p == begin || leading_zero)
        return ckpt_scan_fail(s, "a whole number is missing");
    if (n > max)
        return ckpt_scan_fail(s, "a number is too large");
    *ret = n;
    return 0;
}

int ckpt_scan_i64(struct ckpt_scan *s, int64_t *ret)
{
    bool negative = ckpt_scan_take(s, '-');
    uint64_t n;
    int r = ckpt_scan_u64(s, INT64_MAX, &n);
    if (r < 0)
        return r;
    *ret = negative ? -(int64_t)n : (int64_t)n;
    return 0;
}

static bool take_word(struct ckpt_scan *s, const char *word)
{
    size_t n = strlen(word);
    if (peek_token(s) < 0 || (size_t)(s->end - s->p) < n || memcmp(s->p, word, n))
        return false;
    s->p += n;
    return true;
}

int ckpt_scan_bool(struct ckpt_scan *s, bool *ret)
{
    *ret = take_word(s, "true");
    if (*ret || take_word(s, "false"))
        return 0;
    return ckpt_scan_fail(s, "true or false is missing");
}

static bool take_digits(struct ckpt_scan *s)
{
    const char *begin = s->p;
    while (ckpt_is_digit(peek_byte(s)))
        s->p++;
    return s->p > begin;
}

/* The next byte where it is one of these; without white space before it, which no number has inside. */
static bool take_one_of(struct ckpt_scan *s, const char *bytes)
{
    int c = peek_byte(s);
    bool found = c > 0 && strchr(bytes, c);
    s->p += found;
    return found;
}

/* A number, or a word. */
static bool take_plain(struct ckpt_scan *s)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (take_word(s, words[i]))
            return true;
    take_one_of(s, "-");
    const char *begin = s->p;
    if (!take_digits(s))
        return false;
    bool leading_zero = *begin == '0' && s->p - begin > 1;
    if (leading_zero)
        return false;
    if (take_one_of(s, ".") && !take_digits(s))
        return false;
    if (!take_one_of(s, "eE"))
        return true;
    take_one_of(s, "+-");
    return take_digits(s);
}

/* --- any value --- */

static int take_scalar(struct ckpt_scan *s, struct ckpt_buf *text)
{
    int c = peek_token(s);
    const char *begin = s->p;
    int r = 0;
    if (c == '"')
        r = take_string(s, NULL);
    else if (!take_plain(s))
        r = ckpt_scan_fail(s, "a value is missing");
    if (r < 0)
        return r;
    if (text)
        ckpt_buf_add(text, begin, (size_t)(s->p - begin));
    return 0;
}

/* A character of structure, into the text too. */
static bool take_mark(struct ckpt_scan *s, struct ckpt_buf *text, char c)
{
    if (!ckpt_scan_take(s, c))
        return false;
    if (text)
        ckpt_buf_addc(text, c);
    return true;
}

/* The containers that are open, by the characters that close them. */
struct nesting {
    char close[MAX_NESTING];
    unsigned depth;
};

/* The name of an object's member and its colon. */
static int take_member_name(struct ckpt_scan *s, struct ckpt_buf *text)
{
    if (peek_token(s) != '"')
        return ckpt_scan_fail(s, "a member's name is missing");
    int r = take_scalar(s, text);
    if (r < 0)
        return r;
    return take_mark(s, text, ':') ? 0 : ckpt_scan_fail(s, "a colon is missing");
}

/* A scalar, or the beginning of a container: 1. */
static int take_value_start(struct ckpt_scan *s, struct ckpt_buf *text, struct nesting *n)
{
    char close = 0;
    if (take_mark(s, text, '{'))
        close = '}';
    else if (take_mark(s, text, '['))
        close = ']';
    if (!close)
        return take_scalar(s, text);
    if (n->depth == MAX_NESTING)
        return ckpt_scan_fail(s, "nested too deeply");
    n->close[n->depth++] = close;
    return 1;
}

/* What comes behind a value: a comma, or the ends of containers. */
static int take_value_end(struct ckpt_scan *s, struct ckpt_buf *text, struct nesting *n)
{
    while (n->depth && !take_mark(s, text, ',')) {
        if (!take_mark(s, text, n->close[n->depth - 1]))
            return ckpt_scan_fail(s, "a comma is missing");
        n->depth--;
    }
    return 0;
}

int ckpt_scan_value(struct ckpt_scan *s, struct ckpt_buf *text)
{
    struct nesting n = {.depth = 0};
    bool opened = false; /* a container, in which there is nothing yet */
    do {
        int r = 0;
        bool empty = opened && take_mark(s, text, n.close[n.depth - 1]);
        if (empty)
            n.depth--;
        else {
            bool in_object = n.depth && n.close[n.depth - 1] == '}';
            if (in_object)
                r = take_member_name(s, text);
            if (r == 0)
                r = take_value_start(s, text, &n);
        }
        opened = r == 1;
        if (r == 0)
            r = take_value_end(s, text, &n);
        if (r < 0)
            return r;
    } while (n.depth);
    if (text && ckpt_buf_error(text))
        return ckpt_no_memory(s->err);
    return 0;
}

bool ckpt_manifest_text_ok(const char *text, size_t len)
{
    struct ckpt_scan s = {text, text + len, NULL};
    int first = peek_token(&s);
    if (len > CKPT_MANIFEST_TEXT_MAX || first == '{' || first == '[')
        return false;
    if (ckpt_scan_value(&s, NULL) < 0)
        return false;
    return peek_token(&s) < 0;
}
