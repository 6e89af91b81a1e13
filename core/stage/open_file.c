/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files of staged steps. A reference file gets bytes of its own before the first change (bytes.c); background.c
 * has what becomes of a file when its last writer has closed it.
 */
#include "core/stage/private.h"

#include "core/store/seal.h"

#include <sys/statvfs.h>
#include <sys/vfs.h>

#define FULL ((size_t)2 << 20) /* a disk with less room than that: a large write fails while there is still some */

/* --- handles --- */

static struct ckpt_stage_handle *handle_new(struct stage_inode *n, int fd, int flags)
{
    struct ckpt_stage_handle *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->inode = n;
    h->fd = fd;
    h->read = (flags & O_ACCMODE) != O_WRONLY;
    h->write = (flags & O_ACCMODE) != O_RDONLY;
    pthread_mutex_init(&h->lock, NULL);
    CKPT_GUARD(&n->step->set->lock);
    n->opens++;
    n->step->busy++;
    if (h->write) {
        n->open_writes++;
        n->step->open_writes++;
    }
    return h;
}

void ckpt_stage_handle_kernel_writes(struct ckpt_stage_handle *h)
{
    h->kernel_writes = true;
    atomic_store(&h->inode->kernel_writes, true);
    if (h->write)
        ckpt_stage_dirty(h->inode);
}

/* The kernel does not report that one of its own writes failed; but where one did, there is no room. */
static bool is_full(int fd)
{
    struct statvfs fs;
    if (fstatvfs(fd, &fs) < 0)
        return false;
    fsblkcnt_t room = geteuid() ? fs.f_bavail : fs.f_bfree;
    return room < FULL / fs.f_frsize;
}

void ckpt_stage_release(struct ckpt_stage_handle *h)
{
    struct stage_inode *n = h->inode;
    struct stage_step *step = n->step;
    struct ckpt_stages *set = step->set;
    bool passthrough = h->write && h->kernel_writes;
    struct stat st = {0};
    bool large = h->write && fstat(h->fd, &st) == 0 && (uint64_t)st.st_size >= CKPT_SMALL;
    CKPT_AUTOFD int fd = large ? ckpt_stage_reopen(h->fd, O_RDONLY) : -1;
    bool full = passthrough && is_full(h->fd);
    close(h->fd); /* first: a lease is refused while it is open */
    if (passthrough) {
        ckpt_stage_touch(step, &(struct ckpt_caller){0});
        if (full)
            ckpt_stage_write_failed(step, -ENOSPC);
    }
    ckpt_file_unref(h->payload);
    pthread_mutex_destroy(&h->lock);
    pthread_mutex_lock(&set->lock);
    n->opens--;
    step->busy--;
    if (h->write) {
        n->open_writes--;
        step->open_writes--;
        pthread_cond_broadcast(&set->idle);
    }
    if (fd >= 0 && ckpt_stage_wants_object(n, &st))
        ckpt_stage_queue_object(n, CKPT_STEAL_FD(fd), &st);
    ckpt_stage_reap(n);
    pthread_mutex_unlock(&set->lock);
    free(h);
}

/* Writers need to read too: the kernel reads pages that it changes in part, and the background reads all. */
static int backing_flags(int flags)
{
    int access = (flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR;
    return access | (flags & O_DSYNC) | O_NONBLOCK | O_NOCTTY;
}

int ckpt_stage_drop_setid(int fd, const struct ckpt_caller *who)
{
    struct stat st;
    if (who->uid == 0 || fstat(fd, &st) < 0)
        return 0;
    if (!(st.st_mode & (S_ISUID | S_ISGID)))
        return 0;
    mode_t drop = S_ISUID;
    if (st.st_mode & S_IXGRP) /* without it, the bit is for locks, and gives no rights */
        drop |= S_ISGID;
    int r = ckpt_seal_forget(fd);
    return r < 0 ? r : ckpt_disk_chmod(fd, st.st_mode & 07777 & ~drop);
}

/* Does who opens a file with these flags change it? */
static bool is_change(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
}

/* The file's bytes, for who opens it to change it. */
static int prepare_change(struct stage_inode *n, int fd, int flags, const struct ckpt_caller *who)
{
    int r = ckpt_stage_drop_setid(fd, who);
    if (r < 0)
        return r;
    return flags & O_TRUNC ? ckpt_stage_resize(n, fd, 0) : ckpt_stage_copy_up(n, fd, STAGE_ALL);
}

/* With its content locked: eviction may have a lease, which would refuse the descriptor or be broken by it. */
static int open_locked(struct stage_inode *n, int flags, const struct ckpt_caller *who, struct ckpt_stage_handle **ret)
{
    bool change = is_change(flags);
    CKPT_AUTOFD int fd = ckpt_stage_reopen(n->fd, backing_flags(flags | (change ? O_RDWR : 0)));
    if (fd < 0)
        return fd;
    int r = change ? prepare_change(n, fd, flags, who) : 0;
    if (r < 0)
        return r;
    struct ckpt_ref ref;
    struct ckpt_file *payload = NULL;
    if ((flags & O_ACCMODE) != O_WRONLY)
        r = ckpt_stage_open_payload(n, &ref, &payload);
    if (r < 0)
        return r;
    /* Counted as open before a commit can begin, and before its bytes can be evicted. */
    struct ckpt_stage_handle *h = handle_new(n, fd, flags);
    if (!h) {
        ckpt_file_unref(payload);
        return -ENOMEM;
    }
    (void)CKPT_STEAL_FD(fd);
    ckpt_stage_give_payload(h, &ref, payload);
    *ret = h;
    return 0;
}

static int open_for_reading(struct stage_inode *n, int flags, const struct ckpt_caller *who,
                            struct ckpt_stage_handle **ret)
{
    pthread_mutex_lock(&n->content);
    int r = open_locked(n, flags, who, ret);
    pthread_mutex_unlock(&n->content);
    ckpt_stage_came(n->step, who);
    return r;
}

static int open_for_change(struct stage_inode *n, int flags, const struct ckpt_caller *who,
                           struct ckpt_stage_handle **ret)
{
    int r = ckpt_stage_enter(n->step);
    if (r < 0)
        return r;
    pthread_mutex_lock(&n->content);
    r = open_locked(n, flags, who, ret);
    pthread_mutex_unlock(&n->content);
    ckpt_stage_write_failed(n->step, r);
    ckpt_stage_touch(n->step, who);
    ckpt_stage_leave(n->step);
    return r;
}

int ckpt_stage_open(struct ckpt_stages *set, uint64_t id, int flags, const struct ckpt_caller *who,
                    struct ckpt_stage_handle **ret)
{
    struct stage_inode *n;
    int r = ckpt_stage_use(set, id, &n);
    if (r < 0)
        return r;
    if (n->dir)
        r = -EISDIR;
    else if (is_change(flags))
        r = open_for_change(n, flags, who, ret);
    else
        r = open_for_reading(n, flags, who, ret);
    ckpt_stage_unuse(n);
    return r;
}

/* A new file, with its owner and mode, or none. -EEXIST. */
static int make_file(struct stage_inode *dir, const char *name, int flags, mode_t mode, const struct ckpt_caller *who)
{
    struct stat above;
    int how = O_CREAT | O_EXCL | O_NOFOLLOW | backing_flags(flags | O_RDWR);
    int fd = ckpt_disk_open(dir->fd, name, how, mode & 07777);
    if (fd < 0)
        return fd;
    bool inherits = fstatat(dir->fd, "", &above, AT_EMPTY_PATH) == 0 && above.st_mode & S_ISGID;
    gid_t gid = inherits ? above.st_gid : who->gid;
    bool foreign = who->uid != geteuid() || gid != getegid();
    int r = foreign ? ckpt_disk_chown(fd, who->uid, gid) : 0;
    if (r == 0 || geteuid() != 0)              /* only root gives files away */
        r = ckpt_disk_chmod(fd, mode & 07777); /* the caller's umask is applied already, and this process has another */
    if (r == 0)
        return fd;
    (void)!ckpt_disk_unlink(dir->fd, name, 0);
    close(fd);
    return r;
}

/* A handle of an inode that is new. The descriptor is taken over. */
static int open_new(struct stage_inode *n, int fd, int access, struct ckpt_stage_attr *ret,
                    struct ckpt_stage_handle **ret_handle)
{
    atomic_store(&n->kernel_writes, false);
    struct ckpt_stage_handle *h = handle_new(n, fd, access);
    if (!h) {
        ckpt_stage_unuse(n);
        close(fd);
        return -ENOMEM;
    }
    int r = ckpt_stage_stat(n, ret);
    ckpt_stage_unuse(n);
    if (r < 0) {
        ckpt_stage_release(h); /* and with it the descriptor */
        return r;
    }
    *ret_handle = h;
    return 0;
}

/* The descriptor of a file that was made here is taken over. */
static int open_made(struct stage_inode *dir, const char *name, int fd, int access, struct ckpt_stage_attr *ret,
                     struct ckpt_stage_handle **ret_handle)
{
    struct ckpt_stages *set = dir->step->set;
    struct stage_inode *n;
    CKPT_AUTOFD int own = fd;
    int path = ckpt_stage_reopen(fd, O_PATH);
    if (path < 0)
        return path;
    int r = ckpt_stage_ref_fd(dir->step, path, dir, name, ret);
    if (r < 0)
        return r;
    r = ckpt_stage_use(set, ret->id, &n);
    if (r == 0)
        r = open_new(n, CKPT_STEAL_FD(own), access, ret, ret_handle);
    if (r < 0)
        ckpt_stage_forget(set, ret->id, 1);
    return r;
}

/* It was made by somebody else since the caller has looked. */
static int open_found(struct stage_inode *dir, const char *name, int flags, const struct ckpt_caller *who,
                      struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    struct ckpt_stages *set = dir->step->set;
    int r = ckpt_stage_lookup(set, dir->id, name, ret);
    if (r < 0)
        return r;
    r = ckpt_stage_open(set, ret->id, (flags & ~O_ACCMODE) | O_RDWR, who, ret_handle);
    if (r == 0) {
        r = ckpt_stage_getattr(set, ret->id, ret);
        if (r < 0)
            ckpt_stage_release(*ret_handle);
    }
    if (r < 0)
        ckpt_stage_forget(set, ret->id, 1);
    return r;
}

/* A new file, open, or none. -EEXIST. */
static int create_file(struct stage_inode *dir, const char *name, mode_t mode, int flags, const struct ckpt_caller *who,
                       struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    if (ckpt_stage_hides(dir->step->set, dir->id, name))
        return -EPERM;
    int fd = make_file(dir, name, flags, mode, who);
    if (fd < 0)
        return fd;
    int access = (flags & O_ACCMODE) == O_WRONLY ? O_WRONLY : O_RDWR;
    int r = open_made(dir, name, fd, access, ret, ret_handle);
    if (r < 0)
        (void)!ckpt_disk_unlink(dir->fd, name, 0);
    return r;
}

int ckpt_stage_create(struct ckpt_stages *set, uint64_t parent, const char *name, mode_t mode, int flags,
                      const struct ckpt_caller *who, struct ckpt_stage_attr *ret, struct ckpt_stage_handle **ret_handle)
{
    struct stage_inode *dir;
    int r = ckpt_stage_use(set, parent, &dir);
    if (r < 0)
        return r;
    struct stage_step *step = dir->step;
    *ret_handle = NULL;
    r = ckpt_stage_enter(step);
    if (r == 0) {
        r = create_file(dir, name, mode, flags, who, ret, ret_handle);
        ckpt_stage_write_failed(step, r);
        ckpt_stage_touch(step, who);
        ckpt_stage_leave(step);
    }
    if (r == -EEXIST && !(flags & O_EXCL))
        r = open_found(dir, name, flags, who, ret, ret_handle);
    ckpt_stage_unuse(dir);
    return r;
}

int ckpt_stage_handle_fd(const struct ckpt_stage_handle *h)
{
    const struct stage_inode *n = h->inode;
    bool may_have = n->step->set->leases && atomic_load(&n->shared) == 0;
    return may_have ? n->fd : -1;
}

ssize_t ckpt_stage_write(struct ckpt_stage_handle *h, const void *buf, size_t len, uint64_t off,
                         const struct ckpt_caller *who)
{
    struct stage_inode *n = h->inode;
    if (off > CKPT_LEAF_MAX - len)
        return -EFBIG;
    /* The step cannot be committed while the file is open for writing, so there is nothing to keep out. */
    ckpt_stage_dirty(n);
    int r = ckpt_stage_begin_change(n, h->fd); /* it may have been made to share content after it was opened */
    if (r == 0)
        r = ckpt_disk_write(h->fd, buf, len, off);
    ckpt_stage_end_change(n);
    ckpt_stage_write_failed(n->step, r);
    ckpt_stage_dirty(n);
    ckpt_stage_touch(n->step, who);
    return r < 0 ? r : (ssize_t)len;
}

int ckpt_stage_allocate(struct ckpt_stage_handle *h, int mode, uint64_t off, uint64_t len,
                        const struct ckpt_caller *who)
{
    if (off > CKPT_LEAF_MAX || len > CKPT_LEAF_MAX - off)
        return -EFBIG;
    int r = ckpt_stage_begin_change(h->inode, h->fd);
    if (r == 0)
        r = ckpt_disk_allocate(h->fd, mode, off, len);
    ckpt_stage_end_change(h->inode);
    ckpt_stage_write_failed(h->inode->step, r);
    ckpt_stage_dirty(h->inode);
    ckpt_stage_touch(h->inode->step, who);
    return r;
}

int ckpt_stage_fsync(struct ckpt_stage_handle *h)
{
    pthread_mutex_lock(&h->inode->content);
    h->inode->no_evict = true; /* they are on the disk from now on */
    pthread_mutex_unlock(&h->inode->content);
    int r = ckpt_disk_fsync(h->fd);
    if (r < 0 || atomic_load(&h->inode->shared) != 1)
        return r;
    return ckpt_disk_fsync(h->inode->step->hold); /* the bytes of a reference file are an object there */
}
