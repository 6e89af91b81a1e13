/* SPDX-License-Identifier: Apache-2.0 */
/* A path with links that lead anywhere, resolved name by name. */
#ifndef CKPT_IO_FOLLOW_H
#define CKPT_IO_FOLLOW_H

#include <stddef.h>

/* Below so many links to directories, one in another, there are no more: names that lead to each other have an end. */
#define CKPT_FOLLOW_DIRS 4

/*
 * Open a path below a directory, with openat's flags. A descriptor, or a negative errno: -ELOOP too where a link leads
 * to a directory that the path has come through, and -ENOENT at and below `never`, an absolute path without links
 * (NULL: nowhere), which is not looked into.
 */
int ckpt_follow(int dir, const char *path, int flags, const char *never);
/* The path of what a descriptor is open on, as the kernel has it now; -ENAMETOOLONG. */
int ckpt_path_of_fd(int fd, char *ret, size_t size);

#endif
