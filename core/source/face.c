/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files face, MOUNT/.files: the source's own directories and files, as other libraries expect them. What belongs to a store, and what would lead
 * outside, is not shown. Steps of a store are not there yet.
 */
#include "core/base/util.h"
#include "core/format/store/store_format.h"
#include "core/source/source.h"

#include <stdio.h>

/* A source that is one file has that one file alone. */
static bool is_shown(const struct ckpt_source *src, const struct node *dir, const char *name)
{
    return strcmp(name, CKPT_STORE_DIR) != 0 && (!src->file || *dir->path || !strcmp(name, src->file));
}

int source_face_lookup(struct ckpt_source *src, struct node *dir, const char *name, struct node **ret)
{
    char path[4096], link[4096];
    struct ckpt_stat st;
    if (!is_shown(src, dir, name))
        return -ENOENT;
    if (snprintf(path, sizeof path, "%s%s%s", dir->path, *dir->path ? "/" : "", name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    bool is_link = ckpt_backend_readlink(src->backend, path, link, sizeof link) == 0;
    if (is_link && source_link_target(src, path, link, sizeof link) < 0)
        return -ENOENT;
    int r = ckpt_backend_stat(src->backend, path, &st);
    if (r == 0 && !is_link && st.type != CKPT_FT_DIR && st.type != CKPT_FT_FILE)
        r = -ENOENT;
    if (r < 0)
        return r;
    enum node_kind kind = is_link ? NODE_LINK : st.type == CKPT_FT_DIR ? NODE_FACE : NODE_FILE;
    return source_take_node(src, dir, name, name, kind, &st, NULL, is_link ? link : NULL, ret);
}

struct listing {
    struct ckpt_source *src;
    struct node *dir;
    int (*visit)(void *arg, const char *name, uint64_t ino, enum ckpt_type type);
    void *arg;
};

static int visit(void *arg, const char *name, enum ckpt_ftype type)
{
    struct listing *l = arg;
    char path[4096], link[4096];
    if (!is_shown(l->src, l->dir, name) || type == CKPT_FT_OTHER || strlen(name) > 255)
        return 0;
    if (type == CKPT_FT_LINK && (snprintf(path, sizeof path, "%s%s%s", l->dir->path, *l->dir->path ? "/" : "", name) >= (int)sizeof path ||
                                 source_link_target(l->src, path, link, sizeof link) < 0))
        return 0;
    return l->visit(l->arg, name, 0, type == CKPT_FT_DIR ? CKPT_DIR : type == CKPT_FT_LINK ? CKPT_LINK : CKPT_FILE);
}

int source_face_each(struct ckpt_source *src, struct node *dir, int (*each)(void *arg, const char *name, uint64_t ino, enum ckpt_type type), void *arg)
{
    struct listing l = {src, dir, each, arg};
    return ckpt_backend_list(src->backend, dir->path, visit, &l);
}
