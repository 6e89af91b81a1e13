/* SPDX-License-Identifier: Apache-2.0 */
/* The tree: files by transfer_bytes.c, and what is kept beside their bytes by transfer_attributes.c. */
#include "fs/commands/interrupt.h"
#include "fs/commands/transfer_private.h"

#include "core/base/util.h"
#include "core/base/path.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <sys/stat.h>

#define NEW_FILE  (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)
#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* --- what goes wrong --- */

int fs_unwritable(const struct fs_into *in, const char *path, int error)
{
    in->t->unwritable = true;
    return ckpt_fail(in->err, -error, "%s cannot be written: %s", *path ? path : "it", strerror(-error));
}

int fs_left_out(const struct fs_into *in, const char *path, int error)
{
    struct fs_transfer *t = in->t;
    if (!t->fault)
        return *path ? ckpt_fail_in(in->err, -error, "%s", path) : fs_give_reason(in->err, error);
    fs_progress_clear(&t->progress);
    t->fault(t->arg, path, error, in->err);
    *in->err = (struct ckpt_err){0}; /* the next one must not be told with this reason */
    return 1;
}

/* --- one file --- */

/* What is written first under this name. */
static const char *first_name(const struct fs_into *in, const char *name)
{
    return in->t->temporary ? in->t->temporary : name;
}

/* It is whole: its own name, or that of the directory, stands for it from now on. */
static int give_name(const struct fs_into *in, const char *path, const char *name)
{
    const char *temporary = in->t->temporary;
    if (!temporary)
        return 0;
    int r = ckpt_disk_rename(in->dir, temporary, in->dir, name, 0);
    return r < 0 ? fs_unwritable(in, path, r) : 0;
}

static void remove_temporary(const struct fs_into *in)
{
    if (in->t->temporary)
        (void)!ckpt_disk_unlink(in->dir, in->t->temporary, 0);
}

static int sync_descriptor(const struct fs_into *in, const char *path, int fd)
{
    int r = in->t->durable ? ckpt_disk_fsync(fd) : 0;
    return r < 0 ? fs_unwritable(in, path, r) : 0;
}

/* 1: left out. */
static int fill_file(const struct fs_into *in, const struct ckpt_attr *at, const char *path, int fd)
{
    bool unclear;
    int r = fs_copy_bytes(in, at->id, path, fd, &unclear);
    if (r != 0)
        return r;
    if (in->t->attributes)
        r = fs_keep_told(in, at, path, fd, unclear);
    if (r == 0)
        r = fs_keep_own_attributes(in, at->id, path, fd);
    if (r == 0)
        r = fs_keep_time(in, at, path, fd);
    return r < 0 ? r : sync_descriptor(in, path, fd);
}

static int copy_file(const struct fs_into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(in->dir, first_name(in, name), NEW_FILE, (at->mode | in->t->file_mode) & 0777);
    if (fd < 0)
        return fs_unwritable(in, path, fd);
    int r = fill_file(in, at, path, fd);
    if (r == 0)
        r = give_name(in, path, name);
    if (r != 0)
        remove_temporary(in);
    else
        in->t->files++;
    return CKPT_MIN(r, 0);
}

static int copy_link(const struct fs_into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    char target[4096];
    if (!in->t->links)
        return ckpt_fail(in->err, EPERM, "%s: a link cannot be part of a step", path);
    int r = ckpt_readlink(in->t->src, at->id, target, sizeof target);
    if (r < 0)
        return CKPT_MIN(fs_left_out(in, path, r), 0);
    if (symlinkat(target, in->dir, first_name(in, name)) < 0)
        return fs_unwritable(in, path, -errno);
    r = give_name(in, path, name);
    if (r < 0)
        remove_temporary(in);
    return r;
}

/* --- directories --- */

static int copy_dir(const struct fs_into *in, const struct ckpt_attr *at, const char *path, const char *name);

static int copy_any(const struct fs_into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    switch (at->type) {
    case CKPT_DIR:
        return copy_dir(in, at, path, name);
    case CKPT_FILE:
        return copy_file(in, at, path, name);
    default:
        return copy_link(in, at, path, name);
    }
}

static int copy_entry(const struct fs_into *in, const char *name)
{
    struct ckpt_source *src = in->t->src;
    struct ckpt_attr at;
    CKPT_AUTOFREE char *path = ckpt_path_join(in->path, name);
    if (!path)
        return ckpt_no_memory(in->err);
    if (fs_interrupted())
        return ckpt_fail(in->err, EINTR, "%s: interrupted", path);
    int r = ckpt_lookup(src, in->from, name, &at, in->err);
    if (r == -ENOENT && in->t->fault) /* it went while the rest was copied */
        return 0;
    if (r < 0)
        return CKPT_MIN(fs_left_out(in, path, r), 0);
    r = copy_any(in, &at, path, name);
    ckpt_forget(src, at.id, 1);
    return r;
}

static int copy_entries(const struct fs_into *in, struct ckpt_dir *entries)
{
    struct ckpt_dirent e;
    int more = ckpt_readdir(entries, 0, &e);
    while (more == 1) {
        int r = copy_entry(in, e.name);
        if (r < 0)
            return r;
        more = ckpt_readdir(entries, e.next, &e);
    }
    return more < 0 ? CKPT_MIN(fs_left_out(in, in->path, more), 0) : 0;
}

/* Everything in a directory, and then what is known of itself. */
static int fill_dir(const struct fs_into *in, const struct ckpt_attr *at, struct ckpt_dir *entries)
{
    if (in->depth > in->t->max_depth)
        return ckpt_fail(in->err, ENAMETOOLONG, "%s: nested too deeply", in->path);
    int r = copy_entries(in, entries);
    bool is_users = !in->depth && in->t->temporary; /* it was there before, and only gets something more */
    if (r < 0 || is_users)
        return r;
    r = fs_keep_kind(in, at->id, in->path, in->dir);
    if (r == 0)
        r = fs_keep_own_attributes(in, at->id, in->path, in->dir);
    if (r == 0)
        r = fs_keep_time(in, at, in->path, in->dir);
    return r < 0 ? r : sync_descriptor(in, in->path, in->dir);
}

/* The directory of that name, made if it is not there: a descriptor. */
static int make_dir(const struct fs_into *in, const char *name, mode_t mode)
{
    int r = ckpt_disk_mkdir(in->dir, name, mode);
    bool may_be_there = in->t->temporary;
    if (r < 0 && !(r == -EEXIST && may_be_there))
        return r;
    int fd = openat(in->dir, name, DIRECTORY);
    return fd < 0 ? -errno : fd;
}

static int copy_dir(const struct fs_into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    struct ckpt_dir *entries;
    bool immutable;
    /* Before the directory is made: an empty one would look like a checkpoint. */
    int r = ckpt_opendir(in->t->src, at->id, &entries, &immutable, in->err);
    if (r < 0)
        return CKPT_MIN(fs_left_out(in, path, r), 0);
    CKPT_AUTOFD int fd = make_dir(in, name, (at->mode | 0700) & 0777);
    struct fs_into below = *in;
    below.from = at->id;
    below.path = path;
    below.dir = fd;
    below.depth++;
    r = fd < 0 ? fs_unwritable(in, path, fd) : fill_dir(&below, at, entries);
    ckpt_closedir(entries);
    return r;
}

/* --- the whole --- */

/* The place where a transfer begins; its block is to be freed. */
static int begin(struct fs_transfer *t, int dir, struct ckpt_err *err, struct fs_into *ret)
{
    uint8_t *block = malloc(FS_TRANSFER_BLOCK);
    if (!block)
        return ckpt_no_memory(err);
    *ret = (struct fs_into){.t = t, .err = err, .block = block, .path = t->shown ? t->shown : "", .dir = dir};
    fs_progress_begin(&t->progress);
    return 0;
}

static int end(const struct fs_into *in, int r)
{
    fs_progress_clear(&in->t->progress);
    free(in->block);
    return r;
}

/* What a progress bar counts to. */
static void set_total(struct fs_transfer *t, const struct ckpt_attr *from)
{
    struct fs_sum sum;
    if (from->type == CKPT_FILE)
        t->progress.total = from->size;
    else if (t->progress.on && fs_sum(t->src, from->id, &sum, NULL) == 0)
        t->progress.total = sum.bytes;
}

static int fill_given(struct fs_into *in, const struct ckpt_attr *from)
{
    struct ckpt_dir *entries;
    bool immutable;
    in->from = from->id;
    int r = ckpt_opendir(in->t->src, from->id, &entries, &immutable, in->err);
    if (r < 0)
        return CKPT_MIN(fs_left_out(in, in->path, r), 0);
    r = fill_dir(in, from, entries);
    ckpt_closedir(entries);
    return r;
}

int fs_transfer_contents(struct fs_transfer *t, const struct ckpt_attr *from, int dir, struct ckpt_err *err)
{
    struct fs_into in;
    int r = begin(t, dir, err, &in);
    if (r < 0)
        return r;
    set_total(t, from);
    return end(&in, fill_given(&in, from));
}

int fs_transfer_entry(struct fs_transfer *t, const struct ckpt_attr *from, int dir, const char *name,
                      struct ckpt_err *err)
{
    struct fs_into in;
    int r = begin(t, dir, err, &in);
    if (r < 0)
        return r;
    set_total(t, from);
    return end(&in, copy_any(&in, from, in.path, name));
}

/* --- files made of a checkpoint --- */

/* The directory that a path's last name is in, made if it is not there. */
static int open_folder(const struct fs_into *in, const char *path, const char *slash)
{
    if (!slash)
        return openat(in->dir, ".", DIRECTORY);
    CKPT_AUTOFREE char *folder = strndup(path, (size_t)(slash - path));
    if (!folder)
        return -ENOMEM;
    int r = ckpt_disk_mkdir(in->dir, folder, 0777);
    if (r < 0 && r != -EEXIST)
        return r;
    int fd = openat(in->dir, folder, DIRECTORY);
    return fd < 0 ? -errno : fd;
}

static int write_made(const struct fs_into *in, size_t index, const char *path)
{
    const char *slash = strrchr(path, '/');
    bool unclear;
    CKPT_AUTOFD int folder = open_folder(in, path, slash);
    if (folder < 0)
        return fs_unwritable(in, path, folder);
    CKPT_AUTOFD int fd = ckpt_disk_open(folder, slash ? slash + 1 : path, NEW_FILE, 0666);
    if (fd < 0)
        return fs_unwritable(in, path, fd);
    int r = fs_copy_bytes(in, index, path, fd, &unclear);
    if (r < 0)
        return r;
    in->t->files++;
    r = sync_descriptor(in, path, fd);
    return r < 0 ? r : sync_descriptor(in, path, folder);
}

static int write_all_made(const struct fs_into *in)
{
    const char *path;
    uint64_t size;
    for (size_t i = 0; ckpt_files_get(in->files, i, &path, &size); i++) {
        int r = write_made(in, i, path);
        if (r < 0)
            return r;
    }
    return sync_descriptor(in, "", in->dir);
}

int fs_transfer_files(struct fs_transfer *t, struct ckpt_files *files, int dir, struct ckpt_err *err)
{
    struct fs_into in;
    const char *path;
    uint64_t size;
    int r = begin(t, dir, err, &in);
    if (r < 0)
        return r;
    in.files = files;
    for (size_t i = 0; ckpt_files_get(files, i, &path, &size); i++)
        t->progress.total += size;
    return end(&in, write_all_made(&in));
}
