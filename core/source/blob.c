/* SPDX-License-Identifier: Apache-2.0 */
/* A leaf of a checkpoint as the only file of a backend, for the reader of what the leaf itself is a checkpoint of. */
#include "core/base/util.h"
#include "core/source/source.h"
#include "core/tree/key.h"

struct blob_backend {
    struct ckpt_backend base;
    struct ckpt_source *src;
    uint64_t id; /* of the leaf, with a reference, so that the checkpoint's node stays */
    struct ckpt_stat st;
    char name[CKPT_NAME_MAX + 1];
};

struct blob_file {
    struct ckpt_file base;
    struct blob_backend *of;
};

static const struct ckpt_backend_ops blob_ops;
static const struct ckpt_file_ops blob_file_ops;

static int blob_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    const struct blob_backend *b = (struct blob_backend *)base;
    if (*path && strcmp(path, b->name))
        return -ENOENT;
    *ret = b->st;
    if (!*path)
        ret->type = CKPT_FT_DIR;
    return 0;
}

static int blob_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    return *path ? -ENOENT : visit(arg, ((struct blob_backend *)base)->name, CKPT_FT_FILE);
}

static int blob_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    struct blob_backend *b = (struct blob_backend *)base;
    if (strcmp(path, b->name))
        return *path ? -ENOENT : -EISDIR;
    struct blob_file *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->base = (struct ckpt_file){.ops = &blob_file_ops, .st = b->st};
    atomic_init(&f->base.refs, 1);
    f->of = (struct blob_backend *)ckpt_backend_ref(base);
    *ret = &f->base;
    return 0;
}

static int blob_sub(struct ckpt_backend *base, const char *path, struct ckpt_backend **ret)
{
    if (*path)
        return -ENOENT;
    *ret = ckpt_backend_ref(base);
    return 0;
}

/* The leaf's tree may have been closed since, and is opened again then. */
static ssize_t blob_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    struct blob_backend *b = ((struct blob_file *)base)->of;
    struct target t;
    struct ckpt_err err = {0};
    ssize_t n = ckpt_source_target(b->src, b->id, &t, &err);
    if (n < 0)
        return n;
    n = ckpt_view_read(&b->src->views, &t.file, buf, len, off, &err);
    int changed = n > 0 ? ckpt_source_unchanged(b->src, t.node, &err) : 0;
    ckpt_source_done(b->src, &t);
    return changed < 0 ? changed : n;
}

static void blob_close(struct ckpt_file *base)
{
    ckpt_backend_unref(&((struct blob_file *)base)->of->base);
    free(base);
}

static void blob_free(struct ckpt_backend *base)
{
    struct blob_backend *b = (struct blob_backend *)base;
    if (!b->src->closing)
        ckpt_forget(b->src, b->id, 1);
    free(b);
}

static const struct ckpt_backend_ops blob_ops = {
    .name = "leaf",
    .stat = blob_stat,
    .list = blob_list,
    .open = blob_open,
    .sub = blob_sub,
    .free = blob_free,
};

static const struct ckpt_file_ops blob_file_ops = {
    .name = "leaf",
    .derived = true,
    .read = blob_read,
    .close = blob_close,
};

struct ckpt_backend *ckpt_source_blob(struct ckpt_source *src, uint64_t id, const char *name,
                                      const struct ckpt_stat *st)
{
    struct blob_backend *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->base.ops = &blob_ops;
    atomic_init(&b->base.refs, 1);
    b->src = src;
    b->id = id;
    b->st = *st;
    strcpy(b->name, name);
    return &b->base;
}
