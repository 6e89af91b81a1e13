/* SPDX-License-Identifier: Apache-2.0 */
/* A directory by its name: for each call it is opened anew, and the call is that directory's. */
#include "core/io/posix.h"

#include "core/base/util.h"

#include <fcntl.h>

struct named_backend {
    struct ckpt_backend base;
    int parent;
    struct ckpt_bounds bounds; /* with texts of its own */
    char *hidden, *never;
    char name[];
};

static const struct ckpt_backend_ops named_ops;

/* What has the name now; unref it. */
static int find(struct ckpt_backend *base, struct ckpt_backend **ret)
{
    const struct named_backend *b = (struct named_backend *)base;
    struct ckpt_backend *now;
    int r = ckpt_posix_open_at(b->parent, b->name, &now);
    if (r == 0 && ckpt_backend_set_bounds(now, &b->bounds) < 0) {
        ckpt_backend_unref(now);
        r = -ENOMEM;
    }
    if (r == 0)
        *ret = now;
    return r;
}

static int named_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    struct ckpt_backend *now = NULL;
    int r = find(base, &now);
    if (r < 0)
        return r;
    r = ckpt_backend_stat(now, path, ret);
    ckpt_backend_unref(now);
    return r;
}

static int named_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    struct ckpt_backend *now = NULL;
    int r = find(base, &now);
    if (r < 0)
        return r;
    r = ckpt_backend_list(now, path, visit, arg);
    ckpt_backend_unref(now);
    return r;
}

static int named_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    struct ckpt_backend *now = NULL;
    int r = find(base, &now);
    if (r < 0)
        return r;
    r = ckpt_backend_open(now, path, ret);
    ckpt_backend_unref(now);
    return r;
}

static int named_sub(struct ckpt_backend *base, const char *path, struct ckpt_backend **ret)
{
    struct ckpt_backend *now = NULL;
    int r = find(base, &now);
    if (r < 0)
        return r;
    r = ckpt_backend_sub(now, path, ret);
    ckpt_backend_unref(now);
    return r;
}

static int named_readlink(struct ckpt_backend *base, const char *path, char *buf, size_t len)
{
    struct ckpt_backend *now = NULL;
    int r = find(base, &now);
    if (r < 0)
        return r;
    r = ckpt_backend_readlink(now, path, buf, len);
    ckpt_backend_unref(now);
    return r;
}

static void named_free(struct ckpt_backend *base)
{
    struct named_backend *b = (struct named_backend *)base;
    close(b->parent);
    free(b->hidden);
    free(b->never);
    free(b);
}

int ckpt_backend_open_named(const char *parent, const char *name, const struct ckpt_bounds *bounds,
                            struct ckpt_backend **ret, struct ckpt_err *err)
{
    CKPT_AUTOFD int fd = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return ckpt_fail(err, errno, "%s: %s", parent, strerror(errno));
    CKPT_AUTOFREE char *hidden = bounds->hidden ? strdup(bounds->hidden) : NULL,
                       *never = bounds->never ? strdup(bounds->never) : NULL;
    struct named_backend *b = calloc(1, sizeof *b + strlen(name) + 1);
    bool whole = b && (hidden || !bounds->hidden) && (never || !bounds->never);
    if (!whole) {
        free(b);
        return ckpt_no_memory(err);
    }
    b->base.ops = &named_ops;
    atomic_init(&b->base.refs, 1);
    b->parent = CKPT_STEAL_FD(fd);
    b->bounds = (struct ckpt_bounds){.hidden = hidden, .follow = bounds->follow, .never = never};
    b->hidden = CKPT_STEAL(hidden);
    b->never = CKPT_STEAL(never);
    strcpy(b->name, name);
    *ret = &b->base;
    return 0;
}

static const struct ckpt_backend_ops named_ops = {
    .name = "named",
    .changes = true,
    .stat = named_stat,
    .list = named_list,
    .open = named_open,
    .sub = named_sub,
    .readlink = named_readlink,
    .free = named_free,
};
