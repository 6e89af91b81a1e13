/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE operations: a thin translation of the kernel's requests to calls of libckptfs. A node's number is its id.
 * All of them may run at once; no lock is held here.
 */
#ifndef FS_OPERATIONS_H
#define FS_OPERATIONS_H

#include "fs/mount_options.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "fs/opens.h"
#include "fs/passthrough.h"

struct fs_mount {
    struct ckpt_source *source;
    const struct fs_mount_options *opt;
    bool writable;                      /* the source has a native root to write to */
    bool no_open;                       /* the kernel opens files without asking */
    struct fs_passthrough *passthrough; /* NULL: there is none */
    struct fs_opens *opens;
    int ready_fd; /* where somebody waits for the mount to work, or -1 */
};

extern const struct fuse_lowlevel_ops fs_operations;

static inline struct fs_mount *fs_mount_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}
static inline struct ckpt_caller fs_caller(fuse_req_t req)
{
    const struct fuse_ctx *c = fuse_req_ctx(req);
    return (struct ckpt_caller){.pid = c->pid, .uid = c->uid, .gid = c->gid, .shown = &fs_mount_of(req)->opt->shown};
}
static inline struct ckpt_handle *fs_handle_of(const struct fuse_file_info *fi)
{
    return fi && fi->fh ? ((struct fs_open *)(uintptr_t)fi->fh)->what : NULL;
}
static inline struct ckpt_dir *fs_dir_of(const struct fuse_file_info *fi)
{
    return ((struct fs_open *)(uintptr_t)fi->fh)->what;
}
void fs_fill_stat(const struct fs_mount *m, const struct ckpt_attr *a, struct stat *st);
void fs_fill_entry(const struct fs_mount *m, const struct ckpt_attr *a, struct fuse_entry_param *e);
/* How long the kernel may remember attributes, in seconds. */
double fs_attr_timeout(const struct fs_mount *m, const struct ckpt_attr *a);

/* --- change.c: what changes a native root --- */
void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set, struct fuse_file_info *fi);
void fs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev);
void fs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void fs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void fs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
                  unsigned flags);
void fs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name);
void fs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void fs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi);
void fs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_op_statfs(fuse_req_t req, fuse_ino_t ino);
void fs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags);
void fs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi);
void fs_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in, struct fuse_file_info *fi_in,
                           fuse_ino_t ino_out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags);

#endif
