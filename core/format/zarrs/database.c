/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keys of a database as a tree: split at the slashes, as if they were files. A key PREFIX/.zarray, or zarr.json,
 * makes PREFIX an array, whose other keys are its chunks; all else are blobs. The keys are in order, but an array's
 * metadata are not the first of its keys, so they are walked twice.
 */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/util.h"
#include "core/format/named.h"

#include <stdio.h>

#define MAX_KEYS  (1u << 22)          /* arrays and blobs */
#define MAX_BYTES ((size_t)256 << 20) /* of all keys of arrays */

/* An array: its prefix in `text`. */
struct prefix {
    size_t at;
    uint32_t len;
    bool bare, version3;
};

struct keys {
    struct zarrs *z;
    uint32_t base;
    unsigned part; /* the database that is walked */
    struct ckpt_buf text;
    struct prefix *prefixes;
    uint64_t *hashes; /* of the prefixes, in order */
    uint32_t count, cap, blobs;
    struct ckpt_err *err;
};

static const struct zarrs_base *base_of(const struct keys *k)
{
    return &k->z->bases[k->base];
}

static int too_many(struct keys *k)
{
    return ckpt_fail(k->err, EOPNOTSUPP, "the database has more than %u keys of arrays and files", MAX_KEYS);
}

/* --- arrays --- */

/* The length of PREFIX in PREFIX/NAME, with the slash; *ret_bare: there is none. */
static bool ends_with_name(const char *key, size_t len, const char *name, size_t *ret, bool *ret_bare)
{
    size_t n = strlen(name);
    if (len < n || memcmp(key + len - n, name, n) != 0)
        return false;
    *ret_bare = len == n;
    *ret = len - n - !*ret_bare;
    return *ret_bare || key[len - n - 1] == '/';
}

static int note_array(void *arg, const void *key, size_t len, uint64_t value_len)
{
    struct keys *k = arg;
    struct prefix p = {.at = k->text.len};
    size_t n;
    p.version3 = ends_with_name(key, len, "zarr.json", &n, &p.bare);
    if (!p.version3 && !ends_with_name(key, len, ".zarray", &n, &p.bare))
        return 0;
    if (k->count == MAX_KEYS)
        return too_many(k);
    if (k->count == k->cap) {
        uint32_t cap = k->cap ? k->cap * 2 : 64;
        struct prefix *grown = realloc(k->prefixes, cap * sizeof *grown);
        if (!grown)
            return ckpt_no_memory(k->err);
        k->prefixes = grown;
        k->cap = cap;
    }
    p.len = (uint32_t)n;
    ckpt_buf_add(&k->text, key, n);
    k->prefixes[k->count++] = p;
    if (ckpt_buf_error(&k->text))
        return ckpt_fail(k->err, EOPNOTSUPP, "the keys of the database's arrays have more than %zu MiB",
                         MAX_BYTES >> 20);
    return 0;
}

static int by_text(const void *pa, const void *pb, void *arg)
{
    const struct prefix *a = pa, *b = pb;
    const uint8_t *text = arg;
    size_t n = CKPT_MIN(a->len, b->len);
    int r = n ? memcmp(text + a->at, text + b->at, n) : 0;
    if (r == 0)
        r = (a->len > b->len) - (a->len < b->len);
    if (r == 0)
        r = b->bare - a->bare;
    return r ? r : a->version3 - b->version3; /* of one that has both, version 2 comes first, and stays */
}

/* Of several databases each has the metadata of an array. */
static void drop_doubles(struct keys *k)
{
    uint32_t kept = 0;
    const uint8_t *text = k->text.data;
    if (k->count)
        qsort_r(k->prefixes, k->count, sizeof *k->prefixes, by_text, k->text.data);
    for (uint32_t i = 0; i < k->count; i++) {
        const struct prefix *p = &k->prefixes[i], *last = kept ? &k->prefixes[kept - 1] : NULL;
        bool same = last && last->len == p->len && last->bare == p->bare;
        if (same && p->len)
            same = !memcmp(text + last->at, text + p->at, p->len);
        if (!same)
            k->prefixes[kept++] = *p;
    }
    k->count = kept;
}

/* 1: the zarr.json is that of a group. */
static int is_group(struct keys *k, const struct prefix *p)
{
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    CKPT_AUTOBUF struct ckpt_buf key = CKPT_BUF_INIT;
    if (!p->version3)
        return 0;
    ckpt_buf_add(&key, k->text.data + p->at, p->len);
    ckpt_buf_adds(&key, p->bare ? "zarr.json" : "/zarr.json");
    int r = ckpt_buf_error(&key);
    if (r == 0)
        r = ckpt_zarrs_base_get(base_of(k), key.data, key.len, &e, k->err);
    bool readable = r == 0 && e.len <= ZARRS_MAX_METADATA;
    if (!readable)
        return r == -ENOMEM ? r : 0; /* reading the array says what is wrong */
    CKPT_AUTOFREE uint8_t *text = malloc(e.len + 1);
    if (!text)
        return ckpt_no_memory(k->err);
    return ckpt_extent_read(&e, text, e.len, 0) == 0 && ckpt_zarrs_is_group(text, e.len);
}

/* The containers that lead to the last part of a key. */
static int add_containers(struct keys *k, const char **key, size_t *len, uint32_t *ret)
{
    const char *at = *key, *end = at + *len, *slash;
    int r = 0;
    *ret = base_of(k)->top;
    while (r == 0 && at < end && (slash = memchr(at, '/', (size_t)(end - at)))) {
        r = ckpt_tree_add(k->z->tree, *ret, at, (size_t)(slash - at), false, CKPT_NODE_DIR, ret, k->err);
        at = slash + 1;
    }
    *key = at;
    *len = (size_t)(end - at);
    return r;
}

static int add_leaf(struct keys *k, const char *key, size_t len, enum ckpt_node_kind kind, uint8_t mark)
{
    struct ckpt_tree *t = k->z->tree;
    uint32_t parent, node;
    int r = add_containers(k, &key, &len, &parent);
    if (r == 0)
        r = ckpt_tree_add(t, parent, key, len, false, kind, &node, k->err);
    if (r < 0)
        return r;
    t->nodes[node].ref = k->base + 1;
    t->nodes[node].mark = mark;
    return 0;
}

static int add_arrays(struct keys *k)
{
    uint32_t kept = 0;
    k->hashes = malloc(CKPT_MAX(k->count, 1u) * sizeof *k->hashes);
    if (!k->hashes)
        return ckpt_no_memory(k->err);
    for (uint32_t i = 0; i < k->count; i++) {
        const struct prefix *p = &k->prefixes[i];
        const char *text = p->len ? (char *)k->text.data + p->at : "";
        int r = is_group(k, p);
        if (r > 0)
            continue;
        uint8_t mark = (uint8_t)((p->bare ? ZARRS_BARE : 0) | (p->version3 ? ZARRS_VERSION3 : 0));
        if (r == 0)
            r = add_leaf(k, text, p->len, CKPT_NODE_ARRAY, mark);
        if (r < 0)
            return r;
        k->hashes[kept++] = p->bare ? 0 : ckpt_name_hash(text, p->len);
    }
    k->count = kept;
    return 0;
}

/* --- everything else --- */

static int by_value(const void *pa, const void *pb)
{
    uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;
    return a < b ? -1 : a > b;
}

static bool has_array(const struct keys *k, uint64_t hash)
{
    return k->count && bsearch(&hash, k->hashes, k->count, sizeof hash, by_value);
}

/* A key of an array that is no file of the user's: PREFIX/0/1. */
static bool is_of_array(const struct keys *k, const char *key, size_t len)
{
    for (size_t end = len; end;) {
        size_t begin = end;
        while (begin && key[begin - 1] != '/')
            begin--;
        if (!ckpt_zarrs_is_chunk(key + begin, end - begin))
            return false;
        bool own = begin ? has_array(k, ckpt_name_hash(key, begin - 1)) : has_array(k, 0);
        if (own || !begin)
            return own;
        end = begin - 1;
    }
    return false;
}

/* Of several databases the first that has a key counts. */
static bool was_there(struct keys *k, const void *key, size_t len)
{
    const struct zarrs_base *b = base_of(k);
    for (unsigned i = 0; i < k->part; i++) {
        CKPT_AUTOEXTENT struct ckpt_extent e = {0};
        if (ckpt_ocdbt_get(b->parts[i], key, len, &e, NULL) != -ENOENT)
            return true;
    }
    return false;
}

static int add_blob(void *arg, const void *key, size_t len, uint64_t value_len)
{
    struct keys *k = arg;
    const char *text = len ? key : "", *slash = len ? memrchr(text, '/', len) : NULL;
    const char *name = slash ? slash + 1 : text;
    bool own = ckpt_zarrs_is_own(name, len - (size_t)(name - text));
    if (own || is_of_array(k, text, len) || was_there(k, text, len))
        return 0;
    return ++k->blobs > MAX_KEYS ? too_many(k) : add_leaf(k, text, len, CKPT_NODE_BLOB, 0);
}

static int each(struct keys *k, ckpt_ocdbt_fn *visit)
{
    int r = 0;
    for (k->part = 0; r == 0 && k->part < base_of(k)->count; k->part++)
        r = ckpt_ocdbt_each(base_of(k)->parts[k->part], "", 0, visit, k, k->err);
    return r;
}

int ckpt_zarrs_add_keys(struct zarrs *z, uint32_t base, struct ckpt_err *err)
{
    struct keys k = {.z = z, .base = base, .text = {.max = MAX_BYTES}, .err = err};
    int r = each(&k, note_array);
    if (r == 0) {
        drop_doubles(&k);
        r = add_arrays(&k);
    }
    if (r == 0) {
        qsort(k.hashes, k.count, sizeof *k.hashes, by_value);
        r = each(&k, add_blob);
    }
    ckpt_buf_clear(&k.text);
    free(k.prefixes);
    free(k.hashes);
    return r;
}

/* --- values --- */

int ckpt_zarrs_base_get(const struct zarrs_base *base, const void *key, size_t len, struct ckpt_extent *ret,
                        struct ckpt_err *err)
{
    int r = -ENOENT;
    for (unsigned i = 0; i < base->count && r == -ENOENT; i++)
        r = ckpt_ocdbt_get(base->parts[i], key, len, ret, err);
    return r;
}

void ckpt_zarrs_base_close(struct zarrs_base *base)
{
    for (unsigned i = 0; i < base->count; i++)
        ckpt_ocdbt_close(base->parts[i]);
    free(base->parts);
}
