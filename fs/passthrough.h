/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that the kernel reads and writes on the disk's file system by itself, without asking the daemon (FUSE
 * passthrough, Linux 6.9). libfuse before 3.17 knows nothing of it, so the greeting is changed on its way to the
 * kernel, and the replies to open are made here.
 *
 * The kernel wants all opens of a file at one time to be of one mode, and of one backing file: who comes first decides.
 * Only a privileged daemon may (CAP_SYS_ADMIN); it is switched off for good when the kernel says no. Internally locked.
 */
#ifndef FS_PASSTHROUGH_H
#define FS_PASSTHROUGH_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <stdbool.h>
#include <stdint.h>

struct fs_passthrough;

/* After the session was mounted, and before it is served. NULL: it cannot be had. */
struct fs_passthrough *fs_passthrough_new(struct fuse_session *session);
void fs_passthrough_free(struct fs_passthrough *p);
/* Counts an open of a file. fd: its backing file, or -1 for one that is to be read through the daemon. The result is an
 * id for the reply, or 0: reply as usual. */
int32_t fs_passthrough_open(struct fs_passthrough *p, uint64_t ino, int fd);
void fs_passthrough_release(struct fs_passthrough *p, uint64_t ino);
/* The replies to open and create with an id. */
int fs_passthrough_reply_open(fuse_req_t req, uint64_t fh, int32_t backing, bool no_flush);
int fs_passthrough_reply_create(fuse_req_t req, const struct fuse_entry_param *e, uint64_t fh, int32_t backing);

#endif
