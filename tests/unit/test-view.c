/* SPDX-License-Identifier: Apache-2.0 */
/* Every view of every kind of leaf, on a small Orbax step in memory: which name means what, sizes, and the bytes, read
 * by hand. */
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/format/orbax/orbax.h"
#include "core/view/view.h"
#include "tests/unit/check.h"

#define ENTRY(label, keys, value) "\"" label "\":{\"key_metadata\":[" keys "],\"value_metadata\":{" value "}}"
#define DICT(key)                 "{\"key\":\"" key "\",\"key_type\":2}"
#define INDEX(key)                "{\"key\":\"" key "\",\"key_type\":1}"
#define KIND(type, skip)          "\"value_type\":\"" type "\",\"skip_deserialize\":" skip
#define ARRAY                     KIND("np.ndarray", "false")
#define ZARRAY(shape, dtype, compressor)                                                                               \
    "{\"chunks\":" shape ",\"compressor\":" compressor ",\"dtype\":\"" dtype                                           \
    "\",\"fill_value\":null,\"filters\":null,"                                                                         \
    "\"order\":\"C\",\"shape\":" shape ",\"zarr_format\":2}"

/* An entry a line, which clang-format would not leave so. */
/* clang-format off */
static const char metadata[] =
    "{\"tree_metadata\":{"
    ENTRY("1", DICT("params") "," DICT("w"), ARRAY) ","
    ENTRY("2", DICT("params") "," DICT("b"), ARRAY) ","
    ENTRY("3", DICT("params") "," DICT("bad"), ARRAY) ","
    ENTRY("4", DICT("step"), KIND("scalar", "false")) ","
    ENTRY("5", DICT("lr"), KIND("scalar", "false")) ","
    ENTRY("6", DICT("name"), KIND("string", "false")) ","
    ENTRY("7", DICT("none"), KIND("None", "true")) ","
    ENTRY("8", DICT("empty"), KIND("List", "true")) ","
    ENTRY("9", DICT("l") "," INDEX("0"), ARRAY) ","
    ENTRY("10", DICT("l") "," INDEX("007"), ARRAY) ","
    ENTRY("11", DICT("x"), ARRAY) ","
    ENTRY("12", DICT("x.txt"), KIND("scalar", "false")) ","
    ENTRY("13", DICT("x") "," DICT("in"), KIND("scalar", "false")) ","
    ENTRY("14", DICT("a@0"), ARRAY) ","
    ENTRY("15", DICT("z"), ARRAY)
    "},\"use_zarr3\":false,\"custom_metadata\":{\"run\":\"\\u00e9 \\\"1\\\"\",\"n\":[1,-Infinity ,NaN]}}";
/* clang-format on */

static const float w[6] = {0, 1, 2, 3, 4, 5.5f};
static const uint16_t b[4] = {0x3f80, 0xbf80, 0x7fc0, 0x0000}; /* 1, -1, NaN, 0 */
static const int64_t step = 7;
static const double lr = 1e-5;

static struct ckpt_backend *make_step(void)
{
    static const struct {
        const char *path;
        const void *data;
        size_t len; /* 0: text */
    } files[] = {
        {"_CHECKPOINT_METADATA", "{\"init_timestamp_nsecs\":1,\"commit_timestamp_nsecs\":2}", 0},
        {"metrics/metrics", "{\"loss\": 0.5}", 0},
        {"default/_METADATA", metadata, 0},
        {"default/_strings.json", "{\"name\":\"ad\\\"am\\u00e9\"}", 0},
        {"default/params.w/.zarray", ZARRAY("[2,3]", "<f4", "null"), 0},
        {"default/params.w/0.0", w, sizeof w},
        {"default/params.b/.zarray", ZARRAY("[4]", "bfloat16", "null"), 0},
        {"default/params.b/0", b, sizeof b},
        {"default/params.bad/.zarray", ZARRAY("[2]", "<f4", "{\"id\":\"lzma\"}"), 0},
        {"default/step/.zarray", ZARRAY("[]", "<i8", "null"), 0},
        {"default/step/0", &step, 8},
        {"default/lr/.zarray", ZARRAY("[]", "<f8", "null"), 0},
        {"default/lr/0", &lr, 8},
        {"default/l.0/.zarray", ZARRAY("[]", "|u1", "null"), 0},
        {"default/l.0/0", "A", 1},
        {"default/l.007/.zarray", ZARRAY("[2]", "|u1", "null"), 0},
        {"default/l.007/0", "BC", 2},
        {"default/x/.zarray", ZARRAY("[2]", ">i2", "null"), 0},
        {"default/x/0", "\1\2\3\4", 4},
        {"default/x.txt/.zarray", ZARRAY("[]", "|b1", "null"), 0},
        {"default/x.txt/0", "\1", 1},
        {"default/x.in/.zarray", ZARRAY("[]", "<i8", "null"), 0},
        {"default/x.in/0", &step, 8},
        {"default/a@0/.zarray", ZARRAY("[3]", "|i1", "null"), 0},
        {"default/a@0/0", "\1\2\3", 3},
        {"default/z/.zarray", ZARRAY("[]", "<c16", "null"), 0}, /* safetensors has no such type */
        {"default/z/0", "0123456789abcdef", 16},
    };
    struct ckpt_backend *backend = ckpt_backend_new_memory();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        CHECK(ckpt_backend_memory_add(backend, files[i].path, files[i].data,
                                      files[i].len ? files[i].len : strlen(files[i].data)) == 0);
    return backend;
}

static struct ckpt_tree *tree;
static struct ckpt_views views;

/* The node and view of a path; the selection of a slice in *sel. */
static int find(const char *path, struct ckpt_viewed *ret, struct ckpt_selection *sel)
{
    char copy[600];
    snprintf(copy, sizeof copy, "%s", path);
    *ret = (struct ckpt_viewed){.tree = tree};
    char *save, *name = strtok_r(copy, "/", &save);
    while (name) {
        const char *slice;
        size_t slice_len;
        if (!ckpt_viewed_is_dir(ret))
            return -ENOTDIR;
        int r = ckpt_view_lookup(tree, ret->node, name, &ret->node, &ret->view, &slice, &slice_len);
        if (r == 0 && slice) {
            r = ckpt_view_select(tree, ret->node, slice, slice_len, sel, NULL);
            ret->sel = sel;
        }
        if (r < 0)
            return r;
        name = strtok_r(NULL, "/", &save);
    }
    return 0;
}

static int add_given(void *arg, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++)
        ckpt_buf_add(arg, iov[i].iov_base, iov[i].iov_len);
    return 0;
}

/* All bytes of a file, read in pieces, handed on, and in one go: they must agree, and be as many as its size says. */
static struct ckpt_buf contents(const char *path)
{
    struct ckpt_selection sel;
    struct ckpt_viewed f;
    struct ckpt_buf whole = CKPT_BUF_INIT, given = CKPT_BUF_INIT;
    uint64_t size, stored;
    uint8_t piece[7];
    if (find(path, &f, &sel) < 0 || ckpt_view_size(&views, &f, &size, &stored, NULL) < 0) {
        fprintf(stderr, "%s: not found\n", path);
        exit(1);
    }
    CHECK(ckpt_buf_reserve(&whole, size + 100) == 0);
    ssize_t n = ckpt_view_read(&views, &f, whole.data, size + 100, 0, NULL);
    CHECK(n >= 0 && (uint64_t)n == size);
    whole.len = size;
    for (uint64_t off = 0; off < size; off += sizeof piece) {
        n = ckpt_view_read(&views, &f, piece, sizeof piece, off, NULL);
        CHECK(n == (ssize_t)CKPT_MIN(size - off, (uint64_t)sizeof piece) &&
              !memcmp(piece, whole.data + off, (size_t)n));
        CHECK(ckpt_view_give(&views, &f, sizeof piece, off, add_given, &given, NULL) >= 0);
    }
    CHECK(given.len == size && (!size || !memcmp(given.data, whole.data, size)));
    CHECK(ckpt_view_read(&views, &f, piece, 1, size, NULL) == 0 &&
          ckpt_view_read(&views, &f, piece, 1, UINT64_MAX, NULL) == 0);
    ckpt_buf_clear(&given);
    ckpt_buf_addc(&whole, 0);
    whole.len--;
    return whole;
}

static void check_bytes(const char *path, const void *want, size_t len)
{
    struct ckpt_buf got = contents(path);
    CHECK(got.len == len && !memcmp(got.data, want, len));
    ckpt_buf_clear(&got);
}

static void check_npy(const char *path, const char *header, const void *want, size_t len)
{
    struct ckpt_buf got = contents(path);
    CHECK(got.len > 10 && !memcmp(got.data, "\x93NUMPY\1\0", 8));
    size_t head = 10u + ckpt_le16(got.data + 8);
    CHECK(head % 64 == 0 && head <= got.len && got.data[head - 1] == '\n');
    got.data[head - 1] = 0;
    CHECK(strstr((char *)got.data + 10, header));
    CHECK(got.len - head == len && !memcmp(got.data + head, want, len));
    ckpt_buf_clear(&got);
}

static void test_lookup(void)
{
    static const struct {
        const char *path;
        int view; /* or an error */
    } cases[] = {
        {"params", CKPT_VIEW_LISTED},
        {"params/w.npy", CKPT_VIEW_LISTED},
        {"step.json", CKPT_VIEW_LISTED},
        {"metrics.json", CKPT_VIEW_LISTED},
        {"empty", CKPT_VIEW_LISTED},
        {"none.json", CKPT_VIEW_LISTED},
        {"params/w", CKPT_VIEW_RAW},
        {"step", CKPT_VIEW_RAW},
        {"step.npy", CKPT_VIEW_NPY},
        {"params/w.txt", CKPT_VIEW_TEXT},
        {"params/w.meta.json", CKPT_VIEW_META},
        {"step.meta.json", CKPT_VIEW_META},
        {"metrics.json.meta.json", CKPT_VIEW_META},
        {".tree.json", CKPT_VIEW_TREE},
        {"params/.tree.json", CKPT_VIEW_TREE},
        {"params.safetensors", CKPT_VIEW_SAFETENSORS},
        {"params/.safetensors", CKPT_VIEW_SAFETENSORS},
        {"params/w@0.npy", CKPT_VIEW_SLICE_NPY},
        {"params/w@0,1:", CKPT_VIEW_SLICE},
        {"x", CKPT_VIEW_LISTED} /* a directory, not the array beside it */,
        {"x.npy", CKPT_VIEW_LISTED},
        {"x.txt", CKPT_VIEW_RAW} /* the value of that key, not the text of x */,
        {"x.txt.json", CKPT_VIEW_LISTED},
        {"x.txt.txt", CKPT_VIEW_TEXT},
        {"a@0", CKPT_VIEW_RAW},
        {"a@0.npy", CKPT_VIEW_LISTED},
        {"a@0@1.npy", CKPT_VIEW_SLICE_NPY},
        {"params/w@7", -ENOENT},
        {"params/w@", -ENOENT},
        {"params/w@0,0,0", -ENOENT},
        {"params/w@.npy", -ENOENT},
        {"step@0", -ENOENT},
        {"a@1", -ENOENT},
        {"params/w.json", -ENOENT},
        {"params.npy", -ENOENT},
        {"params.txt", -ENOENT},
        {"params.meta.json", -ENOENT},
        {"w", -ENOENT},
        {"metrics", -ENOENT},
        {"empty.npy", -ENOENT},
        {"step.safetensors", -ENOENT},
        {"params/w.npy.npy", -ENOENT},
        {"params/w.NPY", -ENOENT},
        {".tree.jso", -ENOENT},
    };
    struct ckpt_viewed f;
    struct ckpt_selection sel;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int r = find(cases[i].path, &f, &sel);
        if (cases[i].view < 0 ? r != cases[i].view : r < 0 || (int)f.view != cases[i].view) {
            fprintf(stderr, "%s: %d, view %d\n", cases[i].path, r, (int)f.view);
            exit(1);
        }
    }
    char name[300];
    memset(name, 'n', sizeof name);
    name[256] = 0;
    CHECK(find(name, &f, &sel) == -ENAMETOOLONG);
    name[255] = 0;
    CHECK(find(name, &f, &sel) == -ENOENT);
}

static void test_leaves(void)
{
    static const int16_t x[2] = {0x0102, 0x0304};
    check_bytes("params/w", w, sizeof w);
    check_npy("params/w.npy", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", w, sizeof w);
    check_npy("params/b.npy", "'<V2'", b, sizeof b);
    check_npy("params/w@1.npy", "'shape': (3,), }", w + 3, 12);
    check_npy("params/w@::-1,2.npy", "'shape': (2,), }", (float[]){5.5f, 2}, 8);
    check_bytes("params/w@1,1", &w[4], 4);
    check_npy("params/w@0:0.npy", "'shape': (0, 3), }", "", 0);
    check_bytes("x@-1", &x[1], 2);
    check_npy("x.npy", "'<i2'", x, sizeof x);
    check_bytes("step.json", "7\n", 2);
    check_bytes("step", "7\n", 2);
    check_npy("step.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (), }", &step, 8);
    check_bytes("lr.json", "1e-05\n", 6);
    check_bytes("x.txt.json", "true\n", 5);
    check_bytes("x/in.json", "7\n", 2);
    check_bytes("name.json", "\"ad\\\"am\xc3\xa9\"\n", 11);
    check_bytes("none.json", "null\n", 5);
    check_bytes("metrics.json", "{\"loss\": 0.5}", 13);
    check_bytes("l/0", "A", 1);
    struct ckpt_viewed f;
    struct ckpt_err err = {0};
    uint64_t size, stored;
    uint8_t byte;
    CHECK(find("params/bad.npy", &f, NULL) == 0 && ckpt_view_size(&views, &f, &size, &stored, &err) == -EOPNOTSUPP);
    CHECK(ckpt_view_read(&views, &f, &byte, 1, 0, &err) == -EOPNOTSUPP && err.code == EOPNOTSUPP);
    CHECK(find("name.npy", &f, NULL) == 0 &&
          ckpt_view_size(&views, &f, &size, &stored, &err) == -ENOENT); /* no number */
    CHECK(find("params", &f, NULL) == 0 && ckpt_view_size(&views, &f, &size, &stored, &err) == -EISDIR);
}

static cJSON *parsed(const char *path)
{
    struct ckpt_buf got = contents(path);
    cJSON *item = ckpt_json_parse((char *)got.data, got.len);
    if (!item) {
        fprintf(stderr, "%s is not JSON: %s\n", path, (char *)got.data);
        exit(1);
    }
    ckpt_buf_clear(&got);
    return item;
}

static void check_member(const cJSON *object, const char *key, const char *want)
{
    char *text = cJSON_PrintUnformatted(ckpt_json_get(object, key));
    CHECK_STR(text ? text : "(none)", want);
    free(text);
}

static void test_json(void)
{
    cJSON *meta = parsed("params/w.meta.json");
    check_member(meta, "path", "[\"params\",\"w\"]");
    check_member(meta, "kind", "\"array\"");
    check_member(meta, "dtype", "\"float32\"");
    check_member(meta, "shape", "[2,3]");
    check_member(meta, "bytes", "24");
    check_member(meta, "stored", "24");
    check_member(meta, "codec", "\"none\"");
    check_member(meta, "format", "\"orbax\"");
    cJSON_Delete(meta);
    meta = parsed("params/bad.meta.json");
    CHECK(ckpt_json_get(meta, "unsupported"));
    cJSON_Delete(meta);
    meta = parsed("name.meta.json");
    check_member(meta, "value", "\"ad\\\"am\xc3\xa9\"");
    cJSON_Delete(meta);

    struct ckpt_buf text = contents(".tree.json");
    char *python = strstr((char *)text.data, "[1,-Infinity,NaN]"); /* what cJSON does not take */
    CHECK(python);
    memcpy(python, "[1,         2   ]", 17);
    cJSON *all = ckpt_json_parse((char *)text.data, text.len);
    CHECK(all);
    CHECK(strstr((char *)text.data, "[\"l\",\"007\"]")); /* a number has no leading zeros */
    ckpt_buf_clear(&text);
    const cJSON *leaves = ckpt_json_get(all, "leaves"), *containers = ckpt_json_get(all, "containers");
    check_member(all, "metadata", "{\"run\":\"\xc3\xa9 \\\"1\\\"\",\"n\":[1,2]}");
    CHECK(cJSON_GetArraySize(leaves) == 15 &&
          cJSON_GetArraySize(containers) == 5); /* 14 of the tree and metrics.json; the top, params, empty, l, x */
    check_member(cJSON_GetArrayItem(containers, 0), "path", "[]");
    bool seen_index = false;
    const cJSON *e;
    cJSON_ArrayForEach(e, leaves)
    {
        struct ckpt_viewed f;
        CHECK(cJSON_IsString(ckpt_json_get(e, "file")) && find(ckpt_json_get(e, "file")->valuestring, &f, NULL) == 0 &&
              f.view == CKPT_VIEW_LISTED);
        char *path = cJSON_PrintUnformatted(ckpt_json_get(e, "path"));
        seen_index |= !strcmp(path, "[\"l\",0]");
        free(path);
    }
    CHECK(seen_index);
    cJSON_Delete(all);
    text = contents("params/.tree.json");
    memcpy(strstr((char *)text.data, "[1,-Infinity,NaN]"), "[1,         2   ]", 17);
    all = ckpt_json_parse((char *)text.data, text.len);
    ckpt_buf_clear(&text);
    CHECK(cJSON_GetArraySize(ckpt_json_get(all, "leaves")) == 3);
    check_member(cJSON_GetArrayItem(ckpt_json_get(all, "leaves"), 0), "path", "[\"w\"]");
    cJSON_Delete(all);
}

/* One tensor of a safetensors file: its bytes. */
static const uint8_t *tensor(const struct ckpt_buf *file, const cJSON *header, const char *name, const char *dtype,
                             const char *shape, size_t len)
{
    const cJSON *t = ckpt_json_get(header, name), *offsets = ckpt_json_get(t, "data_offsets");
    check_member(t, "dtype", dtype);
    check_member(t, "shape", shape);
    uint64_t head = 8 + ckpt_le64(file->data), from, to;
    CHECK(ckpt_json_u64(cJSON_GetArrayItem(offsets, 0), &from) && ckpt_json_u64(cJSON_GetArrayItem(offsets, 1), &to));
    CHECK(to - from == len && head + to <= file->len && from % (len > 4 ? 2 : 1) == 0);
    return file->data + head + from;
}

static void test_safetensors(void)
{
    struct ckpt_buf file = contents(".safetensors");
    uint64_t head = ckpt_le64(file.data), end = 0;
    CHECK(head % 8 == 0 && head + 8 <= file.len);
    cJSON *header = ckpt_json_parse((char *)file.data + 8, head);
    CHECK(header);
    CHECK(!memcmp(tensor(&file, header, "params.w", "\"F32\"", "[2,3]", 24), w, 24));
    CHECK(!memcmp(tensor(&file, header, "params.b", "\"BF16\"", "[4]", 8), b, 8));
    CHECK(!memcmp(tensor(&file, header, "step", "\"I64\"", "[]", 8), &step, 8));
    CHECK(*tensor(&file, header, "l.0", "\"U8\"", "[]", 1) == 'A' &&
          *tensor(&file, header, "x.txt", "\"BOOL\"", "[]", 1) == 1);
    const cJSON *others = ckpt_json_get(header, "__metadata__"), *e;
    check_member(others, "name", "\"\\\"ad\\\\\\\"am\xc3\xa9\\\"\""); /* a string, of JSON */
    check_member(others, "none", "\"null\"");
    CHECK(ckpt_json_get(others, "z") && ckpt_json_get(others, "params.bad") && !ckpt_json_get(header, "z"));
    cJSON_ArrayForEach(e, header) /* one after another, without holes */
    {
        const cJSON *offsets = ckpt_json_get(e, "data_offsets");
        uint64_t from, to;
        if (!offsets)
            continue;
        CHECK(ckpt_json_u64(cJSON_GetArrayItem(offsets, 0), &from) &&
              ckpt_json_u64(cJSON_GetArrayItem(offsets, 1), &to));
        CHECK(from == end && to >= from);
        end = to;
    }
    CHECK(8 + head + end == file.len);
    cJSON_Delete(header);
    ckpt_buf_clear(&file);
}

static void test_text(void)
{
    struct ckpt_buf text = contents("params/w.txt");
    static const char *const lines[] = {
        "dtype  float32\n", "shape  (2, 3)\n",     "bytes  24\n", "min    0\n",
        "max    5.5\n",     "mean   2.58333333\n", "nan    0\n",  "[[0.  1.  2. ]\n [3.  4.  5.5]]"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr((char *)text.data, lines[i])) {
            fprintf(stderr, "no \"%s\" in %s\n", lines[i], (char *)text.data);
            exit(1);
        }
    ckpt_buf_clear(&text);
    text = contents("params/b.txt");
    CHECK(strstr((char *)text.data, "dtype  bfloat16\n") && strstr((char *)text.data, "nan    1\n") &&
          strstr((char *)text.data, "shape  (4,)\n"));
    ckpt_buf_clear(&text);
    text = contents("step.txt");
    CHECK_STR((char *)text.data, "dtype  int64\n\n7\n");
    ckpt_buf_clear(&text);
}

int main(void)
{
    struct ckpt_backend *backend = make_step();
    struct ckpt_pins *pins;
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
    struct ckpt_err err = {0};
    CHECK(ckpt_pins_new(backend, &pins) == 0 && ckpt_pool_new(1, &pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){8 << 20, 8 << 20, "/tmp"}, pool, &cache) == 0);
    CHECK(ckpt_views_init(&views, cache, "/tmp") == 0);
    if (ckpt_orbax_format.open(&(struct ckpt_opening){pins, "", cache}, &tree, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    test_lookup();
    test_leaves();
    test_json();
    test_safetensors();
    test_text();
    ckpt_views_clear(&views);
    ckpt_cache_drop_tree(cache, tree->id);
    ckpt_tree_unref(tree);
    ckpt_pool_free(pool);
    ckpt_cache_free(cache);
    ckpt_pins_unref(pins);
    ckpt_backend_unref(backend);
    return 0;
}
