/* SPDX-License-Identifier: Apache-2.0 */
/* What a manifest describes, as files of a staged step again: each leaf a file that shares the leaf's content. */
#include "core/store/stage_private.h"

#include "core/format/json.h"
#include "core/store/internal.h"

#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>

struct copying {
    struct stage_step *step;
    char **dirs;       /* paths below tree/ of the directories, by their numbers */
    uint32_t dir_cap;
    const struct ckpt_stage_removed *removed;
};

/* The time of a directory that was there before. */
static int set_dir_time(const struct copying *c, const char *path, uint32_t number, int64_t mtime_ns)
{
    int64_t ns = c->removed && ckpt_has_bit(c->removed->dirs, number) ? c->removed->time_ns : mtime_ns;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {ns / 1000000000, ns % 1000000000}};
    return utimensat(c->step->tree, path, times, 0) < 0 ? -errno : 0;
}

static void restore_xattrs(int fd, const char *json)
{
    cJSON *all = ckpt_json_parse(json, strlen(json));
    const cJSON *e;
    cJSON_ArrayForEach(e, all)
    {
        size_t n = cJSON_IsString(e) ? strlen(e->valuestring) / 2 : 0;
        CKPT_AUTOFREE uint8_t *value = malloc(n + 1);
        bool ok = value && cJSON_IsString(e) && !strncmp(e->string, "user.", 5);
        for (size_t i = 0; i < n && ok; i++) {
            unsigned byte;
            ok = sscanf(e->valuestring + 2 * i, "%2x", &byte) == 1;
            value[i] = (uint8_t)byte;
        }
        if (ok && fsetxattr(fd, e->string, value, n, 0) < 0)
            ckpt_log(CKPT_LOG_DEBUG, "attribute %s is not copied: %s", e->string, strerror(errno));
    }
    cJSON_Delete(all);
}

static int copy_attrs(int fd, const struct ckpt_manifest_node *n)
{
    static const char *const kinds[CKPT_CONTAINERS] = {"dict", "list", "tuple", "namedtuple"};
    enum ckpt_dtype plain;
    bool big;
    if (n->kind == CKPT_NODE_DIR && n->container != CKPT_DICT)
        fsetxattr(fd, "user.ckpt.kind", kinds[n->container], strlen(kinds[n->container]), 0);
    const char *dtype = n->kind == CKPT_NODE_ARRAY ? ckpt_dtype_info(n->npy.dtype)->name : NULL;
    if (dtype && n->npy.dtype != CKPT_DT_OTHER && !(ckpt_dtype_by_descr(n->npy.descr, &plain, &big) && plain == n->npy.dtype))
        fsetxattr(fd, "user.ckpt.dtype", dtype, strlen(dtype), 0);
    if (n->xattrs)
        restore_xattrs(fd, n->xattrs);
    int r = ckpt_disk_chown(fd, n->uid, n->gid);
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
        r = fd < 0 ? -errno : copy_attrs(fd, n);
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
    struct ckpt_hold hold = {.store = step->set->store, .dir = step->hold};
    memcpy(ref.sha256, n->sha256, CKPT_SHA256);
    memcpy(ref.object, n->object, CKPT_SHA256);
    int r = ckpt_hold_object(&hold, ref.object);
    return r < 0 ? r : stage_make_ref(fd, &ref);
}

static int set_leaf_time(int fd, const struct ckpt_manifest_node *n)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {n->mtime_ns / 1000000000, n->mtime_ns % 1000000000}};
    return ckpt_disk_set_times(fd, times);
}

/* A new file with its content and attributes: a descriptor. */
static int make_leaf(struct stage_step *step, int dir, const char *path, const struct ckpt_manifest_node *n)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return fd;
    int r = copy_content(step, fd, n);
    if (r == 0)
        r = copy_attrs(fd, n);
    if (r < 0 && ckpt_disk_unlink(dir, path, 0) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "%s: half a copy stays", path);
    return r < 0 ? r : CKPT_STEAL_FD(fd);
}

/* The length that it should have on disk, though it does not count, and the time. */
static int finish_leaf(int fd, const struct ckpt_manifest_node *n)
{
    int r = is_ref(n) ? ckpt_disk_truncate(fd, n->size) : 0;
    return r < 0 ? r : set_leaf_time(fd, n);
}

int stage_copy_leaf(struct stage_step *step, int dir, const char *path, const struct ckpt_manifest_node *n)
{
    CKPT_AUTOFD int fd = make_leaf(step, dir, path, n);
    if (fd < 0)
        return fd;
    int r = finish_leaf(fd, n);
    if (r < 0 && ckpt_disk_unlink(dir, path, 0) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "%s: half a copy stays", path);
    return r;
}

int stage_link_leaf(struct stage_step *step, int dir, const char *name, const struct ckpt_manifest_node *n)
{
    char temp[32] = "link-";
    ckpt_random_hex(temp + strlen(temp), 8);
    CKPT_AUTOFD int fd = make_leaf(step, step->work, temp, n);
    if (fd < 0)
        return fd;
    int r = set_leaf_time(fd, n);
    if (r == 0)
        r = ckpt_disk_rename(step->work, temp, dir, name, RENAME_NOREPLACE);
    if (r < 0) {
        (void)!ckpt_disk_unlink(step->work, temp, 0);
        return r;
    }
    atomic_store(&step->unsynced, true);
    (void)!finish_leaf(fd, n); /* it is all there */
    return 0;
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
    if (snprintf(path, sizeof path, "%s%s%s", dir, *dir ? "/" : "", n->name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    if (n->kind == CKPT_NODE_DIR)
        return copy_dir(c, number, path, n);
    int r = stage_copy_leaf(c->step, c->step->tree, path, n);
    return r == -EEXIST ? 0 : r;
}

/* Times of directories, when nothing more is put into them. */
static int copy_dir_time(void *arg, uint32_t number, const struct ckpt_manifest_node *n, uint64_t off, uint32_t len)
{
    struct copying *c = arg;
    if (n->kind != CKPT_NODE_DIR || number >= c->dir_cap || !c->dirs[number])
        return 0;
    return set_dir_time(c, c->dirs[number], number, n->mtime_ns);
}

int stage_copy_tree(struct stage_step *step, struct ckpt_file *manifest, const struct ckpt_stage_removed *removed, struct ckpt_err *err)
{
    struct copying c = {.step = step, .removed = removed};
    struct ckpt_manifest_info info = {0}, again = {0};
    int r = ckpt_manifest_each(manifest, &info, copy_node, &c, err);
    if (r == 0)
        r = ckpt_manifest_each(manifest, &again, copy_dir_time, &c, err);
    if (r == 0)
        r = copy_attrs(step->tree, &info.top);
    if (r == 0)
        r = set_dir_time(&c, ".", 0, info.top.mtime_ns);
    if (r == 0 && info.metadata)
        r = ckpt_disk_replace(step->work, STAGE_METADATA, info.metadata, strlen(info.metadata));
    for (uint32_t i = 0; i < c.dir_cap; i++)
        free(c.dirs[i]);
    free(c.dirs);
    ckpt_manifest_info_clear(&info);
    ckpt_manifest_info_clear(&again);
    return r;
}
