/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/pointers.h"

#include "core/base/path.h"
#include "core/base/util.h"

#define MAX_DEPTH 512

struct search {
    struct ckpt_source *src;
    uint64_t dir;
    const char *path;
    unsigned depth;
    bool trees, in_tree;
    void (*visit)(void *arg, const char *path);
    void *arg;
};

static int search(struct search *s);

/* Leaves of a checkpoint that a pointer cannot be need not be looked up. */
static bool is_leaf(const struct search *s, const char *name)
{
    return s->in_tree && (ckpt_has_suffix(name, ".npy") || ckpt_has_suffix(name, ".json"));
}

static int look_at(void *arg, const struct ckpt_dirent *e)
{
    struct search *s = arg, below = *s;
    struct ckpt_attr at;
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    if (e->type == CKPT_LINK || (e->type == CKPT_FILE && is_leaf(s, e->name)))
        return 0;
    if (ckpt_lookup(s->src, s->dir, e->name, &at, NULL) < 0)
        return 0;
    CKPT_AUTOFREE char *path = ckpt_path_join(s->path, e->name);
    int r = path ? 0 : -ENOMEM;
    if (r == 0 && at.type == CKPT_FILE && ckpt_is_lfs_pointer(s->src, &at))
        s->visit(s->arg, path);
    if (r == 0 && at.type == CKPT_DIR && s->depth < MAX_DEPTH) {
        below.dir = at.id;
        below.path = path;
        below.depth++;
        bool enter = s->in_tree || s->trees || ckpt_describe(s->src, at.id, &meta, &len, NULL) == -ENODATA;
        r = enter ? search(&below) : 0;
    }
    ckpt_forget(s->src, at.id, 1);
    return r;
}

static int search(struct search *s)
{
    CKPT_AUTOFREE char *meta = NULL;
    size_t len;
    if (!s->in_tree && s->trees)
        s->in_tree = ckpt_describe(s->src, s->dir, &meta, &len, NULL) == 0;
    int r = fs_each_entry(s->src, s->dir, look_at, s, NULL);
    return r == -ENOMEM ? r : 0;
}

int fs_each_pointer(struct ckpt_source *src, uint64_t id, bool trees, void (*visit)(void *arg, const char *path),
                    void *arg)
{
    return search(&(struct search){src, id, "", 0, trees, false, visit, arg});
}
