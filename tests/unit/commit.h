/* SPDX-License-Identifier: Apache-2.0 */
/* A staged step as plain files, its commit, and all bytes of what it has become. Any failure ends the program. */
#ifndef CKPT_TESTS_COMMIT_H
#define CKPT_TESTS_COMMIT_H

#include "core/base/util.h"
#include "core/commit/commit.h"
#include "core/commit/work.h"
#include "tests/unit/check.h"
#include "tests/unit/files.h"
#include "tests/unit/random.h"

#include <dirent.h>
#include <openssl/sha.h>
#include <sys/xattr.h>

struct root {
    char top[64];
    struct ckpt_store *store;
    struct ckpt_pool *pool;
    struct ckpt_cache *cache;
};

static inline void root_open(struct root *r)
{
    struct ckpt_err err = {0};
    CHECK(ckpt_store_open(r->top, &r->store, &err) == 0);
    CHECK(ckpt_pool_new(1, &r->pool) == 0);
    CHECK(ckpt_cache_new(&(struct ckpt_cache_options){8 << 20, 0, "/tmp"}, r->pool, &r->cache) == 0);
}

static inline void root_close(struct root *r)
{
    ckpt_store_close(r->store);
    ckpt_pool_free(r->pool);
    ckpt_cache_free(r->cache);
}

/* In a folder, if that has what a store needs; else in the usual one. */
static inline void root_begin_in(struct root *r, const char *folder)
{
    snprintf(r->top, sizeof r->top, "%s/ckptfs-test-XXXXXX", folder);
    if (!mkdtemp(r->top) || setxattr(r->top, "user.test", "1", 1, 0) < 0) {
        rmdir(r->top);
        strcpy(r->top, FILES_TEMPLATE);
        files_begin(r->top);
    }
    CHECK(ckpt_store_init(r->top, NULL) == 0);
    root_open(r);
}

static inline void root_begin(struct root *r)
{
    root_begin_in(r, "/tmp");
}

static inline void root_end(struct root *r)
{
    root_close(r);
    files_end(r->top);
}

/* --- staging --- */

struct staged {
    struct root *root;
    struct ckpt_work work;
    char tree[256];
};

static inline void staged_begin(struct root *r, struct staged *s)
{
    s->root = r;
    CHECK(ckpt_work_begin(r->store, &s->work, NULL) == 0);
    snprintf(s->tree, sizeof s->tree, "%s/.ckptstore/staging/%s/tree", r->top, s->work.id);
}

static inline void staged_end(struct staged *s)
{
    ckpt_work_end(&s->work);
}

static inline struct ckpt_commit staged_commit(struct staged *s, const char *name)
{
    return (struct ckpt_commit){.store = s->root->store,
                                .hold = {s->root->store, s->work.hold},
                                .work = s->work.dir,
                                .tree = s->work.tree,
                                .name = name,
                                .codec = CKPT_OBJECT_AUTO,
                                .threads = 2};
}

/* The error's text; good until the next call. */
static char commit_error[CKPT_ERR_TEXT];

static inline int commit_with(const struct ckpt_commit *c)
{
    struct ckpt_err err = {0};
    int r = ckpt_commit_run(c, &err);
    CHECK(r == -err.code && (r == 0) == !*err.text);
    strcpy(commit_error, err.text);
    return r;
}

static inline int commit_as(struct staged *s, const char *name)
{
    struct ckpt_commit c = staged_commit(s, name);
    return commit_with(&c);
}

/* An .npy file of that many random bytes of data, if data is NULL. */
static inline void add_npy(struct staged *s, const char *name, const char *descr, unsigned ndim, const uint64_t *shape,
                           const void *data, size_t len)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    static uint64_t seed = 77;
    ckpt_npy_add_header(&buf, descr, ndim, shape);
    if (data)
        ckpt_buf_add(&buf, data, len);
    else
        for (size_t i = 0; i < len; i++)
            ckpt_buf_addc(&buf, (char)(test_random(&seed) >> 33));
    CHECK(!ckpt_buf_error(&buf));
    file_write_bytes(s->tree, name, buf.data, buf.len);
    ckpt_buf_clear(&buf);
}

static inline void add_bytes(struct staged *s, const char *name, size_t len, uint64_t seed)
{
    uint8_t *data = malloc(len + 1);
    seed = seed * 2 + 1;
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(test_random(&seed) >> 33);
    file_write_bytes(s->tree, name, data, len);
    free(data);
}

static inline uint8_t *file_read(const char *path, size_t *ret_len)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *data = malloc((size_t)st.st_size + 1);
    CHECK(read(fd, data, (size_t)st.st_size) == st.st_size);
    data[st.st_size] = 0;
    close(fd);
    *ret_len = (size_t)st.st_size;
    return data;
}

static inline void set_attr(struct staged *s, const char *name, const char *attr, const char *value)
{
    CHECK(setxattr(file_path(s->tree, name), attr, value, strlen(value), 0) == 0);
}

/* --- committed --- */

struct step_node {
    char *path;
    struct ckpt_manifest_node n; /* its strings are copies */
    uint8_t *bytes;              /* of a leaf */
};

struct step {
    struct root *root;
    struct step_node *nodes; /* by number; 0 is the top */
    size_t count;
    struct ckpt_manifest_info info;
};

static inline char *copy_text(const char *text)
{
    return text ? strdup(text) : NULL;
}

/* The leaf's bytes: from the manifest, or through its object. */
static inline uint8_t *leaf_bytes(struct root *r, const struct ckpt_manifest_node *n)
{
    uint8_t *bytes = malloc(n->size + 1), sha256[CKPT_SHA256];
    if (n->kind == CKPT_NODE_VALUE)
        memcpy(bytes, n->text, n->size);
    else {
        struct ckpt_pins *pins;
        struct ckpt_file *f;
        struct ckpt_err err = {0};
        bool own = !memcmp(n->sha256, n->object, CKPT_SHA256);
        CHECK(ckpt_pins_new(r->store->files, &pins) == 0);
        if (ckpt_object_open(pins, r->cache, n->object, own ? n->size : UINT64_MAX, &f, &err) < 0) {
            fprintf(stderr, "%s: %s\n", n->name, err.text);
            exit(1);
        }
        CHECK(n->offset + n->size <= f->st.size);
        CHECK(!n->size || ckpt_file_read(f, bytes, n->size, n->offset) == (ssize_t)n->size);
        ckpt_file_unref(f);
        ckpt_pins_unref(pins);
    }
    SHA256(bytes, n->size, sha256);
    CHECK(!memcmp(sha256, n->sha256, CKPT_SHA256));
    return bytes;
}

static inline int step_add(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct step *s = arg;
    CHECK(number == s->count && n->parent < number);
    if ((number & (number - 1)) == 0)
        s->nodes = realloc(s->nodes, 2 * number * sizeof *s->nodes);
    struct step_node *node = &s->nodes[s->count++];
    memset(node, 0, sizeof *node);
    CHECK(n->parent == 0 || s->nodes[n->parent].n.kind == CKPT_NODE_DIR);
    CHECK(asprintf(&node->path, "%s%s%s", n->parent ? s->nodes[n->parent].path : "", n->parent ? "/" : "", n->name) >
          0);
    node->n = *n;
    node->n.name = copy_text(n->name);
    node->n.xattrs = copy_text(n->xattrs);
    node->n.text = copy_text(n->text);
    if (n->kind != CKPT_NODE_DIR)
        node->bytes = leaf_bytes(s->root, n);
    return 0;
}

static inline void step_read(struct root *r, const char *name, struct step *ret)
{
    char path[300];
    struct ckpt_file *f;
    struct ckpt_err err = {0};
    *ret = (struct step){.root = r, .nodes = malloc(sizeof *ret->nodes), .count = 1};
    snprintf(path, sizeof path, "steps/%s.json", name);
    CHECK(ckpt_backend_open(r->store->files, path, &f) == 0);
    int e = ckpt_manifest_each(f, &ret->info, step_add, ret, &err);
    if (e < 0)
        fprintf(stderr, "%s\n", err.text);
    CHECK(e == 0 && ret->info.count == ret->count);
    ckpt_file_unref(f);
}

static inline void step_clear(struct step *s)
{
    for (size_t i = 1; i < s->count; i++) {
        ckpt_manifest_node_clear(&s->nodes[i].n);
        free(s->nodes[i].bytes);
        free(s->nodes[i].path);
    }
    ckpt_manifest_info_clear(&s->info);
    free(s->nodes);
}

static inline const struct step_node *step_find(const struct step *s, const char *path)
{
    for (size_t i = 1; i < s->count; i++)
        if (!strcmp(s->nodes[i].path, path))
            return &s->nodes[i];
    return NULL;
}

static inline const struct step_node *step_get(const struct step *s, const char *path)
{
    const struct step_node *n = step_find(s, path);
    if (!n)
        fprintf(stderr, "%s is missing\n", path);
    CHECK(n);
    return n;
}

static inline size_t count_tree(const char *top, const char *below, const struct step *step)
{
    char path[1600], inner[1024];
    size_t count = 0;
    snprintf(path, sizeof path, "%s/%s", top, below);
    DIR *d = opendir(path);
    CHECK(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        struct stat st;
        size_t len;
        snprintf(inner, sizeof inner, "%s%s%s", below, *below ? "/" : "", e->d_name);
        snprintf(path, sizeof path, "%s/%s", top, inner);
        const struct step_node *n = step_get(step, inner);
        CHECK(lstat(path, &st) == 0);
        /* A file that has become an object has an object's mode. */
        CHECK(n->n.mode == (st.st_mode & 07777) || getxattr(path, "user.ckptfs.alias", NULL, 0) >= 0);
        CHECK(n->n.uid == st.st_uid && n->n.gid == st.st_gid);
        CHECK(n->n.mtime_ns == st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec);
        count++;
        if (S_ISDIR(st.st_mode)) {
            CHECK(n->n.kind == CKPT_NODE_DIR);
            count += count_tree(top, inner, step);
            continue;
        }
        CHECK(n->n.kind != CKPT_NODE_DIR);
        if (getxattr(path, CKPT_REF_XATTR, NULL, 0) > 0)
            continue;
        CHECK(n->n.size == (uint64_t)st.st_size);
        uint8_t *bytes = file_read(path, &len);
        CHECK(!memcmp(bytes, n->bytes, len));
        free(bytes);
    }
    closedir(d);
    return count;
}

/* The step is what is staged, byte for byte (no pieces in it). */
static inline void check_same(struct staged *s, const char *name)
{
    struct step step;
    step_read(s->root, name, &step);
    CHECK(count_tree(s->tree, "", &step) == step.count - 1);
    step_clear(&step);
}

/* Bytes of all objects, and how many; not of sums. */
static inline uint64_t objects_bytes(struct root *r, size_t *ret_count)
{
    uint64_t bytes = 0;
    *ret_count = 0;
    for (unsigned i = 0; i < 256; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/.ckptstore/objects/%02x", r->top, i);
        DIR *d = opendir(path);
        for (struct dirent *e; d && (e = readdir(d));) {
            struct stat st;
            if (strlen(e->d_name) != 64)
                continue;
            CHECK(fstatat(dirfd(d), e->d_name, &st, 0) == 0);
            bytes += (uint64_t)st.st_size;
            ++*ret_count;
        }
        if (d)
            closedir(d);
    }
    return bytes;
}

/* The tree cannot be committed: the code, and a word of the reason; checked: by ckpt_commit_check, too. */
static inline void check_refused(struct root *r, struct staged *s, int code, const char *word, bool checked)
{
    struct ckpt_commit c = staged_commit(s, "bad_1");
    struct ckpt_store_step *steps;
    size_t count, before;
    CHECK(ckpt_store_steps(r->store, false, &steps, &before, NULL) == 0);
    ckpt_store_steps_free(steps, before);
    int e = commit_with(&c);
    if (e != -code || !strstr(commit_error, word)) {
        fprintf(stderr, "want %d and \"%s\", got %d: %s\n", -code, word, e, commit_error);
        exit(1);
    }
    CHECK(ckpt_store_steps(r->store, false, &steps, &count, NULL) == 0 && count == before);
    ckpt_store_steps_free(steps, count);
    CHECK(ckpt_commit_check(&c, NULL) == (checked ? -code : 0));
}

#endif
