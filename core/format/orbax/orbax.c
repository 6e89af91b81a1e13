/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of Orbax items. The items of a step are the top's containers, but for a lone `default`, whose tree is the
 * top's own. An item of one JSON file is the blob ITEM.json.
 */
#include "core/format/orbax/orbax.h"

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/io/json.h"
#include "core/format/orbax/item.h"

#include <stdio.h>

#define MAX_ENTRIES       4096 /* of a directory; what comes after is not looked at */
#define MAX_STEP_METADATA ((size_t)16 << 20)
#define MAX_GROUP_DEPTH   4 /* of groups of items within each other */

static const struct ckpt_tree_ops orbax_ops;

/* --- what is in a directory --- */

struct names {
    char **items;
    size_t count;
};

struct entries {
    struct names dirs, files;
};

static int names_add(struct names *n, const char *name)
{
    char **grown = realloc(n->items, (n->count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    n->items = grown;
    n->items[n->count] = strdup(name);
    return n->items[n->count++] ? 0 : -ENOMEM;
}

static void names_clear(struct names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->items[i]);
    free(n->items);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_sort(struct names *n)
{
    if (n->count)
        qsort(n->items, n->count, sizeof *n->items, compare_names);
}

static int entries_add(void *arg, const char *name, enum ckpt_ftype type)
{
    struct entries *e = arg;
    struct names *to = type == CKPT_FT_DIR ? &e->dirs : &e->files;
    size_t len;
    if (ckpt_orbax_unfinished_name(name, &len) || to->count >= MAX_ENTRIES)
        return 0;
    return names_add(to, name);
}

static void entries_clear(struct entries *e)
{
    names_clear(&e->dirs);
    names_clear(&e->files);
}

#define AUTO_ENTRIES __attribute__((cleanup(entries_clear)))

static void entries_sort(struct entries *e)
{
    names_sort(&e->dirs);
    names_sort(&e->files);
}

static bool is_orbax_file(const char *name)
{
    static const char *const own[] = {"commit_success.txt", "_CHECKPOINT_METADATA", "orbax.checkpoint", "_sharding"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i]))
            return true;
    return false;
}

/* --- items, and what else a step holds --- */

static int add_item(struct orbax *o, const char *dir, uint32_t root, struct ckpt_err *err)
{
    if (o->count == ORBAX_MAX_ITEMS)
        return ckpt_fail(err, EUCLEAN, "more than %d items", ORBAX_MAX_ITEMS);
    struct orbax_item *item = &o->items[o->count];
    *item = (struct orbax_item){.dir = strdup(dir), .root = root};
    if (!item->dir)
        return ckpt_fail(err, ENOMEM, "out of memory");
    o->count++;
    o->tree->nodes[root].mark = (uint8_t)o->count;
    return ckpt_orbax_item_load(o, item, err);
}

static int add_blob(struct orbax *o, uint32_t parent, const char *name, const char *path, struct ckpt_err *err)
{
    uint32_t node, string;
    int r = ckpt_tree_add(o->tree, parent, name, strlen(name), false, CKPT_NODE_BLOB, &node, err);
    if (r < 0)
        return r;
    r = ckpt_tree_string(o->tree, path, strlen(path), &string);
    if (r < 0)
        return r;
    o->tree->nodes[node].ref = string;
    return 0;
}

/* A directory of a step. */
struct step_dir {
    const char *path, *name;
    uint32_t parent;
    unsigned depth;
};

static int add_dir(struct orbax *o, const struct step_dir *d, struct ckpt_err *err);

/* A group of items, or another library's files. */
static int add_group(struct orbax *o, const struct step_dir *d, const struct entries *e, struct ckpt_err *err)
{
    char path[1200];
    uint32_t node;
    int r = ckpt_tree_add(o->tree, d->parent, d->name, strlen(d->name), false, CKPT_NODE_DIR, &node, err);
    for (size_t i = 0; i < e->dirs.count && r == 0; i++) {
        const char *name = e->dirs.items[i];
        bool fits = snprintf(path, sizeof path, "%s/%s", d->path, name) < (int)sizeof path;
        if (fits)
            r = add_dir(o, &(struct step_dir){path, name, node, d->depth + 1}, err);
    }
    for (size_t i = 0; i < e->files.count && r == 0; i++) {
        const char *name = e->files.items[i];
        bool fits = snprintf(path, sizeof path, "%s/%s", d->path, name) < (int)sizeof path;
        if (fits && !is_orbax_file(name))
            r = add_blob(o, node, name, path, err);
    }
    return r;
}

static int add_json_item(struct orbax *o, const struct step_dir *d, const char *file, struct ckpt_err *err)
{
    char path[1200], blob[300];
    snprintf(blob, sizeof blob, "%s.json", d->name);
    snprintf(path, sizeof path, "%s/%s", d->path, file);
    return add_blob(o, d->parent, blob, path, err);
}

/* The number of files that are not Orbax's own, and the last of them. */
static size_t count_foreign(const struct names *files, const char **ret_last)
{
    size_t count = 0;
    for (size_t i = 0; i < files->count; i++)
        if (!is_orbax_file(files->items[i])) {
            *ret_last = files->items[i];
            count++;
        }
    return count;
}

/* A directory that is no pytree: a JSON item, a group of items, or another library's files. */
static int add_other(struct orbax *o, const struct step_dir *d, struct ckpt_err *err)
{
    AUTO_ENTRIES struct entries e = {0};
    int r = ckpt_backend_list(ckpt_pins_dir(o->tree->pins), d->path, entries_add, &e);
    /* The remains of a database: what was an item lost the files that say so. */
    for (size_t i = 0; i < e.dirs.count; i++)
        o->incomplete |= !strncmp(e.dirs.items[i], "ocdbt.process_", strlen("ocdbt.process_"));
    if (r < 0)
        return ckpt_fail(err, -r, "%s: %s", d->path, strerror(-r));
    const char *last = NULL;
    size_t files = count_foreign(&e.files, &last);
    if (files == 1 && !e.dirs.count)
        return add_json_item(o, d, last, err);
    bool empty = !files && !e.dirs.count;
    if (empty || d->depth >= MAX_GROUP_DEPTH) { /* an item that wrote nothing, or of which little is left */
        o->incomplete = true;
        return 0;
    }
    entries_sort(&e);
    return add_group(o, d, &e, err);
}

static int add_dir(struct orbax *o, const struct step_dir *d, struct ckpt_err *err)
{
    uint32_t node;
    if (!ckpt_orbax_is_item(ckpt_pins_dir(o->tree->pins), d->path))
        return add_other(o, d, err);
    int r = ckpt_tree_add(o->tree, d->parent, d->name, strlen(d->name), false, CKPT_NODE_DIR, &node, err);
    return r < 0 ? r : add_item(o, d->path, node, err);
}

/* --- a step --- */

/* `_CHECKPOINT_METADATA`, to be deleted; false: it cannot be read. *ret is NULL where it is no JSON. */
static bool read_step_metadata(struct orbax *o, cJSON **ret)
{
    CKPT_AUTOFREE uint8_t *text = NULL;
    size_t len;
    if (ckpt_backend_read_all(ckpt_pins_dir(o->tree->pins), "_CHECKPOINT_METADATA", MAX_STEP_METADATA, &text, &len) < 0)
        return false;
    *ret = ckpt_json_parse((char *)text, len);
    return true;
}

/* Are the items that `_CHECKPOINT_METADATA` names all there? */
static void check_handlers(struct orbax *o)
{
    CKPT_AUTOCJSON cJSON *root = NULL;
    struct ckpt_stat st;
    if (!read_step_metadata(o, &root)) {
        o->incomplete |= !o->count; /* no item either */
        return;
    }
    const cJSON *handlers = ckpt_json_get(root, "item_handlers"), *e;
    if (!cJSON_IsObject(handlers))
        return;
    cJSON_ArrayForEach(e, handlers)
    {
        bool safe = ckpt_path_safe(e->string, strlen(e->string));
        if (!safe || ckpt_backend_stat(ckpt_pins_dir(o->tree->pins), e->string, &st) < 0)
            o->incomplete = true;
    }
}

static void load_custom_metadata(struct orbax *o)
{
    CKPT_AUTOCJSON cJSON *root = NULL;
    if (o->tree->metadata || !read_step_metadata(o, &root))
        return;
    const cJSON *custom = ckpt_json_get(root, "custom_metadata");
    if (!custom)
        custom = ckpt_json_get(root, "custom");
    if (cJSON_IsObject(custom) && custom->child)
        o->tree->metadata = cJSON_PrintUnformatted(custom);
}

/* Does a directory stand beside `default` as another tree? A group of items counts as one. */
static bool is_tree_beside(struct orbax *o, const char *name)
{
    struct ckpt_backend *dir = ckpt_pins_dir(o->tree->pins);
    AUTO_ENTRIES struct entries sub = {0};
    if (ckpt_orbax_is_item(dir, name))
        return true;
    return ckpt_backend_list(dir, name, entries_add, &sub) == 0 && sub.dirs.count;
}

static int load_step(struct orbax *o, struct ckpt_err *err)
{
    struct ckpt_backend *dir = ckpt_pins_dir(o->tree->pins);
    AUTO_ENTRIES struct entries e = {0};
    int r = ckpt_backend_list(dir, "", entries_add, &e);
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    entries_sort(&e);
    const struct names *dirs = &e.dirs;
    size_t lone = SIZE_MAX; /* `default`, which is left out of paths unless another tree is beside it */
    bool others = false;
    for (size_t i = 0; i < dirs->count; i++) {
        if (!strcmp(dirs->items[i], "default") && ckpt_orbax_is_item(dir, "default"))
            lone = i;
        else if (strcmp(dirs->items[i], "descriptor"))
            others |= is_tree_beside(o, dirs->items[i]);
    }
    bool at_top = lone != SIZE_MAX && !others;
    /* Items come before the leaves of `default`: of two equal names the item's stays. */
    for (size_t i = 0; i < dirs->count && r == 0; i++) {
        const char *name = dirs->items[i];
        bool skipped = !strcmp(name, "descriptor") || (at_top && i == lone);
        if (!skipped)
            r = add_dir(o, &(struct step_dir){name, name, 0, 0}, err);
    }
    if (r == 0 && at_top)
        r = add_item(o, "default", 0, err);
    check_handlers(o);
    return r;
}

/* --- opening --- */

/* A tree without nodes yet. */
static int orbax_tree_new(struct ckpt_pins *pins, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t;
    int r = ckpt_tree_new(&orbax_ops, pins, &t);
    if (r < 0)
        return ckpt_fail(err, -r, "out of memory");
    struct orbax *o = calloc(1, sizeof *o);
    if (!o) {
        ckpt_tree_unref(t);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    t->priv = o;
    o->tree = t;
    pthread_mutex_init(&o->lock, NULL);
    o->items = calloc(ORBAX_MAX_ITEMS, sizeof *o->items);
    o->shards = ckpt_zarr_cache_new();
    if (!o->items || !o->shards) {
        ckpt_tree_unref(t);
        return ckpt_fail(err, ENOMEM, "out of memory");
    }
    *ret = t;
    return 0;
}

/* Keeps the files of the databases open. True: one of them is missing. */
static bool pin_databases(struct orbax *o)
{
    bool missing = false;
    for (unsigned i = 0; i < o->count; i++) {
        struct ckpt_err err = {0};
        int r = o->items[i].db ? ckpt_ocdbt_pin(o->items[i].db, &err) : 0;
        if (r < 0) /* the leaves that it concerns will say so */
            ckpt_log(CKPT_LOG_DEBUG, "%s", err.text);
        missing |= r == -ENOENT;
    }
    return missing;
}

static int load_tree(struct orbax *o, struct ckpt_err *err)
{
    struct ckpt_tree *t = o->tree;
    bool single = ckpt_orbax_is_item(ckpt_pins_dir(t->pins), "");
    int r = single ? add_item(o, "", 0, err) : load_step(o, err);
    bool empty = t->nodes[0].first == CKPT_NO_NODE; /* it may be the last moment of a deletion */
    bool missing = r == -ENOENT || o->incomplete || o->guessed || empty;
    if (r == 0)
        missing |= pin_databases(o);
    if (missing && ckpt_orbax_is_vanishing(o, NULL))
        return ckpt_fail(err, ENOENT, "the checkpoint is being deleted");
    if (r == -ENOENT) { /* nobody deletes it: it is damaged, and the text says where */
        if (err)
            err->code = EUCLEAN;
        return -EUCLEAN;
    }
    if (r < 0)
        return r;
    atomic_store(&o->loaded_print, ckpt_orbax_fingerprint(o, NULL, NULL));
    load_custom_metadata(o);
    return ckpt_tree_finish(t, err);
}

static int orbax_open(const struct ckpt_opening *opening, struct ckpt_tree **ret, struct ckpt_err *err)
{
    struct ckpt_tree *t = NULL;
    int r = orbax_tree_new(opening->pins, &t, err);
    if (r < 0)
        return r;
    return ckpt_tree_give(t, load_tree(t->priv, err), ret);
}

/* --- the open tree --- */

static int orbax_verify(struct ckpt_tree *t, void (*progress)(void *arg, uint64_t bytes), void *arg,
                        struct ckpt_err *err)
{
    struct orbax *o = t->priv;
    for (unsigned i = 0; i < o->count; i++) {
        int r = o->items[i].db ? ckpt_ocdbt_verify(o->items[i].db, progress, arg, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static size_t orbax_memory(const struct ckpt_tree *t)
{
    const struct orbax *o = t->priv;
    size_t n = sizeof *o + ORBAX_MAX_ITEMS * sizeof *o->items;
    for (unsigned i = 0; i < o->count; i++) {
        const struct orbax_item *item = &o->items[i];
        if (item->db)
            n += ckpt_ocdbt_memory(item->db);
        if (item->aggregate)
            n += ckpt_flax_state_memory(item->aggregate);
    }
    return n;
}

static void orbax_close(struct ckpt_tree *t)
{
    struct orbax *o = t->priv;
    for (unsigned i = 0; i < o->count; i++) {
        ckpt_ocdbt_close(o->items[i].db);
        ckpt_flax_state_free(o->items[i].aggregate);
        free(o->items[i].dir);
    }
    for (unsigned i = 0; i < ORBAX_LAYOUT_BUCKETS; i++)
        for (struct orbax_layout *l = o->layouts[i], *next; l; l = next) {
            next = l->next;
            ckpt_array_unref(l->array);
            free(l);
        }
    ckpt_zarr_cache_free(o->shards);
    pthread_mutex_destroy(&o->lock);
    free(o->items);
    free(o);
}

static const struct ckpt_tree_ops orbax_ops = {
    .name = "orbax",
    .layout = ckpt_orbax_layout,
    .chunk = ckpt_orbax_chunk,
    .stored = ckpt_orbax_stored,
    .blob = ckpt_orbax_blob,
    .rights = ckpt_orbax_rights,
    .pin = ckpt_orbax_pin,
    .describe = ckpt_orbax_describe,
    .verify = orbax_verify,
    .memory = orbax_memory,
    .close = orbax_close,
};

const struct ckpt_format ckpt_orbax_format = {
    .name = "orbax",
    .probe = ckpt_orbax_probe,
    .open = orbax_open,
    .unfinished_name = ckpt_orbax_unfinished_name,
};
