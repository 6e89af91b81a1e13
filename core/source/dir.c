/* SPDX-License-Identifier: Apache-2.0 */
/* Open directories: of the source, of a checkpoint, of a staged step, of the control files and of the files face. */
#include "core/base/util.h"
#include "core/source/source.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

struct ckpt_dir {
    struct ckpt_source *src;
    uint64_t id;
    struct target target;
    uint32_t node; /* inside a tree */
    struct ckpt_listing *listing;
    DIR *entries;  /* of a staged directory */
    dev_t dev;     /* that it is on */
    struct steps { /* staged ones, of a root; what is in a directory of the files face */
        char (*names)[256];
        uint64_t *inos;
        enum ckpt_type *types;
        size_t count, cap;
    } steps;
};

static int note_name(void *arg, const char *name, uint64_t ino, enum ckpt_type type)
{
    struct steps *s = arg;
    if (s->count == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 16;
        char(*names)[256] = realloc(s->names, cap * sizeof *names);
        if (names)
            s->names = names;
        uint64_t *inos = names ? realloc(s->inos, cap * sizeof *inos) : NULL;
        if (inos)
            s->inos = inos;
        enum ckpt_type *types = inos ? realloc(s->types, cap * sizeof *types) : NULL;
        if (!types)
            return -ENOMEM;
        s->types = types;
        s->cap = cap;
    }
    snprintf(s->names[s->count], sizeof *s->names, "%s", name);
    s->types[s->count] = type;
    s->inos[s->count++] = ino;
    return 0;
}

static int note_step(void *arg, const char *name, uint64_t ino)
{
    return note_name(arg, name, ino, CKPT_DIR);
}

static int opendir_staged(struct ckpt_dir *d, uint64_t id, struct ckpt_err *err)
{
    struct ckpt_stages *set = ckpt_source_set(d->src, id);
    int fd, r = set ? ckpt_stage_opendir(set, id, &fd) : -ESTALE;
    if (r < 0)
        return ckpt_fail(err, -r, "%s", strerror(-r));
    d->id = id;
    struct stat st;
    d->entries = fstat(fd, &st) == 0 ? fdopendir(fd) : NULL;
    if (!d->entries) {
        r = errno;
        close(fd);
        return ckpt_fail(err, r, "%s", strerror(r));
    }
    d->dev = st.st_dev;
    return 0;
}

static bool is_staged_name(const struct ckpt_dir *d, const char *name)
{
    for (size_t i = 0; i < d->steps.count; i++)
        if (!strcmp(d->steps.names[i], name))
            return true;
    return false;
}

/* Positions are those of the directory on disk. Once its step has ended that is taken apart, so what is left of it is
 * no answer. */
static int readdir_staged(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    if (pos)
        seekdir(d->entries, (long)pos);
    else
        rewinddir(d->entries);
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d->entries);
        int code = errno;
        if (ckpt_stage_ended(ckpt_source_set(d->src, d->id), d->id))
            return -ESTALE;
        if (!e)
            return -code;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(ret->name, sizeof ret->name, "%s", e->d_name);
        ret->type = e->d_type == DT_DIR ? CKPT_DIR : CKPT_FILE;
        ret->next = (uint64_t)telldir(d->entries);
        ret->ino = ckpt_stage_ino(ckpt_source_set(d->src, d->id), d->dev, e->d_ino);
        return 1;
    }
}

static int opendir_once(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_forever,
                        struct ckpt_err *err)
{
    struct ckpt_dir *d = calloc(1, sizeof *d);
    if (!d)
        return ckpt_fail(err, ENOMEM, "out of memory");
    d->src = src;
    d->id = id;
    *ret_forever = false;
    bool face = id & CKPT_STAGED && ckpt_source_set(src, id) && ckpt_stage_is_files_view(ckpt_source_set(src, id), id);
    bool staged = id & CKPT_STAGED && !face;
    int r = staged ? opendir_staged(d, id, err) : ckpt_source_target(src, face ? CKPT_FACE : id, &d->target, err);
    if (r == 0 && !staged && !face) {
        uint64_t copy;
        r = atomic_load(&d->target.node->stale) ? -ESTALE : ckpt_source_copied(src, &d->target, &copy);
        if (r == 1) {
            r = opendir_staged(d, copy, err);
            ckpt_forget(src, copy, 1);
        }
    }
    if (r < 0 || d->entries) {
        if (r < 0) {
            ckpt_source_done(src, &d->target);
            free(d);
        } else
            *ret = d;
        return r;
    }
    struct node *n = d->target.node;
    if (d->target.tree || n->kind == NODE_TREE) {
        r = ckpt_source_enter(src, &d->target, &d->node, err);
        if (r == 0 && !ckpt_viewed_is_dir(&d->target.file))
            r = ckpt_fail(err, ENOTDIR, "not a directory");
        *ret_forever = n != src->root;
    } else if (n->kind == NODE_DIR) {
        r = ckpt_source_listing(src, n, &d->listing, err);
        if (r == 0 && n->stages)
            r = ckpt_stage_each(n->stages, note_step, &d->steps);
    } else if (n->kind == NODE_FACE)
        r = ckpt_source_face_each(src, n, note_name, &d->steps);
    else if (n->kind != NODE_CONTROL_DIR)
        r = ckpt_fail(err, ENOTDIR, "not a directory");
    if (r < 0) {
        ckpt_closedir(d);
        return r;
    }
    *ret = d;
    return 0;
}

struct opening {
    struct ckpt_dir **ret;
    bool *ret_forever;
};

static int opendir_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct opening *o = arg;
    return opendir_once(src, id, o->ret, o->ret_forever, err);
}

int ckpt_opendir(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_forever, struct ckpt_err *err)
{
    struct opening o = {ret, ret_forever};
    int r = ckpt_source_retry(src, id, 0, opendir_at, &o, err);
    if (r == 0 && (*ret)->id != id)
        *ret_forever = false; /* what has this id may be found somewhere else at the next look */
    return r;
}

void ckpt_closedir(struct ckpt_dir *d)
{
    ckpt_listing_unref(d->listing);
    if (d->entries)
        closedir(d->entries);
    free(d->steps.names);
    free(d->steps.inos);
    free(d->steps.types);
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

bool ckpt_dir_is_fleeting(const struct ckpt_dir *d)
{
    const struct node *n = d->target.node;
    return n && n->kind == NODE_DIR && n->writable;
}

static void copy_name(struct ckpt_dir *d, struct ckpt_dirent *ret, const char *name)
{
    if (ckpt_source_is_reserved(d->id, name))
        snprintf(ret->name, sizeof ret->name, "%%2E%s", name + 1);
    else
        snprintf(ret->name, sizeof ret->name, "%s", name);
}

static int readdir_tree(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    const struct ckpt_tree *t = d->target.tree;
    uint32_t node = pos ? t->nodes[pos].next : t->nodes[d->node].first;
    while (node != CKPT_NO_NODE && ckpt_source_is_removed(d->src, d->target.node, node))
        node = t->nodes[node].next;
    if (node == CKPT_NO_NODE)
        return 0;
    struct ckpt_buf name = CKPT_BUF_INIT;
    ckpt_tree_name(t, node, &name);
    ckpt_buf_addc(&name, 0);
    int r = ckpt_buf_error(&name);
    if (r == 0) {
        copy_name(d, ret, (char *)name.data);
        ret->type = t->nodes[node].kind == CKPT_NODE_DIR ? CKPT_DIR : CKPT_FILE;
        ret->ino = ckpt_source_inner_ino(d->target.node, node, CKPT_VIEW_LISTED);
        ret->next = node;
        r = 1;
    }
    ckpt_buf_clear(&name);
    return r;
}

int ckpt_readdir(struct ckpt_dir *d, uint64_t pos, struct ckpt_dirent *ret)
{
    atomic_fetch_add_explicit(&d->src->readdirs, 1, memory_order_relaxed);
    if (d->entries)
        return readdir_staged(d, pos, ret);
    if (d->target.tree)
        return pos < d->target.tree->count ? readdir_tree(d, pos, ret) : 0;
    if (d->target.node->kind == NODE_CONTROL_DIR) {
        for (uint64_t n = 0; ckpt_source_control_names[n]; n++)
            if (n == pos) {
                snprintf(ret->name, sizeof ret->name, "%s", ckpt_source_control_names[n]);
                ret->type = CKPT_FILE;
                ret->ino = 16 + n;
                ret->next = n + 1;
                return 1;
            }
        return 0;
    }
    const struct ckpt_listing *l = d->listing;
    uint64_t first = l ? l->count + 2 : 0; /* of the staged steps */
    for (; l && pos < l->count; pos++) {
        const struct ckpt_entry *e = &l->entries[pos];
        char path[4096], link[4096];
        if (e->kind == CKPT_ENTRY_HIDDEN || is_staged_name(d, e->name))
            continue;
        if (e->kind == CKPT_ENTRY_LINK && (snprintf(path, sizeof path, "%s%s%s", d->target.node->path,
                                                    *d->target.node->path ? "/" : "", e->name) >= (int)sizeof path ||
                                           ckpt_source_link_target(d->src, path, link, sizeof link) < 0))
            continue;
        copy_name(d, ret, e->name);
        ret->type = e->kind == CKPT_ENTRY_LINK ? CKPT_LINK : e->kind == CKPT_ENTRY_FILE ? CKPT_FILE : CKPT_DIR;
        ret->ino = e->st.ino; /* a hint; the attributes have the true one */
        ret->next = pos + 1;
        return 1;
    }
    for (; pos < first; pos++) {
        bool latest = pos == l->count;
        if (latest ? l->latest == SIZE_MAX : !l->best)
            continue;
        copy_name(d, ret, latest ? "latest" : "best");
        ret->type = CKPT_LINK;
        ret->ino = l->dir.ino;
        ret->next = pos + 1;
        return 1;
    }
    if (pos - first < d->steps.count) {
        size_t i = pos - first;
        copy_name(d, ret, d->steps.names[i]);
        ret->type = d->steps.types[i];
        ret->ino = d->steps.inos[i];
        ret->next = pos + 1;
        return 1;
    }
    return 0;
}
