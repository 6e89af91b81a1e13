/* SPDX-License-Identifier: Apache-2.0 */
/* The leaves: arrays and blobs, in files of the folder or in a database. */
#include "core/format/zarrs/zarrs_private.h"

#include "core/base/util.h"

#include <stdio.h>

#define MAX_KEY_SHOWN  200   /* bytes, in messages */
#define LISTED_OBJECTS 4     /* of more than so many, a database lists all sizes in one walk */
#define PINNED_OBJECTS 65536 /* files that a look-up opens */

/* Where a leaf's keys are. */
struct place {
    struct ckpt_tree *tree;
    const struct zarrs_base *base; /* NULL: files */
    struct ckpt_buf key;           /* of a blob its own; of an array what its keys begin with, and one of them */
    size_t prefix;
};

static void place_clear(struct place *p)
{
    ckpt_buf_clear(&p->key);
}

#define AUTO_PLACE __attribute__((cleanup(place_clear)))

static int place_init(struct place *p, struct ckpt_tree *t, uint32_t node)
{
    const struct zarrs *z = t->priv;
    const struct ckpt_node *leaf = &t->nodes[node];
    uint32_t chain[CKPT_MAX_DEPTH];
    unsigned n = 0;
    *p = (struct place){.tree = t, .base = leaf->ref ? &z->bases[leaf->ref - 1] : NULL};
    uint32_t top = p->base ? p->base->top : 0;
    for (uint32_t at = node; at != top && n < CKPT_MAX_DEPTH; at = t->nodes[at].parent)
        chain[n++] = at;
    for (unsigned i = n; i-- > 0;) {
        size_t len;
        const char *key = ckpt_tree_text(t, t->nodes[chain[i]].key, &len);
        ckpt_buf_add(&p->key, key, len);
        if (i)
            ckpt_buf_addc(&p->key, '/');
    }
    bool bare = leaf->mark & ZARRS_BARE;
    if (leaf->kind == CKPT_NODE_ARRAY && !bare)
        ckpt_buf_addc(&p->key, '/');
    p->prefix = p->key.len;
    ckpt_buf_addc(&p->key, 0);
    p->key.len = p->prefix;
    return ckpt_buf_error(&p->key);
}

/* The whole key of an array's object: NUL-terminated, the NUL not counted. */
static int place_set(struct place *p, const char *name)
{
    p->key.len = p->prefix;
    ckpt_buf_adds(&p->key, name);
    ckpt_buf_addc(&p->key, 0);
    if (ckpt_buf_error(&p->key))
        return -ENOMEM;
    p->key.len--;
    return 0;
}

static int place_fail_in(const struct place *p, int r, struct ckpt_err *err)
{
    int shown = (int)CKPT_MIN(p->key.len, (size_t)MAX_KEY_SHOWN);
    return ckpt_fail_in(err, -r, "%.*s", shown, (char *)p->key.data);
}

static int open_file(struct place *p, struct ckpt_extent *ret, struct ckpt_err *err)
{
    const char *path = (char *)p->key.data;
    struct ckpt_file *f;
    int r = ckpt_pins_open(p->tree->pins, path, &f);
    if (r == -ENOENT || r == -ENOTDIR)
        return -ENOENT;
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

static int place_get(void *arg, const char *name, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct place *p = arg;
    if (place_set(p, name) < 0)
        return ckpt_no_memory(err);
    return p->base ? ckpt_zarrs_base_get(p->base, p->key.data, p->key.len, ret, err) : open_file(p, ret, err);
}

/* --- layouts --- */

static int read_metadata(struct place *p, int version, struct ckpt_buf *text, struct ckpt_err *err)
{
    const char *name = version == 3 ? "zarr.json" : ".zarray";
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    int r = place_get(p, name, &e, err);
    if (r == -ENOENT) /* it was there when the folder was opened */
        return ckpt_fail(err, ENOENT, "%s is gone: the array is being deleted", (char *)p->key.data);
    if (r < 0)
        return r;
    if (e.len > ZARRS_MAX_METADATA)
        return ckpt_fail(err, EUCLEAN, "%s is larger than %zu bytes", name, ZARRS_MAX_METADATA);
    r = ckpt_buf_reserve(text, e.len + 1);
    if (r == 0)
        r = ckpt_extent_read(&e, text->data, e.len, 0);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", (char *)p->key.data, strerror(-r));
    text->len = e.len;
    return 0;
}

static int version_of(const struct ckpt_tree *t, uint32_t node)
{
    return t->nodes[node].mark & ZARRS_VERSION3 ? 3 : 2;
}

int ckpt_zarrs_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct zarrs *z = t->priv;
    AUTO_PLACE struct place p = {0};
    CKPT_AUTOBUF struct ckpt_buf text = CKPT_BUF_INIT;
    if (place_init(&p, t, node) < 0)
        return ckpt_no_memory(err);
    int version = version_of(t, node), r = read_metadata(&p, version, &text, err);
    if (r < 0)
        return r;
    r = ckpt_zarr_layouts_get(z->layouts, text.data, text.len, version, ret, err);
    return r < 0 ? place_fail_in(&p, r, err) : 0;
}

/* --- bytes --- */

/*
 * A chunk that is not there holds the fill value, unless it was there before: then what is nearest of its directories
 * has changed since the folder was opened.
 */
static bool has_changed(struct place *p)
{
    const struct zarrs *z = p->tree->priv;
    struct ckpt_backend *dir = ckpt_pins_dir(p->tree->pins);
    struct ckpt_stat st;
    char *path = (char *)p->key.data;
    if (p->base || !dir->ops->changes)
        return false;
    for (char *slash = strrchr(path, '/'); slash; slash = strrchr(path, '/')) {
        *slash = 0;
        if (ckpt_backend_stat(dir, path, &st) == 0)
            return st.mtime_ns > z->opened_ns || (size_t)(slash - path) + 1 < p->prefix;
    }
    return ckpt_backend_stat(dir, "", &st) < 0 || st.mtime_ns > z->opened_ns || p->prefix;
}

int ckpt_zarrs_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct zarrs *z = t->priv;
    AUTO_PLACE struct place p = {0};
    if (place_init(&p, t, node) < 0)
        return ckpt_no_memory(err);
    /* TensorStore and Zarr do not write chunks of nothing but the fill value. */
    struct ckpt_zarr_store store = {
        .get = place_get, .arg = &p, .fill_missing = true, .cache = z->shards, .array = node};
    int r = ckpt_zarr_chunk(a, index, &store, ret, err);
    if (r == 1 && has_changed(&p))
        return ckpt_fail(err, ENOENT, "a chunk is gone: the array is being written to, or deleted");
    p.key.len = p.prefix;
    return r < 0 ? place_fail_in(&p, r, err) : r;
}

/* Bytes of one object; 0 where there is none. */
static int object_length(void *arg, const char *name, uint64_t *ret, struct ckpt_err *err)
{
    struct place *p = arg;
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    struct ckpt_stat st;
    *ret = 0;
    if (p->base) {
        int r = place_get(p, name, &e, err);
        *ret = e.len;
        return r == -ENOENT ? 0 : r;
    }
    if (place_set(p, name) < 0)
        return ckpt_no_memory(err);
    if (ckpt_backend_stat(ckpt_pins_dir(p->tree->pins), (char *)p->key.data, &st) == 0) /* without opening it */
        *ret = st.size;
    return 0;
}

static int stored_in_base(struct place *p, uint64_t *ret, struct ckpt_err *err)
{
    int r = 0;
    for (unsigned i = 0; i < p->base->count && r == 0; i++)
        r = ckpt_ocdbt_each(p->base->parts[i], p->key.data, p->prefix, ckpt_zarr_add_length, ret, err);
    return r;
}

int ckpt_zarrs_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err)
{
    AUTO_PLACE struct place p = {0};
    *ret = 0;
    if (a->unsupported)
        return 0;
    if (place_init(&p, t, node) < 0)
        return ckpt_no_memory(err);
    uint64_t objects = ckpt_zarr_objects(a);
    bool listed = p.base && objects > LISTED_OBJECTS;
    return listed ? stored_in_base(&p, ret, err) : ckpt_zarr_stored(a, object_length, &p, ret, err);
}

int ckpt_zarrs_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    AUTO_PLACE struct place p = {0};
    if (place_init(&p, t, node) < 0)
        return ckpt_no_memory(err);
    if (p.base)
        return ckpt_zarrs_base_get(p.base, p.key.data, p.key.len, ret, err);
    int r = open_file(&p, ret, err);
    return r == -ENOENT ? ckpt_fail(err, ENOENT, "%s: %s", (char *)p.key.data, strerror(ENOENT)) : r;
}

/* --- what a look-up keeps open: databases are open already --- */

static void pin_array(struct ckpt_tree *t, uint32_t node, struct place *p)
{
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    CKPT_AUTOBUF struct ckpt_buf name = CKPT_BUF_INIT;
    if (ckpt_tree_layout(t, node, &a, NULL) < 0 || a->unsupported)
        return;
    uint64_t objects = CKPT_MIN(ckpt_zarr_objects(a), (uint64_t)PINNED_OBJECTS);
    for (uint64_t i = 0; i < objects; i++) {
        CKPT_AUTOEXTENT struct ckpt_extent e = {0};
        name.len = 0;
        ckpt_zarr_object_key(a, i, &name);
        if (!ckpt_buf_error(&name))
            (void)!place_get(p, (char *)name.data, &e, NULL);
    }
}

void ckpt_zarrs_pin(struct ckpt_tree *t, uint32_t node)
{
    AUTO_PLACE struct place p = {0};
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    bool leaf = t->nodes[node].kind != CKPT_NODE_DIR;
    if (!leaf || place_init(&p, t, node) < 0 || p.base)
        return;
    if (t->nodes[node].kind == CKPT_NODE_ARRAY)
        pin_array(t, node, &p);
    else
        (void)!open_file(&p, &e, NULL);
}

/* --- what is told of an array besides its elements: its attributes --- */

void ckpt_zarrs_describe(struct ckpt_tree *t, uint32_t node, struct ckpt_buf *json)
{
    AUTO_PLACE struct place p = {0};
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    bool v3 = version_of(t, node) == 3, array = t->nodes[node].kind == CKPT_NODE_ARRAY;
    if (!array || place_init(&p, t, node) < 0 || place_get(&p, v3 ? "zarr.json" : ".zattrs", &e, NULL) < 0)
        return;
    CKPT_AUTOFREE char *text = ckpt_zarrs_attributes(&e, v3);
    if (text) {
        ckpt_buf_adds(json, ",\"attributes\":");
        ckpt_buf_adds(json, text);
    }
}
