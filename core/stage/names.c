/* SPDX-License-Identifier: Apache-2.0 */
/* The names of a staged step: what a POSIX directory tree does, on the tree on disk. */
#include "core/stage/private.h"

#include "core/store/seal.h"

#include <linux/fs.h>
#include <stdio.h>

static bool is_plain(const struct stage_inode *dir, const char *name)
{
    if (!*name || strchr(name, '/'))
        return false;
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return false;
    return !ckpt_stage_hides(dir->step->set, dir->id, name);
}

/* Files and directories only: nothing else can have come in, but for what somebody put there by hand. */
static int ref_name(struct stage_inode *dir, const char *name, struct ckpt_stage_attr *ret)
{
    int fd = openat(dir->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = ckpt_stage_ref_fd(dir->step, fd, dir, name, ret);
    if (r == 0 && !S_ISREG(ret->st.st_mode) && !S_ISDIR(ret->st.st_mode)) {
        ckpt_stage_forget(dir->step->set, ret->id, 1);
        return -EPERM;
    }
    return r;
}

int ckpt_stage_lookup(struct ckpt_stages *set, uint64_t parent, const char *name, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir;
    int r = ckpt_stage_use(set, parent, &dir);
    if (r < 0)
        return r;
    if (!dir->dir)
        r = -ENOTDIR;
    else
        r = is_plain(dir, name) ? ref_name(dir, name, ret) : -ENOENT;
    ckpt_stage_unuse(dir);
    return r;
}

/* What is made in a directory with the set-group-id bit has its group. */
static int give_away(int dir, int fd, const struct ckpt_caller *who, mode_t mode)
{
    struct stat st;
    bool inherits = fstatat(dir, "", &st, AT_EMPTY_PATH) == 0 && st.st_mode & S_ISGID;
    gid_t gid = inherits ? st.st_gid : who->gid;
    mode_t group_bit = inherits ? S_ISGID : 0;
    bool foreign = who->uid != geteuid() || gid != getegid();
    int r = foreign ? ckpt_disk_chown(fd, who->uid, gid) : 0;
    if (r < 0 && geteuid() == 0) /* only root gives directories away */
        return r;
    return ckpt_disk_chmod(fd, (mode & 07777) | group_bit);
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
    int r = ckpt_stage_enter_inode(set, parent, &dir);
    if (r < 0)
        return r;
    r = is_plain(dir, name) ? make_dir(dir->fd, name, mode, who) : -EINVAL;
    if (r == 0)
        r = ref_name(dir, name, ret);
    ckpt_stage_write_failed(dir->step, r);
    ckpt_stage_leave_inode(dir, who);
    return r;
}

/* On disk, and in what is known. */
static int unlink_known(struct stage_inode *dir, const char *name, bool is_dir)
{
    struct stat st;
    CKPT_GUARD(&dir->step->names);
    bool there = fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int r = is_plain(dir, name) ? ckpt_stage_detach_name(dir, name) : -EINVAL;
    if (r == 0)
        r = ckpt_disk_unlink(dir->fd, name, is_dir ? AT_REMOVEDIR : 0);
    if (!there)
        return r;
    bool is_last = is_dir || st.st_nlink == 1;
    if (r < 0)
        ckpt_stage_attach_name(dir, name); /* it is still found there */
    else if (is_last)
        ckpt_stage_unlinked(dir->step->set, st.st_dev, st.st_ino);
    return r;
}

int ckpt_stage_unlink(struct ckpt_stages *set, uint64_t parent, const char *name, bool is_dir,
                      const struct ckpt_caller *who)
{
    struct stage_inode *dir;
    int r = ckpt_stage_enter_inode(set, parent, &dir);
    if (r < 0)
        return r;
    r = unlink_known(dir, name, is_dir);
    ckpt_stage_leave_inode(dir, who);
    return r;
}

/* Does the name lead to this file? */
static bool leads_to(const struct stage_inode *dir, const char *name, const struct stat *file)
{
    struct stat st;
    if (fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return false;
    return st.st_ino == file->st_ino && st.st_dev == file->st_dev;
}

/* On disk, and in what is known. */
static int rename_known(struct stage_inode *from, const char *name, struct stage_inode *to, const char *new_name,
                        unsigned flags)
{
    struct stat st;
    bool exchange = flags & RENAME_EXCHANGE;
    CKPT_GUARD(&from->step->names);
    bool there = fstatat(to->fd, new_name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    bool replaces = there && !exchange && !leads_to(from, name, &st); /* two names of one file: both stay */
    int r = there ? ckpt_stage_detach_name(to, new_name) : 0;
    if (r == 0)
        r = ckpt_disk_rename(from->fd, name, to->fd, new_name, flags);
    if (r == 0 && replaces) {
        bool was_last = S_ISDIR(st.st_mode) || st.st_nlink == 1;
        if (was_last)
            ckpt_stage_unlinked(from->step->set, st.st_dev, st.st_ino);
    }
    ckpt_stage_attach_name(to, new_name);
    if (exchange)
        ckpt_stage_attach_name(from, name);
    return r;
}

int ckpt_stage_move(struct ckpt_stages *set, uint64_t parent, const char *name, uint64_t new_parent,
                    const char *new_name, unsigned flags, const struct ckpt_caller *who)
{
    struct stage_inode *from, *to;
    int r = ckpt_stage_enter_inode(set, parent, &from);
    if (r < 0)
        return r;
    r = ckpt_stage_use(set, new_parent, &to);
    if (r == 0) {
        if (from->step != to->step)
            r = -EXDEV; /* mv copies, which shares what it can */
        else if (!is_plain(from, name) || !is_plain(to, new_name))
            r = -EINVAL;
        else
            r = rename_known(from, name, to, new_name, flags);
        ckpt_stage_unuse(to);
    }
    ckpt_stage_leave_inode(from, who);
    return r;
}

static int link_file(struct stage_inode *n, struct stage_inode *dir, const char *name)
{
    if (n->dir)
        return -EPERM;
    if (n->step != dir->step)
        return -EXDEV;
    if (!is_plain(dir, name))
        return -EINVAL;
    CKPT_GUARD(&dir->step->names); /* else another name that goes meanwhile may be taken for the last one */
    return ckpt_disk_link_fd(n->fd, dir->fd, name);
}

int ckpt_stage_link(struct ckpt_stages *set, uint64_t id, uint64_t parent, const char *name,
                    const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir, *n;
    int r = ckpt_stage_enter_inode(set, parent, &dir);
    if (r < 0)
        return r;
    r = ckpt_stage_use(set, id, &n);
    if (r == 0) {
        r = link_file(n, dir, name);
        if (r == 0)
            r = ref_name(dir, name, ret);
        ckpt_stage_unuse(n);
    }
    ckpt_stage_leave_inode(dir, who);
    return r;
}

int ckpt_stage_link_stored(struct ckpt_stages *set, const struct ckpt_manifest_node *node, uint64_t parent,
                           const char *name, const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *dir;
    int r = ckpt_stage_enter_inode(set, parent, &dir);
    if (r < 0)
        return r;
    if (dir->step->files_view)
        r = -EXDEV;
    else
        r = is_plain(dir, name) ? ckpt_stage_link_leaf(dir->step, dir->fd, name, node) : -EINVAL;
    if (r == 0)
        r = ref_name(dir, name, ret);
    ckpt_stage_leave_inode(dir, who);
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

/* With its content unlocked: eviction gives a file back the times that it had before. */
static int set_times(struct stage_inode *n, const struct stat *st, unsigned what)
{
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (!(what & CKPT_ATTR_ATIME))
        times[0].tv_nsec = UTIME_OMIT;
    if (!(what & CKPT_ATTR_MTIME))
        times[1].tv_nsec = UTIME_OMIT;
    CKPT_GUARD(&n->content);
    return ckpt_disk_set_times(n->fd, times);
}

static int set_owner(struct stage_inode *n, const struct stat *st, unsigned what)
{
    uid_t uid = what & CKPT_ATTR_UID ? st->st_uid : (uid_t)-1;
    gid_t gid = what & CKPT_ATTR_GID ? st->st_gid : (gid_t)-1;
    return ckpt_disk_chown(n->fd, uid, gid);
}

/* In this order: a chown takes set-id bits away, which a mode that comes with it gives again. */
static int set_attributes(struct stage_inode *n, const struct stat *st, unsigned what, const struct ckpt_caller *who)
{
    const unsigned owner = CKPT_ATTR_UID | CKPT_ATTR_GID, times = CKPT_ATTR_ATIME | CKPT_ATTR_MTIME;
    int r = 0;
    if (what & (owner | CKPT_ATTR_MODE) && !n->dir)
        r = ckpt_seal_forget(n->fd);
    if (r == 0 && what & owner)
        r = set_owner(n, st, what);
    if (r == 0 && what & CKPT_ATTR_MODE)
        r = ckpt_disk_chmod(n->fd, st->st_mode & 07777);
    if (r == 0 && what & CKPT_ATTR_SIZE)
        r = set_size(n, (uint64_t)st->st_size, who);
    if (r == 0 && what & times)
        r = set_times(n, st, what);
    return r;
}

int ckpt_stage_setattr(struct ckpt_stages *set, uint64_t id, const struct stat *st, unsigned what,
                       const struct ckpt_caller *who, struct ckpt_stage_attr *ret)
{
    struct stage_inode *n;
    int r = ckpt_stage_enter_inode(set, id, &n);
    if (r < 0)
        return r;
    r = set_attributes(n, st, what, who);
    if (r == 0)
        r = ckpt_stage_stat(n, ret);
    ckpt_stage_leave_inode(n, who);
    return r;
}

int ckpt_stage_opendir(struct ckpt_stages *set, uint64_t id, int *ret_fd)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    *ret_fd = n->dir ? ckpt_stage_reopen(n->fd, O_RDONLY | O_DIRECTORY) : -ENOTDIR;
    r = CKPT_MIN(*ret_fd, 0);
    ckpt_stage_unuse(n);
    return r;
}
