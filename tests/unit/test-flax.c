/* SPDX-License-Identifier: Apache-2.0 */
/* State dicts of Flax, made by hand: what each form becomes, what is refused and how, and what is taken for one. */
#include "core/format/flax/flax.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

/* --- msgpack --- */

static struct ckpt_buf m; /* the file that is being made */

static void bytes(const void *p, size_t n)
{
    ckpt_buf_add(&m, p, n);
}

static void number(uint64_t v, unsigned width)
{
    for (unsigned i = width; i-- > 0;)
        ckpt_buf_addc(&m, (char)(v >> 8 * i));
}

static void head(uint8_t tag, uint64_t v, unsigned width)
{
    ckpt_buf_addc(&m, (char)tag);
    number(v, width);
}

static void map(uint32_t n)
{
    head(0xdf, n, 4);
}

static void array(uint32_t n)
{
    head(0xdd, n, 4);
}

static void str(const char *text)
{
    head(0xdb, strlen(text), 4);
    bytes(text, strlen(text));
}

static void bin(const void *p, size_t n)
{
    head(0xc6, n, 4);
    bytes(p, n);
}

/* What is added until ext_end is the payload. */
static size_t ext_begin(int8_t type)
{
    head(0xc9, 0, 4);
    ckpt_buf_addc(&m, type);
    return m.len;
}

static void ext_end(size_t begin)
{
    size_t n = m.len - begin;
    for (unsigned i = 0; i < 4; i++)
        m.data[begin - 5 + i] = (uint8_t)(n >> (24 - 8 * i));
}

static void ndarray(int8_t type, const char *dtype, unsigned ndim, const uint64_t *dims, const void *data, size_t len)
{
    size_t begin = ext_begin(type);
    array(3);
    array(ndim);
    for (unsigned i = 0; i < ndim; i++)
        head(0xcf, dims[i], 8);
    str(dtype);
    bin(data, len);
    ext_end(begin);
}

static void vector(const char *dtype, const void *data, size_t count, size_t len)
{
    ndarray(1, dtype, 1, (uint64_t[]){count}, data, len);
}

/* --- opening what was made --- */

static struct ckpt_err err;

static int open_made(struct ckpt_tree **ret)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    struct ckpt_pins *pins;
    CHECK(!ckpt_buf_error(&m) && ckpt_backend_memory_add(b, "f.msgpack", m.data, m.len) == 0 &&
          ckpt_pins_new(b, &pins) == 0);
    err = (struct ckpt_err){0};
    int r = ckpt_flax_format.open(&(struct ckpt_opening){.pins = pins, .name = "f.msgpack"}, ret, &err);
    CHECK(r == 0 || (err.code == -r && *err.text));
    ckpt_pins_unref(pins);
    ckpt_backend_unref(b);
    return r;
}

/* The tree shares the made bytes: it is closed before the next is made. */
static void clear(struct ckpt_tree *t)
{
    ckpt_tree_unref(t);
    ckpt_buf_clear(&m);
    m = (struct ckpt_buf){0};
}

static int refused(void)
{
    struct ckpt_tree *t = NULL;
    int r = open_made(&t);
    clear(r == 0 ? t : NULL);
    return r;
}

static uint32_t find(const struct ckpt_tree *t, const char *name)
{
    uint32_t node = ckpt_tree_lookup(t, 0, name, strlen(name));
    CHECK(node != CKPT_NO_NODE);
    return node;
}

static void check_array(struct ckpt_tree *t, const char *name, const char *type, unsigned ndim, const void *data,
                        size_t len)
{
    struct ckpt_array *a;
    struct ckpt_extent e;
    uint32_t node = find(t, name);
    CHECK(t->nodes[node].kind == CKPT_NODE_ARRAY && ckpt_tree_layout(t, node, &a, &err) == 0 && !a->unsupported);
    CHECK_STR(ckpt_array_type(a), type);
    CHECK(a->ndim == ndim && a->nbytes == len && a->nchunks == (len != 0) && (!len || a->chunk_bytes == len));
    CHECK(t->ops->chunk(t, node, a, 0, &e, &err) == 0 && e.len == len);
    CKPT_AUTOFREE uint8_t *got = malloc(len + 1);
    CHECK(ckpt_extent_read(&e, got, len, 0) == 0 && !memcmp(got, data, len));
    ckpt_extent_clear(&e);
    ckpt_array_unref(a);
}

static void check_value(struct ckpt_tree *t, const char *name, const char *json, enum ckpt_dtype dtype)
{
    struct ckpt_buf text = CKPT_BUF_INIT;
    struct ckpt_value v;
    CHECK(t->nodes[find(t, name)].kind == CKPT_NODE_VALUE && ckpt_tree_value(t, find(t, name), &text, &v, &err) == 0 &&
          v.dtype == dtype);
    ckpt_buf_addc(&text, 0);
    CHECK_STR((char *)text.data, json);
    ckpt_buf_clear(&text);
}

static void check_unsupported(struct ckpt_tree *t, const char *name, unsigned ndim)
{
    struct ckpt_array *a;
    CHECK(ckpt_tree_layout(t, find(t, name), &a, &err) == 0 && a->unsupported == EOPNOTSUPP && *a->why &&
          a->ndim == ndim);
    ckpt_array_unref(a);
}

/* --- what there is --- */

static void test_leaves(void)
{
    static const uint8_t data[64] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const double parts[2] = {1.5, -2};
    uint64_t dims[40];
    struct ckpt_tree *t;
    for (unsigned i = 0; i < 40; i++)
        dims[i] = 1;
    map(17);
    str("matrix"), ndarray(1, "float32", 2, (uint64_t[]){2, 1}, data, 8);
    str("point"), ndarray(1, "int16", 0, NULL, data, 2);
    str("none"), ndarray(1, "float64", 3, (uint64_t[]){3, 0, 2}, data, 0);
    str("scalar"), ndarray(3, "int16", 0, NULL, data, 2);
    str("half"), ndarray(3, "bfloat16", 0, NULL, "\x80\x3f", 2);
    str("csc"), ndarray(3, "complex64", 0, NULL, data, 8);
    str("time"), ndarray(3, "datetime64[ns]", 0, NULL, data, 8);
    str("span"), vector("timedelta64[25s]", data, 2, 16);
    str("quad"), vector("float128", data, 1, 16);
    str("bit"), vector("int1", data, 3, 3);
    str("text"), vector("str64", data, 2, 16);
    str("deep"), ndarray(1, "int8", 40, dims, data, 1);
    str("blob"), bin("\0xyz", 4);
    str("other"), head(0xd7, 0x09, 1), bytes(data, 8);
    str("f32"), head(0xca, 0x3fc00000, 4);
    str("list"), array(2), head(0xc0, 0, 0), map(0);
    str("complex");
    size_t ext = ext_begin(2);
    array(2), head(0xcb, 0x3ff8000000000000, 8), head(0xcb, 0xc000000000000000, 8);
    ext_end(ext);
    CHECK(open_made(&t) == 0);
    check_array(t, "matrix.npy", "float32", 2, data, 8);
    check_array(t, "point.npy", "int16", 0, data, 2);
    check_array(t, "none.npy", "float64", 3, data, 0);
    check_value(t, "scalar.json", "513", CKPT_DT_I16);
    check_value(t, "half.json", "1.0", CKPT_DT_BF16);
    check_array(t, "csc.npy", "complex64", 0, data, 8);
    check_array(t, "time.npy", "<M8[ns]", 0, data, 8);
    check_array(t, "span.npy", "<m8[25s]", 1, data, 16);
    check_array(t, "quad.npy", "<f16", 1, data, 16);
    check_array(t, "bit.npy", "int1", 1, data, 3);
    check_array(t, "complex.npy", "complex128", 0, parts, 16);
    check_value(t, "f32.json", "1.5", CKPT_DT_F64);
    check_unsupported(t, "text.npy", 1);
    check_unsupported(t, "deep.npy", 0);
    struct ckpt_extent e;
    uint8_t got[8];
    CHECK(t->nodes[find(t, "blob")].kind == CKPT_NODE_BLOB && t->ops->blob(t, find(t, "blob"), &e, &err) == 0 &&
          e.len == 4);
    CHECK(ckpt_extent_read(&e, got, 4, 0) == 0 && !memcmp(got, "\0xyz", 4));
    ckpt_extent_clear(&e);
    CHECK(t->ops->blob(t, find(t, "other"), &e, &err) == 0 && e.len == 8 && ckpt_extent_read(&e, got, 8, 0) == 0 &&
          !memcmp(got, data, 8));
    ckpt_extent_clear(&e);
    struct ckpt_buf json = CKPT_BUF_INIT;
    t->ops->describe(t, find(t, "other"), &json);
    ckpt_buf_addc(&json, 0);
    CHECK_STR((char *)json.data, ",\"ext\":9");
    ckpt_buf_clear(&json);
    uint32_t list = find(t, "list");
    CHECK(t->nodes[list].container == CKPT_LIST && t->nodes[t->nodes[list].first].index &&
          t->nodes[t->nodes[list].last].kind == CKPT_NODE_DIR);
    clear(t);
}

/* Leaves that are laid out alike share one layout. */
static void test_shared(void)
{
    struct ckpt_tree *t;
    struct ckpt_array *a[3];
    static const char *const names[] = {"a.npy", "b.npy", "c.npy"};
    map(3);
    str("a"), vector("int32", "01234567", 2, 8);
    str("b"), vector("int32", "abcdefgh", 2, 8);
    str("c"), vector("float32", "abcdefgh", 2, 8);
    CHECK(open_made(&t) == 0);
    for (unsigned i = 0; i < 3; i++)
        CHECK(ckpt_tree_layout(t, find(t, names[i]), &a[i], &err) == 0);
    CHECK(a[0] == a[1] && a[0] != a[2]);
    check_array(t, "b.npy", "int32", 1, "abcdefgh", 8);
    for (unsigned i = 0; i < 3; i++)
        ckpt_array_unref(a[i]);
    clear(t);
}

static void begin_pieces(uint32_t keys)
{
    map(1);
    str("a");
    map(keys);
    str("__msgpack_chunked_array__");
    head(0xc3, 0, 0);
}

static void piece_shape(uint64_t rows, uint64_t columns)
{
    str("shape"), map(2);
    str("1"), head(0xcf, columns, 8);
    str("0"), head(0xcf, rows, 8);
}

/* Numbered, so in no order. */
static void test_pieces(void)
{
    struct ckpt_tree *t;
    begin_pieces(3);
    str("chunks"), map(11);
    for (unsigned i = 0; i < 11; i++) {
        char key[4], byte[2] = {(char)('a' + (i * 7) % 11), 'x'};
        snprintf(key, sizeof key, "%u", (i * 7) % 11);
        str(key), vector("uint8", byte, (i * 7) % 11 == 10 ? 2 : 1, (i * 7) % 11 == 10 ? 2 : 1);
    }
    piece_shape(3, 4);
    CHECK(open_made(&t) == 0);
    check_array(t, "a.npy", "uint8", 2, "abcdefghijkx", 12);
    clear(t);
    begin_pieces(3); /* of no elements */
    piece_shape(0, 5);
    str("chunks"), map(1), str("0"), vector("int8", "", 0, 0);
    CHECK(open_made(&t) == 0);
    check_array(t, "a.npy", "int8", 2, "", 0);
    clear(t);
}

static void test_bad_pieces(void)
{
    static const struct {
        const char *keys[3]; /* of the chunks */
        const char *types[3];
        uint64_t rows, columns;
        int want;
    } cases[] = {
        {{"0", "1", "2"}, {"int8", "int8", "int8"}, 3, 1, 0},
        {{"0", "1", "2"}, {"int8", "int8", "int8"}, 2, 1, -EUCLEAN},
        {{"0", "1", "2"}, {"int8", "int8", "int8"}, UINT64_MAX, 1, -EUCLEAN},
        {{"0", "1", "2"}, {"int8", "int8", "int8"}, 0, UINT64_MAX, -EUCLEAN},
        {{"0", "1", "2"}, {"int8", "uint8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "1", "1"}, {"int8", "int8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "1", "3"}, {"int8", "int8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "01", "2"}, {"int8", "int8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "1", ""}, {"int8", "int8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "1", "99999999999999999999"}, {"int8", "int8", "int8"}, 3, 1, -EUCLEAN},
        {{"0", "1", "2"}, {"int8", "int8", "int7"}, 3, 1, -EOPNOTSUPP},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin_pieces(3);
        piece_shape(cases[i].rows, cases[i].columns);
        str("chunks"), map(3);
        for (unsigned k = 0; k < 3; k++)
            str(cases[i].keys[k]), vector(cases[i].types[k], "x", 1, 1);
        CHECK(refused() == cases[i].want);
    }
    begin_pieces(3), piece_shape(1, 1), piece_shape(1, 1);
    CHECK(refused() == -EUCLEAN);
    begin_pieces(4), piece_shape(1, 1), str("chunks"), map(1), str("0"), vector("int8", "x", 1, 1), str("more"),
        head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    begin_pieces(3), piece_shape(1, 1), str("chunks"), map(1), str("0"),
        ndarray(1, "int8", 2, (uint64_t[]){1, 1}, "x", 1);
    CHECK(refused() == -EUCLEAN);
    begin_pieces(3), piece_shape(1, 1), str("chunks"), map(1), str("0"), ndarray(3, "int8", 0, NULL, "x", 1);
    CHECK(refused() == -EUCLEAN);
    begin_pieces(3), piece_shape(1, 1), str("chunks"), map(0);
    CHECK(refused() == -EUCLEAN);
    begin_pieces(3), piece_shape(1, 1), str("chunks"), map(0x7fffffff);
    CHECK(refused() == -EBADMSG);
    map(2), str("x"), head(0xc0, 0, 0), str("__msgpack_chunked_array__"), head(0xc3, 0, 0); /* not the first key */
    CHECK(refused() == -EUCLEAN);
}

static void test_bad_arrays(void)
{
    static const struct {
        int8_t ext;
        const char *dtype;
        unsigned ndim;
        uint64_t dims[3];
        size_t len;
        int want;
    } cases[] = {
        {1, "float32", 1, {2}, 8, 0},
        {1, "float32", 1, {2}, 7, -EUCLEAN},
        {1, "float32", 1, {2}, 9, -EUCLEAN},
        {1, "float32", 1, {3}, 8, -EUCLEAN},
        {1, "float32", 3, {(uint64_t)1 << 62, 4, 4}, 0, -EUCLEAN},
        {1, "int8", 2, {0, INT64_MAX}, 0, -EUCLEAN},
        {1, "int8", 2, {UINT64_MAX, 1}, 0, -EUCLEAN},
        {3, "int8", 1, {1}, 1, -EUCLEAN},
        {1, "object", 1, {1}, 8, -EOPNOTSUPP},
        {1, "O", 1, {1}, 8, -EOPNOTSUPP},
        {1, ">i4", 1, {1}, 4, -EOPNOTSUPP},
        {1, "i4,f4", 1, {1}, 8, -EOPNOTSUPP},
        {1, "", 1, {1}, 1, -EOPNOTSUPP},
        {1, "float33", 1, {1}, 4, -EOPNOTSUPP},
        {1, "str63", 1, {1}, 8, -EOPNOTSUPP},
        {1, "str64", 1, {1}, 7, -EUCLEAN},
        {1, "void0", 1, {1}, 0, -EOPNOTSUPP},
        {1, "datetime64[parsec]", 1, {1}, 8, -EOPNOTSUPP},
        {1, "datetime64", 1, {1}, 8, 0},
        {1, "datetime64[ns]x", 1, {1}, 8, -EOPNOTSUPP},
        {1, "bytes99999999999999", 1, {1}, 8, -EOPNOTSUPP},
        {1, "a name that is longer than any name of a dtype that has ever been thought of", 1, {1}, 8, -EOPNOTSUPP},
    };
    static const uint8_t zeros[16];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ndarray(cases[i].ext, cases[i].dtype, cases[i].ndim, cases[i].dims, zeros, cases[i].len);
        int r = refused();
        if (r != cases[i].want)
            fprintf(stderr, "%s: %d\n", cases[i].dtype, r);
        CHECK(r == cases[i].want);
    }
    uint64_t dims[65];
    for (unsigned i = 0; i < 65; i++)
        dims[i] = 1;
    ndarray(1, "int8", 65, dims, zeros, 1);
    CHECK(refused() == -EUCLEAN);
    size_t ext = ext_begin(1); /* dtype with a NUL in it */
    array(3), array(0), head(0xdb, 5, 4), bytes("int8", 5), bin(zeros, 1), ext_end(ext);
    CHECK(refused() == -EOPNOTSUPP);
    ext = ext_begin(1); /* what follows its data */
    array(3), array(0), str("int8"), bin(zeros, 1), head(0xc0, 0, 0), ext_end(ext);
    CHECK(refused() == -EUCLEAN);
    ext = ext_begin(2);
    array(2), head(0xcb, 0, 8), head(0, 0, 0), ext_end(ext);
    CHECK(refused() == -EUCLEAN);
}

static void test_keys(void)
{
    map(2), head(1, 0, 0), head(0xc0, 0, 0), str("1"), head(0xc0, 0, 0); /* 1 and "1" */
    CHECK(refused() == -EUCLEAN);
    map(2), str("a"), map(0), str("a"), map(0);
    CHECK(refused() == -EUCLEAN);
    map(2), str("a"), map(0), str("a"), head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    map(2), str("a"), map(1), str("a"), head(0xc0, 0, 0), str("b"), map(1), str("a"), head(0xc0, 0, 0);
    CHECK(refused() == 0);
    map(1), head(0xc0, 0, 0), head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    map(1), bin("a", 1), head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    map(1), head(0xcb, 0, 8), head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    map(1), str("\xed\xa0\x80"), head(0xc0, 0, 0); /* a surrogate */
    CHECK(refused() == -EUCLEAN);
    map(1), str("a"), str("\xc3");
    CHECK(refused() == -EUCLEAN);
    map(0), head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    map(0x80000000);
    CHECK(refused() == -EBADMSG);
    array(0x80000000);
    CHECK(refused() == -EBADMSG);
    CHECK(refused() == -EBADMSG); /* nothing at all */
    map(1), head(0xdb, 65536, 4);
    for (unsigned i = 0; i < 65536; i++)
        ckpt_buf_addc(&m, 'k');
    head(0xc0, 0, 0);
    CHECK(refused() == -EUCLEAN);
    for (unsigned depth = 254; depth < 258; depth++) {
        for (unsigned i = 0; i < depth; i++)
            head(0x91, 0, 0);
        head(0xc0, 0, 0);
        CHECK(refused() == (depth < 256 ? 0 : -EUCLEAN));
    }
}

/* A string that the tree would have to keep: its leaf cannot be read, the others can. */
static void test_long_string(void)
{
    struct ckpt_tree *t;
    struct ckpt_buf text = CKPT_BUF_INIT;
    uint32_t n = (4 << 20) + 1;
    map(2), str("long"), head(0xdb, n, 4);
    for (uint32_t i = 0; i < n; i++)
        ckpt_buf_addc(&m, 'x');
    str("short"), str("y");
    CHECK(open_made(&t) == 0);
    check_value(t, "short.json", "\"y\"", CKPT_DT_OTHER);
    CHECK(ckpt_tree_value(t, find(t, "long.json"), &text, NULL, &err) == -EOPNOTSUPP && strstr(err.text, "string"));
    ckpt_buf_clear(&text);
    clear(t);
}

/* --- what is taken for one --- */

static struct ckpt_probe probe(struct ckpt_backend *b, const char *path)
{
    struct ckpt_probe p = {.settled = true};
    CHECK(ckpt_flax_format.probe_file(b, path, &p) == 0);
    return p;
}

static void test_probe(void)
{
    static const struct {
        const char *path;
        const char *data;
        size_t len;
        char want; /* 'c': a checkpoint, 'u': an unfinished one, 0: none */
    } files[] = {
        {"d/checkpoint_5",
         "\x81\xa1"
         "a",
         3, 'c'},
        {"d/checkpoint_-1.5e-05", "\x81\xa1", 2, 'c'},
        {"d/a_b_7", "\x80", 1, 'c'},
        {"checkpoint_6", "\xde\0\1\xd9", 4, 'c'},
        {"d/map32_1", "\xdf\0\0\0\1\xa1", 6, 'c'},
        {"d/cut_1", "\xdf", 1, 'c'},
        {"d/ext_1", "\xc9\0\0\0\1\1", 6, 'c'},
        {"d/fixext_1", "\xd8\3", 2, 'c'},
        {"d/pickle_5", "\x80\4\x95", 3, 0},
        {"d/text_5", "hello", 5, 0},
        {"d/empty_5", "", 0, 0},
        {"d/timestamp_5", "\xd6\xff", 2, 0},
        {"d/hebrew_5", "\xd7\x90", 2, 0},
        {"d/nil_5", "\x81\xc0", 2, 0},
        {"d/5", "\x81\xa1", 2, 0},
        {"d/checkpoint", "\x81\xa1", 2, 0},
        {"d/_5", "\x81\xa1", 2, 0},
        {"d/x_5.npz", "\x81\xa1", 2, 0},
        {"d/checkpoint_tmp", "", 0, 'u'},
        {"d/a_b_tmp", "", 0, 'u'},
        {"d/alone_tmp", "", 0, 0},
        {"d/my_tmp", "notes", 5, 0},
        {"d/new_tmp", "\x81\xa1", 2, 'u'},
        {"d/text_tmp", "notes", 5, 0},
        {"d/_tmp", "\x81\xa1", 2, 0},
        {"d/a_tmp", "x", 1, 0},
        {"map_tmp", "", 0, 0},
    };
    struct ckpt_backend *b = ckpt_backend_new_memory();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        CHECK(ckpt_backend_memory_add(b, files[i].path, files[i].data, files[i].len) == 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct ckpt_probe p = probe(b, files[i].path);
        char got = *p.unfinished ? 'u' : p.bits ? 'c' : 0;
        if (got != files[i].want)
            fprintf(stderr, "%s: '%c'\n", files[i].path, got);
        CHECK(got == files[i].want && (!got || p.bits >= 2));
    }
    ckpt_backend_unref(b);
    CHECK(ckpt_plain_name("checkpoint_3_gda") && ckpt_plain_name("checkpoint_tmp_gda") &&
          ckpt_plain_name("a_b_0.5_gda"));
    CHECK(!ckpt_plain_name("gda") && !ckpt_plain_name("_gda") && !ckpt_plain_name("my_gda") &&
          !ckpt_plain_name("3_gda") && !ckpt_plain_name("checkpoint_3"));
}

int main(void)
{
    test_leaves();
    test_shared();
    test_pieces();
    test_bad_pieces();
    test_bad_arrays();
    test_keys();
    test_long_string();
    test_probe();
    return 0;
}
