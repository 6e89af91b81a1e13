/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may read and change what lies in the store. It belongs to the root's owner, where this process may give it away;
 * objects and manifests can be read by who may read each leaf in them, and by their owner. An object that is there
 * already only loses rights, so that it never has more than the least of the leaves that share it.
 *
 * A staged file that becomes an object itself (hold.c) has its maker's owner and mode. Its mark, CKPT_ALIAS_XATTR,
 * tells these, and is on the disk before they change: if the commit fails, or ends with its process, the file gets them
 * back, and its mark is CKPT_SEAL_NONE. So a mark that tells them is that of a file which may not have them itself.
 */
#include "core/store/seal.h"

#include "core/base/log.h"
#include "core/base/path.h"
#include "core/base/util.h"
#include "core/io/disk.h"
#include "core/store/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

void ckpt_store_give(const struct ckpt_store *s, int dir, const char *name)
{
    bool is_roots = s->uid == 0 && s->gid == 0; /* as all that root makes */
    if (geteuid() != 0 || is_roots)
        return;
    if (fchownat(dir, name, s->uid, s->gid, AT_SYMLINK_NOFOLLOW) < 0)
        ckpt_log(CKPT_LOG_DEBUG, "%s: %s does not get the root's owner: %s", s->path, name, strerror(errno));
}

void ckpt_seal_mark(const struct stat *st, char ret[CKPT_SEAL_MARK])
{
    snprintf(ret, CKPT_SEAL_MARK, "%o %u %u", st->st_mode & 07777, st->st_uid, st->st_gid);
}

bool ckpt_seal_marked(int fd, struct stat *st)
{
    char path[32], mark[CKPT_SEAL_MARK];
    unsigned mode, uid, gid;
    ckpt_fd_path(path, fd);
    ssize_t n = getxattr(path, CKPT_ALIAS_XATTR, mark, sizeof mark - 1);
    mark[CKPT_MAX(n, 0)] = 0;
    if (n < 0 || sscanf(mark, "%o %u %u", &mode, &uid, &gid) != 3)
        return false;
    st->st_mode = (st->st_mode & S_IFMT) | (mode & 07777);
    st->st_uid = uid;
    st->st_gid = gid;
    return true;
}

int ckpt_seal_forget(int fd)
{
    int r = ckpt_disk_setxattr_as(fd, CKPT_ALIAS_XATTR, CKPT_SEAL_NONE, strlen(CKPT_SEAL_NONE), XATTR_REPLACE);
    bool has_none = r == -ENODATA || r == -EOPNOTSUPP;
    return has_none ? 0 : r;
}

/* A regular file by its name, to be changed by its descriptor: nobody can put another one in its place meanwhile. */
static int open_file(int dir, const char *name, struct stat *ret)
{
    int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fd;
    if (fstat(fd, ret) == 0 && S_ISREG(ret->st_mode))
        return fd;
    close(fd);
    errno = EPERM;
    return -1;
}

/* Only root can give a file away; others leave its owner. */
static int set_rights(int fd, mode_t mode, uid_t uid, gid_t gid)
{
    char path[32];
    ckpt_fd_path(path, fd);
    if (fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 && geteuid() == 0)
        return -errno;
    return chmod(path, mode) < 0 ? -errno : 0;
}

mode_t ckpt_seal_mode(const struct ckpt_store *s, gid_t gid, mode_t mode)
{
    /* A group that the mode was not made for, and that cannot be changed. */
    bool foreign = gid != s->gid && geteuid() != 0, for_all = mode & 0004;
    if (foreign && !for_all)
        mode &= ~(mode_t)0040;
    return mode;
}

int ckpt_seal_object(const struct ckpt_store *s, int dir, const char *name, mode_t mode)
{
    struct stat st;
    CKPT_AUTOFD int fd = open_file(dir, name, &st);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    bool is_root = geteuid() == 0, staged = ckpt_has_suffix(name, CKPT_ALIAS_SUFFIX);
    if (st.st_uid != geteuid() && !is_root) /* another user's is as that one has published it */
        return 0;
    if (!staged) /* an object only loses rights */
        mode &= st.st_mode;
    mode_t want = ckpt_seal_mode(s, st.st_gid, mode);
    bool owned = !is_root || (st.st_uid == s->uid && st.st_gid == s->gid);
    if (owned && want == (st.st_mode & 07777))
        return 0;
    return set_rights(fd, want, s->uid, s->gid);
}

/* --- back --- */

bool ckpt_seal_matters(int dir, const char *name)
{
    struct stat st, was;
    CKPT_AUTOFD int fd = open_file(dir, name, &st);
    if (fd < 0)
        return false;
    was = st;
    if (!ckpt_seal_marked(fd, &was))
        return false;
    mode_t more = was.st_mode & ~st.st_mode & 0444;
    return more || was.st_uid != st.st_uid || was.st_gid != st.st_gid;
}

static int undo_open(int fd, struct stat *st)
{
    char path[32];
    if (ckpt_seal_marked(fd, st)) {
        int r = set_rights(fd, st->st_mode & 07777, st->st_uid, st->st_gid);
        if (r < 0)
            return r;
    }
    ckpt_fd_path(path, fd);
    int set = setxattr(path, CKPT_ALIAS_XATTR, CKPT_SEAL_NONE, 1, XATTR_REPLACE);
    return set < 0 && errno != ENODATA ? -errno : 0;
}

int ckpt_seal_undo(int dir, const char *name)
{
    struct stat st;
    CKPT_AUTOFD int fd = open_file(dir, name, &st);
    int r = fd < 0 ? -errno : undo_open(fd, &st);
    if (r < 0)
        ckpt_log(CKPT_LOG_WARN, "a staged file has lost its mode and owner to a commit that failed: %s", strerror(-r));
    return r;
}

static int undo_one(void *arg, int dir, const char *name)
{
    if (ckpt_has_suffix(name, CKPT_ALIAS_SUFFIX))
        (void)!ckpt_seal_undo(dir, name);
    return 0;
}

void ckpt_seal_undo_all(int hold)
{
    (void)!ckpt_names_each(hold, ".", undo_one, NULL);
}
