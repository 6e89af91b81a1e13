/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of an .npy file: a Python literal, of which only the forms that NumPy writes and reads are taken. Nothing
 * is evaluated; nesting, numbers and lengths are bounded.
 */
#include "core/array/npy.h"

#include "core/array/literal.h"
#include "core/base/util.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_NESTING 16
#define MAX_ITEM    ((uint64_t)INT32_MAX) /* bytes of an element, as in NumPy */
#define MAX_BYTES   ((uint64_t)1 << 62)
#define MAX_FIELDS  64 /* of a structure: more have no room in a descr */

/* --- types --- */

struct element {
    enum ckpt_dtype dtype;
    bool big;
    uint8_t word;
    uint64_t size;
};

/* A unit of time: "[25us]", or nothing. */
static bool is_unit(const char *p)
{
    static const char *const units[] = {"Y",  "M",       "W",  "D",  "h",  "m",  "s",      "ms",
                                        "us", "\u03bcs", "ns", "ps", "fs", "as", "generic"};
    size_t n = strlen(p);
    if (!n)
        return true;
    bool has_brackets = n >= 3 && *p == '[' && p[n - 1] == ']';
    if (!has_brackets)
        return false;
    size_t digits = strspn(p + 1, "0123456789"), left = n - 2 - digits;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strlen(units[i]) == left && !strncmp(p + 1 + digits, units[i], left))
            return digits < 10;
    return false;
}

/* Types that are known by the number of their bytes alone. */
static bool is_opaque(const char *code, uint64_t *ret_size)
{
    static const char *const long_doubles[] = {"f12", "f16", "c24", "c32"};
    size_t digits = *code ? strspn(code + 1, "0123456789") : 0;
    if (!digits || digits > 12)
        return false;
    *ret_size = strtoull(code + 1, NULL, 10) * (*code == 'U' ? 4 : 1);
    bool is_time = *code == 'M' || *code == 'm';
    if (is_time)
        return digits == 1 && code[1] == '8' && is_unit(code + 2);
    for (size_t i = 0; i < sizeof long_doubles / sizeof *long_doubles; i++)
        if (!strcmp(code, long_doubles[i]))
            return true;
    return strchr("SUV", *code) && !code[1 + digits];
}

/* NumPy's own names, which its reader takes too. */
static bool by_name(const char *name, enum ckpt_dtype *ret)
{
    if (!ckpt_dtype_by_name(name, ret))
        return false;
    bool is_other = *ret == CKPT_DT_BF16 || *ret == CKPT_DT_C32 || *ret > CKPT_DT_C128; /* of ml_dtypes and PyTorch */
    return !is_other;
}

/* A type of numbers, by its code or its name. */
static bool is_number(const char *code, char sign, enum ckpt_dtype *ret)
{
    const char *kind = code + (sign != 0);
    bool big, may_be_code = ckpt_is_one_of(*kind, "biufc?") && strlen(kind) < 4;
    if (may_be_code && ckpt_dtype_by_descr(code, ret, &big))
        return true;
    return !sign && by_name(code, ret);
}

static void add_number_code(struct ckpt_text *out, struct element *e)
{
    const struct ckpt_dtype_info *info = ckpt_dtype_info(e->dtype);
    e->big &= info->swap > 1;
    e->size = info->size;
    e->word = info->swap;
    if (!e->big) {
        ckpt_text_adds(out, info->descr);
        return;
    }
    ckpt_text_adds(out, ">");
    ckpt_text_adds(out, info->descr + 1);
}

/* The bytes that are turned round together. */
static uint8_t opaque_word(char kind, uint64_t size)
{
    switch (kind) {
    case 'U':
        return 4;
    case 'c':
        return (uint8_t)(size / 2);
    case 'f':
    case 'M':
    case 'm':
        return (uint8_t)size;
    default:
        return 1;
    }
}

static const char *opaque_sign(char kind, char sign, bool big)
{
    bool has_order = sign == '<' || sign == '>'; /* a void keeps it: bfloat16 is written as '<V2' */
    if (kind == 'S' || (kind == 'V' && !has_order))
        return "|";
    return big ? ">" : "<";
}

static void add_opaque_code(struct ckpt_text *out, const char *kind, uint64_t size)
{
    char text[24];
    if (!ckpt_is_one_of(*kind, "SUV")) {
        ckpt_text_adds(out, kind);
        return;
    }
    uint64_t length = *kind == 'U' ? size / 4 : size; /* without leading zeros */
    snprintf(text, sizeof text, "%c%" PRIu64, *kind, length);
    ckpt_text_adds(out, text);
}

/* A type string; appended to `out` as NumPy writes it. */
static int read_code(struct ckpt_literal *l, const char *code, struct ckpt_text *out, struct element *ret)
{
    char sign = ckpt_is_one_of(*code, "<>=|") ? *code : 0;
    const char *kind = code + (sign != 0);
    *ret = (struct element){.dtype = CKPT_DT_OTHER, .big = sign == '>', .word = 1};
    if (*kind == 'O' || !strcmp(code, "object"))
        return ckpt_fail(l->err, EOPNOTSUPP, "an array of Python objects, which are never loaded");
    if (is_number(code, sign, &ret->dtype)) {
        add_number_code(out, ret);
        return 0;
    }
    ret->dtype = CKPT_DT_OTHER;
    if (!is_opaque(kind, &ret->size) || ret->size > MAX_ITEM)
        return ckpt_literal_bad(l, "its descr is not a type");
    ret->big &= *kind != 'S';
    ret->word = opaque_word(*kind, ret->size);
    ckpt_text_adds(out, opaque_sign(*kind, sign, ret->big));
    add_opaque_code(out, kind, ret->size);
    return 0;
}

static void add_escape(struct ckpt_text *out, uint8_t c)
{
    static const char codes[] = "\n\r\t", names[] = "nrt";
    char escape[8];
    if (ckpt_is_one_of(c, codes))
        snprintf(escape, sizeof escape, "\\%c", names[strchr(codes, c) - codes]);
    else
        snprintf(escape, sizeof escape, "\\x%02x", c);
    ckpt_text_adds(out, escape);
}

/* As Python's repr() writes a string. */
static void add_repr(struct ckpt_text *out, const struct ckpt_text *s)
{
    bool has_single = strchr(s->data, '\''), has_double = strchr(s->data, '"');
    char quote = has_single && !has_double ? '"' : '\'';
    ckpt_text_add(out, &quote, 1);
    for (const char *p = s->data; *p; p++) {
        uint8_t c = (uint8_t)*p;
        if (c == quote || c == '\\')
            ckpt_text_add(out, "\\", 1);
        if (c < 0x20 || c == 0x7f)
            add_escape(out, c);
        else
            ckpt_text_add(out, p, 1);
    }
    ckpt_text_add(out, &quote, 1);
}

static int take_descr(struct ckpt_literal *l, struct ckpt_text *out, unsigned depth, struct element *ret);

/* Where a field's name lies in the text that is being made; two of one structure must differ. */
struct name {
    size_t at, len;
};

static bool is_taken(const struct ckpt_text *out, const struct name *names, unsigned count)
{
    const struct name *last = &names[count];
    bool is_whole = last->at + last->len < sizeof out->data; /* what is not will be refused as too long */
    for (unsigned i = 0; is_whole && i < count; i++)
        if (names[i].len == last->len && !memcmp(out->data + names[i].at, out->data + last->at, last->len))
            return true;
    return false;
}

/* 'name', or ('title', 'name'). */
static int take_name(struct ckpt_literal *l, struct ckpt_text *out, struct name *ret)
{
    struct ckpt_text s;
    bool title = ckpt_literal_take(l, '(');
    int r = ckpt_literal_string(l, &s);
    if (r < 0)
        return r;
    if (title) {
        ckpt_text_adds(out, "(");
        add_repr(out, &s);
        ckpt_text_adds(out, ", ");
        if (!ckpt_literal_take(l, ','))
            return ckpt_literal_bad(l, "a field's name is missing");
        r = ckpt_literal_string(l, &s);
        if (r < 0)
            return r;
    }
    ret->at = out->len;
    add_repr(out, &s);
    ret->len = *s.data ? out->len - ret->at : 0; /* what only fills a gap has no name */
    if (!title)
        return 0;
    ckpt_text_adds(out, ")");
    ckpt_literal_take(l, ',');
    return ckpt_literal_take(l, ')') ? 0 : ckpt_literal_bad(l, "a field's name is not a pair");
}

static void add_shape(struct ckpt_text *out, unsigned ndim, const uint64_t *shape)
{
    char number[32];
    ckpt_text_adds(out, "(");
    for (unsigned i = 0; i < ndim; i++) {
        snprintf(number, sizeof number, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
        ckpt_text_adds(out, number);
    }
    ckpt_text_adds(out, ndim == 1 ? ",)" : ")");
}

/* Behind a type, up to the bracket that closes its tuple: how often it is repeated. */
static int take_repeat(struct ckpt_literal *l, struct ckpt_text *out, uint64_t *size)
{
    uint64_t shape[CKPT_MAX_DIMS], count = 1;
    unsigned ndim;
    bool is_repeated = ckpt_literal_take(l, ',') && ckpt_literal_look(l) != ')';
    if (is_repeated) {
        int r = ckpt_literal_shape(l, &ndim, shape);
        if (r < 0)
            return r;
        bool large = false;
        for (unsigned i = 0; i < ndim; i++)
            large |= ckpt_mul(count, shape[i], &count);
        large |= ckpt_mul(*size, count, size);
        if (large || *size > MAX_ITEM)
            return ckpt_literal_bad(l, "a field is too large");
        ckpt_text_adds(out, ", ");
        add_shape(out, ndim, shape);
        ckpt_literal_take(l, ',');
    }
    return ckpt_literal_take(l, ')') ? 0 : ckpt_literal_bad(l, "a bracket is not closed");
}

/* Field number n, behind the bracket that opens it. */
static int take_field(struct ckpt_literal *l, struct ckpt_text *out, unsigned depth, struct name *names, unsigned n,
                      struct element *ret)
{
    ckpt_text_adds(out, n ? ", (" : "(");
    int r = take_name(l, out, &names[n]);
    if (r < 0)
        return r;
    if (names[n].len && is_taken(out, names, n))
        return ckpt_literal_bad(l, "two fields have the same name");
    if (!ckpt_literal_take(l, ','))
        return ckpt_literal_bad(l, "a field has no type");
    ckpt_text_adds(out, ", ");
    r = take_descr(l, out, depth, ret);
    if (r == 0)
        r = take_repeat(l, out, &ret->size);
    ckpt_text_adds(out, ")");
    return r;
}

/* The fields of a structure, behind the bracket that opens it. */
static int take_fields(struct ckpt_literal *l, struct ckpt_text *out, unsigned depth, struct element *ret)
{
    struct name names[MAX_FIELDS];
    bool comma = true;
    *ret = (struct element){.dtype = CKPT_DT_OTHER, .word = 1};
    ckpt_text_adds(out, "[");
    for (unsigned n = 0; !ckpt_literal_take(l, ']'); n++) {
        struct element field;
        if (!comma || !ckpt_literal_take(l, '('))
            return ckpt_literal_bad(l, "a field of a structure is not a tuple");
        if (n == MAX_FIELDS)
            return ckpt_literal_too_long(l);
        int r = take_field(l, out, depth, names, n, &field);
        if (r < 0)
            return r;
        ret->size += field.size;
        if (ret->size > MAX_ITEM)
            return ckpt_literal_bad(l, "an element is too large");
        comma = ckpt_literal_take(l, ',');
    }
    ckpt_text_adds(out, "]");
    return 0;
}

/* A type: a string, the list of a structure, or (inside of one) a tuple of a type and how often. Appended to `out` as
 * NumPy writes it, strings with quotes only within a structure. */
static int take_descr(struct ckpt_literal *l, struct ckpt_text *out, unsigned depth, struct element *ret)
{
    struct ckpt_text code;
    const char *quote = depth ? "'" : "";
    if (depth == MAX_NESTING)
        return ckpt_literal_bad(l, "nested too deeply");
    if (ckpt_literal_take(l, '['))
        return take_fields(l, out, depth + 1, ret);
    if (depth && ckpt_literal_take(l, '(')) {
        ckpt_text_adds(out, "(");
        int r = take_descr(l, out, depth + 1, ret);
        if (r == 0)
            r = take_repeat(l, out, &ret->size);
        ckpt_text_adds(out, ")");
        return r;
    }
    int r = ckpt_literal_string(l, &code);
    if (r < 0)
        return r;
    ckpt_text_adds(out, quote);
    r = read_code(l, code.data, out, ret);
    ckpt_text_adds(out, quote);
    return r;
}

static int set_element(struct ckpt_literal *l, struct ckpt_text *descr, const struct element *e, struct ckpt_npy *ret)
{
    if (!ckpt_text_ok(descr))
        return ckpt_literal_too_long(l);
    memcpy(ret->descr, descr->data, descr->len + 1);
    ret->dtype = e->dtype;
    ret->big_endian = e->big;
    ret->word = e->word;
    ret->itemsize = (uint32_t)e->size;
    return 0;
}

int ckpt_npy_parse_descr(const char *descr, struct ckpt_npy *ret, struct ckpt_err *err)
{
    struct ckpt_literal l = {(const uint8_t *)descr, (const uint8_t *)descr + strlen(descr), .utf8 = true, .err = err};
    struct ckpt_text out = {0};
    struct element e;
    bool is_structure = *descr == '[';
    int r = is_structure ? take_descr(&l, &out, 0, &e) : read_code(&l, descr, &out, &e);
    if (r == 0 && is_structure && ckpt_literal_look(&l) >= 0)
        r = ckpt_literal_bad(&l, "something follows its descr");
    return r < 0 ? r : set_element(&l, &out, &e, ret);
}

/* --- the header --- */

static int take_bool(struct ckpt_literal *l, bool *ret)
{
    *ret = ckpt_literal_word(l, "True");
    bool is_bool = *ret || ckpt_literal_word(l, "False");
    return is_bool ? 0 : ckpt_literal_bad(l, "fortran_order is not a bool");
}

static int take_own_descr(struct ckpt_literal *l, struct ckpt_npy *ret)
{
    struct ckpt_text descr = {0};
    struct element e;
    int r = take_descr(l, &descr, 0, &e);
    return r < 0 ? r : set_element(l, &descr, &e, ret);
}

/* The value of a key, which is one of the three. */
static int take_value(struct ckpt_literal *l, int key, struct ckpt_npy *ret)
{
    switch (key) {
    case 0:
        return take_own_descr(l, ret);
    case 1:
        return take_bool(l, &ret->fortran);
    default:
        return ckpt_literal_shape(l, &ret->ndim, ret->shape);
    }
}

static int take_header(struct ckpt_literal *l, struct ckpt_npy *ret)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    bool seen[3] = {false}, comma = true;
    if (!ckpt_literal_take(l, '{'))
        return ckpt_literal_bad(l, "it is not a dictionary");
    while (!ckpt_literal_take(l, '}')) {
        struct ckpt_text key;
        int k = 0, r = comma ? ckpt_literal_string(l, &key) : ckpt_literal_bad(l, "a comma is missing");
        if (r < 0)
            return r;
        while (k < 3 && strcmp(key.data, keys[k]))
            k++;
        if (k == 3)
            return ckpt_literal_bad(l, "it has a key that does not belong there");
        if (seen[k])
            return ckpt_literal_bad(l, "a key is there twice");
        seen[k] = true;
        if (!ckpt_literal_take(l, ':'))
            return ckpt_literal_bad(l, "a colon is missing");
        r = take_value(l, k, ret);
        if (r < 0)
            return r;
        comma = ckpt_literal_take(l, ',');
    }
    bool is_whole = seen[0] && seen[1] && seen[2];
    if (!is_whole)
        return ckpt_literal_bad(l, "descr, fortran_order or shape is missing");
    return ckpt_literal_look(l) < 0 ? 0 : ckpt_literal_bad(l, "something follows the dictionary");
}

int ckpt_npy_settle(struct ckpt_npy *npy, struct ckpt_err *err)
{
    uint64_t bytes = CKPT_MAX(npy->itemsize, 1u);
    bool empty = !npy->itemsize;
    for (unsigned i = 0; i < npy->ndim; i++) {
        empty |= !npy->shape[i];
        /* Bounded as if no dimension were empty, so that partial products stay sane. */
        bool large = ckpt_mul(bytes, CKPT_MAX(npy->shape[i], (uint64_t)1), &bytes);
        if (large || bytes > MAX_BYTES)
            return ckpt_fail(err, EUCLEAN, "an array claims more than 2^62 bytes");
    }
    npy->nbytes = empty ? 0 : bytes;
    return 0;
}

/* 0x100 for 1.0, and so on. What ends before its version is judged as if it were 1.0. */
static int read_version(const uint8_t *data, size_t len, unsigned *ret, struct ckpt_err *err)
{
    *ret = 0x100;
    if (len < 8)
        return 0;
    unsigned major = data[6], minor = data[7];
    *ret = major << 8 | minor;
    if (*ret > 0x300)
        return ckpt_fail(err, EOPNOTSUPP, "version %u.%u of the .npy format is not known", major, minor);
    bool exists = major > 0 && minor == 0;
    return exists ? 0 : ckpt_fail(err, EUCLEAN, "there is no version %u.%u of the .npy format", major, minor);
}

/* Of the text, which follows the prefix; 0 when that is not whole. */
static size_t read_length(const uint8_t *data, size_t len, size_t prefix)
{
    if (len < prefix)
        return 0;
    return prefix == 10 ? ckpt_le16(data + 8) : ckpt_le32(data + 8);
}

int ckpt_npy_parse(const uint8_t *data, size_t len, struct ckpt_npy *ret, struct ckpt_err *err)
{
    static const char magic[] = "\x93NUMPY";
    size_t known = CKPT_MIN(len, strlen(magic));
    if (known && memcmp(data, magic, known) != 0)
        return ckpt_fail(err, EUCLEAN, "not an .npy file");
    unsigned version;
    int r = read_version(data, len, &version, err);
    if (r < 0)
        return r;
    size_t prefix = version == 0x100 ? 10 : 12;
    size_t header = read_length(data, len, prefix);
    if (header > CKPT_NPY_HEADER_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "the .npy header has %zu bytes; at most %zu are read", header,
                         CKPT_NPY_HEADER_MAX);
    if (len < prefix || len - prefix < header)
        return ckpt_fail(err, EBADMSG, "the file ends within its .npy header");
    struct ckpt_literal l = {data + prefix, data + prefix + header, .utf8 = version == 0x300,
                             .long_ints = version < 0x300, .err = err};
    struct ckpt_npy npy = {.header = (uint32_t)(prefix + header)};
    r = take_header(&l, &npy);
    if (r == 0)
        r = ckpt_npy_settle(&npy, err);
    if (r == 0)
        *ret = npy;
    return r;
}
