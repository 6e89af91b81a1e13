/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests written and read again, byte for byte as docs/format.md has them; and malformed, cut and damaged ones, each
 * with its error. */
#include "core/object/manifest.h"
#include "core/object/record.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

#include <fcntl.h>
#include <xxhash.h>

#define ID  "00112233445566778899aabbccddeeff"
#define SHA "abababababababababababababababababababababababababababababababab"

static struct ckpt_manifest_info info_of(void)
{
    return (struct ckpt_manifest_info){
        .name = "7",
        .time_ns = 1769000000123456789,
        .id = ID,
        .metadata = "{ \"run\" : [1, NaN,\n\"a b\"] }",
        .top = {.mode = 0755, .uid = 1000, .gid = 4294967294, .mtime_ns = 1769000000123456788},
    };
}

static struct ckpt_manifest_node dir_node(uint32_t parent, char *name)
{
    return (struct ckpt_manifest_node){
        .parent = parent, .name = name, .mode = 0700, .uid = 1, .gid = 2, .mtime_ns = -3};
}

static struct ckpt_manifest_node leaf_node(uint32_t parent, char *name, enum ckpt_node_kind kind)
{
    struct ckpt_manifest_node n = dir_node(parent, name);
    n.kind = kind;
    n.mode = 0644;
    n.size = 12;
    n.stored = 34;
    memset(n.sha256, 0xab, sizeof n.sha256);
    memset(n.object, 0xab, sizeof n.object);
    return n;
}

static struct ckpt_manifest_node array_node(uint32_t parent, char *name, const char *descr, unsigned ndim,
                                            const uint64_t *shape)
{
    struct ckpt_manifest_node n = leaf_node(parent, name, CKPT_NODE_ARRAY);
    CHECK(ckpt_npy_parse_descr(descr, &n.npy, NULL) == 0);
    n.npy.ndim = ndim;
    n.npy.header = 128;
    for (unsigned i = 0; i < ndim; i++)
        n.npy.shape[i] = shape[i];
    CHECK(ckpt_npy_settle(&n.npy, NULL) == 0);
    n.size = 128 + n.npy.nbytes;
    return n;
}

static struct ckpt_manifest_node value_node(uint32_t parent, char *name, char *text)
{
    struct ckpt_manifest_node n = leaf_node(parent, name, CKPT_NODE_VALUE);
    n.text = text;
    n.size = strlen(text);
    return n;
}

static int temporary(void)
{
    char path[] = "/tmp/ckptfs-test-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0 && unlink(path) == 0);
    return fd;
}

/* All of a descriptor. */
static char *slurp(int fd, size_t *ret_len)
{
    off_t len = lseek(fd, 0, SEEK_END);
    char *text = malloc((size_t)len + 1);
    CHECK(pread(fd, text, (size_t)len, 0) == len);
    text[len] = 0;
    *ret_len = (size_t)len;
    return text;
}

static struct ckpt_manifest_writer *begin(int fd, const struct ckpt_manifest_info *info)
{
    struct ckpt_manifest_writer *w;
    CHECK(ckpt_manifest_write_begin(fd, info, &w) == 0);
    return w;
}

static uint32_t add(struct ckpt_manifest_writer *w, struct ckpt_manifest_node n)
{
    uint32_t number;
    CHECK(ckpt_manifest_write_node(w, &n, &number) == 0);
    return number;
}

/* --- reading --- */

static struct ckpt_backend *backend;

static struct ckpt_file *file_of(const char *text, size_t len)
{
    struct ckpt_file *f;
    ckpt_backend_unref(backend);
    backend = ckpt_backend_new_memory();
    CHECK(ckpt_backend_memory_add(backend, "m", text, len) == 0 && ckpt_backend_open(backend, "m", &f) == 0);
    return f;
}

/* What each() tells of: the nodes as they are, and again by their places. */
struct seen {
    struct ckpt_file *file;
    unsigned count;
    struct ckpt_manifest_node nodes[16];
    struct ckpt_err *err;
};

static bool same_node(const struct ckpt_manifest_node *a, const struct ckpt_manifest_node *b)
{
    return a->parent == b->parent && !strcmp(a->name, b->name) && a->kind == b->kind && a->container == b->container &&
           a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->mtime_ns == b->mtime_ns &&
           a->size == b->size && !memcmp(a->sha256, b->sha256, CKPT_SHA256) &&
           !memcmp(a->object, b->object, CKPT_SHA256) && a->offset == b->offset && a->codec == b->codec &&
           a->stored == b->stored && !a->text == !b->text && (!a->text || !strcmp(a->text, b->text)) &&
           !a->xattrs == !b->xattrs && a->check == b->check && !strcmp(a->npy.descr, b->npy.descr) &&
           a->npy.dtype == b->npy.dtype && a->npy.header == b->npy.header && a->npy.fortran == b->npy.fortran &&
           a->npy.nbytes == b->npy.nbytes;
}

static int see(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct seen *s = arg;
    struct ckpt_manifest_node again;
    CHECK(number == s->count + 1 && s->count < 16);
    CHECK(ckpt_manifest_record(s->file, off, len, &again, s->err) == 0 && same_node(n, &again));
    s->nodes[s->count++] = again;
    return 0;
}

static void forget(struct seen *s)
{
    for (unsigned i = 0; i < s->count; i++)
        ckpt_manifest_node_clear(&s->nodes[i]);
}

/* The error of a manifest. */
static int fault_of(const char *text, size_t len)
{
    struct ckpt_file *f = file_of(text, len);
    struct ckpt_err err = {0};
    int r = ckpt_manifest_each(f, NULL, NULL, NULL, &err);
    CHECK(r == 0 || (r < 0 && err.code == -r && *err.text));
    ckpt_file_unref(f);
    return r;
}

/* With the right sum at its end. %s in the format's place are the lines of the nodes. */
static int fault_of_lines(const char *head, const char *lines, unsigned count)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_adds(&b, head);
    ckpt_buf_adds(&b, lines);
    ckpt_buf_addf(&b, "],\"count\":%u,\"xxh3\":\"%016llx\"}\n", count, (unsigned long long)XXH3_64bits(b.data, b.len));
    int r = fault_of((char *)b.data, b.len);
    ckpt_buf_clear(&b);
    return r;
}

#define TOP                                                                                                            \
    "\"top\":{\"container\":\"dict\",\"mode\":493,\"uid\":1000,\"gid\":4294967294,\"mtime\":1769000000123456788}"
#define TIME      "\"time\":1769000000123456789,"
#define HEAD      "{\"format\":\"ckptfs-step\",\"version\":1,\"name\":\"7\",\"id\":\"" ID "\"," TIME
#define BARE      HEAD TOP ",\"nodes\":[\n"
#define META      ",\"mode\":448,\"uid\":1,\"gid\":2,\"mtime\":-3"
#define FILE_META ",\"mode\":420,\"uid\":1,\"gid\":2,\"mtime\":-3"
#define DIR       "{\"parent\":0,\"name\":\"params\",\"kind\":\"dir\",\"container\":\"dict\"" META "}"

static const char text[] = HEAD
    "\"metadata\":{\"run\":[1,NaN,\"a b\"]}," TOP ",\"nodes\":[\n" DIR ",\n"
    "{\"parent\":1,\"name\":\"w.npy\",\"kind\":\"array\"" FILE_META ",\"size\":152,\"sha256\":\"" SHA
    "\",\"codec\":\"blosc\",\"stored\":34,"
    "\"descr\":\"<f4\",\"shape\":[2,3],\"header\":128},\n"
    "{\"parent\":1,\"name\":\"b.npy\",\"kind\":\"array\"" FILE_META ",\"size\":132,\"sha256\":\"" SHA "\","
    "\"object\":\"0101010101010101010101010101010101010101010101010101010101010101\",\"offset\":64,\"codec\":\"none\","
    "\"stored\":34,"
    "\"descr\":\"<V2\",\"dtype\":\"bfloat16\",\"shape\":[2],\"header\":128,\"fortran\":true},\n"
    "{\"parent\":1,\"name\":\"s.npy\",\"kind\":\"array\"" FILE_META ",\"size\":128,\"sha256\":\"" SHA
    "\",\"codec\":\"none\",\"stored\":34,"
    "\"descr\":\"[('\u00e9', '<i4')]\",\"shape\":[],\"header\":124},\n"
    "{\"parent\":1,\"name\":\"lr \\\"1\\\".json\",\"kind\":\"value\"" FILE_META ",\"size\":7,\"sha256\":\"" SHA
    "\",\"text\":\" 0.001\\n\","
    "\"xattrs\":{\"user.x\":\"00ff\"}},\n"
    "{\"parent\":0,\"name_hex\":\"ff2e\",\"kind\":\"dir\",\"container\":\"tuple\"" META "},\n"
    "{\"parent\":6,\"name\":\"notes\\n\",\"kind\":\"blob\"" FILE_META ",\"size\":12,\"sha256\":\"" SHA
    "\",\"codec\":\"none\",\"stored\":34}\n"
    "],\"count\":7,\"xxh3\":\"";

static void write_all(int fd)
{
    struct ckpt_manifest_info info = info_of();
    struct ckpt_manifest_writer *w = begin(fd, &info);
    CHECK(add(w, dir_node(0, "params")) == 1);
    struct ckpt_manifest_node n = array_node(1, "w.npy", "<f4", 2, (uint64_t[]){2, 3});
    n.codec = CKPT_OBJECT_BLOSC;
    CHECK(add(w, n) == 2);
    n = array_node(1, "b.npy", "<V2", 1, (uint64_t[]){2});
    n.npy.dtype = CKPT_DT_BF16;
    n.npy.fortran = true;
    n.offset = 64;
    memset(n.object, 1, sizeof n.object);
    CHECK(add(w, n) == 3);
    n = array_node(1, "s.npy", "[('\u00e9', '<i4')]", 0, NULL);
    n.npy.header = 124;
    n.size = 128;
    CHECK(add(w, n) == 4);
    n = value_node(1, "lr \"1\".json", " 0.001\n");
    n.xattrs = "{\"user.x\" : \"00ff\"}";
    CHECK(add(w, n) == 5);
    n = dir_node(0, "\xff.");
    n.container = CKPT_TUPLE;
    CHECK(add(w, n) == 6);
    CHECK(add(w, leaf_node(6, "notes\n", CKPT_NODE_BLOB)) == 7);
    CHECK(ckpt_manifest_write_end(w) == 0);
}

static void test_written(void)
{
    int fd = temporary();
    size_t len;
    write_all(fd);
    CKPT_AUTOFREE char *got = slurp(fd, &len);
    close(fd);
    char sum[32];
    const char *end = strstr(got, "],\"count\"");
    CHECK(end);
    snprintf(sum, sizeof sum, "%016llx\"}\n", (unsigned long long)XXH3_64bits(got, (size_t)(end - got)));
    CHECK(len == strlen(text) + 19);
    CHECK_STR(got + strlen(text), sum);
    got[strlen(text)] = 0;
    CHECK_STR(got, text);
    strcpy(got + strlen(text), sum);

    struct ckpt_err err = {0};
    struct seen s = {.file = file_of(got, len), .err = &err};
    struct ckpt_manifest_info info, head;
    CHECK(ckpt_manifest_each(s.file, &info, see, &s, &err) == 0 && s.count == 7 && info.count == 8);
    CHECK(ckpt_manifest_info(s.file, &head, &err) == 0 && !strcmp(head.name, "7") &&
          !strcmp(head.metadata, info.metadata));
    CHECK_STR(info.name, "7");
    CHECK_STR(info.id, ID);
    CHECK_STR(info.metadata, "{\"run\":[1,NaN,\"a b\"]}");
    CHECK(info.time_ns == 1769000000123456789 && info.top.mode == 0755 && info.top.uid == 1000 &&
          info.top.gid == 4294967294);
    CHECK(info.top.mtime_ns == 1769000000123456788 && !info.top.name);
    CHECK(s.nodes[1].npy.dtype == CKPT_DT_F32 && s.nodes[1].npy.ndim == 2 && s.nodes[1].npy.shape[1] == 3 &&
          s.nodes[1].codec == CKPT_OBJECT_BLOSC);
    CHECK(!memcmp(s.nodes[1].object, s.nodes[1].sha256, CKPT_SHA256) && s.nodes[1].stored == 34);
    CHECK(s.nodes[2].npy.dtype == CKPT_DT_BF16 && s.nodes[2].npy.fortran && s.nodes[2].offset == 64 &&
          s.nodes[2].object[5] == 1);
    CHECK(s.nodes[3].npy.dtype == CKPT_DT_OTHER && s.nodes[3].npy.itemsize == 4);
    CHECK_STR(s.nodes[4].name, "lr \"1\".json");
    CHECK_STR(s.nodes[4].text, " 0.001\n");
    CHECK_STR(s.nodes[4].xattrs, "{\"user.x\":\"00ff\"}");
    CHECK(s.nodes[5].container == CKPT_TUPLE && !strcmp(s.nodes[5].name, "\xff.") && s.nodes[5].mtime_ns == -3);
    CHECK_STR(s.nodes[6].name, "notes\n");
    forget(&s);
    ckpt_manifest_info_clear(&info);
    ckpt_manifest_info_clear(&head);
    ckpt_file_unref(s.file);

    /* Cut anywhere, or with any byte changed, it is damaged. */
    size_t head_len = (size_t)(strstr(text, DIR) - text), end_at = strlen(text) - strlen("],\"count\":7,\"xxh3\":\"");
    for (size_t n = 0; n < len - 1; n++)
        CHECK(fault_of(got, n) == -EBADMSG);
    CHECK(fault_of(got, len - 1) == 0); /* without the last newline */
    for (size_t n = 0; n < len; n++) {
        got[n] ^= 1;
        int r = fault_of(got, len);
        CHECK(r == -EBADMSG || (n < head_len && r == -EOPNOTSUPP) || (n + 1 >= end_at && r == -EUCLEAN));
        got[n] ^= 1;
    }
}

static int stop_at(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    return number == 2 ? *(int *)arg : 0;
}

static void test_stopped(void)
{
    int fd = temporary(), want = 5;
    size_t len;
    write_all(fd);
    CKPT_AUTOFREE char *got = slurp(fd, &len);
    struct ckpt_file *f = file_of(got, len);
    struct ckpt_err err = {0};
    CHECK(ckpt_manifest_each(f, NULL, stop_at, &want, &err) == 5 && !err.code);
    want = -ENOTDIR;
    CHECK(ckpt_manifest_each(f, NULL, stop_at, &want, &err) == -ENOTDIR && !err.code);
    ckpt_file_unref(f);
    close(fd);
}

#define BLOB(more)                                                                                                     \
    "{\"parent\":0,\"name\":\"n\",\"kind\":\"blob\"" FILE_META ",\"size\":12,\"sha256\":\"" SHA                        \
    "\",\"codec\":\"none\",\"stored\":34" more "}"
#define ARRAY(descr, shape, size)                                                                                      \
    "{\"parent\":0,\"name\":\"n.npy\",\"kind\":\"array\"" FILE_META ",\"size\":" size ",\"sha256\":\"" SHA             \
    "\",\"codec\":\"none\",\"stored\":34,"                                                                             \
    "\"descr\":" descr ",\"shape\":" shape ",\"header\":128}"
#define VALUE(size, value)                                                                                             \
    "{\"parent\":0,\"name\":\"n.json\",\"kind\":\"value\"" FILE_META ",\"size\":" size ",\"sha256\":\"" SHA            \
    "\",\"text\":" value "}"
#define NAMED(name) "{\"parent\":0," name ",\"kind\":\"dir\",\"container\":\"dict\"" META "}"

static void test_lines(void)
{
    static const char *const good[] = {
        BLOB(""),
        " " BLOB(" , \"x\" : {\"a\":[1,{}],\"b\":\"\\u0000\"}") " ",
        BLOB(",\"xattrs\":{}"),
        BLOB(",\"text\":\"not its own\""),
        ARRAY("\"<f4\"", "[]", "132"),
        ARRAY("\"<f4\"", "[0,4]", "128"),
        ARRAY("\">f4\"", "[1]", "132"),
        ARRAY("\"<f4\",\"dtype\":\"new\"", "[1]", "132"),
        ARRAY("\"|i1\",\"dtype\":\"int4\"", "[1]", "129"),
        VALUE("4", "\"null\""),
        VALUE("4", "\"\\\"a\\\"\\n\""),
        VALUE("3", "\"NaN\""),
        NAMED("\"name\":\"\\ud83d\\ude00\\t\""),
        NAMED("\"name_hex\":\"ff\""),
        NAMED("\"n\\u0061me\":\"a\""),
        "{\"parent\":0,\"name\":\"n\",\"kind\":\"blob\"" FILE_META ",\"size\":12,\"sha256\":\"" SHA
        "\",\"codec\":\"later\",\"stored\":34}",
    };
    static const char *const malformed[] = {
        "x",
        "{}",
        "[]",
        "{",
        BLOB("") " x",
        BLOB("") ",",
        BLOB("") "}",
        BLOB(",\"size\":12"),
        BLOB(",\"x\":"),
        BLOB(",\"x\":[1,]"),
        BLOB(",\"x\":{\"a\"}"),
        BLOB(",\"x\":01"),
        BLOB(",\"x\":tru"),
        BLOB(",\"x\":\"\\x\""),
        BLOB(",\"x\":\"\xff\""),
        BLOB(",\"x\":1 2"),
        BLOB(",\"xattrs\":[]"),
        BLOB(",\"object\":\"AB\""),
        BLOB(",\"offset\":-1"),
        BLOB(",\"offset\":4611686018427387905"),
        BLOB(",\"offset\":1.0"),
        BLOB(",\"fortran\":1"),
        ARRAY("\"<f4\"", "[1]", "133"),
        ARRAY("\"<f4\"", "[-1]", "132"),
        ARRAY("\"<f4\"", "1", "132"),
        ARRAY("\"<f4\"", "[4611686018427387904,4]", "128"),
        ARRAY("\"<q4\"", "[1]", "132"),
        ARRAY("\"\"", "[1]", "132"),
        ARRAY("\"<f4\",\"dtype\":\"bfloat16\"", "[1]", "132"),
        ARRAY("\"[('a', '<f4')] \"", "[1", "132"),
        VALUE("4", "\"nil\""),
        VALUE("5", "\"null\""),
        VALUE("2", "\"[]\""),
        VALUE("2", "\"{}\""),
        VALUE("0", "\"\""),
        VALUE("3", "\"1 2\""),
        VALUE("2", "\"1\\u0000\""),
        VALUE("4", "null"),
        NAMED("\"name\":\"\""),
        NAMED("\"name\":\".\""),
        NAMED("\"name\":\"..\""),
        NAMED("\"name\":\"a/b\""),
        NAMED("\"name\":\"a\\u0000\""),
        NAMED("\"name\":\"\\ud83d\""),
        NAMED("\"name\":\"\\ude00\""),
        NAMED("\"name_hex\":\"f\""),
        NAMED("\"name_hex\":\"FF\""),
        NAMED("\"name_hex\":\"00\""),
        NAMED("\"name_hex\":\"2f\""),
        NAMED("\"name\":\"a\",\"name_hex\":\"61\""),
        NAMED("\"name\":\"a\"") "\n" NAMED("\"name\":\"b\""),
        "{\"parent\":1,\"name\":\"a\",\"kind\":\"dir\",\"container\":\"dict\"" META "}",
        "{\"name\":\"a\",\"kind\":\"dir\",\"container\":\"dict\"" META "}",
        "{\"parent\":0,\"name\":\"a\",\"kind\":\"dir\"" META "}",
        "{\"parent\":0,\"name\":\"a\",\"kind\":\"dir\",\"container\":\"dict\",\"mode\":4096,\"uid\":1,\"gid\":2,"
        "\"mtime\":3}",
        "{\"parent\":0,\"name\":\"a\",\"kind\":\"dir\",\"container\":\"dict\",\"mode\":1,\"uid\":4294967296,\"gid\":2,"
        "\"mtime\":3}",
        "{\"parent\":0,\"name\":\"a\",\"kind\":\"dir\",\"container\":\"dict\",\"mode\":1,\"uid\":1,\"gid\":2,\"mtime\":"
        "9223372036854775808}",
        "{\"parent\":0,\"name\":\"n\",\"kind\":\"array\"" FILE_META ",\"size\":132,\"sha256\":\"" SHA
        "\",\"codec\":\"none\",\"stored\":34,\"descr\":\"<f4\",\"shape\":[1],\"header\":128}",
    };
    CHECK(fault_of_lines(BARE, "", 0) == 0 && fault_of_lines(BARE, "", 1) == -EUCLEAN);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char lines[4096];
        snprintf(lines, sizeof lines, "%s\n", good[i]);
        if (fault_of_lines(BARE, lines, 1) != 0)
            fprintf(stderr, "%s\n", good[i]);
        CHECK(fault_of_lines(BARE, lines, 1) == 0);
    }
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        char lines[4096];
        snprintf(lines, sizeof lines, "%s\n", malformed[i]);
        if (fault_of_lines(BARE, lines, 1) != -EUCLEAN)
            fprintf(stderr, "%s\n", malformed[i]);
        CHECK(fault_of_lines(BARE, lines, 1) == -EUCLEAN);
    }
    CHECK(fault_of_lines(BARE, "{\"parent\":0,\"name\":\"a\",\"kind\":\"link\"" META "}\n", 1) == -EOPNOTSUPP);
    CHECK(fault_of_lines(BARE, "{\"parent\":0,\"name\":\"a\",\"kind\":\"dir\",\"container\":\"set\"" META "}\n", 1) ==
          -EOPNOTSUPP);
    CHECK(fault_of_lines(BARE, DIR ",\n" DIR "\n", 2) == 0); /* that names differ is for the tree to say */
    CHECK(fault_of_lines(BARE, DIR ",\n" DIR ",\n", 2) == -EUCLEAN && fault_of_lines(BARE, DIR "\n", 2) == -EUCLEAN);
}

static int see_dtype(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    *(enum ckpt_dtype *)arg = n->npy.dtype;
    return 1;
}

/* What a record does not say of its type. */
static enum ckpt_dtype dtype_of(const char *record)
{
    enum ckpt_dtype dtype;
    char lines[4096];
    int n = snprintf(lines, sizeof lines, BARE "%s\n", record);
    struct ckpt_file *f = file_of(lines, (size_t)n);
    CHECK(ckpt_manifest_each(f, NULL, see_dtype, &dtype, NULL) == 1);
    ckpt_file_unref(f);
    return dtype;
}

static void test_dtypes(void)
{
    CHECK(dtype_of(ARRAY("\"<V2\"", "[1]", "130")) == CKPT_DT_BF16 &&
          dtype_of(ARRAY("\"|V2\"", "[1]", "130")) == CKPT_DT_OTHER);
    CHECK(dtype_of(ARRAY("\"<V2\",\"dtype\":\"new\"", "[1]", "130")) == CKPT_DT_OTHER);
    CHECK(dtype_of(ARRAY("\"<V2\",\"dtype\":\"float16\"", "[1]", "130")) == CKPT_DT_F16);
    CHECK(dtype_of(ARRAY("\"|V1\",\"dtype\":\"float8_e4m3fn\"", "[1]", "129")) == CKPT_DT_F8_E4M3FN);
}

/* --- what the bytes do not tell --- */

static int copy_told(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct ckpt_manifest_node *ret = arg;
    *ret = *n;
    ret->type = n->type ? strdup(n->type) : NULL;
    ret->prng_impl = n->prng_impl ? strdup(n->prng_impl) : NULL;
    ret->name = ret->xattrs = ret->text = NULL;
    return 1;
}

static struct ckpt_manifest_node told_of(const char *record)
{
    struct ckpt_manifest_node n;
    char lines[4096];
    int len = snprintf(lines, sizeof lines, BARE "%s\n", record);
    struct ckpt_file *f = file_of(lines, (size_t)len);
    CHECK(ckpt_manifest_each(f, NULL, copy_told, &n, NULL) == 1);
    ckpt_file_unref(f);
    return n;
}

static bool is_told(const char *record, const char *type, const char *prng_impl)
{
    struct ckpt_manifest_node n = told_of(record);
    bool same = !n.type == !type && (!type || !strcmp(n.type, type)) && !n.prng_impl == !prng_impl &&
                (!prng_impl || !strcmp(n.prng_impl, prng_impl));
    ckpt_manifest_node_clear(&n);
    return same;
}

#define LONG "0123456789012345678901234567890123456789012345678901234567890123"

static void test_told(void)
{
    CHECK(is_told(VALUE("4", "\"0.5\\n\",\"dtype\":\"float16\""), "float16", NULL));
    CHECK(is_told(VALUE("4", "\"0.1\\n\",\"dtype\":\"float16\""), NULL, NULL));
    CHECK(is_told(VALUE("3", "\"300\",\"dtype\":\"uint8\""), NULL, NULL));
    CHECK(is_told(VALUE("3", "\"300\",\"dtype\":\"new\""), NULL, NULL));
    CHECK(is_told(VALUE("3", "\"300\",\"prng_impl\":\"rbg\""), NULL, NULL));
    CHECK(is_told(BLOB(",\"dtype\":\"Q4_0\",\"shape\":[1,256]"), "Q4_0", NULL));
    CHECK(is_told(BLOB(",\"dtype\":\"\""), NULL, NULL) && is_told(BLOB(",\"dtype\":\"" LONG "\""), NULL, NULL));
    CHECK(is_told(BLOB(",\"dtype\":\"a b\""), NULL, NULL) && is_told(BLOB(",\"dtype\":\"\\u00e9\""), NULL, NULL));
    CHECK(is_told(ARRAY("\"<u4\",\"prng_impl\":\"threefry2x32\"", "[1]", "132"), NULL, "threefry2x32"));
    CHECK(is_told(ARRAY("\"<u4\",\"prng_impl\":\"two words\"", "[1]", "132"), NULL, NULL));
    struct ckpt_manifest_node n = told_of(BLOB(",\"dtype\":\"Q4_0\",\"shape\":[1,256]"));
    CHECK(n.shaped && n.npy.ndim == 2 && n.npy.shape[1] == 256);
    ckpt_manifest_node_clear(&n);
    n = told_of(BLOB(",\"shape\":[1,256]"));
    CHECK(!n.shaped);
    ckpt_manifest_node_clear(&n);
    static const char whole[] = HEAD "\"required\":[\"whole\"]," TOP ",\"nodes\":[\n";
    CHECK(fault_of_lines(whole, ARRAY("\"<u4\",\"whole\":true", "[1]", "132") "\n", 1) == 0);
    CHECK(fault_of_lines(BARE, ARRAY("\"<u4\",\"whole\":true", "[1]", "132") "\n", 1) == -EOPNOTSUPP);
    CHECK(!told_of(VALUE("1", "\"1\",\"whole\":true")).whole);
    CHECK(fault_of_lines(BARE, BLOB(",\"whole\":1") "\n", 1) == -EUCLEAN);
    CHECK(fault_of_lines(HEAD "\"required\":[\"whole\",\"sparse\"]," TOP ",\"nodes\":[\n", "", 0) == 0);
}

/* What is written is read again; what could not be is refused. */
static void test_told_written(void)
{
    char value[] = "0.5\n", unlike[] = "0.1";
    struct ckpt_manifest_node v = value_node(0, "v.json", value), b = leaf_node(0, "b", CKPT_NODE_BLOB);
    struct ckpt_buf line = CKPT_BUF_INIT;
    v.type = (char *)"float16";
    b.type = (char *)"Q4_0";
    b.shaped = true;
    b.npy.ndim = 1;
    b.npy.shape[0] = 32;
    CHECK(ckpt_record_print(&line, &v, false) == 0 && ckpt_record_print(&line, &b, false) == 0);
    ckpt_buf_addc(&line, 0);
    CHECK(strstr((char *)line.data, "\"dtype\":\"float16\"}"));
    CHECK(strstr((char *)line.data, "\"dtype\":\"Q4_0\",\"shape\":[32]}"));
    line.len = 0;
    v = value_node(0, "v.json", unlike);
    v.type = (char *)"float16";
    b.type = (char *)"two words";
    CHECK(ckpt_record_print(&line, &v, false) == -EINVAL && ckpt_record_print(&line, &b, false) == -EINVAL);
    ckpt_buf_clear(&line);
}

static void test_heads(void)
{
    CHECK(fault_of_lines(HEAD "\"required\":[]," TOP ",\"new\":{},\"nodes\":[\n", "", 0) == 0);
    CHECK(fault_of_lines(HEAD "\"required\":[\"new\"]," TOP ",\"nodes\":[\n", "", 0) == -EOPNOTSUPP);
    CHECK(fault_of_lines(HEAD "\"required\":[\"sparse\",\"new\"]," TOP ",\"nodes\":[\n", "", 0) == -EOPNOTSUPP);
    CHECK(fault_of_lines(HEAD "\"required\":[\"sparse\"]," TOP ",\"nodes\":[\n", "", 0) == 0);
    CHECK(fault_of_lines("{\"format\":\"ckptfs-step\",\"version\":2," TOP ",\"nodes\":[\n", "", 0) == -EOPNOTSUPP);
    static const char *const malformed[] = {
        "{\"format\":\"ckptfs-leap\",\"version\":1,\"name\":\"7\",\"id\":\"" ID "\",\"time\":1," TOP ",\"nodes\":[\n",
        "{\"version\":1,\"name\":\"7\",\"id\":\"" ID "\",\"time\":1," TOP ",\"nodes\":[\n",
        HEAD "\"nodes\":[\n",
        HEAD TOP "}\n",
        HEAD TOP ",\"nodes\":{\n",
        HEAD TOP ",\"nodes\":[ \n",
        HEAD TOP ",\"nodes\":[1,\n",
        HEAD "\"metadata\":[]," TOP ",\"nodes\":[\n",
        HEAD "\"id\":\"0\"," TOP ",\"nodes\":[\n",
        HEAD "\"name\":\"a/b\"," TOP ",\"nodes\":[\n",
        HEAD "\"top\":{\"container\":\"dict\",\"mode\":1,\"uid\":1,\"gid\":1},\"nodes\":[\n",
        HEAD "\"top\":{\"container\":\"dict\",\"name\":\"x\",\"mode\":1,\"uid\":1,\"gid\":1,\"mtime\":1},\"nodes\":[\n",
        "[\n",
        "\n",
        "#!/bin/sh\n",
    };
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        if (fault_of_lines(malformed[i], "", 0) != -EUCLEAN)
            fprintf(stderr, "%s", malformed[i]);
        CHECK(fault_of_lines(malformed[i], "", 0) == -EUCLEAN);
    }
    CHECK(fault_of("PK\3\4\n", 5) == -EUCLEAN && fault_of("", 0) == -EBADMSG);
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_buf_adds(&b, BARE "],\"count\":0,\"xxh3\":\"");
    size_t sum = b.len;
    ckpt_buf_addf(&b, "%016llx\"}\n\n", (unsigned long long)XXH3_64bits(BARE, strlen(BARE)));
    CHECK(fault_of((char *)b.data, b.len) == -EUCLEAN && fault_of((char *)b.data, b.len - 1) == 0);
    b.data[sum] ^= 1;
    CHECK(fault_of((char *)b.data, b.len - 1) == -EBADMSG);
    ckpt_buf_clear(&b);
}

static void check_invalid(struct ckpt_manifest_node n)
{
    struct ckpt_manifest_info info = info_of();
    int fd = temporary();
    struct ckpt_manifest_writer *w = begin(fd, &info);
    uint32_t number;
    CHECK(ckpt_manifest_write_node(w, &n, &number) == -EINVAL);
    CHECK(ckpt_manifest_write_end(w) == -EINVAL); /* it sticks */
    close(fd);
}

static void test_invalid(void)
{
    static char long_name[300], long_text[CKPT_MANIFEST_TEXT_MAX + 8];
    memset(long_name, 'x', 256);
    memset(long_text, ' ', sizeof long_text - 1);
    long_text[0] = '1';
    static char *const names[] = {"", ".", "..", "a/b", long_name};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_invalid(dir_node(0, names[i]));
    check_invalid(dir_node(1, "x"));
    static char *const values[] = {"", "nil", "[]", "1 2", "01", "\"\xff\"", "\"\t\"", "\"a", "1.", long_text};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        check_invalid(value_node(0, "a.json", values[i]));
    check_invalid(value_node(0, "a", "1"));
    struct ckpt_manifest_node n = array_node(0, "a.npy", "<f4", 1, (uint64_t[]){2});
    n.size++;
    check_invalid(n);
    n = array_node(0, "a.npz", "<f4", 1, (uint64_t[]){2});
    check_invalid(n);
    n = array_node(0, "a.npy", "<f4", 1, (uint64_t[]){2});
    n.npy.dtype = CKPT_DT_BF16;
    check_invalid(n);
    n = leaf_node(0, "x", CKPT_NODE_BLOB);
    n.xattrs = "[]";
    check_invalid(n);
    n.xattrs = "{} x";
    check_invalid(n);
    struct ckpt_manifest_info info = info_of();
    struct ckpt_manifest_writer *w;
    info.metadata = "[]";
    CHECK(ckpt_manifest_write_begin(-1, &info, &w) == -EINVAL);
    info = info_of();
    strcpy(info.id, "abc");
    CHECK(ckpt_manifest_write_begin(-1, &info, &w) == -EINVAL);
    info = info_of();
    w = begin(-1, &info); /* what the disk says comes at the end, at the latest */
    CHECK(ckpt_manifest_write_end(w) == -EBADF);
}

/* Lines of all lengths, over the borders of the reader's window, and the longest records there can be. */
static void test_many(void)
{
    struct ckpt_manifest_info info = info_of(), back;
    int fd = temporary();
    struct ckpt_manifest_writer *w = begin(fd, &info);
    size_t len;
    char name[256];
    for (unsigned i = 0; i < 20000; i++) {
        int n = snprintf(name, sizeof name, "%u", i);
        memset(name + n, 'x', i % 200);
        name[n + i % 200] = 0;
        CHECK(add(w, leaf_node(0, name, CKPT_NODE_BLOB)) == i + 1);
    }
    static char quotes[CKPT_MANIFEST_TEXT_MAX + 1], xattrs[CKPT_MANIFEST_XATTRS_MAX + 1];
    memset(quotes, '\n', sizeof quotes - 1);
    quotes[0] = '1';
    memset(xattrs, '"', sizeof xattrs - 1);
    memcpy(xattrs, "{\"a\":\"", 6);
    memset(xattrs + 6, 'a', sizeof xattrs - 9);
    strcpy(xattrs + sizeof xattrs - 3, "\"}");
    struct ckpt_manifest_node n = value_node(0, "v.json", quotes);
    n.xattrs = xattrs;
    add(w, n);
    CHECK(ckpt_manifest_write_end(w) == 0);
    CKPT_AUTOFREE char *got = slurp(fd, &len);
    struct ckpt_file *f = file_of(got, len);
    CHECK(ckpt_manifest_each(f, &back, NULL, NULL, NULL) == 0 && back.count == 20002);
    ckpt_manifest_info_clear(&back);
    ckpt_file_unref(f);
    close(fd);
    /* A line beyond the maximum, and one that never ends. */
    struct ckpt_buf b = {.max = 3 << 20};
    ckpt_buf_adds(&b, BARE);
    CHECK(ckpt_buf_reserve(&b, 2 << 20) == 0);
    memset(b.data + b.len, ' ', 2 << 20);
    CHECK(fault_of((char *)b.data, b.len + (2 << 20)) == -EUCLEAN);
    ckpt_buf_clear(&b);
}

int main(void)
{
    test_written();
    test_stopped();
    test_lines();
    test_dtypes();
    test_told();
    test_told_written();
    test_heads();
    test_invalid();
    test_many();
    ckpt_backend_unref(backend);
    return 0;
}
