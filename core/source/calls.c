/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of the public header that read: each is made of what its id names, and again after a commit. */
#include "core/base/util.h"
#include "core/format/lfs.h"
#include "core/source/kind.h"

#include <stdio.h>

/* --- names and attributes --- */

struct looking {
    uint64_t parent; /* as the caller has it */
    const char *name;
    struct ckpt_attr *ret;
};

static int lookup_at(struct ckpt_source *src, uint64_t parent, uint64_t none, void *arg, struct ckpt_err *err)
{
    struct looking *l = arg;
    int r = ckpt_source_lookup(src, parent, l->name, l->ret, err);
    if (parent == l->parent)
        return r;
    /* A directory that is found where it is now may be somewhere else at the next look. */
    if (r == 0)
        l->ret->immutable = false;
    l->ret->uncached = true;
    return r;
}

int ckpt_lookup(struct ckpt_source *src, uint64_t parent, const char *name, struct ckpt_attr *ret, struct ckpt_err *err)
{
    struct looking l = {parent, name, ret};
    *ret = (struct ckpt_attr){0};
    atomic_fetch_add_explicit(&src->lookups, 1, memory_order_relaxed);
    unsigned shortages = ckpt_shortages();
    int r = source_absent(ckpt_source_retry(src, parent, 0, lookup_at, &l, err), shortages);
    if (r == -EMFILE)
        return ckpt_fail(err, EMFILE, "%s: %s", name, strerror(EMFILE));
    if (r == 0 && src->opt.write)
        ckpt_source_own_id(src, parent, name, ret);
    if (r == -ENOENT)
        ret->uncached |= (parent & CKPT_STAGED) != 0;
    return r;
}

static int getattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    return ckpt_source_getattr(src, id, arg, err);
}

int ckpt_getattr(struct ckpt_source *src, uint64_t id, struct ckpt_attr *ret, struct ckpt_err *err)
{
    atomic_fetch_add_explicit(&src->getattrs, 1, memory_order_relaxed);
    int r = ckpt_source_retry(src, id, 0, getattr_at, ret, err);
    if (r == 0 && ret->id != id) {
        ret->immutable = false; /* it may be somewhere else at the next look */
        ret->id = id;
    }
    return r;
}

/* --- directories --- */

struct opening {
    struct ckpt_dir **ret;
    bool *ret_immutable;
};

static int opendir_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    const struct opening *o = arg;
    return ckpt_source_opendir(src, id, o->ret, o->ret_immutable, err);
}

int ckpt_opendir(struct ckpt_source *src, uint64_t id, struct ckpt_dir **ret, bool *ret_immutable, struct ckpt_err *err)
{
    struct opening o = {ret, ret_immutable};
    int r = ckpt_source_retry(src, id, 0, opendir_at, &o, err);
    if (r == 0 && (*ret)->id != id)
        *ret_immutable = false; /* what has this id may be found somewhere else at the next look */
    return r;
}

/* --- extended attributes --- */

struct xattr_call {
    const char *name; /* NULL: all names */
    const struct ckpt_caller *who;
    char *buf;
    size_t len;
    ssize_t got;
};

static int xattr_at(struct ckpt_source *src, uint64_t id, uint64_t none, void *arg, struct ckpt_err *err)
{
    struct xattr_call *x = arg;
    if (x->name)
        x->got = ckpt_source_getxattr(src, id, x->name, x->who, x->buf, x->len);
    else
        x->got = ckpt_source_listxattr(src, id, x->buf, x->len);
    return (int)CKPT_MIN(x->got, 0);
}

ssize_t ckpt_getxattr(struct ckpt_source *src, uint64_t id, const char *name, const struct ckpt_caller *who, char *buf,
                      size_t len)
{
    struct xattr_call x = {name, who, buf, len};
    int r = ckpt_source_retry(src, id, 0, xattr_at, &x, NULL);
    return r < 0 ? r : x.got;
}

ssize_t ckpt_listxattr(struct ckpt_source *src, uint64_t id, char *buf, size_t len)
{
    struct xattr_call x = {NULL, NULL, buf, len};
    int r = ckpt_source_retry(src, id, 0, xattr_at, &x, NULL);
    return r < 0 ? r : x.got;
}

bool ckpt_is_lfs_pointer(struct ckpt_source *src, const struct ckpt_attr *file)
{
    char head[CKPT_LFS_HEAD];
    if (file->type != CKPT_FILE || file->size < sizeof head || file->size >= CKPT_LFS_MOST)
        return false;
    ssize_t n = ckpt_read(src, file->id, head, sizeof head, 0, NULL);
    return n > 0 && ckpt_lfs_begins(head, (size_t)n);
}
