/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of a store in memory, their objects raw: the tree that a manifest makes, every byte of every view, and what is
 * damaged. */
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/object/manifest.h"
#include "core/format/native.h"
#include "core/tree/key.h"
#include "core/view/view.h"
#include "tests/unit/check.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <xxhash.h>

/* --- a store in memory --- */

#define FILES 64

static struct {
    char path[128];
    uint8_t *data;
    size_t len;
} files[FILES];
static unsigned file_count;

static void add_file(const char *path, const void *data, size_t len)
{
    CHECK(file_count < FILES && strlen(path) < sizeof files->path);
    strcpy(files[file_count].path, path);
    files[file_count].data = malloc(len + 1);
    memcpy(files[file_count].data, data, len);
    files[file_count++].len = len;
}

static void forget_files(void)
{
    while (file_count)
        free(files[--file_count].data);
}

static void sha256(const void *data, size_t len, uint8_t ret[CKPT_SHA256])
{
    CHECK(EVP_Digest(data, len, ret, NULL, EVP_sha256(), NULL) == 1);
}

/* An object stored as its very bytes, and its sums. */
static void add_object(const void *data, size_t len, uint8_t ret[CKPT_SHA256])
{
    char path[CKPT_OBJECT_PATH], full[128];
    struct ckpt_buf sums = CKPT_BUF_INIT;
    uint32_t numbers[2] = {1, 20};
    uint64_t size = len, sum;
    sha256(data, len, ret);
    ckpt_object_path(ret, path);
    snprintf(full, sizeof full, "objects/%s", path);
    add_file(full, data, len);
    ckpt_buf_add(&sums, "CKPTSUM1", 8);
    ckpt_buf_add(&sums, numbers, 8);
    ckpt_buf_add(&sums, &size, 8);
    ckpt_buf_add(&sums, ret, CKPT_SHA256);
    for (size_t off = 0; off < len; off += CKPT_OBJECT_CHUNK) {
        sum = XXH3_64bits((const uint8_t *)data + off, CKPT_MIN(len - off, (size_t)CKPT_OBJECT_CHUNK));
        ckpt_buf_add(&sums, &sum, 8);
    }
    sum = XXH3_64bits(sums.data, sums.len);
    ckpt_buf_add(&sums, &sum, 8);
    snprintf(full, sizeof full, "objects/%s.sums", path);
    add_file(full, sums.data, sums.len);
    ckpt_buf_clear(&sums);
}

static struct ckpt_manifest_writer *writer;
static int manifest_fd = -1;

static void begin_step(void)
{
    char path[] = "/tmp/ckptfs-test-XXXXXX";
    struct ckpt_manifest_info info = {.name = "7",
                                      .id = "00112233445566778899aabbccddeeff",
                                      .metadata = "{\"run\":1}",
                                      .top = {.container = CKPT_DICT, .mode = 0751, .uid = 3, .gid = 4, .mtime_ns = 5}};
    manifest_fd = mkstemp(path);
    CHECK(manifest_fd >= 0 && unlink(path) == 0);
    CHECK(ckpt_manifest_write_begin(manifest_fd, &info, &writer) == 0);
}

static uint32_t add_node(struct ckpt_manifest_node n)
{
    uint32_t number;
    n.mode = n.kind == CKPT_NODE_DIR ? 0750 : 0640;
    n.uid = 1;
    n.gid = 2;
    n.mtime_ns = 1000;
    n.stored = n.kind == CKPT_NODE_VALUE ? 0 : n.size + 1;
    CHECK(ckpt_manifest_write_node(writer, &n, &number) == 0);
    return number;
}

static void end_step(const char *name)
{
    CHECK(ckpt_manifest_write_end(writer) == 0);
    size_t len = (size_t)lseek(manifest_fd, 0, SEEK_END);
    CKPT_AUTOFREE char *text = malloc(len);
    CHECK(pread(manifest_fd, text, len, 0) == (ssize_t)len);
    close(manifest_fd);
    add_file(name, text, len);
}

static uint32_t add_dir(uint32_t parent, char *name, enum ckpt_container container)
{
    return add_node(
        (struct ckpt_manifest_node){.parent = parent, .name = name, .kind = CKPT_NODE_DIR, .container = container});
}

static uint32_t add_value(uint32_t parent, char *name, char *text)
{
    struct ckpt_manifest_node n = {
        .parent = parent, .name = name, .kind = CKPT_NODE_VALUE, .text = text, .size = strlen(text)};
    sha256(text, n.size, n.sha256);
    return add_node(n);
}

static void add_bytes(struct ckpt_manifest_node *n, const void *data, size_t len)
{
    n->size = len;
    add_object(data, len, n->sha256);
    memcpy(n->object, n->sha256, CKPT_SHA256);
}

static uint32_t add_blob(uint32_t parent, char *name, const char *text)
{
    struct ckpt_manifest_node n = {.parent = parent, .name = name, .kind = CKPT_NODE_BLOB};
    add_bytes(&n, text, strlen(text));
    return add_node(n);
}

/* An .npy file. */
static struct ckpt_buf npy_file(const char *descr, bool fortran, unsigned ndim, const uint64_t *shape, const void *data,
                                size_t len)
{
    struct ckpt_buf b = CKPT_BUF_INIT;
    ckpt_npy_add_header(&b, descr, ndim, shape);
    if (fortran) {
        char *p = memmem(b.data, b.len, "False", 5);
        memcpy(p, "True ", 5);
    }
    ckpt_buf_add(&b, data, len);
    return b;
}

static struct ckpt_manifest_node array_node(uint32_t parent, char *name, const struct ckpt_buf *file)
{
    struct ckpt_manifest_node n = {.parent = parent, .name = name, .kind = CKPT_NODE_ARRAY, .size = file->len};
    CHECK(ckpt_npy_parse(file->data, file->len, &n.npy, NULL) == 0 && n.npy.header + n.npy.nbytes == file->len);
    sha256(file->data, file->len, n.sha256);
    return n;
}

static uint32_t add_array(uint32_t parent, char *name, struct ckpt_buf file, enum ckpt_dtype dtype)
{
    struct ckpt_manifest_node n = array_node(parent, name, &file);
    if (dtype != CKPT_DT_OTHER)
        n.npy.dtype = dtype;
    add_bytes(&n, file.data, file.len);
    ckpt_buf_clear(&file);
    return add_node(n);
}

/* --- opening it --- */

static struct ckpt_backend *backend;
static struct ckpt_pins *pins;
static struct ckpt_pool *pool;
static struct ckpt_cache *cache;
static struct ckpt_views views;
static struct ckpt_tree *tree;

static int open_store(const char *name, struct ckpt_err *err)
{
    backend = ckpt_backend_new_memory();
    for (unsigned i = 0; i < file_count; i++)
        CHECK(ckpt_backend_memory_add(backend, files[i].path, files[i].data, files[i].len) == 0);
    CHECK(ckpt_pins_new(backend, &pins) == 0 && ckpt_pool_new(1, &pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){8 << 20, 8 << 20, "/tmp"}, pool, &cache) == 0);
    CHECK(ckpt_views_init(&views, cache, "/tmp") == 0);
    int r = ckpt_store_format.open(&(struct ckpt_opening){pins, name, cache}, &tree, err);
    CHECK(r == 0 || (err->code == -r && !strncmp(err->text, name, strlen(name))));
    return r;
}

static void close_store(void)
{
    ckpt_views_clear(&views);
    if (tree) {
        ckpt_cache_drop_tree(cache, tree->id);
        ckpt_tree_unref(tree);
        tree = NULL;
    }
    ckpt_pool_free(pool);
    ckpt_cache_free(cache);
    ckpt_pins_unref(pins);
    ckpt_backend_unref(backend);
}

static int find(const char *path, struct ckpt_viewed *ret, struct ckpt_selection *sel)
{
    char copy[600];
    snprintf(copy, sizeof copy, "%s", path);
    *ret = (struct ckpt_viewed){.tree = tree};
    char *save;
    for (char *name = strtok_r(copy, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
        const char *slice;
        size_t slice_len;
        int r = ckpt_view_lookup(tree, ret->node, name, &ret->node, &ret->view, &slice, &slice_len);
        if (r == 0 && slice) {
            r = ckpt_view_select(tree, ret->node, slice, slice_len, sel, NULL);
            ret->sel = sel;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

/* All bytes of a file, in one go and in pieces that cut through elements. The caller clears them. */
static struct ckpt_buf contents(const char *path)
{
    struct ckpt_selection sel;
    struct ckpt_viewed f;
    struct ckpt_buf b = CKPT_BUF_INIT;
    struct ckpt_err err = {0};
    uint64_t size, stored;
    uint8_t piece[7];
    if (find(path, &f, &sel) < 0 || ckpt_view_size(&views, &f, &size, &stored, &err) < 0) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        exit(1);
    }
    CHECK(ckpt_buf_reserve(&b, size + 1) == 0);
    CHECK(ckpt_view_read(&views, &f, b.data, size + 1, 0, &err) == (ssize_t)size);
    b.len = size;
    b.data[size] = 0;
    for (uint64_t off = 0; off < size; off += sizeof piece) {
        ssize_t n = ckpt_view_read(&views, &f, piece, sizeof piece, off, &err);
        CHECK(n == (ssize_t)CKPT_MIN(size - off, (uint64_t)sizeof piece) && !memcmp(piece, b.data + off, (size_t)n));
    }
    return b;
}

static void check_bytes(const char *path, const void *want, size_t len)
{
    struct ckpt_buf got = contents(path);
    CHECK(got.len == len && !memcmp(got.data, want, len));
    ckpt_buf_clear(&got);
}

/* An .npy view: its header, and the elements. */
static void check_npy(const char *path, const char *descr, unsigned ndim, const uint64_t *shape, const void *want,
                      size_t len)
{
    struct ckpt_buf file = npy_file(descr, false, ndim, shape, want, len);
    check_bytes(path, file.data, file.len);
    ckpt_buf_clear(&file);
}

static cJSON *json_of(const char *path)
{
    struct ckpt_buf text = contents(path);
    cJSON *json = ckpt_json_parse((char *)text.data, text.len);
    if (!json)
        fprintf(stderr, "%s: %s\n", path, (char *)text.data);
    CHECK(json);
    ckpt_buf_clear(&text);
    return json;
}

static void check_member(const cJSON *json, const char *name, const char *want)
{
    CKPT_AUTOFREE char *text = cJSON_PrintUnformatted(ckpt_json_get(json, name));
    CHECK(text);
    CHECK_STR(text, want);
}

static int error_of(const char *path)
{
    struct ckpt_selection sel;
    struct ckpt_viewed f;
    struct ckpt_err err = {0};
    uint64_t size, stored;
    uint8_t byte;
    CHECK(find(path, &f, &sel) == 0);
    int r = ckpt_view_size(&views, &f, &size, &stored, &err);
    if (r == 0)
        r = (int)ckpt_view_read(&views, &f, &byte, 1, size - 1, &err);
    CHECK(r >= 0 || (err.code == -r && *err.text));
    return r;
}

/* --- the tests --- */

static const float w[6] = {0, 1, 2, 3, 4, 5.5f};
static const uint8_t big[8] = {0, 1, 0, 2, 0, 3, 0, 4};   /* >i2: 1 2 3 4 */
static const uint16_t bf16[3] = {0x3f80, 0xbf80, 0x7fc0}; /* 1 -1 NaN */
static const int16_t fortran[6] = {1, 4, 2, 5, 3, 6};     /* of shape (2, 3): [[1 2 3] [4 5 6]] */
static const uint8_t structs[10] = {1, 0, 0, 0, 'a', 2, 0, 0, 0, 'b'};
static const int8_t small[4] = {-8, 7, 0, 3};

static void make_step(void)
{
    uint64_t two_three[] = {2, 3}, n;
    begin_step();
    uint32_t params = add_dir(0, "params", CKPT_DICT), list = add_dir(0, "l", CKPT_LIST);
    add_array(params, "w.npy", npy_file("<f4", false, 2, two_three, w, sizeof w), CKPT_DT_OTHER);
    add_array(params, "big.npy", npy_file(">i2", false, 1, (n = 4, &n), big, sizeof big), CKPT_DT_OTHER);
    add_array(params, "b.npy", npy_file("<V2", false, 1, (n = 3, &n), bf16, sizeof bf16), CKPT_DT_BF16);
    add_array(params, "f.npy", npy_file("<i2", true, 2, two_three, fortran, sizeof fortran), CKPT_DT_OTHER);
    add_array(params, "s.npy", npy_file("[('x', '<i4'), ('y', '|S1')]", false, 1, (n = 2, &n), structs, sizeof structs),
              CKPT_DT_OTHER);
    add_array(params, "i4.npy", npy_file("|i1", false, 1, (n = 4, &n), small, sizeof small), CKPT_DT_I4);
    add_array(params, "none.npy", npy_file("|V0", false, 1, (n = 2, &n), NULL, 0), CKPT_DT_OTHER);
    add_array(list, "0.npy", npy_file("|u1", false, 0, NULL, "A", 1), CKPT_DT_OTHER);
    add_value(list, "1.json", " 2\n");
    add_value(0, "lr.json", "1e-5");
    add_value(0, "name.json", "\"ad\\\"am\"\n");
    add_blob(0, "notes.txt", "hello\n");
    add_blob(0, "a%2Fb%zz", "");
    end_step("steps/7.json");
}

static void test_leaves(void)
{
    uint64_t two_three[] = {2, 3}, n;
    struct ckpt_buf file = npy_file("<f4", false, 2, two_three, w, sizeof w);
    check_bytes("params/w.npy", file.data, file.len);
    ckpt_buf_clear(&file);
    check_bytes("params/w", w, sizeof w);
    check_npy("params/w@1,1:.npy", "<f4", 1, (n = 2, &n), w + 4, 8);
    file = npy_file(">i2", false, 1, (n = 4, &n), big, sizeof big); /* as it is */
    check_bytes("params/big.npy", file.data, file.len);
    ckpt_buf_clear(&file);
    check_bytes("params/big", (int16_t[]){1, 2, 3, 4}, 8);
    check_npy("params/big@::-2.npy", "<i2", 1, (n = 2, &n), (int16_t[]){4, 2}, 4);
    check_npy("params/b.npy", "<V2", 1, (n = 3, &n), bf16, sizeof bf16);
    file = npy_file("<i2", true, 2, two_three, fortran, sizeof fortran);
    check_bytes("params/f.npy", file.data, file.len);
    ckpt_buf_clear(&file);
    check_bytes("params/f", (int16_t[]){1, 2, 3, 4, 5, 6}, 12);
    check_npy("params/f@:,1.npy", "<i2", 1, (n = 2, &n), (int16_t[]){2, 5}, 4);
    check_bytes("params/s", structs, sizeof structs);
    check_npy("params/s@1:.npy", "[('x', '<i4'), ('y', '|S1')]", 1, (n = 1, &n), structs + 5, 5);
    check_bytes("params/i4", small, sizeof small);
    check_npy("params/none.npy", "|V0", 1, (n = 2, &n), NULL, 0);
    CHECK(error_of("params/none") == -EOPNOTSUPP && error_of("params/none@0") == -EOPNOTSUPP &&
          error_of("params/none.txt") == -EOPNOTSUPP);
    check_npy("l/0.npy", "|u1", 0, NULL, "A", 1);
    check_bytes("l/1.json", " 2\n", 3); /* as it is */
    check_bytes("l/1", "2\n", 2);
    check_npy("l/1.npy", "<i8", 0, NULL, (int64_t[]){2}, 8);
    check_bytes("lr.json", "1e-5", 4);
    check_bytes("lr", "1e-5\n", 5);
    check_bytes("name.json", "\"ad\\\"am\"\n", 9);
    check_bytes("notes.txt", "hello\n", 6);
    check_bytes("a%2Fb%zz", "", 0);
    struct ckpt_buf text = contents("params/s.txt");
    CHECK(strstr((char *)text.data, "dtype  [('x', '<i4'), ('y', '|S1')]\nshape  (2,)\nbytes  10\n") &&
          strstr((char *)text.data, "not printed"));
    ckpt_buf_clear(&text);
    text = contents("params/i4.txt");
    CHECK(strstr((char *)text.data, "dtype  int4\n"));
    CHECK(strstr((char *)text.data, "min    -8\nmax    7\n") && strstr((char *)text.data, "[-8  7  0  3]"));
    ckpt_buf_clear(&text);
}

static void test_json(void)
{
    cJSON *meta = json_of("params/big.meta.json");
    char hex[CKPT_HEX], quoted[CKPT_HEX + 2];
    uint8_t hash[CKPT_SHA256];
    check_member(meta, "path", "[\"params\",\"big\"]");
    check_member(meta, "format", "\"ckptfs\"");
    check_member(meta, "dtype", "\"int16\"");
    check_member(meta, "bytes", "8");
    check_member(meta, "stored", "137");
    check_member(meta, "codec", "\"none\"");
    struct ckpt_buf file = contents("params/big.npy");
    sha256(file.data, file.len, hash);
    ckpt_buf_clear(&file);
    ckpt_hash_hex(hash, hex);
    snprintf(quoted, sizeof quoted, "\"%s\"", hex);
    check_member(meta, "sha256", quoted);
    cJSON_Delete(meta);
    meta = json_of("params/s.meta.json");
    check_member(meta, "dtype", "\"[('x', '<i4'), ('y', '|S1')]\"");
    cJSON_Delete(meta);
    meta = json_of("params/b.meta.json");
    check_member(meta, "dtype", "\"bfloat16\"");
    cJSON_Delete(meta);
    meta = json_of("notes.txt.meta.json");
    check_member(meta, "bytes", "6");
    check_member(meta, "stored", "7");
    check_member(meta, "codec", "\"none\"");
    cJSON_Delete(meta);
    cJSON *all = json_of(".tree.json");
    check_member(all, "metadata", "{\"run\":1}");
    CHECK(cJSON_GetArraySize(ckpt_json_get(all, "containers")) == 3 &&
          cJSON_GetArraySize(ckpt_json_get(all, "leaves")) == 13);
    check_member(cJSON_GetArrayItem(ckpt_json_get(all, "leaves"), 8), "path", "[\"l\",1]");
    check_member(cJSON_GetArrayItem(ckpt_json_get(all, "leaves"), 8), "value", "2");
    check_member(cJSON_GetArrayItem(ckpt_json_get(all, "leaves"), 12), "path",
                 "[\"a%2Fb%zz\"]"); /* no key has this name */
    cJSON_Delete(all);
    struct ckpt_buf st = contents("params.safetensors");
    uint64_t head = ckpt_le64(st.data);
    cJSON *json = ckpt_json_parse((char *)st.data + 8, head);
    CHECK(json);
    check_member(ckpt_json_get(json, "f"), "shape", "[2,3]");
    check_member(ckpt_json_get(json, "b"), "dtype", "\"BF16\"");
    check_member(ckpt_json_get(json, "__metadata__"), "s",
                 "\"left out: safetensors has no type for [('x', '<i4'), ('y', '|S1')]\"");
    cJSON_Delete(json);
    ckpt_buf_clear(&st);
}

static void test_attrs(void)
{
    struct ckpt_leaf_attrs a;
    struct ckpt_viewed f;
    uint64_t size, stored;
    CHECK(tree->ops->attrs(tree, 0, &a, NULL) == 0 && a.mode == 0751 && a.uid == 3 && a.gid == 4 && a.mtime_ns == 5);
    CHECK(find("params", &f, NULL) == 0 && tree->ops->attrs(tree, f.node, &a, NULL) == 0 && a.mode == 0750 &&
          a.uid == 1 && a.mtime_ns == 1000);
    CHECK(find("params/w", &f, NULL) == 0 && tree->ops->attrs(tree, f.node, &a, NULL) == 0 && a.mode == 0640 &&
          a.gid == 2);
    CHECK(find("params/w.npy", &f, NULL) == 0 && ckpt_view_size(&views, &f, &size, &stored, NULL) == 0 && size == 152 &&
          stored == 153);
    CHECK(find("notes.txt", &f, NULL) == 0 && ckpt_view_size(&views, &f, &size, &stored, NULL) == 0 && size == 6 &&
          stored == 7);
    CHECK(find("lr.json", &f, NULL) == 0 && ckpt_view_size(&views, &f, &size, &stored, NULL) == 0 && size == 4 &&
          stored == 4);
    CHECK(find("none", &f, NULL) == -ENOENT && find("params/.npy", &f, NULL) == -ENOENT);
    for (uint32_t node = 1; node < tree->count; node++)
        tree->ops->pin(tree, node);
    CHECK(ckpt_tree_memory(tree) > 0);
}

static void count_bytes(void *arg, uint64_t bytes)
{
    *(uint64_t *)arg += bytes;
}

static void test_step(void)
{
    struct ckpt_err err = {0};
    uint64_t bytes = 0;
    make_step();
    CHECK(open_store("steps/7.json", &err) == 0);
    test_leaves();
    test_json();
    test_attrs();
    CHECK(tree->ops->verify(tree, count_bytes, &bytes, &err) == 0);
    CHECK(bytes == 152 + 136 + 134 + 140 + 138 + 132 + 128 + 129 + 3 + 4 + 9 + 6);
    close_store();
    CHECK(open_store("steps/8.json", &err) == -ENOENT);
    close_store();
    forget_files();
}

/* Every name is shown as it is, whatever keys it could stand for. */
static void test_names(void)
{
    static char *const blobs[] = {"%",     "a%2Fb", "a%2fb", "%41",  "100%", "%~0123456789abcdef",
                                  "x.npy", ".json", "\xff",  "a\nb", "%2E",  "%2E%2E"};
    static char *const dirs[] = {"d", "%61", "%2561", "d.npy", "e.json", "%00"};
    static const char *const keys[] = {"",      "a/b",   "a%2fb", "%41",  "100%", "%~0123456789abcdef",
                                       "x.npy", ".json", "\xff",  "a\nb", ".",    ".."};
    struct ckpt_err err = {0};
    begin_step();
    for (size_t i = 0; i < sizeof blobs / sizeof *blobs; i++)
        add_blob(0, blobs[i], blobs[i]);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        add_value(add_dir(0, dirs[i], CKPT_TUPLE), "0.json", "1");
    add_value(0, "%.json", "2");
    add_value(0, "v%zz.json", "3");
    end_step("steps/n_1.json");
    CHECK(open_store("steps/n_1.json", &err) == 0);
    for (size_t i = 0; i < sizeof blobs / sizeof *blobs; i++) {
        uint32_t node = ckpt_tree_lookup(tree, 0, blobs[i], strlen(blobs[i]));
        size_t len;
        CHECK(node != CKPT_NO_NODE && tree->nodes[node].kind == CKPT_NODE_BLOB);
        CHECK_STR(ckpt_tree_text(tree, tree->nodes[node].key, &len), keys[i]);
        check_bytes(blobs[i], blobs[i], strlen(blobs[i]));
    }
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        uint32_t node = ckpt_tree_lookup(tree, 0, dirs[i], strlen(dirs[i]));
        CHECK(node != CKPT_NO_NODE && tree->nodes[node].kind == CKPT_NODE_DIR &&
              tree->nodes[node].container == CKPT_TUPLE);
        CHECK(tree->nodes[tree->nodes[node].first].index && tree->nodes[tree->nodes[node].first].next == CKPT_NO_NODE);
    }
    check_bytes("%.json", "2", 1);
    check_bytes("v%zz", "3\n", 2);
    close_store();
    forget_files();
}

static int open_nodes(void (*add)(void))
{
    struct ckpt_err err = {0};
    begin_step();
    add();
    end_step("steps/1.json");
    int r = open_store("steps/1.json", &err);
    close_store();
    forget_files();
    return r;
}

static void two_equal_files(void)
{
    add_blob(0, "a", "");
    add_blob(0, "a", "x");
}

static void two_equal_dirs(void)
{
    add_dir(0, "a", CKPT_DICT);
    add_dir(0, "a", CKPT_DICT);
}

static void file_in_file(void)
{
    add_value(add_value(0, "a.json", "1"), "b.json", "2");
}

static void too_deep(void)
{
    uint32_t node = 0;
    for (int i = 0; i < CKPT_MAX_DEPTH; i++)
        node = add_dir(node, "d", CKPT_DICT);
}

static void just_deep_enough(void)
{
    uint32_t node = 0;
    for (int i = 0; i < CKPT_MAX_DEPTH - 2; i++)
        node = add_dir(node, "d", CKPT_DICT);
    add_value(node, "x.json", "1");
}

/* Small leaves in a pack; objects that are missing, too short, or other than they should be. */
static void test_objects(void)
{
    static const struct {
        const char *name;
        int error;
    } leaves[] = {{"in", 0},           {"behind", -EUCLEAN}, {"missing", -ENOENT},
                  {"short", -EBADMSG}, {"other", -EBADMSG},  {"own.npy", 0}};
    uint8_t data[256], pack[CKPT_SHA256], other[CKPT_SHA256];
    struct ckpt_err err = {0};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    struct ckpt_buf file = npy_file("|u1", false, 1, (uint64_t[]){8}, data, 8);
    memcpy(data + 64, file.data, file.len);
    begin_step();
    add_object(data, sizeof data, pack);
    struct ckpt_manifest_node n = {.name = "in", .kind = CKPT_NODE_BLOB, .size = 10, .offset = 5};
    memcpy(n.object, pack, sizeof pack);
    sha256(data + 5, 10, n.sha256);
    add_node(n);
    n.name = "behind";
    n.offset = 250;
    add_node(n);
    n.name = "missing";
    memset(n.object, 7, CKPT_SHA256);
    n.offset = 0;
    add_node(n);
    n.name = "short"; /* its own object, with other bytes than the manifest says */
    add_object("1234567890", 10, other);
    memcpy(n.sha256, other, CKPT_SHA256);
    memcpy(n.object, other, CKPT_SHA256);
    n.size = 11;
    add_node(n);
    n.name = "other"; /* damaged */
    add_object("abcdefghij", 10, other);
    files[file_count - 2].data[3] ^= 1;
    memcpy(n.sha256, other, CKPT_SHA256);
    memcpy(n.object, other, CKPT_SHA256);
    n.size = 10;
    add_node(n);
    n = array_node(0, "own.npy", &file);
    memcpy(n.object, pack, sizeof pack);
    n.offset = 64;
    add_node(n);
    ckpt_buf_clear(&file);
    end_step("steps/1.json");
    CHECK(open_store("steps/1.json", &err) == 0);
    for (size_t i = 0; i < sizeof leaves / sizeof *leaves; i++)
        CHECK(leaves[i].error ? error_of(leaves[i].name) == leaves[i].error : error_of(leaves[i].name) >= 0);
    check_bytes("in", data + 5, 10);
    check_bytes("own", data + 64 + 128, 8);
    CHECK(tree->ops->verify(tree, NULL, NULL, &err) == -EUCLEAN && strstr(err.text, "behind: ") &&
          strstr(err.text, "(and 3 more)"));
    /* The manifest is not what it was. */
    uint32_t node = ckpt_tree_lookup(tree, 0, "own.npy", 7);
    char *place = memmem(files[file_count - 1].data, files[file_count - 1].len, "\"offset\":64", 11);
    struct ckpt_array *a;
    CHECK(place);
    place[9] = '5';
    CHECK(ckpt_tree_layout(tree, node, &a, &err) == 0); /* known already */
    ckpt_array_unref(a);
    struct ckpt_buf json = CKPT_BUF_INIT;
    CHECK(tree->ops->layout(tree, node, &a, &err) == -EBADMSG);
    ckpt_buf_clear(&json);
    close_store();
    forget_files();
}

int main(void)
{
    test_step();
    test_names();
    CHECK(open_nodes(two_equal_files) == -EUCLEAN && open_nodes(two_equal_dirs) == -EUCLEAN &&
          open_nodes(file_in_file) == -EUCLEAN);
    CHECK(open_nodes(too_deep) == -EUCLEAN && open_nodes(just_deep_enough) == 0);
    test_objects();
    return 0;
}
