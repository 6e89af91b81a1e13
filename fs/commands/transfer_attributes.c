/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/transfer_private.h"

#include "core/array/dtype.h"
#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/io/json.h"

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

static int set_text(const struct fs_into *in, int fd, const char *path, const char *name, const char *text)
{
    return text ? set_attribute(in, fd, path, name, text, strlen(text)) : 0;
}

/* Blocks: what they are, and the shape that they make. */
static int keep_blocks(const struct fs_into *in, const cJSON *meta, const char *path, int fd)
{
    const char *dtype = cJSON_GetStringValue(ckpt_json_get(meta, "dtype"));
    const cJSON *shape = ckpt_json_get(meta, "shape");
    int r = set_text(in, fd, path, "user.ckpt.dtype", dtype);
    if (r < 0 || !dtype || !shape)
        return r;
    CKPT_AUTOFREE char *text = cJSON_PrintUnformatted(shape);
    return text ? set_text(in, fd, path, "user.ckpt.shape", text) : ckpt_no_memory(in->err);
}

static int keep_array(const struct fs_into *in, const cJSON *meta, const char *path, int fd)
{
    const char *dtype = cJSON_GetStringValue(ckpt_json_get(meta, "dtype"));
    int r = 0;
    if (dtype && needs_dtype(dtype))
        r = set_text(in, fd, path, "user.ckpt.dtype", dtype);
    if (r == 0)
        r = set_text(in, fd, path, "user.ckpt.prng_impl", cJSON_GetStringValue(ckpt_json_get(meta, "prng_impl")));
    return r;
}

static int keep_described(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd)
{
    cJSON *meta = NULL;
    int r = fs_describe(in->t->src, at->id, &meta, in->err);
    if (r < 0)
        return r == -ENODATA ? 0 : r; /* it is in no checkpoint */
    switch (at->leaf) {
    case CKPT_LEAF_VALUE: /* the type of a number */
        r = set_text(in, fd, path, "user.ckpt.dtype", cJSON_GetStringValue(ckpt_json_get(meta, "dtype")));
        break;
    case CKPT_LEAF_BLOB:
        r = keep_blocks(in, meta, path, fd);
        break;
    default:
        r = keep_array(in, meta, path, fd);
    }
    cJSON_Delete(meta);
    return r;
}

/* A name that a commit would take for another kind of leaf's, or for that of a part of one. */
static int keep_leaf(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    bool array = ckpt_has_suffix(name, ".npy"), value = ckpt_has_suffix(name, ".json");
    int r = 0;
    if (at->leaf == CKPT_LEAF_BLOB && (array || value))
        r = set_text(in, fd, path, "user.ckpt.kind", "blob");
    bool may_be_piece = at->leaf != CKPT_NO_LEAF && array && strchr(name, '@');
    if (r == 0 && may_be_piece)
        r = set_attribute(in, fd, path, "user.ckpt.key", name, strlen(name) - strlen(".npy"));
    return r;
}

int fs_keep_told(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd, bool unclear)
{
    bool ask = unclear || at->leaf == CKPT_LEAF_VALUE || at->leaf == CKPT_LEAF_BLOB;
    int r = keep_leaf(in, at, path, fd);
    return r == 0 && ask ? keep_described(in, at, path, fd) : r;
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
