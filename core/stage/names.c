/* SPDX-License-Identifier: Apache-2.0 */
/* The names of a staged step: what a POSIX directory tree does, on the tree on disk. */
#include "core/stage/private.h"

#include "core/store/seal.h"

#include <linux/fs.h>
#include <stdio.h>

static bool is_plain(const struct stage_inode *dir, const char *name)
{
    return *name && strcmp(name, ".") && strcmp(name, "..") && !strchr(name, '/') &&
           !ckpt_stage_hides(dir->step->set, dir->id, name);
}

/* Files and directories only: nothing else can have come in, but for what somebody put there by hand. */
static int take_name(struct stage_inode *dir, const char *name, struct ckpt_stage_attr *ret)
{
    int fd = openat(dir->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = ckpt_stage_take(dir->step, fd, dir, name, ret);
    if (r == 0 && !S_ISREG(ret->st.st_mode) && !S_ISDIR(ret->st.st_mode)) {
        ckpt_stage_forget(dir->step->set, ret->id, 1);
        return -EPERM;
    }
    return r;
}

int ckpt_stage_lookup(struct ckpt_stages *set, uint64_t parent, const char *name, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir;
    int r = ckpt_stage_get(set, parent, &dir);
    if (r < 0)
        return r;
    r = !dir->dir ? -ENOTDIR : is_plain(dir, name) ? take_name(dir, name, ret) : -ENOENT;
    ckpt_stage_put(dir);
    return r;
}

/* A directory whose step may be changed until leave(). */
static int enter(struct ckpt_stages *set, uint64_t id, struct stage_inode **ret)
{
    int r = ckpt_stage_get(set, id, ret);
    if (r < 0)
        return r;
    r = ckpt_stage_enter((*ret)->step);
    if (r < 0)
        ckpt_stage_put(*ret);
    return r;
}

static void leave(struct stage_inode *n, const struct ckpt_caller *who)
{
    struct ckpt_stages *set = n->step->set;
    bool of_root = n == set->face->top;
    ckpt_stage_touch(n->step, who);
    ckpt_stage_leave(n->step);
    ckpt_stage_put(n);
    if (of_root) /* a foreign step may be there now, or gone */
        set->opt.changed(set->opt.arg, NULL);
}

/* What is made in a directory with the set-group-id bit has its group. */
static int give_away(int dir, int fd, const struct ckpt_caller *who, mode_t mode)
{
    struct stat st;
    bool inherits = fstatat(dir, "", &st, AT_EMPTY_PATH) == 0 && st.st_mode & S_ISGID;
    gid_t gid = inherits ? st.st_gid : who->gid;
    int r = who->uid == geteuid() && gid == getegid() ? 0 : ckpt_disk_chown(fd, who->uid, gid);
    return r < 0 && geteuid() == 0 ? r : ckpt_disk_chmod(fd, (mode & 07777) | (inherits ? S_ISGID : 0));
}

/* A new directory, with its owner and mode, or none. */
static int make_dir(int dir, const char *name, mode_t mode, const struct ckpt_caller *who)
{
    int r = ckpt_disk_mkdir(dir, name, mode & 07777);
    if (r < 0)
        return r;
    CKPT_AUTOFD int fd = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    r = fd < 0 ? -errno : give_away(dir, fd, who, mode);
    if (r < 0)
        (void)!ckpt_disk_unlink(dir, name, AT_REMOVEDIR);
    return r;
}

int ckpt_stage_mkdir(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode,
                     const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir;
    int r = enter(set, parent, &dir);
    if (r < 0)
        return r;
    r = is_plain(dir, name) ? make_dir(dir->fd, name, mode, who) : -EINVAL;
    if (r == 0)
        r = take_name(dir, name, ret);
    ckpt_stage_write_failed(dir->step, r);
    leave(dir, who);
    return r;
}

int ckpt_stage_unlink(struct ckpt_stages *set, uint64_t parent, const char *name, bool is_dir,
                      const struct ckpt_caller *who)
{
    struct stage_inode *dir;
    struct stat st;
    int r = enter(set, parent, &dir);
    if (r < 0)
        return r;
    pthread_mutex_lock(&dir->step->names);
    bool there = fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    r = is_plain(dir, name) ? ckpt_stage_keep(dir, name) : -EINVAL;
    if (r == 0)
        r = ckpt_disk_unlink(dir->fd, name, is_dir ? AT_REMOVEDIR : 0);
    if (r == 0 && there && (is_dir || st.st_nlink == 1))
        ckpt_stage_unlinked(set, st.st_dev, st.st_ino);
    if (r < 0 && there)
        ckpt_stage_found(dir, name);
    pthread_mutex_unlock(&dir->step->names);
    leave(dir, who);
    return r;
}

/* On disk, and in what is known. */
static int rename_known(struct stage_inode *from, const char *name, struct stage_inode *to, const char *new_name,
                        unsigned flags)
{
    struct stat st, moved;
    CKPT_GUARD(&from->step->names);
    bool there = fstatat(to->fd, new_name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    bool same = there && fstatat(from->fd, name, &moved, AT_SYMLINK_NOFOLLOW) == 0 && moved.st_ino == st.st_ino &&
                moved.st_dev == st.st_dev;
    int r = there ? ckpt_stage_keep(to, new_name) : 0;
    if (r == 0)
        r = ckpt_disk_rename(from->fd, name, to->fd, new_name, flags);
    if (r == 0 && there && !same && !(flags & RENAME_EXCHANGE) && (S_ISDIR(st.st_mode) || st.st_nlink == 1))
        ckpt_stage_unlinked(from->step->set, st.st_dev, st.st_ino);
    ckpt_stage_found(to, new_name);
    if (flags & RENAME_EXCHANGE)
        ckpt_stage_found(from, name);
    return r;
}

int ckpt_stage_move(struct ckpt_stages *set, uint64_t parent, const char *name, uint64_t new_parent,
                    const char *new_name, unsigned flags, const struct ckpt_caller *who)
{
    struct stage_inode *from, *to;
    int r = enter(set, parent, &from);
    if (r < 0)
        return r;
    r = ckpt_stage_get(set, new_parent, &to);
    if (r == 0) {
        if (from->step != to->step)
            r = -EXDEV; /* mv copies, which shares what it can */
        else if (!is_plain(from, name) || !is_plain(to, new_name))
            r = -EINVAL;
        else
            r = rename_known(from, name, to, new_name, flags);
        ckpt_stage_put(to);
    }
    leave(from, who);
    return r;
}

int ckpt_stage_link(struct ckpt_stages *set, uint64_t id, uint64_t parent, const char *name,
                    const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir, *n;
    int r = enter(set, parent, &dir);
    if (r < 0)
        return r;
    r = ckpt_stage_get(set, id, &n);
    if (r == 0) {
        r = n->dir                 ? -EPERM
            : n->step != dir->step ? -EXDEV
            : is_plain(dir, name)  ? ckpt_disk_link_fd(n->fd, dir->fd, name)
                                   : -EINVAL;
        if (r == 0)
            r = take_name(dir, name, ret);
        ckpt_stage_put(n);
    }
    leave(dir, who);
    return r;
}

int ckpt_stage_link_stored(struct ckpt_stages *set, const struct ckpt_manifest_node *node, uint64_t parent,
                           const char *name, const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir;
    int r = enter(set, parent, &dir);
    if (r < 0)
        return r;
    r = dir->step->face ? -EXDEV : is_plain(dir, name) ? ckpt_stage_link_leaf(dir->step, dir->fd, name, node) : -EINVAL;
    if (r == 0)
        r = take_name(dir, name, ret);
    leave(dir, who);
    return r;
}

static int set_size(struct stage_inode *n, uint64_t size, const struct ckpt_caller *who)
{
    if (size > CKPT_LEAF_MAX)
        return -EFBIG;
    CKPT_GUARD(&n->content);
    CKPT_AUTOFD int fd = n->dir ? -EISDIR : ckpt_stage_reopen(n->fd, O_RDWR | O_NONBLOCK);
    if (fd < 0)
        return fd;
    struct ckpt_ref ref;
    if (ckpt_stage_shares(n, &ref) == 1 && ref.size == size)
        return 0;
    int r = ckpt_stage_drop_setid(fd, who);
    return r < 0 ? r : ckpt_stage_resize(n, fd, size);
}

int ckpt_stage_setattr(struct ckpt_stages *set, uint64_t id, const struct stat *st, unsigned what,
                       const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *n;
    int r = enter(set, id, &n);
    if (r < 0)
        return r;
    if (what & (CKPT_ATTR_UID | CKPT_ATTR_GID | CKPT_ATTR_MODE) && !n->dir)
        r = ckpt_seal_forget(n->fd);
    if (r == 0 && what & (CKPT_ATTR_UID | CKPT_ATTR_GID))
        r = ckpt_disk_chown(n->fd, what & CKPT_ATTR_UID ? st->st_uid : (uid_t)-1,
                            what & CKPT_ATTR_GID ? st->st_gid : (gid_t)-1);
    if (r == 0 && (what & CKPT_ATTR_MODE))
        r = ckpt_disk_chmod(n->fd, st->st_mode & 07777);
    if (r == 0 && (what & CKPT_ATTR_SIZE))
        r = set_size(n, (uint64_t)st->st_size, who);
    if (r == 0 && (what & (CKPT_ATTR_ATIME | CKPT_ATTR_MTIME))) {
        struct timespec times[2] = {st->st_atim, st->st_mtim};
        if (!(what & CKPT_ATTR_ATIME))
            times[0].tv_nsec = UTIME_OMIT;
        if (!(what & CKPT_ATTR_MTIME))
            times[1].tv_nsec = UTIME_OMIT;
        CKPT_GUARD(&n->content); /* a file whose bytes are let go gets back the times that it had */
        r = ckpt_disk_set_times(n->fd, times);
    }
    if (r == 0)
        r = ckpt_stage_stat(n, ret);
    leave(n, who);
    return r;
}

int ckpt_stage_opendir(struct ckpt_stages *set, uint64_t id, int *ret_fd)
{
    struct stage_inode *n;
    int r = ckpt_stage_get(set, id, &n);
    if (r < 0)
        return r;
    *ret_fd = n->dir ? ckpt_stage_reopen(n->fd, O_RDONLY | O_DIRECTORY) : -ENOTDIR;
    r = CKPT_MIN(*ret_fd, 0);
    ckpt_stage_put(n);
    return r;
}
