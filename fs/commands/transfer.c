/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/commands/transfer.h"

#include "core/array/npy.h"
#include "core/base/util.h"
#include "core/io/disk.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>

#define BLOCK     ((size_t)4 << 20)
#define HOLE      ((size_t)64 << 10) /* zeros of this many bytes are not written */
#define MAX_DEPTH 300                /* what ckpt_disk_remove_tree can take away again */

/* --- signals --- */

static volatile sig_atomic_t caught;

static void catch (int signal)
{
    caught = signal;
}

void fs_interrupt_begin(void)
{
    struct sigaction sa = {.sa_handler = catch, .sa_flags = (int)SA_RESETHAND}; /* the second one ends it at once */
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool fs_interrupted(void)
{
    return caught;
}

void fs_interrupt_end(void)
{
    if (caught)
        raise(caught);
}

/* --- a file --- */

struct into {
    struct fs_transfer *t;
    struct ckpt_err *err;
    uint8_t *block;
    uint64_t from;
    const char *path;
    int dir;
    unsigned depth;
    struct ckpt_files *files; /* NULL: files of the source; else the ids are numbers of these */
};

static int unwritable(const struct into *in, const char *path, int error)
{
    in->t->unwritable = true;
    return ckpt_fail(in->err, -error, "%s cannot be written: %s", *path ? path : "it", strerror(-error));
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* What is not zeros, in pieces as long as possible. */
static int write_block(int fd, const uint8_t *p, size_t len, uint64_t off)
{
    int r = 0;
    for (size_t begin = 0, end = 0; begin < len && r == 0; begin = end) {
        bool zero = all_zero(p + begin, CKPT_MIN(len - begin, HOLE));
        for (end = begin; end < len && all_zero(p + end, CKPT_MIN(len - end, HOLE)) == zero;)
            end += CKPT_MIN(len - end, HOLE);
        if (!zero)
            r = ckpt_disk_write(fd, p + begin, end - begin, off + begin);
    }
    return r;
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

/* An array whose .npy header fits several types. The others need not be asked about, which takes longer than a small
 * one's copy. */
static bool is_unclear(const uint8_t *data, size_t len)
{
    struct ckpt_npy npy;
    return ckpt_npy_parse(data, len, &npy, NULL) == 0 &&
           (strchr(npy.descr, 'V') || (npy.itemsize == 1 && npy.dtype != CKPT_DT_BOOL));
}

static int copy_bytes(const struct into *in, uint64_t id, const char *path, int fd, bool *ret_unclear)
{
    struct fs_transfer *t = in->t;
    uint64_t off = 0;
    *ret_unclear = false;
    for (ssize_t n = 1; n > 0; off += (uint64_t)n) {
        uint64_t end;
        if (fs_interrupted())
            return ckpt_fail(in->err, EINTR, "%s: interrupted", path);
        if (!in->files && off && ckpt_run(t->src, id, off, &end, NULL) == 0) {
            fs_progress_add(&t->progress, path, end - off);
            off = end;
        }
        n = in->files ? ckpt_files_read(in->files, id, in->block, BLOCK, off, in->err)
                      : ckpt_read(t->src, id, in->block, BLOCK, off, in->err);
        if (n < 0)
            return ckpt_fail_in(in->err, (int)-n, "%s", path);
        if (!off && t->attributes)
            *ret_unclear = is_unclear(in->block, (size_t)n);
        int r = write_block(fd, in->block, (size_t)n, off);
        if (r < 0)
            return unwritable(in, path, r);
        fs_progress_add(&t->progress, path, (uint64_t)n);
    }
    int r = ckpt_disk_truncate(fd, off);
    if (r < 0)
        return unwritable(in, path, r);
    t->bytes += off;
    return 0;
}

static int set_attribute(const struct into *in, int fd, const char *path, const char *name, const char *value,
                         size_t len)
{
    int r = ckpt_disk_setxattr(fd, name, value, len);
    return r < 0 ? unwritable(in, path, r) : 0;
}

static int keep_dtype(const struct into *in, uint64_t id, const char *path, int fd)
{
    char dtype[64];
    ssize_t len = ckpt_getxattr(in->t->src, id, "user.ckpt.dtype", NULL, dtype, sizeof dtype - 1);
    if (len <= 0)
        return 0;
    dtype[len] = 0;
    return needs_dtype(dtype) ? set_attribute(in, fd, path, "user.ckpt.dtype", dtype, (size_t)len) : 0;
}

static int keep_kind(const struct into *in, uint64_t id, const char *path, int fd)
{
    char kind[64];
    if (!in->t->attributes)
        return 0;
    ssize_t len = ckpt_getxattr(in->t->src, id, "user.ckpt.kind", NULL, kind, sizeof kind - 1);
    kind[CKPT_MAX(len, 0)] = 0;
    return strcmp(kind, "list") && strcmp(kind, "tuple")
               ? 0
               : set_attribute(in, fd, path, "user.ckpt.kind", kind, (size_t)len);
}

static int keep_own_one(const struct into *in, uint64_t id, const char *path, int fd, const char *name)
{
    CKPT_AUTOFREE char *value = malloc(XATTR_SIZE_MAX);
    ssize_t n = value ? ckpt_getxattr(in->t->src, id, name, NULL, value, XATTR_SIZE_MAX) : -ENOMEM;
    return n < 0 ? ckpt_fail(in->err, (int)-n, "%s: its attribute %s: %s", path, name, strerror((int)-n))
                 : set_attribute(in, fd, path, name, value, (size_t)n);
}

static int keep_own(const struct into *in, uint64_t id, const char *path, int fd)
{
    if (!in->t->own_attributes)
        return 0;
    ssize_t n = ckpt_listxattr(in->t->src, id, NULL, 0);
    CKPT_AUTOFREE char *names = malloc((size_t)CKPT_MAX(n, 0) + 1);
    if (n >= 0)
        n = names ? ckpt_listxattr(in->t->src, id, names, (size_t)n) : -ENOMEM;
    int r = n < 0 ? ckpt_fail(in->err, (int)-n, "%s: its attributes: %s", path, strerror((int)-n)) : 0;
    for (const char *p = names; r == 0 && p < names + n; p += strlen(p) + 1)
        if (strncmp(p, "user.ckpt.", 10))
            r = keep_own_one(in, id, path, fd, p);
    return r;
}

/* Times are kept, as by cp -p; that some file system cannot is no failure. */
static void keep_time(const struct ckpt_attr *at, int fd)
{
    struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT},
                             {.tv_sec = at->mtime_ns / 1000000000, .tv_nsec = at->mtime_ns % 1000000000}};
    if (ts[1].tv_nsec < 0) {
        ts[1].tv_nsec += 1000000000;
        ts[1].tv_sec--;
    }
    (void)!futimens(fd, ts);
}

/* --- the tree --- */

static int copy_file(const struct into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(in->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                                        (at->mode | 0600) & 0777);
    if (fd < 0)
        return unwritable(in, path, fd);
    bool unclear;
    int r = copy_bytes(in, at->id, path, fd, &unclear);
    if (r == 0 && unclear)
        r = keep_dtype(in, at->id, path, fd);
    if (r == 0)
        r = keep_own(in, at->id, path, fd);
    if (r < 0)
        return r;
    keep_time(at, fd);
    in->t->files++;
    r = in->t->durable ? ckpt_disk_fsync(fd) : 0;
    return r < 0 ? unwritable(in, path, r) : 0;
}

static int copy_entries(const struct into *in, const struct ckpt_attr *at);

static int copy_dir(const struct into *in, const struct ckpt_attr *at, const char *path, const char *name)
{
    int r = ckpt_disk_mkdir(in->dir, name, (at->mode | 0700) & 0777);
    if (r < 0)
        return unwritable(in, path, r);
    CKPT_AUTOFD int fd = openat(in->dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return unwritable(in, path, -errno);
    struct into below = *in;
    below.from = at->id;
    below.path = path;
    below.dir = fd;
    below.depth++;
    return copy_entries(&below, at);
}

static int copy_entry(void *arg, const struct ckpt_dirent *e)
{
    const struct into *in = arg;
    struct ckpt_attr at;
    CKPT_AUTOFREE char *path = fs_join(in->path, e->name);
    if (!path)
        return ckpt_no_memory(in->err);
    int r = ckpt_lookup(in->t->src, in->from, e->name, &at, in->err);
    if (r < 0)
        return ckpt_fail_in(in->err, -r, "%s", path);
    if (at.type == CKPT_DIR)
        r = copy_dir(in, &at, path, e->name);
    else if (at.type == CKPT_FILE)
        r = copy_file(in, &at, path, e->name);
    else
        r = ckpt_fail(in->err, EPERM, "%s: a link cannot be part of a step", path);
    ckpt_forget(in->t->src, at.id, 1);
    return r;
}

/* Everything in a directory, and then what is known of itself. */
static int copy_entries(const struct into *in, const struct ckpt_attr *at)
{
    if (in->depth > MAX_DEPTH)
        return ckpt_fail(in->err, ENAMETOOLONG, "%s: nested too deeply", in->path);
    struct into own = *in;
    int r = fs_each_entry(in->t->src, at->id, copy_entry, &own, in->err);
    if (r == 0)
        r = keep_kind(in, at->id, in->path, in->dir);
    if (r == 0)
        r = keep_own(in, at->id, in->path, in->dir);
    if (r < 0)
        return r;
    keep_time(at, in->dir);
    r = in->t->durable ? ckpt_disk_fsync(in->dir) : 0;
    return r < 0 ? unwritable(in, in->path, r) : 0;
}

int fs_transfer_run(struct fs_transfer *t, const struct ckpt_attr *from, int dir, struct ckpt_err *err)
{
    struct fs_sum sum;
    CKPT_AUTOFREE uint8_t *block = malloc(BLOCK);
    if (!block)
        return ckpt_no_memory(err);
    fs_progress_begin(&t->progress);
    if (t->progress.on && fs_sum(t->src, from->id, &sum, NULL) == 0)
        t->progress.total = sum.bytes;
    struct into in = {t, err, block, from->id, "", dir, 0, NULL};
    int r = copy_entries(&in, from);
    fs_progress_clear(&t->progress);
    return r;
}

int fs_transfer_file(struct fs_transfer *t, const struct ckpt_attr *from, int dir, const char *name,
                     struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *block = malloc(BLOCK);
    if (!block)
        return ckpt_no_memory(err);
    fs_progress_begin(&t->progress);
    t->progress.total = from->size;
    struct into in = {t, err, block, from->id, "", dir, 0, NULL};
    int r = copy_file(&in, from, "", name);
    fs_progress_clear(&t->progress);
    return r;
}

/* --- files made of a checkpoint --- */

/* The directory that a path's last name is in, made if it is not there. */
static int open_folder(const struct into *in, const char *path, const char *slash)
{
    CKPT_AUTOFREE char *folder = slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    if (!folder)
        return -ENOMEM;
    int r = slash ? ckpt_disk_mkdir(in->dir, folder, 0777) : 0;
    int fd = r == 0 || r == -EEXIST ? openat(in->dir, folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : r;
    return fd == -1 ? -errno : fd;
}

static int write_made(const struct into *in, size_t index, const char *path)
{
    const char *slash = strrchr(path, '/');
    bool unclear;
    CKPT_AUTOFD int folder = open_folder(in, path, slash);
    if (folder < 0)
        return unwritable(in, path, folder);
    CKPT_AUTOFD int fd = ckpt_disk_open(folder, slash ? slash + 1 : path,
                                        O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return unwritable(in, path, fd);
    int r = copy_bytes(in, index, path, fd, &unclear);
    if (r < 0)
        return r;
    in->t->files++;
    r = in->t->durable ? ckpt_disk_fsync(fd) : 0;
    if (r == 0 && in->t->durable)
        r = ckpt_disk_fsync(folder);
    return r < 0 ? unwritable(in, path, r) : 0;
}

int fs_transfer_files(struct fs_transfer *t, struct ckpt_files *files, int dir, struct ckpt_err *err)
{
    CKPT_AUTOFREE uint8_t *block = malloc(BLOCK);
    const char *path;
    uint64_t size;
    int r = 0;
    if (!block)
        return ckpt_no_memory(err);
    fs_progress_begin(&t->progress);
    for (size_t i = 0; ckpt_files_get(files, i, &path, &size); i++)
        t->progress.total += size;
    struct into in = {t, err, block, 0, "", dir, 0, files};
    for (size_t i = 0; ckpt_files_get(files, i, &path, &size) && r == 0; i++)
        r = write_made(&in, i, path);
    fs_progress_clear(&t->progress);
    if (r == 0 && t->durable && (r = ckpt_disk_fsync(dir)) < 0)
        r = unwritable(&in, "", r);
    return r;
}
