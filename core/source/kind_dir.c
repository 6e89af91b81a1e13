/* SPDX-License-Identifier: Apache-2.0 */
/* A directory of the source, by its listing. A native root that is written has its staged steps besides. */
#include "core/base/util.h"
#include "core/source/kinds.h"

#include <stdio.h>

/* --- names --- */

/* A link that a root has by its listing. The inode is not the directory's own. */
static int take_root_link(struct ckpt_source *src, struct node *dir, const char *name, const struct ckpt_stat *of,
                          const char *target, struct node **ret)
{
    struct ckpt_stat st = *of;
    st.ino = ~st.ino;
    return ckpt_node_take(src, dir, name, name, NODE_LINK, &st, NULL, target, ret);
}

static int lookup_entry(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                        struct node **ret)
{
    static const enum node_kind kinds[] = {[CKPT_ENTRY_FILE] = NODE_FILE,
                                           [CKPT_ENTRY_DIR] = NODE_DIR,
                                           [CKPT_ENTRY_TREE] = NODE_TREE,
                                           [CKPT_ENTRY_LINK] = NODE_LINK};
    const struct ckpt_entry *e = ckpt_listing_find(l, name);
    if (!e && !strcmp(name, "latest") && l->latest != SIZE_MAX)
        return take_root_link(src, dir, name, &l->dir, l->entries[l->latest].name, ret);
    if (!e && l->best && !strcmp(name, "best"))
        return take_root_link(src, dir, name, &l->store_dir, l->best, ret);
    if (!e || e->kind == CKPT_ENTRY_HIDDEN)
        return -ENOENT;
    if (e->kind != CKPT_ENTRY_LINK)
        return ckpt_node_take(src, dir, name, name, kinds[e->kind], &e->st, e, NULL, ret);
    char path[SOURCE_PATH], link[4096];
    int r = ckpt_source_join(dir->path, name, path);
    if (r == 0)
        r = ckpt_source_link_target(src, path, link, sizeof link);
    return r < 0 ? r : ckpt_node_take(src, dir, name, name, NODE_LINK, &e->st, NULL, link, ret);
}

/* KEY, KEY@SLICE, KEY.txt and the like beside a file KEY.npy. */
static int lookup_npy_view(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                           struct ckpt_attr *ret, struct ckpt_err *err)
{
    static const char *const suffixes[] = {"", ".txt", ".meta.json"};
    char file[256];
    const struct ckpt_entry *e = NULL;
    const char *at = strrchr(name, '@');
    struct node *node;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && !e; i++)
        if (!*suffixes[i] || ckpt_has_suffix(name, suffixes[i]))
            e = ckpt_source_npy_of_key(l, name, strlen(name) - strlen(suffixes[i]), file);
    if (!e && at)
        e = ckpt_source_npy_of_key(l, name, (size_t)(at - name), file);
    if (!e)
        return -ENOENT;
    int r = ckpt_source_take_npy(src, dir, file, e, &node);
    if (r < 0)
        return r;
    r = ckpt_source_lookup_view(src, node, name, ret, err);
    return r < 0 ? -ENOENT : 0; /* a malformed file has no views */
}

/* Views beside a directory that is a checkpoint (DIR.safetensors), or beside an .npy file. */
static int lookup_beside(struct ckpt_source *src, struct node *dir, const struct ckpt_listing *l, const char *name,
                         struct ckpt_attr *ret, struct ckpt_err *err)
{
    size_t n = strlen(name), suffix = strlen(".safetensors");
    char base[256];
    struct node *node;
    if (n <= suffix || strcmp(name + n - suffix, ".safetensors"))
        return lookup_npy_view(src, dir, l, name, ret, err);
    memcpy(base, name, n - suffix);
    base[n - suffix] = 0;
    const struct ckpt_entry *e = ckpt_listing_find(l, base);
    if (!e || e->kind != CKPT_ENTRY_TREE)
        return -ENOENT;
    int r = lookup_entry(src, dir, l, base, &node);
    return r < 0 ? r : ckpt_source_lookup_view(src, node, ".safetensors", ret, err);
}

/* A staged step hides the committed one that it is a copy of. */
static int lookup_staged_step(const struct node *root, const char *name, struct ckpt_attr *ret)
{
    struct ckpt_stage_attr attr;
    int r = ckpt_stage_ref_step(root->stages, name, &attr);
    if (r < 0)
        return r;
    ckpt_source_attr_of_stage(&attr, ret);
    ret->uncached = true;
    return 0;
}

static int dir_lookup(struct ckpt_source *src, struct target *t, const char *name, struct ckpt_attr *ret,
                      struct ckpt_err *err)
{
    struct ckpt_listing *l;
    struct node *n;
    if (t->node->stages && lookup_staged_step(t->node, name, ret) == 0)
        return 0;
    int r = ckpt_source_listing(src, t->node, &l, err);
    if (r < 0)
        return r;
    r = lookup_entry(src, t->node, l, name, &n);
    if (r == 0)
        ckpt_source_attr_of_node(src, n, ret);
    else if (r == -ENOENT)
        r = lookup_beside(src, t->node, l, name, ret, err);
    ckpt_listing_unref(l);
    return r;
}

/* --- listing: entries, then `latest` and `best`, then staged steps --- */

static enum ckpt_type type_of_entry(const struct ckpt_entry *e)
{
    if (e->kind == CKPT_ENTRY_LINK)
        return CKPT_LINK;
    return e->kind == CKPT_ENTRY_FILE ? CKPT_FILE : CKPT_DIR;
}

static bool is_listed(struct ckpt_dir *d, const struct ckpt_entry *e)
{
    char path[SOURCE_PATH], link[4096];
    if (e->kind == CKPT_ENTRY_HIDDEN || ckpt_source_has_name(&d->names, e->name))
        return false;
    if (e->kind != CKPT_ENTRY_LINK)
        return true;
    int r = ckpt_source_join(d->target.node->path, e->name, path);
    return r == 0 && ckpt_source_link_target(d->src, path, link, sizeof link) >= 0;
}

static int dir_next(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    const struct ckpt_listing *l = d->listing;
    uint64_t first_staged = l->count + 2;
    for (; pos < l->count; pos++) {
        const struct ckpt_entry *e = &l->entries[pos];
        if (!is_listed(d, e))
            continue;
        ckpt_source_set_name(d, ret, e->name);
        ret->type = type_of_entry(e);
        ret->ino = e->st.ino; /* a hint; the attributes have the true one */
        ret->next = pos + 1;
        return 1;
    }
    for (; pos < first_staged; pos++) {
        bool latest = pos == l->count;
        if (latest && l->latest == SIZE_MAX)
            continue;
        if (!latest && !l->best)
            continue;
        ckpt_source_set_name(d, ret, latest ? "latest" : "best");
        ret->type = CKPT_LINK;
        ret->ino = l->dir.ino;
        ret->next = pos + 1;
        return 1;
    }
    return ckpt_source_next_name(d, pos, first_staged, ret);
}

static int note_step(void *arg, const char *name, uint64_t ino)
{
    return ckpt_source_note_name(arg, name, ino, CKPT_DIR);
}

static int dir_open(struct ckpt_dir *d, bool *ret_immutable, struct ckpt_err *err)
{
    struct node *n = d->target.node;
    d->next = dir_next;
    int r = ckpt_source_listing(d->src, n, &d->listing, err);
    if (r == 0 && n->stages)
        r = ckpt_stage_each(n->stages, note_step, &d->names);
    return r;
}

/* --- changing --- */

static int dir_place(struct ckpt_source *src, struct place *p, struct ckpt_err *err)
{
    return ckpt_source_stages(src, p->top.node, &p->stages, err);
}

const struct kind ckpt_kind_dir = {
    .lookup = dir_lookup,
    .attr = ckpt_source_outer_attr,
    .open_dir = dir_open,
    .place = dir_place,
};
