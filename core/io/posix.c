/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory of the local machine. Every name is resolved beneath the directory by the kernel (openat2), so that
 * no symlink of an untrusted checkpoint leads outside. A sub-backend holds its directory by a descriptor: what it
 * names survives a rename of the directory.
 */
#include "core/io/posix.h"

#include "core/base/path.h"
#include "core/base/util.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

struct posix_backend {
    struct ckpt_backend base;
    int fd;                     /* O_PATH of the directory */
    struct posix_backend *root; /* the source, which links may not leave; self for the source itself */
    char *hidden;               /* of the source: a path that is as if it were not there; NULL: none */
    char path[];                /* from root to here, when it was opened */
};

struct posix_file {
    struct ckpt_file base;
    int fd;
};

static const struct ckpt_backend_ops posix_ops;
static const struct ckpt_file_ops posix_file_ops;

/* Without openat2 (old kernels, some sandboxes): every component by itself, and no links at all. */
static int open_by_steps(int dir, const char *path, int flags)
{
    int at = dir;
    for (const char *p = path;;) {
        const char *slash = strchr(p, '/');
        char name[256];
        size_t n = slash ? (size_t)(slash - p) : strlen(p);
        if (n >= sizeof name)
            n = sizeof name - 1; /* fails with ENOENT or ENAMETOOLONG below */
        memcpy(name, p, n);
        name[n] = 0;
        int fd = openat(at, name, slash ? O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC : flags | O_NOFOLLOW);
        int saved = errno;
        if (at != dir)
            close(at);
        if (fd < 0)
            return saved == ELOOP ? -EXDEV : -saved;
        if (!slash)
            return fd;
        at = fd;
        p = slash + 1;
    }
}

static int open_beneath(int dir, const char *path, int flags)
{
    if (!*path)
        path = ".";
    struct open_how how = {.flags = (uint64_t)flags, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    for (int tries = 0; tries < 100; tries++) {
        long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno == ENOSYS || errno == EPERM) {
            int r = open_by_steps(dir, path, flags);
            return r;
        }
        if (errno != EAGAIN && errno != EINTR) /* EAGAIN: a rename raced with the walk */
            break;
    }
    return -errno;
}

/* Is it, or does it lie in, what is hidden? */
static bool is_hidden(const struct posix_backend *b, const char *path)
{
    const char *hidden = b->root->hidden;
    size_t n = strlen(b->path);
    if (!hidden || strncmp(hidden, b->path, n) != 0)
        return false;
    hidden += n;
    if (n && *hidden++ != '/')
        return false;
    n = strlen(hidden);
    return n && !strncmp(path, hidden, n) && (!path[n] || path[n] == '/');
}

/* Open a name of b; a link that leaves b's directory but not the source is followed from the source. */
static int open_name(struct posix_backend *b, const char *path, int flags)
{
    if (is_hidden(b, path))
        return -ENOENT;
    int fd = open_beneath(b->fd, path, flags | O_CLOEXEC);
    ckpt_count_shortage(fd);
    if (fd != -EXDEV || b->root == b)
        return fd;
    char full[8192];
    if (!ckpt_path_put(full, sizeof full, b->path, path))
        return -ENAMETOOLONG;
    fd = open_beneath(b->root->fd, full, flags | O_CLOEXEC);
    ckpt_count_shortage(fd);
    return fd;
}

static int64_t to_ns(const struct statx_timestamp *t)
{
    return t->tv_sec * 1000000000ll + t->tv_nsec;
}

/* Of a name in a directory, or of the descriptor itself where path is "". */
static int stat_at(int fd, const char *path, struct ckpt_stat *ret)
{
    struct statx st;
    if (statx(fd, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, &st) <
        0)
        return -errno;
    *ret = (struct ckpt_stat){
        .type = S_ISREG(st.stx_mode)   ? CKPT_FT_FILE
                : S_ISDIR(st.stx_mode) ? CKPT_FT_DIR
                : S_ISLNK(st.stx_mode) ? CKPT_FT_LINK
                                       : CKPT_FT_OTHER,
        .size = st.stx_size,
        .stored = st.stx_blocks * 512,
        .mtime_ns = to_ns(&st.stx_mtime),
        .ctime_ns = to_ns(&st.stx_ctime),
        .btime_ns = st.stx_mask & STATX_BTIME ? to_ns(&st.stx_btime) : 0,
        .dev = makedev(st.stx_dev_major, st.stx_dev_minor),
        .ino = st.stx_ino,
        .mode = st.stx_mode & 07777,
        .uid = st.stx_uid,
        .gid = st.stx_gid,
    };
    return 0;
}

static int posix_stat(struct ckpt_backend *base, const char *path, struct ckpt_stat *ret)
{
    struct posix_backend *b = (struct posix_backend *)base;
    /* A name in the directory itself that is no link needs one call only. */
    if (*path && !strchr(path, '/') && !is_hidden(b, path) && stat_at(b->fd, path, ret) == 0 &&
        ret->type != CKPT_FT_LINK)
        return 0;
    CKPT_AUTOFD int fd = open_name(b, path, O_PATH);
    return fd < 0 ? fd : stat_at(fd, "", ret);
}

static int posix_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    struct posix_backend *b = (struct posix_backend *)base;
    char full[8192];
    int fd = open_name(b, path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return fd;
    DIR *dir = fdopendir(fd);
    if (!dir) {
        int saved = errno;
        close(fd);
        return -saved;
    }
    /* One that has been removed is no empty directory, though readdir makes it one. */
    struct stat own;
    int r = fstat(dirfd(dir), &own) == 0 && !own.st_nlink ? -ENOENT : 0;
    while (r == 0) {
        errno = 0;
        struct dirent *e = readdir(dir);
        if (!e) {
            r = errno ? -errno : fstat(dirfd(dir), &own) == 0 && !own.st_nlink ? -ENOENT : 0;
            break;
        }
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        bool may_be_hidden = b->root->hidden && ckpt_path_put(full, sizeof full, path, e->d_name);
        if (may_be_hidden && is_hidden(b, full))
            continue;
        enum ckpt_ftype type = e->d_type == DT_REG   ? CKPT_FT_FILE
                               : e->d_type == DT_DIR ? CKPT_FT_DIR
                               : e->d_type == DT_LNK ? CKPT_FT_LINK
                                                     : CKPT_FT_OTHER;
        if (e->d_type == DT_UNKNOWN) {
            struct ckpt_stat st = {.type = CKPT_FT_OTHER};
            type = stat_at(dirfd(dir), e->d_name, &st) < 0 ? CKPT_FT_OTHER : st.type;
        }
        r = visit(arg, e->d_name, type);
    }
    closedir(dir);
    return r;
}

static int posix_open(struct ckpt_backend *base, const char *path, struct ckpt_file **ret)
{
    /* O_NONBLOCK: a FIFO planted in a checkpoint must not hang the open. */
    CKPT_AUTOFD int fd = open_name((struct posix_backend *)base, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return fd;
    struct ckpt_stat st;
    int r = stat_at(fd, "", &st);
    if (r < 0)
        return r;
    if (st.type != CKPT_FT_FILE)
        return st.type == CKPT_FT_DIR ? -EISDIR : -EPERM;
    struct posix_file *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->base.ops = &posix_file_ops;
    f->base.st = st;
    atomic_init(&f->base.refs, 1);
    f->fd = fd;
    fd = -1;
    *ret = &f->base;
    return 0;
}

static int posix_sub(struct ckpt_backend *base, const char *path, struct ckpt_backend **ret)
{
    struct posix_backend *b = (struct posix_backend *)base;
    CKPT_AUTOFD int fd = open_name(b, path, O_PATH | O_DIRECTORY);
    if (fd < 0)
        return fd;
    size_t n = strlen(b->path) + strlen(path) + 2;
    struct posix_backend *sub = calloc(1, sizeof *sub + n);
    if (!sub)
        return -ENOMEM;
    sub->base.ops = &posix_ops;
    atomic_init(&sub->base.refs, 1);
    sub->root = b->root;
    ckpt_backend_ref(&b->root->base);
    ckpt_path_put(sub->path, n, b->path, path);
    sub->fd = fd;
    fd = -1;
    *ret = &sub->base;
    return 0;
}

static int posix_readlink(struct ckpt_backend *base, const char *path, char *buf, size_t len)
{
    struct posix_backend *b = (struct posix_backend *)base;
    CKPT_AUTOFD int fd = open_name(b, path, O_PATH | O_NOFOLLOW);
    if (fd < 0)
        return fd;
    ssize_t n = readlinkat(fd, "", buf, len - 1);
    if (n < 0)
        return -errno;
    buf[n] = 0;
    return 0;
}

static ssize_t posix_read(struct ckpt_file *base, void *buf, size_t len, uint64_t off)
{
    return ckpt_pread(((struct posix_file *)base)->fd, buf, len, off);
}

static int posix_fd(struct ckpt_file *base)
{
    return ((struct posix_file *)base)->fd;
}

/* Where the data or the hole at off ends, if it is that; 0: it is not, or nobody knows. */
static uint64_t data_end(int fd, uint64_t off)
{
    off_t end = lseek(fd, (off_t)off, SEEK_DATA) == (off_t)off ? lseek(fd, (off_t)off, SEEK_HOLE) : -1;
    return end > (off_t)off ? (uint64_t)end : 0;
}

static uint64_t hole_end(int fd, uint64_t off)
{
    off_t end = lseek(fd, (off_t)off, SEEK_DATA);
    if (end < 0 && errno == ENXIO) /* to the end of the file */
        end = lseek(fd, 0, SEEK_END);
    return end > (off_t)off ? (uint64_t)end : 0;
}

/* What has no place on the disk is zeros. Looking for that is worth it only where less is stored than there is. */
static void posix_run(struct ckpt_file *base, uint64_t off, uint64_t end, struct ckpt_run *ret)
{
    int fd = ((struct posix_file *)base)->fd;
    if (base->st.stored >= base->st.size)
        return;
    uint64_t hole = hole_end(fd, off), next = hole ? hole : data_end(fd, off);
    ret->zeros = hole != 0;
    if (next)
        ret->end = CKPT_MIN(end, next);
}

static void posix_close(struct ckpt_file *base)
{
    close(((struct posix_file *)base)->fd);
    free(base);
}

static void posix_free(struct ckpt_backend *base)
{
    struct posix_backend *b = (struct posix_backend *)base;
    if (b->root != b)
        ckpt_backend_unref(&b->root->base);
    close(b->fd);
    free(b->hidden);
    free(b);
}

int ckpt_backend_hide(struct ckpt_backend *base, const char *path)
{
    struct posix_backend *b = (struct posix_backend *)base;
    b->hidden = strdup(path);
    return b->hidden ? 0 : -ENOMEM;
}

int ckpt_posix_open_at(int dir, const char *path, struct ckpt_backend **ret)
{
    CKPT_AUTOFD int fd = openat(dir, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        int error = errno;
        ckpt_count_shortage(-error);
        return -error;
    }
    struct posix_backend *b = calloc(1, sizeof *b + 1);
    if (!b)
        return -ENOMEM;
    b->base.ops = &posix_ops;
    atomic_init(&b->base.refs, 1);
    b->root = b;
    b->fd = fd;
    fd = -1;
    *ret = &b->base;
    return 0;
}

int ckpt_backend_open_posix(const char *path, struct ckpt_backend **ret, struct ckpt_err *err)
{
    int r = ckpt_posix_open_at(AT_FDCWD, path, ret);
    return r < 0 ? ckpt_fail(err, -r, "%s: %s", path, strerror(-r)) : 0;
}

static const struct ckpt_backend_ops posix_ops = {
    .name = "posix",
    .changes = true,
    .stat = posix_stat,
    .list = posix_list,
    .open = posix_open,
    .sub = posix_sub,
    .readlink = posix_readlink,
    .free = posix_free,
};

static const struct ckpt_file_ops posix_file_ops = {
    .name = "posix",
    .read = posix_read,
    .fd = posix_fd,
    .run = posix_run,
    .close = posix_close,
};
