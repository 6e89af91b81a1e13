/* SPDX-License-Identifier: Apache-2.0 */
#include "core/io/disk.h"

#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/disk_hooks.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define DEPTH_MAX 300

static int result(int r)
{
    return r < 0 ? -errno : r;
}

/* The call again as long as a signal interrupts it. */
#define DISK_CALL(call)                                                                                                \
    ({                                                                                                                 \
        int call_;                                                                                                     \
        do                                                                                                             \
            call_ = result(call);                                                                                      \
        while (call_ == -EINTR);                                                                                       \
        call_;                                                                                                         \
    })

int ckpt_disk_open(int dir, const char *path, int flags, mode_t mode)
{
    bool counts = (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE;
    flags |= O_CLOEXEC;
    if (!counts || !ckpt_disk_hooked())
        return DISK_CALL(openat(dir, path, flags, mode));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(openat(dir, path, flags, mode));
    ckpt_disk_hooked_paths(r, "open", dir, path, 0, NULL, " %d %o", flags, (unsigned)mode);
    return r;
}

/* *ret_done: how much was written, also when it fails. */
static int write_all(int fd, const uint8_t *buf, size_t len, uint64_t off, size_t *ret_done)
{
    for (*ret_done = 0; *ret_done < len;) {
        ssize_t n = pwrite(fd, buf + *ret_done, len - *ret_done, (off_t)(off + *ret_done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        *ret_done += (size_t)n;
    }
    return 0;
}

int ckpt_disk_write(int fd, const void *buf, size_t len, uint64_t off)
{
    size_t done = 0;
    if (!ckpt_disk_hooked())
        return write_all(fd, buf, len, off, &done);
    int r = ckpt_disk_hook();
    if (r == 0)
        r = write_all(fd, buf, len, off, &done);
    ckpt_disk_hooked_fd(done || r == 0 ? 0 : r, "write", fd, NULL, &off, buf, done);
    return r;
}

int ckpt_disk_truncate(int fd, uint64_t size)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(ftruncate(fd, (off_t)size));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(ftruncate(fd, (off_t)size));
    ckpt_disk_hooked_fd(r, "truncate", fd, NULL, &size, NULL, 0);
    return r;
}

int ckpt_disk_punch(int fd, uint64_t size)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size));
    ckpt_disk_hooked_fd(r, "punch", fd, NULL, &size, NULL, 0);
    return r;
}

int ckpt_disk_allocate(int fd, int mode, uint64_t off, uint64_t len)
{
    char numbers[64];
    if (!ckpt_disk_hooked())
        return DISK_CALL(fallocate(fd, mode, (off_t)off, (off_t)len));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(fallocate(fd, mode, (off_t)off, (off_t)len));
    snprintf(numbers, sizeof numbers, "%d %llu %llu", mode, (unsigned long long)off, (unsigned long long)len);
    ckpt_disk_hooked_words(r, "allocate", fd, numbers);
    return r;
}

int ckpt_disk_fsync(int fd)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(fsync(fd));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(fsync(fd));
    ckpt_disk_hooked_fd(r, "fsync", fd, NULL, NULL, NULL, 0);
    return r;
}

int ckpt_disk_syncfs(int fd)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(syncfs(fd));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(syncfs(fd));
    ckpt_disk_hooked_fd(r, "syncfs", fd, NULL, NULL, NULL, 0);
    return r;
}

int ckpt_disk_mkdir(int dir, const char *path, mode_t mode)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(mkdirat(dir, path, mode));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(mkdirat(dir, path, mode));
    ckpt_disk_hooked_paths(r, "mkdir", dir, path, 0, NULL, " %o", (unsigned)mode);
    return r;
}

int ckpt_disk_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(renameat2(from_dir, from, to_dir, to, flags));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(renameat2(from_dir, from, to_dir, to, flags));
    ckpt_disk_hooked_paths(r, "rename", from_dir, from, to_dir, to, " %u", flags);
    return r;
}

int ckpt_disk_link(int from_dir, const char *from, int to_dir, const char *to)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(linkat(from_dir, from, to_dir, to, 0));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(linkat(from_dir, from, to_dir, to, 0));
    ckpt_disk_hooked_paths(r, "link", from_dir, from, to_dir, to, "%s", "");
    return r;
}

int ckpt_disk_link_fd(int fd, int to_dir, const char *to)
{
    char from[32];
    ckpt_fd_path(from, fd);
    if (!ckpt_disk_hooked())
        return DISK_CALL(linkat(AT_FDCWD, from, to_dir, to, AT_SYMLINK_FOLLOW));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(linkat(AT_FDCWD, from, to_dir, to, AT_SYMLINK_FOLLOW));
    char real[4096];
    ssize_t n = readlink(from, real, sizeof real - 1);
    real[n > 0 ? n : 0] = 0;
    ckpt_disk_hooked_paths(r, "link", AT_FDCWD, real, to_dir, to, "%s", "");
    return r;
}

int ckpt_disk_unlink(int dir, const char *path, int flags)
{
    if (!ckpt_disk_hooked())
        return DISK_CALL(unlinkat(dir, path, flags));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(unlinkat(dir, path, flags));
    ckpt_disk_hooked_paths(r, "unlink", dir, path, 0, NULL, " %d", flags);
    return r;
}

static int set_xattr(int fd, const char *name, const void *value, size_t len, int flags)
{
    char path[32];
    int r = DISK_CALL(fsetxattr(fd, name, value, len, flags));
    return r == -EBADF ? DISK_CALL(setxattr(ckpt_fd_path(path, fd), name, value, len, flags)) : r;
}

static int remove_xattr(int fd, const char *name)
{
    char path[32];
    int r = DISK_CALL(fremovexattr(fd, name));
    return r == -EBADF ? DISK_CALL(removexattr(ckpt_fd_path(path, fd), name)) : r;
}

int ckpt_disk_setxattr_as(int fd, const char *name, const void *value, size_t len, int flags)
{
    if (!ckpt_disk_hooked())
        return set_xattr(fd, name, value, len, flags);
    int r = ckpt_disk_hook();
    if (r == 0)
        r = set_xattr(fd, name, value, len, flags);
    ckpt_disk_hooked_fd(r, "setxattr", fd, name, NULL, len ? value : "", len);
    return r;
}

int ckpt_disk_setxattr(int fd, const char *name, const void *value, size_t len)
{
    return ckpt_disk_setxattr_as(fd, name, value, len, 0);
}

int ckpt_disk_removexattr(int fd, const char *name)
{
    if (!ckpt_disk_hooked())
        return remove_xattr(fd, name);
    int r = ckpt_disk_hook();
    if (r == 0)
        r = remove_xattr(fd, name);
    ckpt_disk_hooked_fd(r, "removexattr", fd, name, NULL, NULL, 0);
    return r;
}

int ckpt_disk_chmod(int fd, mode_t mode)
{
    char path[32], number[16];
    if (!ckpt_disk_hooked())
        return DISK_CALL(chmod(ckpt_fd_path(path, fd), mode));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(chmod(ckpt_fd_path(path, fd), mode));
    snprintf(number, sizeof number, "%o", (unsigned)mode);
    ckpt_disk_hooked_words(r, "chmod", fd, number);
    return r;
}

int ckpt_disk_chown(int fd, uid_t uid, gid_t gid)
{
    char numbers[48];
    if (!ckpt_disk_hooked())
        return DISK_CALL(fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
    snprintf(numbers, sizeof numbers, "%d %d", (int)uid, (int)gid);
    ckpt_disk_hooked_words(r, "chown", fd, numbers);
    return r;
}

int ckpt_disk_set_times(int fd, const struct timespec times[2])
{
    char path[32];
    if (!ckpt_disk_hooked())
        return DISK_CALL(utimensat(AT_FDCWD, ckpt_fd_path(path, fd), times, 0));
    int r = ckpt_disk_hook();
    if (r == 0)
        r = DISK_CALL(utimensat(AT_FDCWD, ckpt_fd_path(path, fd), times, 0));
    ckpt_disk_hooked_words(r, "times", fd, NULL);
    return r;
}

/* --- what is made of them --- */

int ckpt_disk_fsync_dir(int dir, const char *path)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, path, O_RDONLY | O_DIRECTORY, 0);
    return fd < 0 ? fd : ckpt_disk_fsync(fd);
}

static int write_new(int dir, const char *path, const void *data, size_t len)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return fd;
    int r = ckpt_disk_write(fd, data, len, 0);
    if (r == 0)
        r = ckpt_disk_fsync(fd);
    if (r < 0)
        (void)!ckpt_disk_unlink(dir, path, 0);
    return r;
}

int ckpt_disk_replace(int dir, const char *path, const void *data, size_t len)
{
    char parent[PATH_MAX], temp[PATH_MAX + 32];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    uint64_t random;
    if (n >= sizeof parent)
        return -ENAMETOOLONG;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return -EIO;
    memcpy(parent, path, n);
    parent[n] = 0;
    /* Not made from the file's own name, which may be as long as names can be. */
    snprintf(temp, sizeof temp, "%s%s.tmp-%016llx", parent, slash ? "/" : "", (unsigned long long)random);
    int r = write_new(dir, temp, data, len);
    if (r < 0)
        return r;
    r = ckpt_disk_rename(dir, temp, dir, path, 0);
    if (r < 0) {
        (void)!ckpt_disk_unlink(dir, temp, 0);
        return r;
    }
    return ckpt_disk_fsync_dir(dir, !slash ? "." : n ? parent : "/");
}

/* A directory itself, never what a link leads to, made readable if it is not. */
static int open_for_removal(int dir, const char *path, DIR **ret)
{
    CKPT_AUTOFD int fd = ckpt_disk_open(dir, path, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0);
    struct stat st;
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) == 0 && (st.st_mode & 0700) != 0700) {
        char proc[64];
        ckpt_fd_path(proc, fd);
        (void)!chmod(proc, 0700); /* what cannot be done fails below */
    }
    int rd = ckpt_disk_open(fd, ".", O_RDONLY | O_DIRECTORY, 0);
    if (rd < 0)
        return rd;
    *ret = fdopendir(rd);
    if (*ret)
        return 0;
    int saved = errno;
    close(rd);
    return -saved;
}

struct removal {
    DIR *dirs[DEPTH_MAX]; /* from the top to where we are */
    char names[DEPTH_MAX][256];
    bool removed[DEPTH_MAX]; /* something, since it was last read from its beginning */
    bool kept[DEPTH_MAX];    /* something that cannot be removed */
    unsigned depth;
    int error; /* the first one */
};

static void removal_failed(struct removal *rm, int r)
{
    if (r >= 0 || r == -ENOENT)
        return;
    if (!rm->error)
        rm->error = r;
    if (rm->depth)
        rm->kept[rm->depth - 1] = true;
}

static void removal_enter(struct removal *rm, int dir, const char *name)
{
    DIR *d = NULL;
    int r = rm->depth == DEPTH_MAX ? -ELOOP : open_for_removal(dir, name, &d);
    if (r < 0) {
        removal_failed(rm, r);
        return;
    }
    rm->dirs[rm->depth] = d;
    rm->removed[rm->depth] = rm->kept[rm->depth] = false;
    snprintf(rm->names[rm->depth], sizeof rm->names[0], "%s", rm->depth ? name : "");
    rm->depth++;
}

/* The deepest directory has been read to its end. */
static void removal_leave(struct removal *rm, int top, const char *path)
{
    unsigned at = rm->depth - 1;
    int r = at ? ckpt_disk_unlink(dirfd(rm->dirs[at - 1]), rm->names[at], AT_REMOVEDIR)
               : ckpt_disk_unlink(top, path, AT_REMOVEDIR);
    /* Reading a directory that shrinks may skip entries. */
    if (r == -ENOTEMPTY && rm->removed[at] && !rm->kept[at]) {
        rm->removed[at] = false;
        rewinddir(rm->dirs[at]);
        return;
    }
    closedir(rm->dirs[at]);
    rm->depth--;
    removal_failed(rm, r);
    if (at && r == 0)
        rm->removed[at - 1] = true;
}

int ckpt_disk_remove_tree(int dir, const char *path)
{
    CKPT_AUTOFREE struct removal *rm = calloc(1, sizeof *rm);
    if (!rm)
        return -ENOMEM;
    removal_enter(rm, dir, path);
    if (!rm->depth) /* a file, or a link: it alone */
        return rm->error == -ENOTDIR || rm->error == -ELOOP ? ckpt_disk_unlink(dir, path, 0) : rm->error;
    while (rm->depth) {
        unsigned at = rm->depth - 1;
        int fd = dirfd(rm->dirs[at]);
        struct dirent *e = readdir(rm->dirs[at]);
        if (!e) {
            removal_leave(rm, dir, path);
            continue;
        }
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        int r = e->d_type == DT_DIR ? -EISDIR : ckpt_disk_unlink(fd, e->d_name, 0);
        if (r == -EISDIR)
            removal_enter(rm, fd, e->d_name);
        else if (r == 0)
            rm->removed[at] = true;
        else
            removal_failed(rm, r);
    }
    return rm->error;
}

bool ckpt_disk_watched(void)
{
#ifdef CKPT_TEST_HOOKS
    return getenv("CKPTFS_DISK_FAIL") || getenv("CKPTFS_DISK_TRACE");
#else
    return false;
#endif
}
