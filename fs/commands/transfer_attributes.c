/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/transfer_private.h"

#include "core/array/dtype.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <linux/limits.h>
#include <sys/stat.h>

static int set_attribute(const struct fs_into *in, int fd, const char *path, const char *name, const void *value,
                         size_t len)
{
    int r = ckpt_disk_setxattr(fd, name, value, len);
    return r < 0 ? fs_unwritable(in, path, r) : 0;
}

/* A .npy file of this type would be taken for another one. */
static bool needs_dtype(const char *name)
{
    enum ckpt_dtype dtype, shown;
    bool big;
    if (!ckpt_dtype_by_name(name, &dtype) || dtype == CKPT_DT_BF16 || dtype == CKPT_DT_OTHER)
        return false;
    return !ckpt_dtype_by_descr(ckpt_dtype_info(dtype)->descr, &shown, &big) || shown != dtype;
}

int fs_keep_dtype(const struct fs_into *in, uint64_t id, const char *path, int fd)
{
    char dtype[64];
    ssize_t len = ckpt_getxattr(in->t->src, id, "user.ckpt.dtype", NULL, dtype, sizeof dtype - 1);
    if (len <= 0)
        return 0;
    dtype[len] = 0;
    return needs_dtype(dtype) ? set_attribute(in, fd, path, "user.ckpt.dtype", dtype, (size_t)len) : 0;
}

int fs_keep_kind(const struct fs_into *in, uint64_t id, const char *path, int fd)
{
    char kind[64];
    if (!in->t->attributes)
        return 0;
    ssize_t len = ckpt_getxattr(in->t->src, id, "user.ckpt.kind", NULL, kind, sizeof kind - 1);
    kind[CKPT_MAX(len, 0)] = 0;
    if (!*kind || !strcmp(kind, "dict")) /* a directory is a dict unless it says otherwise */
        return 0;
    return set_attribute(in, fd, path, "user.ckpt.kind", kind, (size_t)len);
}

static int keep_own_attribute(const struct fs_into *in, uint64_t id, const char *path, int fd, const char *name)
{
    CKPT_AUTOFREE char *value = malloc(XATTR_SIZE_MAX);
    if (!value)
        return ckpt_no_memory(in->err);
    ssize_t n = ckpt_getxattr(in->t->src, id, name, NULL, value, XATTR_SIZE_MAX);
    if (n < 0)
        return ckpt_fail(in->err, (int)-n, "%s: its attribute %s: %s", path, name, strerror((int)-n));
    return set_attribute(in, fd, path, name, value, (size_t)n);
}

/* Their names, each with its NUL, to be freed; their length. */
static ssize_t list_attributes(const struct fs_into *in, uint64_t id, char **ret)
{
    ssize_t n = ckpt_listxattr(in->t->src, id, NULL, 0);
    if (n <= 0)
        return n;
    *ret = malloc((size_t)n);
    return *ret ? ckpt_listxattr(in->t->src, id, *ret, (size_t)n) : -ENOMEM;
}

int fs_keep_own_attributes(const struct fs_into *in, uint64_t id, const char *path, int fd)
{
    CKPT_AUTOFREE char *names = NULL;
    if (!in->t->own_attributes)
        return 0;
    ssize_t n = list_attributes(in, id, &names);
    if (n < 0)
        return ckpt_fail(in->err, (int)-n, "%s: its attributes: %s", path, strerror((int)-n));
    for (const char *p = names; p < names + n; p += strlen(p) + 1) {
        bool is_made = !strncmp(p, "user.ckpt.", 10);
        int r = is_made ? 0 : keep_own_attribute(in, id, path, fd, p);
        if (r < 0)
            return r;
    }
    return 0;
}

int fs_keep_time(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, ckpt_timespec(at->mtime_ns)};
    bool failed = futimens(fd, times) < 0;
    return failed && in->t->times ? fs_unwritable(in, path, -errno) : 0;
}
