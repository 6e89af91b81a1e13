/* SPDX-License-Identifier: Apache-2.0 */
/* The operations that change a native root. -ESTALE makes the kernel look the path up again: see core/ckpt.h. */
#include "core/base/util.h"
#include "fs/operations.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

static void reply_entry(fuse_req_t req, int r, const struct ckpt_attr *a)
{
    struct fs_mount *m = fs_mount_of(req);
    struct fuse_entry_param e;
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    fs_fill_entry(m, a, &e);
    if (fuse_reply_entry(req, &e) < 0)
        ckpt_forget(m->source, a->id, 1);
}

void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set, struct fuse_file_info *fi)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_attr a;
    struct stat out;
    unsigned what =
        (to_set & FUSE_SET_ATTR_MODE ? CKPT_ATTR_MODE : 0) | (to_set & FUSE_SET_ATTR_UID ? CKPT_ATTR_UID : 0) |
        (to_set & FUSE_SET_ATTR_GID ? CKPT_ATTR_GID : 0) | (to_set & FUSE_SET_ATTR_SIZE ? CKPT_ATTR_SIZE : 0) |
        (to_set & FUSE_SET_ATTR_ATIME ? CKPT_ATTR_ATIME : 0) | (to_set & FUSE_SET_ATTR_MTIME ? CKPT_ATTR_MTIME : 0);
    if (to_set & FUSE_SET_ATTR_ATIME_NOW)
        st->st_atim.tv_nsec = UTIME_NOW;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW)
        st->st_mtim.tv_nsec = UTIME_NOW;
    int r = ckpt_setattr(m->source, ino, st, what, &who, &a, NULL);
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    fs_fill_stat(m, &a, &out);
    fuse_reply_attr(req, &out, fs_attr_timeout(m, &a));
}

/* Regular files come by create where the kernel can; devices, pipes and sockets have no place in a checkpoint. */
void fs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_handle *handle;
    struct ckpt_attr a;
    int r = S_ISREG(mode) ? ckpt_create(m->source, parent, name, mode & 07777, O_EXCL, &who, &a, &handle, NULL)
                          : ckpt_no_link(m->source, parent);
    if (r == 0)
        ckpt_release(handle);
    reply_entry(req, r, &a);
}

void fs_op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, -ckpt_no_link(fs_mount_of(req)->source, parent));
}

void fs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_attr a;
    int r = ckpt_mkdir(fs_mount_of(req)->source, parent, name, mode, &who, &a, NULL);
    reply_entry(req, r, &a);
}

void fs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct ckpt_caller who = fs_caller(req);
    fuse_reply_err(req, -ckpt_unlink(fs_mount_of(req)->source, parent, name, false, &who, NULL));
}

void fs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct ckpt_caller who = fs_caller(req);
    fuse_reply_err(req, -ckpt_unlink(fs_mount_of(req)->source, parent, name, true, &who, NULL));
}

static void interrupt(fuse_req_t req, void *data)
{
    atomic_store((atomic_bool *)data, true);
}

void fs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
                  unsigned flags)
{
    atomic_bool interrupted = false;
    struct ckpt_caller who = fs_caller(req);
    who.interrupted = &interrupted;
    fuse_req_interrupt_func(req, interrupt, &interrupted); /* it may be a commit, which takes its time */
    int r = ckpt_rename(fs_mount_of(req)->source, parent, name, new_parent, new_name, flags, &who, NULL);
    fuse_req_interrupt_func(req, NULL, NULL);
    fuse_reply_err(req, -r);
}

void fs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_attr a;
    int r = ckpt_link(fs_mount_of(req)->source, ino, new_parent, new_name, &who, &a, NULL);
    reply_entry(req, r, &a);
}

void fs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct fs_mount *m = fs_mount_of(req);
    struct ckpt_caller who = fs_caller(req);
    struct ckpt_handle *handle;
    struct ckpt_attr a;
    struct fuse_entry_param e;
    struct fs_open *open = NULL;
    int r = fs_open_begin(m->opens, who.uid, &open);
    if (r == 0)
        r = ckpt_create(m->source, parent, name, mode, fi->flags, &who, &a, &handle, NULL);
    if (r < 0) {
        fs_open_end(m->opens, open);
        fuse_reply_err(req, -r);
        return;
    }
    fs_fill_entry(m, &a, &e);
    open->what = handle;
    fi->fh = (uintptr_t)open;
    fi->keep_cache = true;
    int32_t backing = fs_passthrough_open(m->passthrough, a.id, ckpt_handle_fd(handle));
    if (backing)
        ckpt_handle_unseen(handle);
    if ((backing ? fs_passthrough_reply_create(req, &e, fi->fh, backing) : fuse_reply_create(req, &e, fi)) < 0) {
        fs_passthrough_release(m->passthrough, a.id);
        ckpt_release(handle);
        fs_open_end(m->opens, open);
        ckpt_forget(m->source, a.id, 1);
    }
}

void fs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct ckpt_caller who = fs_caller(req);
    ssize_t n = fs_handle_of(fi) ? ckpt_handle_write(fs_handle_of(fi), buf, size, (uint64_t)off, &who) : -EBADF;
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_write(req, (size_t)n);
}

void fs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (fs_handle_of(fi))
        ckpt_handle_flush(fs_handle_of(fi));
    fuse_reply_err(req, 0);
}

void fs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    fs_passthrough_release(fs_mount_of(req)->passthrough, ino);
    ckpt_release(fs_handle_of(fi));
    fs_open_end(fs_mount_of(req)->opens, (struct fs_open *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    fuse_reply_err(req, fs_handle_of(fi) ? -ckpt_handle_fsync(fs_handle_of(fi)) : 0); /* what is committed is durable */
}

void fs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    atomic_bool interrupted = false;
    struct ckpt_caller who = fs_caller(req);
    who.interrupted = &interrupted;
    fuse_req_interrupt_func(req, interrupt, &interrupted);
    int r = ckpt_fsyncdir(fs_mount_of(req)->source, ckpt_dir_id(fs_dir_of(fi)), &who, NULL);
    fuse_req_interrupt_func(req, NULL, NULL);
    fuse_reply_err(req, -r);
}

void fs_op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs st;
    int r = ckpt_statfs(fs_mount_of(req)->source, &st);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_statfs(req, &st);
}

void fs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
    struct ckpt_caller who = fs_caller(req);
    fuse_reply_err(req, -ckpt_setxattr(fs_mount_of(req)->source, ino, name, value, size, flags, &who, NULL));
}

void fs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct ckpt_caller who = fs_caller(req);
    fuse_reply_err(req, -ckpt_removexattr(fs_mount_of(req)->source, ino, name, &who, NULL));
}

void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
    struct ckpt_caller who = fs_caller(req);
    fuse_reply_err(req, fs_handle_of(fi)
                            ? -ckpt_handle_allocate(fs_handle_of(fi), mode, (uint64_t)off, (uint64_t)len, &who)
                            : EBADF);
}

void fs_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in, struct fuse_file_info *fi_in,
                           fuse_ino_t ino_out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags)
{
    struct ckpt_caller who = fs_caller(req);
    ssize_t n = fs_handle_of(fi_out)
                    ? ckpt_copy_range(fs_mount_of(req)->source, fs_handle_of(fi_in), ino_in, (uint64_t)off_in,
                                      fs_handle_of(fi_out), (uint64_t)off_out, len, &who, NULL)
                    : -EBADF;
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_write(req, (size_t)n);
}
