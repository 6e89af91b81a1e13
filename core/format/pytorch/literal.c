/* SPDX-License-Identifier: Apache-2.0 */
/* What stands in the pickle as bytes stays there; what is spelled in a line is appended as the bytes that it means. */
#include "core/base/util.h"
#include "core/format/pytorch/machine.h"
#include "core/format/pytorch/text.h"

#define MAX_DIGITS 4900 /* of an integer: less than TORCH_MAX_INT bytes */

static int push_literal(struct torch_machine *m, enum torch_kind kind, const void *bytes, size_t len)
{
    torch_value v;
    int r = ckpt_machine_made(m, ckpt_torch_new_literal(&m->g, kind, bytes, len, &v));
    return r < 0 ? r : ckpt_machine_push(m, v);
}

/* --- numbers --- */

/* limb = limb * factor + more, of `count` words. */
static uint32_t multiply(uint32_t *limb, uint32_t count, uint32_t factor, uint32_t more)
{
    uint64_t carry = more;
    for (uint32_t i = 0; i < count; i++) {
        carry += (uint64_t)limb[i] * factor;
        limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry)
        limb[count++] = (uint32_t)carry;
    return count;
}

static int push_digits(struct torch_machine *m, const char *p, size_t len)
{
    uint32_t limb[TORCH_MAX_INT / 4] = {0}, count = 0;
    bool negative = len && *p == '-', sign = negative || (len && *p == '+');
    p += sign;
    len -= sign;
    if (!len || len > MAX_DIGITS)
        return ckpt_machine_malformed(m, "an integer in digits is none, or has more than 4900 of them");
    for (size_t i = 0; i < len;) {
        uint32_t group = 0, factor = 1;
        for (; i < len && factor < 1000000000; factor *= 10, i++) {
            if (p[i] < '0' || p[i] > '9')
                return ckpt_machine_malformed(m, "an integer has what is no digit");
            group = group * 10 + (uint32_t)(p[i] - '0');
        }
        count = multiply(limb, count, factor, group);
    }
    count++; /* room for the sign */
    for (uint32_t i = 0, carry = 1; negative && i < count; i++) {
        limb[i] = ~limb[i] + carry;
        carry = carry && !limb[i];
    }
    return push_literal(m, TORCH_INT, limb, count * sizeof *limb);
}

/* I01 and I00 are bools; other numbers may end in an L. */
static int push_integer(struct torch_machine *m, const struct torch_op *op)
{
    const char *p = (const char *)op->arg;
    size_t len = op->len;
    if (op->code == OP_INT && len == 2 && *p == '0' && (p[1] == '0' || p[1] == '1'))
        return push_literal(m, TORCH_BOOL, (uint8_t[]){p[1] == '1'}, 1);
    len -= op->code == OP_LONG && len && p[len - 1] == 'L';
    return push_digits(m, p, len);
}

static int push_float(struct torch_machine *m, const struct torch_op *op)
{
    char text[128], *end;
    if (!op->len || op->len >= sizeof text)
        return ckpt_machine_malformed(m, "a number in text is none");
    memcpy(text, op->arg, op->len);
    text[op->len] = 0;
    double d = strtod(text, &end);
    if (end != text + op->len)
        return ckpt_machine_malformed(m, "a number in text is none");
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    bits = __builtin_bswap64(bits);
    return push_literal(m, TORCH_FLOAT, &bits, sizeof bits);
}

int ckpt_machine_line_number(struct torch_machine *m, const struct torch_op *op, uint32_t *ret)
{
    uint64_t n = 0;
    for (size_t i = 0; i < op->len && n <= UINT32_MAX; i++) {
        if (op->arg[i] < '0' || op->arg[i] > '9')
            return ckpt_machine_malformed(m, "a number of the memo is none");
        n = n * 10 + (uint64_t)(op->arg[i] - '0');
    }
    if (!op->len || n > UINT32_MAX)
        return ckpt_machine_malformed(m, "a number of the memo is none");
    *ret = (uint32_t)n;
    return 0;
}

/* --- strings --- */

static int hex(const uint8_t *p, size_t left, size_t digits, uint32_t *ret)
{
    *ret = 0;
    for (size_t i = 0; i < digits; i++) {
        uint8_t c = i < left ? p[i] : 0;
        uint32_t d = c >= '0' && c <= '9'                     ? c - '0'
                     : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                              : 16;
        if (d == 16)
            return false;
        *ret = *ret << 4 | d;
    }
    return true;
}

/* \uXXXX or \UXXXXXXXX at p, two of which may be one character. Bytes that it takes; 0: it is malformed. */
static size_t take_escape(const uint8_t *p, size_t left, uint32_t *ret)
{
    uint32_t low;
    size_t digits = p[1] == 'u' ? 4 : 8, len = 2 + digits;
    if (!hex(p + 2, left - 2, digits, ret) || *ret > 0x10ffff)
        return 0;
    bool pair = *ret >= 0xd800 && *ret < 0xdc00 && left - len >= 6 && p[len] == '\\' && p[len + 1] == 'u' &&
                hex(p + len + 2, 4, 4, &low) && low >= 0xdc00 && low < 0xe000;
    if (pair) {
        *ret = 0x10000 + ((*ret - 0xd800) << 10) + (low - 0xdc00);
        len += 6;
    }
    return len;
}

/* Latin-1 with \uXXXX. */
static int add_unicode(struct torch_machine *m, const uint8_t *p, size_t len, struct ckpt_buf *ret)
{
    for (size_t i = 0; i < len;) {
        bool escape = p[i] == '\\' && i + 1 < len;
        uint32_t c = p[i];
        if (escape && (p[i + 1] == 'u' || p[i + 1] == 'U')) {
            size_t taken = take_escape(p + i, len - i, &c);
            if (!taken)
                return ckpt_machine_malformed(m, "a string has an escape that is none");
            ckpt_torch_add_character(ret, c);
            i += taken;
            continue;
        }
        ckpt_torch_add_character(ret, c);
        if (escape)
            ckpt_torch_add_character(ret, p[i + 1]);
        i += 1 + escape;
    }
    return 0;
}

/* One escape of a quoted string, behind its backslash. Bytes that it takes; 0: it is malformed. */
static size_t add_quoted_escape(const uint8_t *p, size_t left, struct ckpt_buf *ret)
{
    static const char letters[] = "\\'\"abfnrtv", meanings[] = "\\'\"\a\b\f\n\r\t\v";
    const char *known = memchr(letters, *p, sizeof letters - 1);
    uint32_t c = 0;
    size_t taken = 0;
    if (known) {
        ckpt_buf_addc(ret, meanings[known - letters]);
        return 1;
    }
    if (*p == 'x') {
        if (!hex(p + 1, left - 1, 2, &c))
            return 0;
        ckpt_buf_addc(ret, (char)c);
        return 3;
    }
    for (; taken < 3 && taken < left && p[taken] >= '0' && p[taken] <= '7'; taken++)
        c = c << 3 | (p[taken] - (uint32_t)'0');
    if (taken) {
        ckpt_buf_addc(ret, (char)c);
        return taken;
    }
    ckpt_buf_addc(ret, '\\');
    ckpt_buf_addc(ret, (char)*p);
    return 1;
}

/* As Python's repr() of bytes: quotes around it. */
static int add_quoted(struct torch_machine *m, const uint8_t *p, size_t len, struct ckpt_buf *ret)
{
    while (len && (p[len - 1] == ' ' || p[len - 1] == '\r'))
        len--;
    if (len < 2 || p[0] != p[len - 1] || (p[0] != '\'' && p[0] != '"'))
        return ckpt_machine_malformed(m, "a string has no quotes around it");
    size_t end = len - 1;
    for (size_t i = 1; i < end;) {
        size_t taken = 1;
        if (p[i] != '\\')
            ckpt_buf_addc(ret, (char)p[i]);
        else if (i + 1 == end || !(taken = 1 + add_quoted_escape(p + i + 1, end - i - 1, ret)) || taken == 1)
            return ckpt_machine_malformed(m, "a string has an escape that is none");
        i += taken;
    }
    return 0;
}

static int push_line(struct torch_machine *m, const struct torch_op *op)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    int r = op->code == OP_UNICODE  ? add_unicode(m, op->arg, op->len, &text)
            : op->code == OP_STRING ? add_quoted(m, op->arg, op->len, &text)
                                    : (ckpt_buf_add(&text, op->arg, op->len), 0);
    if (r == 0)
        r = ckpt_machine_made(m, ckpt_buf_error(&text));
    bool utf8 = r == 0 && ckpt_utf8(text.data, text.len);
    if (r == 0 && !utf8 && op->code != OP_STRING)
        r = ckpt_machine_malformed(m, "a string is not UTF-8");
    if (r == 0)
        r = push_literal(m, utf8 ? TORCH_STR : TORCH_BYTES, text.data, text.len);
    ckpt_buf_clear(&text);
    return r;
}

/* Python 2 had no other strings than of bytes: those that are no text are bytes. */
static int push_string(struct torch_machine *m, const struct torch_op *op)
{
    bool utf8 = ckpt_utf8(op->arg, op->len);
    if (!utf8 && op->code == OP_SHORT_BINSTRING)
        m->g.pickle[op->at] = OP_SHORT_BINBYTES;
    else if (!utf8 && op->code == OP_BINSTRING)
        m->g.pickle[op->at] = OP_BINBYTES;
    else if (!utf8)
        return ckpt_machine_malformed(m, "a string is not UTF-8");
    return ckpt_machine_push(m, ckpt_torch_atom(op->at));
}

int ckpt_machine_literal(struct torch_machine *m, const struct torch_op *op)
{
    switch (op->code) {
    case OP_INT:
    case OP_LONG:
        return push_integer(m, op);
    case OP_FLOAT:
        return push_float(m, op);
    case OP_STRING:
    case OP_UNICODE:
    case OP_PERSID:
        return push_line(m, op);
    case OP_BINUNICODE:
    case OP_SHORT_BINUNICODE:
    case OP_BINUNICODE8:
    case OP_BINSTRING:
    case OP_SHORT_BINSTRING:
        return push_string(m, op);
    default:
        return ckpt_machine_push(m, ckpt_torch_atom(op->at));
    }
}

/* --- names --- */

int ckpt_machine_global(struct torch_machine *m, const struct torch_op *op)
{
    const char *module = (const char *)op->arg, *end = memchr(module, '\n', op->len);
    uint32_t number = ckpt_torch_global_find(module, (size_t)(end - module), end + 1,
                                             op->len - (size_t)(end + 1 - module) - 1);
    return ckpt_machine_push(m, number == TORCH_NO_GLOBAL ? ckpt_torch_atom(op->at) : ckpt_torch_global_value(number));
}

int ckpt_machine_stack_global(struct torch_machine *m)
{
    size_t module_len, name_len;
    int r = ckpt_machine_need(m, 2);
    if (r < 0)
        return r;
    torch_value module = m->stack[m->depth - 2].value, name = m->stack[m->depth - 1].value, global;
    if (ckpt_torch_kind(&m->g, module) != TORCH_STR || ckpt_torch_kind(&m->g, name) != TORCH_STR)
        return ckpt_machine_malformed(m, "a name is no string");
    const char *p = ckpt_torch_str(&m->g, module, &module_len), *q = ckpt_torch_str(&m->g, name, &name_len);
    uint32_t number = ckpt_torch_global_find(p, module_len, q, name_len), start = m->g.count;
    m->depth -= 2;
    if (number != TORCH_NO_GLOBAL)
        return ckpt_machine_push(m, ckpt_torch_global_value(number));
    r = ckpt_machine_made(m, ckpt_torch_new_name(&m->g, module, name, &global));
    return r < 0 ? r : ckpt_machine_push_from(m, global, start);
}
