/* SPDX-License-Identifier: Apache-2.0 */
/* What a manifest describes, as files of a staged step again: each leaf a file that shares the leaf's content. */
#include "core/stage/private.h"

#include "core/base/path.h"
#include "core/io/json.h"
#include "core/store/internal.h"

#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/stat.h>

struct copying {
    struct stage_step *step;
    char **dirs; /* paths below tree/ of the directories, by their numbers */
    uint32_t dir_cap;
    const struct ckpt_stage_removed *removed;
    struct ckpt_err *err;
};

/* The time of a directory that was there before. */
static int set_dir_time(const struct copying *c, const char *path, uint32_t number, int64_t mtime_ns)
{
    int64_t ns = c->removed && ckpt_has_bit(c->removed->dirs, number) ? c->removed->time_ns : mtime_ns;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, ckpt_timespec(ns)};
    return utimensat(c->step->tree, path, times, 0) < 0 ? -errno : 0;
}

static int set_xattr(int fd, const char *name, const void *value, size_t len, struct ckpt_err *err)
{
    int r = ckpt_disk_setxattr(fd, name, value, len);
    if (r == -E2BIG)
        r = -ENOSPC;
    return r < 0 ? ckpt_fail(err, -r, "its attribute %s (%zu bytes) cannot be kept on this file system: %s", name, len,
                             strerror(-r))
                 : 0;
}

static int restore_xattr(int fd, const cJSON *e, struct ckpt_err *err)
{
    size_t n = cJSON_IsString(e) ? strlen(e->valuestring) : 1;
    if (n % 2 || strspn(e->valuestring, "0123456789abcdef") != n)
        return ckpt_fail(err, EUCLEAN, "its attribute %s is not hex", e->string);
    CKPT_AUTOFREE uint8_t *value = malloc(n / 2 + 1);
    if (!value)
        return ckpt_no_memory(err);
    for (size_t i = 0; i < n / 2; i++) {
        unsigned byte = 0;
        sscanf(e->valuestring + 2 * i, "%2x", &byte);
        value[i] = (uint8_t)byte;
    }
    return set_xattr(fd, e->string, value, n / 2, err);
}

/* All of them, or an error: what is not there would not be there after the next commit either. */
static int restore_xattrs(int fd, const char *json, struct ckpt_err *err)
{
    cJSON *all = ckpt_json_parse(json, strlen(json));
    const cJSON *e;
    int r = all ? 0 : ckpt_fail(err, EUCLEAN, "its attributes are malformed");
    cJSON_ArrayForEach(e, all) if (r == 0 && ckpt_stage_is_own_xattr(e->string)) r = restore_xattr(fd, e, err);
    cJSON_Delete(all);
    return r;
}

/* The type of an array is an attribute that its user may change. */
static int keep_told(int fd, const struct ckpt_manifest_node *n, struct ckpt_err *err)
{
    struct ckpt_manifest_node rest = *n;
    rest.npy.dtype = CKPT_DT_OTHER;
    int r = ckpt_told_keep(fd, &rest, n->name);
    return r < 0 ? ckpt_fail(err, -r, "what is known of it cannot be kept on this file system: %s", strerror(-r)) : 0;
}

static int copy_attrs(int fd, const struct ckpt_manifest_node *n, struct ckpt_err *err)
{
    static const char *const kinds[CKPT_CONTAINERS] = {"dict", "list", "tuple", "namedtuple", "object"};
    enum ckpt_dtype plain;
    bool big;
    int r = 0;
    if (n->kind == CKPT_NODE_DIR && n->container != CKPT_DICT)
        r = set_xattr(fd, "user.ckpt.kind", kinds[n->container], strlen(kinds[n->container]), err);
    const char *dtype = n->kind == CKPT_NODE_ARRAY ? ckpt_dtype_info(n->npy.dtype)->name : NULL;
    if (dtype && n->npy.dtype != CKPT_DT_OTHER &&
        !(ckpt_dtype_by_descr(n->npy.descr, &plain, &big) && plain == n->npy.dtype))
        r = set_xattr(fd, "user.ckpt.dtype", dtype, strlen(dtype), err);
    if (r == 0 && n->kind != CKPT_NODE_DIR)
        r = keep_told(fd, n, err);
    if (r == 0 && n->xattrs)
        r = restore_xattrs(fd, n->xattrs, err);
    if (r < 0)
        return r;
    r = ckpt_disk_chown(fd, n->uid, n->gid);
    return r < 0 && geteuid() == 0 ? r : ckpt_disk_chmod(fd, n->mode & 07777);
}

static int copy_dir(struct copying *c, uint32_t number, const char *path, const struct ckpt_manifest_node *n)
{
    if (number >= c->dir_cap) {
        uint32_t cap = CKPT_MAX(number + 1, c->dir_cap * 2);
        char **p = realloc(c->dirs, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        memset(p + c->dir_cap, 0, (cap - c->dir_cap) * sizeof *p);
        c->dirs = p;
        c->dir_cap = cap;
    }
    int r = ckpt_disk_mkdir(c->step->tree, path, 0700);
    if (r == -EEXIST)
        r = 0;
    CKPT_AUTOFD int fd = r == 0 ? openat(c->step->tree, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (r == 0)
        r = fd < 0 ? -errno : copy_attrs(fd, n, c->err);
    if (r == 0 && !(c->dirs[number] = strdup(path)))
        r = -ENOMEM;
    return r;
}

static bool is_ref(const struct ckpt_manifest_node *n)
{
    return !n->text && n->size;
}

static int copy_content(struct stage_step *step, int fd, const struct ckpt_manifest_node *n)
{
    if (n->text)
        return ckpt_disk_write(fd, n->text, strlen(n->text), 0);
    if (!is_ref(n))
        return 0;
    struct ckpt_ref ref = {.size = n->size, .offset = n->offset, .stored = n->stored, .codec = n->codec};
    struct ckpt_hold hold = stage_hold(step);
    memcpy(ref.sha256, n->sha256, CKPT_SHA256);
    memcpy(ref.object, n->object, CKPT_SHA256);
    int r = ckpt_hold_object(&hold, ref.object);
    return r < 0 ? r : ckpt_stage_make_ref(fd, &ref);
}

/* A new file with its content and attributes: a descriptor. */
static int make_leaf(struct stage_step *step, int dir, const char *path, const struct ckpt_manifest_node *n,
                     struct ckpt_err *err)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return fd;
    int r = copy_content(step, fd, n);
    if (r == 0)
        r = copy_attrs(fd, n, err);
    if (r < 0 && ckpt_disk_unlink(dir, path, 0) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "%s: half a copy stays", path);
    return r < 0 ? r : CKPT_STEAL_FD(fd);
}

/* The length that it should have on disk, though it does not count, and the time. */
static int finish_leaf(int fd, const struct ckpt_manifest_node *n)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, ckpt_timespec(n->mtime_ns)};
    int r = is_ref(n) ? ckpt_disk_truncate(fd, n->size) : 0;
    return r < 0 ? r : ckpt_disk_set_times(fd, times);
}

int ckpt_stage_copy_leaf(struct stage_step *step, int dir, const char *path, const struct ckpt_manifest_node *n,
                         struct ckpt_err *err)
{
    CKPT_AUTOFD int fd = make_leaf(step, dir, path, n, err);
    if (fd < 0)
        return fd;
    int r = finish_leaf(fd, n);
    if (r < 0 && ckpt_disk_unlink(dir, path, 0) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "%s: half a copy stays", path);
    return r;
}

int ckpt_stage_link_leaf(struct stage_step *step, int dir, const char *name, const struct ckpt_manifest_node *n)
{
    char temp[32] = "link-";
    ckpt_random_hex(temp + strlen(temp), 8);
    CKPT_AUTOFD int fd = make_leaf(step, step->work, temp, n, NULL);
    if (fd < 0)
        return fd;
    int r = finish_leaf(fd, n); /* before others see it, who may make it longer */
    if (r == 0)
        r = ckpt_disk_rename(step->work, temp, dir, name, RENAME_NOREPLACE);
    if (r < 0) {
        (void)!ckpt_disk_unlink(step->work, temp, 0);
        return r;
    }
    atomic_store(&step->unsynced, true);
    return 0;
}

int ckpt_stage_keep_told(struct ckpt_stage_handle *h, const struct ckpt_manifest_node *n)
{
    struct stage_inode *inode = h->inode;
    pthread_mutex_lock(&inode->step->set->lock);
    CKPT_AUTOFREE char *name = strdup(inode->name ? inode->name : "");
    pthread_mutex_unlock(&inode->step->set->lock);
    if (!name)
        return -ENOMEM;
    return inode->step->files_view ? 0 : ckpt_told_keep(h->fd, n, name);
}

int ckpt_stage_copy_told(struct ckpt_stage_handle *from, struct ckpt_stage_handle *to)
{
    return to->inode->step->files_view ? 0 : ckpt_told_copy(from->fd, to->fd);
}

static int copy_node(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct copying *c = arg;
    const char *dir = n->parent && n->parent < c->dir_cap ? c->dirs[n->parent] : "";
    char path[PATH_MAX];
    if (c->removed && ckpt_has_bit(c->removed->nodes, number))
        return 0;
    if (!dir)
        return -EUCLEAN;
    if (!ckpt_path_put(path, sizeof path, dir, n->name))
        return -ENAMETOOLONG;
    int r = n->kind == CKPT_NODE_DIR ? copy_dir(c, number, path, n)
                                     : ckpt_stage_copy_leaf(c->step, c->step->tree, path, n, c->err);
    if (r == -EEXIST)
        return 0;
    return r < 0 ? ckpt_fail_in(c->err, -r, "%s", path) : 0;
}

/* Times of directories, when nothing more is put into them. */
static int copy_dir_time(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct copying *c = arg;
    if (n->kind != CKPT_NODE_DIR || number >= c->dir_cap || !c->dirs[number])
        return 0;
    return set_dir_time(c, c->dirs[number], number, n->mtime_ns);
}

int ckpt_stage_copy_tree(struct stage_step *step, struct ckpt_file *manifest, const struct ckpt_stage_removed *removed,
                         struct ckpt_err *err)
{
    struct ckpt_err own = {0};
    struct copying c = {.step = step, .removed = removed, .err = &own};
    struct ckpt_manifest_info info = {0}, again = {0};
    int r = ckpt_manifest_each(manifest, &info, copy_node, &c, &own);
    if (r == 0)
        r = ckpt_manifest_each(manifest, &again, copy_dir_time, &c, &own);
    if (r == 0)
        r = copy_attrs(step->tree, &info.top, &own);
    if (r == 0)
        r = set_dir_time(&c, ".", 0, info.top.mtime_ns);
    if (r == 0 && info.metadata)
        r = ckpt_disk_replace(step->work, STAGE_METADATA, info.metadata, strlen(info.metadata));
    for (uint32_t i = 0; i < c.dir_cap; i++)
        free(c.dirs[i]);
    free(c.dirs);
    ckpt_manifest_info_clear(&info);
    ckpt_manifest_info_clear(&again);
    if (r == 0)
        return 0;
    if (!own.code)
        ckpt_fail(&own, -r, "%s", strerror(-r));
    ckpt_log(CKPT_LOG_WARN, "%s: a step cannot be laid out as files: %s", step->set->store->path, own.text);
    if (err)
        *err = own;
    return r;
}
