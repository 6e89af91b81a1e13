/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory of the local machine. Every name is resolved beneath the directory by the kernel (openat2), so that
 * no symlink of an untrusted checkpoint leads outside. A sub-backend holds its directory by a descriptor: what it
 * names survives a rename of the directory.
 *
 * Some links that lead outside are followed all the same, and are then what they lead to, not links: those of a
 * snapshot in a cache of the Hugging Face hub to the blobs of its own repository, whose directory is held open; and
 * what ckpt_backend_set_bounds() is told.
 */
#include "core/io/posix.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/follow.h"
#include "core/io/hub.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define PATH_ROOM 8192

/* Of the source alone. */
struct outside {
    char *real;        /* its absolute path without links; NULL: that cannot be told */
    size_t repository; /* of `real`: a repository of the hub that it is in a snapshot of; 0: in none */
    int blobs;         /* O_PATH of that repository's blobs; -1 */
    bool all;          /* all links are followed */
    char *own;         /* a name at the top that is followed; NULL: none */
    char *never;       /* an absolute path that no link is followed to */
};

struct posix_backend {
    struct ckpt_backend base;
    int fd;                     /* O_PATH of the directory */
    struct posix_backend *root; /* the source, which links may not leave; self for the source itself */
    char *hidden;               /* of the source: a path that is as if it were not there; NULL: none */
    struct outside outside;
    bool beyond; /* it was come to by a link that leads out: names are resolved one by one, so that no link leads to
                    what is never looked at */
    char path[]; /* from root to here, when it was opened */
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

static int open_resolved(int dir, const char *path, int flags, uint64_t resolve)
{
    if (!*path)
        path = ".";
    flags |= O_CLOEXEC;
    struct open_how how = {.flags = (uint64_t)flags, .resolve = resolve};
    for (int tries = 0; tries < 100; tries++) {
        long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno == ENOSYS || errno == EPERM)
            return open_by_steps(dir, path, flags);
        if (errno != EAGAIN && errno != EINTR) /* EAGAIN: a rename raced with the walk */
            break;
    }
    return -errno;
}

static int open_beneath(int dir, const char *path, int flags)
{
    return open_resolved(dir, path, flags, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);
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

/* --- links that are followed though they may lead out --- */

/* The absolute path of the directory that a name is in, as a text. */
static bool place_of(const struct posix_backend *b, const char *path, char ret[PATH_ROOM])
{
    const char *real = b->root->outside.real, *slash = strrchr(path, '/');
    if (!real)
        return false;
    int n = snprintf(ret, PATH_ROOM, "%s%s%s%s%.*s", real, *b->path ? "/" : "", b->path, slash ? "/" : "",
                     slash ? (int)(slash - path) : 0, path);
    return n < PATH_ROOM;
}

/* What a link says, if it is one, and lies where its path says: no link is on the way. */
static bool read_link(const struct posix_backend *b, const char *path, char ret[PATH_ROOM])
{
    CKPT_AUTOFD int fd = open_resolved(b->fd, path, O_PATH | O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    ssize_t n = fd < 0 ? -1 : readlinkat(fd, "", ret, PATH_ROOM - 1);
    if (n >= 0)
        ret[n] = 0;
    return n >= 0;
}

/* The blob that a link in a snapshot stands for; -EXDEV: it is no such link. Whatever is renamed meanwhile, what is
 * opened is a file right in the blobs of that repository. */
static int open_blob(const struct posix_backend *b, const char *path, int flags)
{
    const struct outside *o = &b->root->outside;
    const uint64_t strict = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
    char dir[PATH_ROOM], target[PATH_ROOM];
    struct stat st;
    size_t repository = place_of(b, path, dir) ? ckpt_hub_repository(dir) : 0;
    const char *blob = repository && read_link(b, path, target) ? ckpt_hub_blob(dir, target) : NULL;
    if (!blob)
        return -EXDEV;
    int fd;
    size_t top = strlen(o->real);
    if (repository >= top) { /* the repository is the source, or in it */
        char whole[PATH_ROOM], in[PATH_ROOM];
        size_t skipped = CKPT_MIN(top + 1, repository);
        snprintf(in, sizeof in, "%.*s", (int)(repository - skipped), dir + skipped);
        bool fits = ckpt_path_put(whole, PATH_ROOM, in, "blobs") && ckpt_path_put(in, PATH_ROOM, whole, blob);
        fd = fits ? open_resolved(b->root->fd, in, flags | O_NOFOLLOW, strict) : -ENAMETOOLONG;
    } else if (repository == o->repository && o->blobs >= 0)
        fd = open_resolved(o->blobs, blob, flags | O_NOFOLLOW, strict);
    else
        return -EXDEV;
    if (fd < 0)
        return fd == -ELOOP ? -EXDEV : fd; /* a link on the way */
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return fd;
    close(fd);
    return -EXDEV;
}

/* A name whose links lead out, where they are followed; -EXDEV. */
static int open_outside(const struct posix_backend *b, const char *path, int flags)
{
    const struct outside *o = &b->root->outside;
    char full[PATH_ROOM];
    if (b->beyond)
        return ckpt_follow(b->fd, path, flags, o->never);
    int fd = open_blob(b, path, flags);
    if (fd != -EXDEV)
        return fd;
    bool is_own = o->own && !*b->path && !strcmp(path, o->own);
    if (!o->all && !is_own)
        return -EXDEV;
    return ckpt_path_put(full, PATH_ROOM, b->path, path) ? ckpt_follow(b->root->fd, full, flags, o->never)
                                                         : -ENAMETOOLONG;
}

/* The same within the source; -EXDEV: a link leads out of it. A link that leaves b's directory but not the source is
 * followed from the source. */
static int open_inside(const struct posix_backend *b, const char *path, int flags)
{
    char full[PATH_ROOM];
    int fd = b->beyond ? -EXDEV : open_beneath(b->fd, path, flags);
    if (fd != -EXDEV || b->root == b || b->beyond)
        return fd;
    return ckpt_path_put(full, PATH_ROOM, b->path, path) ? open_beneath(b->root->fd, full, flags) : -ENAMETOOLONG;
}

/* Open a name of b. */
static int open_name(const struct posix_backend *b, const char *path, int flags)
{
    if (is_hidden(b, path))
        return -ENOENT;
    int fd = open_inside(b, path, flags);
    if (fd == -EXDEV)
        fd = open_outside(b, path, flags);
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
    if (*path && !strchr(path, '/') && !b->beyond && !is_hidden(b, path) && stat_at(b->fd, path, ret) == 0 &&
        ret->type != CKPT_FT_LINK)
        return 0;
    CKPT_AUTOFD int fd = open_name(b, path, O_PATH);
    return fd < 0 ? fd : stat_at(fd, "", ret);
}

/* What a link is shown as: what it stands for, if it is one of those that are followed though they may lead out. */
static enum ckpt_ftype type_of_link(const struct posix_backend *b, const char *path)
{
    struct ckpt_stat st;
    CKPT_AUTOFD int blob = open_blob(b, path, O_PATH);
    if (blob >= 0)
        return CKPT_FT_FILE;
    if (!b->root->outside.all)
        return CKPT_FT_LINK;
    CKPT_AUTOFD int inside = open_inside(b, path, O_PATH);
    if (inside != -EXDEV)
        return CKPT_FT_LINK;
    CKPT_AUTOFD int fd = open_outside(b, path, O_PATH);
    return fd >= 0 && stat_at(fd, "", &st) == 0 ? st.type : CKPT_FT_LINK;
}

/* Links there may be such: no others are looked at. */
static bool may_follow(const struct posix_backend *b, const char *dir)
{
    char path[PATH_ROOM], inside[PATH_ROOM];
    if (b->root->outside.all)
        return true;
    return ckpt_path_put(inside, PATH_ROOM, dir, "x") && place_of(b, inside, path) && ckpt_hub_repository(path);
}

static int posix_list(struct ckpt_backend *base, const char *path, ckpt_list_fn *visit, void *arg)
{
    struct posix_backend *b = (struct posix_backend *)base;
    char full[PATH_ROOM];
    bool follow = may_follow(b, path);
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
        if (type == CKPT_FT_LINK && follow && ckpt_path_put(full, PATH_ROOM, path, e->d_name))
            type = type_of_link(b, full);
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

/* Not in the source's own directory. */
static bool is_beyond(const struct posix_backend *root, int fd)
{
    char path[PATH_ROOM];
    const char *real = root->outside.real;
    size_t n = real ? strlen(real) : 0;
    if (!real || ckpt_path_of_fd(fd, path, sizeof path) < 0)
        return true;
    return strncmp(path, real, n) != 0 || (path[n] && path[n] != '/');
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
    sub->beyond = b->beyond || (b->root->outside.all && is_beyond(b->root, fd));
    sub->fd = fd;
    fd = -1;
    *ret = &sub->base;
    return 0;
}

static int posix_readlink(struct ckpt_backend *base, const char *path, char *buf, size_t len)
{
    const struct posix_backend *b = (struct posix_backend *)base;
    CKPT_AUTOFD int fd = open_name(b, path, O_PATH | O_NOFOLLOW);
    if (fd < 0)
        return fd;
    ssize_t n = readlinkat(fd, "", buf, len - 1);
    if (n < 0)
        return -errno;
    buf[n] = 0;
    return type_of_link(b, path) == CKPT_FT_LINK ? 0 : -EINVAL;
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
    if (b->root == b && b->outside.blobs >= 0)
        close(b->outside.blobs);
    free(b->outside.real);
    free(b->outside.own);
    free(b->outside.never);
    free(b->hidden);
    free(b);
}

static int set_text(char **ret, const char *text)
{
    free(*ret);
    *ret = text ? strdup(text) : NULL;
    return text && !*ret ? -ENOMEM : 0;
}

int ckpt_backend_set_bounds(struct ckpt_backend *base, const struct ckpt_bounds *bounds)
{
    struct posix_backend *b = (struct posix_backend *)base;
    b->outside.all = bounds->follow;
    int r = set_text(&b->hidden, bounds->hidden);
    if (r == 0)
        r = set_text(&b->outside.own, bounds->own);
    return r < 0 ? r : set_text(&b->outside.never, bounds->never);
}

/* The blobs of the repository that the source is a snapshot of, or a part of one: as many levels up as its path says,
 * if it is so. */
static int open_blobs(const struct outside *o, int dir)
{
    char path[PATH_ROOM];
    int at = openat(dir, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (const char *p = o->real + o->repository; at >= 0 && (p = strchr(p, '/')); p++) {
        int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(at);
        at = up;
    }
    bool is_there = at >= 0 && ckpt_path_of_fd(at, path, sizeof path) == 0 && strlen(path) == o->repository &&
                    !strncmp(path, o->real, o->repository);
    int blobs = is_there ? openat(at, "blobs", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (at >= 0)
        close(at);
    return blobs;
}

static void find_outside(struct outside *o, int dir)
{
    char path[PATH_ROOM];
    o->blobs = -1;
    if (ckpt_path_of_fd(dir, path, sizeof path) < 0 || *path != '/')
        return;
    o->real = strdup(path[1] ? path : "");
    o->repository = o->real ? ckpt_hub_repository(o->real) : 0;
    if (o->repository)
        o->blobs = open_blobs(o, dir);
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
    find_outside(&b->outside, b->fd);
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
