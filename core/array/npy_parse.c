/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of an .npy file: a Python literal, of which only the forms that NumPy writes and reads are taken. Nothing
 * is evaluated; nesting, numbers and lengths are bounded.
 */
#include "core/array/npy.h"

#include "core/base/util.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_NESTING 16
#define MAX_ITEM    ((uint64_t)INT32_MAX) /* bytes of an element, as in NumPy */
#define MAX_BYTES   ((uint64_t)1 << 62)
#define MAX_FIELDS  64 /* of a structure: more have no room in a descr */

struct literal {
    const uint8_t *p, *end;
    bool utf8;      /* version 3.0; else Latin-1 */
    bool long_ints; /* 3L, as Python 2 wrote them */
    struct ckpt_err *err;
};

/* A string of the literal, in UTF-8; or a text that is being made. */
struct text {
    size_t len;
    char data[sizeof(((struct ckpt_npy *)NULL)->descr)]; /* NUL-terminated */
};

static int bad(struct literal *l, const char *what)
{
    return ckpt_fail(l->err, EUCLEAN, "not a valid .npy header: %s", what);
}

static int too_long(struct literal *l)
{
    return ckpt_fail(l->err, EOPNOTSUPP, "the .npy header has a descr or a name of more than %zu bytes",
                     sizeof((struct text *)NULL)->data - 1);
}

static void text_add(struct text *t, const char *p, size_t n)
{
    if (t->len + n < sizeof t->data)
        memcpy(t->data + t->len, p, n);
    t->len += n; /* beyond the end: text_ok() says so */
}

static bool text_ok(struct text *t)
{
    if (t->len >= sizeof t->data)
        return false;
    t->data[t->len] = 0;
    return true;
}

static void text_adds(struct text *t, const char *p)
{
    text_add(t, p, strlen(p));
}

/* --- the pieces of a literal --- */

/* The next character that is not white space, not taken; -1 at the end. */
static int look(struct literal *l)
{
    while (l->p < l->end && *l->p && strchr(" \t\n\r\f", *l->p))
        l->p++;
    return l->p < l->end ? *l->p : -1;
}

static bool take(struct literal *l, char c)
{
    if (look(l) != c)
        return false;
    l->p++;
    return true;
}

static bool take_word(struct literal *l, const char *word)
{
    size_t n = strlen(word);
    if (look(l) < 0 || (size_t)(l->end - l->p) < n || memcmp(l->p, word, n))
        return false;
    l->p += n;
    return true;
}

static int take_number(struct literal *l, uint64_t *ret)
{
    uint64_t n = 0;
    if (look(l) < '0' || *l->p > '9')
        return bad(l, "a whole number is missing");
    const uint8_t *first = l->p;
    for (; l->p < l->end && *l->p >= '0' && *l->p <= '9'; l->p++)
        if (ckpt_mul(n, 10, &n) || ckpt_add(n, *l->p - '0', &n))
            return bad(l, "a number is too large");
    if (n && *first == '0')
        return bad(l, "a number begins with 0");
    if (l->long_ints && l->p < l->end && *l->p == 'L')
        l->p++;
    *ret = n;
    return 0;
}

static bool take_hex(struct literal *l, unsigned digits, uint32_t *ret)
{
    *ret = 0;
    for (unsigned i = 0; i < digits; i++, l->p++) {
        static const char hex[] = "0123456789abcdef";
        const char *d = l->p < l->end && *l->p ? strchr(hex, *l->p >= 'A' && *l->p <= 'F' ? *l->p + 32 : *l->p) : NULL;
        if (!d)
            return false;
        *ret = *ret << 4 | (uint32_t)(d - hex);
    }
    return true;
}

/* Behind a backslash. */
static bool take_escape(struct literal *l, uint32_t *ret)
{
    static const char names[] = "\\'\"nrt", values[] = "\\'\"\n\r\t";
    int c = l->p < l->end ? *l->p++ : 0;
    const char *name = c ? strchr(names, c) : NULL;
    if (name) {
        *ret = (uint8_t)values[name - names];
        return true;
    }
    return (c == 'x' && take_hex(l, 2, ret)) || (c == 'u' && take_hex(l, 4, ret)) || (c == 'U' && take_hex(l, 8, ret));
}

/* A character that is written as several bytes. */
static bool take_utf8(struct literal *l, uint32_t *ret)
{
    uint32_t c = *l->p++;
    unsigned more = c >= 0xf0 && c < 0xf5 ? 3 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xc2 && c < 0xe0 ? 1 : 0;
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
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

static void add_character(struct text *t, uint32_t c)
{
    unsigned more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    char bytes[4];
    bytes[0] = (char)(lead[more] | c >> 6 * more);
    for (unsigned i = 1; i <= more; i++)
        bytes[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3f));
    text_add(t, bytes, more + 1);
}

static int take_string(struct literal *l, struct text *ret)
{
    int quote = look(l);
    if (quote != '\'' && quote != '"')
        return bad(l, "a string is missing");
    l->p++;
    ret->len = 0;
    while (l->p < l->end && *l->p != quote) {
        uint32_t c = *l->p;
        bool ok = c && c != '\n' && c != '\r';
        if (c == '\\') {
            l->p++;
            ok = take_escape(l, &c);
        } else if (c >= 0x80 && l->utf8)
            ok = take_utf8(l, &c);
        else
            l->p++;
        if (!ok || !c || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return bad(l, "a string holds what no name can");
        add_character(ret, c);
    }
    if (l->p == l->end)
        return bad(l, "a string does not end");
    l->p++;
    return text_ok(ret) ? 0 : too_long(l);
}

/* A tuple of whole numbers. */
static int take_shape(struct literal *l, unsigned *ret_ndim, uint64_t *shape)
{
    unsigned n = 0;
    bool comma = false;
    if (!take(l, '('))
        return bad(l, "a shape is not a tuple");
    for (; !take(l, ')'); n++) {
        if (n && !comma)
            return bad(l, "a comma is missing in a shape");
        if (n == CKPT_MAX_DIMS)
            return ckpt_fail(l->err, EOPNOTSUPP, "the array has more than %d dimensions", CKPT_MAX_DIMS);
        int r = take_number(l, &shape[n]);
        if (r < 0)
            return r;
        comma = take(l, ',');
    }
    if (n == 1 && !comma)
        return bad(l, "a shape is not a tuple");
    *ret_ndim = n;
    return 0;
}

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
    if (n < 3 || *p != '[' || p[n - 1] != ']')
        return false;
    size_t digits = strspn(p + 1, "0123456789");
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strlen(units[i]) == n - 2 - digits && !strncmp(p + 1 + digits, units[i], n - 2 - digits))
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
    if (*code == 'M' || *code == 'm')
        return digits == 1 && code[1] == '8' && is_unit(code + 2);
    for (size_t i = 0; i < sizeof long_doubles / sizeof *long_doubles; i++)
        if (!strcmp(code, long_doubles[i]))
            return true;
    return strchr("SUV", *code) && !code[1 + digits];
}

/* NumPy's own names, which its reader takes too. */
static bool by_name(const char *name, enum ckpt_dtype *ret)
{
    return ckpt_dtype_by_name(name, ret) && *ret <= CKPT_DT_C128 && *ret != CKPT_DT_BF16 && *ret != CKPT_DT_C32;
}

/* A type string; appended to `out` as NumPy writes it. */
static int read_code(struct literal *l, const char *code, struct text *out, struct element *ret)
{
    bool big;
    char sign = *code && strchr("<>=|", *code) ? *code : 0, text[24];
    const char *kind = code + (sign != 0);
    *ret = (struct element){.dtype = CKPT_DT_OTHER, .big = sign == '>', .word = 1};
    if (*kind == 'O' || !strcmp(code, "object"))
        return ckpt_fail(l->err, EOPNOTSUPP, "an array of Python objects, which are never loaded");
    bool plain = *kind && strchr("biufc?", *kind) && strlen(kind) < 4 && ckpt_dtype_by_descr(code, &ret->dtype, &big);
    if (plain || (!sign && by_name(code, &ret->dtype))) {
        const struct ckpt_dtype_info *info = ckpt_dtype_info(ret->dtype);
        ret->big &= info->swap > 1;
        ret->size = info->size;
        ret->word = info->swap;
        snprintf(text, sizeof text, "%s", info->descr);
        if (ret->big)
            *text = '>';
        text_adds(out, text);
        return 0;
    }
    if (!is_opaque(kind, &ret->size) || ret->size > MAX_ITEM)
        return bad(l, "its descr is not a type");
    ret->big &= *kind != 'S';
    ret->word = *kind == 'U'           ? 4
                : *kind == 'c'         ? (uint8_t)(ret->size / 2)
                : strchr("fMm", *kind) ? (uint8_t)ret->size
                                       : 1;
    /* A void keeps its sign: bfloat16 is written as '<V2'. */
    bool bytes = *kind == 'S' || (*kind == 'V' && sign != '<' && sign != '>');
    text_adds(out, bytes ? "|" : ret->big ? ">" : "<");
    if (*kind && strchr("SUV", *kind)) {
        snprintf(text, sizeof text, "%c%" PRIu64, *kind, *kind == 'U' ? ret->size / 4 : ret->size);
        text_adds(out, text);
    } else
        text_adds(out, kind);
    return 0;
}

/* As Python's repr() writes a string. */
static void add_repr(struct text *out, const struct text *s)
{
    char quote = strchr(s->data, '\'') && !strchr(s->data, '"') ? '"' : '\'', escape[8];
    text_add(out, &quote, 1);
    for (const char *p = s->data; *p; p++) {
        uint8_t c = (uint8_t)*p;
        if (c == quote || c == '\\')
            text_add(out, "\\", 1);
        if (c < 0x20 || c == 0x7f) {
            snprintf(escape, sizeof escape, c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : "\\x%02x", c);
            text_adds(out, escape);
        } else
            text_add(out, p, 1);
    }
    text_add(out, &quote, 1);
}

static int take_descr(struct literal *l, struct text *out, unsigned depth, struct element *ret);

/* Where a field's name lies in the text that is being made; two of one structure must differ. */
struct name {
    size_t at, len;
};

static bool is_taken(const struct text *out, const struct name *names, unsigned count)
{
    const struct name *last = &names[count];
    for (unsigned i = 0; i < count; i++)
        if (names[i].len == last->len && last->at + last->len < sizeof out->data &&
            !memcmp(out->data + names[i].at, out->data + last->at, last->len))
            return true;
    return false;
}

/* 'name', or ('title', 'name'). */
static int take_name(struct literal *l, struct text *out, struct name *ret)
{
    struct text s;
    bool title = take(l, '(');
    int r = take_string(l, &s);
    if (r < 0)
        return r;
    if (title) {
        text_adds(out, "(");
        add_repr(out, &s);
        text_adds(out, ", ");
        if (!take(l, ','))
            return bad(l, "a field's name is missing");
        if ((r = take_string(l, &s)) < 0)
            return r;
    }
    ret->at = out->len;
    add_repr(out, &s);
    ret->len = *s.data ? out->len - ret->at : 0; /* what only fills a gap has no name */
    if (!title)
        return 0;
    text_adds(out, ")");
    take(l, ',');
    return take(l, ')') ? 0 : bad(l, "a field's name is not a pair");
}

static void add_shape(struct text *out, unsigned ndim, const uint64_t *shape)
{
    char number[32];
    text_adds(out, "(");
    for (unsigned i = 0; i < ndim; i++) {
        snprintf(number, sizeof number, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
        text_adds(out, number);
    }
    text_adds(out, ndim == 1 ? ",)" : ")");
}

/* Behind a type, up to the bracket that closes its tuple: how often it is repeated. */
static int take_repeat(struct literal *l, struct text *out, uint64_t *size)
{
    uint64_t shape[CKPT_MAX_DIMS], count = 1;
    unsigned ndim;
    if (take(l, ',') && look(l) != ')') {
        int r = take_shape(l, &ndim, shape);
        if (r < 0)
            return r;
        for (unsigned i = 0; i < ndim; i++)
            if (ckpt_mul(count, shape[i], &count))
                return bad(l, "a field is too large");
        if (ckpt_mul(*size, count, size) || *size > MAX_ITEM)
            return bad(l, "a field is too large");
        text_adds(out, ", ");
        add_shape(out, ndim, shape);
        take(l, ',');
    }
    return take(l, ')') ? 0 : bad(l, "a bracket is not closed");
}

/* The fields of a structure, behind the bracket that opens it. */
static int take_fields(struct literal *l, struct text *out, unsigned depth, struct element *ret)
{
    struct name names[MAX_FIELDS];
    bool comma = false;
    *ret = (struct element){.dtype = CKPT_DT_OTHER, .word = 1};
    text_adds(out, "[");
    for (unsigned n = 0; !take(l, ']'); n++) {
        struct element field;
        if ((n && !comma) || !take(l, '('))
            return bad(l, "a field of a structure is not a tuple");
        if (n == MAX_FIELDS)
            return too_long(l);
        text_adds(out, n ? ", (" : "(");
        int r = take_name(l, out, &names[n]);
        if (r < 0)
            return r;
        if (names[n].len && is_taken(out, names, n))
            return bad(l, "two fields have the same name");
        if (!take(l, ','))
            return bad(l, "a field has no type");
        text_adds(out, ", ");
        if ((r = take_descr(l, out, depth, &field)) < 0 || (r = take_repeat(l, out, &field.size)) < 0)
            return r;
        text_adds(out, ")");
        ret->size += field.size;
        if (ret->size > MAX_ITEM)
            return bad(l, "an element is too large");
        comma = take(l, ',');
    }
    text_adds(out, "]");
    return 0;
}

/* A type: a string, the list of a structure, or (inside of one) a tuple of a type and how often. Appended to `out` as
 * NumPy writes it, strings with quotes only within a structure. */
static int take_descr(struct literal *l, struct text *out, unsigned depth, struct element *ret)
{
    struct text code;
    int r;
    if (depth == MAX_NESTING)
        return bad(l, "nested too deeply");
    if (take(l, '['))
        return take_fields(l, out, depth + 1, ret);
    if (depth && take(l, '(')) {
        text_adds(out, "(");
        if ((r = take_descr(l, out, depth + 1, ret)) < 0)
            return r;
        r = take_repeat(l, out, &ret->size);
        text_adds(out, ")");
        return r;
    }
    if ((r = take_string(l, &code)) < 0)
        return r;
    text_adds(out, depth ? "'" : "");
    r = read_code(l, code.data, out, ret);
    text_adds(out, depth ? "'" : "");
    return r;
}

static int set_element(struct literal *l, struct text *descr, const struct element *e, struct ckpt_npy *ret)
{
    if (!text_ok(descr))
        return too_long(l);
    memcpy(ret->descr, descr->data, descr->len + 1);
    ret->dtype = e->dtype;
    ret->big_endian = e->big;
    ret->word = e->word;
    ret->itemsize = (uint32_t)e->size;
    return 0;
}

int ckpt_npy_parse_descr(const char *descr, struct ckpt_npy *ret, struct ckpt_err *err)
{
    struct literal l = {(const uint8_t *)descr, (const uint8_t *)descr + strlen(descr), .utf8 = true, .err = err};
    struct text out = {0};
    struct element e;
    int r = *descr == '[' ? take_descr(&l, &out, 0, &e) : read_code(&l, descr, &out, &e);
    if (r == 0 && *descr == '[' && look(&l) >= 0)
        r = bad(&l, "something follows its descr");
    return r < 0 ? r : set_element(&l, &out, &e, ret);
}

/* --- the header --- */

static int take_bool(struct literal *l, bool *ret)
{
    *ret = take_word(l, "True");
    return *ret || take_word(l, "False") ? 0 : bad(l, "fortran_order is not a bool");
}

static int take_header(struct literal *l, struct ckpt_npy *ret)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    bool seen[3] = {false}, comma = true;
    if (!take(l, '{'))
        return bad(l, "it is not a dictionary");
    while (!take(l, '}')) {
        struct text key, descr = {0};
        struct element e;
        int k = 0, r = comma ? take_string(l, &key) : bad(l, "a comma is missing");
        if (r < 0)
            return r;
        while (k < 3 && strcmp(key.data, keys[k]))
            k++;
        if (k == 3 || seen[k])
            return bad(l, k == 3 ? "it has a key that does not belong there" : "a key is there twice");
        seen[k] = true;
        if (!take(l, ':'))
            return bad(l, "a colon is missing");
        if (k == 0)
            r = (r = take_descr(l, &descr, 0, &e)) < 0 ? r : set_element(l, &descr, &e, ret);
        else
            r = k == 1 ? take_bool(l, &ret->fortran) : take_shape(l, &ret->ndim, ret->shape);
        if (r < 0)
            return r;
        comma = take(l, ',');
    }
    if (!seen[0] || !seen[1] || !seen[2])
        return bad(l, "descr, fortran_order or shape is missing");
    return look(l) < 0 ? 0 : bad(l, "something follows the dictionary");
}

int ckpt_npy_settle(struct ckpt_npy *npy, struct ckpt_err *err)
{
    uint64_t bytes = CKPT_MAX(npy->itemsize, 1u);
    bool empty = !npy->itemsize;
    for (unsigned i = 0; i < npy->ndim; i++) {
        empty |= !npy->shape[i];
        /* Bounded as if no dimension were empty, so that partial products stay sane. */
        if (ckpt_mul(bytes, CKPT_MAX(npy->shape[i], (uint64_t)1), &bytes) || bytes > MAX_BYTES)
            return ckpt_fail(err, EUCLEAN, "an array claims more than 2^62 bytes");
    }
    npy->nbytes = empty ? 0 : bytes;
    return 0;
}

int ckpt_npy_parse(const uint8_t *data, size_t len, struct ckpt_npy *ret, struct ckpt_err *err)
{
    if (len && memcmp(data, "\x93NUMPY", CKPT_MIN(len, (size_t)6)))
        return ckpt_fail(err, EUCLEAN, "not an .npy file");
    unsigned version = len < 8 ? 1 : (unsigned)data[6] << 8 | data[7];
    size_t prefix = version >> 8 == 1 ? 10 : 12;
    if (len >= 8 && version > 0x300)
        return ckpt_fail(err, EOPNOTSUPP, "version %u.%u of the .npy format is not known", version >> 8, version & 255);
    if (len >= 8 && version != 0x100 && version != 0x200 && version != 0x300)
        return ckpt_fail(err, EUCLEAN, "there is no version %u.%u of the .npy format", version >> 8, version & 255);
    size_t header = len < prefix ? 0 : prefix == 10 ? ckpt_le16(data + 8) : ckpt_le32(data + 8);
    if (header > CKPT_NPY_HEADER_MAX)
        return ckpt_fail(err, EOPNOTSUPP, "the .npy header has %zu bytes; at most %zu are read", header,
                         CKPT_NPY_HEADER_MAX);
    if (len < prefix || len - prefix < header)
        return ckpt_fail(err, EBADMSG, "the file ends within its .npy header");
    struct literal l = {data + prefix, data + prefix + header, .utf8 = version == 0x300, .long_ints = version < 0x300,
                        .err = err};
    struct ckpt_npy npy = {.header = (uint32_t)(prefix + header)};
    int r = take_header(&l, &npy);
    if (r == 0)
        r = ckpt_npy_settle(&npy, err);
    if (r == 0)
        *ret = npy;
    return r;
}
