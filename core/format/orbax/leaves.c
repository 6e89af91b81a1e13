/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leaves of Orbax trees. An array is a Zarr array whose keys are in the item's database, or files below the array's
 * own directory. Old items keep some of their leaves in a msgpack file: those are Flax's.
 */
#include "core/format/orbax/item.h"

#include "core/base/util.h"

#include <stdio.h>

#define MAX_ARRAY_METADATA ((size_t)4 << 20)
#define MAX_KEY_SHOWN      200   /* bytes, in messages */
#define LISTED_OBJECTS     4     /* of more than so many, the database lists all sizes in one walk */
#define PINNED_OBJECTS     65536 /* files that a look-up opens */

/* --- the store of an array's keys: the database, or files --- */

struct array_store {
    struct ckpt_tree *tree;
    struct orbax_item *item;
    struct ckpt_ocdbt *db; /* NULL: files */
    struct ckpt_buf key;   /* PARAM and a slash, where one belongs */
    size_t prefix;
};

static void store_clear(struct array_store *s)
{
    ckpt_buf_clear(&s->key);
}

#define AUTO_STORE __attribute__((cleanup(store_clear)))

/* How much of the array's name leads to its database. */
static size_t choose_database(struct array_store *s, const char *name, size_t len)
{
    const char *slash = s->item->sub_count ? memrchr(name, '/', len) : NULL;
    const struct orbax_sub *sub = slash ? ckpt_orbax_find_sub(s->item, name, (size_t)(slash - name)) : NULL;
    s->db = sub ? sub->db : s->item->db;
    return sub ? (size_t)(slash - name) + 1 : 0;
}

static int store_init(struct array_store *s, struct ckpt_tree *t, uint32_t node)
{
    CKPT_AUTOBUF struct ckpt_buf param = CKPT_BUF_INIT;
    *s = (struct array_store){.tree = t, .item = ckpt_orbax_item_of(t, node)};
    ckpt_orbax_param(t, node, &param);
    if (ckpt_buf_error(&param))
        return -ENOMEM;
    const char *name = param.len ? (char *)param.data : "";
    size_t skip = choose_database(s, name, param.len);
    if (!s->db && *s->item->dir) {
        ckpt_buf_adds(&s->key, s->item->dir);
        ckpt_buf_addc(&s->key, '/');
    }
    size_t before = s->key.len;
    ckpt_buf_add(&s->key, name + skip, param.len - skip);
    bool named = s->key.len > before;
    if (named && s->key.data[s->key.len - 1] != '/')
        ckpt_buf_addc(&s->key, '/');
    s->prefix = s->key.len;
    return ckpt_buf_error(&s->key);
}

/* The whole key of an object: NUL-terminated, the NUL not counted. */
static int store_set_key(struct array_store *s, const char *name)
{
    s->key.len = s->prefix;
    ckpt_buf_adds(&s->key, name);
    ckpt_buf_addc(&s->key, 0);
    if (ckpt_buf_error(&s->key))
        return -ENOMEM;
    s->key.len--;
    return 0;
}

static int store_get_file(struct array_store *s, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct ckpt_file *f;
    const char *path = (char *)s->key.data;
    int r = ckpt_pins_open(s->tree->pins, path, &f);
    if (r == -EUCLEAN)
        return ckpt_fail(err, EUCLEAN, "%.200s: not a path inside of the checkpoint", path);
    if (r == -ENOENT || r == -ENOTDIR)
        return -ENOENT;
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

static int store_get(void *arg, const char *name, struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct array_store *s = arg;
    if (store_set_key(s, name) < 0)
        return ckpt_fail(err, ENOMEM, "out of memory");
    if (s->db)
        return ckpt_ocdbt_get(s->db, s->key.data, s->key.len, ret, err);
    return store_get_file(s, ret, err);
}

/* Prefixes an error that has a text with the key. Returns r. */
static int store_fail_in(const struct array_store *s, int r, struct ckpt_err *err)
{
    int shown = (int)CKPT_MIN(s->key.len, (size_t)MAX_KEY_SHOWN);
    return ckpt_fail_in(err, -r, "%.*s", shown, (char *)s->key.data);
}

/* A file of the array is missing. Those of a database are open already, so nothing of it can vanish. */
static bool array_vanishes(struct orbax *o, const struct array_store *s)
{
    if (s->db)
        return false;
    CKPT_AUTOFREE char *dir = strndup((char *)s->key.data, s->prefix ? s->prefix - 1 : 0);
    bool named = dir && *dir;
    return ckpt_orbax_is_vanishing(o, named ? dir : NULL);
}

/* --- layouts --- */

/* Arrays that a msgpack file names may be of either version. */
static int find_metadata(struct array_store *s, int *ret_version, struct ckpt_extent *ret, struct ckpt_err *err)
{
    *ret_version = s->item->zarr3 ? 3 : 2;
    int r = store_get(s, s->item->zarr3 ? "zarr.json" : ".zarray", ret, err);
    bool other = r == -ENOENT && s->item->aggregate && !s->item->zarr3;
    if (!other || store_get(s, "zarr.json", ret, err) < 0)
        return r;
    *ret_version = 3;
    return 0;
}

/* The text of the array's metadata, to be freed. */
static int read_metadata(struct orbax *o, struct array_store *s, int *ret_version, uint8_t **ret, size_t *ret_len,
                         struct ckpt_err *err)
{
    const char *name = s->item->zarr3 ? "zarr.json" : ".zarray";
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    int r = find_metadata(s, ret_version, &e, err);
    int shown = (int)CKPT_MIN(s->key.len, (size_t)MAX_KEY_SHOWN);
    if (r == -ENOENT && array_vanishes(o, s))
        return ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    if (r == -ENOENT)
        return ckpt_fail(err, EUCLEAN, "%.*s: its %s is missing", shown, (char *)s->key.data, name);
    if (r < 0)
        return r;
    if (e.len > MAX_ARRAY_METADATA)
        return ckpt_fail(err, EUCLEAN, "%s is larger than %zu bytes", name, MAX_ARRAY_METADATA);
    CKPT_AUTOFREE uint8_t *text = malloc(e.len + 1);
    if (!text)
        return -ENOMEM;
    r = ckpt_extent_read(&e, text, e.len, 0);
    if (r < 0)
        return ckpt_fail(err, -r, "%.*s: %s", shown, (char *)s->key.data, strerror(-r));
    *ret = CKPT_STEAL(text);
    *ret_len = e.len;
    return 0;
}

int ckpt_orbax_layout(struct ckpt_tree *t, uint32_t node, struct ckpt_array **ret, struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_layout(ckpt_orbax_item_of(t, node)->aggregate, t, node, ret, err);
    AUTO_STORE struct array_store s = {0};
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len = 0;
    int version, r = store_init(&s, t, node);
    if (r < 0)
        return r;
    r = read_metadata(o, &s, &version, &text, &len, err);
    if (r < 0)
        return r;
    r = ckpt_zarr_layouts_get(o->layouts, text, len, version, ret, err);
    return r < 0 ? store_fail_in(&s, r, err) : 0;
}

/* --- bytes --- */

int ckpt_orbax_chunk(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t index,
                     struct ckpt_extent *ret, struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_elements(ckpt_orbax_item_of(t, node)->aggregate, t, node, ret, err);
    AUTO_STORE struct array_store s = {0};
    int r = store_init(&s, t, node);
    if (r < 0)
        return r;
    struct ckpt_zarr_store store = {
        .get = store_get,
        .arg = &s,
        .fill_missing = s.item->fill_missing,
        .cache = o->shards,
        .array = node,
    };
    r = ckpt_zarr_chunk(a, index, &store, ret, err);
    s.key.len = s.prefix;
    if (r == -ENODATA && array_vanishes(o, &s))
        return ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    return r < 0 ? store_fail_in(&s, r, err) : r;
}

/* Bytes of one object; 0 where there is none. */
static int object_length(void *arg, const char *name, uint64_t *ret, struct ckpt_err *err)
{
    struct array_store *s = arg;
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    struct ckpt_stat st;
    *ret = 0;
    if (s->db) {
        int r = store_get(s, name, &e, err);
        *ret = e.len;
        return r == -ENOENT ? 0 : r;
    }
    int r = store_set_key(s, name);
    if (r < 0)
        return ckpt_buf_error(&s->key);
    if (ckpt_backend_stat(ckpt_pins_dir(s->tree->pins), (char *)s->key.data, &st) == 0) /* without opening it */
        *ret = st.size;
    return 0;
}

int ckpt_orbax_stored(struct ckpt_tree *t, uint32_t node, const struct ckpt_array *a, uint64_t *ret,
                      struct ckpt_err *err)
{
    bool aggregated = ckpt_flax_state_has(t, node);
    *ret = aggregated ? a->nbytes : 0;
    if (aggregated || a->unsupported)
        return 0;
    AUTO_STORE struct array_store s = {0};
    int r = store_init(&s, t, node);
    if (r < 0)
        return r;
    uint64_t objects = ckpt_zarr_objects(a);
    if (s.db && objects > LISTED_OBJECTS)
        return ckpt_ocdbt_each(s.db, s.key.data, s.key.len, ckpt_zarr_add_length, ret, err);
    return ckpt_zarr_stored(a, object_length, &s, ret, err);
}

int ckpt_orbax_blob(struct ckpt_tree *t, uint32_t node, struct ckpt_extent *ret, struct ckpt_err *err)
{
    size_t len;
    const char *path = ckpt_tree_text(t, t->nodes[node].ref, &len);
    struct ckpt_file *f;
    if (ckpt_flax_state_has(t, node))
        return ckpt_flax_state_blob(ckpt_orbax_item_of(t, node)->aggregate, t, node, ret, err);
    int r = ckpt_pins_open(t->pins, path, &f);
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", path, strerror(-r));
    *ret = (struct ckpt_extent){.file = f, .len = f->st.size};
    return 0;
}

/* --- what a look-up keeps open --- */

static void pin_blob(struct ckpt_tree *t, uint32_t node)
{
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    (void)!ckpt_orbax_blob(t, node, &e, NULL);
}

static void pin_array(struct ckpt_tree *t, uint32_t node)
{
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    AUTO_STORE struct array_store s = {0};
    CKPT_AUTOBUF struct ckpt_buf name = CKPT_BUF_INIT;
    if (ckpt_tree_layout(t, node, &a, NULL) < 0)
        return;
    if (ckpt_flax_state_has(t, node) || a->unsupported || store_init(&s, t, node) < 0)
        return;
    uint64_t objects = CKPT_MIN(ckpt_zarr_objects(a), (uint64_t)PINNED_OBJECTS);
    for (uint64_t i = 0; i < objects; i++) {
        CKPT_AUTOEXTENT struct ckpt_extent e = {0};
        name.len = 0;
        ckpt_zarr_object_key(a, i, &name);
        if (!ckpt_buf_error(&name))
            (void)!store_get(&s, (char *)name.data, &e, NULL);
    }
}

/* Files of plain arrays are pinned when a leaf is looked up: a checkpoint may have a great many. Those of a database
 * are few, and were pinned at the opening. */
void ckpt_orbax_pin(struct ckpt_tree *t, uint32_t node)
{
    const struct ckpt_node *n = &t->nodes[node];
    if (n->kind == CKPT_NODE_BLOB) {
        pin_blob(t, node);
        return;
    }
    bool in_tree = n->kind == CKPT_NODE_DIR || n->text;
    if (!in_tree && !ckpt_orbax_item_of(t, node)->db)
        pin_array(t, node);
}
