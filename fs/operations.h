/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE operations: a thin translation of the kernel's requests to calls of libckptfs. A node's number is its id. All of them may
 * run at once; no lock is held here.
 */
#ifndef FS_OPERATIONS_H
#define FS_OPERATIONS_H

#include "fs/mount_options.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

struct fs_mount {
    struct ckpt_source *source;
    const struct fs_mount_options *opt;
    bool no_open; /* the kernel opens files without asking */
    int ready_fd; /* where somebody waits for the mount to work, or -1 */
};

extern const struct fuse_lowlevel_ops fs_operations;

#endif
