/* SPDX-License-Identifier: Apache-2.0 */
/* Open directories: what their kinds share. */
#include "core/source/dir.h"
#include "core/base/util.h"

#include <stdio.h>

static int grow_names(struct dir_names *s)
{
    size_t cap = s->cap ? s->cap * 2 : 16;
    char(*names)[256] = realloc(s->names, cap * sizeof *names);
    if (!names)
        return -ENOMEM;
    s->names = names;
    uint64_t *inos = realloc(s->inos, cap * sizeof *inos);
    if (!inos)
        return -ENOMEM;
    s->inos = inos;
    enum ckpt_type *types = realloc(s->types, cap * sizeof *types);
    if (!types)
        return -ENOMEM;
    s->types = types;
    s->cap = cap;
    return 0;
}

int ckpt_source_note_name(void *arg, const char *name, uint64_t ino, enum ckpt_type type)
{
    struct dir_names *s = arg;
    int r = s->count == s->cap ? grow_names(s) : 0;
    if (r < 0)
        return r;
    snprintf(s->names[s->count], sizeof *s->names, "%s", name);
    s->types[s->count] = type;
    s->inos[s->count++] = ino;
    return 0;
}

bool ckpt_source_has_name(const struct dir_names *names, const char *name)
{
    for (size_t i = 0; i < names->count; i++)
        if (!strcmp(names->names[i], name))
            return true;
    return false;
}

void ckpt_source_set_name(const struct ckpt_dir *d, struct ckpt_dirent *ret, const char *name)
{
    if (ckpt_source_is_reserved(d->id, name))
        snprintf(ret->name, sizeof ret->name, "%%2E%s", name + 1);
    else
        snprintf(ret->name, sizeof ret->name, "%s", name);
}

int ckpt_source_next_name(struct ckpt_dir *d, uint64_t pos, uint64_t first, struct ckpt_dirent *ret)
{
    size_t i = pos - first;
    if (i >= d->names.count)
        return 0;
    ckpt_source_set_name(d, ret, d->names.names[i]);
    ret->type = d->names.types[i];
    ret->ino = d->names.inos[i];
    ret->next = pos + 1;
    return 1;
}

int ckpt_readdir(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    atomic_fetch_add_explicit(&d->src->readdirs, 1, memory_order_relaxed);
    return d->next(d, pos, ret);
}

void ckpt_closedir(struct ckpt_dir *d)
{
    ckpt_listing_unref(d->listing);
    if (d->entries)
        closedir(d->entries);
    free(d->names.names);
    free(d->names.inos);
    free(d->names.types);
    ckpt_source_done(d->src, &d->target);
    free(d);
}

uint64_t ckpt_dir_id(const struct ckpt_dir *d)
{
    return d->id;
}

bool ckpt_dir_in_tree(const struct ckpt_dir *d)
{
    return d->target.tree != NULL;
}

bool ckpt_dir_is_uncached(const struct ckpt_dir *d)
{
    const struct node *n = d->target.node;
    return n && n->kind == NODE_DIR && n->writable;
}
