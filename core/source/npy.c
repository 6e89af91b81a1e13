/* SPDX-License-Identifier: Apache-2.0 */
/* An .npy file of a directory as a tree of one array, for its views and attributes. */
#include "core/base/util.h"
#include "core/source/kind.h"

#include <stdio.h>

const struct ckpt_entry *ckpt_source_npy_of_key(const struct ckpt_listing *l, const char *name, size_t len,
                                                char file[256])
{
    if (!len || len > 255 - strlen(".npy"))
        return NULL;
    memcpy(file, name, len);
    strcpy(file + len, ".npy");
    const struct ckpt_entry *e = ckpt_listing_find(l, file);
    return e && e->kind == CKPT_ENTRY_FILE && e->format ? e : NULL;
}

int ckpt_source_take_npy(struct ckpt_source *src, struct node *dir, const char *file, const struct ckpt_entry *e,
                         struct node **ret)
{
    char key[257];
    snprintf(key, sizeof key, "%s/", file);
    return ckpt_node_take(src, dir, file, key, NODE_TREE, &e->st, e, NULL, ret);
}

int ckpt_source_npy(struct ckpt_source *src, struct node *file, struct target *ret, struct ckpt_err *err)
{
    struct ckpt_entry e = {.format = file->format};
    struct target dir;
    struct node *node;
    uint32_t top;
    if (file->kind != NODE_FILE || !file->format)
        return -ENODATA;
    int r = ckpt_source_target(src, file->parent, &dir, err);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(src->backend, file->path, &e.st);
    if (r == 0)
        r = ckpt_source_take_npy(src, dir.node, file->name, &e, &node);
    ckpt_source_done(src, &dir);
    if (r < 0)
        return r;
    uint64_t id = node->id;
    r = ckpt_source_target(src, id, ret, err);
    if (r == 0) {
        r = ckpt_source_enter(src, ret, &top, err);
        if (r < 0)
            ckpt_source_done(src, ret);
    }
    ckpt_forget(src, id, 1);
    return r;
}
