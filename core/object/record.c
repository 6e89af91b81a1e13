/* SPDX-License-Identifier: Apache-2.0 */
#include "core/object/record.h"

#include "core/base/util.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_MODE 07777

/* In the order in which they are written. */
enum member {
    PARENT,
    NAME,
    NAME_HEX,
    KIND,
    CONTAINER,
    MODE,
    UID,
    GID,
    MTIME,
    SIZE,
    SHA256,
    OBJECT,
    OFFSET,
    CODEC,
    STORED,
    DESCR,
    DTYPE,
    SHAPE,
    HEADER,
    FORTRAN,
    TEXT,
    PRNG_IMPL,
    WHOLE,
    XATTRS,
    MEMBERS
};
static const char *const members[MEMBERS] = {
    "parent", "name",  "name_hex", "kind",    "container", "mode",      "uid",    "gid",
    "mtime",  "size",  "sha256",   "object",  "offset",    "codec",     "stored", "descr",
    "dtype",  "shape", "header",   "fortran", "text",      "prng_impl", "whole",  "xattrs",
};
#define BIT(m) (1u << (m))
/* A member that belongs to another kind of node is as good as unknown. */
static const uint32_t required[CKPT_NODE_KINDS] = {
    [CKPT_NODE_DIR] = BIT(CONTAINER),
    [CKPT_NODE_ARRAY] = BIT(SIZE) | BIT(SHA256) | BIT(CODEC) | BIT(STORED) | BIT(DESCR) | BIT(SHAPE) | BIT(HEADER),
    [CKPT_NODE_VALUE] = BIT(SIZE) | BIT(SHA256) | BIT(TEXT),
    [CKPT_NODE_BLOB] = BIT(SIZE) | BIT(SHA256) | BIT(CODEC) | BIT(STORED),
};

static const char *const kinds[CKPT_NODE_KINDS] = {"dir", "array", "value", "blob"};
static const char *const containers[CKPT_CONTAINERS] = {"dict", "list", "tuple", "namedtuple", "object"};

bool ckpt_manifest_name_ok(const char *name)
{
    size_t n = strlen(name);
    return n && n <= 255 && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return n >= m && !strcmp(name + n - m, suffix);
}

/* Views are found by these suffixes. */
static bool name_fits(const char *name, enum ckpt_node_kind kind)
{
    if (!ckpt_manifest_name_ok(name))
        return false;
    if (kind == CKPT_NODE_ARRAY)
        return ends_with(name, ".npy");
    if (kind == CKPT_NODE_VALUE)
        return ends_with(name, ".json");
    return true;
}

bool ckpt_manifest_is_sparse(const struct ckpt_manifest_node *n)
{
    bool has_object = n->kind == CKPT_NODE_ARRAY || n->kind == CKPT_NODE_BLOB;
    return has_object && n->codec == CKPT_OBJECT_SPARSE;
}

void ckpt_manifest_node_clear(struct ckpt_manifest_node *n)
{
    free(n->name);
    free(n->xattrs);
    free(n->text);
    free(n->type);
    free(n->prng_impl);
    n->name = n->xattrs = n->text = n->type = n->prng_impl = NULL;
}

/* --- what is told --- */

bool ckpt_told_ok(const char *text)
{
    size_t n = strlen(text);
    if (!n || n > CKPT_MANIFEST_TOLD_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return false;
    return true;
}

static void trim(const char *text, char *ret, size_t size)
{
    static const char space[] = " \t\r\n";
    text += strspn(text, space);
    size_t len = strcspn(text, space);
    snprintf(ret, size, "%.*s", (int)CKPT_MIN(len, size - 1), text);
}

bool ckpt_told_fits(const char *type, const char *text)
{
    enum ckpt_dtype dtype;
    uint8_t element[16];
    char number[400];
    trim(text, number, sizeof number);
    return ckpt_dtype_by_name(type, &dtype) && ckpt_dtype_of_json(dtype, number, element);
}

/* --- reading --- */

/* While a record is read. */
struct record {
    struct ckpt_scan *s;
    struct ckpt_manifest_node *n;
    struct ckpt_buf text;  /* of the member */
    enum ckpt_dtype dtype; /* as it is named; OTHER: it is not */
    uint32_t seen;
};

int ckpt_record_unhex(struct ckpt_scan *s, const struct ckpt_buf *hex, char **ret)
{
    CKPT_AUTOFREE char *bytes = malloc(hex->len / 2 + 1);
    if (!bytes)
        return ckpt_no_memory(s->err);
    for (size_t i = 0; i + 1 < hex->len; i += 2) {
        static const char digits[] = "0123456789abcdef";
        const char *high = memchr(digits, hex->data[i], 16), *low = memchr(digits, hex->data[i + 1], 16);
        if (!high || !low)
            return ckpt_scan_fail(s, "a name in hex is malformed");
        bytes[i / 2] = (char)((high - digits) << 4 | (low - digits));
    }
    bytes[hex->len / 2] = 0;
    if (hex->len % 2 || strlen(bytes) != hex->len / 2)
        return ckpt_scan_fail(s, "a name in hex is malformed");
    *ret = CKPT_STEAL(bytes);
    return 0;
}

static int take_copy(struct record *r, char **ret)
{
    int e = ckpt_scan_string(r->s, &r->text);
    if (e < 0)
        return e;
    *ret = strdup((char *)r->text.data);
    return *ret ? 0 : ckpt_no_memory(r->s->err);
}

/* One of the words of a table; a newer program may have more of them. */
static int take_table_word(struct record *r, const char *const *words, unsigned count, const char *what, unsigned *ret)
{
    int e = ckpt_scan_string(r->s, &r->text);
    if (e < 0)
        return e;
    const char *word = (char *)r->text.data;
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(word, words[i])) {
            *ret = i;
            return 0;
        }
    return ckpt_fail(r->s->err, EOPNOTSUPP, "a node of the manifest has the unknown %s %.60s", what, word);
}

static int take_hash(struct record *r, uint8_t *ret)
{
    int e = ckpt_scan_string(r->s, &r->text);
    if (e < 0)
        return e;
    if (r->text.len != CKPT_HEX - 1 || !ckpt_hash_parse((char *)r->text.data, ret))
        return ckpt_scan_fail(r->s, "a SHA-256 is malformed");
    return 0;
}

static int take_u32(struct record *r, uint64_t max, uint32_t *ret)
{
    uint64_t v;
    int e = ckpt_scan_u64(r->s, max, &v);
    if (e == 0)
        *ret = (uint32_t)v;
    return e;
}

static int take_shape(struct record *r)
{
    struct ckpt_npy *a = &r->n->npy;
    if (!ckpt_scan_take(r->s, '['))
        return ckpt_scan_fail(r->s, "a shape is not an array");
    for (a->ndim = 0; !ckpt_scan_take(r->s, ']'); a->ndim++) {
        if (a->ndim && !ckpt_scan_take(r->s, ','))
            return ckpt_scan_fail(r->s, "a comma is missing");
        if (a->ndim == CKPT_MAX_DIMS)
            return ckpt_fail(r->s->err, EOPNOTSUPP, "an array of the manifest has more than %d dimensions",
                             CKPT_MAX_DIMS);
        int e = ckpt_scan_u64(r->s, CKPT_LEAF_MAX, &a->shape[a->ndim]);
        if (e < 0)
            return e;
    }
    return 0;
}

static int take_xattrs(struct record *r)
{
    r->text.len = 0;
    int e = ckpt_scan_value(r->s, &r->text);
    if (e < 0)
        return e;
    if (r->text.len > CKPT_MANIFEST_XATTRS_MAX || *r->text.data != '{')
        return ckpt_scan_fail(r->s, "its attributes are no object, or too many");
    r->n->xattrs = strndup((char *)r->text.data, r->text.len);
    return r->n->xattrs ? 0 : ckpt_no_memory(r->s->err);
}

static int take_name(struct record *r, bool hex)
{
    if (r->n->name)
        return ckpt_scan_fail(r->s, "a node has two names");
    if (!hex)
        return take_copy(r, &r->n->name);
    int e = ckpt_scan_string(r->s, &r->text);
    return e < 0 ? e : ckpt_record_unhex(r->s, &r->text, &r->n->name);
}

/* The codec is told to people only: what reads an object looks at the object. */
static int take_codec(struct record *r)
{
    int e = ckpt_scan_string(r->s, &r->text);
    if (e == 0 && !ckpt_object_codec_by_name((char *)r->text.data, &r->n->codec))
        r->n->codec = CKPT_OBJECT_AUTO;
    return e;
}

static int take_member(struct record *r, enum member m)
{
    struct ckpt_manifest_node *n = r->n;
    struct ckpt_npy *a = &n->npy;
    unsigned word = 0;
    int e;
    switch (m) {
    case PARENT:
        return take_u32(r, CKPT_MAX_NODES, &n->parent);
    case NAME:
    case NAME_HEX:
        return take_name(r, m == NAME_HEX);
    case KIND:
        e = take_table_word(r, kinds, CKPT_NODE_KINDS, "kind", &word);
        n->kind = (enum ckpt_node_kind)word;
        return e;
    case CONTAINER:
        e = take_table_word(r, containers, CKPT_CONTAINERS, "container", &word);
        n->container = (enum ckpt_container)word;
        return e;
    case MODE:
        return take_u32(r, MAX_MODE, &n->mode);
    case UID:
        return take_u32(r, UINT32_MAX, &n->uid);
    case GID:
        return take_u32(r, UINT32_MAX, &n->gid);
    case MTIME:
        return ckpt_scan_i64(r->s, &n->mtime_ns);
    case SIZE:
        return ckpt_scan_u64(r->s, CKPT_LEAF_MAX, &n->size);
    case SHA256:
        return take_hash(r, n->sha256);
    case OBJECT:
        return take_hash(r, n->object);
    case OFFSET:
        return ckpt_scan_u64(r->s, CKPT_LEAF_MAX, &n->offset);
    case CODEC:
        return take_codec(r);
    case STORED:
        return ckpt_scan_u64(r->s, CKPT_LEAF_MAX, &n->stored);
    case DESCR:
        e = ckpt_scan_string(r->s, &r->text);
        return e < 0 ? e : ckpt_npy_parse_descr((char *)r->text.data, a, r->s->err);
    case DTYPE: /* one that this program does not know is shown as its descr says */
        e = take_copy(r, &n->type);
        if (e == 0 && !ckpt_dtype_by_name(n->type, &r->dtype))
            r->dtype = CKPT_DT_OTHER;
        return e;
    case SHAPE:
        return take_shape(r);
    case HEADER:
        return take_u32(r, CKPT_NPY_HEADER_MAX + 12, &a->header);
    case FORTRAN:
        return ckpt_scan_bool(r->s, &a->fortran);
    case TEXT:
        return take_copy(r, &n->text);
    case PRNG_IMPL:
        return take_copy(r, &n->prng_impl);
    case WHOLE:
        return ckpt_scan_bool(r->s, &n->whole);
    case XATTRS:
        return take_xattrs(r);
    default:
        return ckpt_scan_value(r->s, NULL);
    }
}

/* The name of the type has its place beside descr only where it has the same size. */
static bool dtype_fits(enum ckpt_dtype dtype, const struct ckpt_npy *a)
{
    return dtype == CKPT_DT_OTHER || ckpt_dtype_info(dtype)->size == a->itemsize;
}

static int check_array(struct record *r)
{
    struct ckpt_npy *a = &r->n->npy;
    int e = ckpt_npy_settle(a, r->s->err);
    if (e < 0)
        return e;
    if (!dtype_fits(r->dtype, a))
        return ckpt_scan_fail(r->s, "an array's dtype has another size than its descr");
    if (r->dtype != CKPT_DT_OTHER)
        a->dtype = r->dtype;
    else if (!(r->seen & BIT(DTYPE)) && !strcmp(a->descr, "<V2"))
        a->dtype = CKPT_DT_BF16;
    return a->header + a->nbytes == r->n->size ? 0 : ckpt_scan_fail(r->s, "an array has another size than its shape");
}

/* The members that a record must have. */
static uint32_t wanted_members(const struct ckpt_manifest_node *n, bool top)
{
    uint32_t want = BIT(MODE) | BIT(UID) | BIT(GID) | BIT(MTIME) | required[n->kind];
    if (!top)
        want |= BIT(PARENT) | BIT(KIND);
    if (ckpt_manifest_is_sparse(n)) /* its object's name is no SHA-256 */
        want = (want & ~BIT(SHA256)) | BIT(OBJECT);
    return want;
}

/* The top has no name, and is a directory. */
static bool has_its_name(const struct ckpt_manifest_node *n, bool top)
{
    if (top)
        return !n->name && n->kind == CKPT_NODE_DIR;
    return n->name && name_fits(n->name, n->kind);
}

static bool has_its_text(const struct ckpt_manifest_node *n)
{
    return strlen(n->text) == n->size && ckpt_manifest_text_ok(n->text, n->size);
}

/* Frees a text that cannot be what it should be. */
static void drop_unless(bool ok, char **text)
{
    if (!ok)
        free(CKPT_STEAL(*text));
}

/* What is told of a leaf, and does not fit, is as good as not told. */
static void check_told(struct record *r)
{
    struct ckpt_manifest_node *n = r->n;
    bool number = n->kind == CKPT_NODE_VALUE && n->text, blob = n->kind == CKPT_NODE_BLOB;
    if (n->type)
        drop_unless((number && ckpt_told_fits(n->type, n->text)) || (blob && ckpt_told_ok(n->type)), &n->type);
    if (n->prng_impl)
        drop_unless(n->kind == CKPT_NODE_ARRAY && ckpt_told_ok(n->prng_impl), &n->prng_impl);
    n->shaped = blob && n->type && r->seen & BIT(SHAPE);
    n->whole = n->whole && (blob || n->kind == CKPT_NODE_ARRAY);
}

static int check_record(struct record *r, bool top)
{
    struct ckpt_manifest_node *n = r->n;
    bool sparse = ckpt_manifest_is_sparse(n);
    uint32_t want = wanted_members(n, top);
    if ((r->seen & want) != want)
        return ckpt_scan_fail(r->s, "a node lacks a member");
    if (sparse && (r->seen & BIT(SHA256) || n->offset))
        return ckpt_scan_fail(r->s, "a sparse leaf has a member that it cannot have");
    if (!has_its_name(n, top))
        return ckpt_scan_fail(r->s, "a node has a name that it cannot have");
    if (sparse)
        memcpy(n->sha256, n->object, CKPT_SHA256);
    if (!(r->seen & BIT(OBJECT)))
        memcpy(n->object, n->sha256, CKPT_SHA256);
    if (n->kind == CKPT_NODE_VALUE && !has_its_text(n))
        return ckpt_scan_fail(r->s, "a value is none");
    check_told(r);
    return n->kind == CKPT_NODE_ARRAY ? check_array(r) : 0;
}

/* The member of a name, or MEMBERS. They mostly come in order, so the search begins at the one that is due. */
static unsigned member_by_name(const char *name, unsigned due)
{
    for (unsigned i = 0; i < MEMBERS; i++) {
        unsigned m = (due + i) % MEMBERS;
        if (!strcmp(members[m], name))
            return m;
    }
    return MEMBERS;
}

/* A member whose name has been read. *due: the one that comes next, mostly. */
static int parse_member(struct record *r, unsigned *due)
{
    unsigned m = member_by_name((char *)r->text.data, *due);
    if (m == MEMBERS) /* of a newer program */
        return ckpt_scan_value(r->s, NULL);
    if (r->seen & BIT(m))
        return ckpt_scan_fail(r->s, "a member is there twice");
    r->seen |= BIT(m);
    *due = (m + 1) % MEMBERS;
    return take_member(r, (enum member)m);
}

static int parse_members(struct record *r)
{
    bool first = true;
    unsigned due = 0;
    if (!ckpt_scan_take(r->s, '{'))
        return ckpt_scan_fail(r->s, "a record is not an object");
    for (;;) {
        int e = ckpt_scan_member(r->s, &first, &r->text);
        if (e <= 0)
            return e;
        e = parse_member(r, &due);
        if (e < 0)
            return e;
    }
}

int ckpt_record_parse(struct ckpt_scan *s, bool top, struct ckpt_manifest_node *ret)
{
    struct record r = {.s = s, .n = ret, .dtype = CKPT_DT_OTHER};
    *ret = (struct ckpt_manifest_node){0};
    int e = parse_members(&r);
    if (e == 0)
        e = check_record(&r, top);
    ckpt_buf_clear(&r.text);
    if (e < 0)
        ckpt_manifest_node_clear(ret);
    return e;
}

/* --- writing --- */

static void add_string(struct ckpt_buf *buf, const char *key, const char *text)
{
    ckpt_buf_addf(buf, ",\"%s\":", key);
    ckpt_buf_add_json_string(buf, text, strlen(text));
}

void ckpt_record_add_name(struct ckpt_buf *buf, const char *name)
{
    if (ckpt_utf8(name, strlen(name))) {
        ckpt_buf_adds(buf, "\"name\":");
        ckpt_buf_add_json_string(buf, name, strlen(name));
        return;
    }
    ckpt_buf_adds(buf, "\"name_hex\":\"");
    for (; *name; name++)
        ckpt_buf_addf(buf, "%02x", (uint8_t)*name);
    ckpt_buf_addc(buf, '"');
}

static void add_content(struct ckpt_buf *buf, const struct ckpt_manifest_node *n)
{
    char hex[CKPT_HEX];
    bool sparse = ckpt_manifest_is_sparse(n);
    ckpt_hash_hex(n->sha256, hex);
    ckpt_buf_addf(buf, ",\"size\":%" PRIu64, n->size);
    if (!sparse)
        ckpt_buf_addf(buf, ",\"sha256\":\"%s\"", hex);
    if (n->kind == CKPT_NODE_VALUE)
        return;
    if (sparse || memcmp(n->object, n->sha256, CKPT_SHA256)) {
        ckpt_hash_hex(n->object, hex);
        ckpt_buf_addf(buf, ",\"object\":\"%s\"", hex);
    }
    if (n->offset)
        ckpt_buf_addf(buf, ",\"offset\":%" PRIu64, n->offset);
    ckpt_buf_addf(buf, ",\"codec\":\"%s\",\"stored\":%" PRIu64, ckpt_object_codec_name(n->codec), n->stored);
}

/* Can an array be written such that it is read again as it is? *a is settled, *plain gets what its descr says. */
static bool array_fits(const struct ckpt_manifest_node *n, struct ckpt_npy *a, struct ckpt_npy *plain)
{
    if (ckpt_npy_parse_descr(a->descr, plain, NULL) < 0 || strcmp(plain->descr, a->descr))
        return false;
    if (plain->itemsize != a->itemsize || a->ndim > CKPT_MAX_DIMS)
        return false;
    if (ckpt_npy_settle(a, NULL) < 0 || a->header + a->nbytes != n->size)
        return false;
    return dtype_fits(a->dtype, a) && a->header <= CKPT_NPY_HEADER_MAX + 12;
}

static void add_shape(struct ckpt_buf *buf, const struct ckpt_npy *a)
{
    ckpt_buf_adds(buf, ",\"shape\":[");
    for (unsigned i = 0; i < a->ndim; i++)
        ckpt_buf_addf(buf, i ? ",%" PRIu64 : "%" PRIu64, a->shape[i]);
    ckpt_buf_addc(buf, ']');
}

/* Of an array the dtype has been told already, where it must. */
static void add_told(struct ckpt_buf *buf, const struct ckpt_manifest_node *n)
{
    bool array = n->kind == CKPT_NODE_ARRAY;
    if (n->type && !array)
        add_string(buf, "dtype", n->type);
    if (n->type && n->shaped)
        add_shape(buf, &n->npy);
    if (n->prng_impl && array)
        add_string(buf, "prng_impl", n->prng_impl);
    if (n->whole && n->kind != CKPT_NODE_VALUE)
        ckpt_buf_adds(buf, ",\"whole\":true");
}

static int add_array(struct ckpt_buf *buf, const struct ckpt_manifest_node *n)
{
    struct ckpt_npy a = n->npy, plain = {0};
    if (!array_fits(n, &a, &plain))
        return -EINVAL;
    add_string(buf, "descr", a.descr);
    if (a.dtype != plain.dtype && a.dtype != CKPT_DT_OTHER)
        add_string(buf, "dtype", ckpt_dtype_info(a.dtype)->name);
    add_shape(buf, &a);
    ckpt_buf_addf(buf, ",\"header\":%u", a.header);
    if (a.fortran)
        ckpt_buf_adds(buf, ",\"fortran\":true");
    return 0;
}

static int add_xattrs(struct ckpt_buf *buf, const char *xattrs)
{
    struct ckpt_scan s = {xattrs, xattrs + strlen(xattrs), NULL};
    ckpt_buf_adds(buf, ",\"xattrs\":");
    size_t begin = buf->len;
    int r = ckpt_scan_value(&s, buf);
    if (r < 0)
        return r == -ENOMEM ? r : -EINVAL;
    bool alone = s.p + strspn(s.p, " \t\r\n") == s.end; /* nothing comes behind it */
    bool object = buf->data[begin] == '{';
    return alone && object && buf->len - begin <= CKPT_MANIFEST_XATTRS_MAX ? 0 : -EINVAL;
}

static bool content_fits(const struct ckpt_manifest_node *n)
{
    bool same_names = !memcmp(n->object, n->sha256, CKPT_SHA256);
    if (ckpt_manifest_is_sparse(n) && (n->offset || !same_names))
        return false;
    if (n->size > CKPT_LEAF_MAX || n->offset > CKPT_LEAF_MAX || n->stored > CKPT_LEAF_MAX)
        return false;
    if (n->kind == CKPT_NODE_VALUE)
        return n->text && has_its_text(n);
    return true;
}

/* Only what is read again is written. */
static bool told_fits(const struct ckpt_manifest_node *n)
{
    if (n->prng_impl && !ckpt_told_ok(n->prng_impl))
        return false;
    if (!n->type || n->kind == CKPT_NODE_ARRAY)
        return true;
    if (n->kind == CKPT_NODE_VALUE)
        return ckpt_told_fits(n->type, n->text);
    return ckpt_told_ok(n->type) && n->npy.ndim <= CKPT_MAX_DIMS;
}

static bool node_fits(const struct ckpt_manifest_node *n, bool top)
{
    if ((unsigned)n->kind >= CKPT_NODE_KINDS || (unsigned)n->container >= CKPT_CONTAINERS)
        return false;
    if (n->mode > MAX_MODE || n->mtime_ns == INT64_MIN)
        return false;
    bool dir = n->kind == CKPT_NODE_DIR;
    if (top && !dir)
        return false;
    bool named = top || (n->name && name_fits(n->name, n->kind));
    return named && (dir || (content_fits(n) && told_fits(n)));
}

int ckpt_record_print(struct ckpt_buf *buf, const struct ckpt_manifest_node *n, bool top)
{
    int r = 0;
    if (!node_fits(n, top))
        return -EINVAL;
    ckpt_buf_addc(buf, '{');
    if (!top) {
        ckpt_buf_addf(buf, "\"parent\":%u,", n->parent);
        ckpt_record_add_name(buf, n->name);
        ckpt_buf_addf(buf, ",\"kind\":\"%s\",", kinds[n->kind]);
    }
    if (n->kind == CKPT_NODE_DIR)
        ckpt_buf_addf(buf, "\"container\":\"%s\",", containers[n->container]);
    ckpt_buf_addf(buf, "\"mode\":%u,\"uid\":%u,\"gid\":%u,\"mtime\":%" PRId64, n->mode, n->uid, n->gid, n->mtime_ns);
    if (n->kind != CKPT_NODE_DIR)
        add_content(buf, n);
    if (n->kind == CKPT_NODE_ARRAY)
        r = add_array(buf, n);
    if (n->kind == CKPT_NODE_VALUE)
        add_string(buf, "text", n->text);
    if (n->kind != CKPT_NODE_DIR)
        add_told(buf, n);
    if (r == 0 && n->xattrs)
        r = add_xattrs(buf, n->xattrs);
    ckpt_buf_addc(buf, '}');
    return r < 0 ? r : ckpt_buf_error(buf);
}
