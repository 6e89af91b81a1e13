/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/util.h"
#include "core/object/record.h"

#define MAX_NESTING 64

int ckpt_scan_fail(struct ckpt_scan *s, const char *what)
{
    return ckpt_fail(s->err, EUCLEAN, "the manifest has a malformed line: %s", what);
}

static int look(struct ckpt_scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
        s->p++;
    return s->p < s->end ? (uint8_t)*s->p : -1;
}

bool ckpt_scan_take(struct ckpt_scan *s, char c)
{
    if (look(s) != c)
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

static bool take_hex4(struct ckpt_scan *s, uint32_t *ret)
{
    *ret = 0;
    for (unsigned i = 0; i < 4; i++, s->p++) {
        int c = s->p < s->end ? (uint8_t)*s->p : 0;
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
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
    unsigned more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    bytes[0] = (char)(lead[more] | c >> 6 * more);
    for (unsigned i = 1; i <= more; i++)
        bytes[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    ckpt_buf_add(buf, bytes, more + 1);
}

/* Behind a backslash. Without ret, halves of surrogate pairs may stand alone, as Python writes them. */
static int take_escape(struct ckpt_scan *s, struct ckpt_buf *ret)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = s->p < s->end ? *s->p++ : 0;
    const char *name = c ? strchr(names, c) : NULL;
    uint32_t high, low = 0;
    if (name) {
        if (ret)
            ckpt_buf_addc(ret, values[name - names]);
        return 0;
    }
    if (c != 'u' || !take_hex4(s, &high))
        return ckpt_scan_fail(s, "a string has an unknown escape");
    if (!ret)
        return 0;
    if (high >= 0xd800 && high < 0xdc00 && s->end - s->p > 1 && s->p[0] == '\\' && s->p[1] == 'u') {
        s->p += 2;
        if (!take_hex4(s, &low) || low < 0xdc00 || low > 0xdfff)
            return ckpt_scan_fail(s, "a string has half of a surrogate pair");
        high = 0x10000 + ((high & 0x3ff) << 10 | (low & 0x3ff));
    }
    if (!high || (high >= 0xd800 && high < 0xe000))
        return ckpt_scan_fail(s, "a string has a character that none can have");
    add_character(ret, high);
    return 0;
}

/* The string that comes next, decoded into ret, or only stepped over. */
static int take_string(struct ckpt_scan *s, struct ckpt_buf *ret)
{
    if (!ckpt_scan_take(s, '"'))
        return ckpt_scan_fail(s, "a string is missing");
    for (const char *run = s->p;; run = s->p) {
        while (s->p < s->end && *s->p != '"' && *s->p != '\\') {
            uint8_t c = (uint8_t)*s->p;
            size_t n = c < 0x20 ? 0 : c < 0x80 ? 1 : ckpt_utf8_length((const uint8_t *)s->p, (size_t)(s->end - s->p));
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
        return ckpt_fail(s->err, ENOMEM, "out of memory");
    ret->len--;
    return 0;
}

/* --- numbers --- */

int ckpt_scan_u64(struct ckpt_scan *s, uint64_t max, uint64_t *ret)
{
    uint64_t n = 0;
    int first = look(s);
    const char *begin = s->p;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if (ckpt_mul(n, 10, &n) || ckpt_add(n, (uint64_t)(*s->p - '0'), &n))
            return ckpt_scan_fail(s, "a number is too large");
    if (s->p == begin || (first == '0' && s->p - begin > 1))
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
    if (r == 0)
        *ret = negative ? -(int64_t)n : (int64_t)n;
    return r;
}

static bool take_word(struct ckpt_scan *s, const char *word)
{
    size_t n = strlen(word);
    if (look(s) < 0 || (size_t)(s->end - s->p) < n || memcmp(s->p, word, n))
        return false;
    s->p += n;
    return true;
}

int ckpt_scan_bool(struct ckpt_scan *s, bool *ret)
{
    *ret = take_word(s, "true");
    return *ret || take_word(s, "false") ? 0 : ckpt_scan_fail(s, "true or false is missing");
}

static bool take_digits(struct ckpt_scan *s)
{
    const char *begin = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return s->p > begin;
}

/* A number, or a word. */
static bool take_plain(struct ckpt_scan *s)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (take_word(s, words[i]))
            return true;
    if (s->p < s->end && *s->p == '-')
        s->p++;
    const char *begin = s->p;
    if (!take_digits(s) || (*begin == '0' && s->p - begin > 1))
        return false;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!take_digits(s))
            return false;
    }
    if (s->p == s->end || (*s->p != 'e' && *s->p != 'E'))
        return true;
    s->p++;
    if (s->p < s->end && (*s->p == '+' || *s->p == '-'))
        s->p++;
    return take_digits(s);
}

/* --- any value --- */

static int take_scalar(struct ckpt_scan *s, struct ckpt_buf *text)
{
    int c = look(s);
    const char *begin = s->p;
    int r = c == '"' ? take_string(s, NULL) : take_plain(s) ? 0 : ckpt_scan_fail(s, "a value is missing");
    if (r == 0 && text)
        ckpt_buf_add(text, begin, (size_t)(s->p - begin));
    return r;
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

int ckpt_scan_value(struct ckpt_scan *s, struct ckpt_buf *text)
{
    char close[MAX_NESTING]; /* of the containers that are open */
    unsigned depth = 0;
    int r;
    for (bool opened = false;;) {
        /* At a value; in an object, at a member. */
        bool ended = opened && take_mark(s, text, close[depth - 1]);
        if (ended)
            depth--;
        else {
            if (depth && close[depth - 1] == '}') {
                if (look(s) != '"')
                    return ckpt_scan_fail(s, "a member's name is missing");
                if ((r = take_scalar(s, text)) < 0)
                    return r;
                if (!take_mark(s, text, ':'))
                    return ckpt_scan_fail(s, "a colon is missing");
            }
            char c = take_mark(s, text, '{') ? '}' : take_mark(s, text, '[') ? ']' : 0;
            opened = c;
            if (c && depth == MAX_NESTING)
                return ckpt_scan_fail(s, "nested too deeply");
            if (c) {
                close[depth++] = c;
                continue;
            }
            if ((r = take_scalar(s, text)) < 0)
                return r;
        }
        opened = false;
        while (depth && !take_mark(s, text, ',')) { /* else another element follows */
            if (!take_mark(s, text, close[depth - 1]))
                return ckpt_scan_fail(s, "a comma is missing");
            depth--;
        }
        if (!depth)
            break;
    }
    return text && ckpt_buf_error(text) ? ckpt_fail(s->err, ENOMEM, "out of memory") : 0;
}

bool ckpt_manifest_text_ok(const char *text, size_t len)
{
    struct ckpt_scan s = {text, text + len, NULL};
    if (len > CKPT_MANIFEST_TEXT_MAX || look(&s) == '{' || look(&s) == '[' || ckpt_scan_value(&s, NULL) < 0)
        return false;
    return look(&s) < 0;
}
