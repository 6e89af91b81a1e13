/* SPDX-License-Identifier: Apache-2.0 */
/* The databases that an item's arrays are in. */
#include "core/format/orbax/loading.h"

#include "core/base/util.h"

#include <stdio.h>

#define MAX_SUBS 4096 /* databases below an item */

/* Is there anything whose bytes are not in the tree itself? */
static bool has_arrays(const struct ckpt_tree *t, uint32_t first)
{
    for (uint32_t node = first; node < t->count; node++) {
        const struct ckpt_node *n = &t->nodes[node];
        if (n->kind == CKPT_NODE_ARRAY || (n->kind == CKPT_NODE_VALUE && !n->text))
            return true;
    }
    return false;
}

/* Orbax makes no database for a tree of strings, None and empty containers, though _METADATA says that there is one. */
int ckpt_orbax_open_database(struct loading *l, uint32_t first)
{
    struct orbax_item *item = l->item;
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    int r = l->ocdbt == 0 ? -ENOENT : ckpt_orbax_open_in_item(l->o, item, "manifest.ocdbt", &f);
    if (r == -ENOENT) {
        bool is_missing = l->ocdbt == 1 && has_arrays(l->o->tree, first);
        return is_missing ? ckpt_fail(l->err, ENOENT, "manifest.ocdbt is missing") : 0;
    }
    if (r < 0)
        return ckpt_fail(l->err, -r, "manifest.ocdbt: %s", strerror(-r));
    return ckpt_ocdbt_open(l->o->tree->pins, item->dir, &item->db, l->err);
}

/* --- databases below the item --- */

/* The name of an array as the path of one; NULL: it is none, or has no directory. */
static const char *last_slash(const struct ckpt_buf *param)
{
    const char *path = (char *)param->data;
    return ckpt_path_safe(path, param->len) ? memrchr(path, '/', param->len) : NULL;
}

/* Is the array where arrays of this item usually are? */
static bool is_in_place(struct loading *l, const char *param)
{
    CKPT_AUTOFREE char *key = NULL;
    CKPT_AUTOEXTENT struct ckpt_extent e = {0};
    struct ckpt_stat st;
    if (asprintf(&key, "%s/.zarray", param) < 0)
        return false;
    if (l->item->db)
        return ckpt_ocdbt_get(l->item->db, key, strlen(key), &e, NULL) == 0;
    CKPT_AUTOFREE char *path = ckpt_orbax_path(l->item, key);
    return path && ckpt_backend_stat(ckpt_pins_dir(l->o->tree->pins), path, &st) == 0;
}

/* Where the first is whose directory is not before this one. */
static unsigned place_of_sub(const struct orbax_item *item, const char *dir, size_t len)
{
    unsigned low = 0, high = item->sub_count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        const char *have = item->subs[middle].dir;
        int c = strncmp(have, dir, len);
        bool before = c < 0; /* one that is longer comes after it */
        low = before ? middle + 1 : low;
        high = before ? high : middle;
    }
    return low;
}

static bool is_sub(const struct orbax_item *item, unsigned at, const char *dir, size_t len)
{
    return at < item->sub_count && strlen(item->subs[at].dir) == len && !memcmp(item->subs[at].dir, dir, len);
}

const struct orbax_sub *ckpt_orbax_find_sub(const struct orbax_item *item, const char *dir, size_t len)
{
    unsigned at = place_of_sub(item, dir, len);
    return is_sub(item, at, dir, len) ? &item->subs[at] : NULL;
}

static int add_sub(struct loading *l, const char *dir, size_t len)
{
    struct orbax_item *item = l->item;
    unsigned at = place_of_sub(item, dir, len);
    CKPT_AUTOFILE struct ckpt_file *f = NULL;
    CKPT_AUTOFREE char *name = strndup(dir, len);
    CKPT_AUTOFREE char *path = name ? ckpt_orbax_path(item, name) : NULL;
    CKPT_AUTOFREE char *manifest = NULL;
    if (!path || asprintf(&manifest, "%s/manifest.ocdbt", path) < 0)
        return ckpt_no_memory(l->err);
    if (is_sub(item, at, dir, len))
        return 0;
    if (item->sub_count == MAX_SUBS || ckpt_pins_open(l->o->tree->pins, manifest, &f) < 0)
        return 0;
    struct orbax_sub *subs = realloc(item->subs, (item->sub_count + 1) * sizeof *subs);
    if (!subs)
        return ckpt_no_memory(l->err);
    item->subs = subs;
    struct ckpt_ocdbt *db;
    int r = ckpt_ocdbt_open(l->o->tree->pins, path, &db, l->err);
    if (r < 0)
        return ckpt_fail_in(l->err, -r, "%s", name);
    memmove(subs + at + 1, subs + at, (item->sub_count - at) * sizeof *subs);
    subs[at] = (struct orbax_sub){CKPT_STEAL(name), db};
    item->sub_count++;
    return 0;
}

int ckpt_orbax_open_subs(struct loading *l, uint32_t first)
{
    struct ckpt_tree *t = l->o->tree;
    CKPT_AUTOBUF struct ckpt_buf param = CKPT_BUF_INIT;
    bool asked = false;
    for (uint32_t node = first; node < t->count; node++) {
        if (!ckpt_orbax_is_apart(t, node))
            continue;
        param.len = 0;
        ckpt_orbax_param(t, node, &param);
        ckpt_buf_addc(&param, 0);
        if (ckpt_buf_error(&param))
            return ckpt_no_memory(l->err);
        param.len--;
        const char *name = (char *)param.data, *slash = last_slash(&param);
        if (!slash)
            continue;
        if (!asked && is_in_place(l, name))
            return 0;
        asked = true;
        int r = add_sub(l, name, (size_t)(slash - name));
        if (r < 0)
            return r;
    }
    return 0;
}

bool ckpt_orbax_item_database(const struct orbax_item *item, unsigned i, struct ckpt_ocdbt **ret)
{
    if (i > item->sub_count)
        return false;
    *ret = i ? item->subs[i - 1].db : item->db;
    return true;
}

void ckpt_orbax_item_clear(struct orbax_item *item)
{
    ckpt_ocdbt_close(item->db);
    for (unsigned i = 0; i < item->sub_count; i++) {
        ckpt_ocdbt_close(item->subs[i].db);
        free(item->subs[i].dir);
    }
    free(item->subs);
    ckpt_flax_state_free(item->aggregate);
    free(item->dir);
}
