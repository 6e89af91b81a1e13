/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files and directories of an item are Orbax's own. The rest is somebody else's, and is shown. Arrays that are
 * directories have names that the tree tells, so these are known by their paths' hashes: there may be a million.
 */
#include "core/format/orbax/item.h"

#include <stdio.h>

#include "core/base/util.h"

#define LEADS ((uint64_t)0x9e3779b97f4a7c15) /* makes another hash of the path of what leads to an array */

static bool is_among(const char *name, const char *const *list)
{
    while (*list && strcmp(*list, name))
        list++;
    return *list;
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

bool ckpt_orbax_own_file(const char *name)
{
    static const char *const own[] = {"commit_success.txt", "_CHECKPOINT_METADATA", "orbax.checkpoint", "_sharding",
                                      NULL};
    return is_among(name, own);
}

static int add_path(struct orbax_own *own, const char *path, size_t len)
{
    while (len && path[len - 1] == '/')
        len--;
    int r = ckpt_name_set_add(&own->paths, ckpt_name_hash(path, len));
    for (size_t i = 0; i < len && r == 0; i++)
        if (path[i] == '/')
            r = ckpt_name_set_add(&own->paths, ckpt_name_hash(path, i) ^ LEADS);
    return r;
}

/* Is it an array, or a number in one, whose bytes are not in the tree or in the msgpack file? Old versions made
 * directories for strings, too. */
static bool is_stored_apart(const struct ckpt_tree *t, uint32_t node)
{
    const struct ckpt_node *n = &t->nodes[node];
    size_t len;
    bool is_elsewhere = n->kind == CKPT_NODE_VALUE && *ckpt_tree_text(t, n->ref, &len) == 'E';
    bool number = n->kind == CKPT_NODE_VALUE && (!n->text || is_elsewhere);
    return (n->kind == CKPT_NODE_ARRAY || number) && !ckpt_flax_state_has(t, node);
}

static int add_arrays(struct orbax_own *own, const struct ckpt_tree *t, uint32_t first)
{
    CKPT_AUTOBUF struct ckpt_buf param = CKPT_BUF_INIT;
    int r = 0;
    for (uint32_t node = first; node < t->count && r == 0; node++) {
        if (!is_stored_apart(t, node))
            continue;
        param.len = 0;
        ckpt_orbax_param(t, node, &param);
        r = ckpt_buf_error(&param);
        own->bare |= !param.len;
        if (r == 0 && param.len)
            r = add_path(own, (char *)param.data, param.len);
    }
    return r;
}

int ckpt_orbax_own_init(struct orbax_own *own, const struct orbax *o, const struct orbax_item *item, uint32_t first)
{
    *own = (struct orbax_own){.item = item};
    bool apart = !item->db || item->has_aggregate; /* old versions made empty ones beside a database */
    int r = apart ? add_arrays(own, o->tree, first) : 0;
    for (unsigned i = 0; i < item->sub_count && r == 0; i++) {
        CKPT_AUTOFREE char *below = NULL;
        if (asprintf(&below, "%s/d", item->subs[i].dir) < 0)
            return -ENOMEM;
        r = add_path(own, below, strlen(below));
    }
    ckpt_name_set_sort(&own->paths);
    return r;
}

void ckpt_orbax_own_clear(struct orbax_own *own)
{
    ckpt_name_set_clear(&own->paths);
}

/* Right in the item's directory, or in one with a database of its own. */
static bool is_top(const struct orbax_own *own, const char *path, const char *name)
{
    size_t dir = (size_t)(name - path);
    if (!dir)
        return true;
    return ckpt_orbax_find_sub(own->item, path, dir - 1);
}

static bool is_own_dir(const struct orbax_own *own, const char *name)
{
    bool has_database = own->item->db || own->item->sub_count;
    if (has_database && !strcmp(name, "d"))
        return true;
    if (own->bare && !own->item->db && !strcmp(name, "c"))
        return true;
    return begins(name, "ocdbt.process_") || !strcmp(name, "array_metadatas");
}

static bool is_own_file(const struct orbax_own *own, const char *name)
{
    static const char *const files[] = {"_METADATA", "_strings.json", "manifest.ocdbt", NULL};
    static const char numbered[] = "manifest.";
    if (ckpt_orbax_own_file(name) || is_among(name, files))
        return true;
    if (!strcmp(name, "checkpoint"))
        return own->item->has_aggregate;
    if (own->item->db && begins(name, numbered)) /* of a numbered manifest */
        return strspn(name + strlen(numbered), "0123456789abcdef") == 16 && strlen(name) == strlen(numbered) + 16;
    if (!own->bare || own->item->db)
        return false;
    return !strcmp(name, ".zarray") || !strcmp(name, "zarr.json") || strspn(name, "0123456789.") == strlen(name);
}

enum orbax_whose ckpt_orbax_own_whose(const struct orbax_own *own, const char *path, enum ckpt_ftype type)
{
    const char *in_item = path + strlen(own->item->dir) + (*own->item->dir != 0);
    const char *slash = strrchr(in_item, '/'), *name = slash ? slash + 1 : in_item;
    bool dir = type == CKPT_FT_DIR;
    if (is_top(own, in_item, name) && (dir ? is_own_dir(own, name) : is_own_file(own, name)))
        return ORBAX_OWN;
    uint64_t hash = ckpt_name_hash(in_item, strlen(in_item));
    if (dir && ckpt_name_set_has(&own->paths, hash))
        return ORBAX_OWN;
    return dir && ckpt_name_set_has(&own->paths, hash ^ LEADS) ? ORBAX_LEADS : ORBAX_USERS;
}
