/* SPDX-License-Identifier: Apache-2.0 */
/* The threads that answer the kernel. */
#ifndef FS_LOOP_H
#define FS_LOOP_H

struct fuse_session;

/* Until it is unmounted, or a signal comes: 0, or a negative errno. */
int fs_loop_run(struct fuse_session *session);

#endif
