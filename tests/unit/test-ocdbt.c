/* SPDX-License-Identifier: Apache-2.0 */
/* Databases written here byte by byte, whole and damaged, and the real ones of tests/data/orbax. */
#include "core/format/ocdbt/ocdbt.h"

#include "core/base/buf.h"
#include "core/base/util.h"
#include "core/codec/crc32c.h"
#include "tests/unit/check.h"

#include <ftw.h>
#include <zstd.h>

#define MANIFEST 0x0cdb3a2au
#define NODE     0x0cdb20deu

/* ---- a small writer ---- */

struct file {
    const char *path;
    unsigned base;
};

struct entry {
    const char *key;
    const char *inline_value; /* NULL: out of line, or a child */
    unsigned file;
    uint64_t off, len;
    unsigned common;
};

struct node {
    unsigned height;
    struct file files[8];
    unsigned file_count;
    const struct entry *entries;
    unsigned count;
    uint64_t count_said; /* 0: count */
};

static void varint(struct ckpt_buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        ckpt_buf_addc(b, (char)(v | 0x80));
    ckpt_buf_addc(b, (char)v);
}

static size_t shared(const char *a, const char *b)
{
    size_t n = 0;
    while (a[n] && a[n] == b[n])
        n++;
    return n;
}

static void put_files(struct ckpt_buf *b, const struct file *f, unsigned n)
{
    varint(b, n);
    for (unsigned i = 1; i < n; i++)
        varint(b, shared(f[i - 1].path, f[i].path));
    for (unsigned i = 0; i < n; i++)
        varint(b, strlen(f[i].path) - (i ? shared(f[i - 1].path, f[i].path) : 0));
    for (unsigned i = 0; i < n; i++)
        varint(b, f[i].base);
    for (unsigned i = 0; i < n; i++)
        ckpt_buf_adds(b, f[i].path + (i ? shared(f[i - 1].path, f[i].path) : 0));
}

static struct ckpt_buf node_body(const struct node *n)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_addc(&b, (char)n->height);
    put_files(&b, n->files, n->file_count);
    varint(&b, n->count_said ? n->count_said : n->count);
    const struct entry *e = n->entries;
    for (unsigned i = 1; i < n->count; i++)
        varint(&b, shared(e[i - 1].key, e[i].key));
    for (unsigned i = 0; i < n->count; i++)
        varint(&b, strlen(e[i].key) - (i ? shared(e[i - 1].key, e[i].key) : 0));
    for (unsigned i = 0; n->height && i < n->count; i++)
        varint(&b, e[i].common);
    for (unsigned i = 0; i < n->count; i++)
        ckpt_buf_adds(&b, e[i].key + (i ? shared(e[i - 1].key, e[i].key) : 0));
    if (n->height) {
        for (unsigned i = 0; i < n->count; i++)
            varint(&b, e[i].file);
        for (unsigned i = 0; i < n->count; i++)
            varint(&b, e[i].off);
        for (unsigned i = 0; i < n->count; i++)
            varint(&b, e[i].len);
        for (unsigned i = 0; i < 3 * n->count; i++)
            varint(&b, i * 1000);
        return b;
    }
    for (unsigned i = 0; i < n->count; i++)
        varint(&b, e[i].inline_value ? strlen(e[i].inline_value) : e[i].len);
    for (unsigned i = 0; i < n->count; i++)
        ckpt_buf_addc(&b, e[i].inline_value ? 0 : 1);
    for (unsigned i = 0; i < n->count; i++)
        if (!e[i].inline_value)
            varint(&b, e[i].file);
    for (unsigned i = 0; i < n->count; i++)
        if (!e[i].inline_value)
            varint(&b, e[i].off);
    for (unsigned i = 0; i < n->count; i++)
        if (e[i].inline_value)
            ckpt_buf_adds(&b, e[i].inline_value);
    return b;
}

/* zstd: 0 none, 1 with a content size, 2 without. Takes the body. */
static void seal_as(struct ckpt_buf *out, uint32_t magic, struct ckpt_buf body, int zstd, unsigned version,
                    unsigned compression)
{
    size_t begin = out->len;
    uint32_t be = __builtin_bswap32(magic);
    uint64_t len = 0;
    ckpt_buf_add(out, &be, 4);
    ckpt_buf_add(out, &len, 8);
    varint(out, version);
    varint(out, compression);
    if (zstd) {
        ZSTD_CCtx *c = ZSTD_createCCtx();
        ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, zstd == 1);
        size_t cap = ZSTD_compressBound(body.len);
        void *z = malloc(cap);
        size_t n = ZSTD_compress2(c, z, cap, body.data, body.len);
        CHECK(!ZSTD_isError(n));
        ckpt_buf_add(out, z, n);
        free(z);
        ZSTD_freeCCtx(c);
    } else {
        ckpt_buf_add(out, body.data, body.len);
    }
    len = out->len - begin + 4;
    memcpy(out->data + begin + 4, &len, 8);
    uint32_t crc = ckpt_crc32c(0, out->data + begin, out->len - begin);
    ckpt_buf_add(out, &crc, 4);
    CHECK(ckpt_buf_error(out) == 0);
    ckpt_buf_clear(&body);
}

static void seal(struct ckpt_buf *out, uint32_t magic, struct ckpt_buf body, int zstd)
{
    seal_as(out, magic, body, zstd, 0, zstd != 0);
}

/* Returns where in `out` the node begins, and its length. */
static struct entry add_node(struct ckpt_buf *out, const struct node *n, int zstd)
{
    struct entry e = {.off = out->len};
    seal(out, NODE, node_body(n), zstd);
    e.len = out->len - e.off;
    return e;
}

struct version {
    struct file file;
    unsigned height;
    uint64_t off, len;
};

static struct ckpt_buf manifest_body(unsigned kind, const struct version *v)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_add(&b, "0123456789abcdef", 16);
    ckpt_buf_addc(&b, (char)kind);
    varint(&b, 1024);
    varint(&b, 100000000);
    ckpt_buf_addc(&b, 4);
    varint(&b, 1);
    ckpt_buf_add(&b, "\0\0\0\0", 4);
    if (kind == 1)
        return b;
    /* Two versions: an empty one, and the one that counts. */
    put_files(&b, &v->file, 1);
    varint(&b, 2);
    varint(&b, 1);
    varint(&b, 2);
    ckpt_buf_addc(&b, 0);
    ckpt_buf_addc(&b, (char)v->height);
    varint(&b, 0);
    varint(&b, 0);
    varint(&b, UINT64_MAX);
    varint(&b, v->off);
    varint(&b, UINT64_MAX);
    varint(&b, v->len);
    for (int i = 0; i < 6; i++)
        varint(&b, 5);
    for (int i = 0; i < 16; i++)
        ckpt_buf_addc(&b, 1);
    /* One version tree node, to be passed over. */
    varint(&b, 1);
    for (int i = 0; i < 5; i++)
        varint(&b, 0);
    for (int i = 0; i < 8; i++)
        ckpt_buf_addc(&b, 1);
    ckpt_buf_addc(&b, 1);
    return b;
}

/* ---- a database in memory ---- */

struct db {
    struct ckpt_backend *backend;
    struct ckpt_pins *pins;
    struct ckpt_ocdbt *ocdbt;
    struct ckpt_err err;
};

static void db_init(struct db *d)
{
    memset(d, 0, sizeof *d);
    d->backend = ckpt_backend_new_memory();
    CHECK(d->backend);
}

static void db_add(struct db *d, const char *path, const struct ckpt_buf *b)
{
    CHECK(ckpt_backend_memory_add(d->backend, path, b->data, b->len) == 0);
}

static int db_open(struct db *d, const char *dir)
{
    CHECK(ckpt_pins_new(d->backend, &d->pins) == 0);
    return ckpt_ocdbt_open(d->pins, dir, &d->ocdbt, &d->err);
}

static void db_clear(struct db *d)
{
    ckpt_ocdbt_close(d->ocdbt);
    if (d->pins)
        ckpt_pins_unref(d->pins);
    ckpt_backend_unref(d->backend);
}

static void expect_value(struct db *d, const char *key, const char *want)
{
    struct ckpt_extent e;
    struct ckpt_err err;
    int r = ckpt_ocdbt_get(d->ocdbt, key, strlen(key), &e, &err);
    if (!want) {
        CHECK(r == -ENOENT && err.code == ENOENT);
        return;
    }
    CHECK(r == 0 && e.len == strlen(want));
    char buf[256];
    CHECK(ckpt_extent_read(&e, buf, e.len, 0) == 0 && memcmp(buf, want, e.len) == 0);
    ckpt_extent_clear(&e);
}

static int collect(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    ckpt_buf_addf(arg, "%.*s=%d ", (int)key_len, (const char *)key, (int)value_len);
    return 0;
}

static void expect_keys(struct db *d, const char *prefix, const char *want)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_adds(&b, "");
    CHECK(ckpt_ocdbt_each(d->ocdbt, prefix, strlen(prefix), collect, &b, &d->err) == 0);
    ckpt_buf_addc(&b, '\0');
    CHECK_STR((char *)b.data, want);
    ckpt_buf_clear(&b);
}

/* Opens and verifies a database of one root that is all of file d/r; the result of whichever failed. */
static int try_root(const void *root, size_t len, unsigned height, char *text)
{
    struct db d;
    struct ckpt_buf m = CKPT_BUF_INIT, r = CKPT_BUF_INIT;
    ckpt_buf_add(&r, root, len);
    seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/r", 0}, height, 0, len}), 0);
    db_init(&d);
    db_add(&d, "manifest.ocdbt", &m);
    db_add(&d, "d/r", &r);
    CHECK(db_open(&d, "") == 0);
    int e = ckpt_ocdbt_verify(d.ocdbt, NULL, NULL, &d.err);
    struct ckpt_extent ext;
    if (e < 0) {
        CHECK(d.err.code == -e && strstr(d.err.text, "d/"));
        if (text)
            strcpy(text, d.err.text);
        struct ckpt_buf b = CKPT_BUF_INIT;
        CHECK(ckpt_ocdbt_each(d.ocdbt, "", 0, collect, &b, NULL) == e);
        ckpt_buf_clear(&b);
    }
    if (ckpt_ocdbt_get(d.ocdbt, "k", 1, &ext, &d.err) == 0)
        ckpt_extent_clear(&ext);
    db_clear(&d);
    ckpt_buf_clear(&m);
    ckpt_buf_clear(&r);
    return e;
}

static int try_body(struct ckpt_buf body, char *text)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    unsigned height = body.len ? body.data[0] : 0;
    seal(&b, NODE, body, 0);
    int r = try_root(b.data, b.len, height, text);
    ckpt_buf_clear(&b);
    return r;
}

static int try_node(const struct node *n)
{
    return try_body(node_body(n), NULL);
}

/* ---- what has to work ---- */

static const struct entry leaf_entries[] = {
    {"a/.zarray", "{}"}, {"a/0", NULL, 0, 2, 3}, {"a/1", NULL, 1, 0, 4}, {"ab/.zarray", ""}, {"b", "inline"},
};
static const struct node leaf = {
    .files = {{"ocdbt.process_0/d/one", 16}, {"ocdbt.process_0/d/two", 16}},
    .file_count = 2,
    .entries = leaf_entries,
    .count = 5,
};

static void add_values(struct db *d, const char *one, const char *two)
{
    CHECK(ckpt_backend_memory_add(d->backend, one, "..123..", 7) == 0);
    CHECK(ckpt_backend_memory_add(d->backend, two, "wxyz", 4) == 0);
}

static void check_leaf(struct db *d)
{
    expect_value(d, "a/.zarray", "{}");
    expect_value(d, "a/0", "123");
    expect_value(d, "a/1", "wxyz");
    expect_value(d, "ab/.zarray", "");
    expect_value(d, "b", "inline");
    static const char *const none[] = {"", "a", "a/", "a/00", "a/2", "ab", "c", "\xff\xff", "A"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        expect_value(d, none[i], NULL);
    expect_keys(d, "", "a/.zarray=2 a/0=3 a/1=4 ab/.zarray=0 b=6 ");
    expect_keys(d, "a/", "a/.zarray=2 a/0=3 a/1=4 ");
    expect_keys(d, "a/0", "a/0=3 ");
    expect_keys(d, "ab", "ab/.zarray=0 ");
    expect_keys(d, "b", "b=6 ");
    expect_keys(d, "bb", "");
    expect_keys(d, "c", "");
    expect_keys(d, "0", "");
    CHECK(ckpt_ocdbt_pin(d->ocdbt, &d->err) == 0);
    CHECK(ckpt_pins_count(d->pins) >= 3);
}

static void add_progress(void *arg, uint64_t bytes)
{
    *(uint64_t *)arg += bytes;
}

static void test_leaf(void)
{
    for (int zstd = 0; zstd < 3; zstd++) {
        for (int numbered = 0; numbered < 2; numbered++) {
            struct db d;
            struct ckpt_buf file = CKPT_BUF_INIT, m = CKPT_BUF_INIT, m1 = CKPT_BUF_INIT, top = CKPT_BUF_INIT;
            ckpt_buf_adds(&file, "garbage of an older generation");
            struct entry at = add_node(&file, &leaf, zstd);
            struct version v = {{"d/root", 0}, 0, at.off, at.len};
            seal(&m, MANIFEST, manifest_body(0, &v), zstd);
            v.off++; /* an older version that would not open */
            seal(&m1, MANIFEST, manifest_body(0, &v), zstd);
            seal(&top, MANIFEST, manifest_body(1, NULL), zstd);
            db_init(&d);
            db_add(&d, "x/item/d/root", &file);
            add_values(&d, "x/item/ocdbt.process_0/d/one", "x/item/ocdbt.process_0/d/two");
            if (numbered) {
                db_add(&d, "x/item/manifest.ocdbt", &top);
                db_add(&d, "x/item/manifest.000000000000000f", &m1);
                db_add(&d, "x/item/manifest.0000000000000010", &m);
                db_add(&d, "x/item/manifest.00000000000000ff0", &m1);
                db_add(&d, "x/item/manifest.000000000000ZZZZ", &m1);
            } else {
                db_add(&d, "x/item/manifest.ocdbt", &m);
            }
            CHECK(db_open(&d, "x/item") == 0);
            check_leaf(&d);
            uint64_t bytes = 0;
            CHECK(ckpt_ocdbt_verify(d.ocdbt, add_progress, &bytes, &d.err) == 0);
            CHECK(bytes == at.len);
            db_clear(&d);
            ckpt_buf_clear(&file);
            ckpt_buf_clear(&m);
            ckpt_buf_clear(&m1);
            ckpt_buf_clear(&top);
        }
    }
}

/*
 * Height 2. The left child has its own prefix and lies in a file with a base, so its data files are relative to that;
 * keys come together from three levels.
 */
static void test_interior(void)
{
    struct ckpt_buf sub = CKPT_BUF_INIT, top = CKPT_BUF_INIT, m = CKPT_BUF_INIT;
    static const struct entry low[] = {{"", "empty"}, {"0", NULL, 0, 2, 3}, {"1", "one"}};
    static const struct entry mid[] = {{"2", "two"}, {"30", NULL, 1, 0, 4}};
    static const struct entry high[] = {{"p/y", "py"}, {"q", "Q"}};
    struct entry a = add_node(&sub,
                              &(struct node){.entries = low, .count = 3, .files = {{"d/one", 0}}, .file_count = 1}, 1);
    struct entry b = add_node(
        &sub, &(struct node){.entries = mid, .count = 2, .files = {{"d/one", 0}, {"d/two", 0}}, .file_count = 2}, 0);
    a.key = "k";
    a.common = 1;
    b.key = "k2";
    b.common = 1;
    struct entry inner[] = {a, b};
    struct entry left = add_node(
        &sub, &(struct node){.height = 1, .entries = inner, .count = 2, .files = {{"d/nodes", 0}}, .file_count = 1}, 2);
    struct entry right_leaf = add_node(&top, &(struct node){.entries = high, .count = 2}, 0);
    right_leaf.key = "p";
    struct entry right = add_node(
        &top, &(struct node){.height = 1, .entries = &right_leaf, .count = 1, .files = {{"d/top", 0}}, .file_count = 1},
        0);
    left.key = "a/k";
    left.common = 2;
    left.file = 1;
    right.key = "p";
    right.file = 0;
    struct entry root[] = {left, right};
    struct entry r = add_node(
        &top,
        &(struct node){
            .height = 2, .entries = root, .count = 2, .files = {{"d/top", 0}, {"host.1/d/nodes", 7}}, .file_count = 2},
        0);
    seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/top", 0}, 2, r.off, r.len}), 1);
    struct db d;
    db_init(&d);
    db_add(&d, "manifest.ocdbt", &m);
    db_add(&d, "d/top", &top);
    db_add(&d, "host.1/d/nodes", &sub);
    add_values(&d, "host.1/d/one", "host.1/d/two");
    CHECK(db_open(&d, "") == 0);
    CHECK(ckpt_ocdbt_verify(d.ocdbt, NULL, NULL, &d.err) == 0);
    expect_value(&d, "a/k", "empty");
    expect_value(&d, "a/k0", "123");
    expect_value(&d, "a/k1", "one");
    expect_value(&d, "a/k2", "two");
    expect_value(&d, "a/k30", "wxyz");
    expect_value(&d, "p/y", "py");
    expect_value(&d, "q", "Q");
    static const char *const none[] = {"", "a", "a/", "a/j", "a/k11", "a/k3", "a/l", "b", "k", "p", "p/z", "zz"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        expect_value(&d, none[i], NULL);
    expect_keys(&d, "", "a/k=5 a/k0=3 a/k1=3 a/k2=3 a/k30=4 p/y=2 q=1 ");
    expect_keys(&d, "a", "a/k=5 a/k0=3 a/k1=3 a/k2=3 a/k30=4 ");
    expect_keys(&d, "a/k2", "a/k2=3 ");
    expect_keys(&d, "a/k3", "a/k30=4 ");
    expect_keys(&d, "p", "p/y=2 ");
    expect_keys(&d, "b", "");
    CHECK(ckpt_ocdbt_pin(d.ocdbt, &d.err) == 0);
    CHECK(ckpt_pins_count(d.pins) == 4);
    db_clear(&d);
    ckpt_buf_clear(&sub);
    ckpt_buf_clear(&top);
    ckpt_buf_clear(&m);
}

static void test_empty(void)
{
    struct db d;
    struct ckpt_buf m = CKPT_BUF_INIT;
    seal(&m, MANIFEST, manifest_body(0, &(struct version){{"", 0}, 0, UINT64_MAX, UINT64_MAX}), 1);
    db_init(&d);
    db_add(&d, "manifest.ocdbt", &m);
    CHECK(db_open(&d, "") == 0);
    expect_value(&d, "x", NULL);
    expect_keys(&d, "", "");
    CHECK(ckpt_ocdbt_pin(d.ocdbt, &d.err) == 0 && ckpt_ocdbt_verify(d.ocdbt, NULL, NULL, &d.err) == 0);
    db_clear(&d);
    ckpt_buf_clear(&m);
}

/* ---- what has to be refused ---- */

static void test_bad_manifest(void)
{
    struct version v = {{"d/r", 0}, 0, 0, 100};
    struct ckpt_buf good = CKPT_BUF_INIT, m = CKPT_BUF_INIT;
    seal(&good, MANIFEST, manifest_body(0, &v), 0);
    for (size_t i = 0; i < good.len; i++) { /* every byte is covered by the checksum */
        struct db d;
        db_init(&d);
        good.data[i] ^= 0x10;
        db_add(&d, "manifest.ocdbt", &good);
        CHECK(db_open(&d, "") == -EBADMSG && strstr(d.err.text, "manifest.ocdbt"));
        db_clear(&d);
        good.data[i] ^= 0x10;
        struct ckpt_buf cut = good;
        cut.len = i;
        db_init(&d);
        db_add(&d, "manifest.ocdbt", &cut);
        CHECK(db_open(&d, "") == -EBADMSG);
        db_clear(&d);
    }
    ckpt_buf_clear(&good);

    static const struct {
        uint32_t magic;
        const char *path;
        unsigned kind, version, compression;
        uint64_t off;
        int code;
    } cases[] = {
        {MANIFEST, "d/r", 0, 0, 0, 0, 0},
        {NODE, "d/r", 0, 0, 0, 0, -EUCLEAN},
        {MANIFEST, "d/r", 0, 1, 0, 0, -EOPNOTSUPP},
        {MANIFEST, "d/r", 0, 0, 2, 0, -EOPNOTSUPP},
        {MANIFEST, "d/r", 2, 0, 0, 0, -EOPNOTSUPP},
        {MANIFEST, "d/r", 1, 0, 0, 0, -EUCLEAN}, /* no numbered one is there */
        {MANIFEST, "/etc/passwd", 0, 0, 0, 0, -EUCLEAN},
        {MANIFEST, "d/../../x", 0, 0, 0, 0, -EUCLEAN},
        {MANIFEST, "..", 0, 0, 0, 0, -EUCLEAN},
        {MANIFEST, "", 0, 0, 0, 0, -EUCLEAN},
        {MANIFEST, "d/r", 0, 0, 0, UINT64_MAX, -EUCLEAN},
        {MANIFEST, "d/r", 0, 0, 0, INT64_MAX - 50, -EUCLEAN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct db d;
        v.file.path = cases[i].path;
        v.off = cases[i].off;
        seal_as(&m, cases[i].magic, manifest_body(cases[i].kind, &v), 0, cases[i].version, cases[i].compression);
        db_init(&d);
        db_add(&d, "manifest.ocdbt", &m);
        CHECK(db_open(&d, "") == cases[i].code);
        CHECK(cases[i].code == 0 || d.err.code == -cases[i].code);
        db_clear(&d);
        ckpt_buf_clear(&m);
    }
    /* Left-over bytes, and a body cut anywhere. */
    v = (struct version){{"d/r", 0}, 0, 0, 100};
    struct ckpt_buf body = manifest_body(0, &v);
    size_t len = body.len;
    ckpt_buf_clear(&body);
    for (size_t i = 0; i <= len; i++) {
        struct db d;
        body = manifest_body(0, &v);
        body.len = i;
        if (i == len)
            ckpt_buf_addc(&body, 0);
        seal(&m, MANIFEST, body, 1);
        db_init(&d);
        db_add(&d, "manifest.ocdbt", &m);
        CHECK(db_open(&d, "") == -EUCLEAN);
        db_clear(&d);
        ckpt_buf_clear(&m);
    }
    struct db d;
    db_init(&d);
    CHECK(db_open(&d, "") == -ENOENT);
    db_clear(&d);
}

static void test_bad_nodes(void)
{
    char text[CKPT_ERR_TEXT];
    static const struct entry two[] = {{"a", "1"}, {"b", "2"}};
    struct node n = {.entries = two, .count = 2};
    CHECK(try_node(&n) == 0);

    /* A flipped bit, a cut file, and a cut or prolonged body. */
    struct ckpt_buf whole = CKPT_BUF_INIT;
    seal(&whole, NODE, node_body(&n), 0);
    for (size_t i = 0; i < whole.len; i++) {
        whole.data[i] ^= 1;
        CHECK(try_root(whole.data, whole.len, 0, text) == -EBADMSG);
        CHECK(strstr(text, "d/r: B+tree node at offset 0: "));
        whole.data[i] ^= 1;
        CHECK(try_root(whole.data, i, 0, NULL) == -EBADMSG);
    }
    CHECK(try_root(whole.data, whole.len, 1, text) == -EUCLEAN && strstr(text, "height"));
    ckpt_buf_clear(&whole);
    struct ckpt_buf body = node_body(&n);
    size_t len = body.len;
    ckpt_buf_clear(&body);
    for (size_t i = 0; i <= len; i++) {
        body = node_body(&n);
        body.len = i;
        if (i == len)
            ckpt_buf_addc(&body, 'x');
        CHECK(try_body(body, text) == -EUCLEAN);
    }

    static const struct entry unsorted[] = {{"b", "1"}, {"a", "2"}}, same[] = {{"a", "1"}, {"a", "2"}},
                              falling[] = {{"ab", "1"}, {"a", "2"}};
    n.entries = unsorted;
    CHECK(try_node(&n) == -EUCLEAN);
    n.entries = same;
    CHECK(try_node(&n) == -EUCLEAN);
    n.entries = falling;
    CHECK(try_node(&n) == -EUCLEAN);
    n.entries = two;
    static const uint64_t counts[] = {1, 3, 100, 1 << 20, (1 << 20) + 1, UINT32_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        n.count_said = counts[i];
        CHECK(try_node(&n) == -EUCLEAN);
    }
    CHECK(try_node(&(struct node){.entries = two, .count = 0}) == -EUCLEAN);

    /* Values that lie nowhere. */
    static const struct {
        uint64_t off, len;
        unsigned file;
        const char *path;
        int code;
    } places[] = {
        {0, 4, 0, "d/r", 0},
        {0, 4, 1, "d/r", -EUCLEAN},
        {0, 4, 0, "../r", -EUCLEAN},
        {0, 4, 0, "/r", -EUCLEAN},
        {0, 4, 0, "d//r", -EUCLEAN},
        {0, 4, 0, "", -EUCLEAN},
        {0, 4, 0, "d/gone", -EIO},
        {0, 400, 0, "d/r", -EBADMSG},
        {UINT64_MAX, 1, 0, "d/r", -EUCLEAN},
        {INT64_MAX, 1, 0, "d/r", -EUCLEAN},
        {1, INT64_MAX, 0, "d/r", -EUCLEAN},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct entry e = {"k", NULL, places[i].file, places[i].off, places[i].len, 0};
        struct node one = {.files = {{places[i].path, 0}}, .file_count = 1, .entries = &e, .count = 1};
        struct ckpt_buf b = CKPT_BUF_INIT;
        seal(&b, NODE, node_body(&one), 0);
        struct db d;
        struct ckpt_buf m = CKPT_BUF_INIT;
        seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/r", 0}, 0, 0, b.len}), 0);
        db_init(&d);
        db_add(&d, "manifest.ocdbt", &m);
        db_add(&d, "d/r", &b);
        CHECK(db_open(&d, "") == 0);
        CHECK(ckpt_ocdbt_verify(d.ocdbt, NULL, NULL, &d.err) == places[i].code);
        struct ckpt_extent ext;
        CHECK(ckpt_ocdbt_get(d.ocdbt, "k", 1, &ext, &d.err) == places[i].code);
        if (!places[i].code)
            ckpt_extent_clear(&ext);
        db_clear(&d);
        ckpt_buf_clear(&m);
        ckpt_buf_clear(&b);
    }

    /* An inline value above the limit. */
    char *big = malloc((1 << 20) + 2);
    memset(big, 'x', (1 << 20) + 1);
    big[(1 << 20) + 1] = '\0';
    struct entry e = {"k", big};
    CHECK(try_node(&(struct node){.entries = &e, .count = 1}) == -EUCLEAN);
    e.inline_value = big + 1;
    CHECK(try_node(&(struct node){.entries = &e, .count = 1}) == 0);
    free(big);

    /* Keys whose prefixes would be put back to far more than was stored. */
    struct ckpt_buf bomb = CKPT_BUF_INIT;
    unsigned count = 100000;
    ckpt_buf_addc(&bomb, 0);
    varint(&bomb, 0);
    varint(&bomb, count);
    for (unsigned i = 1; i < count; i++)
        varint(&bomb, i < 60000 ? 1 : 60000);
    varint(&bomb, 60000);
    for (unsigned i = 1; i < count; i++)
        varint(&bomb, 1);
    for (unsigned i = 0; i < 60000 + count * 2; i++)
        ckpt_buf_addc(&bomb, 'z');
    CHECK(try_body(bomb, NULL) == -EUCLEAN);
}

/* Trees whose nodes are each right and together are not. */
static void test_bad_trees(void)
{
    static const struct entry small[] = {{"b", "1"}, {"c", "2"}};
    static const struct {
        const char *low, *high;
        unsigned height; /* of the root; its children are leaves */
        unsigned twice;
        int code;
    } cases[] = {
        {"b", "d", 1, 0, 0},          {"a", "d", 1, 0, 0},
        {"bb", "d", 1, 0, -EUCLEAN},                              /* keys below the bound */
        {"b", "bb", 1, 0, -EUCLEAN},                              /* and above the next one's */
        {"b", "c", 1, 0, -EUCLEAN},   {"b", "d", 2, 0, -EUCLEAN}, /* a leaf where a node of height 1 should be */
        {"b", "d", 255, 0, -EUCLEAN}, {"b", "d", 1, 1, -EUCLEAN}, /* one node at two places */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const struct entry rest[] = {{"d", "3"}};
        struct ckpt_buf f = CKPT_BUF_INIT, m = CKPT_BUF_INIT;
        struct entry child[2] = {add_node(&f, &(struct node){.entries = small, .count = 2}, 0),
                                 add_node(&f, &(struct node){.entries = rest, .count = 1}, 0)};
        child[0].key = cases[i].low;
        child[1].key = cases[i].high;
        if (cases[i].twice) { /* with a common prefix, so that its keys fit at both */
            child[1] = child[0];
            child[0].key = "b";
            child[0].common = 0;
            child[1].key = "db";
            child[1].common = 1;
        }
        struct entry at = add_node(
            &f,
            &(struct node){
                .height = cases[i].height, .entries = child, .count = 2, .files = {{"d/f", 0}}, .file_count = 1},
            1);
        seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/f", 0}, cases[i].height, at.off, at.len}), 1);
        struct db d;
        db_init(&d);
        db_add(&d, "manifest.ocdbt", &m);
        db_add(&d, "d/f", &f);
        CHECK(db_open(&d, "") == 0);
        CHECK(ckpt_ocdbt_verify(d.ocdbt, NULL, NULL, &d.err) == cases[i].code);
        struct ckpt_buf b = CKPT_BUF_INIT;
        CHECK(ckpt_ocdbt_each(d.ocdbt, "", 0, collect, &b, &d.err) == cases[i].code);
        ckpt_buf_clear(&b);
        struct ckpt_extent e;
        int r = ckpt_ocdbt_get(d.ocdbt, "c", 1, &e, &d.err);
        bool hidden = strcmp(cases[i].high, "c") <= 0; /* the bounds lead to the other child, which is sound */
        CHECK(r == (cases[i].twice ? 0 : hidden ? -ENOENT : cases[i].code));
        if (r == 0)
            ckpt_extent_clear(&e);
        db_clear(&d);
        ckpt_buf_clear(&f);
        ckpt_buf_clear(&m);
    }
}

/* ---- size and threads ---- */

#define MANY 200000u

static int count_keys(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    return ++*(unsigned *)arg == 1234567; /* never */
}

static int stop(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    return 77;
}

static void test_large_leaf(void)
{
    struct entry *e = calloc(MANY, sizeof *e);
    char *keys = malloc(MANY * 48), value[161];
    memset(value, 'v', 160);
    value[160] = '\0';
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(keys + i * 48, 48, "params.layer_%06u.attention.kernel/%s", i / 2, i % 2 ? "0" : ".zarray");
        e[i] = i % 2 ? (struct entry){.key = keys + i * 48, .off = i, .len = 1}
                     : (struct entry){.key = keys + i * 48, .inline_value = value};
    }
    struct ckpt_buf f = CKPT_BUF_INIT, m = CKPT_BUF_INIT, data = CKPT_BUF_INIT;
    struct entry at = add_node(&f, &(struct node){.entries = e, .count = MANY, .files = {{"d/x", 0}}, .file_count = 1},
                               1);
    seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/f", 0}, 0, at.off, at.len}), 1);
    for (unsigned i = 0; i < MANY; i++)
        ckpt_buf_addc(&data, (char)('a' + i % 26));
    struct db d;
    db_init(&d);
    db_add(&d, "manifest.ocdbt", &m);
    db_add(&d, "d/f", &f);
    db_add(&d, "d/x", &data);
    CHECK(db_open(&d, "") == 0);
    for (unsigned i = 0; i < MANY; i += 97)
        expect_value(&d, e[i].key, i % 2 ? (char[]){(char)('a' + i % 26), 0} : value);
    unsigned n = 0;
    CHECK(ckpt_ocdbt_each(d.ocdbt, "", 0, count_keys, &n, &d.err) == 0 && n == MANY);
    n = 0;
    CHECK(ckpt_ocdbt_each(d.ocdbt, "params.layer_0000", 17, count_keys, &n, &d.err) == 0 && n == 200);
    CHECK(ckpt_ocdbt_each(d.ocdbt, "", 0, stop, NULL, &d.err) == 77);
    db_clear(&d);
    ckpt_buf_clear(&f);
    ckpt_buf_clear(&m);
    ckpt_buf_clear(&data);
    free(e);
    free(keys);
}

/* Leaves that do not all fit into the cache, looked up by several threads at once. */
#define LEAVES  5
#define PER     12
#define THREADS 4

static void *reader(void *arg)
{
    struct ckpt_ocdbt *db = arg;
    for (unsigned i = 0; i < 60; i++) {
        char key[16];
        struct ckpt_extent e;
        unsigned leaf_no = i * 7 / 3 % LEAVES, entry = i % PER;
        snprintf(key, sizeof key, "%u/%02u", leaf_no, entry);
        CHECK(ckpt_ocdbt_get(db, key, strlen(key), &e, NULL) == 0);
        CHECK(e.len == (1 << 20) && e.bytes[0] == 'A' + (char)leaf_no && e.bytes[e.len - 1] == 'a' + (char)entry);
        ckpt_extent_clear(&e);
    }
    return NULL;
}

static void test_threads(void)
{
    struct ckpt_buf f = CKPT_BUF_INIT, m = CKPT_BUF_INIT;
    struct entry child[LEAVES];
    static char names[LEAVES][8];
    char *values[PER], keys[PER][8];
    for (unsigned i = 0; i < PER; i++) {
        values[i] = malloc((1 << 20) + 1);
        snprintf(keys[i], sizeof keys[i], "%02u", i);
    }
    for (unsigned l = 0; l < LEAVES; l++) {
        struct entry e[PER];
        for (unsigned i = 0; i < PER; i++) {
            memset(values[i], 'A' + (int)l, 1 << 20);
            values[i][(1 << 20) - 1] = (char)('a' + i);
            values[i][1 << 20] = '\0';
            e[i] = (struct entry){.key = keys[i], .inline_value = values[i]};
        }
        child[l] = add_node(&f, &(struct node){.entries = e, .count = PER}, 1 + l % 2);
        snprintf(names[l], sizeof names[l], "%u/", l);
        child[l].key = names[l];
        child[l].common = 2;
    }
    struct entry at = add_node(
        &f, &(struct node){.height = 1, .entries = child, .count = LEAVES, .files = {{"d/f", 0}}, .file_count = 1}, 1);
    seal(&m, MANIFEST, manifest_body(0, &(struct version){{"d/f", 0}, 1, at.off, at.len}), 1);
    struct db d;
    db_init(&d);
    db_add(&d, "manifest.ocdbt", &m);
    db_add(&d, "d/f", &f);
    CHECK(db_open(&d, "") == 0);
    pthread_t t[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&t[i], NULL, reader, d.ocdbt) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    db_clear(&d);
    ckpt_buf_clear(&f);
    ckpt_buf_clear(&m);
    for (unsigned i = 0; i < PER; i++)
        free(values[i]);
}

/* ---- real databases ---- */

static unsigned fixtures;

static int get_each(void *arg, const void *key, size_t key_len, uint64_t value_len)
{
    struct ckpt_extent e;
    CHECK(ckpt_ocdbt_get(arg, key, key_len, &e, NULL) == 0 && e.len == value_len);
    uint8_t *buf = malloc(e.len ? e.len : 1);
    CHECK(buf && ckpt_extent_read(&e, buf, e.len, 0) == 0);
    if (key_len >= 7 && memcmp((const char *)key + key_len - 7, ".zarray", 7) == 0)
        CHECK(e.len && buf[0] == '{' && buf[e.len - 1] == '}');
    free(buf);
    ckpt_extent_clear(&e);
    return 0;
}

static int visit_fixture(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    if (type != FTW_F || strcmp(path + ftw->base, "manifest.ocdbt") != 0)
        return 0;
    char *dir = strndup(path, (size_t)ftw->base - 1);
    struct ckpt_backend *b;
    struct ckpt_pins *pins;
    struct ckpt_ocdbt *db;
    struct ckpt_err err;
    CHECK(ckpt_backend_open_posix(dir, &b, &err) == 0 && ckpt_pins_new(b, &pins) == 0);
    int r = ckpt_ocdbt_open(pins, "", &db, &err);
    if (r == 0)
        r = ckpt_ocdbt_pin(db, &err);
    if (r == 0)
        r = ckpt_ocdbt_each(db, "", 0, get_each, db, &err);
    if (r == 0)
        r = ckpt_ocdbt_verify(db, NULL, NULL, &err);
    if (r < 0)
        fprintf(stderr, "%s: %s\n", dir, err.text);
    CHECK(r == 0);
    ckpt_ocdbt_close(db);
    ckpt_pins_unref(pins);
    ckpt_backend_unref(b);
    free(dir);
    fixtures++;
    return 0;
}

static void test_fixtures(void)
{
    const char *dir = getenv("CKPT_TEST_DATA");
    char beside[4096];
    if (!dir) { /* beside this file, as the compiler was told its name */
        snprintf(beside, sizeof beside, "%.*s../data", (int)(strrchr(__FILE__, '/') + 1 - __FILE__), __FILE__);
        dir = beside;
    }
    char path[8192];
    snprintf(path, sizeof path, "%s/orbax", dir);
    CHECK(nftw(path, visit_fixture, 32, FTW_PHYS) == 0);
    CHECK(fixtures > 50);
}

int main(void)
{
    test_leaf();
    test_interior();
    test_empty();
    test_bad_manifest();
    test_bad_nodes();
    test_bad_trees();
    test_large_leaf();
    test_threads();
    test_fixtures();
    return 0;
}
