/* SPDX-License-Identifier: Apache-2.0 */
/* Trees built by hand: names and their collisions, look-ups, limits, values. */
#include "core/tree/tree.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

static unsigned layouts_made;

static int make_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    layouts_made++;
    if (t->nodes[node].ref == 99)
        return ckpt_fail(err, EUCLEAN, "no layout");
    *ret = ckpt_array_new(t->nodes[node].ref == 1 ? CKPT_DT_BF16 : CKPT_DT_I32, 0, NULL);
    return *ret ? ckpt_array_settle(*ret, NULL) : -ENOMEM;
}

static int get_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err)
{
    static const uint8_t bytes[4] = {0xfe, 0xff, 0xff, 0xff}, bf16[2] = {0xc0, 0x3f};
    if (t->nodes[node].ref == 2)
        return 1; /* the fill value */
    if (t->nodes[node].ref == 3)
        return ckpt_fail(err, ENODATA, "not there");
    *ret = (struct ckpt_extent){.len = a->itemsize, .bytes = malloc(4)};
    memcpy(ret->bytes, t->nodes[node].ref == 1 ? bf16 : bytes, a->itemsize);
    return 0;
}

static size_t own_memory(const struct ckpt_tree *t)
{
    return 1000;
}

static const struct ckpt_tree_ops ops = {
    .name = "test", .layout = make_layout, .chunk = get_chunk, .memory = own_memory};

static struct ckpt_pins *pins;

static struct ckpt_tree *new_tree(void)
{
    struct ckpt_tree *t;
    CHECK(ckpt_tree_new(&ops, pins, &t) == 0);
    return t;
}

static uint32_t add(struct ckpt_tree *t, uint32_t parent, const char *key, enum ckpt_node_kind kind)
{
    uint32_t node;
    CHECK(ckpt_tree_add(t, parent, key, strlen(key), false, kind, &node, NULL) == 0);
    return node;
}

static uint32_t lookup(const struct ckpt_tree *t, uint32_t parent, const char *name)
{
    return ckpt_tree_lookup(t, parent, name, strlen(name));
}

static void check_name(const struct ckpt_tree *t, uint32_t node, const char *want)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_tree_name(t, node, &buf);
    ckpt_buf_addc(&buf, 0);
    CHECK_STR((char *)buf.data, want);
    CHECK(lookup(t, t->nodes[node].parent, want) == node);
    ckpt_buf_clear(&buf);
}

static void test_names(void)
{
    struct ckpt_tree *t = new_tree();
    uint32_t dir = add(t, 0, "params", CKPT_NODE_DIR), w = add(t, dir, "w", CKPT_NODE_ARRAY),
             step = add(t, 0, "step", CKPT_NODE_VALUE);
    uint32_t blob = add(t, 0, "config.json", CKPT_NODE_BLOB), slash = add(t, 0, "a/b", CKPT_NODE_ARRAY),
             dots = add(t, 0, "..", CKPT_NODE_DIR);
    uint32_t empty = add(t, 0, "", CKPT_NODE_ARRAY), percent = add(t, 0, "%41\n", CKPT_NODE_VALUE);
    CHECK(add(t, 0, "params", CKPT_NODE_DIR) == dir); /* containers are found again, leaves are not */
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    check_name(t, dir, "params");
    check_name(t, w, "w.npy");
    check_name(t, step, "step.json");
    check_name(t, blob, "config.json");
    check_name(t, slash, "a%2Fb.npy");
    check_name(t, dots, "%2E%2E");
    check_name(t, empty, "%.npy");
    check_name(t, percent, "%2541%0A.json");
    static const char *const absent[] = {"",        "w.npy",     "param", "params.npy", "step",
                                         "a/b.npy", "A%2fb.npy", "..",    "%2e%2e",     "config"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        CHECK(lookup(t, 0, absent[i]) == CKPT_NO_NODE);
    CHECK(lookup(t, dir, "params") == CKPT_NO_NODE && lookup(t, w, "w.npy") == CKPT_NO_NODE);
    CHECK(ckpt_tree_lookup_suffix(t, dir, "w", 1, ".npy") == w &&
          ckpt_tree_lookup_suffix(t, dir, "w", 1, ".json") == CKPT_NO_NODE);
    CHECK(ckpt_tree_lookup(t, 0, "paramsX", 6) == dir);
    CHECK(t->nodes[0].first == dir && t->nodes[dir].next == step && t->nodes[dir].first == w &&
          t->nodes[w].next == CKPT_NO_NODE);
    CHECK(ckpt_tree_memory(t) > sizeof *t + 1000);
    ckpt_tree_unref(ckpt_tree_ref(t));
    ckpt_tree_unref(t);
}

/* Of equal names the second has its first character escaped, then the next. */
static void test_collisions(void)
{
    struct ckpt_tree *t = new_tree();
    uint32_t dir = add(t, 0, "ab.npy", CKPT_NODE_DIR), leaf = add(t, 0, "ab", CKPT_NODE_ARRAY),
             again = add(t, 0, "ab", CKPT_NODE_ARRAY);
    uint32_t third = add(t, 0, "ab", CKPT_NODE_ARRAY), value = add(t, 0, "ab", CKPT_NODE_VALUE),
             blob = add(t, 0, "ab.json", CKPT_NODE_BLOB);
    uint32_t utf8 = add(t, 0, "\xc3\xa9", CKPT_NODE_ARRAY), utf8_again = add(t, 0, "\xc3\xa9", CKPT_NODE_ARRAY);
    uint32_t other = add(t, dir, "ab", CKPT_NODE_ARRAY);
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    check_name(t, dir, "ab.npy");
    check_name(t, leaf, "%61b.npy");
    check_name(t, again, "%61%62.npy");
    check_name(t, value, "ab.json");
    check_name(t, blob, "%61b.json");
    check_name(t, utf8, "\xc3\xa9.npy");
    check_name(t, utf8_again, "%C3%A9.npy");
    check_name(t, other, "ab.npy"); /* names are of one directory */
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_tree_name(t, third, &buf); /* beyond its characters: some name of its own */
    CHECK(buf.len && ckpt_tree_lookup(t, 0, (char *)buf.data, buf.len) == third);
    ckpt_buf_clear(&buf);
    ckpt_tree_unref(t);

    /* The empty key, many times. */
    t = new_tree();
    uint32_t nodes[50];
    for (unsigned i = 0; i < 50; i++)
        nodes[i] = add(t, 0, "", CKPT_NODE_VALUE);
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    for (unsigned i = 0; i < 50; i++) {
        ckpt_tree_name(t, nodes[i], &buf);
        CHECK(ckpt_tree_lookup(t, 0, (char *)buf.data, buf.len) == nodes[i]);
        buf.len = 0;
    }
    ckpt_buf_clear(&buf);
    ckpt_tree_unref(t);

    /* More often than names are tried for. */
    t = new_tree();
    struct ckpt_err err = {0};
    for (unsigned i = 0; i < 3000; i++)
        add(t, 0, "x", CKPT_NODE_VALUE);
    CHECK(ckpt_tree_finish(t, &err) == -EUCLEAN && err.code == EUCLEAN);
    ckpt_tree_unref(t);
}

/* Containers of the same key are one, unless they are said to be two. */
static void test_others(void)
{
    struct ckpt_tree *t = new_tree();
    uint32_t first = add(t, 0, "1", CKPT_NODE_DIR), other;
    CHECK(add(t, 0, "1", CKPT_NODE_DIR) == first);
    CHECK(ckpt_tree_add_other(t, 0, "1", 1, &other, NULL) == 0 && other != first && !t->exact);
    uint32_t in = add(t, other, "x", CKPT_NODE_ARRAY);
    CHECK(add(t, 0, "1", CKPT_NODE_DIR) == first);
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    check_name(t, first, "1");
    check_name(t, other, "%31");
    CHECK(lookup(t, other, "x.npy") == in && lookup(t, first, "x.npy") == CKPT_NO_NODE);
    ckpt_tree_unref(t);
}

static void test_long_names(void)
{
    struct ckpt_tree *t = new_tree();
    char key[3][70000];
    uint32_t node[3];
    for (unsigned i = 0; i < 3; i++) {
        memset(key[i], 'k', sizeof key[i]);
        key[i][69998] = (char)('a' + i % 2); /* the last two are not alike, the first and the last are */
        CHECK(ckpt_tree_add(t, 0, key[i], sizeof key[i], false, CKPT_NODE_ARRAY, &node[i], NULL) == 0);
    }
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    for (unsigned i = 0; i < 3; i++) {
        struct ckpt_buf buf = CKPT_BUF_INIT;
        ckpt_tree_name(t, node[i], &buf);
        CHECK(buf.len <= 255 && ckpt_tree_lookup(t, 0, (char *)buf.data, buf.len) == node[i]);
        ckpt_buf_clear(&buf);
    }
    ckpt_tree_unref(t);
}

static void test_limits(void)
{
    struct ckpt_tree *t = new_tree();
    struct ckpt_err err = {0};
    uint32_t at = 0, leaf;
    int r = 0;
    unsigned depth = 0;
    for (; r == 0; depth++)
        r = ckpt_tree_add(t, at, "d", 1, false, CKPT_NODE_DIR, &at, &err);
    CHECK(r == -EUCLEAN && err.code == EUCLEAN && depth == CKPT_MAX_DEPTH);
    CHECK(ckpt_tree_add(t, at, "x", 1, false, CKPT_NODE_VALUE, &leaf, &err) == -EUCLEAN); /* nor a leaf that deep */
    CHECK(ckpt_tree_add(t, t->nodes[at].parent, "x", 1, false, CKPT_NODE_VALUE, &leaf, NULL) == 0);
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    ckpt_tree_unref(t);

    /* Many nodes, in two directories of one name each. */
    enum { COUNT = 200000 };
    t = new_tree();
    uint32_t dirs[2] = {add(t, 0, "a", CKPT_NODE_DIR), add(t, 0, "b", CKPT_NODE_DIR)};
    for (unsigned i = 0; i < COUNT; i++) {
        char key[24];
        snprintf(key, sizeof key, "%u", i / 2);
        CHECK(add(t, dirs[i % 2], key, CKPT_NODE_ARRAY) == i + 3);
    }
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    for (unsigned i = 0; i < COUNT; i += 17) {
        char name[24];
        snprintf(name, sizeof name, "%u.npy", i / 2);
        CHECK(lookup(t, dirs[i % 2], name) == i + 3);
    }
    CHECK(lookup(t, dirs[0], "100000.npy") == CKPT_NO_NODE);
    CHECK(ckpt_tree_memory(t) < COUNT * 100ull);
    ckpt_tree_unref(t);
}

static void test_strings(void)
{
    struct ckpt_tree *t = new_tree();
    uint32_t a, b, c, empty;
    size_t len;
    CHECK(ckpt_tree_string(t, "hello", 5, &a) == 0 && ckpt_tree_string(t, "hello!", 5, &b) == 0 && a == b);
    CHECK(ckpt_tree_string(t, "he\0lo", 5, &c) == 0 && c != a && ckpt_tree_string(t, "x", 0, &empty) == 0 &&
          empty == 0);
    const char *text = ckpt_tree_text(t, c, &len);
    CHECK(len == 5 && !memcmp(text, "he\0lo", 6));
    for (unsigned i = 0; i < 5000; i++) { /* they stay where they are named, through growth */
        char s[16];
        uint32_t id, same;
        snprintf(s, sizeof s, "s%u", i);
        CHECK(ckpt_tree_string(t, s, strlen(s), &id) == 0 && ckpt_tree_string(t, s, strlen(s), &same) == 0 &&
              id == same);
        CHECK_STR(ckpt_tree_text(t, id, &len), s);
    }
    CHECK_STR(ckpt_tree_text(t, a, &len), "hello");
    ckpt_tree_unref(t); /* never finished */
}

static void check_value(const char *text, enum ckpt_dtype dtype, const void *element, size_t size)
{
    struct ckpt_tree *t = new_tree();
    struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value v;
    uint32_t node = add(t, 0, "v", CKPT_NODE_VALUE), string;
    CHECK(ckpt_tree_string(t, text, strlen(text), &string) == 0);
    t->nodes[node].text = string;
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    CHECK(ckpt_tree_value(t, node, &json, &v, NULL) == 0 && v.dtype == dtype);
    CHECK(json.len == strlen(text) && !memcmp(json.data, text, json.len) &&
          (!size || !memcmp(v.element, element, size)));
    ckpt_buf_clear(&json);
    ckpt_tree_unref(t);
}

static void test_values(void)
{
    check_value("null", CKPT_DT_OTHER, NULL, 0);
    check_value("\"12\"", CKPT_DT_OTHER, NULL, 0);
    check_value("true", CKPT_DT_BOOL, "\1", 1);
    check_value("false", CKPT_DT_BOOL, "\0", 1);
    check_value("-7", CKPT_DT_I64, &(int64_t){-7}, 8);
    check_value("9223372036854775807", CKPT_DT_I64, &(int64_t){INT64_MAX}, 8);
    check_value("-9223372036854775808", CKPT_DT_I64, &(int64_t){INT64_MIN}, 8);
    check_value("9223372036854775808", CKPT_DT_U64, &(uint64_t){9223372036854775808u}, 8);
    check_value("18446744073709551615", CKPT_DT_U64, &(uint64_t){UINT64_MAX}, 8);
    check_value("18446744073709551616", CKPT_DT_OTHER, NULL, 0);
    check_value("-9223372036854775809", CKPT_DT_OTHER, NULL, 0);
    check_value("1.5", CKPT_DT_F64, &(double){1.5}, 8);
    check_value("1e-05", CKPT_DT_F64, &(double){1e-05}, 8);
    check_value("-Infinity", CKPT_DT_F64, &(double){-__builtin_inf()}, 8);
    check_value("NaN", CKPT_DT_F64, NULL, 0);
}

/* Values that are kept in arrays, and the layouts that the tree remembers. */
static void test_stored_values(void)
{
    struct ckpt_tree *t = new_tree();
    struct ckpt_buf json = CKPT_BUF_INIT;
    struct ckpt_value v;
    struct ckpt_err err = {0};
    static const uint32_t refs[] = {0, 1, 2, 3, 99};
    static const char *const want[] = {"-2", "1.5", "0", NULL, NULL};
    static const int errors[] = {0, 0, 0, -ENODATA, -EUCLEAN};
    for (unsigned i = 0; i < 5; i++)
        t->nodes[add(t, 0, (char[]){(char)('a' + i), 0}, CKPT_NODE_VALUE)].ref = refs[i];
    CHECK(ckpt_tree_finish(t, NULL) == 0);
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < 5; i++) {
            json.len = 0;
            CHECK(ckpt_tree_value(t, i + 1, &json, &v, &err) == errors[i]);
            CHECK(!want[i] || (json.len == strlen(want[i]) && !memcmp(json.data, want[i], json.len)));
            CHECK(!want[i] || v.dtype == (i == 1 ? CKPT_DT_BF16 : CKPT_DT_I32));
        }
    CHECK(layouts_made == 4 + 2); /* remembered, but for the one that failed */
    ckpt_buf_clear(&json);
    ckpt_tree_unref(t);
}

/* The path of a node, '/' between its listed names. */
static const char *path_of(const struct ckpt_tree *t, uint32_t node, char *buf, size_t size)
{
    struct ckpt_buf name = CKPT_BUF_INIT;
    char above[1024] = "";
    if (t->nodes[node].parent)
        path_of(t, t->nodes[node].parent, above, sizeof above);
    ckpt_tree_name(t, node, &name);
    snprintf(buf, size, "%s%s%.*s", above, *above ? "/" : "", (int)name.len, (char *)name.data);
    ckpt_buf_clear(&name);
    return buf;
}

static void test_dotted(void)
{
    static const struct {
        const char *key, *path;
        enum ckpt_node_kind kind;
    } leaves[] = {
        {"blob", "blob", CKPT_NODE_BLOB},      {"w", "w.npy", CKPT_NODE_ARRAY},
        {"a.b", "a/b.npy", CKPT_NODE_ARRAY},   {"a.b.c", "a/b/c.npy", CKPT_NODE_ARRAY},   /* b.npy and b differ */
        {"w.x", "w/x.npy", CKPT_NODE_ARRAY},   {"blob.x", "blob.x.npy", CKPT_NODE_ARRAY}, /* blob is a file */
        {".a", ".a.npy", CKPT_NODE_ARRAY},     {"a.", "a..npy", CKPT_NODE_ARRAY},
        {"a..b", "a..b.npy", CKPT_NODE_ARRAY}, {"a.b", "a.b.npy", CKPT_NODE_ARRAY}, /* taken */
        {"p.q", "p/q", CKPT_NODE_BLOB},        {"p.q.r", "p.q.r.npy", CKPT_NODE_ARRAY},
        {"s.t.u", "s/t/u", CKPT_NODE_BLOB},    {"s.t", "s.t", CKPT_NODE_BLOB}, /* t is a directory */
    };
    struct ckpt_tree *t = new_tree();
    struct ckpt_err err = {0};
    uint32_t nodes[sizeof leaves / sizeof *leaves];
    char buf[1024], deep[1200];
    ckpt_tree_note_names(t);
    for (size_t i = 0; i < sizeof leaves / sizeof *leaves; i++)
        CHECK(ckpt_tree_add_dotted(t, 0, leaves[i].key, strlen(leaves[i].key), leaves[i].kind, &nodes[i], &err) == 0);
    for (size_t i = 0; i < 600; i++)
        memcpy(deep + 2 * i, "x.", 2);
    deep[1199] = 0;
    uint32_t node;
    CHECK(ckpt_tree_add_dotted(t, 0, deep, 1199, CKPT_NODE_ARRAY, &node, &err) == 0 && t->nodes[node].parent == 0);
    CHECK(ckpt_tree_finish(t, &err) == 0);
    for (size_t i = 0; i < sizeof leaves / sizeof *leaves; i++)
        CHECK(!strcmp(path_of(t, nodes[i], buf, sizeof buf), leaves[i].path));
    ckpt_tree_unref(t);
}

int main(void)
{
    struct ckpt_backend *b = ckpt_backend_new_memory();
    CHECK(b && ckpt_pins_new(b, &pins) == 0);
    test_names();
    test_collisions();
    test_others();
    test_long_names();
    test_limits();
    test_strings();
    test_values();
    test_stored_values();
    test_dotted();
    ckpt_pins_unref(pins);
    ckpt_backend_unref(b);
    return 0;
}
