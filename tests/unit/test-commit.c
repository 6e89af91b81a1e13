/* SPDX-License-Identifier: Apache-2.0 */
/* Commits: what files become, what is refused, what is shared, and what is left when the disk fails at any of its
 * calls. */
#include "tests/unit/commit.h"

#include <sys/wait.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* --- what files become --- */

static void test_values(struct root *r)
{
    static const char *const values[] = {"1",
                                         "-0.5e-3\n",
                                         " null ",
                                         "true",
                                         "false\n",
                                         "NaN",
                                         "Infinity",
                                         "-Infinity",
                                         "\"a\\u0000b\"",
                                         "\"\xc3\xa9\\ud800\"",
                                         "123456789012345678901234567890",
                                         "\t\"\"\r\n",
                                         "0"};
    static const char *const blobs[] = {"",       "{}",       "[1]", "01",  "+1", ".5", "1.",  "\"a",
                                        "\"\n\"", "\"\xff\"", "1 2", "nul", "-",  "1e", "'a'", "\xef\xbb\xbf\x31",
                                        "--1",    "infinity"};
    struct staged s;
    struct step step;
    char name[64];
    staged_begin(r, &s);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        snprintf(name, sizeof name, "v%zu.json", i);
        file_write(s.tree, name, values[i]);
    }
    for (size_t i = 0; i < sizeof blobs / sizeof *blobs; i++) {
        snprintf(name, sizeof name, "b%zu.json", i);
        file_write(s.tree, name, blobs[i]);
    }
    file_write_bytes(s.tree, "nul.json", "1\0", 2);
    file_write(s.tree, "plain", "1");
    char *large = malloc(65 * KIB);
    memset(large, ' ', 65 * KIB);
    large[0] = '1';
    file_write_bytes(s.tree, "edge.json", large, 64 * KIB);
    file_write_bytes(s.tree, "large.json", large, 65 * KIB);
    free(large);
    CHECK(commit_as(&s, "values_1") == 0);
    check_same(&s, "values_1");
    step_read(r, "values_1", &step);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        snprintf(name, sizeof name, "v%zu.json", i);
        const struct ckpt_manifest_node *n = &step_get(&step, name)->n;
        CHECK(n->kind == CKPT_NODE_VALUE);
        CHECK_STR(n->text, values[i]);
    }
    for (size_t i = 0; i < sizeof blobs / sizeof *blobs; i++) {
        snprintf(name, sizeof name, "b%zu.json", i);
        CHECK(step_get(&step, name)->n.kind == CKPT_NODE_BLOB);
    }
    CHECK(step_get(&step, "nul.json")->n.kind == CKPT_NODE_BLOB && step_get(&step, "plain")->n.kind == CKPT_NODE_BLOB);
    CHECK(step_get(&step, "edge.json")->n.kind == CKPT_NODE_VALUE &&
          step_get(&step, "large.json")->n.kind == CKPT_NODE_BLOB);
    step_clear(&step);
    staged_end(&s);
}

static void check_array(const struct step *step, const char *name, enum ckpt_dtype dtype, const char *descr, bool big)
{
    const struct ckpt_manifest_node *n = &step_get(step, name)->n;
    CHECK(n->kind == CKPT_NODE_ARRAY && n->npy.dtype == dtype && n->npy.big_endian == big);
    CHECK_STR(n->npy.descr, descr);
}

static void test_arrays(struct root *r)
{
    struct staged s;
    struct step step;
    const uint64_t shape[] = {3, 4}, large[] = {256, 512}, huge[] = {1500000};
    staged_begin(r, &s);
    add_npy(&s, "f4.npy", "<f4", 2, shape, NULL, 48);
    add_npy(&s, "big.npy", ">f4", 2, shape, NULL, 48);
    add_npy(&s, "v2.npy", "<V2", 2, shape, NULL, 24);
    add_npy(&s, "v2b.npy", "|V2", 2, shape, NULL, 24);
    add_npy(&s, "f2.npy", "<V2", 2, shape, NULL, 24);
    set_attr(&s, "f2.npy", "user.ckpt.dtype", "float16");
    add_npy(&s, "f8.npy", "|V1", 2, shape, NULL, 12);
    set_attr(&s, "f8.npy", "user.ckpt.dtype", "float8_e4m3fn");
    add_npy(&s, "void.npy", "|V1", 2, shape, NULL, 12);
    add_npy(&s, "i4.npy", "|i1", 2, shape, NULL, 12);
    set_attr(&s, "i4.npy", "user.ckpt.dtype", "int4");
    add_npy(&s, "c32.npy", "<V4", 2, shape, NULL, 48);
    set_attr(&s, "c32.npy", "user.ckpt.dtype", "complex32");
    add_npy(&s, "bits.npy", "<u2", 2, shape, NULL, 24);
    set_attr(&s, "bits.npy", "user.ckpt.dtype", "bfloat16");
    add_npy(&s, "text.npy", "<U5", 1, shape, NULL, 60);
    add_npy(&s, "struct.npy", "[('a', '<i4'), ('b', '|u1')]", 1, shape, NULL, 15);
    add_npy(&s, "scalar.npy", "<i8", 0, NULL, NULL, 8);
    add_npy(&s, "none.npy", "<i8", 2, (uint64_t[]){0, 5}, NULL, 0);
    add_npy(&s, "deep/large.npy", "<f4", 2, large, NULL, 256 * 512 * 4);
    uint8_t *zeros = calloc(1, 12000000);
    add_npy(&s, "deep/zeros.npy", "<f8", 1, huge, zeros, 12000000);
    free(zeros);
    file_write(s.tree, "not.npy", "hello");
    struct ckpt_buf object = CKPT_BUF_INIT;
    ckpt_buf_add(&object, "\x93NUMPY\x01\x00\x76\x00", 10);
    ckpt_buf_adds(&object, "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }");
    while (object.len < 127)
        ckpt_buf_addc(&object, ' ');
    ckpt_buf_adds(&object, "\npickle");
    file_write_bytes(s.tree, "object.npy", object.data, object.len);
    ckpt_buf_clear(&object);
    CHECK(commit_as(&s, "1") == 0);
    check_same(&s, "1");
    step_read(r, "1", &step);
    check_array(&step, "f4.npy", CKPT_DT_F32, "<f4", false);
    check_array(&step, "big.npy", CKPT_DT_F32, ">f4", true);
    check_array(&step, "v2.npy", CKPT_DT_BF16, "<V2", false);
    check_array(&step, "v2b.npy", CKPT_DT_BF16, "|V2", false);
    check_array(&step, "f2.npy", CKPT_DT_F16, "<V2", false);
    check_array(&step, "f8.npy", CKPT_DT_F8_E4M3FN, "|V1", false);
    check_array(&step, "void.npy", CKPT_DT_OTHER, "|V1", false);
    check_array(&step, "i4.npy", CKPT_DT_I4, "|i1", false);
    check_array(&step, "c32.npy", CKPT_DT_C32, "<V4", false);
    check_array(&step, "bits.npy", CKPT_DT_BF16, "<u2", false);
    check_array(&step, "text.npy", CKPT_DT_OTHER, "<U5", false);
    check_array(&step, "struct.npy", CKPT_DT_OTHER, "[('a', '<i4'), ('b', '|u1')]", false);
    check_array(&step, "scalar.npy", CKPT_DT_I64, "<i8", false);
    check_array(&step, "none.npy", CKPT_DT_I64, "<i8", false);
    check_array(&step, "deep/large.npy", CKPT_DT_F32, "<f4", false);
    CHECK(step_get(&step, "not.npy")->n.kind == CKPT_NODE_BLOB &&
          step_get(&step, "object.npy")->n.kind == CKPT_NODE_BLOB);
    const struct ckpt_manifest_node *z = &step_get(&step, "deep/zeros.npy")->n,
                                    *l = &step_get(&step, "deep/large.npy")->n;
    CHECK(z->codec == CKPT_OBJECT_BLOSC && z->stored < z->size / 10 && !memcmp(z->object, z->sha256, CKPT_SHA256));
    CHECK(l->codec == CKPT_OBJECT_NONE && l->stored == l->size && !memcmp(l->object, l->sha256, CKPT_SHA256));
    const struct ckpt_manifest_node *a = &step_get(&step, "f4.npy")->n, *b = &step_get(&step, "big.npy")->n;
    CHECK(!memcmp(a->object, b->object, CKPT_SHA256) && memcmp(a->object, a->sha256, CKPT_SHA256));
    CHECK(a->offset % 64 == 0 && b->offset % 64 == 0 && a->npy.ndim == 2 && a->npy.shape[1] == 4 &&
          a->npy.header == 128);
    step_clear(&step);
    staged_end(&s);
}

static void test_directories(struct root *r)
{
    struct staged s;
    struct step step;
    char name[300];
    staged_begin(r, &s);
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "list/%d.json", i);
        file_write(s.tree, name, "1");
    }
    file_write(s.tree, "list/10x", "1");
    file_write(s.tree, "tuple/1/x", "");
    file_write(s.tree, "tuple/0/\xff\xfe\n", "odd");
    file_write(s.tree, "sp ace/\"quote\"\\", "");
    memset(name, 'n', 255);
    name[255] = 0;
    file_write(s.tree, name, "longest");
    set_attr(&s, "list", "user.ckpt.kind", "list");
    set_attr(&s, "tuple", "user.ckpt.kind", "tuple");
    set_attr(&s, "tuple/1", "user.ckpt.kind", "namedtuple");
    set_attr(&s, "tuple/0", "user.ckpt.kind", "set");
    set_attr(&s, "", "user.note", "of the step");
    set_attr(&s, "list/0.json", "user.b", "x\xff");
    set_attr(&s, "list/0.json", "user.a", "");
    CHECK(mkdir(file_path(s.tree, "empty"), 0700) == 0);
    CHECK(chmod(file_path(s.tree, "list/3.json"), 04640) == 0);
    CHECK(link(file_path(s.tree, "list/3.json"), file_path(s.tree, "linked.json")) == 0);
    file_touch(s.tree, "list/4.json", -1000000);
    struct ckpt_commit c = staged_commit(&s, "2");
    c.metadata = "{\"lr\": 0.5}";
    c.id = "0123456789abcdef0123456789abcdef";
    CHECK(commit_with(&c) == 0);
    check_same(&s, "2");
    step_read(r, "2", &step);
    CHECK_STR(step.info.name, "2");
    CHECK_STR(step.info.id, c.id);
    CHECK(strstr(step.info.metadata, "0.5") && step.info.time_ns / 1000000000 > 1700000000);
    CHECK_STR(step.info.top.xattrs, "{\"user.note\":\"6f66207468652073746570\"}");
    CHECK(step_get(&step, "list")->n.container == CKPT_LIST && step_get(&step, "tuple")->n.container == CKPT_TUPLE);
    CHECK(step_get(&step, "tuple/1")->n.container == CKPT_NAMEDTUPLE &&
          step_get(&step, "tuple/0")->n.container == CKPT_DICT);
    CHECK_STR(step_get(&step, "list/0.json")->n.xattrs, "{\"user.a\":\"\",\"user.b\":\"78ff\"}");
    CHECK(!step_get(&step, "list/1.json")->n.xattrs);
    const struct step_node *first = step_get(&step, "list/0.json");
    for (int i = 0; i < 12; i++) { /* by number */
        snprintf(name, sizeof name, "list/%d.json", i);
        CHECK_STR(first[i].path, name);
    }
    CHECK_STR(first[12].path, "list/10x");
    step_clear(&step);
    staged_end(&s);
}

/* --- what is refused --- */

static void check_file_refused(struct root *r, const char *name, const void *data, size_t len, const char *dtype,
                               int code, const char *word)
{
    struct staged s;
    staged_begin(r, &s);
    file_write_bytes(s.tree, name, data, len);
    if (dtype)
        set_attr(&s, name, "user.ckpt.dtype", dtype);
    check_refused(r, &s, code, word, code == EBADMSG);
    CHECK(strstr(commit_error, name));
    file_remove(s.tree, name); /* and once it is gone, nothing is in the way */
    file_write(s.tree, "x", "y");
    CHECK(commit_as(&s, "good_1") == 0 && ckpt_store_delete(r->store, "good_1", NULL, NULL) == 0);
    staged_end(&s);
}

static void test_refused(struct root *r)
{
    struct staged s;
    struct ckpt_buf npy = CKPT_BUF_INIT;
    ckpt_npy_add_header(&npy, "<f4", 1, (uint64_t[]){25});
    for (int i = 0; i < 100; i++)
        ckpt_buf_addc(&npy, 'x');
    check_file_refused(r, "d/w.npy", npy.data, npy.len - 1, NULL, EBADMSG, "227 of 228");
    check_file_refused(r, "w.npy", npy.data, 128, NULL, EBADMSG, "not complete");
    check_file_refused(r, "w.npy", npy.data, 100, NULL, EBADMSG, "ends within");
    check_file_refused(r, "w.npy", npy.data, 8, NULL, EBADMSG, "ends within");
    check_file_refused(r, "w.npy", npy.data, 3, NULL, EBADMSG, "ends within");
    check_file_refused(r, "w.npy", "", 0, NULL, EBADMSG, "ends within");
    ckpt_buf_addc(&npy, 'x');
    check_file_refused(r, "w.npy", npy.data, npy.len, NULL, EBADMSG, "229");
    check_file_refused(r, "w.npy", npy.data, npy.len - 1, "float31", EUCLEAN, "float31");
    check_file_refused(r, "w.npy", npy.data, npy.len - 1, "bfloat16", EUCLEAN, "bfloat16");
    ckpt_buf_clear(&npy);

    staged_begin(r, &s);
    file_write(s.tree, "a", "a");
    file_link(s.tree, "b/link", "../a");
    check_refused(r, &s, EPERM, "bad_1/b/link is a symbolic link", false);
    file_remove(s.tree, "b/link");
    CHECK(mkfifo(file_path(s.tree, "b/pipe"), 0600) == 0);
    check_refused(r, &s, EPERM, "bad_1/b/pipe is a special file", false);
    file_remove(s.tree, "b/pipe");
    char *large = malloc(4000);
    memset(large, 'x', 3000);
    large[3000] = 0;
    if (setxattr(file_path(s.tree, "a"), "user.large", large, 3000, 0) == 0)
        CHECK(commit_as(&s, "3") == 0);
    free(large);
    CHECK(commit_as(&s, "3") == -EEXIST && strstr(commit_error, "3"));
    CHECK(commit_as(&s, ".new") == -EINVAL && commit_as(&s, "x") == -EINVAL);
    struct ckpt_commit c = staged_commit(&s, "4");
    c.metadata = "nonsense";
    CHECK(commit_with(&c) == -EUCLEAN && strstr(commit_error, "metadata"));
    staged_end(&s);

    staged_begin(r, &s);
    int fd = dup(s.work.tree);
    for (int i = 1; i < 255; i++) {
        CHECK(mkdirat(fd, "d", 0755) == 0);
        int deeper = openat(fd, "d", O_RDONLY | O_DIRECTORY);
        close(fd);
        fd = deeper;
        CHECK(fd >= 0);
    }
    int leaf = openat(fd, "leaf", O_WRONLY | O_CREAT, 0644);
    close(leaf);
    CHECK(commit_as(&s, "deep_1") == 0);
    CHECK(mkdirat(fd, "d", 0755) == 0 && commit_as(&s, "deep_2") == 0);
    int deeper = openat(fd, "d", O_RDONLY | O_DIRECTORY);
    leaf = openat(deeper, "leaf", O_WRONLY | O_CREAT, 0644);
    check_refused(r, &s, EOPNOTSUPP, "nested", false);
    close(leaf);
    close(deeper);
    close(fd);
    staged_end(&s);
}

/* --- what is shared --- */

static void add_mixed(struct staged *s)
{
    const uint64_t shape[] = {300000}, small[] = {10};
    uint8_t *data = calloc(1, 1200000);
    for (unsigned i = 0; i < 300000; i++)
        data[4 * i] = (uint8_t)(i * i >> 7);
    add_npy(s, "params/w.npy", "<f4", 1, shape, data, 1200000);
    free(data);
    add_bytes(s, "params/noise", 3 * MIB + 17, 5);
    add_npy(s, "params/b.npy", "<f4", 1, small, "0123456789012345678901234567890123456789", 40);
    file_write(s->tree, "params/lr.json", "0.1\n");
    for (int i = 0; i < 40; i++) {
        char name[64];
        snprintf(name, sizeof name, "small/%d", i);
        add_bytes(s, name, 100 + (size_t)i * 50, (uint64_t)i + 100);
    }
    file_write(s->tree, "small/empty", "");
}

/* The same content again, under any codec, adds no bytes; other content adds its own. */
static void test_dedup(void)
{
    struct root r;
    struct staged s;
    size_t count, again;
    root_begin(&r);
    staged_begin(&r, &s);
    add_mixed(&s);
    CHECK(commit_as(&s, "1") == 0);
    check_same(&s, "1");
    staged_end(&s);
    uint64_t bytes = objects_bytes(&r, &count);
    CHECK(count == 3 && bytes > 3 * MIB && bytes < 3 * MIB + 800 * KIB);
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"2", "3", "step_4"};
        staged_begin(&r, &s);
        add_mixed(&s);
        struct ckpt_commit c = staged_commit(&s, names[i]);
        c.codec = i == 1 ? CKPT_OBJECT_NONE : i == 2 ? CKPT_OBJECT_LZ4 : CKPT_OBJECT_AUTO;
        CHECK(commit_with(&c) == 0);
        check_same(&s, names[i]);
        staged_end(&s);
        CHECK(objects_bytes(&r, &again) == bytes && again == count);
    }
    /* Copies within one step, too. */
    staged_begin(&r, &s);
    for (int i = 0; i < 8; i++) {
        char name[64];
        snprintf(name, sizeof name, "copy%d", i);
        add_bytes(&s, name, 2 * MIB, 99);
        snprintf(name, sizeof name, "little%d", i);
        add_bytes(&s, name, 2 * KIB, 98);
    }
    CHECK(commit_as(&s, "5") == 0);
    check_same(&s, "5");
    staged_end(&s);
    CHECK(objects_bytes(&r, &again) == bytes + 2 * MIB + 2 * KIB && again == count + 2);
    /* What gc has taken away, and what is in the trash, comes back. */
    struct ckpt_gc_result gc;
    static const char *const gone[] = {"1", "2", "3", "step_4"};
    for (int i = 0; i < 4; i++)
        CHECK(ckpt_store_delete(r.store, gone[i], NULL, NULL) == 0);
    CHECK(ckpt_store_gc(r.store, false, NULL, &gc, NULL) == 0 && gc.objects == count);
    staged_begin(&r, &s);
    add_mixed(&s);
    CHECK(commit_as(&s, "6") == 0);
    check_same(&s, "6");
    staged_end(&s);
    root_end(&r);
}

/* A damaged manifest is no source of known leaves, and no obstacle. */
static void test_damaged_neighbour(void)
{
    struct root r;
    struct staged s;
    size_t len;
    root_begin(&r);
    for (int i = 0; i < 2; i++) {
        staged_begin(&r, &s);
        file_write(s.tree, "a", "some leaf");
        CHECK(commit_as(&s, i ? "2" : "1") == 0);
        staged_end(&s);
        const char *path = file_path(r.top, ".ckptstore/steps/1.json");
        uint8_t *text = file_read(path, &len);
        if (!i) {
            text[len / 2] ^= 1;
            file_write_bytes(r.top, ".ckptstore/steps/1.json", text, len);
        }
        free(text);
    }
    size_t count;
    objects_bytes(&r, &count);
    CHECK(count == 1);
    staged_begin(&r, &s);
    file_write(s.tree, "a", "some leaf");
    CHECK(commit_as(&s, "3") == 0);
    check_same(&s, "3");
    staged_end(&s);
    root_end(&r);
}

/* --- references --- */

static void make_ref(struct staged *s, const char *name, const struct ckpt_manifest_node *n)
{
    struct ckpt_ref ref = {.size = n->size, .offset = n->offset, .stored = n->stored, .codec = n->codec}, back;
    struct ckpt_hold hold = {s->root->store, s->work.hold};
    char text[CKPT_REF_TEXT];
    memcpy(ref.sha256, n->sha256, CKPT_SHA256);
    memcpy(ref.object, n->object, CKPT_SHA256);
    ckpt_ref_print(&ref, text);
    CHECK(ckpt_ref_parse(text, strlen(text), &back) && !memcmp(back.object, ref.object, CKPT_SHA256) &&
          back.offset == ref.offset);
    CHECK(back.size == ref.size && back.stored == ref.stored && back.codec == ref.codec &&
          !memcmp(back.sha256, ref.sha256, CKPT_SHA256));
    for (size_t cut = 0; cut < strlen(text); cut++)
        CHECK(!ckpt_ref_parse(text, cut, &back));
    CHECK(ckpt_hold_object(&hold, ref.object) == 0);
    file_write(s->tree, name, "");
    set_attr(s, name, CKPT_REF_XATTR, text);
}

/* The store's step as a staged copy, which shares all leaves. */
static void add_refs(struct staged *s, const struct step *step)
{
    for (size_t i = 1; i < step->count; i++) {
        const struct step_node *n = &step->nodes[i];
        if (n->n.kind == CKPT_NODE_DIR)
            CHECK(mkdir(file_path(s->tree, n->path), 0755) == 0);
        else if (n->n.kind == CKPT_NODE_VALUE)
            file_write_bytes(s->tree, n->path, n->bytes, n->n.size);
        else if (n->n.size)
            make_ref(s, n->path, &n->n);
        else
            file_write(s->tree, n->path, "");
    }
}

static void check_equal(const struct step *a, const struct step *b)
{
    CHECK(a->count == b->count);
    for (size_t i = 1; i < a->count; i++) {
        const struct ckpt_manifest_node *x = &a->nodes[i].n, *y = &b->nodes[i].n;
        CHECK_STR(b->nodes[i].path, a->nodes[i].path);
        CHECK(x->kind == y->kind && x->size == y->size && !memcmp(x->sha256, y->sha256, CKPT_SHA256));
        CHECK(x->kind == CKPT_NODE_DIR || !memcmp(a->nodes[i].bytes, b->nodes[i].bytes, x->size));
        CHECK(x->kind != CKPT_NODE_ARRAY || (x->npy.dtype == y->npy.dtype && !strcmp(x->npy.descr, y->npy.descr)));
    }
}

static void test_refs(void)
{
    struct root r;
    struct staged s;
    struct step one, two;
    size_t count, again;
    root_begin(&r);
    staged_begin(&r, &s);
    add_mixed(&s);
    CHECK(commit_as(&s, "1") == 0);
    staged_end(&s);
    step_read(&r, "1", &one);
    uint64_t bytes = objects_bytes(&r, &count);

    staged_begin(&r, &s);
    add_refs(&s, &one);
    CHECK(commit_as(&s, "2") == 0);
    step_read(&r, "2", &two);
    check_equal(&one, &two);
    step_clear(&two);
    CHECK(objects_bytes(&r, &again) == bytes && again == count);
    staged_end(&s);

    /* Held content outlives its steps, and is read where it is in no folder of the store any more. */
    staged_begin(&r, &s);
    add_refs(&s, &one);
    struct ckpt_gc_result gc;
    r.store->trash_keep = 0;
    CHECK(ckpt_store_delete(r.store, "1", NULL, NULL) == 0 && ckpt_store_delete(r.store, "2", NULL, NULL) == 0);
    CHECK(ckpt_store_gc(r.store, false, NULL, &gc, NULL) == 0 && gc.objects == count);
    CHECK(ckpt_store_gc(r.store, false, NULL, &gc, NULL) == 0);
    CHECK(objects_bytes(&r, &again) == 0 && commit_as(&s, "3") == 0);
    step_read(&r, "3", &two);
    check_equal(&one, &two);
    step_clear(&two);
    staged_end(&s);

    /* Pieces that are references; what a reference has on disk, which does not count; references to nothing. */
    staged_begin(&r, &s);
    make_ref(&s, "x@0:300000.npy", &step_get(&one, "params/w.npy")->n);
    make_ref(&s, "x@300000:600000.npy", &step_get(&one, "params/w.npy")->n);
    const struct step_node *noise = step_get(&one, "params/noise");
    make_ref(&s, "short", &noise->n);
    CHECK(truncate(file_path(s.tree, "short"), 3) == 0);
    make_ref(&s, "long", &noise->n);
    CHECK(truncate(file_path(s.tree, "long"), (off_t)noise->n.size) == 0);
    CHECK(commit_as(&s, "4") == 0);
    step_read(&r, "4", &two);
    const struct step_node *x = step_get(&two, "x.npy"), *w = step_get(&one, "params/w.npy");
    CHECK(x->n.size == 2400128 && !memcmp(x->bytes + 128, w->bytes + 128, 1200000) &&
          !memcmp(x->bytes + 1200128, w->bytes + 128, 1200000));
    for (int i = 0; i < 2; i++) {
        const struct step_node *got = step_get(&two, i ? "long" : "short");
        CHECK(got->n.size == noise->n.size && !memcmp(got->bytes, noise->bytes, noise->n.size));
    }
    step_clear(&two);
    make_ref(&s, "cut.npy", &step_get(&one, "params/noise")->n);
    CHECK(commit_as(&s, "5") == 0); /* no array at all */
    struct ckpt_manifest_node cut = step_get(&one, "params/w.npy")->n;
    cut.size -= 1;
    cut.sha256[0] ^= 1;
    make_ref(&s, "cut.npy", &cut);
    CHECK(commit_as(&s, "6") == -EBADMSG && strstr(commit_error, "6/cut.npy is not") == NULL &&
          strstr(commit_error, "6/cut.npy"));
    set_attr(&s, "cut.npy", CKPT_REF_XATTR, "ref1 nonsense");
    CHECK(commit_as(&s, "6") == -EUCLEAN);
    cut = step_get(&one, "params/noise")->n;
    cut.sha256[0] ^= 1;
    memcpy(cut.object, cut.sha256, CKPT_SHA256);
    struct ckpt_hold hold = {r.store, s.work.hold};
    CHECK(ckpt_hold_object(&hold, cut.object) == -ENOENT);
    struct ckpt_ref ref = {.size = cut.size, .stored = 1};
    char text[CKPT_REF_TEXT];
    memcpy(ref.sha256, cut.sha256, CKPT_SHA256);
    memcpy(ref.object, cut.sha256, CKPT_SHA256);
    ckpt_ref_print(&ref, text);
    file_remove(s.tree, "cut.npy");
    file_write(s.tree, "lost", "");
    set_attr(&s, "lost", CKPT_REF_XATTR, text);
    CHECK(commit_as(&s, "6") == -EIO && strstr(commit_error, "missing from the store"));
    staged_end(&s);
    step_clear(&one);
    root_end(&r);
}

/* The first bytes of an array that a reference keeps, as it came to be one: believed of the same content only. */
static void test_head(void)
{
    struct root r;
    struct staged s;
    struct step one, two;
    uint8_t head[CKPT_HEAD], value[CKPT_SHA256 + CKPT_HEAD];
    root_begin(&r);
    staged_begin(&r, &s);
    add_mixed(&s);
    struct ckpt_ref ref = {.size = 2400128, .sha256 = {7}};
    int fd = open(file_path(s.tree, "params/w.npy"), O_RDWR), plain = open(file_path(s.tree, "params/noise"), O_RDWR);
    CHECK(ckpt_head_kept(fd, &ref, head) == 0);
    CHECK(ckpt_head_keep(fd, &ref) == 0 && ckpt_head_kept(fd, &ref, head) == CKPT_HEAD);
    CHECK(pread(fd, value, CKPT_HEAD, 0) == CKPT_HEAD && !memcmp(head, value, CKPT_HEAD));
    ref.sha256[31] = 1;
    CHECK(ckpt_head_kept(fd, &ref, head) == 0);
    CHECK(ckpt_head_keep(plain, &ref) == 0 && ckpt_head_kept(plain, &ref, head) == 0);
    close(fd);
    close(plain);
    CHECK(commit_as(&s, "1") == 0);
    staged_end(&s);
    step_read(&r, "1", &one);
    const struct ckpt_manifest_node *w = &step_get(&one, "params/w.npy")->n;
    CHECK(w->npy.ndim == 1);

    /* The same bytes of data in another shape, under the name of this content and of another. */
    struct ckpt_buf other = CKPT_BUF_INIT;
    ckpt_npy_add_header(&other, w->npy.descr, 2, (const uint64_t[]){w->npy.shape[0] / 2, 2});
    for (unsigned same = 0; same < 2; same++) {
        staged_begin(&r, &s);
        make_ref(&s, "w.npy", w);
        memcpy(value, w->sha256, CKPT_SHA256);
        value[0] ^= !same;
        memcpy(value + CKPT_SHA256, other.data, other.len);
        CHECK(setxattr(file_path(s.tree, "w.npy"), CKPT_HEAD_XATTR, value, CKPT_SHA256 + other.len, 0) == 0);
        CHECK(commit_as(&s, same ? "3" : "2") == 0);
        step_read(&r, same ? "3" : "2", &two);
        CHECK(step_get(&two, "w.npy")->n.npy.ndim == (same ? 2 : 1));
        step_clear(&two);
        staged_end(&s);
    }
    ckpt_buf_clear(&other);
    step_clear(&one);
    root_end(&r);
}

/* --- objects made before the commit --- */

static int tell_known(void *arg, int fd, const struct stat *st, struct ckpt_ref *ret)
{
    const struct ckpt_ref *ref = arg;
    *ret = *ref;
    return ref->size == (uint64_t)st->st_size;
}

static int hold_one(struct staged *s, const char *name, enum ckpt_object_codec codec, bool frozen, struct ckpt_ref *ret)
{
    struct ckpt_hold hold = {s->root->store, s->work.hold};
    struct ckpt_err err = {0};
    int fd = open(file_path(s->tree, name), O_RDWR);
    int r = ckpt_hold_file(&hold, fd, name, codec, frozen, NULL, ret, &err);
    close(fd);
    return r;
}

static bool is_held(struct staged *s, const struct ckpt_ref *ref, const char *suffix)
{
    char name[CKPT_HEX + 16];
    ckpt_hash_hex(ref->sha256, name);
    strcat(name, suffix);
    return faccessat(s->work.hold, name, F_OK, 0) == 0;
}

struct late {
    atomic_bool *interrupted;
    unsigned after; /* microseconds */
};

static void *interrupt_late(void *arg)
{
    struct late *late = arg;
    usleep(late->after);
    atomic_store(late->interrupted, true);
    return NULL;
}

static void test_known(void)
{
    struct root r;
    struct staged s;
    struct ckpt_ref ref;
    const uint64_t shape[] = {1000000};
    root_begin(&r);
    for (int i = 0; i < 4; i++) {
        char name[16];
        staged_begin(&r, &s);
        uint8_t *data = calloc(4, 1000000);
        data[i] = 1;
        add_npy(&s, "a.npy", "<f4", 1, shape, i == 2 ? NULL : data, 4000000);
        free(data);
        enum ckpt_object_codec codec = i == 1 ? CKPT_OBJECT_NONE : CKPT_OBJECT_AUTO;
        bool raw = i == 1 || i == 2;
        CHECK(hold_one(&s, "a.npy", codec, false, &ref) == 0);
        CHECK(ref.codec == (raw ? CKPT_OBJECT_NONE : CKPT_OBJECT_BLOSC) && is_held(&s, &ref, "") == !raw &&
              is_held(&s, &ref, ".sums") == raw);
        if (i == 2) { /* a copy can be asked for */
            CHECK(hold_one(&s, "a.npy", codec, true, &ref) == 0 && is_held(&s, &ref, ""));
            CHECK(hold_one(&s, "a.npy", codec, false, &ref) == 0 && ref.codec == CKPT_OBJECT_NONE &&
                  ref.stored == ref.size);
        }
        struct ckpt_commit c = staged_commit(&s, name);
        c.codec = codec;
        c.known = tell_known;
        c.arg = &ref;
        snprintf(name, sizeof name, "%d", i);
        if (i == 3) { /* it is not there any more */
            char hex[CKPT_HEX];
            ckpt_hash_hex(ref.sha256, hex);
            CHECK(unlinkat(s.work.hold, hex, 0) == 0);
        }
        CHECK(commit_with(&c) == 0);
        check_same(&s, name);
        staged_end(&s);
    }
    staged_begin(&r, &s);
    add_bytes(&s, "large", 20 * MIB, 3);
    atomic_bool interrupted = true;
    struct ckpt_commit c = staged_commit(&s, "stopped_1");
    c.interrupted = &interrupted;
    CHECK(commit_with(&c) == -EINTR && access(file_path(r.top, ".ckptstore/steps/stopped_1.json"), F_OK) < 0);
    for (unsigned i = 0; i < 8; i++) {
        pthread_t thread;
        struct late late = {&interrupted, 500u << i};
        interrupted = false;
        CHECK(pthread_create(&thread, NULL, interrupt_late, &late) == 0);
        int e = commit_with(&c);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(e == -EINTR || e == 0);
        if (e == 0)
            break;
    }
    interrupted = false;
    CHECK(access(file_path(r.top, ".ckptstore/steps/stopped_1.json"), F_OK) == 0 || commit_with(&c) == 0);
    check_same(&s, "stopped_1");
    staged_end(&s);
    staged_begin(&r, &s);
    file_write(s.tree, "small", "small");
    CHECK(hold_one(&s, "small", CKPT_OBJECT_AUTO, false, &ref) == 0 && ref.size == 5 && !is_held(&s, &ref, ""));
    atomic_bool cancel = true;
    struct ckpt_hold hold = {r.store, s.work.hold};
    add_bytes(&s, "large", MIB, 3);
    int fd = open(file_path(s.tree, "large"), O_RDONLY);
    CHECK(ckpt_hold_file(&hold, fd, "large", CKPT_OBJECT_AUTO, false, &cancel, &ref, NULL) == -ECANCELED);
    close(fd);
    staged_end(&s);
    root_end(&r);
}

/* --- files that become objects themselves --- */

static const char *object_file(struct root *r, const uint8_t *data, size_t len)
{
    char path[CKPT_OBJECT_PATH], full[128];
    uint8_t sha256[CKPT_SHA256];
    SHA256(data, len, sha256);
    ckpt_object_path(sha256, path);
    snprintf(full, sizeof full, ".ckptstore/objects/%s", path);
    return file_path(r->top, full);
}

/* A commit has failed after its files were linked among the objects. They change, in place; nothing that was or will be
 * committed does. */
static void test_alias(void)
{
    struct root r;
    struct staged s, other;
    struct stat st, object;
    size_t len;
    root_begin(&r);
    staged_begin(&r, &s);
    add_bytes(&s, "w", MIB, 1);
    uint8_t *first = file_read(file_path(s.tree, "w"), &len), *second;
    struct ckpt_commit c = staged_commit(&s, "1");
    c.codec = CKPT_OBJECT_NONE;
    /* Another step of that name appears when all is done but the last. */
    CHECK(mkdir(file_path(r.top, ".ckptstore/steps/1.json"), 0755) == 0);
    c.overwrite = true;
    CHECK(commit_with(&c) < 0);
    CHECK(stat(file_path(s.tree, "w"), &st) == 0 && stat(object_file(&r, first, len), &object) == 0 &&
          st.st_ino == object.st_ino);
    CHECK(rmdir(file_path(r.top, ".ckptstore/steps/1.json")) == 0);

    int fd = open(file_path(s.tree, "w"), O_WRONLY);
    CHECK(pwrite(fd, "changed", 7, 1000) == 7 && close(fd) == 0);

    /* The content as it was is committed by somebody else. */
    staged_begin(&r, &other);
    add_bytes(&other, "v", MIB, 1);
    struct ckpt_commit d = staged_commit(&other, "2");
    d.codec = CKPT_OBJECT_NONE;
    CHECK(commit_with(&d) == 0);
    check_same(&other, "2");
    staged_end(&other);
    CHECK(stat(object_file(&r, first, len), &object) == 0 && st.st_ino != object.st_ino &&
          (object.st_mode & 0222) == 0);

    c.overwrite = false;
    CHECK(commit_with(&c) == 0);
    check_same(&s, "1");
    check_same(&s, "1");
    second = file_read(file_path(s.tree, "w"), &len);
    CHECK(stat(object_file(&r, second, len), &object) == 0 && st.st_ino == object.st_ino &&
          (object.st_mode & 0222) == 0);
    staged_end(&s);

    /* From now on nobody can change it: the next one shares it. */
    for (int i = 3; i < 5; i++) {
        char name[8];
        snprintf(name, sizeof name, "%d", i);
        staged_begin(&r, &s);
        file_write_bytes(s.tree, "w", second, len);
        CHECK(commit_as(&s, name) == 0);
        check_same(&s, name);
        staged_end(&s);
        CHECK(stat(object_file(&r, second, len), &object) == 0 && st.st_ino == object.st_ino && object.st_nlink == 1);
        CHECK(getxattr(object_file(&r, second, len), "user.ckptfs.alias", NULL, 0) < 0);
    }
    free(first);
    free(second);
    root_end(&r);
}

/* The same, and the step whose file it was is given up: what is left under the first name has other bytes. */
static void test_alias_left(void)
{
    struct root r;
    struct staged s;
    size_t len;
    root_begin(&r);
    staged_begin(&r, &s);
    add_bytes(&s, "w", MIB, 1);
    uint8_t *first = file_read(file_path(s.tree, "w"), &len);
    struct ckpt_commit c = staged_commit(&s, "1");
    c.codec = CKPT_OBJECT_NONE;
    c.overwrite = true;
    CHECK(mkdir(file_path(r.top, ".ckptstore/steps/1.json"), 0755) == 0);
    CHECK(commit_with(&c) < 0 && rmdir(file_path(r.top, ".ckptstore/steps/1.json")) == 0);
    int fd = open(file_path(s.tree, "w"), O_WRONLY);
    CHECK(pwrite(fd, "changed", 7, 1000) == 7 && close(fd) == 0);
    staged_end(&s);
    for (int i = 0; i < 2; i++) {
        staged_begin(&r, &s);
        file_write_bytes(s.tree, "w", first, len);
        CHECK(commit_as(&s, i ? "3" : "2") == 0);
        check_same(&s, i ? "3" : "2");
        staged_end(&s);
    }
    /* In the trash, too. */
    uint8_t sha256[CKPT_SHA256];
    char hex[CKPT_HEX], path[128];
    SHA256(first, len, sha256);
    ckpt_hash_hex(sha256, hex);
    snprintf(path, sizeof path, ".ckptstore/trash/objects/%s", hex);
    struct ckpt_gc_result gc;
    CHECK(ckpt_store_delete(r.store, "2", NULL, NULL) == 0 && ckpt_store_delete(r.store, "3", NULL, NULL) == 0);
    CHECK(ckpt_store_gc(r.store, false, NULL, &gc, NULL) == 0);
    fd = open(file_path(r.top, path), O_RDWR);
    CHECK(fd >= 0 || errno == EACCES);
    first[5] ^= 1;
    file_remove(r.top, path);
    file_write_bytes(r.top, path, first, len);
    first[5] ^= 1;
    close(fd);
    CHECK(setxattr(file_path(r.top, path), "user.ckptfs.alias", "1", 1, 0) == 0);
    staged_begin(&r, &s);
    file_write_bytes(s.tree, "w", first, len);
    CHECK(commit_as(&s, "4") == 0);
    check_same(&s, "4");
    staged_end(&s);
    free(first);
    root_end(&r);
}

/* The same, and the step is taken over by another process. */
static void test_recover(void)
{
    struct root r;
    struct staged s;
    struct stat before, after, object;
    char note[8];
    size_t len;
    root_begin(&r);
    staged_begin(&r, &s);
    add_bytes(&s, "d/w", MIB, 1);
    add_npy(&s, "x@0:100000.npy", "|u1", 1, (uint64_t[]){100000}, NULL, 100000);
    add_bytes(&s, "plain", 10, 1);
    set_attr(&s, "d/w", "user.note", "mine");
    CHECK(chmod(file_path(s.tree, "d/w"), 0640) == 0);
    uint8_t *first = file_read(file_path(s.tree, "d/w"), &len);
    struct ckpt_commit c = staged_commit(&s, "1");
    CHECK(ckpt_commit_recover(&c, NULL) == 0);
    c.codec = CKPT_OBJECT_NONE;
    c.overwrite = true;
    CHECK(mkdir(file_path(r.top, ".ckptstore/steps/1.json"), 0755) == 0);
    CHECK(commit_with(&c) < 0 && rmdir(file_path(r.top, ".ckptstore/steps/1.json")) == 0);
    CHECK(stat(file_path(s.tree, "d/w"), &before) == 0 && ckpt_commit_recover(&c, NULL) == 0);
    CHECK(stat(file_path(s.tree, "d/w"), &after) == 0 && stat(object_file(&r, first, len), &object) == 0);
    CHECK(before.st_ino == object.st_ino && after.st_ino != object.st_ino && after.st_mode == before.st_mode);
    CHECK(after.st_mtim.tv_sec == before.st_mtim.tv_sec && after.st_mtim.tv_nsec == before.st_mtim.tv_nsec &&
          after.st_nlink == 1);
    CHECK(getxattr(file_path(s.tree, "d/w"), "user.note", note, sizeof note) == 4);
    CHECK(getxattr(file_path(s.tree, "d/w"), "user.ckptfs.alias", note, 1) < 0);
    uint8_t *second = file_read(file_path(s.tree, "d/w"), &len);
    CHECK(!memcmp(first, second, MIB));
    free(first);
    free(second);
    CHECK(ckpt_commit_recover(&c, NULL) == 0 && commit_with(&c) == 0);
    staged_end(&s);
    root_end(&r);
}

/* --- names --- */

static void test_replace(void)
{
    struct root r;
    struct staged s, t;
    struct step step;
    root_begin(&r);
    for (int i = 0; i < 3; i++) {
        staged_begin(&r, &s);
        file_write(s.tree, "n", i ? i == 1 ? "1" : "2" : "0");
        struct ckpt_commit c = staged_commit(&s, "7");
        if (i)
            CHECK(commit_with(&c) == -EEXIST);
        c.overwrite = i > 0;
        CHECK(commit_with(&c) == 0);
        check_same(&s, "7");
        staged_end(&s);
        if (i == 0)
            CHECK(ckpt_store_pin(r.store, "7", true, NULL) == 0);
    }
    struct ckpt_store_step *steps;
    size_t count;
    CHECK(ckpt_store_steps(r.store, true, &steps, &count, NULL) == 0 && count == 1 && steps[0].pinned);
    char base[33];
    strcpy(base, steps[0].id);
    ckpt_store_steps_free(steps, count);

    /* Two changes of one step: the second must know of the first. */
    staged_begin(&r, &s);
    staged_begin(&r, &t);
    file_write(s.tree, "n", "first");
    file_write(t.tree, "n", "second");
    struct ckpt_commit c = staged_commit(&s, "7"), d = staged_commit(&t, "7");
    c.base_id = d.base_id = base;
    c.id = "aaaabbbbccccddddeeeeffff00001111";
    CHECK(commit_with(&c) == 0);
    CHECK(commit_with(&d) == -EEXIST && strstr(commit_error, "another mount"));
    d.base_id = c.id;
    CHECK(commit_with(&d) == 0);
    check_same(&t, "7");
    staged_end(&s);
    staged_end(&t);

    /* A step that was deleted meanwhile is made again. */
    staged_begin(&r, &s);
    file_write(s.tree, "n", "third");
    CHECK(ckpt_store_delete(r.store, "7", NULL, NULL) == 0);
    c = staged_commit(&s, "7");
    c.base_id = base;
    CHECK(commit_with(&c) == 0);
    step_read(&r, "7", &step);
    CHECK(!memcmp(step_get(&step, "n")->bytes, "third", 5) && strlen(step.info.id) == 32);
    step_clear(&step);
    staged_end(&s);
    root_end(&r);
}

struct racer {
    struct root *root;
    unsigned seed;
    int won;
};

static void *race(void *arg)
{
    struct racer *racer = arg;
    for (int i = 0; i < 6; i++) {
        struct staged s;
        char name[16], file[16];
        staged_begin(racer->root, &s);
        for (unsigned k = 0; k < 4; k++) {
            uint8_t data[200];
            memset(data, (int)(k + racer->seed % 2 * 10), sizeof data);
            int dir = s.work.tree;
            snprintf(file, sizeof file, "f%u", k);
            int fd = openat(dir, file, O_WRONLY | O_CREAT, 0644);
            CHECK(fd >= 0 && write(fd, data, sizeof data) == sizeof data && close(fd) == 0);
        }
        int fd = openat(s.work.tree, "large", O_WRONLY | O_CREAT, 0644);
        CHECK(fd >= 0 && ftruncate(fd, 300000) == 0 && pwrite(fd, &i, 4, 5000) == 4 && close(fd) == 0);
        struct ckpt_commit c = staged_commit(&s, name);
        snprintf(name, sizeof name, "%d", i);
        c.codec = racer->seed % 3 ? CKPT_OBJECT_AUTO : CKPT_OBJECT_NONE;
        int r = ckpt_commit_run(&c, NULL);
        CHECK(r == 0 || r == -EEXIST);
        racer->won += r == 0;
        ckpt_work_end(&s.work);
    }
    return NULL;
}

/* Of those that commit one name one wins, and all is as it should be. */
static void test_race(void)
{
    struct root r;
    struct racer racers[4];
    pthread_t threads[4];
    struct step step;
    int won = 0;
    root_begin(&r);
    for (unsigned i = 0; i < 4; i++) {
        racers[i] = (struct racer){&r, i, 0};
        CHECK(pthread_create(&threads[i], NULL, race, &racers[i]) == 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        won += racers[i].won;
    }
    CHECK(won == 6);
    for (int i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        step_read(&r, name, &step);
        CHECK(step.count == 6 && !memcmp(step_get(&step, "large")->bytes + 5000, &i, 4));
        step_clear(&step);
    }
    root_end(&r);
}

/* --- many --- */

static void test_many(void)
{
    struct root r;
    struct staged s;
    char name[64];
    size_t count, again;
    root_begin(&r);
    staged_begin(&r, &s);
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "d%u/%u", i % 7, i);
        add_bytes(&s, name, i % 100, i);
    }
    for (unsigned i = 0; i < 60; i++) {
        snprintf(name, sizeof name, "large/%u.npy", i);
        add_npy(&s, name, "|u1", 1, (uint64_t[]){70000 + i}, NULL, 70000 + i);
    }
    CHECK(commit_as(&s, "1") == 0);
    check_same(&s, "1");
    uint64_t bytes = objects_bytes(&r, &count);
    CHECK(count == 61);
    file_write(s.tree, "d0/0", "one is new");
    CHECK(commit_as(&s, "2") == 0);
    check_same(&s, "2");
    CHECK(objects_bytes(&r, &again) == bytes + 10 && again == count + 1);
    staged_end(&s);
    root_end(&r);
}

int main(void)
{
    struct root r;
    root_begin(&r);
    test_values(&r);
    test_arrays(&r);
    test_directories(&r);
    test_refused(&r);
    root_end(&r);
    test_dedup();
    test_damaged_neighbour();
    test_refs();
    test_head();
    test_known();
    test_alias();
    test_alias_left();
    test_recover();
    test_replace();
    test_race();
    test_many();
    return 0;
}
