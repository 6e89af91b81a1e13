/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What users have open. A file of a staged step, and a directory, costs the daemon descriptors and memory until it is
 * closed; so that one user cannot have all of them, each has a share, and gets EMFILE beyond it. Internally locked.
 */
#ifndef FS_OPENS_H
#define FS_OPENS_H

#include <stdatomic.h>
#include <sys/types.h>

struct fs_opens;

/* Of an open file or directory: fuse_file_info.fh. */
struct fs_open {
    struct fs_opener *user;
    void *what; /* struct ckpt_handle or ckpt_dir */
};

int fs_opens_new(struct fs_opens **ret);
void fs_opens_free(struct fs_opens *o);
/* One more of a user's. -EMFILE; -ENOMEM. */
int fs_open_begin(struct fs_opens *o, uid_t uid, struct fs_open **ret);
void fs_open_end(struct fs_opens *o, struct fs_open *open);

#endif
