/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call by which ckptfs changes a disk. Thin: each is one system call (write: as many as it takes) that returns a
 * negative errno. They are together so that tests can fail, stop or record each one in turn, in a build with the option
 * test_hooks:
 *
 *   CKPTFS_DISK_FAIL=N:ENOSPC   call number N (from 1) and all after it fail; N:EIO; "N:ENOSPC:once" only that one;
 *                               N:KILL ends the process
 *   CKPTFS_DISK_TRACE=FILE      each call is appended to FILE after it was made: a line "op path [path2] [numbers]",
 *                               names as %XX where they are not plain; the data of writes go to FILE.data
 *   CKPTFS_DISK_SLOW=punch:50   calls of that name, as in a trace, take 50 ms more
 *
 * Paths are relative to an open directory. Any thread.
 */
#ifndef CKPT_IO_DISK_H
#define CKPT_IO_DISK_H

#include "core/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* A descriptor. Only calls that may make or empty a file (O_CREAT, O_TRUNC) count. */
int ckpt_disk_open(int dir, const char *path, int flags, mode_t mode) CKPT_MUST_USE;
int ckpt_disk_write(int fd, const void *buf, size_t len, uint64_t off) CKPT_MUST_USE; /* all of it */
int ckpt_disk_truncate(int fd, uint64_t size) CKPT_MUST_USE;
int ckpt_disk_punch(int fd,
                    uint64_t size) CKPT_MUST_USE; /* its first bytes become zeros, which take no room; its size stays */
int ckpt_disk_allocate(int fd, int mode, uint64_t off, uint64_t len) CKPT_MUST_USE; /* fallocate's modes */
int ckpt_disk_fsync(int fd) CKPT_MUST_USE;                                          /* of a file or a directory */
int ckpt_disk_syncfs(int fd) CKPT_MUST_USE; /* all of the file system that it is on */
int ckpt_disk_mkdir(int dir, const char *path, mode_t mode) CKPT_MUST_USE;
int ckpt_disk_rename(int from_dir, const char *from, int to_dir, const char *to,
                     unsigned flags) CKPT_MUST_USE; /* renameat2's flags */
int ckpt_disk_link(int from_dir, const char *from, int to_dir, const char *to) CKPT_MUST_USE;
int ckpt_disk_link_fd(int fd, int to_dir,
                      const char *to) CKPT_MUST_USE; /* another name for a file that is open, be it by O_PATH */
int ckpt_disk_unlink(int dir, const char *path, int flags) CKPT_MUST_USE; /* AT_REMOVEDIR */
/* Of these, fd may also be an O_PATH one. */
int ckpt_disk_setxattr(int fd, const char *name, const void *value, size_t len) CKPT_MUST_USE;
int ckpt_disk_setxattr_as(int fd, const char *name, const void *value, size_t len,
                          int flags) CKPT_MUST_USE; /* XATTR_CREATE, XATTR_REPLACE */
int ckpt_disk_removexattr(int fd, const char *name) CKPT_MUST_USE;
int ckpt_disk_chmod(int fd, mode_t mode) CKPT_MUST_USE;
int ckpt_disk_chown(int fd, uid_t uid, gid_t gid) CKPT_MUST_USE;               /* -1: as it is */
int ckpt_disk_set_times(int fd, const struct timespec times[2]) CKPT_MUST_USE; /* utimensat's */

/* Tests want each call made by this process: the environment asks to fail or to record some. */
bool ckpt_disk_watched(void);

/* Opens, fsyncs and closes a directory. */
int ckpt_disk_fsync_dir(int dir, const char *path) CKPT_MUST_USE;
/* A whole small file under a temporary name, fsynced, renamed to `path`, its directory fsynced: all or nothing. */
int ckpt_disk_replace(int dir, const char *path, const void *data, size_t len) CKPT_MUST_USE;
/* A directory and all that is in it, as far as it goes; not durable. Nesting up to 300. */
int ckpt_disk_remove_tree(int dir, const char *path);

#endif
